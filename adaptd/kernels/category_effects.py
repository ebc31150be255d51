"""What codes of categories, and pairs of codes, add to the scores: each learns as fast as it is uncertain.

A row's scores start with the sum of the effects w of its codes (a missing value is a code too) and of all
pairs of them, which are hashed to slots. How uncertain an effect is, its spread P, is a prior before its
first row and less after each. With the slope g and the curvature h of the loss by the score

    gain = 1 / (1 + h sum P)       w_k <- w_k - P gain g_k       P <- min(prior, (P - P^2 h gain) / KEEP)

which is a Kalman filter that keeps the diagonal only: a code met for the first time takes most of a row's
error, one met a thousand times hardly any, and no rate is to be found. KEEP forgets a little at each row that
has the code, so that an effect that drifts is followed however rare its code is. The prior of a pair is a
tenth of a code's: what its codes explain by themselves is left to them.

Reference: T. Graepel et al., "Web-scale Bayesian click-through rate prediction for sponsored search
advertising in Microsoft's Bing search engine" (2010), for one-hot codes with a variance each.
"""

import math

import numpy as np

from adaptd.contracts import CATEGORY, Floats, Ints, Layout
from adaptd.kernels.compile import subkernel

# Where no category has more codes, trees tell them well enough, and effects would only hurry ahead of them.
FEW_CODES = 64
# Variances before the first row; for a number in variances of its noise.
PRIOR, PAIR_PRIOR = 0.3, 0.03
KEEP = 0.9997
# Bound on the bytes of the codes' effects and spreads, and as much again for the pairs'. Codes beyond the
# places that it pays for share them.
BYTES_MAX = 2_000_000
# Pairs of so many categories, the first ones; slots for each possible pair, so that few share one.
PAIR_CATEGORIES, PAIR_ROOM, PAIR_SLOTS_MAX = 16, 4, 65536

# Entries of a plan: places of each category, the first slot of pairs, how many those are (a power of two).
PLACES, FIRST_PAIR, PAIR_SLOTS = range(3)


def plan_effects(layout: Layout, codes_max: int) -> Ints:
    """Where effects lie: those of the first category's codes, of the second's, ..., of pairs."""
    if max(layout.capacities, default=0) <= FEW_CODES:
        return np.array([2, 0, 0])
    capacities = [c for kind, c in zip(layout.kinds, layout.capacities, strict=True) if kind == CATEGORY]
    n = len(capacities)
    slots_max = BYTES_MAX // (8 * (max(1, layout.width) + 1))
    n_places = max(2, min(slots_max // max(1, n), codes_max + 1, max((1, *capacities)) + 1))
    sizes = np.minimum(np.array(capacities[:PAIR_CATEGORIES], dtype=np.int64) + 1, n_places)
    n_pairs = int(sizes.sum() ** 2 - (sizes**2).sum()) // 2
    wanted = min(PAIR_ROOM * n_pairs, slots_max, PAIR_SLOTS_MAX)
    return np.array([n_places, n * n_places, 1 << (wanted.bit_length() - 1) if wanted else 0])


def moved(effects: Floats, spreads: Floats, old: Ints, new: Ints, n_scores: int) -> tuple[Floats, Floats]:
    """Effects [slots, scores] and spreads [slots] of the plan `old` under the plan `new`."""
    n_slots, known = int(new[FIRST_PAIR] + new[PAIR_SLOTS]), effects.shape[1]
    result = np.zeros((n_slots, n_scores))
    uncertain = np.where(np.arange(n_slots) < new[FIRST_PAIR], PRIOR, PAIR_PRIOR)
    # With fewer places codes share them otherwise than the effects know them; and so do pairs.
    if old[PLACES] <= new[PLACES]:
        for c in range(old[FIRST_PAIR] // old[PLACES]):
            at, was, size = c * new[PLACES], c * old[PLACES], old[PLACES]
            result[at : at + size, :known] = effects[was : was + size]
            uncertain[at : at + size] = spreads[was : was + size]
        if 0 < old[PAIR_SLOTS] <= new[PAIR_SLOTS]:
            # The last bits of a hash name the slot: of twice as many each is two of the same.
            for at in range(new[FIRST_PAIR], n_slots, old[PAIR_SLOTS]):
                result[at : at + old[PAIR_SLOTS], :known] = effects[old[FIRST_PAIR] :]
                uncertain[at : at + old[PAIR_SLOTS]] = spreads[old[FIRST_PAIR] :]
    return result, uncertain


def active_slots(plan: Ints) -> Ints:
    """Room for the slots of a row's codes and pairs."""
    n = int(plan[FIRST_PAIR] // plan[PLACES])
    paired = min(n, PAIR_CATEGORIES) if plan[PAIR_SLOTS] else 0
    return np.zeros(n + paired * (paired - 1) // 2, dtype=np.int64)


@subkernel
def find_active(x, i, categories, plan, active):
    """Fill `active` with the slots of the codes of row `i` of `x`, which are in the columns `categories`."""
    n = categories.shape[0]
    for c in range(n):
        value = x[i, categories[c]]
        # Codes beyond the last place share places.
        place = 0 if math.isnan(value) else 1 + int(value) % (plan[PLACES] - 1)
        active[c] = c * plan[PLACES] + place
    last = plan[PAIR_SLOTS] - 1
    k = n
    for second in range(1, n):
        for first in range(min(second, PAIR_CATEGORIES)):
            if k == active.shape[0]:
                return
            # Slots move when the layout grows, so what is hashed is the category and the place in it.
            key = (first * 4096 + active[first] - first * plan[PLACES]) * 1000003
            key ^= (second * 4096 + active[second] - second * plan[PLACES]) * 7368787
            key *= 2654435761
            active[k] = plan[FIRST_PAIR] + ((key ^ (key >> 17)) & last)
            k += 1


@subkernel
def add_effects(active, effects, scores):
    """Add the effects in the slots `active` to the first scores."""
    for slot in active:
        for k in range(effects.shape[1]):
            scores[k] += effects[slot, k]


@subkernel
def learn_effects(active, plan, effects, spreads, slopes, curvature, weight):
    """Take one row in. slopes: the loss's derivatives by the scores; curvature: what they have in common."""
    total = 0.0
    for slot in active:
        total += spreads[slot]
    h = weight * curvature
    gain = 1.0 / (1.0 + h * total)
    for slot in active:
        spread = spreads[slot]
        for k in range(effects.shape[1]):
            effects[slot, k] -= spread * gain * weight * slopes[k]
        prior = PRIOR if slot < plan[FIRST_PAIR] else PAIR_PRIOR
        spreads[slot] = min((spread - spread * spread * h * gain) / KEEP, prior)


@subkernel
def doubt(plan, spreads):
    """After a drift each effect is as uncertain as before its first row."""
    for slot in range(spreads.shape[0]):
        spreads[slot] = PRIOR if slot < plan[FIRST_PAIR] else PAIR_PRIOR
