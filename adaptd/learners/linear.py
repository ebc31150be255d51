"""Softmax or linear regression on scaled numbers and one-hot categories, at a rate that finds itself.

*How*: a row becomes a few active inputs z: a constant 1, every number standardised, 1 for the code of every
category, 1 for "missing" (`kernels/scaling.py`). Three copies k = 0, 1, 2 on a ladder (`kernels/ladder.py`)
have weights W_k and take normalised gradient steps at rates eta / 2, eta, 2 eta:

    g = dL/dscore * z       G <- .9997 G + .0003 g^2  (middle copy)       W_k -= rate_k g_k / (sqrt(G) + .02)

L is the log loss, or for regression Huber's loss of the standardised target. Two classes need one score:
their softmax gradients are mirror images, so are their weights.

*Use it when* anything is unknown: it is fast, follows drift, and is hard to break.
*Do not use it when* classes enclose each other; `interactions` helps then, at the cost of speed.
*Cost*: about 0.4 us a row with 10 numbers and 2 classes, 2.5 us with 33 numbers and 6 classes; 32 bytes a
slot and score. With `interactions` about ten times the time, and up to 8 MiB more a score.
*Reference*: T. Tieleman, G. Hinton, "Lecture 6.5: RMSprop" (2012); P. Huber, "Robust estimation of a
location parameter" (1964).
"""

import math
from typing import Annotated

import msgspec
import numpy as np

from adaptd.contracts import LEARN, PREDICT, Bytes, Floats, Ints, Layout, State, Vitals
from adaptd.kernels import ladder, scaling
from adaptd.kernels.compile import kernel, subkernel
from adaptd.numerics import enlarged, pack, total_bytes, unpack

TASKS = ("classification", "regression")
HAS_RATE = True
MUTABLE = ("margin", "cool_down_rows", "l2", "huber", "clip")


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    learning_rate: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] = 0.005
    """Where the ladder's middle rung starts; the rate itself when there is no ladder."""
    ladder: bool = True
    """Three copies at neighbouring rates that look for the right one. Off: half the time."""
    margin: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.002
    """How much better an outer rung's fading loss must be for the ladder to move."""
    cool_down_rows: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 200
    """Labelled rows between two moves of the ladder, at least."""
    l2: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.0
    """Weight decay: each step takes the rate times this off the active weights."""
    huber: Annotated[float, msgspec.Meta(gt=0.0, le=100.0)] = 0.5
    """Regression: errors beyond so many target deviations pull no harder than one of this size. Small
    values aim at the median, great ones (3) at the mean."""
    clip: Annotated[float, msgspec.Meta(gt=0.0, le=100.0)] = 3.0
    """Standardised numbers are cut to plus and minus this."""
    scale_fade: Annotated[float, msgspec.Meta(ge=0.0, le=0.5)] = 0.0
    """Fading of the standardisation; 0: all rows count the same."""
    interactions: bool = False
    """Products of all pairs of inputs (of the first 24 features) too, hashed to at most 262,144 slots, with
    more than four classes 16,384. So many inputs want a smaller start: `learning_rate` 0.001."""


# Fading of G. Were it faster, a burst of errors after a calm stretch would meet a tiny G and step wildly.
SQUARE_FADE = 0.0003
# Added to sqrt(G): keeps a step small where gradients have all but vanished.
SQUARE_FLOOR = 0.02
# A row's weight counts up to this; more in one step would throw the weights about.
HEAVIEST = 100.0
# Targets further out than this many deviations count as just so far.
FARTHEST_TARGET = 10.0
# The lengths for the vitals are taken every so many labelled rows, and fade by this much each time.
VITALS_ROWS = 16
VITALS_FADE = 0.1
LEAST_LIKELIHOOD = 1e-9
# Handed in where labels are classes, not probabilities.
HARD: Floats = np.zeros((0, 0))
# Most slots for pairs, with up to four scores and with more.
PAIR_SLOTS_MAX, PAIR_SLOTS_MANY = 262144, 16384
PAIR_FEATURES = 24
# Slots for each possible pair, at least: few share one then, and few features do not take megabytes.
PAIR_ROOM = 16

