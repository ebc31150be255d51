"""What can be seen of drift without labels: where the inputs lie, how sure the blend is, who disagrees.

`watch_predictions` takes two signals of every predicted row: *uncertainty*, 1 - the blend's confidence, and
*disagreement*, the share of learners whose class is not the blend's (regression: their mean distance from the
blend over its usual size). A rise is found by the e-detector of `kernels/e_sr.py`; a fall is what learning
looks like, and is no alarm. Nothing is said while most rows bring their label: the losses then tell more, and
sooner.

`watch_inputs` takes up to `FEATURES_MAX` features. A number, standardised by the mean and deviation of its
first values and mapped to [0, 1], is bet on in both directions like the signals above. A category c that came
with frequency f(c) so far and g(c) lately (the last 100 values or so) moves the evidence by the odds
g(c) / f(c), whose mean is 1 as long as nothing changes. The threshold is raised by the number of bets.

Expected accuracy: the confidence of the blend, corrected by how often such a confidence was right (24 bins
that fade, 0.999 a labelled row). Where labels are missing it stands for the accuracy; P(y given x) moving
unseen it cannot know. Reference: Garg et al., "Leveraging unlabeled data to predict out-of-distribution
performance" (ICLR 2022), of whose baselines this is the difference-of-confidences kind.
"""

import math

from adaptd.kernels.compile import kernel, subkernel
from adaptd.kernels.e_sr import BETS, bet, e_sr_add

FEATURES_MAX = 32
# A category's frequencies are kept by code modulo this.
BUCKETS = 16
LATELY = 0.01
# Odds are cut here, and lie on average this much above 1 only by the error of the frequencies.
ODDS_MAX = 10.0
ODDS_MARGIN = 0.05
CLIP = 3.0
FADING = 0.999
# The share of rows that come with their label fades so fast.
SHARE_FADING = 0.995
# Where more of the rows bring their label, nothing is said of uncertainty and disagreement.
LABELLED_SHARE_MAX = 0.5
# A regression's disagreement this many times the usual one is as alarming as any.
SIGNAL_CUT = 4.0
# The longest time, in predicted rows, that inputs which move all the time are not told of again.
COOLDOWN_MAX = 1_000_000
# Bins of the confidence's logit from LOGIT_MIN on, each of the width LOGIT_STEP.
CONFIDENCE_BINS = 24
LOGIT_MIN, LOGIT_STEP = -4.0, 0.5
# A bin's own confidence counts as much as so many rows.
BIN_PRIOR_ROWS = 20.0

# Places in `sums`: values since the start or last alarm; share of rows with a label; fading and whole sums of
# the expected accuracy of predicted rows, and of labelled rows alone; usual size of regression's
# disagreement.
(
    SINCE_ALARM, LABELLED_SHARE, EXPECTED, EXPECTED_WEIGHT, EXPECTED_ALL, EXPECTED_ROWS, PAIRED,
    PAIRED_WEIGHT, DISTANCE, DISTANCE_WEIGHT, N_SUMS,
) = range(11)  # fmt: skip

# A feature's state: rows; of a number the mean and sum of squared deviations of the first values, and the
# mean of the mapped value since; evidence up and down.
ROWS, MEAN, SQUARES, MAPPED, UP = range(5)
DOWN = UP + len(BETS)
INPUT_SIZE = DOWN + len(BETS)


@subkernel
def top_of(p):
    """The class of the greatest probability."""
    top = 0
    for c in range(1, p.shape[0]):
        if p[c] > p[top]:
            top = c
    return top


@subkernel
def expected_hit(bins, confidence):
    """How likely a prediction of this confidence is right; the bin it falls into."""
    kept = min(max(confidence, 1e-6), 1.0 - 1e-6)
    place = (math.log(kept / (1.0 - kept)) - LOGIT_MIN) / LOGIT_STEP
    b = int(min(max(place, 0.0), CONFIDENCE_BINS - 1.0))
    hits, rows = bins[b, 0], bins[b, 1]
    return (hits + BIN_PRIOR_ROWS * confidence) / (rows + BIN_PRIOR_ROWS), b


