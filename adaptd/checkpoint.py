"""A checkpoint: one file that holds a state tree, and proves that it is whole.

    magic, 8 bytes | format version, u32 | header length, u32 | file length, u64
    header: JSON, the tree and for each array its dtype, shape, offset, size and CRC-32
    arrays, each on a multiple of 64
    SHA-256 of all before it

What JSON cannot say stands in the tree as an object with one key that begins with `$`. No pickle: loading
a file that somebody else wrote can only fail.

The file is written beside its place, flushed to disk and renamed, so that a crash at any moment leaves
either the old set of checkpoints or the new one.
"""

import base64
import contextlib
import fcntl
import hashlib
import math
import os
import pathlib
import re
import struct
import time
import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import msgspec
import numpy as np

from adaptd.contracts import State
from adaptd.errors import CheckpointError

# The line ends show a transfer that translated them, as in PNG.
MAGIC = b"ADAPTD\r\n"
FORMAT_VERSION = 1
PREFIX = struct.Struct("<8sIIQ")
ALIGNMENT = 64
DIGEST_BYTES = 32
# Longer byte strings lie beside the arrays instead of as base64 in the header.
INLINE_BYTES_MAX = 4096

NAME = re.compile(r"checkpoint-(\d{10,})\.adaptd")
TEMPORARY = ".tmp"
ABANDONED = ".abandoned"


class CheckpointInfo(NamedTuple):
    """`seconds`: how long saving or loading took."""

    path: pathlib.Path
    number: int
    bytes: int
    seconds: float


class Damaged(NamedTuple):
    path: pathlib.Path
    reason: str
    """What is wrong and what to do; names the file."""


class Loaded(NamedTuple):
    state: State
    info: CheckpointInfo
    damaged: list[Damaged]
    """Newer checkpoints that could not be used, newest first."""


