"""Rows as gradient learners want them: numbers and targets standardised on the fly, categories one-hot.

*Numbers*: z = (x - mean) / sd, cut to [-clip, clip], with Welford's mean and variance in steps of
max(1/n, fade): with `fade` above 0 old rows fade and the scale follows drift. A value further than `REACH`
deviations out moves the statistics as if it were just that far: one absurd value cannot flatten a column,
and yet a true change of scale gets through in a few rows, since each such row multiplies the variance. A
constant column gives 0.

*Slots*: every possible input has a number. Slot 0 is the constant 1; then each feature has one for "missing"
and one for its number, or one for each code below its capacity. Of a feature exactly one is active in a row.

Reference: B. P. Welford, "Note on a method for calculating corrected sums of squares and products" (1962).
"""

import math

import numpy as np

from adaptd.contracts import NUMBER, Ints, Layout
from adaptd.kernels.compile import subkernel

# Squares of larger numbers overflow.
LARGEST = 1e150
# Variances below are rounding or underflow; their inverse would blow noise up.
SMALLEST_VARIANCE = 1e-280
REACH = 10.0
# Before this many values the standard deviation is too rough to judge by.
WARM_UP = 10.0

# Columns of the statistics; the last two only for a target.
COUNT, MEAN, VARIANCE, INVERSE, LOWEST, HIGHEST = range(6)
# Columns of a plan of slots.
KIND, CAPACITY, FIRST = range(3)


def statistics(n_columns: int) -> np.ndarray:
    """Statistics of columns that were never seen: [n_columns, 4]."""
    return np.zeros((n_columns, 4))


def target_statistics() -> np.ndarray:
    """Statistics of a target that was never seen: [1, 6]."""
    return np.array([[0.0, 0.0, 0.0, 0.0, np.inf, -np.inf]])


def plan_slots(layout: Layout) -> tuple[Ints, int]:
    """The plan [n_features, 3] of kind, capacity, first slot; and how many slots there are."""
    plan = np.zeros((layout.n_features, 3), dtype=np.int64)
    n_slots = 1
    for f, (kind, capacity) in enumerate(zip(layout.kinds, layout.capacities, strict=True)):
        plan[f] = kind, capacity, n_slots
        n_slots += 1 + (1 if kind == NUMBER else capacity)
    return plan, n_slots


def slot_moves(old: Ints, old_slots: int, new: Ints) -> list[tuple[int, int, int]]:
    """Where slots go when the layout grows: (new first, old first, how many), the constant included."""
    ends = [*old[1:, FIRST].tolist(), old_slots]
    moves = [(int(new[f, FIRST]), int(old[f, FIRST]), ends[f] - int(old[f, FIRST])) for f in range(len(old))]
    return [(0, 0, 1), *moves]


@subkernel(inline=True)
def standardise(value, stats, column, clip):
    """z of `value` by the statistics so far; 0 when it is missing or the column is constant."""
    if value != value:
        return 0.0
    z = (min(max(value, -LARGEST), LARGEST) - stats[column, MEAN]) * stats[column, INVERSE]
    return min(max(z, -clip), clip)


@subkernel(inline=True)
def observe(value, stats, column, fade):
    """Take one value into the statistics of `column`; a missing one leaves them alone."""
    if value != value:
        return
    count = stats[column, COUNT] + 1.0
    step = max(1.0 / count, fade)
    delta = min(max(value, -LARGEST), LARGEST) - stats[column, MEAN]
    if count > WARM_UP and stats[column, INVERSE] > 0.0:
        reach = REACH / stats[column, INVERSE]
        delta = min(max(delta, -reach), reach)
    variance = (1.0 - step) * (stats[column, VARIANCE] + step * delta * delta)
    stats[column, COUNT] = count
    stats[column, MEAN] += step * delta
    stats[column, VARIANCE] = variance
    stats[column, INVERSE] = 1.0 / math.sqrt(variance) if variance > SMALLEST_VARIANCE else 0.0


@subkernel(inline=True)
def observe_row(row, plan, stats, fade):
    """Take the numbers of a row into the statistics."""
    for f in range(plan.shape[0]):
        if plan[f, KIND] == NUMBER:
            observe(row[f], stats, f, fade)


@subkernel(inline=True)
def gather(row, plan, stats, clip, slots, values):
    """Write a row's active inputs, one a feature after the constant, into `slots` and `values`."""
    slots[0] = 0
    values[0] = 1.0
    for f in range(plan.shape[0]):
        value = row[f]
        slot = plan[f, FIRST]
        z = 1.0
        if value == value:
            if plan[f, KIND] == NUMBER:
                slot += 1
                z = standardise(value, stats, f, clip)
            else:
                code = np.int64(value)
                # A code beyond the capacity would be another feature's slot.
                if 0 <= code < plan[f, CAPACITY]:
                    slot += 1 + code
        slots[f + 1] = slot
        values[f + 1] = z


@subkernel
def unscale(score, target):
    """The number that a standardised score means, kept within a deviation of what was ever seen."""
    deviation = math.sqrt(target[0, VARIANCE])
    value = target[0, MEAN] + deviation * score
    return min(max(value, target[0, LOWEST] - deviation), target[0, HIGHEST] + deviation)


@subkernel
def observe_target(value, target, fade):
    """Take one target in. An absurd one widens the range no further than `REACH` deviations."""
    observe(value, target, 0, fade)
    seen = min(max(value, -LARGEST), LARGEST)
    if target[0, COUNT] > WARM_UP:
        reach = REACH * math.sqrt(target[0, VARIANCE])
        seen = min(max(seen, target[0, MEAN] - reach), target[0, MEAN] + reach)
    target[0, LOWEST] = min(target[0, LOWEST], seen)
    target[0, HIGHEST] = max(target[0, HIGHEST], seen)
