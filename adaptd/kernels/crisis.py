"""A mixer for crises: whom to listen to while a blend does worse than it usually does.

How, with L the blend's loss (half Brier) on a labelled row, p[n] what learner n said:

    lately  += (L - lately) / 32          usual += (L - usual) / 1024          variance likewise
    excess   = (lately - usual) / sqrt(variance / 64)       how far that is beyond what chance brings
    level    = how many of `LEVELS` the excess has reached; at 0 the blend is said as it is, else

    q    = softmax(w[level, blend] log blend + sum_n w[level, n] log p[n])
    said = share[level, 0] blend + share[level, 1] q

The weights learn by gradient steps, as those of `stack_classes.py`'s mixers do, and begin where q is the
blend. A level comes back with every change of the world, and what helps then (who has forgotten soon, who has
just begun) is much the same each time: what was learned in one crisis serves in the next, and on other
streams (`meta.py`). Challengers come and go: they have one weight together. Recalled concepts have none.

What usual is follows the blend, not what is said: so nothing of this comes back to itself.

Measured: `docs/decisions/0015-crises.md`.
Reference: Mahoney, "Adaptive weighing of context models for lossless data compression" (2005), for mixers
that are chosen by a context.
"""

import math
from collections.abc import Sequence

import numpy as np

from adaptd.contracts import Habits, State
from adaptd.kernels.compile import subkernel
from adaptd.kernels.explaining import NEAR, log_mean, log_odds
from adaptd.numerics import adopt, enlarged, habits, pack, unpack

# Excess from which on a crisis is a light, a clear, a grave one.
LEVELS = np.array([2.0, 4.0, 8.0])
# Before so many labelled rows nothing is usual.
ROWS_MIN = 1000
LATELY_RATE = 1.0 / 32.0
USUAL_RATE = 1.0 / 1024.0
# Added to the variance: a blend that was never wrong is not in a grave crisis by its first error.
VARIANCE_MIN = 0.002
# Step of a weight, and the part of the two shares that is dealt out anew each row.
WEIGHT_RATE = 0.002
SHARE_RATE = 0.005
# Mean squares of gradients: where they start, the rows that this counts for, and how fast they follow.
SQUARE_START = 0.05
SQUARE_ROWS = 30.0
SQUARE_RATE = 0.001
# The blend's probability of the true class counts as this at least where it is compared with q's.
LEAST_SHARE = 1e-4
# Greatest weight that is adopted from other streams.
WEIGHT_ADOPTED_MAX = 3.0
# Entries of `usual`, and of a level's weights before the learners' own.
LATELY, USUAL, VARIANCE = range(3)
BLEND, NEWCOMERS, LEARNERS = range(3)
# Column of a learner that has no weight here.
NOBODY = -1


class Crisis:
    """The arrays; `w` and `squares` [levels, 2 + learners that were there from the start]."""

    def __init__(self, n_learners: int) -> None:
        levels = len(LEVELS)
        self.usual = np.zeros(3)
        self.w = np.zeros((levels, LEARNERS + n_learners))
        self.w[:, BLEND] = 1.0
        self.squares = np.full(self.w.shape, SQUARE_START)
        self.shares = np.full((levels, 2), 0.5)
        self.steps = np.zeros(levels)
        """Labelled rows of this stream, by level."""
        self.columns = LEARNERS + np.arange(n_learners)
        """By learner, the column of its weight."""

    _names = ("usual", "w", "squares", "shares", "steps", "columns")

    def reset_learner(self, index: int) -> None:
        column = LEARNERS + index
        if column < self.w.shape[1]:
            self.w[:, column], self.squares[:, column] = 0.0, SQUARE_START
        else:
            self.columns[index] = NOBODY

    def welcome(self, index: int) -> None:
        """The learner at `index` is a challenger."""
        self.columns[index] = NEWCOMERS

    def add_learner(self) -> None:
        self.columns = enlarged(self.columns, (len(self.columns) + 1,), NOBODY)

    def habits(self, n: int) -> tuple[list[Habits], Habits]:
        """As `contracts.Controller.habits`."""
        every = {"blend": self.w[:, BLEND], "newcomers": self.w[:, NEWCOMERS], "shares": self.shares}
        return habits({"w": self.w[:, LEARNERS:].T}, n), {
            name: of.ravel().tolist() for name, of in every.items()
        }

    def adopt(self, learners: Sequence[Habits | None], blend: Habits) -> None:
        """As `contracts.Controller.adopt`."""
        adopt({"w": self.w[:, LEARNERS:].T}, learners)
        of_all = {"blend": self.w[None, :, BLEND], "newcomers": self.w[None, :, NEWCOMERS]}
        adopt(of_all | {"shares": self.shares[None]}, [blend])
        np.clip(self.w, -WEIGHT_ADOPTED_MAX, WEIGHT_ADOPTED_MAX, out=self.w)
        np.clip(self.shares, 0.5 * SHARE_RATE, 1.0, out=self.shares)
        self.shares /= self.shares.sum(axis=1, keepdims=True)

    def state(self) -> State:
        return pack(self, self._names)

    def load_state(self, state: State) -> None:
        unpack(self, self._names, state)


