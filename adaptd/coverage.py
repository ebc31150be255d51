"""Prediction intervals and class sets that hold the truth as often as was asked, whatever the world does.

How (adaptive conformal inference): the residual of a row is |y - prediction| in units of the running size of
the error, or 1 - probability of the true class. A row is given the bound

    q = quantile of the last residuals at 1 - level            interval: prediction -+ q times the unit
                                                                set: classes with 1 - probability <= q
and its label moves the level

    level += step (1 - asked - miss)                            miss: 1 when the truth was outside, else 0

so misses widen what comes next and hits narrow it, and over n rows the share of misses differs from what was
asked by no more than 1 / (step n) or so, whatever the stream does: nothing is assumed of it. Below level 0
the bound grows beyond the greatest residual seen; above level 1 nothing is given. The window is short, 50 /
(1 - asked) rows (sets: 10), and the step a tenth (three tenths) of 1 - asked, so that windows of 1,000 rows
keep the coverage too; `docs/decisions/0006-coverage.md` has what was measured.

A late label is judged by the interval that was given with the prediction, and by no other. What was answered
is what is judged: the blend, a pinned learner, the student.

Cost: 0.3 us a row; 8 bytes times two windows.
Reference: I. Gibbs, E. Candes, "Adaptive conformal inference under distribution shift" (NeurIPS 2021);
A. Angelopoulos, E. Candes, R. Tibshirani, "Conformal PID control for time series prediction" (NeurIPS 2023).
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from adaptd.contracts import Bytes, Floats, Ints, Layout, State
from adaptd.kernels import conformal
from adaptd.numerics import pack, unpack

if TYPE_CHECKING:
    from adaptd.labels import LabelBuffer
    from adaptd.operations import Late

# Rows in which the worst coverage is looked for.
WINDOW_ROWS = 1000
RESIDUALS_MAX = 2000
# What is given with a prediction: the bound and its unit.
GIVEN = 2


class Coverage:
    """The bounds of a lane, and how often they held."""

    STATE = ("ring", "ordered", "misses", "moving")

    def __init__(self, asked: float, layout: Layout) -> None:
        self.asked = asked
        self.classes = layout.task == "classification"
        window = min(round((10 if self.classes else 50) / (1.0 - asked)), RESIDUALS_MAX)
        self.step_size = (0.3 if self.classes else 0.1) * (1.0 - asked)
        self.ring = np.zeros(window)
        self.ordered = np.zeros(window)
        self.misses = np.zeros(WINDOW_ROWS, np.uint8)
        self.moving = np.zeros(conformal.MOVING)
        self.moving[conformal.LEVEL] = 1.0 - asked

    def step(self, said: Floats, y: Floats, op: Bytes, origin: Ints, given: Floats) -> None:
        """Walk the operations of a block (`kernels/conformal.py` has the arrays)."""
        conformal.walk(
            said, y, op, origin, self.classes, self.asked, self.step_size, given, self.ring, self.ordered,
            self.misses, self.moving,
        )  # fmt: skip

    def now(self, said: Floats) -> Floats:
        """[n, 2]: what rows that would come now are given; changes nothing."""
        n = len(said)
        given = np.full((n, GIVEN), np.nan)
        self.step(said, np.full(n, np.nan), np.ones(n, np.uint8), np.arange(n), given)
        return given

    def figures(self) -> dict[str, float | None]:
        """How often the truth was inside, over all rows and of late, and how much was given."""
        m = self.moving.tolist()
        whole = m[conformal.WINDOW_COUNT] >= WINDOW_ROWS
        size = "set_size" if self.classes else "interval_width"
        return {
            "asked": self.asked,
            "reached": one_minus(m[conformal.MISSES], m[conformal.ROWS]),
            "recent": one_minus(m[conformal.FADE_MISSES], m[conformal.FADE_ROWS]),
            "worst_window": 1.0 - m[conformal.MOST_MISSES] / WINDOW_ROWS if whole else None,
            "best_window": 1.0 - m[conformal.LEAST_MISSES] / WINDOW_ROWS if whole else None,
            size: m[conformal.SIZES] / m[conformal.SIZED] if m[conformal.SIZED] else None,
            f"recent_{size}": (
                m[conformal.FADE_SIZES] / m[conformal.FADE_SIZED] if m[conformal.FADE_SIZED] else None
            ),
        }

    def state(self) -> State:
        return {"asked": self.asked, **pack(self, self.STATE)}

    def load_state(self, state: State) -> None:
        unpack(self, self.STATE, state)


def build(asked: float, layout: Layout) -> Coverage | None:
    """None when no coverage is asked for."""
    return Coverage(asked, layout) if asked > 0.0 else None


def step(
    coverage: Coverage | None,
    said: Floats,
    y: Floats,
    op: Bytes,
    slot: Ints,
    late: "Late | None",
    labels: "LabelBuffer",
) -> Floats | None:
    """[n, GIVEN]: the bound that goes with each prediction of a block; labels move it and are judged by it.

    What is given to a row that waits for its label, `labels` keeps.
    """
    if coverage is None:
        return None
    given, origin = np.full((len(op), GIVEN), np.nan), np.arange(len(op))
    if late is not None:
        origin[late.waited], origin[late.here] = -1, late.origins
        given[late.waited] = labels.given[late.slots]
    coverage.step(said, y, op, origin, given)
    if late is not None:
        waits = ~late.is_late & (slot >= 0)
        labels.given[slot[waits]] = given[waits]
    return given


def one_minus(part: float, whole: float) -> float | None:
    return 1.0 - part / whole if whole else None


def interval(said: Floats, given: Floats) -> tuple[Floats, Floats]:
    """[n] each: the lower and upper end; NaN where none is given, infinite where nobody can say."""
    half = np.maximum(given[:, 0], 0.0) * np.where(np.isinf(given[:, 0]), 1.0, given[:, 1])
    return said[:, 0] - half, said[:, 0] + half


def members(said: Floats, given: Floats) -> npt.NDArray[np.bool_]:
    """[n, classes]: which classes are in the set; none where nothing is predicted."""
    result: Any = (1.0 - said <= given[:, :1]) & (said > 0.0)
    return np.asarray(result, dtype=np.bool_)
