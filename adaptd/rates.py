"""The factor on every learner's own learning rate: raised when the world has changed, then back to 1.

How: at a control point at which a drift was seen in the rows before it, `scale = boost`; at every other one,
`rows` labelled rows after the last, `scale = 1 + (scale - 1) 0.5^(rows / half_life_rows)`, and 1 when less
than a hundredth is left. Size and half-life are each learner's own, learned in `boosts.py`.

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
    """Factor on the learning rates right after a drift, until trials have shown a better one."""
    half_life_rows: Annotated[float, msgspec.Meta(ge=1.0, le=1e9)] = 350.0
    """Labelled rows in which half of the boost wears off, until trials have shown a better one."""
    learned: bool = True
    """Whether size and half-life are learned for each learner from trials after drifts."""
    trial_rows: Annotated[int, msgspec.Meta(ge=1, le=8192)] = 512
    """Labelled rows that a trial keeps and each boost is tried on, up to the next control point."""


class RateControl:
    """`scales` [n_learners]: the factors in force. They change in `review` only.

    `factors`, `half_lives` [n_learners]: how a learner meets a drift, and how that wears off.
    """

    def __init__(self, config: Config, n_learners: int) -> None:
        self.config = config
        self.scales: Floats = np.ones(n_learners)
        self.factors: Floats = np.full(n_learners, config.boost)
        self.half_lives: Floats = np.full(n_learners, config.half_life_rows)

    def review(self, drifted: bool, rows: int) -> None:
        """A control point, `rows` labelled rows after the last; `drifted`: there was a DRIFT among them."""
        if drifted and self.config.enabled:
            self.scales = self.factors.copy()
            return
        excess = (self.scales - 1.0) * 0.5 ** (rows / self.half_lives)
        self.scales = np.where(np.abs(excess) < NEGLIGIBLE, 1.0, 1.0 + excess)

    def is_boosted(self) -> bool:
        return bool((self.scales != 1.0).any())

    def reset_learner(self, index: int) -> None:
        """The learner at `index` was built anew: it starts at its own rate."""
        self.scales[index] = 1.0

    def add_learner(self) -> None:
        self.scales = np.append(self.scales, 1.0)
        self.factors = np.append(self.factors, self.config.boost)
        self.half_lives = np.append(self.half_lives, self.config.half_life_rows)

    def state(self) -> State:
        return {
            "scales": self.scales.copy(),
            "factors": self.factors.copy(),
            "half_lives": self.half_lives.copy(),
        }

    def load_state(self, state: State) -> None:
        self.scales, self.factors = state["scales"].copy(), state["factors"].copy()
        self.half_lives = state["half_lives"].copy()


def faded(factor: float, half_life_rows: float, rows: float) -> float:
    """What is left of a boost after so many labelled rows."""
    excess = (factor - 1.0) * 0.5 ** (rows / half_life_rows)
    return 1.0 if abs(excess) < NEGLIGIBLE else 1.0 + excess