@subkernel
def crisis_level(usual, rows):
    """0 where all is as usual, else one more than the index of the level's weights."""
    if rows < ROWS_MIN:
        return 0
    spread = math.sqrt(0.5 * LATELY_RATE * (usual[VARIANCE] + VARIANCE_MIN))
    level = 0
    while level < LEVELS.shape[0] and usual[LATELY] - usual[USUAL] >= LEVELS[level] * spread:
        level += 1
    return level


@subkernel
def note_usual(usual, loss, rows):
    """Follow the blend's `loss`; `rows`: labelled ones with this."""
    usual[LATELY] += max(LATELY_RATE, 1.0 / rows) * (loss - usual[LATELY])
    rate = max(USUAL_RATE, 1.0 / rows)
    distance = loss - usual[USUAL]
    usual[VARIANCE] += rate * (distance * distance - usual[VARIANCE])
    usual[USUAL] += rate * distance


@subkernel
def mix_crisis(w, columns, shares, blend, plain, awake, floor, own, q, said):
    """Fill `own` (the blend's log-probabilities), `q` and `said`, each [n_classes].

    plain [n_learners, n_classes]: log-probabilities as the learners said them; centred, as `own` will be.
    """
    n_classes = blend.shape[0]
    mean = 0.0
    for c in range(n_classes):
        own[c] = math.log((1.0 - floor) * blend[c] + floor / n_classes)
        mean += own[c]
    for c in range(n_classes):
        own[c] -= mean / n_classes
        q[c] = w[BLEND] * own[c]
    for n in range(plain.shape[0]):
        if awake[n] and columns[n] >= 0:
            for c in range(n_classes):
                q[c] += w[columns[n]] * plain[n, c]
    top = q[0]
    for c in range(1, n_classes):
        top = max(top, q[c])
    total = 0.0
    for c in range(n_classes):
        q[c] = math.exp(q[c] - top)
        total += q[c]
    for c in range(n_classes):
        q[c] = (1.0 - floor) * q[c] / total + floor / n_classes
        said[c] = shares[0] * blend[c] + shares[1] * q[c]


@subkernel
def _slope(logs, q, y):
    """Gradient of the log loss by the weight of the log-probabilities `logs`."""
    slope = -logs[y]
    for c in range(q.shape[0]):
        slope += q[c] * logs[c]
    return slope


@subkernel
def _step(w, squares, column, slope, square_rate, gain):
    squares[column] += square_rate * (slope * slope - squares[column])
    w[column] -= WEIGHT_RATE * gain * slope / (math.sqrt(squares[column]) + 1e-4)


@subkernel
def learn_crisis(w, squares, steps, level, columns, shares, blend, plain, awake, own, q, y, gain):
    """One step towards class `y`, after `mix_crisis`, with the arrays of the level's index."""
    a = shares[0] * max(blend[y], LEAST_SHARE) ** gain
    b = shares[1] * q[y] ** gain
    shares[0] = (1.0 - SHARE_RATE) * a / (a + b) + 0.5 * SHARE_RATE
    shares[1] = 1.0 - shares[0]
    steps[level] += 1.0
    square_rate = max(SQUARE_RATE, 1.0 / (steps[level] + SQUARE_ROWS)) * min(gain, 1.0)
    _step(w, squares, BLEND, _slope(own, q, y), square_rate, gain)
    newcomers = 0.0
    has_newcomers = False
    for n in range(plain.shape[0]):
        if not awake[n] or columns[n] < 0:
            continue
        slope = _slope(plain[n], q, y)
        if columns[n] == NEWCOMERS:
            newcomers += slope
            has_newcomers = True
        else:
            _step(w, squares, columns[n], slope, square_rate, gain)
    if has_newcomers:
        _step(w, squares, NEWCOMERS, newcomers, square_rate, gain)


@subkernel
def explain_crisis(said, first, second, w, columns, shares, blend, plain, awake, own, q, floor, part):
    """Turn `part` [n_learners + 1] of the blend into that of `said` (`explaining.py` says what it is)."""
    unit = log_mean(said[first], said[second])
    distance = w[BLEND] * (own[first] - own[second])
    for n in range(plain.shape[0]):
        if awake[n] and columns[n] >= 0:
            distance += w[columns[n]] * (plain[n, first] - plain[n, second])
    # The floor is the same for all classes: it takes no part in the difference.
    share = q[first] - floor / said.shape[0]
    if abs(distance) > NEAR:
        share = (q[first] - q[second]) / distance
    share *= shares[1] / unit
    # What the blend brings is owed as the blend itself is.
    of_blend = log_odds(blend[first], blend[second])
    factor = shares[0] * blend[first] / unit + share * w[BLEND]
    if abs(of_blend) > NEAR:
        brought = shares[0] * (blend[first] - blend[second]) / unit
        factor = (brought + share * w[BLEND] * (own[first] - own[second])) / of_blend
    for n in range(part.shape[0]):
        part[n] *= factor
    for n in range(plain.shape[0]):
        if awake[n] and columns[n] >= 0:
            part[n] += share * w[columns[n]] * (plain[n, first] - plain[n, second])