@subkernel
def disagreement_of(predictions, blend, t, is_regression, sums):
    """In [0, 1]; NaN when nobody can disagree."""
    apart = 0.0
    awake = 0.0
    top = 0 if is_regression else top_of(blend[t])
    for k in range(predictions.shape[0]):
        if math.isnan(predictions[k, t, 0]):
            continue
        awake += 1.0
        if is_regression:
            apart += abs(predictions[k, t, 0] - blend[t, 0])
        elif top_of(predictions[k, t]) != top:
            apart += 1.0
    if awake < 2.0:
        return math.nan
    apart /= awake
    if not is_regression:
        return apart
    size = sums[DISTANCE] / sums[DISTANCE_WEIGHT] if sums[DISTANCE_WEIGHT] > 0.0 else apart
    sums[DISTANCE] = 0.9999 * sums[DISTANCE] + apart
    sums[DISTANCE_WEIGHT] = 0.9999 * sums[DISTANCE_WEIGHT] + 1.0
    return min(apart / size / SIGNAL_CUT, 1.0) if size > 0.0 else 0.0


@kernel(
    "b1(f8[:,:,::1], f8[:,::1], f8[::1], u1[::1], b1, f8[:,::1], f8[:,::1], f8[::1], "
    "f8, f8, i8, i8, f8[:,::1])"
)
def watch_predictions(
    predictions,
    blend,
    y,
    op,
    is_regression,
    detectors,
    bins,
    sums,
    threshold,
    margin,
    grace,
    cooldown,
    alarms,
):
    """Write into `alarms` [n, 3] whether evidence has passed `threshold`, and then the expected accuracy.

    alarms: of uncertainty, of disagreement, and the expected accuracy; zeros when handed in. True when
    there was one. detectors: [2,
    E_SR_SIZE], of the two. bins: [CONFIDENCE_BINS, 2], fading hits and rows. After an alarm both start anew.
    """
    alarmed = False
    for t in range(len(op)):
        asleep = math.isnan(blend[t, 0])
        confidence = 0.0 if is_regression or asleep else blend[t, top_of(blend[t])]
        if op[t] & 1 and not asleep:
            came = 1.0 if op[t] & 2 else 0.0
            sums[LABELLED_SHARE] += (1.0 - SHARE_FADING) * (came - sums[LABELLED_SHARE])
            sums[SINCE_ALARM] += 1.0
            uncertain = 0.0
            if not is_regression:
                hit, _ = expected_hit(bins, confidence)
                sums[EXPECTED] = FADING * sums[EXPECTED] + hit
                sums[EXPECTED_WEIGHT] = FADING * sums[EXPECTED_WEIGHT] + 1.0
                sums[EXPECTED_ALL] += hit
                sums[EXPECTED_ROWS] += 1.0
                uncertain = e_sr_add(detectors[0], 1.0 - confidence, margin, grace)
            disagreeing = 0.0
            apart = disagreement_of(predictions, blend, t, is_regression, sums)
            if not math.isnan(apart):
                disagreeing = e_sr_add(detectors[1], apart, margin, grace)
            is_told = sums[SINCE_ALARM] > cooldown and sums[LABELLED_SHARE] <= LABELLED_SHARE_MAX
            if is_told and max(uncertain, disagreeing) > threshold:
                alarmed = True
                alarms[t, 0] = 1.0 if uncertain > threshold else 0.0
                alarms[t, 1] = 1.0 if disagreeing > threshold else 0.0
                alarms[t, 2] = math.nan if is_regression else sums[EXPECTED] / sums[EXPECTED_WEIGHT]
                detectors[:] = 0.0
                sums[SINCE_ALARM] = 0.0
        if op[t] & 2 and not asleep and not is_regression:
            hit, b = expected_hit(bins, confidence)
            sums[PAIRED] = FADING * sums[PAIRED] + hit
            sums[PAIRED_WEIGHT] = FADING * sums[PAIRED_WEIGHT] + 1.0
            for other in range(CONFIDENCE_BINS):
                bins[other, 0] *= FADING
                bins[other, 1] *= FADING
            bins[b, 0] += 1.0 if top_of(blend[t]) == int(y[t]) else 0.0
            bins[b, 1] += 1.0
    return alarmed


