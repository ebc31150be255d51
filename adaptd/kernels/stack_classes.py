"""The walk of `controllers/stack.py` over a block with classes; its docstring has the formulas."""

import math

import numpy as np

from adaptd.contracts import LEARN, PREDICT
from adaptd.kernels.compile import kernel, subkernel
from adaptd.kernels.crisis import crisis_level, explain_crisis, learn_crisis, mix_crisis, note_usual
from adaptd.kernels.explaining import NEAR, log_mean, log_odds, two_greatest
from adaptd.kernels.mixing import (
    MEMBER_SHARE,
    WEIGHT_MAX,
    all_finite,
    apply_map,
    gather_evidence,
    half_brier,
    learn_map,
    note_losses,
    reward,
    share_out,
    softmax,
)

# Rate at which the means of squares follow, gradients' as well as log-probabilities'.
SQUARES_RATE = 0.001
# Step of a mixer's bias, as a part of its rate: a bias must not learn what a learner could say.
BIAS_RATE = 0.1
# Step of an exponent, and where it may lie: between hardly heard and three times as sure.
EXPONENT_RATE = 0.1
EXPONENT_MIN, EXPONENT_MAX = 0.05, 3.0
# How a share that is dealt out anew is split: by the past, and evenly.
PAST_PART = 0.9
# Rows over which the mean of past shares is formed; beyond it the past fades.
PAST_ROWS = 100_000


@subkernel
def _take_in(p, i, floor, exponents, maps, map_shares, awake, plain, fixed, q, marks):
    """Fill the learners' inputs of row `i`; gives the number of learners that are awake.

    plain, fixed: log-probabilities, centred over the classes, as said and as corrected; q: corrected.
    """
    n_awake = 0
    n_classes = p.shape[2]
    for n in range(p.shape[0]):
        awake[n] = all_finite(p[n], i)
        if not awake[n]:
            continue
        n_awake += 1
        mean = 0.0
        for c in range(n_classes):
            plain[n, c] = math.log((1.0 - floor) * max(p[n, i, c], 0.0) + floor / n_classes)
            mean += plain[n, c]
        for c in range(n_classes):
            plain[n, c] -= mean / n_classes
            q[n, c] = exponents[n] * plain[n, c]
        softmax(q[n])
        apply_map(maps[n], map_shares[n], q[n], marks[n])
        mean = 0.0
        for c in range(n_classes):
            q[n, c] = (1.0 - floor) * q[n, c] + floor / n_classes
            fixed[n, c] = math.log(q[n, c])
            mean += fixed[n, c]
        for c in range(n_classes):
            fixed[n, c] -= mean / n_classes
    return n_awake


@subkernel
def _mix(w, b, inputs, awake, floor, result):
    """One geometric mixture into `result` [n_classes]."""
    n_classes = result.shape[0]
    for c in range(n_classes):
        result[c] = b[c]
    for n in range(w.shape[0]):
        if awake[n]:
            for c in range(n_classes):
                result[c] += w[n] * inputs[n, c]
    softmax(result)
    for c in range(n_classes):
        result[c] = (1.0 - floor) * result[c] + floor / n_classes


@subkernel
def _step_mixer(w, v, b, inputs, awake, result, y, rate, gain):
    """One gradient step of a mixer that said `result`, towards class `y`."""
    n_classes = result.shape[0]
    for n in range(w.shape[0]):
        if awake[n]:
            gradient = -inputs[n, y]
            for c in range(n_classes):
                gradient += result[c] * inputs[n, c]
            v[n] += SQUARES_RATE * min(gain, 1.0) * (gradient * gradient - v[n])
            w[n] -= rate * gain * gradient / (math.sqrt(v[n]) + 1e-4)
    for c in range(n_classes):
        b[c] -= BIAS_RATE * rate * gain * (result[c] - (1.0 if c == y else 0.0))


