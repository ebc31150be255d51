"""The labels that came last, as features for learners that are told to look at them (`lagged = true`).

Many streams are autocorrelated: what came just before tells more than all features. A lagged learner gets
LAGS columns before the others. Classification: the last label and the one before (categories), the logarithm
of the number of labels since the last change, fading means of the class code (a share, when there are two
classes). Regression: the last target, the one before, their difference, fading means. Only labels that have
been learned count, so where labels are late, so are these; a row that waits for its label keeps the columns
that its prediction saw.
"""

import numpy as np

from adaptd.contracts import CATEGORY, NUMBER, PREDICT, Bytes, Floats, Layout, State
from adaptd.kernels.blocks import LAG_SIZES, LAGS, walk_lags
from adaptd.numerics import pack, unpack


class Lags:
    """Walks the operations of a lane and says what the last labels were at each of them."""

    STATE = ("memory",)

    def __init__(self, layout: Layout) -> None:
        self.is_regression = layout.task == "regression"
        self.memory = np.full(LAG_SIZES, np.nan)

    def step(self, y: Floats, op: Bytes, out: Floats) -> None:
        """Write the columns [n, LAGS] where PREDICT is set, then take in the labels where LEARN is."""
        walk_lags(y, op, self.memory, self.is_regression, out)

    def now(self, n: int) -> Floats:
        """[n, LAGS]: the columns of rows that would come now; changes nothing."""
        out = np.full((n, LAGS), np.nan)
        walk_lags(
            np.full(n, np.nan), np.full(n, PREDICT, np.uint8), self.memory.copy(), self.is_regression, out
        )
        return out

    def state(self) -> State:
        return pack(self, self.STATE)

    def load_state(self, state: State) -> None:
        unpack(self, self.STATE, state)


def lagged(layout: Layout) -> Layout:
    """The layout that a lagged learner sees: the lag columns, then the features."""
    if layout.task == "regression":
        kinds, capacities = (NUMBER,) * LAGS, (0,) * LAGS
    else:
        codes = 4
        while codes < layout.n_classes:
            codes *= 2
        kinds, capacities = (CATEGORY, CATEGORY, NUMBER, NUMBER, NUMBER), (codes, codes, 0, 0, 0)
    return Layout(layout.task, kinds + layout.kinds, capacities + layout.capacities, layout.n_classes)
