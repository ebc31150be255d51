"""Walks a block for the memory: who does how well lately, who is better than whom, and what rows are like."""

import math

import numpy as np

from adaptd.contracts import LEARN
from adaptd.kernels.compile import kernel, subkernel
from adaptd.kernels.mixing import BETS, all_finite, half_brier

# Steps of the fading means: of losses, short and long, and of what rows are like.
RECENT_STEP = 0.01
STEADY_STEP = 0.002
PRINT_STEP = 0.005
# A number's error is told in units of four fading mean errors of the blend, which move with this step.
SCALE_STEP = 0.002

# Entries of a pair: rows compared, sums of the differences and of the losses of whom it is compared with.
ROWS, SUM, LOSSES = range(3)
N_SUMS = 3
# Entries of a fingerprint behind the features' means and squares: confidence, error, the last one, the
# product of neighbours.
CONFIDENCE, ERROR, LAST, PRODUCT, SEEN = range(5)
N_MARKS = 5


@subkernel
def _loss(p, i, y, is_number, scale):
    """A loss in [0, 1] of row `i` of the predictions `p` [n, width]."""
    if is_number:
        return min(abs(y - p[i, 0]) / (4.0 * scale), 1.0) if scale > 0.0 else 0.0
    return half_brier(p, i, int(y))


@kernel(
    "void(f8[:,:,::1], f8[:,::1], f8[::1], u1[::1], f8[::1], b1, f8[:,::1], f8[:,::1], f8[::1],"
    "i8[::1], f8[:,::1], f8[:,:,::1])",
    allocates=True,
)
def compare(p, blend, y, op, weight, is_number, recent, steady, scale, relatives, sums, evidence):
    """Note the losses of all learners, and of the blend behind them, on the labelled rows.

    recent, steady [n_learners + 1, 2]: fading mean of the loss and rows behind it. scale [1]. For each place
    of a challenger or concept, `relatives` [places] is the learner that it is compared with, -1 for none;
    place k is the learner n_learners - places + k. sums [places, N_SUMS]: of relative's loss - place's loss.
    evidence [places, 2, bets]: e-detectors that the place is better, and that it is worse: each
    `E <- (E + 1)(1 + b d)` (Shin, Ramdas, Rinaldo, arXiv:2203.03532).
    """
    n_learners = p.shape[0]
    first = n_learners - len(relatives)
    losses = np.full(n_learners + 1, np.nan)
    for i in range(p.shape[1]):
        if not op[i] & LEARN or not weight[i] > 0.0 or not math.isfinite(y[i]):
            continue
        if not is_number and not 0 <= y[i] < p.shape[2]:
            continue
        if not all_finite(blend, i):
            continue
        if is_number:
            miss = abs(y[i] - blend[i, 0])
            if scale[0] == 0.0:
                scale[0] = miss
            scale[0] += SCALE_STEP * (min(miss, 10.0 * scale[0]) - scale[0])
        for n in range(n_learners + 1):
            losses[n] = math.nan
            if n == n_learners:
                losses[n] = _loss(blend, i, y[i], is_number, scale[0])
            elif all_finite(p[n], i):
                losses[n] = _loss(p[n], i, y[i], is_number, scale[0])
            if losses[n] == losses[n]:
                recent[n, 1] += 1.0
                recent[n, 0] += max(RECENT_STEP, 1.0 / recent[n, 1]) * (losses[n] - recent[n, 0])
                steady[n, 1] += 1.0
                steady[n, 0] += max(STEADY_STEP, 1.0 / steady[n, 1]) * (losses[n] - steady[n, 0])
        for k in range(len(relatives)):
            other = relatives[k]
            if other < 0:
                continue
            better = losses[other] - losses[first + k]
            if better != better:
                continue
            sums[k, ROWS] += 1.0
            sums[k, SUM] += better
            sums[k, LOSSES] += losses[other]
            for b in range(len(BETS)):
                evidence[k, 0, b] = min((evidence[k, 0, b] + 1.0) * (1.0 + BETS[b] * better), 1e30)
                evidence[k, 1, b] = min((evidence[k, 1, b] + 1.0) * (1.0 - BETS[b] * better), 1e30)


@kernel("void(f8[:,::1], f8[:,::1], f8[::1], u1[::1], b1, f8[:,::1], f8[::1], f8[::1])")
def fingerprint(x, blend, y, op, is_number, features, prior, marks):
    """Follow what labelled rows are like. features [n_features, 3]: fading mean, fading square, values seen;
    prior [n_classes]: the classes' fading frequencies; marks [N_MARKS]: how sure and how wrong the blend is.
    """
    for i in range(x.shape[0]):
        if not op[i] & LEARN:
            continue
        for f in range(x.shape[1]):
            value = x[i, f]
            # Squares of larger numbers leave the range.
            if not abs(value) < 1e150:
                continue
            features[f, 2] += 1.0
            step = max(PRINT_STEP, 1.0 / features[f, 2])
            features[f, 0] += step * (value - features[f, 0])
            features[f, 1] += step * (value * value - features[f, 1])
        if is_number or not all_finite(blend, i):
            continue
        target = int(y[i])
        if not 0 <= target < len(prior):
            continue
        marks[SEEN] += 1.0
        step = max(PRINT_STEP, 1.0 / marks[SEEN])
        top = 0
        for c in range(len(prior)):
            prior[c] += step * ((1.0 if c == target else 0.0) - prior[c])
            if blend[i, c] > blend[i, top]:
                top = c
        wrong = 0.0 if top == target else 1.0
        marks[CONFIDENCE] += step * (blend[i, top] - marks[CONFIDENCE])
        marks[ERROR] += step * (wrong - marks[ERROR])
        marks[PRODUCT] += step * (wrong * marks[LAST] - marks[PRODUCT])
        marks[LAST] = wrong
