"""A field-aware factorisation machine whose every weight learns as fast as it is uncertain.

*How*: each feature has one active code, or for a number two neighbouring knots of its standardised range with
amounts a that sum to 1 (a broken line); a missing value is a code too. A score is

    s = b + sum_f a_f w_f + sum_{f<o} <u_f(o), u_o(f)>        u_f(o) = a_f v_f(o)

so every code has an effect w and, for each *other* feature, a short vector v(o): how codes of two features
act together is told by their vectors, and of codes that were never met together, by what each has shown with
others. Two classes have one score, more have one each (softmax); a number has Huber's loss of the target in
deviations. With the slope g and the curvature h of the loss by the score, and d the score's derivative by a
weight t whose evidence so far is E,

    P = 1 / (1 / prior + E)     S = sum P d^2     t <- t - P d g / (1 + h S)
    E <- keep E + h d^2 / (1 + h (S - P d^2))

which is an extended Kalman filter that keeps the diagonal only: no rate is to be found, a rare code learns in
large steps and a frequent one in small ones, and keep < 1 forgets a little each time a weight is used. Where
ADWIN finds that the error has risen, nearly all evidence goes; what the weights say stays. For a number 1 / h
is the variance of its noise, and evidence is kept in rows, so that it holds when the noise changes. For
classes h is at least a quarter of |g|: where a sure prediction was wrong the true curvature, next to 0, would
make the step wild.

*Use it when* categories have many codes (users, products, airports) and what they say depends on each other,
or when a sum of curves tells the label.
*Do not use it when* rules on three inputs or more tell it (trees), or neighbourhoods in many dimensions.
*Cost*: about 1 us a row with 8 features and 2 classes, 4 us with four classes. 16 bytes x scores x
(1 + features x factors) a code; `BYTES_MAX` bounds that, codes share places then. Features beyond the first
24 have no vectors; with many features and classes vectors are shorter (`WORK_MAX`), or none.
*Example*: `tests/test_factors.py` shows a product of hidden factors that pairs cannot learn in time.
*Reference*: S. Rendle, "Factorization machines" (2010); Y. Juan et al., "Field-aware factorization machines
for CTR prediction" (2016); D. Stern et al., "Matchbox: large scale online Bayesian recommendations" (2009).
"""

import math
from typing import Annotated

import msgspec
import numpy as np

from adaptd.contracts import LEARN, NUMBER, PREDICT, Bytes, Floats, Ints, Layout, State, Vitals
from adaptd.kernels import scaling
from adaptd.kernels.adwin import ADWIN_SIZE, adwin_add
from adaptd.kernels.compile import kernel, subkernel
from adaptd.kernels.random import generator, next_normal
from adaptd.numerics import enlarged, pack, total_bytes, unpack

TASKS = ("classification", "regression")
HAS_RATE = True
MUTABLE = ("prior", "vector_prior", "keep", "reach", "drift_delta")

Variance = Annotated[float, msgspec.Meta(gt=0.0, le=10.0)]


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    factors: Annotated[int, msgspec.Meta(ge=0, le=64)] = 4
    """Numbers in a vector, at most; 0: effects only."""
    knots: Annotated[int, msgspec.Meta(ge=2, le=64)] = 10
    """Knots of a number, evenly from -2.5 to 2.5 standard deviations."""
    prior: Variance = 0.3
    """Variance of an effect before its first row."""
    vector_prior: Variance = 0.2
    """The same for the numbers of vectors."""
    start: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] = 0.05
    """Standard deviation of the random numbers that vectors start with. From 0 they would never move."""
    keep: Annotated[float, msgspec.Meta(ge=0.9, le=1.0)] = 0.9998
    """What is kept of what is known of a weight each time it is used."""
    reach: Annotated[float, msgspec.Meta(gt=0.0, le=100.0)] = 1.5
    """Regression: errors beyond so many fading mean errors pull no harder than one of this size."""
    drift_delta: Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)] = 1e-5
    """Confidence of ADWIN that the error has risen, which takes evidence away; 0: nothing does."""


