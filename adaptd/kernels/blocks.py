"""Small walks over a block that NumPy would need several passes for."""

import math

from adaptd.kernels.compile import kernel


@kernel("i8(f8[:,::1], u1[::1])")
def silence(out, op):
    """Make every prediction row of `out` that is not all finite NaN throughout; how many were PREDICTs."""
    n, width = out.shape
    asleep = 0
    for t in range(n):
        finite = True
        for c in range(width):
            finite = finite and math.isfinite(out[t, c])
        if not finite:
            for c in range(width):
                out[t, c] = math.nan
            asleep += op[t] & 1
    return asleep
