"""The walk of `controllers/stack.py` over a block with numbers; its docstring has the formulas."""

import math

import numpy as np

from adaptd.contracts import LEARN, PREDICT
from adaptd.kernels.compile import kernel, subkernel
from adaptd.kernels.mixing import (
    ERROR_MAX,
    MEMBER_SHARE,
    WEIGHT_MAX,
    gather_evidence,
    note_losses,
    note_scale,
    note_target,
    reach,
    reward,
    share_out,
    sized,
)

# Strength of the prior in recursive least squares, in rows of one unit of error.
PRIOR = 5.0
# From this error on, in the same unit, least squares turns into least absolute deviations.
KNEE = 1.0
# The lasting shares: part dealt out anew each row, and factor on the losses. What 50 rows cannot tell apart
# 1,000 rows can, and until then several learners together err less than one.
LASTING_SHARE = 0.001
LASTING_RATE = 0.5
# How much of the blend's distance from the lasting centre is right: what is thought of it at the start, for
# how many rows of one unit of distance that counts, and the fading factor of these rows.
WORTH_START = 0.5
WORTH_PRIOR = 3.0
WORTH_FADING = 0.999
# Shares to begin with of the two answers: the blend as it is, and held back to what it was worth.
ANSWERS_START = (0.1, 0.9)


@subkernel
def _regress(w, covariance, x, error, forgetting, importance, awake, turn, step):
    """One recursive least-squares step of `w` [n], towards `error`, the part not yet explained.

    The prior `w ~ 0` is fed in again coordinate by coordinate as it is forgotten. Without that the
    covariance of a direction that no row excites (two equal learners) grows without bound. step: scratch [n].
    """
    size = w.shape[0]
    power = 0.0
    for a in range(size):
        step[a] = 0.0
        if awake[a]:
            for d in range(size):
                step[a] += covariance[a, d] * x[d]
            power += step[a] * x[a]
    scale = 1.0 / (forgetting / importance + power)
    for a in range(size):
        w[a] += step[a] * scale * error
        for d in range(a + 1):
            if awake[a] and awake[d]:
                kept = (covariance[a, d] - step[a] * step[d] * scale) / forgetting
                covariance[a, d] = kept
                covariance[d, a] = kept
            elif a != d:
                # A sleeper's own variance waits for it; kept covariances could turn indefinite.
                covariance[a, d] = 0.0
                covariance[d, a] = 0.0
    if awake[turn]:
        scale = 1.0 / (1.0 / (size * (1.0 - forgetting) * PRIOR) + covariance[turn, turn])
        for a in range(size):
            step[a] = covariance[a, turn]
        pull = scale * w[turn]
        for a in range(size):
            w[a] -= step[a] * pull
            for d in range(a + 1):
                kept = covariance[a, d] - step[a] * step[d] * scale
                covariance[a, d] = kept
                covariance[d, a] = kept
    total = 0.0
    for a in range(size):
        total += w[a] + covariance[a, a]
    if not math.isfinite(total):
        start_over(w, covariance)


@subkernel
def start_over(w, covariance):
    """Back to the prior: no correction to the shares' blend."""
    for a in range(w.shape[0]):
        w[a] = 0.0
        for d in range(w.shape[0]):
            covariance[a, d] = 1.0 / PRIOR if a == d else 0.0


@subkernel
def _weigh(worth, apart, miss, importance):
    """One least-squares step of `worth` [2]: the part of `apart` that is right, and what is known of it.

    `apart` is how far the blend lies from the lasting centre, `miss` what the held-back answer missed by,
    both in units of error.
    """
    apart = min(max(apart, -ERROR_MAX), ERROR_MAX)
    miss = min(max(miss, -ERROR_MAX), ERROR_MAX)
    worth[1] = WORTH_PRIOR + WORTH_FADING * (worth[1] - WORTH_PRIOR) + importance * apart * apart
    worth[0] = min(max(worth[0] + importance * apart * miss / worth[1], 0.0), 1.0)


@subkernel
def _explain(said, inputs, x, scale, w, top, shares, mass, lasting, lasting_mass, trust, awake, part):
    """Fill `part` [n_learners + 1]: what each learner brings to the number that is said.

    That is its share in the two centres and its correction of the first; the last entry is the constants,
    and what was cut off where a member left the range of the targets.
    """
    n_learners = part.shape[0] - 1
    part[n_learners] = said
    for n in range(n_learners):
        part[n] = 0.0
        if awake[n]:
            correction = 0.0
            for k in range(w.shape[0]):
                correction += top[k] * w[k, n]
            part[n] = trust * (shares[n] / mass * inputs[n] + scale * correction * x[n])
            part[n] += (1.0 - trust) * lasting[n] / lasting_mass * inputs[n]
        part[n_learners] -= part[n]