# Places in the array of what moves, after the ladder's.
LEARNED, GRADIENT_NORM, STEP_NORM, MOVING = range(ladder.OWN, ladder.OWN + 4)
# Places in the array of options.
L2, HUBER, CLIP, SCALE_FADE, MARGIN, COOL_DOWN, PAIRS, PAIR_SLOTS, RATE_SCALE, OPTIONS = range(10)


def build(config: Config, layout: Layout, seed: int) -> "Linear":
    return Linear(config, layout)


class Linear:
    """See the module's docstring. Weights are [rungs, slots, scores], pairs' slots last."""

    _STATE = ("rate_scale", "weights", "squares", "rungs", "moving", "stats", "target")

    def __init__(self, config: Config, layout: Layout) -> None:
        self._config = config
        self.rate_scale = 1.0
        self.rungs = ladder.rungs(3 if config.ladder else 1)
        self.moving = np.zeros(MOVING)
        self.moving[ladder.ETA] = config.learning_rate
        self.target = scaling.target_statistics()
        self._plan, self._n_slots = scaling.plan_slots(layout)
        self._layout = layout
        self.stats = scaling.statistics(layout.n_features)
        n_scores = layout.n_classes if layout.n_classes > 2 else 1
        n_pairs = pair_slots(self._plan, self._n_slots, n_scores) if config.interactions else 0
        self.squares = np.zeros((self._n_slots + n_pairs, n_scores))
        self.weights = np.zeros((self.rungs.shape[1], *self.squares.shape))

    def step(self, x: Floats, y: Floats, op: Bytes, weight: Floats, out: Floats) -> None:
        self.teach(x, y, op, weight, out, HARD)

    def teach(self, x: Floats, y: Floats, op: Bytes, weight: Floats, out: Floats, soft: Floats) -> None:
        """As `step`; classes are learned from the probabilities `soft` [n, n_classes] in place of `y`."""
        c = self._config
        options = np.zeros(OPTIONS)
        options[L2], options[HUBER], options[CLIP] = c.l2, c.huber, c.clip
        options[SCALE_FADE], options[MARGIN], options[COOL_DOWN] = c.scale_fade, c.margin, c.cool_down_rows
        options[PAIRS] = self._n_slots if c.interactions else 0
        options[PAIR_SLOTS] = len(self.squares) - self._n_slots
        options[RATE_SCALE] = self.rate_scale
        rows = (x, y, op, weight, out)
        model = (self._plan, self.stats, self.weights, self.squares, self.rungs, self.moving, options)
        if self._layout.task == "regression":
            step_regression(*rows, *model, self.target)
        elif self._layout.n_classes <= 2:
            step_two_classes(*rows, *model, soft)
        else:
            step_many_classes(*rows, *model, soft)

    def grow(self, layout: Layout) -> None:
        plan, n_slots = scaling.plan_slots(layout)
        moves = scaling.slot_moves(self._plan, self._n_slots, plan)
        n_scores = layout.n_classes if layout.n_classes > 2 else 1
        n_pairs = 0
        if self._config.interactions:
            n_pairs, known_pairs = pair_slots(plan, n_slots, n_scores), len(self.squares) - self._n_slots
            # The last bits of a hash name the slot: of twice as many each is two of the same, of half as many
            # each is the sum of two.
            size = min(n_pairs, known_pairs)
            steps = range(0, max(n_pairs, known_pairs), size)
            moves += [(n_slots + k % n_pairs, self._n_slots + k % known_pairs, size) for k in steps]
        weights, squares = self.weights, self.squares
        if n_scores > 1 and self.weights.shape[2] == 1:
            # One score of two classes is two scores, each the other's mirror image.
            weights = np.concatenate([-weights, weights], axis=2)
            squares = np.concatenate([squares, squares], axis=1)
        known = squares.shape[1]
        self.squares = np.zeros((n_slots + n_pairs, n_scores))
        self.weights = np.zeros((len(weights), *self.squares.shape))
        for new, old, size in moves:
            self.weights[:, new : new + size, :known] += weights[:, old : old + size]
            self.squares[new : new + size, :known] += squares[old : old + size]
        self.stats = enlarged(self.stats, scaling.statistics(layout.n_features).shape)
        self._plan, self._n_slots, self._layout = plan, n_slots, layout

    def state(self) -> State:
        return pack(self, self._STATE)

    def load_state(self, state: State) -> None:
        unpack(self, self._STATE, state)

    def vitals(self) -> Vitals:
        return Vitals(
            learning_rate=float(self.moving[ladder.ETA]) * self.rate_scale,
            step_norm=float(self.moving[STEP_NORM]),
            gradient_norm=float(self.moving[GRADIENT_NORM]),
            state_bytes=total_bytes(self.weights, self.squares, self.stats),
        )