class _Segment(msgspec.Struct):
    """Where an array or a long byte string lies, and what it is."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    bytes: int
    crc32: int


class _Header(msgspec.Struct):
    segments: list[_Segment]
    tree: Any


class _Writer:
    """Turns a state into a tree that JSON can hold, and collects its arrays."""

    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []

    def tree(self, value: Any, place: str) -> Any:
        # The plain types first: they are nearly all there is.
        if value is None or value is True or value is False:
            return value
        if isinstance(value, np.ndarray):
            return {"$array": self._segment(value, place)}
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, int):
            return int(value) if -(2**63) <= value < 2**63 else {"$int": str(int(value))}
        if isinstance(value, float):
            # NaN has many bit patterns and JSON none.
            return float(value) if math.isfinite(value) else {"$float": struct.pack(">d", value).hex()}
        if isinstance(value, bytes | bytearray):
            if len(value) <= INLINE_BYTES_MAX:
                return {"$bytes": base64.b64encode(value).decode()}
            return {"$blob": self._segment(np.frombuffer(value, dtype=np.uint8), place)}
        if isinstance(value, list | tuple):
            return [self.tree(entry, f"{place}[{k}]") for k, entry in enumerate(value)]
        if isinstance(value, dict):
            return self._mapping(value, place)
        raise CheckpointError(
            f"{place} must be None, a bool, int, float, str, bytes, array, list or mapping; "
            f"got {type(value).__name__}. This is a fault in the component that made the state."
        )

    def _text(self, value: str) -> Any:
        # A lone surrogate comes from a lenient JSON decoder and is no UTF-8.
        try:
            value.encode()
        except UnicodeEncodeError:
            return {"$text": base64.b64encode(value.encode("utf-8", "surrogatepass")).decode()}
        return value

    def _mapping(self, value: dict[Any, Any], place: str) -> Any:
        for key in value:
            if not isinstance(key, str):
                raise CheckpointError(f"{place} must have keys that are str; got {key!r:.200}.")
        names = [self._text(key) for key in value]
        entries = [self.tree(entry, f"{place}.{key!s:.50}") for key, entry in value.items()]
        if (len(names) == 1 and str(names[0]).startswith("$")) or not all(map(_is_text, names)):
            return {"$mapping": [[name, entry] for name, entry in zip(names, entries, strict=True)]}
        return dict(zip(names, entries, strict=True))

    def _segment(self, array: np.ndarray, place: str) -> int:
        if array.dtype.hasobject or array.dtype.kind not in "biufcSUmM":
            raise CheckpointError(f"{place} must be an array of a plain dtype; got {array.dtype}.")
        self.arrays.append(array)
        return len(self.arrays) - 1


def _is_text(name: Any) -> bool:
    return isinstance(name, str)


def _value(tree: Any, arrays: list[np.ndarray]) -> Any:
    """What `_Writer.tree` was given."""
    if isinstance(tree, list):
        return [_value(entry, arrays) for entry in tree]
    if not isinstance(tree, dict):
        return tree
    if len(tree) == 1:
        ((tag, held),) = tree.items()
        match tag:
            case "$array":
                return arrays[held]
            case "$blob":
                return arrays[held].tobytes()
            case "$bytes":
                return base64.b64decode(held)
            case "$int":
                return int(held)
            case "$float":
                return struct.unpack(">d", bytes.fromhex(held))[0]
            case "$text":
                return base64.b64decode(held).decode("utf-8", "surrogatepass")
            case "$mapping":
                return {_value(name, arrays): _value(entry, arrays) for name, entry in held}
    return {name: _value(entry, arrays) for name, entry in tree.items()}


def encoded(state: State) -> tuple[list[bytes | memoryview], int]:
    """`state` in the format above, in pieces whose order is that of the file, and the bytes of all.

    Raises CheckpointError when the state is not plain. The pieces are views of its arrays.
    """
    writer = _Writer()
    tree = writer.tree(state, "state")
    segments: list[_Segment] = []
    blocks: list[bytes | memoryview] = []
    size = 0
    for array in writer.arrays:
        # As bytes, since the buffers of text and time arrays have formats that hashlib does not take.
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data if array.nbytes else b""
        padding = -size % ALIGNMENT
        blocks += [bytes(padding), data]
        segments.append(_Segment(array.dtype.str, array.shape, size + padding, len(data), zlib.crc32(data)))
        size += padding + len(data)
    header = msgspec.json.encode(_Header(segments, tree))
    # Blanks are valid JSON: with them the arrays begin on a multiple of the alignment.
    header += b" " * (-(PREFIX.size + len(header)) % ALIGNMENT)
    total = PREFIX.size + len(header) + size + DIGEST_BYTES
    blocks = [PREFIX.pack(MAGIC, FORMAT_VERSION, len(header), total), header, *blocks]
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return [*blocks, digest.digest()], total


def write_checkpoint(path: pathlib.Path, state: State) -> int:
    """Write `state` to `path`, all or nothing, safe against a power cut; the bytes of the file.

    Raises CheckpointError when the state is not plain or the file cannot be written.
    """
    blocks, total = encoded(state)
    try:
        write_whole(path, blocks)
    except OSError as error:
        raise CheckpointError(
            f"{path} could not be written: {error.strerror}. The checkpoints before it are untouched; "
            "make room or correct the permissions, the next one is tried in time."
        ) from error
    return total


def write_whole(path: pathlib.Path, blocks: Iterable[bytes | memoryview]) -> None:
    """Write a file that is there whole or not at all, whatever ends. Raises OSError."""
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with open(temporary, "wb") as file:
            for block in blocks:
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_directory(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def read_checkpoint(path: pathlib.Path) -> tuple[State, int]:
    """The state in `path` and the bytes of the file. Arrays are new and writable.

    Raises CheckpointError that says what is wrong with the file: unreadable, or as for `decoded`.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} could not be read: {error.strerror}. {_INSTEAD}") from error
    return decoded(data, str(path), _INSTEAD), len(data)


def decoded(content: bytes, name: str, instead: str) -> State:
    """The state in `content`. Arrays are new and writable.

    Raises CheckpointError that says what is wrong: empty, torn, damaged, foreign, or of a format that is
    not known yet. The message begins with `name` and ends with `instead`, which says what to do.
    """
    data = memoryview(content)
    if len(data) == 0:
        raise CheckpointError(f"{name} is empty. {instead}")
    if data[: len(MAGIC)] != MAGIC[: len(data)]:
        raise CheckpointError(f"{name} is not a checkpoint of adaptd. {instead}")
    if len(data) < PREFIX.size + DIGEST_BYTES:
        raise CheckpointError(f"{name} is torn: it ends after {len(data)} bytes. {instead}")
    _, version, header_bytes, total = PREFIX.unpack_from(data)
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{name} must have format version {FORMAT_VERSION}; got {version}. It is damaged or was "
            f"written by another version of adaptd: run that one. {instead}"
        )
    if len(data) < total:
        raise CheckpointError(f"{name} is torn: it has {len(data)} of {total} bytes. {instead}")
    if len(data) > total or hashlib.sha256(data[:-DIGEST_BYTES]).digest() != data[-DIGEST_BYTES:]:
        raise CheckpointError(f"{name} is damaged{_damaged_part(data, header_bytes)}. {instead}")
    header = msgspec.json.decode(data[PREFIX.size : PREFIX.size + header_bytes], type=_Header)
    start = PREFIX.size + header_bytes
    arrays = []
    for segment in header.segments:
        array = np.zeros(segment.shape, dtype=segment.dtype)
        if segment.bytes:
            block = data[start + segment.offset : start + segment.offset + segment.bytes]
            array.reshape(-1).view(np.uint8)[:] = np.frombuffer(block, dtype=np.uint8)
        arrays.append(array)
    return cast(State, _value(header.tree, arrays))


