"""Small walks over a block that NumPy would need several passes for."""

import math

from adaptd.contracts import LEARN, PREDICT
from adaptd.kernels.compile import kernel


@kernel("UniTuple(i8, 2)(f8[:,::1], u1[::1], i8)")
def silence(out, op, first):
    """Make every prediction row of `out` that is not all finite NaN throughout.

    Gives the number of PREDICTs from row `first` on, and how many of these have such a row.
    """
    n, width = out.shape
    asked = asleep = 0
    for t in range(n):
        finite = True
        for c in range(width):
            finite = finite and math.isfinite(out[t, c])
        if not finite:
            for c in range(width):
                out[t, c] = math.nan
        if t >= first and op[t] & PREDICT:
            asked += 1
            asleep += 0 if finite else 1
    return asked, asleep


@kernel("i8(u1[::1], i8, b1, i8, i8, u1[::1])")
def thin(op, n_asked, is_place, stride, counted, told):
    """Write `op` to `told`: PREDICT on every `stride`-th row that asks only, the first `n_asked` left out.

    Who rests, and is in no place, learns on these rows only too. counted: such rows so far, modulo `stride`;
    gives what that is behind the block.
    """
    for t in range(len(op)):
        told[t] = op[t] if t >= n_asked else 0
        if told[t] & PREDICT or (told[t] and not is_place):
            counted = (counted + 1) % stride
            if counted > 0:
                told[t] &= LEARN if is_place else 0
    return counted


# Columns that a lagged learner gets, and how fast the two fading means forget.
LAGS = 5
LAG_SIZES = 6
FAST, SLOW = 0.7, 0.97


@kernel("void(f8[::1], u1[::1], f8[::1], b1, f8[:,::1])")
def walk_lags(y, op, memory, is_regression, out):
    """Write the lag columns at each PREDICT; take in the label at each LEARN.

    memory [LAG_SIZES]: last label, the one before, labels since the last change, fast mean, slow mean, count.
    """
    last, before, run, fast, slow, count = memory
    if math.isnan(count):
        count = 0.0
    for t in range(len(op)):
        if op[t] & 1:
            out[t, 0] = last
            out[t, 1] = before
            out[t, 2] = last - before if is_regression else math.log(1.0 + run)
            out[t, 3] = fast
            out[t, 4] = slow
        if op[t] & 2:
            run = 1.0 if math.isnan(run) or y[t] != last else run + 1.0
            before = last
            last = y[t]
            fast = last if math.isnan(fast) else FAST * fast + (1.0 - FAST) * last
            slow = last if math.isnan(slow) else SLOW * slow + (1.0 - SLOW) * last
            count += 1.0
    memory[0], memory[1], memory[2], memory[3], memory[4], memory[5] = last, before, run, fast, slow, count
