"""The durable input log: what came over HTTP and changes state, in order, each at its place in the stream.

    magic, 8 bytes, then for each entry: length, u32 | CRC-32, u32 | MessagePack of `Entry`

An entry says how many rows of the source were taken in before it. After a crash the source resumes at the
checkpoint's position, and each entry after the checkpoint's is worked on again at that very count, so that
outputs and state come out as they did before.

Entries are appended by the loop and brought to disk by a thread, many with one sync. The loop goes on in
the meantime; answers and output lines wait until what they rest on is on disk (`when_synced`, `is_synced`).
The log is cut into segments, named by the number of their first entry; one is deleted when every kept
checkpoint holds all of it. Without a directory there is no log, and entries count as synced at once.
"""

import collections
import contextlib
import os
import pathlib
import re
import struct
import threading
import zlib
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import msgspec

from adaptd.errors import AdaptdError, CheckpointError

MAGIC = b"ADAPTIN1"
FRAME = struct.Struct("<II")
NAME = re.compile(r"inbox-(\d{10,})\.log")

Kind = Literal["rows", "command"]


class Entry(msgspec.Struct, array_like=True, frozen=True):
    """One operation."""

    seq: int
    """Its number, from 1."""
    after: int
    """Rows of the source that were taken in before it."""
    kind: Kind
    body: bytes
    """JSON lines, or the JSON of a command."""


class Torn(NamedTuple):
    """What a crash left half written; nobody was told that it was taken in."""

    path: pathlib.Path
    bytes: int


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Entry).decode


