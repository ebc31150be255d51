"""Lines to a file, each exactly once, also after a crash.

How: lines are collected; `push` writes them behind what is safe on disk, `flush` syncs. Only then are they
let go. A crash leaves lines after the checkpoint's position; `seek` cuts them off, and the replay
writes them again.
Use it when: predictions are kept, or another program follows the file.
Do not use it when: the file lies on a medium that cannot be cut (a pipe, a device), or two daemons would
share it.
Cost: one system call a push, and a sync a flush; up to `BUFFER_BYTES` of memory.
Guarantee: after a crash and a replay the file is byte for byte what it would be without the crash.
"""

import fcntl
import os
import stat

import msgspec

from adaptd.contracts import State
from adaptd.errors import AdaptdError, ConfigError

BUFFER_BYTES = 4 << 20


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: str = "predictions.jsonl"
    """Appended to when it is there; its directory must be there."""


def build(config: Config) -> "FileSink":
    return FileSink(config.path)


class FileSink:
    """See the module. Raises ConfigError when `path` is not a file that it can have for itself."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._buffer = bytearray()
        self._pushed = 0  # bytes of the buffer that the operating system has
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError([f"{self.path} could not be opened for writing: {error.strerror}."]) from error
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(self._descriptor)
            raise ConfigError([f"{self.path} must be a plain file. For a pipe use the kind stdout."])
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            raise ConfigError([f"{self.path} is written by another adaptd. Choose another path."]) from error
        self._safe_bytes = status.st_size

    def write(self, lines: bytes) -> None:
        self._buffer += lines
        if len(self._buffer) >= BUFFER_BYTES:
            self.flush()

    def waiting_bytes(self) -> int:
        """A disk takes, or refuses."""
        return 0

    def push(self, wait: bool = False) -> None:
        """Readers of the file see all that was written; a power cut may still take it. Raises AdaptdError."""
        try:
            with memoryview(self._buffer) as view:
                while self._pushed < len(view):
                    place = self._safe_bytes + self._pushed
                    self._pushed += os.pwrite(self._descriptor, view[self._pushed :], place)
        except OSError as error:
            raise self._refused(error) from error

    def flush(self) -> None:
        """Raises AdaptdError when the disk refuses; then all is kept, and a later flush tries again."""
        self.push()
        if not self._buffer:
            return
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            # A sync that failed may have dropped pages, and a second sync would not say so: write again.
            self._pushed = 0
            raise self._refused(error) from error
        self._safe_bytes += len(self._buffer)
        self._pushed = 0
        self._buffer.clear()

    def _refused(self, error: OSError) -> AdaptdError:
        return AdaptdError(
            f"{self.path} could not be written: {error.strerror}. {len(self._buffer)} bytes wait in memory; "
            "make room on the disk."
        )

    def position(self) -> State:
        return {"bytes": self._safe_bytes}

    def seek(self, position: State) -> None:
        """Cut the file to the position. Raises AdaptdError when the file is shorter than that."""
        wanted = int(position["bytes"])
        size = os.fstat(self._descriptor).st_size
        if size < wanted:
            raise AdaptdError(
                f"{self.path} must have at least the {wanted} bytes that the checkpoint names; it has "
                f"{size}. It was replaced or cut: put it back, or start without this checkpoint."
            )
        self._buffer.clear()
        self._pushed = 0
        try:
            os.ftruncate(self._descriptor, wanted)
            os.fsync(self._descriptor)
        except OSError as error:
            raise AdaptdError(f"{self.path} could not be cut: {error.strerror}.") from error
        self._safe_bytes = wanted

    def close(self) -> None:
        """Flush and close. Safe to call twice."""
        if self._descriptor < 0:
            return
        try:
            self.flush()
        finally:
            os.close(self._descriptor)
            self._descriptor = -1