@subkernel
def excess_of_number(value, state, margin, grace):
    """How far the mapped value lies above and below its mean so far; 0 for the first 2 `grace` values."""
    gap = value - state[MEAN]
    if state[ROWS] <= grace:
        state[MEAN] += gap / state[ROWS]
        state[SQUARES] += gap * (value - state[MEAN])
        return 0.0, 0.0
    deviation = math.sqrt(state[SQUARES] / grace)
    if deviation > 0.0:
        place = 0.5 + min(max(gap / deviation, -CLIP), CLIP) / (2.0 * CLIP)
    else:
        place = 0.5 if gap == 0.0 else (1.0 if gap > 0.0 else 0.0)
    above = place - state[MAPPED]
    state[MAPPED] += above / (state[ROWS] - grace)
    if state[ROWS] <= 2 * grace:
        return 0.0, 0.0
    return above - margin, -above - margin


@subkernel
def excess_of_category(value, state, counts, grace):
    """The odds of the value's bucket, less 1 and the margin; 0 for the first 2 `grace` values."""
    bucket = int(value) % BUCKETS
    usual = (counts[0, bucket] + 0.5) / (state[ROWS] - 1.0 + 0.5 * BUCKETS)
    odds = min(counts[1, bucket] / usual, ODDS_MAX)
    for other in range(BUCKETS):
        counts[1, other] *= 1.0 - LATELY
    counts[1, bucket] += LATELY
    counts[0, bucket] += 1.0
    return 0.0 if state[ROWS] <= 2 * grace else odds - 1.0 - ODDS_MARGIN


@kernel(
    "b1(f8[:,::1], u1[::1], i8[::1], f8[:,::1], f8[:,:,::1], u1[::1], i8[::1], f8, f8, i8, i8, i8, u1[:,::1])"
)
def watch_inputs(
    x, op, capacities, states, counts, moved, clock, threshold, margin, grace, cooldown, check_rows, found
):
    """Mark in `found` [checks, features] what has moved, at every `check_rows`-th predicted row; True
    when something has.

    states: [features, INPUT_SIZE]. counts: [features, 2, BUCKETS]. moved: [features], whether evidence has
    passed `threshold` since the last check. clock: [3], predicted rows in all, since the last alarm, and how
    many must pass before the next: `cooldown`, and twice as many each time that the next comes at once.
    After an alarm all features start anew.
    """
    check = 0
    alarmed = False
    for t in range(len(op)):
        if not op[t] & 1:
            continue
        clock[0] += 1
        clock[1] += 1
        for j in range(states.shape[0]):
            value = x[t, j]
            if not math.isfinite(value):
                continue
            s = states[j]
            s[ROWS] += 1.0
            if capacities[j] > 0:
                above = excess_of_category(value, s, counts[j], grace)
                below = 0.0
            else:
                above, below = excess_of_number(value, s, margin, grace)
            if above != 0.0 and bet(s[UP:DOWN], above) > threshold:
                moved[j] = 1
            if below != 0.0 and bet(s[DOWN:], below) > threshold:
                moved[j] = 1
        if clock[0] % check_rows:
            continue
        if clock[1] > clock[2]:
            alarm = False
            for j in range(states.shape[0]):
                found[check, j] = moved[j]
                alarm = alarm or moved[j] > 0
                moved[j] = 0
            if alarm:
                alarmed = True
                # What moves all the time, such as a date, is no news.
                at_once = clock[1] <= 2 * clock[2]
                clock[2] = min(2 * clock[2], COOLDOWN_MAX) if at_once else cooldown
                states[:] = 0.0
                counts[:] = 0.0
                clock[1] = 0
        check += 1
    return alarmed
