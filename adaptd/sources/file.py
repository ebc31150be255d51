"""Lines of a file, in JSON or CSV, plain or `.gz`; on request followed while it grows.

How: reads up to 1 MiB at a time. A followed file whose path names another file (rotation by renaming), or
that got shorter, is read to its end first, then the new one from its start (with its own CSV header).

Use it when: the input is kept in a file, or a program logs into one.
Do not use it when: the file is changed other than by appending; the position would lie in the wrong place.
Cost: one copy of the bytes; resuming in a `.gz` unpacks it from the start.
Guarantee: resumes at exactly the row after the last one given out. A last line without a line end is a
record at the end of a file that is not followed, and of a followed one once it was rotated away.
"""

import gzip
import hashlib
import os
import pathlib
import select
import zlib
from collections.abc import Mapping
from typing import IO, Annotated, Any, Literal

import msgspec

from adaptd.contracts import Fields, Rows, State
from adaptd.errors import InputError
from adaptd.lines import (
    READ_BYTES_MAX,
    WAIT_SECONDS,
    LineBytesMax,
    Lines,
    RowsMax,
    build_decoder,
    decode_ready,
    no_rows,
)

HEAD_BYTES = 4096
FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".ndjson": "json"}


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which file, and how to read it."""

    path: str = ""
    """The file; packed by gzip when its name ends in `.gz`."""
    format: Literal["auto", "json", "csv"] = "auto"
    """`auto`: by the name's ending (.csv, .json, .jsonl, .ndjson)."""
    delimiter: Annotated[str, msgspec.Meta(min_length=1, max_length=1)] = ","
    """What parts the cells of CSV."""
    follow: bool = False
    """Wait for more at the end of the file, and go on with a new file when it is rotated."""
    poll_rows_max: RowsMax = 4096
    """Rows given out at once; fewer mean earlier answers and more work a row."""
    line_bytes_max: LineBytesMax = 10 << 20
    """A longer line is rejected."""


def build(config: Config, fields: Fields) -> "FileSource":
    """The file from its start. Raises InputError when it cannot be opened."""
    return FileSource(config, fields)


