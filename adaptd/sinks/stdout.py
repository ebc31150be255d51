"""Lines to standard output, for a pipe.

How: lines are collected and handed to the operating system, as far as it takes them without waiting.
Use it when: the next program of a pipe, or a person, reads the predictions.
Do not use it when: a crash must not repeat a line; what went into a pipe cannot be taken back. Use `file`.
Cost: two system calls for 4 KiB into a pipe; memory for the lines of one read of the input.
Guarantee: no line is lost while the reader lives; after a crash the lines since the last checkpoint come
again, equal to the first time.
"""

import contextlib
import os
import select
import stat

import msgspec

from adaptd.contracts import State
from adaptd.errors import AdaptdError

# A pipe that can be written at all takes so many bytes without waiting (POSIX).
PIPE_PIECE_BYTES = select.PIPE_BUF
WAIT_MILLISECONDS = 100
WAITS_MAX = 5


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
        mode = os.fstat(descriptor).st_mode
        # Made non-blocking it would be so for every program that shares it, the shell too.
        can_wait = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
        self._piece_bytes = PIPE_PIECE_BYTES if can_wait else 1 << 30
        self._poller = select.poll()
        self._poller.register(descriptor, select.POLLOUT)

    def write(self, lines: bytes) -> None:
        self._buffer += lines

    def push(self, wait: bool = False) -> None:
        """Raises OutputClosed when the reader is gone, AdaptdError when the output cannot be written."""
        sent, waits = 0, WAITS_MAX if wait else 0
        try:
            with memoryview(self._buffer) as view:
                while sent < len(view):
                    if not self._poller.poll(0):
                        if not waits:
                            break
                        waits -= 1
                        self._poller.poll(WAIT_MILLISECONDS)
                        continue
                    # Whoever shares this pipe can have filled it meanwhile, or made it non-blocking.
                    with contextlib.suppress(BlockingIOError):
                        sent += os.write(self._descriptor, view[sent : sent + self._piece_bytes])
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

    def waiting_bytes(self) -> int:
        return len(self._buffer)

    def flush(self) -> None:
        """The reader has all that was written. Raises as `push`."""
        while self._buffer:
            self.push(wait=True)

    def position(self) -> State:
        return {}

    def seek(self, position: State) -> None:
        """What was printed cannot be taken back; what waits is forgotten."""
        self._buffer.clear()

    def close(self) -> None:
        """Write what waits. Standard output itself stays open: it is not ours."""
        self.flush()