@subkernel
def _half_brier(p, y):
    """Half the squared distance of the probabilities `p` to class `y`: a loss in [0, 1]."""
    total = 0.0
    for c in range(p.shape[0]):
        miss = p[c] - (1.0 if c == y else 0.0)
        total += 0.5 * miss * miss
    return min(total, 1.0)


@subkernel
def _explain(said, first, second, members, top, w, b, plain, fixed, q, shares, mass, awake, floor, part):
    """Fill `part` [n_learners + 1] as `explaining.py` says; the last is what biases and the last map did."""
    n_mixers, n_learners = w.shape
    for n in range(n_learners + 1):
        part[n] = 0.0
    before_first = 0.0
    before_second = 0.0
    for k in range(n_mixers + 1):
        before_first += top[k] * members[k, first]
        before_second += top[k] * members[k, second]
    unit = log_mean(before_first, before_second)
    for k in range(n_mixers):
        inputs = plain if k == n_mixers - 1 else fixed
        distance = b[k, first] - b[k, second]
        for n in range(n_learners):
            if awake[n]:
                distance += w[k, n] * (inputs[n, first] - inputs[n, second])
        # The floor is the same for all classes: it takes no part in the difference.
        share = members[k, first] - floor / said.shape[0]
        if abs(distance) > NEAR:
            share = (members[k, first] - members[k, second]) / distance
        share *= top[k] / unit
        for n in range(n_learners):
            if awake[n]:
                part[n] += share * w[k, n] * (inputs[n, first] - inputs[n, second])
        part[n_learners] += share * (b[k, first] - b[k, second])
    for n in range(n_learners):
        if awake[n]:
            part[n] += top[n_mixers] * shares[n] / mass * (q[n, first] - q[n, second]) / unit
    part[n_learners] += log_odds(said[first], said[second]) - log_odds(before_first, before_second)