# Features with vectors, the first ones.
FIELDS_MAX = 24
# Bound on the products of numbers in a score, times scores: vectors are shorter where these would be more.
WORK_MAX = 2048
# Bound on the bytes of weights and evidence, as long as categories have more places than the least.
BYTES_MAX, PLACES_MIN = 16_000_000, 4
# Knots lie up to so many deviations from the mean.
FARTHEST_KNOT = 2.5
# The least curvature, as a part of the slope.
CURVATURE_MIN = 0.25
# What a drift leaves of the evidence.
DOUBT = 0.02
# Targets further out than this many deviations count as just so far. In the first rows only the deviation is
# learned: weights would be in units that mean nothing yet.
FARTHEST_TARGET, FIRST_ROWS = 10.0, 10
# The mean error takes a row in with this step, no row counts more than FAR times that mean, and below
# LEAST_ERROR target deviations it would be no measure of noise.
ERROR_STEP, FAR, LEAST_ERROR = 0.005, 20.0, 1e-3
# A row's weight counts up to this.
HEAVIEST = 100.0
# Beyond this a score says nothing new, and its exponential overflows.
LARGEST_SCORE = 50.0
# What the vitals tell is taken every so many labelled rows, and fades by this much each time.
VITALS_ROWS, VITALS_FADE = 16, 0.1

# Columns of a plan, one row a feature; slot 0 is the constant, and each feature's first is "missing".
KIND, PLACES, FIRST = range(3)
# Places in the array of what moves.
LEARNED, ERROR, DRIFTS, GRADIENT_NORM, STEP_NORM, TAKEN, MOVING = range(7)
# Places in the array of options.
RATE_SCALE, IS_NUMBER, KEEP, REACH, DRIFT_DELTA, OPTIONS = range(6)


def build(config: Config, layout: Layout, seed: int) -> "Factors":
    return Factors(config, layout, seed)


