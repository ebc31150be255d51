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
PRIOR = 3.0
# From this error on, in the same unit, least squares turns into least absolute deviations.
KNEE = 1.0


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
def _explain(said, inputs, x, scale, w, top, shares, mass, awake, part):
    """Fill `part` [n_learners + 1]: what each learner brings to the number that is said.

    That is its share in the centre and its correction of it; the last entry is the constants, and what
    was cut off where a member left the range of the targets.
    """
    n_learners = part.shape[0] - 1
    part[n_learners] = said
    for n in range(n_learners):
        part[n] = 0.0
        if awake[n]:
            correction = 0.0
            for k in range(w.shape[0]):
                correction += top[k] * w[k, n]
            part[n] = shares[n] / mass * inputs[n] + scale * correction * x[n]
        part[n_learners] -= part[n]


@kernel(
    "void(f8[:,:,::1], f8[::1], u1[::1], f8[::1], f8[:,::1], f8[:,::1], f8, b1, f8[::1], f8[:,::1],"
    "f8[:,:,::1], f8[::1], f8[::1], f8[::1], f8[::1], f8[::1], f8[:,::1], i8, i8[::1])",
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
    explained = np.zeros(n_mixers)
    members = np.zeros(n_mixers + 1)
    losses = np.zeros(n_learners)
    bounded = np.zeros(n_learners)
    member_losses = np.zeros(n_mixers + 1)
    for i in range(n_rows):
        scale = seen[0] if seen[0] > 0.0 else 1.0
        low, high = reach(seen)
        mass = 0.0
        centre = 0.0
        for n in range(n_learners):
            awake[n] = math.isfinite(p[n, i, 0])
            if awake[n]:
                inputs[n] = min(max(p[n, i, 0], low), high)
                mass += shares[n]
                centre += shares[n] * inputs[n]
        if mass > 0.0:
            centre /= mass
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
        if op[i] & PREDICT:
            out[i, 0] = np.nan
            if mass > 0.0:
                out[i, 0] = 0.0
                for k in range(n_mixers + 1):
                    out[i, 0] += top[k] * members[k]
                if parts.shape[0] > 0:
                    _explain(out[i, 0], inputs, x, scale, w, top, shares, mass, awake, parts[i])
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
            note_losses(means, counts, awake[:n_learners], bounded)
            gather_evidence(evidence, champion, awake[:n_learners], bounded)
            note_scale(seen, miss)
        note_target(seen, y[i])