_INSTEAD = "Restore an earlier checkpoint with --restore, or remove this file to do without it."


def _damaged_part(data: memoryview, header_bytes: int) -> str:
    """Which array is wrong, when that can be told."""
    start = PREFIX.size + header_bytes
    with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
        header = msgspec.json.decode(data[PREFIX.size : start], type=_Header)
        for k, segment in enumerate(header.segments):
            block = data[start + segment.offset : start + segment.offset + segment.bytes]
            if zlib.crc32(block) != segment.crc32:
                return f": array {k} ({segment.dtype}, shape {segment.shape}) does not match its checksum"
    return ": it does not match its checksum"


def _sync_directory(directory: pathlib.Path) -> None:
    """A rename is on disk only when its directory is."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class CheckpointStore:
    """The last `keep` checkpoints in a directory that no other daemon can use at the same time.

    Raises CheckpointError when the directory is in use or cannot be made.
    """

    def __init__(self, directory: str | os.PathLike[str], keep: int = 3) -> None:
        self.directory = pathlib.Path(directory)
        self.keep = max(1, keep)
        try:
            # Checkpoints hold rows, and some hold what is unpickled: nobody else's business.
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise CheckpointError(
                f"{self.directory} must be a directory that adaptd can write: {error.strerror}. "
                "Correct checkpoint.directory or its permissions."
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise CheckpointError(
                f"{self.directory} is in use by another adaptd. Stop that one, or give each its own "
                "checkpoint.directory."
            ) from error
        # Ours alone now, so what is left over is nobody's.
        for path in self.directory.glob(f"checkpoint-*{TEMPORARY}"):
            path.unlink(missing_ok=True)

    def path(self, number: int) -> pathlib.Path:
        return self.directory / f"checkpoint-{number:010d}.adaptd"

    def list(self) -> list[int]:
        """Numbers of the checkpoints there are, ascending; whether they are whole is not looked at."""
        matches = (NAME.fullmatch(path.name) for path in self.directory.iterdir())
        return sorted(int(match[1]) for match in matches if match)

    def save(self, state: State, number: int) -> CheckpointInfo:
        """Save as `number`, replacing one of that number; then drop all but the newest `keep`."""
        begun = time.perf_counter()
        path = self.path(number)
        size = write_checkpoint(path, state)
        for old in self.list()[: -self.keep]:
            # A checkpoint too many does no harm, and the next save tries again.
            with contextlib.suppress(OSError):
                self.path(old).unlink()
        return CheckpointInfo(path, number, size, time.perf_counter() - begun)

    def load(self, number: int) -> Loaded:
        """Exactly the one with `number`. Raises CheckpointError when there is none or it is damaged."""
        numbers = self.list()
        if number not in numbers:
            known = ", ".join(map(str, numbers)) or "none"
            raise CheckpointError(
                f"{self.directory} must hold checkpoint {number}; it has {known}. Choose one of these."
            )
        begun = time.perf_counter()
        path = self.path(number)
        state, size = read_checkpoint(path)
        return Loaded(state, CheckpointInfo(path, number, size, time.perf_counter() - begun), [])

    def load_latest(self) -> Loaded | None:
        """The newest that is whole; None when the directory holds no checkpoint at all.

        Raises CheckpointError when there are some and none is whole: to start fresh there would be to
        forget in silence.
        """
        damaged: list[Damaged] = []
        for number in reversed(self.list()):
            try:
                state, info, _ = self.load(number)
            except CheckpointError as error:
                damaged.append(Damaged(self.path(number), str(error)))
            else:
                return Loaded(state, info, damaged)
        if damaged:
            reasons = "\n".join(entry.reason for entry in damaged)
            raise CheckpointError(
                f"{self.directory} has no checkpoint that is whole. Put one back from a backup, or move "
                f"the directory away to start fresh.\n{reasons}"
            )
        return None

    def cut_after(self, number: int) -> None:
        """Put aside the checkpoints after `number`, which was chosen to go on from.

        Without this the next start would take the newest of the run that was given up. They stay as
        `.abandoned` until the next such choice.
        """
        for path in self.directory.glob(f"checkpoint-*{ABANDONED}"):
            path.unlink(missing_ok=True)
        for later in self.list():
            if later > number:
                path = self.path(later)
                path.rename(path.with_name(path.name + ABANDONED))
        _sync_directory(self.directory)

    def close(self) -> None:
        """Let go of the directory. Safe to call twice."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
