"""Lines to standard output, for a pipe.

How: lines are collected and handed to the operating system on `flush`, or when `BUFFER_BYTES` wait.
Use it when: the next program of a pipe, or a person, reads the predictions.
Do not use it when: a crash must not repeat a line; what went into a pipe cannot be taken back. Use `file`.
Cost: one system call a flush; at most about a mebibyte of memory.
Guarantee: no line is lost while the reader lives; after a crash the lines since the last checkpoint come
again, equal to the first time.
"""

import os
import select

import msgspec

from adaptd.contracts import State
from adaptd.errors import AdaptdError

BUFFER_BYTES = 1 << 20


class OutputClosed(AdaptdError):  # noqa: N818  (no error: `head` has seen enough)
    """Who read the output went away. The daemon stops quietly."""

    exit_code = 0


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Nothing to choose."""


def build(config: Config) -> "StdoutSink":
    return StdoutSink()


class StdoutSink:
    """See the module. `descriptor` is standard output's."""

    def __init__(self, descriptor: int = 1) -> None:
        self._descriptor = descriptor
        self._buffer = bytearray()

    def write(self, lines: bytes) -> None:
        self._buffer += lines
        if len(self._buffer) >= BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        """Raises OutputClosed when the reader is gone, AdaptdError when the output cannot be written."""
        sent = 0
        try:
            with memoryview(self._buffer) as view:
                while sent < len(view):
                    try:
                        sent += os.write(self._descriptor, view[sent:])
                    except BlockingIOError:
                        # Whoever shares this pipe has made it non-blocking.
                        _wait_until_writable(self._descriptor)
        except BrokenPipeError as error:
            sent = len(self._buffer)  # nobody will read the rest, and closing shall be quiet
            raise OutputClosed("the reader of standard output is gone; nothing more is written.") from error
        except OSError as error:
            raise AdaptdError(
                f"standard output could not be written: {error.strerror}. {len(self._buffer) - sent} bytes "
                "wait; make room and start again."
            ) from error
        finally:
            del self._buffer[:sent]

    def push(self) -> None:
        """The reader has all that was written."""
        self.flush()

    def position(self) -> State:
        return {}

    def seek(self, position: State) -> None:
        """What was printed cannot be taken back; what waits is forgotten."""
        self._buffer.clear()

    def close(self) -> None:
        """Write what waits. Standard output itself stays open: it is not ours."""
        self.flush()


def _wait_until_writable(descriptor: int) -> None:
    poller = select.poll()
    poller.register(descriptor, select.POLLOUT)
    poller.poll()
