"""The last labelled rows of a lane, for whoever has to learn them again."""

import numpy as np

from adaptd.contracts import LEARN, Bytes, Floats, Layout, State
from adaptd.kernels.blocks import LAGS
from adaptd.numerics import enlarged, pack, total_bytes, unpack


class Recent:
    """A ring of rows. Row k of the lane (from 0) lies at k modulo the ring's size."""

    STATE = ("rows", "x", "lags", "y", "weight")

    def __init__(self, rows_max: int, bytes_max: int, layout: Layout) -> None:
        self.rows_max = rows_max
        self.bytes_max = bytes_max
        self.rows = 0
        """Rows that came so far."""
        size = self.size_for(layout)
        self.x = np.zeros((size, layout.n_features))
        self.lags = np.zeros((size, LAGS))
        self.y, self.weight = np.zeros(size), np.zeros(size)

    def size_for(self, layout: Layout) -> int:
        """Rows that fit the bytes; at least one."""
        return max(1, min(self.rows_max, self.bytes_max // (8 * (layout.n_features + LAGS + 2))))

    @property
    def size(self) -> int:
        return len(self.y)

    @property
    def bytes(self) -> int:
        return total_bytes(self.x, self.lags, self.y, self.weight)

    @property
    def first(self) -> int:
        """The oldest row that is still here."""
        return max(0, self.rows - len(self.y))

    def add(self, x: Floats, lags: Floats, y: Floats, op: Bytes, weight: Floats) -> None:
        """Take in the labelled rows of a block."""
        learns = np.flatnonzero(op & LEARN)
        at = (self.rows + np.arange(len(learns))) % len(self.y)
        self.rows += len(learns)
        # Of more rows than there is room for the last ones stay.
        learns, at = learns[-len(self.y) :], at[-len(self.y) :]
        self.x[at], self.lags[at] = x[learns], lags[learns]
        self.y[at], self.weight[at] = y[learns], weight[learns]

    def taken(self, start: int, stop: int, lagged: bool) -> tuple[Floats, Floats, Floats]:
        """x, y, weight of rows `start` to `stop` (exclusive), as a learner takes them; they must be here."""
        at = np.arange(start, stop) % len(self.y)
        x = np.hstack([self.lags[at], self.x[at]]) if lagged else self.x[at]
        return x, self.y[at], self.weight[at]

    def grow(self, layout: Layout) -> None:
        """New features are missing in the rows that came before them."""
        kept = np.arange(max(self.first, self.rows - self.size_for(layout)), self.rows)
        x, lags, y, weight = (
            self.x[kept % len(self.y)],
            *(array[kept % len(self.y)] for array in (self.lags, self.y, self.weight)),
        )
        size = self.size_for(layout)
        self.x, self.lags = np.zeros((size, layout.n_features)), np.zeros((size, LAGS))
        self.y, self.weight = np.zeros(size), np.zeros(size)
        at = kept % size
        self.x[at] = enlarged(x, (len(kept), layout.n_features), np.nan)
        self.lags[at], self.y[at], self.weight[at] = lags, y, weight

    def state(self) -> State:
        return pack(self, self.STATE)

    def load_state(self, state: State) -> None:
        unpack(self, self.STATE, state)