class FileSource:
    """Lines of a file."""

    def __init__(self, config: Config, fields: Fields) -> None:
        self.config = config
        self.packed = config.path.endswith(".gz")
        if self.packed and config.follow:
            raise InputError(
                f"source.path {config.path!r} ends in .gz and cannot be followed. Set follow = false."
            )
        self.decoder = build_decoder(format_of(config), config.delimiter, fields)
        self.lines = Lines(config.line_bytes_max)
        self.ended = False
        self.stopped = False
        self._moved_before = False
        self._raw: IO[bytes] | None = None
        self._stream: Any = None
        self._offset = 0
        self._poll = select.poll()
        self._open(config.path, missing_allowed=config.follow)

    def wake_on(self, descriptor: int) -> None:
        """Waiting for the file to grow ends, too, as soon as `descriptor` can be read."""
        self._poll.register(descriptor, select.POLLIN)

    def poll(self, kinds: Mapping[str, int]) -> Rows | None:
        if self.stopped:
            return None
        while not self.lines.ready:
            if self.ended:
                return None
            piece = self._read()
            if piece:
                self._moved_before = False
                self.lines.feed(piece)
            elif not self.config.follow:
                self.ended = True
                self.lines.finish()
            elif not self._moved():
                self._poll.poll(WAIT_SECONDS * 1000)
                return no_rows()
            elif not self._moved_before:
                # Something may have been written between the last read and the rotation: read once more.
                self._moved_before = True
            elif self.lines.waiting_bytes:
                self.lines.finish()
            else:
                self._go_on_with_new_file()
        return decode_ready(self.lines, self.decoder, kinds, self.config.poll_rows_max)

    def stop(self) -> None:
        # What was read and not given out can be read again.
        self.stopped = True

    def position(self) -> State:
        position = {
            "path": self.config.path,
            "offset": self._offset - self.lines.waiting_bytes,
            "decoder": self.decoder.state(),
            "inode": 0,
            "size": 0,
            "head_bytes": 0,
            "head_sha256": hashlib.sha256().hexdigest(),
        }
        if self._raw is not None:
            status = os.fstat(self._raw.fileno())
            head = os.pread(self._raw.fileno(), HEAD_BYTES, 0)
            position["inode"], position["size"] = status.st_ino, status.st_size
            position["head_bytes"], position["head_sha256"] = len(head), hashlib.sha256(head).hexdigest()
        return position

    def seek(self, position: State) -> None:
        if "head_sha256" not in position:
            raise InputError(
                "the checkpoint was made from another kind of source than a file. "
                "Set source.kind as it was, or choose another checkpoint directory."
            )
        self._open(self._find(position), missing_allowed=self.config.follow)
        self.lines = Lines(self.config.line_bytes_max)
        self.decoder.load_state(position["decoder"])
        self.ended = False
        self._offset = int(position["offset"])
        if self._offset:
            try:
                self._stream.seek(self._offset)
            except (OSError, EOFError, zlib.error) as fault:
                raise self._unreadable(fault) from fault

    def lag_bytes(self) -> int:
        """For a packed file: packed bytes."""
        if self._raw is None:
            return self.lines.waiting_bytes
        size = os.fstat(self._raw.fileno()).st_size
        return max(0, size - self._raw.tell()) + self.lines.waiting_bytes

    def close(self) -> None:
        if self._raw is not None:
            self._raw.close()
            self._raw = None

    def _open(self, path: str, missing_allowed: bool) -> None:
        self.close()
        self._offset = 0
        try:
            self._raw = open(path, "rb", buffering=0)  # noqa: SIM115 (kept open)
        except FileNotFoundError as fault:
            if not missing_allowed:
                raise InputError(f"{path!r} does not exist. Check source.path.") from fault
        except OSError as fault:
            raise InputError(f"{path!r} cannot be opened: {fault.strerror}. Check source.path.") from fault
        self._stream = gzip.GzipFile(fileobj=self._raw) if self.packed else self._raw

    def _read(self) -> bytes:
        if self._raw is None:
            self._open(self.config.path, missing_allowed=True)
            if self._raw is None:
                return b""
        pieces: list[bytes] = []
        size = 0
        while size < READ_BYTES_MAX:
            try:
                # One read of the packed file each: what came before a damaged place is not lost with it.
                piece = (self._stream.read1 if self.packed else self._stream.read)(READ_BYTES_MAX - size)
            except (OSError, EOFError, zlib.error) as fault:
                if not pieces:
                    raise self._unreadable(fault) from fault
                break
            if not piece:
                break
            pieces.append(piece)
            size += len(piece)
        self._offset += size
        return b"".join(pieces)

    def _unreadable(self, fault: Exception) -> InputError:
        return InputError(
            f"{self.config.path!r} cannot be read on after byte {self._offset}: {fault}. "
            "Is the file whole? Rows before this place were used."
        )

    def _moved(self) -> bool:
        """Whether the path names another file by now, or the file got shorter than what was read."""
        if self._raw is None:
            return False
        try:
            named = os.stat(self.config.path)
        except FileNotFoundError:
            return False
        own = os.fstat(self._raw.fileno())
        return (named.st_ino, named.st_dev) != (own.st_ino, own.st_dev) or own.st_size < self._offset

    def _go_on_with_new_file(self) -> None:
        self._open(self.config.path, missing_allowed=True)
        self._moved_before = False
        state = self.decoder.state()
        if "header" in state:
            state["header"] = None
            self.decoder.load_state(state)

    def _find(self, position: State) -> str:
        """The file that `position` is about: the path, or what it was renamed to. Raises InputError."""
        path = pathlib.Path(self.config.path)
        candidates = [path]
        if self.config.follow and position["head_bytes"]:
            candidates += sorted(path.parent.glob(f"{path.name}*"))
        fitting = [candidate for candidate in candidates if fits(candidate, position)]
        # A rotated file and its successor may begin alike, with the same CSV header.
        fitting.sort(key=lambda candidate: candidate.stat().st_ino != position["inode"])
        if fitting:
            return str(fitting[0])
        if not path.exists() and not position["head_bytes"]:
            return str(path)
        raise InputError(
            f"{str(path)!r} is not the file that the checkpoint was made from: it must begin with the same "
            f"{position['head_bytes']} bytes and have at least {position['size']}. Bring that file back to "
            "go on with it, or choose another checkpoint directory to start anew."
        )


def fits(path: pathlib.Path, position: State) -> bool:
    """Whether the file begins as the position's did, and is no shorter."""
    try:
        with open(path, "rb") as stream:
            head = stream.read(position["head_bytes"])
            size = os.fstat(stream.fileno()).st_size
    except OSError:
        return False
    return bool(size >= position["size"] and hashlib.sha256(head).hexdigest() == position["head_sha256"])


def format_of(config: Config) -> str:
    """The decoder's kind. Raises InputError when the name does not say it."""
    if config.format != "auto":
        return config.format
    ending = pathlib.PurePath(config.path.removesuffix(".gz")).suffix.lower()
    if ending not in FORMATS:
        raise InputError(
            f"the ending of {config.path!r} must be one of {', '.join(FORMATS)}; got {ending!r}. "
            "Set format to json or csv."
        )
    return FORMATS[ending]
