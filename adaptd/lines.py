"""Bytes as they come from a descriptor, cut into whole lines and decoded, a bounded number at a time."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from adaptd import registry
from adaptd.contracts import Decoder, Fields, Reject, Rows
from adaptd.records import RAW_BYTES_MAX

READ_BYTES_MAX = 1 << 20
"""One read."""
WAIT_SECONDS = 0.1
"""How long a source waits for input before it says that nothing came."""

Format = Literal["json", "csv"]
RowsMax = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
LineBytesMax = Annotated[int, msgspec.Meta(ge=64, le=1 << 30)]


def build_decoder(kind: str, delimiter: str, fields: Fields) -> Decoder:
    """The decoder of a source's format."""
    module: Any = registry.load("decoders", kind)
    config = module.Config(delimiter=delimiter) if kind == "csv" else module.Config()
    decoder: Decoder = module.build(config, fields)
    return decoder


def no_rows() -> Rows:
    """What a source returns when nothing came in time."""
    return Rows(0, {}, [], [], np.zeros(0, dtype=np.bool_), np.zeros(0), np.zeros(0))


class Lines:
    """Whole lines out of pieces of bytes.

    A line above `line_bytes_max` is cut out; no more of it than the limit and one piece is ever held.
    """

    def __init__(self, line_bytes_max: int) -> None:
        self.line_bytes_max = line_bytes_max
        self.skipped = 0
        """Bytes of an overlong line that were dropped so far; 0 when there is no such line under way."""
        self._piece = b""
        self._start = 0
        self._ends = np.zeros(0, dtype=np.int64)
        self._next = 0
        self._tail: list[bytes] = []
        self._tail_bytes = 0

    @property
    def ready(self) -> bool:
        """Whether a whole line waits."""
        return self._next < len(self._ends)

    @property
    def waiting_bytes(self) -> int:
        """Bytes that came and were not given out yet, the dropped ones of an overlong line too."""
        return len(self._piece) - self._start + self._tail_bytes + self.skipped

    def feed(self, piece: bytes) -> None:
        """The bytes that follow; only when no line is ready."""
        if b"\n" not in piece:
            self._keep(piece)
            return
        self._piece = b"".join([*self._tail, piece])
        self._start = 0
        self._ends = np.flatnonzero(np.frombuffer(self._piece, np.uint8) == 10)
        self._next = 0
        self._tail, self._tail_bytes = [], 0

    def finish(self) -> None:
        """There is no more: what is left is the last line."""
        if self._tail_bytes or self.skipped:
            self.feed(b"\n")

    def take(self, lines_max: int) -> tuple[bytes, bytes | None]:
        """Up to `lines_max` whole lines, and the start of an overlong line if one comes right after them."""
        first = self._next
        last = min(first + lines_max, len(self._ends))
        starts = np.concatenate([[self._start], self._ends[first:last] + 1])
        lengths = np.diff(starts) - 1
        if self.skipped:
            lengths[0] = self.line_bytes_max + 1
        overlong = np.flatnonzero(lengths > self.line_bytes_max)
        if len(overlong):
            last = first + int(overlong[0])
        stop = int(starts[last - first])
        lines = self._piece[self._start : stop]
        cut = None
        if len(overlong):
            cut = self._piece[stop : min(stop + RAW_BYTES_MAX, int(self._ends[last]))]
            stop = int(self._ends[last]) + 1
            self.skipped = 0
            last += 1
        self._next, self._start = last, stop
        if last == len(self._ends):
            tail = self._piece[stop:]
            self._piece, self._start, self._ends, self._next = b"", 0, self._ends[:0], 0
            self._keep(tail)
        return lines, cut

    def _keep(self, piece: bytes) -> None:
        """Part of a line whose end has not come."""
        if piece:
            self._tail.append(piece)
            self._tail_bytes += len(piece)
        if self._tail_bytes > self.line_bytes_max or (self.skipped and self._tail_bytes > RAW_BYTES_MAX):
            start = b"".join(self._tail)[:RAW_BYTES_MAX]
            self.skipped += self._tail_bytes - len(start)
            self._tail, self._tail_bytes = [start], len(start)

    def unread(self) -> bytes:
        """What came and was not given out; without what was dropped of an overlong line."""
        return b"".join([self._piece[self._start :], *self._tail])


def decode_ready(lines: Lines, decoder: Decoder, kinds: Mapping[str, int], rows_max: int) -> Rows:
    """The rows of the lines that wait, at most `rows_max`; an overlong line is a Reject `too_long`."""
    whole, cut = lines.take(rows_max)
    rows = decoder.decode(whole, kinds) if whole else no_rows()
    if cut is not None:
        state = decoder.state()
        state["records"] += 1
        decoder.load_state(state)
        detail = f"a line must have at most {lines.line_bytes_max} bytes"
        rows.rejects.append(Reject("too_long", detail, state["records"], cut))
    return rows
