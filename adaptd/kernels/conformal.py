"""The walk of `coverage.py` over a block; its docstring has the formulas."""

import math

import numpy as np

from adaptd.contracts import LEARN, PREDICT
from adaptd.kernels.compile import kernel, subkernel

# How fast the running size of an error follows, and how much of one error it takes.
SCALE_RATE = 0.05
SCALE_CUT = 10.0
# A residual in units of that size is worth no more: after a still stretch the unit is next to nothing.
RESIDUAL_MAX = 100.0
SCALE_MIN = 1e-12
FADING = 0.999

# Places in the array of what moves.
LEVEL, COUNT, PLACE, SCALE, ERRORS = range(5)
ROWS, MISSES, SIZED, SIZES, EMPTY = range(5, 10)
FADE_ROWS, FADE_MISSES, FADE_SIZED, FADE_SIZES = range(10, 14)
WINDOW_PLACE, WINDOW_COUNT, WINDOW_MISSES, MOST_MISSES, LEAST_MISSES, MOVING = range(14, 20)


@subkernel
def bound(ordered, moving, asked):
    """The residual that the next row will stay below at the level of now; infinite: nobody can say."""
    count = int(moving[COUNT])
    level = moving[LEVEL]
    if level >= 1.0:
        return -1.0
    rank = math.ceil((1.0 - max(level, 0.0)) * (count + 1)) - 1
    if rank >= count:
        if count < ordered.shape[0]:
            return math.inf
        rank = count - 1
    # Beyond the greatest residual of the window nothing was seen: it grows until the misses end.
    return ordered[rank] * math.exp(-min(level, 0.0) / (1.0 - asked))


@subkernel
def remember(ring, ordered, moving, residual):
    """Put a residual into the window, in place of the oldest when it is full."""
    count = int(moving[COUNT])
    place = int(moving[PLACE])
    if count == ring.shape[0]:
        i = np.searchsorted(ordered[:count], ring[place])
        for j in range(i, count - 1):
            ordered[j] = ordered[j + 1]
        count -= 1
    i = np.searchsorted(ordered[:count], residual)
    for j in range(count, i, -1):
        ordered[j] = ordered[j - 1]
    ordered[i] = residual
    ring[place] = residual
    moving[COUNT] = count + 1
    moving[PLACE] = (place + 1) % ring.shape[0]


@subkernel
def count_miss(misses, moving, miss):
    """Keep the misses of the last rows, as many as `misses` holds, and the worst and best such window."""
    size = misses.shape[0]
    place = int(moving[WINDOW_PLACE])
    moving[WINDOW_MISSES] += miss - (misses[place] if moving[WINDOW_COUNT] >= size else 0)
    misses[place] = np.uint8(miss)
    moving[WINDOW_PLACE] = (place + 1) % size
    moving[WINDOW_COUNT] += 1.0
    if moving[WINDOW_COUNT] == size:
        moving[MOST_MISSES] = moving[WINDOW_MISSES]
        moving[LEAST_MISSES] = moving[WINDOW_MISSES]
    elif moving[WINDOW_COUNT] > size:
        moving[MOST_MISSES] = max(moving[MOST_MISSES], moving[WINDOW_MISSES])
        moving[LEAST_MISSES] = min(moving[LEAST_MISSES], moving[WINDOW_MISSES])


@kernel(
    "void(f8[:,::1], f8[::1], u1[::1], i8[::1], b1, f8, f8, f8[:,::1], f8[::1], f8[::1], u1[::1], f8[::1])"
)
def walk(said, y, op, origin, classes, asked, step, given, ring, ordered, misses, moving):
    """Fill `given` [n, 2] where PREDICT is set; where LEARN is, learn from what was given at `origin`.

    said [n, width]: what was answered, for late labels too. origin [n]: where the row was predicted in this
    block, -1 for one of an earlier block, whose `given` is filled in. given: the bound on the residual, and
    the unit that it is in.
    """
    width = said.shape[1]
    for i in range(said.shape[0]):
        known = width > 0 and not math.isnan(said[i, 0])
        if op[i] & PREDICT:
            given[i, 0] = bound(ordered, moving, asked) if known else math.nan
            given[i, 1] = 1.0 if classes else moving[SCALE]
        if not op[i] & LEARN or not known:
            continue
        at = origin[i] if origin[i] >= 0 else i
        limit = given[at, 0]
        unit = given[at, 1]
        if math.isnan(limit):
            continue
        if classes:
            truth = said[i, int(y[i])]
            residual = 1.0 - truth
            miss = 0.0 if residual <= limit and truth > 0.0 else 1.0
            size = 0.0
            for c in range(width):
                size += 1.0 if 1.0 - said[i, c] <= limit and said[i, c] > 0.0 else 0.0
        else:
            error = abs(y[i] - said[i, 0])
            residual = min(error / max(unit, SCALE_MIN), RESIDUAL_MAX)
            half = max(limit, 0.0) * unit if limit < math.inf else math.inf
            miss = 0.0 if said[i, 0] - half <= y[i] <= said[i, 0] + half else 1.0
            size = 2.0 * half
            moving[ERRORS] += 1.0
            if moving[ERRORS] > 20.0:
                error = min(error, SCALE_CUT * moving[SCALE] + SCALE_MIN)
            moving[SCALE] += max(SCALE_RATE, 1.0 / moving[ERRORS]) * (error - moving[SCALE])
        moving[LEVEL] += step * (1.0 - asked - miss)
        remember(ring, ordered, moving, residual)
        moving[ROWS] += 1.0
        moving[MISSES] += miss
        moving[FADE_ROWS] = FADING * moving[FADE_ROWS] + 1.0
        moving[FADE_MISSES] = FADING * moving[FADE_MISSES] + miss
        if size < math.inf:
            moving[SIZED] += 1.0
            moving[SIZES] += size
            moving[EMPTY] += 1.0 if size == 0.0 else 0.0
            moving[FADE_SIZED] = FADING * moving[FADE_SIZED] + 1.0
            moving[FADE_SIZES] = FADING * moving[FADE_SIZES] + size
        count_miss(misses, moving, miss)
