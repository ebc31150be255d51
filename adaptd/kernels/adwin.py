"""ADWIN: a window over one signal that drops its old end when the two ends disagree.

The window is an exponential histogram: row r holds at most five buckets of 2**r values, each with its sum
and its sum of squared deviations; a sixth bucket merges the row's two oldest into the next row. Every
`CLOCK` values each border between buckets is tried as a cut, and the old end goes while

    |mean_0 - mean_1| > sqrt(2/m * variance * L) + 2/(3m) * L,    L = ln(2 ln(width) / delta),

with 1/m = 1/(n_0 - 4) + 1/(n_1 - 4). One detector is a float64 vector of `ADWIN_SIZE` entries that starts
as zeros, so one array [n, ADWIN_SIZE] holds many. About 50 ns a value.

Reference: A. Bifet, R. Gavalda, "Learning from time-changing data with adaptive windowing", SDM 2007.
Details (clock, shortest ends) as in River's `drift.ADWIN`, whose alarms it repeats.
"""

import math

from adaptd.kernels.compile import subkernel

CLOCK = 32
BUCKETS = 5
SHORTEST = 5.0  # values that each end needs before a cut is tried
GRACE = 10.0
# 32 rows hold 10**10 values; beyond that the oldest bucket is let go. A shorter vector has fewer rows.
ROWS = 32
HEAD = 5
ROW_SIZE = 1 + 2 * (BUCKETS + 1)
ADWIN_SIZE = HEAD + ROWS * ROW_SIZE
# Head: the whole window's width, sum, sum of squared deviations; values since the start; rows in use.
WIDTH, TOTAL, SQUARES, TICK, ROWS_USED = 0, 1, 2, 3, 4
# A row: how many buckets, their sums (oldest first), their squared deviations.
SUMS = 1
DEVIATIONS = 1 + BUCKETS + 1


@subkernel
def adwin_clear(state):
    """Back to a new detector."""
    for i in range(state.shape[0]):
        state[i] = 0.0


@subkernel
def shift_row(state, row, n):
    """Forget the row's `n` oldest buckets."""
    count = int(state[row])
    for i in range(count - n):
        state[row + SUMS + i] = state[row + SUMS + i + n]
        state[row + DEVIATIONS + i] = state[row + DEVIATIONS + i + n]
    state[row] = count - n


@subkernel
def drop_oldest(state):
    """Take the oldest bucket out of the window."""
    r = int(state[ROWS_USED]) - 1
    row = HEAD + r * ROW_SIZE
    n = 2.0**r
    state[WIDTH] -= n
    state[TOTAL] -= state[row + SUMS]
    width = state[WIDTH]
    if width > 0.0:
        difference = state[row + SUMS] / n - state[TOTAL] / width
        gone = state[row + DEVIATIONS] + n * width / (n + width) * difference * difference
        # Rounding must not leave a negative variance behind.
        state[SQUARES] = max(0.0, state[SQUARES] - gone)
    shift_row(state, row, 1)
    while r >= 0 and state[HEAD + r * ROW_SIZE] == 0.0:
        r -= 1
    state[ROWS_USED] = r + 1


@subkernel
def insert(state, value):
    width = state[WIDTH]
    if width > 0.0:
        difference = value - state[TOTAL] / width
        state[SQUARES] += width / (width + 1.0) * difference * difference
    state[WIDTH] = width + 1.0
    state[TOTAL] += value
    if state[ROWS_USED] == 0.0:
        state[ROWS_USED] = 1.0
    count = int(state[HEAD])
    state[HEAD + SUMS + count] = value
    state[HEAD + DEVIATIONS + count] = 0.0
    state[HEAD] = count + 1
    r = 0
    n = 1.0
    while state[HEAD + r * ROW_SIZE] > BUCKETS:
        row = HEAD + r * ROW_SIZE
        if row + 2 * ROW_SIZE > state.shape[0]:
            drop_oldest(state)
            return
        above = row + ROW_SIZE
        if r + 1 == state[ROWS_USED]:
            state[ROWS_USED] = r + 2
            state[above] = 0.0
        difference = (state[row + SUMS] - state[row + SUMS + 1]) / n
        count = int(state[above])
        state[above + SUMS + count] = state[row + SUMS] + state[row + SUMS + 1]
        state[above + DEVIATIONS + count] = (
            state[row + DEVIATIONS] + state[row + DEVIATIONS + 1] + 0.5 * n * difference * difference
        )
        state[above] = count + 1
        shift_row(state, row, 2)
        r += 1
        n *= 2.0


@subkernel
def find_cut(state, delta):
    """Whether any border between buckets parts two ends with different means."""
    width = state[WIDTH]
    log_term = math.log(2.0 * math.log(width) / delta)
    spread = 2.0 * state[SQUARES] / width * log_term
    n0 = 0.0
    total0 = 0.0
    for r in range(int(state[ROWS_USED]) - 1, -1, -1):
        row = HEAD + r * ROW_SIZE
        n = 2.0**r
        for k in range(int(state[row])):
            n0 += n
            total0 += state[row + SUMS + k]
            n1 = width - n0
            if n0 < SHORTEST or n1 < SHORTEST:
                continue
            inverse = 1.0 / (n0 - SHORTEST + 1.0) + 1.0 / (n1 - SHORTEST + 1.0)
            difference = abs(total0 / n0 - (state[TOTAL] - total0) / n1)
            excess = difference - 2.0 / 3.0 * log_term * inverse
            if excess > 0.0 and excess * excess > spread * inverse:
                return True
    return False


@subkernel
def adwin_add(state, value, delta):
    """Take one value: 1 when the window was cut and its mean rose, -1 when it fell, else 0."""
    insert(state, value)
    tick = state[TICK] + 1.0
    if tick < CLOCK:
        state[TICK] = tick
        return 0
    state[TICK] = 0.0
    before = state[TOTAL] / state[WIDTH]
    cut = False
    while state[WIDTH] > GRACE and find_cut(state, delta):
        drop_oldest(state)
        cut = True
    if not cut:
        return 0
    return 1 if state[TOTAL] / state[WIDTH] > before else -1


@subkernel
def adwin_mean(state):
    """Mean of the window; 0 when it is empty."""
    return state[TOTAL] / state[WIDTH] if state[WIDTH] > 0.0 else 0.0
