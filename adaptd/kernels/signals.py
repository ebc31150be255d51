"""What the drift detectors see of the blend's losses: in [0, 1], NaN where there is nothing to see."""

import math

from adaptd.kernels.compile import kernel

# An error this many times the usual one is as alarming as any.
ERROR_CUT = 4.0
# Errors that a scale rests on, and how fast the past fades in the usual error.
SCALE_ROWS = 200.0
SCALE_FADING = 0.998
# When the usual error is this part of the scale, what was learned has made the scale too coarse.
SCALE_SHARE = 0.5

# Entries of a scale: 0 until there is one; the sums behind the usual error, and the errors in them.
SCALE, SUM, WEIGHT, ROWS = range(4)
SCALE_SIZE = 4


@kernel("void(f8[:,::1], f8[::1], u1[::1], f8[:,::1])")
def class_signals(blend, y, op, out):
    """Of each labelled row whether the blend is wrong, and min(-ln p_y, 4 ln C) / (4 ln C), in [0, 1].

    Where the blend is asleep it is wrong, and the other one NaN.
    """
    C = blend.shape[1]
    most = 4.0 * math.log(C) if C > 1 else 1.0
    i = 0
    for t in range(len(op)):
        if not op[t] & 2:
            continue
        best = 0
        for c in range(1, C):
            if blend[t, c] > blend[t, best]:
                best = c
        p = blend[t, int(y[t])]
        out[0, i] = 0.0 if best == int(y[t]) and not math.isnan(p) else 1.0
        out[1, i] = p if math.isnan(p) else min(-math.log(max(p, 1e-300)), most) / most
        i += 1


@kernel("i8(f8[::1], f8[::1], f8[::1])")
def scaled_errors(errors, scale, out):
    """Absolute errors as shares of `ERROR_CUT` scales, cut to 1: one threshold serves all targets.

    A scale that followed the errors would lag behind them while a learner gets better, and when it catches up
    that looks like a rise. So it stands still until the usual error is `SCALE_SHARE` of it; then it is set
    anew, and detectors must begin anew. Returns how many errors were taken: all, or those up to that one.
    """
    for i in range(len(errors)):
        out[i] = math.nan
        if math.isnan(errors[i]):
            continue
        error = errors[i]
        if scale[SCALE] > 0.0:
            # What is beyond the cut is not seen either: one wild error must not move the scale.
            error = min(error, ERROR_CUT * scale[SCALE])
            out[i] = error / (ERROR_CUT * scale[SCALE])
        scale[SUM] = SCALE_FADING * scale[SUM] + error
        scale[WEIGHT] = SCALE_FADING * scale[WEIGHT] + 1.0
        scale[ROWS] += 1.0
        usual = scale[SUM] / scale[WEIGHT]
        if scale[ROWS] >= SCALE_ROWS and (scale[SCALE] == 0.0 or usual < SCALE_SHARE * scale[SCALE]):
            had_one = scale[SCALE] > 0.0
            scale[SCALE], scale[ROWS] = usual, 0.0
            if had_one:
                return i + 1
    return len(errors)
