"""Losses of one learner over the rows of a block, added up in the rows' order."""

import math

from adaptd.kernels.compile import kernel

# A class that got less than this is as wrong as can be.
LEAST_PROBABILITY = 1e-3


@kernel("void(f8[:,::1], f8[::1], b1, f8[::1])")
def add_losses(out, y, is_regression, total):
    """Add the log losses (regression: absolute errors) of predictions `out` [n, width] to `total` [1].

    Row by row: a sum in another order would give other bits where a read is cut elsewhere.
    """
    for t in range(len(y)):
        if math.isnan(out[t, 0]):
            continue
        if is_regression:
            total[0] += abs(out[t, 0] - y[t])
        else:
            total[0] -= math.log(max(out[t, int(y[t])], LEAST_PROBABILITY))