def pair_slots(plan: Ints, n_slots: int, n_scores: int) -> int:
    """Slots for the products of all pairs: a power of two."""
    ends = [*plan[1:, scaling.FIRST].tolist(), n_slots]
    sizes = (np.array(ends) - plan[:, scaling.FIRST])[:PAIR_FEATURES]
    n_pairs = int(sizes.sum() ** 2 + (sizes**2).sum()) // 2
    most = PAIR_SLOTS_MAX if n_scores <= 4 else PAIR_SLOTS_MANY
    return min(most, 1 << (max(1, PAIR_ROOM * n_pairs) - 1).bit_length())


@subkernel
def room(plan, options):
    """How many inputs can be active at once."""
    n = plan.shape[0] + 1
    if options[PAIRS] > 0.0:
        paired = min(plan.shape[0], PAIR_FEATURES)
        n += paired * (paired + 1) // 2
    return n


@subkernel(inline=True)
def gather(row, plan, stats, options, slots, values):
    scaling.gather(row, plan, stats, options[CLIP], slots, values)
    if options[PAIRS] == 0.0:
        return
    n = plan.shape[0] + 1
    paired = min(plan.shape[0], PAIR_FEATURES)
    last = np.int64(options[PAIR_SLOTS]) - 1
    for i in range(paired):
        # Slots move when the layout grows, so what is hashed is the feature and the place in it.
        first = (i * 4096 + slots[i + 1] - plan[i, scaling.FIRST]) * 1000003
        for j in range(i, paired):
            key = first ^ ((j * 4096 + slots[j + 1] - plan[j, scaling.FIRST]) * 7368787)
            slots[n] = np.int64(options[PAIRS]) + ((key ^ (key >> 15)) & last)
            values[n] = values[i + 1] * values[j + 1]
            n += 1


@subkernel(inline=True)
def one_score(weights, slots, values, scores):
    """scores[r] = W_r z, for learners of one score."""
    if weights.shape[0] == 1:
        only = 0.0
        for i in range(slots.shape[0]):
            only += weights[0, slots[i], 0] * values[i]
        scores[0] = only
        return
    # The three sums side by side keep the processor busy; one after the other takes twice as long.
    slow = 0.0
    middle = 0.0
    fast = 0.0
    for i in range(slots.shape[0]):
        slow += weights[0, slots[i], 0] * values[i]
        middle += weights[1, slots[i], 0] * values[i]
        fast += weights[2, slots[i], 0] * values[i]
    scores[0] = slow
    scores[1] = middle
    scores[2] = fast


@subkernel(inline=True)
def descend(weights, squares, slots, values, errors, weight, moving, options):
    """One step; errors [rungs, scores] is the loss's derivative by each score."""
    n_rungs, _, n_scores = weights.shape
    middle = n_rungs // 2
    rate = moving[ladder.ETA] * options[RATE_SCALE] * min(weight, HEAVIEST)
    watch = moving[LEARNED] % VITALS_ROWS == 0.0
    gradient2 = 0.0
    step2 = 0.0
    for i in range(slots.shape[0]):
        s = slots[i]
        for k in range(n_scores):
            g = errors[middle, k] * values[i]
            square = squares[s, k] + SQUARE_FADE * (g * g - squares[s, k])
            squares[s, k] = square
            factor = rate * values[i] / (math.sqrt(square) + SQUARE_FLOOR)
            if n_rungs == 1:
                weights[0, s, k] -= factor * errors[0, k]
            else:
                weights[0, s, k] -= 0.5 * factor * errors[0, k]
                weights[1, s, k] -= factor * errors[1, k]
                weights[2, s, k] -= 2.0 * factor * errors[2, k]
            if watch:
                gradient2 += g * g
                step2 += (factor * errors[middle, k]) ** 2
    if watch:
        moving[GRADIENT_NORM] += VITALS_FADE * (math.sqrt(gradient2) - moving[GRADIENT_NORM])
        moving[STEP_NORM] += VITALS_FADE * (math.sqrt(step2) - moving[STEP_NORM])
    moving[LEARNED] += 1.0
    if options[L2] > 0.0:
        keep = 1.0 - min(1.0, moving[ladder.ETA] * options[RATE_SCALE] * options[L2])
        for r in range(n_rungs):
            # The constant (slot 0, always first) is no weight of an input.
            for i in range(1, slots.shape[0]):
                for k in range(n_scores):
                    weights[r, slots[i], k] *= keep


