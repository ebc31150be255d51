"""Lines from standard input, in JSON or CSV.

How: reads what there is, up to 1 MiB; if there is nothing, waits a tenth of a second and says so. A half
line waits for its other half; at the end of input it is a line too.

Use it when: another program writes into a pipe, or one wants to try something out.
Do not use it when: no row may be repeated or lost in a crash: a pipe cannot be read again.
Cost: one copy of the bytes; holds at most `line_bytes_max` and one read.
Guarantee: after an orderly stop nothing is lost, since the bytes that were read but not yet given out are
part of the position. After SIGKILL they are lost.
"""

import array
import fcntl
import os
import select
import termios
from collections.abc import Mapping
from typing import Annotated, Literal

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


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stands on standard input."""

    format: Literal["json", "csv"] = "json"
    """JSON lines, or CSV with a header."""
    delimiter: Annotated[str, msgspec.Meta(min_length=1, max_length=1)] = ","
    """What parts the cells of CSV."""
    poll_rows_max: RowsMax = 4096
    """Rows given out at once; fewer mean earlier answers and more work a row."""
    line_bytes_max: LineBytesMax = 10 << 20
    """A longer line is rejected."""


def build(config: Config, fields: Fields) -> "StdinSource":
    """Reads descriptor 0 from where it stands."""
    return StdinSource(config, fields)


class StdinSource:
    """Lines from a descriptor that can be read only once."""

    def __init__(self, config: Config, fields: Fields, descriptor: int = 0) -> None:
        self.config = config
        self.descriptor = descriptor
        self.decoder = build_decoder(config.format, config.delimiter, fields)
        self.lines = Lines(config.line_bytes_max)
        self.ended = False
        self.stopped = False
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        self._waker = -1

    def wake_on(self, descriptor: int) -> None:
        """Waiting for input ends, too, as soon as `descriptor` can be read."""
        self._waker = descriptor
        self._poll.register(descriptor, select.POLLIN)

    def poll(self, kinds: Mapping[str, int]) -> Rows | None:
        if not self.lines.ready and not self.ended and not self.stopped:
            piece = self._read()
            if piece:
                self.lines.feed(piece)
            elif self.ended:
                self.lines.finish()
        if self.lines.ready:
            return decode_ready(self.lines, self.decoder, kinds, self.config.poll_rows_max)
        return None if self.ended or self.stopped else no_rows()

    def stop(self) -> None:
        self.stopped = True

    def position(self) -> State:
        decoder = self.decoder.state()
        return {
            "records": decoder["records"],
            "decoder": decoder,
            "tail": self.lines.unread(),
            "skipped": self.lines.skipped,
        }

    def seek(self, position: State) -> None:
        if "tail" not in position:
            raise InputError(
                "the checkpoint was made from another kind of source than stdin. "
                "Set source.kind as it was, or choose another checkpoint directory."
            )
        self.decoder.load_state(position["decoder"])
        self.lines = Lines(self.config.line_bytes_max)
        if position["tail"]:
            self.lines.feed(position["tail"])
        self.lines.skipped = position["skipped"]

    def lag_bytes(self) -> int:
        count = array.array("i", [0])
        try:
            fcntl.ioctl(self.descriptor, termios.FIONREAD, count)
        except OSError:
            return -1
        return count[0] + self.lines.waiting_bytes

    def close(self) -> None:
        # Standard input belongs to the process, not to this source.
        return

    def _has_input(self, wait: float) -> bool:
        return any(descriptor != self._waker for descriptor, _ in self._poll.poll(wait * 1000))

    def _read(self) -> bytes:
        """What there is, up to the limit; empty when nothing comes. Notes the end of input."""
        pieces: list[bytes] = []
        size = 0
        wait = WAIT_SECONDS
        while size < READ_BYTES_MAX and self._has_input(wait):
            try:
                piece = os.read(self.descriptor, READ_BYTES_MAX - size)
            except BlockingIOError:
                break
            except OSError as fault:
                raise InputError(f"standard input cannot be read: {fault}. Is it open?") from fault
            if not piece:
                # What came before is given out first; the next read finds the end again.
                self.ended = not pieces
                break
            pieces.append(piece)
            size += len(piece)
            wait = 0
        return b"".join(pieces)
