"""Scores of learners and blend over the labelled rows of a block; `scores.py` owns the arrays."""

import math

from adaptd.kernels.compile import kernel

FADING = 0.999
AUC_BINS = 1000
ECE_BINS = 15

# A row's weight in the recent gaps grows instead of the others' fading; from here on all start anew from 1.
GROWTH_MAX = 1e100

# Columns of `sums` [learners and blend, N_SUMS]. Regression: FADE_HIT is squared error, FADE_LOSS absolute.
N_SUMS = 11
ROWS, SCORED, CORRECT, LOSS, ABSOLUTE, SQUARE = range(6)
FADE_WEIGHT, FADE_HIT, FADE_LOSS, FADE_SCORED, GROWTH = range(6, N_SUMS)


@kernel(
    "void(f8[:,:,::1], f8[:,::1], f8[::1], u1[::1], f8[:,::1], f8[:,::1], f8[:,::1], f8[:,::1], "
    "f8[:,:,::1], f8[:,:,::1], f8[:,::1], f8[::1])"
)
def score_classes(predictions, blend, y, op, sums, hits, predicted, actual, auc, ece, gaps, signal):
    """Accuracy, log loss, confusion margins, probability bins; the signal is 1 where the blend is wrong.

    gaps [learners and blend, ECE_BINS]: confidence less hits of the recent rows in each bin, each row
    weighing 1 / FADING as much as the one before; the last one weighs `sums[GROWTH]`.
    """
    n_learners, n, C = predictions.shape
    for t in range(n):
        if not op[t] & 2:
            continue
        truth = int(y[t])
        for k in range(n_learners + 1):
            p = predictions[k, t] if k < n_learners else blend[t]
            s = sums[k]
            asleep = math.isnan(p[0])
            if asleep and k < n_learners:
                continue
            best = 0
            for c in range(1, C):
                if p[c] > p[best]:
                    best = c
            hit = 1.0 if best == truth and not asleep else 0.0
            s[ROWS] += 1.0
            s[CORRECT] += hit
            s[FADE_WEIGHT] = FADING * s[FADE_WEIGHT] + 1.0
            s[FADE_HIT] = FADING * s[FADE_HIT] + hit
            actual[k, truth] += 1.0
            if k == n_learners:
                signal[t] = 1.0 - hit
            if asleep:
                continue
            loss = -math.log(max(p[truth], 1e-15))
            s[SCORED] += 1.0
            s[LOSS] += loss
            s[FADE_LOSS] = FADING * s[FADE_LOSS] + loss
            s[FADE_SCORED] = FADING * s[FADE_SCORED] + 1.0
            predicted[k, best] += 1.0
            hits[k, truth] += hit
            top = min(int(p[best] * ECE_BINS), ECE_BINS - 1)
            ece[k, top, 0] += 1.0
            ece[k, top, 1] += p[best]
            ece[k, top, 2] += hit
            growth = s[GROWTH] / FADING if s[GROWTH] > 0.0 else 1.0
            if growth > GROWTH_MAX:
                for j in range(ECE_BINS):
                    gaps[k, j] /= growth
                growth = 1.0
            gaps[k, top] += growth * (p[best] - hit)
            s[GROWTH] = growth
            if C == 2:
                auc[k, truth, min(int(p[1] * AUC_BINS), AUC_BINS - 1)] += 1.0


@kernel("void(f8[:,:,::1], f8[:,::1], f8[::1], u1[::1], f8[:,::1], f8[::1], f8[::1])")
def score_numbers(predictions, blend, y, op, sums, target, signal):
    """Absolute and squared errors; the signal is the blend's absolute error, NaN where it is asleep."""
    n_learners, n, _ = predictions.shape
    for t in range(n):
        if not op[t] & 2:
            continue
        target[0] += 1.0
        gap = y[t] - target[1]
        target[1] += gap / target[0]
        target[2] += gap * (y[t] - target[1])
        for k in range(n_learners + 1):
            value = predictions[k, t, 0] if k < n_learners else blend[t, 0]
            s = sums[k]
            error = abs(value - y[t])
            if k == n_learners:
                signal[t] = error
            if math.isnan(error):
                continue
            s[ROWS] += 1.0
            s[SCORED] += 1.0
            s[ABSOLUTE] += error
            s[SQUARE] += error * error
            s[FADE_WEIGHT] = FADING * s[FADE_WEIGHT] + 1.0
            s[FADE_HIT] = FADING * s[FADE_HIT] + error * error
            s[FADE_LOSS] = FADING * s[FADE_LOSS] + error
            s[FADE_SCORED] = FADING * s[FADE_SCORED] + 1.0