@subkernel
def shift(weights, move):
    """What a move of the ladder means for the weights [rungs, slots, scores]."""
    if move != 0:
        for k in range(weights.shape[2]):
            ladder.shift(weights[:, :, k], move)


@subkernel
def is_idle(op, weight, moving, options, out):
    """Whether nothing is to be computed for an operation; a row that is asleep gets its NaN here."""
    if op & PREDICT != 0 and moving[LEARNED] == 0.0:
        for k in range(out.shape[0]):
            out[k] = np.nan
        op = op & LEARN
    return op & PREDICT == 0 and not learns(op, weight, options)


@subkernel
def learns(op, weight, options):
    return op & LEARN != 0 and weight > 0.0 and options[RATE_SCALE] > 0.0


_ARGUMENTS = (
    "f8[:,::1], f8[::1], u1[::1], f8[::1], f8[:,::1], "
    "i8[:,::1], f8[:,::1], f8[:,:,::1], f8[:,::1], f8[:,::1], f8[::1], f8[::1]"
)


@kernel(f"void({_ARGUMENTS}, f8[:,::1])", allocates=True)
def step_two_classes(x, y, op, weight, out, plan, stats, weights, squares, rungs, moving, options, soft):
    n_rungs = weights.shape[0]
    slots = np.empty(room(plan, options), np.int64)
    values = np.empty(slots.shape[0])
    p = np.empty(n_rungs)
    errors = np.empty((n_rungs, 1))
    likelihoods = np.empty(n_rungs)
    row_losses = np.empty(n_rungs)
    for t in range(x.shape[0]):
        if is_idle(op[t], weight[t], moving, options, out[t]):
            continue
        gather(x[t], plan, stats, options, slots, values)
        one_score(weights, slots, values, p)
        mixed = 0.0
        for r in range(n_rungs):
            # The other class's score is the mirror image, so their difference is twice the score.
            p[r] = 1.0 / (1.0 + math.exp(-2.0 * p[r]))
            mixed += rungs[ladder.SHARES, r] * p[r]
        if op[t] & PREDICT and moving[LEARNED] > 0.0:
            if out.shape[1] == 1:
                out[t, 0] = 1.0
            elif out.shape[1] == 2:
                mixed = min(mixed, 1.0)
                out[t, 0] = 1.0 - mixed
                out[t, 1] = mixed
        if learns(op[t], weight[t], options):
            goal = y[t]
            if soft.shape[0] > 0:
                goal = soft[t, 1] if soft.shape[1] > 1 else 0.0
            for r in range(n_rungs):
                if soft.shape[0] > 0:
                    row_losses[r] = -goal * math.log(max(p[r], LEAST_LIKELIHOOD))
                    row_losses[r] -= (1.0 - goal) * math.log(max(1.0 - p[r], LEAST_LIKELIHOOD))
                    likelihoods[r] = math.exp(-row_losses[r])
                else:
                    likelihoods[r] = max(p[r] if goal == 1.0 else 1.0 - p[r], LEAST_LIKELIHOOD)
                    row_losses[r] = -math.log(likelihoods[r])
                errors[r, 0] = p[r] - goal
            descend(weights, squares, slots, values, errors, weight[t], moving, options)
            move = ladder.climb(rungs, likelihoods, row_losses, moving, options[MARGIN], options[COOL_DOWN])
            shift(weights, move)
            scaling.observe_row(x[t], plan, stats, options[SCALE_FADE])