@kernel(
    "void(f8[:,:,::1], f8[::1], u1[::1], f8[::1], f8[:,::1], f8[:,::1], f8, b1, f8[::1], f8[:,::1],"
    "f8[:,:,::1], f8[::1], f8[::1], f8[::1], f8[::1], f8[::1], f8[::1], f8[::1], f8[::1], f8[:,::1], i8,"
    "i8[::1])",
    allocates=True,
)
def walk_numbers(
    p,
    y,
    op,
    weight,
    out,
    parts,
    share_rate,
    squared,
    forgetting,
    w,
    covariance,
    shares,
    top,
    lasting,
    worth,
    answers,
    seen,
    means,
    counts,
    evidence,
    champion,
    rows,
):
    n_learners, n_rows, _ = p.shape
    n_mixers = w.shape[0]
    inputs = np.zeros(n_learners)
    x = np.zeros(n_learners + 1)
    # The last coordinate is a constant: it moves the blend from the mean to the median, for one.
    x[n_learners] = 1.0
    awake = np.ones(n_learners + 1, np.bool_)
    everyone = np.ones(n_mixers + 1, np.bool_)
    step = np.zeros(n_learners + 1)
    both = np.ones(2, np.bool_)
    explained = np.zeros(n_mixers)
    members = np.zeros(n_mixers + 1)
    losses = np.zeros(n_learners)
    bounded = np.zeros(n_learners)
    member_losses = np.zeros(n_mixers + 1)
    answer_losses = np.zeros(2)
    for i in range(n_rows):
        scale = seen[0] if seen[0] > 0.0 else 1.0
        low, high = reach(seen)
        mass = 0.0
        centre = 0.0
        lasting_mass = 0.0
        lasting_centre = 0.0
        for n in range(n_learners):
            awake[n] = math.isfinite(p[n, i, 0])
            if awake[n]:
                inputs[n] = min(max(p[n, i, 0], low), high)
                mass += shares[n]
                centre += shares[n] * inputs[n]
                lasting_mass += lasting[n]
                lasting_centre += lasting[n] * inputs[n]
        if mass > 0.0:
            centre /= mass
            lasting_centre /= lasting_mass
            for n in range(n_learners):
                x[n] = 0.0
                if awake[n]:
                    x[n] = min(max((inputs[n] - centre) / scale, -ERROR_MAX), ERROR_MAX)
            members[n_mixers] = centre
            for k in range(n_mixers):
                explained[k] = 0.0
                for a in range(n_learners + 1):
                    explained[k] += w[k, a] * x[a]
                members[k] = min(max(centre + scale * explained[k], low), high)
            blend = 0.0
            for k in range(n_mixers + 1):
                blend += top[k] * members[k]
            held_back = lasting_centre + worth[0] * (blend - lasting_centre)
        if op[i] & PREDICT:
            out[i, 0] = np.nan
            if mass > 0.0:
                out[i, 0] = answers[0] * blend + answers[1] * held_back
                if parts.shape[0] > 0:
                    trust = answers[0] + answers[1] * worth[0]
                    _explain(
                        out[i, 0], inputs, x, scale, w, top, shares, mass, lasting, lasting_mass, trust,
                        awake, parts[i],
                    )  # fmt: skip
        if not op[i] & LEARN:
            continue
        rows[0] += 1
        gain = min(weight[i], WEIGHT_MAX)
        if not gain > 0.0 or not math.isfinite(y[i]):
            continue
        if mass > 0.0:
            miss = abs(y[i] - centre)
            if seen[3] >= 2.0:
                for k in range(n_mixers):
                    error = (y[i] - centre) / scale - explained[k]
                    error = min(max(error, -ERROR_MAX), ERROR_MAX)
                    importance = gain
                    if not squared:
                        importance /= max(abs(error), KNEE)
                    turn = rows[0] % (n_learners + 1)
                    _regress(w[k], covariance[k], x, error, forgetting[k], importance, awake, turn, step)
                error = (y[i] - held_back) / scale
                importance = gain if squared else gain / max(abs(error), KNEE)
                _weigh(worth, (blend - lasting_centre) / scale, error, importance)
            answer_losses[0] = sized((y[i] - blend) / scale, squared)
            answer_losses[1] = sized((y[i] - held_back) / scale, squared)
            reward(answers, both, answer_losses, gain)
            share_out(answers, MEMBER_SHARE)
            for k in range(n_mixers + 1):
                member_losses[k] = 0.5 * sized((y[i] - members[k]) / scale, squared)
            reward(top, everyone, member_losses, gain)
            share_out(top, MEMBER_SHARE)
            for n in range(n_learners):
                if awake[n]:
                    error = (y[i] - inputs[n]) / scale
                    losses[n] = sized(error, squared)
                    bounded[n] = min(abs(error) / 4.0, 1.0)
            reward(shares, awake[:n_learners], losses, gain)
            share_out(shares, share_rate)
            reward(lasting, awake[:n_learners], losses, LASTING_RATE * gain)
            share_out(lasting, LASTING_SHARE)
            note_losses(means, counts, awake[:n_learners], bounded)
            gather_evidence(evidence, champion, awake[:n_learners], bounded)
            note_scale(seen, miss)
        note_target(seen, y[i])