class Factors:
    """See the module's docstring.

    Weights and their evidence are [slots, scores, 1 + fields x factors]: a slot's effect, then its vectors,
    one for each feature that has any.
    """

    _STATE = ("rate_scale", "weights", "evidence", "moving", "stats", "target", "adwin", "random")

    def __init__(self, config: Config, layout: Layout, seed: int) -> None:
        self._config = config
        self.rate_scale = 1.0
        self.moving = np.zeros(MOVING)
        self.target = scaling.target_statistics()
        self.adwin = np.zeros(ADWIN_SIZE)
        self.random = generator(seed)
        self.stats = scaling.statistics(layout.n_features)
        self._set_layout(layout)

    def _set_layout(self, layout: Layout) -> None:
        """New weights for the layout."""
        c = self._config
        self._layout = layout
        n_scores = layout.n_classes if layout.n_classes > 2 else 1
        n_fields = min(layout.n_features, FIELDS_MAX)
        n_pairs = n_fields * (n_fields - 1) // 2
        n_factors = min(c.factors, WORK_MAX // max(1, n_pairs * n_scores))
        width = 1 + n_fields * n_factors
        self._sizes = (n_fields, n_factors)
        self._plan, n_slots = plan_slots(layout, c.knots, 16 * n_scores * width)
        self._precisions = np.full(width, 1.0 / c.vector_prior)
        self._precisions[0] = 1.0 / c.prior
        self.evidence = np.zeros((n_slots, n_scores, width))
        self.weights = np.zeros((n_slots, n_scores, width))
        draw_vectors(self.weights, c.start, self.random)
        # The constant has none. "Missing" starts as no influence: rows without a feature that is new are
        # predicted as before.
        self.weights[0] = 0.0
        self.weights[self._plan[:, FIRST]] = 0.0

    def step(self, x: Floats, y: Floats, op: Bytes, weight: Floats, out: Floats) -> None:
        c = self._config
        options = np.zeros(OPTIONS)
        options[RATE_SCALE], options[IS_NUMBER] = self.rate_scale, self._layout.task == "regression"
        options[KEEP], options[REACH], options[DRIFT_DELTA] = c.keep, c.reach, c.drift_delta
        walk(
            x, y, op, weight, out, self._plan, *self._sizes, c.knots, self.stats, self.target, self.weights,
            self.evidence, self._precisions, self.moving, self.adwin, options,
        )  # fmt: skip

    def grow(self, layout: Layout) -> None:
        plan, old_sizes, old_scores = self._plan, self._sizes, self.weights.shape[1]
        weights, evidence = self.weights, self.evidence
        if old_scores == 1 and layout.n_classes > 2:
            weights, evidence = two_scores(weights, evidence, plan, *old_sizes)
            old_scores = 2
        self._set_layout(layout)
        self.stats = enlarged(self.stats, scaling.statistics(layout.n_features).shape)
        fields = old_sizes[0]
        # Shorter vectors lose their last numbers, categories with fewer places their last codes.
        factors = min(old_sizes[1], self._sizes[1])
        moves = [(0, 0, 1)]
        for was, now in zip(plan.tolist(), self._plan.tolist(), strict=False):
            moves.append((now[FIRST], was[FIRST], 1 + min(was[PLACES], now[PLACES])))
        for former, array in ((weights, self.weights), (evidence, self.evidence)):
            for new, old, size in moves:
                known, room = former[old : old + size], array[new : new + size, :old_scores]
                room[:, :, 0] = known[:, :, 0]
                vectors = known[:, :, 1:].reshape(size, old_scores, *old_sizes)
                places = room[:, :, 1:].reshape(size, old_scores, *self._sizes)
                places[:, :, :fields, :factors] = vectors[:, :, :, :factors]
                room[:, :, 1:] = places.reshape(size, old_scores, -1)

    def state(self) -> State:
        return pack(self, self._STATE)

    def load_state(self, state: State) -> None:
        unpack(self, self._STATE, state)

    def vitals(self) -> Vitals:
        return Vitals(
            # The part of a row's error that the row takes away.
            learning_rate=float(self.moving[TAKEN]) * self.rate_scale,
            step_norm=float(self.moving[STEP_NORM]),
            gradient_norm=float(self.moving[GRADIENT_NORM]),
            state_bytes=total_bytes(self.weights, self.evidence, self.stats, self.adwin),
            details={"factors": float(self._sizes[1]), "drifts": float(self.moving[DRIFTS])},
        )


def plan_slots(layout: Layout, knots: int, slot_bytes: int) -> tuple[Ints, int]:
    """The plan [n_features, 3] of kind, places and first slot; and how many slots there are."""
    places_max = max((PLACES_MIN, *layout.capacities))
    while True:
        plan = np.zeros((layout.n_features, 3), dtype=np.int64)
        n_slots = 1
        for f, (kind, capacity) in enumerate(zip(layout.kinds, layout.capacities, strict=True)):
            plan[f] = kind, knots if kind == NUMBER else min(capacity, places_max), n_slots
            n_slots += 1 + int(plan[f, PLACES])
        if n_slots * slot_bytes <= BYTES_MAX or places_max <= PLACES_MIN:
            return plan, n_slots
        places_max //= 2


def two_scores(
    weights: Floats, evidence: Floats, plan: Ints, fields: int, factors: int
) -> tuple[Floats, Floats]:
    """One score of two classes is two scores, each half of it, the first with the other sign."""
    own = np.zeros(len(weights), dtype=np.int64)
    for f, first in enumerate(plan[:, FIRST].tolist()):
        own[first:] = f
    towards = np.repeat(np.arange(fields), factors)
    # Of two vectors that meet one turns round, that of the later feature.
    signs = np.where(own[:, None] > towards[None, :], -1.0, 1.0)[:, None, :]
    signs = np.concatenate([np.full((len(weights), 1, 1), -1.0), signs], axis=2)
    factor = np.full(weights.shape[2], math.sqrt(0.5))
    factor[0] = 0.5
    half = factor * weights
    return np.concatenate([signs * half, half], axis=1), np.concatenate([evidence / factor**2] * 2, axis=1)


@kernel("void(f8[:,:,::1], f8, u8[::1])")
def draw_vectors(weights, deviation, random):
    for i in range(weights.shape[0]):
        for k in range(weights.shape[1]):
            for m in range(1, weights.shape[2]):
                weights[i, k, m] = deviation * next_normal(random)


@subkernel
def gather(row, plan, knots, stats, slots, amounts, fields):
    """Write a row's active slots, the constant first, with their amounts and features; gives how many."""
    slots[0], amounts[0], fields[0] = 0, 1.0, plan.shape[0]
    n = 1
    for f in range(plan.shape[0]):
        value = row[f]
        slots[n], amounts[n], fields[n] = plan[f, FIRST], 1.0, f
        if value == value:
            slots[n] += 1
            if plan[f, KIND] == NUMBER:
                z = scaling.standardise(value, stats, f, FARTHEST_KNOT)
                place = (z / FARTHEST_KNOT + 1.0) * 0.5 * (knots - 1)
                low = min(int(place), knots - 2)
                slots[n] += low
                amounts[n] = low + 1 - place
                n += 1
                slots[n], amounts[n], fields[n] = slots[n - 1] + 1, place - low, f
            else:
                # Places are a power of two; codes beyond the last share them.
                slots[n] += int(value) & (plan[f, PLACES] - 1)
        n += 1
    return n


@subkernel
def score(n, slots, amounts, fields, n_factors, weights, k, own, others):
    """The score `k`, and its derivatives by what each feature adds into `others`.

    own [fields, 1 + fields x factors]: each feature's vectors behind a place for its effect. others
    [fields + 1, as many]: 1, then the vectors that these meet, feature by feature; the last row is that of
    slots without vectors.
    """
    n_fields = own.shape[0]
    for f in range(n_fields):
        for m in range(own.shape[1]):
            own[f, m] = 0.0
    total = 0.0
    for i in range(n):
        f = fields[i]
        total += amounts[i] * weights[slots[i], k, 0]
        if f < n_fields:
            for m in range(1, own.shape[1]):
                own[f, m] += amounts[i] * weights[slots[i], k, m]
    others[n_fields, 0] = 1.0
    for f in range(n_fields):
        others[f, 0] = 1.0
        for o in range(n_fields):
            product = 0.0
            for j in range(1, n_factors + 1):
                # No feature meets itself.
                other = own[o, f * n_factors + j] if o != f else 0.0
                others[f, o * n_factors + j] = other
                if o < f:
                    product += own[f, o * n_factors + j] * other
            total += product
    return min(max(total, -LARGEST_SCORE), LARGEST_SCORE)


@subkernel
def learn(n, slots, amounts, fields, weights, evidence, k, others, precisions, spreads, slope, curvature,
          noise, moving, options):  # fmt: skip
    """One step of the filter for score `k`.

    spreads: scratch [active, 1 + fields x factors]. noise: the variance that evidence is in units of.
    """
    n_fields = others.shape[0] - 1
    unit = 1.0 / noise
    total = 0.0
    for i in range(n):
        s, a, f = slots[i], amounts[i], min(fields[i], n_fields)
        width = others.shape[1] if f < n_fields else 1
        for m in range(width):
            spreads[i, m] = 1.0 / (precisions[m] + unit * evidence[s, k, m])
        # A sum for each slot: one long chain of additions would be what the time goes into.
        part = 0.0
        for m in range(width):
            part += spreads[i, m] * (others[f, m] * others[f, m])
        total += a * a * part
    scale, keep = options[RATE_SCALE], options[KEEP]
    step = scale * slope / (1.0 + scale * curvature * total)
    if moving[LEARNED] % VITALS_ROWS == 0.0:
        watch(n, amounts, fields, others, spreads, slope, step, curvature * total, moving)
    for i in range(n):
        s, a, f = slots[i], amounts[i], min(fields[i], n_fields)
        for m in range(others.shape[1] if f < n_fields else 1):
            d = a * others[f, m]
            p = spreads[i, m]
            weights[s, k, m] -= p * d * step
            # What this row shows of the weight is blurred by what is uncertain about the others.
            shown = d * d * curvature * noise / (1.0 + curvature * (total - p * d * d))
            evidence[s, k, m] = keep * evidence[s, k, m] + shown


@subkernel
def watch(n, amounts, fields, others, spreads, slope, step, doubted, moving):
    """Bring what the vitals tell up to date."""
    n_fields = others.shape[0] - 1
    length = 0.0
    moved = 0.0
    for i in range(n):
        f = min(fields[i], n_fields)
        for m in range(others.shape[1] if f < n_fields else 1):
            d = amounts[i] * others[f, m]
            length += d * d
            moved += (spreads[i, m] * d) ** 2
    moving[GRADIENT_NORM] += VITALS_FADE * (abs(slope) * math.sqrt(length) - moving[GRADIENT_NORM])
    moving[STEP_NORM] += VITALS_FADE * (abs(step) * math.sqrt(moved) - moving[STEP_NORM])
    moving[TAKEN] += VITALS_FADE * (doubted / (1.0 + doubted) - moving[TAKEN])


@subkernel
def doubt(evidence):
    """After a drift what is known is a guess."""
    for s in range(evidence.shape[0]):
        for k in range(evidence.shape[1]):
            for m in range(evidence.shape[2]):
                evidence[s, k, m] *= DOUBT


@subkernel
def probabilities(scores, p):
    """Softmax of the scores; of one score, the probability of class 1."""
    n_scores = scores.shape[0]
    if n_scores == 1:
        p[0] = 1.0 / (1.0 + math.exp(-scores[0]))
        return
    greatest = scores[0]
    for k in range(1, n_scores):
        greatest = max(greatest, scores[k])
    total = 0.0
    for k in range(n_scores):
        p[k] = math.exp(scores[k] - greatest)
        total += p[k]
    for k in range(n_scores):
        p[k] /= total


@subkernel
def answer(scores, p, is_number, target, out):
    """What is predicted, into `out` [width]."""
    if is_number:
        out[0] = scaling.unscale(scores[0], target)
    elif out.shape[0] == 1:
        out[0] = 1.0
    elif out.shape[0] == 2:
        out[0], out[1] = 1.0 - p[0], p[0]
    else:
        for k in range(out.shape[0]):
            out[k] = p[k]


@subkernel
def note_error(error, moving):
    """Move the mean error, in target deviations, towards that of one row."""
    n = moving[LEARNED]
    size = abs(error) if n < FIRST_ROWS else min(abs(error), FAR * max(moving[ERROR], LEAST_ERROR))
    moving[ERROR] += max(1.0 / (n + 1.0), ERROR_STEP) * (size - moving[ERROR])


@kernel(
    "void(f8[:,::1], f8[::1], u1[::1], f8[::1], f8[:,::1], i8[:,::1], i8, i8, i8, f8[:,::1], f8[:,::1], "
    "f8[:,:,::1], f8[:,:,::1], f8[::1], f8[::1], f8[::1], f8[::1])",
    allocates=True,
)
def walk(
    x, y, op, weight, out, plan, n_fields, n_factors, knots, stats, target, weights, evidence, precisions,
    moving, adwin, options,
):  # fmt: skip
    _, n_scores, width = weights.shape
    is_number = options[IS_NUMBER] > 0.0
    slots = np.empty(2 * plan.shape[0] + 1, np.int64)
    fields = np.empty(slots.shape[0], np.int64)
    amounts = np.empty(slots.shape[0])
    own = np.empty((n_fields, width))
    others = np.zeros((n_scores, n_fields + 1, width))
    spreads = np.empty((slots.shape[0], width))
    scores = np.empty(n_scores)
    p = np.empty(n_scores)
    for t in range(x.shape[0]):
        learns = op[t] & LEARN != 0 and weight[t] > 0.0 and options[RATE_SCALE] > 0.0
        predicts = op[t] & PREDICT != 0
        if predicts and moving[LEARNED] == 0.0:
            for k in range(out.shape[1]):
                out[t, k] = np.nan
            predicts = False
        if not (learns or predicts):
            continue
        n = gather(x[t], plan, knots, stats, slots, amounts, fields)
        for k in range(n_scores):
            scores[k] = score(n, slots, amounts, fields, n_factors, weights, k, own, others[k])
        if not is_number:
            probabilities(scores, p)
        if predicts:
            answer(scores, p, is_number, target, out[t])
        if not learns:
            continue
        heavy = min(weight[t], HEAVIEST)
        missed = 0.0
        if is_number:
            error = scores[0] - scaling.standardise(y[t], target, 0, FARTHEST_TARGET)
            usual = max(moving[ERROR], LEAST_ERROR)
            missed = abs(error) / (abs(error) + usual)
            if moving[LEARNED] >= FIRST_ROWS:
                noise = usual * usual
                reach = options[REACH] * usual
                slope = heavy * min(max(error, -reach), reach) / noise
                learn(
                    n, slots, amounts, fields, weights, evidence, 0, others[0], precisions, spreads, slope,
                    heavy / noise, noise, moving, options,
                )  # fmt: skip
            note_error(error, moving)
            scaling.observe_target(y[t], target, 0.0)
        else:
            for k in range(n_scores):
                goal = y[t] if n_scores == 1 else (1.0 if y[t] == k else 0.0)
                slope = p[k] - goal
                missed += abs(slope) if n_scores == 1 else 0.5 * abs(slope)
                curvature = max(p[k] * (1.0 - p[k]), CURVATURE_MIN * abs(slope))
                learn(
                    n, slots, amounts, fields, weights, evidence, k, others[k], precisions, spreads,
                    heavy * slope, heavy * curvature, 1.0, moving, options,
                )  # fmt: skip
        moving[LEARNED] += 1.0
        scaling.observe_row(x[t], plan, stats, 0.0)
        if options[DRIFT_DELTA] > 0.0 and adwin_add(adwin, missed, options[DRIFT_DELTA]) > 0:
            moving[DRIFTS] += 1.0
            doubt(evidence)