@kernel(f"void({_ARGUMENTS}, f8[:,::1])", allocates=True)
def step_regression(x, y, op, weight, out, plan, stats, weights, squares, rungs, moving, options, target):
    n_rungs = weights.shape[0]
    slots = np.empty(room(plan, options), np.int64)
    values = np.empty(slots.shape[0])
    scores = np.empty(n_rungs)
    errors = np.empty((n_rungs, 1))
    likelihoods = np.empty(n_rungs)
    row_losses = np.empty(n_rungs)
    huber = options[HUBER]
    for t in range(x.shape[0]):
        if is_idle(op[t], weight[t], moving, options, out[t]):
            continue
        gather(x[t], plan, stats, options, slots, values)
        one_score(weights, slots, values, scores)
        if op[t] & PREDICT and moving[LEARNED] > 0.0:
            mixed = 0.0
            for r in range(n_rungs):
                mixed += rungs[ladder.SHARES, r] * scores[r]
            out[t, 0] = scaling.unscale(mixed, target)
        if learns(op[t], weight[t], options):
            goal = scaling.standardise(y[t], target, 0, FARTHEST_TARGET)
            least = np.inf
            for r in range(n_rungs):
                error = scores[r] - goal
                size = abs(error)
                row_losses[r] = 0.5 * size * size if size <= huber else huber * (size - 0.5 * huber)
                errors[r, 0] = min(max(error, -huber), huber)
                least = min(least, row_losses[r])
            # Losses in units of their usual size are log likelihoods, whatever the noise.
            usual = rungs[ladder.LOSSES, n_rungs // 2] + 1e-9
            for r in range(n_rungs):
                likelihoods[r] = math.exp(max(-20.0, 0.5 * (least - row_losses[r]) / usual))
            descend(weights, squares, slots, values, errors, weight[t], moving, options)
            margin = options[MARGIN] * usual
            move = ladder.climb(rungs, likelihoods, row_losses, moving, margin, options[COOL_DOWN])
            shift(weights, move)
            scaling.observe_row(x[t], plan, stats, options[SCALE_FADE])
            scaling.observe_target(y[t], target, options[SCALE_FADE])


@kernel(f"void({_ARGUMENTS}, f8[:,::1])", allocates=True)
def step_many_classes(x, y, op, weight, out, plan, stats, weights, squares, rungs, moving, options, soft):
    n_rungs, _, n_classes = weights.shape
    slots = np.empty(room(plan, options), np.int64)
    values = np.empty(slots.shape[0])
    p = np.empty((n_rungs, n_classes))
    likelihoods = np.empty(n_rungs)
    row_losses = np.empty(n_rungs)
    for t in range(x.shape[0]):
        if is_idle(op[t], weight[t], moving, options, out[t]):
            continue
        gather(x[t], plan, stats, options, slots, values)
        for r in range(n_rungs):
            p[r] = 0.0
            for i in range(slots.shape[0]):
                for k in range(n_classes):
                    p[r, k] += weights[r, slots[i], k] * values[i]
            greatest = p[r, 0]
            for k in range(1, n_classes):
                greatest = max(greatest, p[r, k])
            total = 0.0
            for k in range(n_classes):
                p[r, k] = math.exp(p[r, k] - greatest)
                total += p[r, k]
            for k in range(n_classes):
                p[r, k] /= total
        if op[t] & PREDICT and moving[LEARNED] > 0.0:
            for k in range(n_classes):
                mixed = 0.0
                for r in range(n_rungs):
                    mixed += rungs[ladder.SHARES, r] * p[r, k]
                out[t, k] = mixed
        if learns(op[t], weight[t], options):
            for r in range(n_rungs):
                if soft.shape[0] > 0:
                    row_losses[r] = 0.0
                    for k in range(n_classes):
                        row_losses[r] -= soft[t, k] * math.log(max(p[r, k], LEAST_LIKELIHOOD))
                        p[r, k] -= soft[t, k]
                    likelihoods[r] = math.exp(-row_losses[r])
                else:
                    label = np.int64(y[t])
                    likelihoods[r] = max(p[r, label], LEAST_LIKELIHOOD)
                    row_losses[r] = -math.log(likelihoods[r])
                    p[r, label] -= 1.0
            descend(weights, squares, slots, values, p, weight[t], moving, options)
            move = ladder.climb(rungs, likelihoods, row_losses, moving, options[MARGIN], options[COOL_DOWN])
            shift(weights, move)
            scaling.observe_row(x[t], plan, stats, options[SCALE_FADE])
