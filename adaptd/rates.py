"""The factor on every learner's own learning rate: raised when the world has changed, then back to 1.

How: at a control point at which a drift was seen in the rows before it, `scale = boost`; at every other one,
`rows` labelled rows after the last, `scale = 1 + (scale - 1) 0.5^(rows / half_life_rows)`, and 1 when less
than a hundredth is left.

A boost is kept soft: learners that find their own rate need little of it (+0.2 points of accuracy, measured
on eight streams), and after a false alarm it must do no harm.
"""

from typing import Annotated

import msgspec
import numpy as np

from adaptd.contracts import Floats, State

# A scale this close to 1 is 1.
NEGLIGIBLE = 0.01


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    enabled: bool = True
    """Whether drifts raise the rates."""
    boost: Annotated[float, msgspec.Meta(ge=1.0, le=100.0)] = 4.0
    """Factor on the learning rates right after a drift."""
    half_life_rows: Annotated[float, msgspec.Meta(ge=1.0, le=1e9)] = 350.0
    """Labelled rows in which half of the boost wears off."""


class RateControl:
    """`scales` [n_learners]: the factors in force. They change in `review` only."""

    def __init__(self, config: Config, n_learners: int) -> None:
        self.config = config
        self.scales: Floats = np.ones(n_learners)

    def review(self, drifted: bool, rows: int) -> None:
        """A control point, `rows` labelled rows after the last; `drifted`: there was a DRIFT among them."""
        if drifted and self.config.enabled:
            self.scales[:] = self.config.boost
            return
        kept = 0.5 ** (rows / self.config.half_life_rows)
        excess = (self.scales - 1.0) * kept
        self.scales = np.where(np.abs(excess) < NEGLIGIBLE, 1.0, 1.0 + excess)

    def is_boosted(self) -> bool:
        return bool((self.scales != 1.0).any())

    def reset_learner(self, index: int) -> None:
        """The learner at `index` was built anew: it starts at its own rate."""
        self.scales[index] = 1.0

    def add_learner(self) -> None:
        self.scales = np.append(self.scales, 1.0)

    def state(self) -> State:
        return {"scales": self.scales.copy()}

    def load_state(self, state: State) -> None:
        self.scales = state["scales"].copy()