class Inbox:
    """The log in `directory`, or none when it is None.

    `torn` tells of a half-written end that was cut off. Raises CheckpointError when a segment is damaged
    or foreign.
    """

    def __init__(self, directory: str | os.PathLike[str] | None) -> None:
        self.directory = None if directory is None else pathlib.Path(directory)
        self.torn: Torn | None = None
        self.last_seq = 0
        self._entries: list[Entry] = []
        self._descriptor = -1
        self._size = 0
        self._changed = threading.Condition()
        self._synced = 0
        self._failure: OSError | None = None
        self._closing = False
        self._callbacks: collections.deque[tuple[int, Callable[[], None]]] = collections.deque()
        self._thread: threading.Thread | None = None
        if self.directory is not None:
            segments = self._segments()
            for first, path in segments:
                self._entries += self._read(path, is_last=first == segments[-1][0])
            self.last_seq = self._synced = self._entries[-1].seq if self._entries else 0

    # Reading.

    def resume(self, seq: int) -> list[Entry]:
        """Go on after entry `seq`, the last that the checkpoint holds; what is to be done again."""
        entries = [entry for entry in self._entries if entry.seq > seq]
        self._entries = []
        if entries and entries[0].seq != seq + 1:
            raise CheckpointError(
                f"the input log must go on with entry {seq + 1}, as the checkpoint says; got "
                f"{entries[0].seq}. Put the missing inbox-*.log back, or restore a later checkpoint."
            )
        self.last_seq = self._synced = max(self.last_seq, seq)
        return entries

    def _segments(self) -> list[tuple[int, pathlib.Path]]:
        assert self.directory is not None
        if not self.directory.exists():
            return []
        matches = ((NAME.fullmatch(path.name), path) for path in self.directory.iterdir())
        return sorted((int(match[1]), path) for match, path in matches if match)

    def _read(self, path: pathlib.Path, is_last: bool) -> list[Entry]:
        data = path.read_bytes()
        if data[: len(MAGIC)] != MAGIC[: len(data)]:
            raise CheckpointError(
                f"{path} must be an input log of this version of adaptd; it begins with "
                f"{data[:8]!r}. Move it away to do without it."
            )
        entries: list[Entry] = []
        at = len(MAGIC)
        while at < len(data):
            length, checksum = FRAME.unpack_from(data, at) if at + FRAME.size <= len(data) else (-1, 0)
            body = data[at + FRAME.size : at + FRAME.size + length] if length >= 0 else b""
            if len(body) != length or zlib.crc32(body) != checksum:
                if not is_last:
                    raise CheckpointError(
                        f"{path} is damaged at byte {at}. Put it back from a backup, or move it and the "
                        "segments after it away to do without their entries."
                    )
                self.torn = Torn(path, len(data) - at)
                os.truncate(path, at)
                break
            entries.append(_decode(body))
            at += FRAME.size + length
        if is_last and len(data) < len(MAGIC):
            path.unlink()
        return entries

    # Writing; all from one thread.

    def append(self, after: int, items: Sequence[tuple[Kind, bytes]]) -> list[Entry]:
        """Number and write entries. Raises OSError when the disk refuses, and then has taken none."""
        entries = [
            Entry(self.last_seq + k, after, kind, body) for k, (kind, body) in enumerate(items, start=1)
        ]
        if self.directory is None:
            self.last_seq += len(entries)
            self._synced = self.last_seq
            return entries
        self.check()
        frames = bytearray()
        for entry in entries:
            body = _encode(entry)
            frames += FRAME.pack(len(body), zlib.crc32(body)) + body
        if self._descriptor < 0:
            self._begin(self.last_seq + 1)
        try:
            done = 0
            while done < len(frames):
                done += os.pwrite(self._descriptor, frames[done:], self._size + done)
        except OSError as error:
            try:
                os.ftruncate(self._descriptor, self._size)
            except OSError:
                # Whole entries that were refused may lie there: nothing may go on after them.
                self._failure = error
            raise
        with self._changed:
            self._size += len(frames)
            self.last_seq += len(entries)
            self._changed.notify_all()
        return entries

    def _begin(self, first: int) -> None:
        """A new segment; its name is on disk before an entry is."""
        assert self.directory is not None
        path = self.directory / f"inbox-{first:010d}.log"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(descriptor, MAGIC, 0)
            folder = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError:
            os.close(descriptor)
            raise
        self._descriptor, self._size = descriptor, len(MAGIC)
        if self._thread is None:
            self._thread = threading.Thread(target=self._sync, name="inbox", daemon=True)
            self._thread.start()

    def checkpointed(self, seq: int) -> None:
        """Every kept checkpoint holds the entries up to `seq`: drop them, and begin a new segment."""
        if self.directory is None:
            return
        if self._descriptor >= 0:
            self.wait()
            os.close(self._descriptor)
            self._descriptor = -1
        segments = self._segments()
        ends = [first for first, _ in segments[1:]] + [self.last_seq + 1]
        for (_, path), following in zip(segments, ends, strict=False):
            if following <= seq + 1:
                # A segment too many does no harm: its entries are known by their numbers.
                with contextlib.suppress(OSError):
                    path.unlink()

    # What is on disk.

    @property
    def is_synced(self) -> bool:
        """Whether all entries are on disk."""
        return self._synced == self.last_seq

    def when_synced(self, seq: int, action: Callable[[], None]) -> None:
        """Call `action` once entry `seq` is on disk, from whichever thread knows it first."""
        with self._changed:
            if self._synced < seq:
                self._callbacks.append((seq, action))
                return
        action()

    def wait(self) -> None:
        """Until all entries are on disk. Raises AdaptdError when that cannot be."""
        with self._changed:
            while self._synced != self.last_seq and self._failure is None:
                self._changed.wait()
        self.check()

    def check(self) -> None:
        """Raises AdaptdError once a sync has failed: what is on disk is not known any more."""
        if self._failure is not None:
            raise AdaptdError(
                f"the input log in {self.directory} could not be brought to disk: {self._failure.strerror}. "
                "Nothing after it was told to anybody; make room or look after the disk, and start again."
            )

    def _sync(self) -> None:
        while True:
            with self._changed:
                while self._synced == self.last_seq and not self._closing:
                    self._changed.wait()
                if self._synced == self.last_seq:
                    return
                goal, descriptor = self.last_seq, self._descriptor
            try:
                os.fsync(descriptor)
            except OSError as error:
                # A second sync would not say so: the kernel may have dropped the pages.
                with self._changed:
                    self._failure = error
                    self._changed.notify_all()
                return
            ready = []
            with self._changed:
                self._synced = goal
                while self._callbacks and self._callbacks[0][0] <= goal:
                    ready.append(self._callbacks.popleft()[1])
                self._changed.notify_all()
            for action in ready:
                action()

    def close(self) -> None:
        """Sync and let go of the file. Safe to call twice."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