@kernel(
    "void(f8[:,:,::1], f8[::1], u1[::1], f8[::1], f8[:,::1], f8[:,::1], f8[:,::1], f8, f8, f8[::1],"
    "f8[:,::1], f8[:,::1], f8[:,::1], f8[::1], f8[::1], f8[::1], f8[::1], f8[::1],"
    "f8[:,:,::1], f8[:,::1], f8[::1], f8[::1], f8[::1], f8[:,::1], i8, i8[::1],"
    "f8[::1], f8[:,::1], f8[:,::1], f8[:,::1], f8[::1], i8[::1])",
    allocates=True,
)
def walk_classes(
    p,
    y,
    op,
    weight,
    out,
    calm,
    parts,
    floor,
    share_rate,
    rates,
    w,
    v,
    b,
    exponents,
    squares,
    shares,
    past,
    top,
    maps,
    map_shares,
    spread,
    means,
    counts,
    evidence,
    champion,
    rows,
    usual,
    crisis_w,
    crisis_squares,
    crisis_shares,
    crisis_steps,
    crisis_columns,
):
    n_learners, n_rows, n_classes = p.shape
    n_mixers = w.shape[0]
    plain = np.zeros((n_learners, n_classes))
    fixed = np.zeros((n_learners, n_classes))
    q = np.zeros((n_learners, n_classes))
    marks = np.zeros((n_learners + 1, 4))
    members = np.zeros((n_mixers + 1, n_classes))
    blend = np.zeros(n_classes)
    own = np.zeros(n_classes)
    mixed = np.zeros(n_classes)
    said = np.zeros(n_classes)
    awake = np.zeros(n_learners, np.bool_)
    everyone = np.ones(n_mixers + 1, np.bool_)
    losses = np.zeros(n_learners)
    bounded = np.zeros(n_learners)
    member_losses = np.zeros(n_mixers + 1)
    for i in range(n_rows):
        n_awake = _take_in(p, i, floor, exponents, maps, map_shares, awake, plain, fixed, q, marks)
        if n_awake == 0 or n_classes < 2:
            for c in range(n_classes):
                calm[i, c] = np.nan if n_awake == 0 else 1.0
            if op[i] & PREDICT:
                for c in range(n_classes):
                    out[i, c] = np.nan if n_awake == 0 else 1.0
                for n in range(parts.shape[1]):
                    parts[i, n] = np.nan if n_awake == 0 else 0.0
            if op[i] & LEARN and n_awake > 0:
                rows[0] += 1
            continue
        for k in range(n_mixers):
            _mix(w[k], b[k], plain if k == n_mixers - 1 else fixed, awake, floor, members[k])
        mass = 0.0
        for n in range(n_learners):
            if awake[n]:
                mass += shares[n]
        for c in range(n_classes):
            members[n_mixers, c] = 0.0
            for n in range(n_learners):
                if awake[n]:
                    members[n_mixers, c] += shares[n] / mass * q[n, c]
            blend[c] = 0.0
            for k in range(n_mixers + 1):
                blend[c] += top[k] * members[k, c]
        apply_map(maps[n_learners], map_shares[n_learners], blend, marks[n_learners])
        level = crisis_level(usual, rows[0]) - 1
        for c in range(n_classes):
            calm[i, c] = blend[c]
            said[c] = blend[c]
        if level >= 0:
            mix_crisis(
                crisis_w[level], crisis_columns, crisis_shares[level], blend, plain, awake, floor, own, mixed,
                said,
            )  # fmt: skip
        if op[i] & PREDICT:
            for c in range(n_classes):
                out[i, c] = said[c]
            if parts.shape[0] > 0:
                first, second = two_greatest(said)
                _explain(
                    blend, first, second, members, top, w, b, plain, fixed, q, shares, mass, awake, floor,
                    parts[i],
                )  # fmt: skip
                if level >= 0:
                    explain_crisis(
                        said, first, second, crisis_w[level], crisis_columns, crisis_shares[level], blend,
                        plain, awake, own, mixed, floor, parts[i],
                    )  # fmt: skip
        gain = min(weight[i], WEIGHT_MAX)
        if not op[i] & LEARN:
            continue
        rows[0] += 1
        target = int(y[i])
        if not gain > 0.0 or not 0 <= target < n_classes:
            continue
        if level >= 0:
            learn_crisis(
                crisis_w[level], crisis_squares[level], crisis_steps, level, crisis_columns,
                crisis_shares[level], blend, plain, awake, own, mixed, target, gain,
            )  # fmt: skip
        note_usual(usual, _half_brier(blend, target), rows[0])
        for k in range(n_mixers):
            inputs = plain if k == n_mixers - 1 else fixed
            _step_mixer(w[k], v[k], b[k], inputs, awake, members[k], target, rates[k], gain)
        for k in range(n_mixers + 1):
            member_losses[k] = -math.log(members[k, target])
        reward(top, everyone, member_losses, gain)
        share_out(top, MEMBER_SHARE)
        learn_map(maps[n_learners], map_shares[n_learners], marks[n_learners], target, gain)
        for n in range(n_learners):
            if not awake[n]:
                continue
            losses[n] = -math.log(q[n, target])
            bounded[n] = half_brier(p[n], i, target)
            slope = -plain[n, target]
            size = 0.0
            for c in range(n_classes):
                slope += q[n, c] * plain[n, c]
                size += fixed[n, c] * fixed[n, c] / n_classes
            spread[n] += SQUARES_RATE * (size - spread[n])
            squares[n] += gain * slope * slope
            exponents[n] -= EXPONENT_RATE * gain * slope / math.sqrt(squares[n])
            exponents[n] = min(max(exponents[n], EXPONENT_MIN), EXPONENT_MAX)
            learn_map(maps[n], map_shares[n], marks[n], target, gain)
        reward(shares, awake, losses, gain)
        # A share that once was large comes back faster than one that never was: recurring concepts.
        for n in range(n_learners):
            past[n] += (shares[n] - past[n]) / min(rows[0], PAST_ROWS)
            fresh = PAST_PART * past[n] + (1.0 - PAST_PART) / n_learners
            shares[n] += share_rate * (fresh - shares[n])
        note_losses(means, counts, awake, bounded)
        gather_evidence(evidence, champion, awake, bounded)
