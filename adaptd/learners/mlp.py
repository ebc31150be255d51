"""A small multi-layer perceptron, trained row by row, at a rate that finds itself.

*How*: inputs are numbers standardised and categories one-hot, one first-layer row a code
(`kernels/scaling.py`). Hidden neurons are leaky: h = a for a > 0, else a / 5. Three copies on a ladder
(`kernels/ladder.py`) start equal (He's initialisation, last layer 0) and learn at rates eta / 2, eta, 2 eta:

    g = dL/dw     G += max(1/n, .001) (g^2 - G)  (middle copy)     w -= rate * clip(g / (sqrt(G) + .001), 10)

L is the log loss, or for regression Huber's loss of the standardised target.

The choices were measured, on streams: momentum (Adam) costs up to half the accuracy where labels hang
together in time; neurons that can die do die at the high rates that the ladder finds useful there.

*Use it when* inputs act together and curves matter, and rows are many: it beats lines after some thousands.
*Do not use it when* classes are many small islands (nearest neighbours), rules on single inputs (trees), or
categories have hundreds of codes (lines: a code seen twice teaches a net too much).
*Cost*: about 4 us a row with 10 numbers and hidden (10, 10); 32 bytes a weight, that is
(slots * h1 + (h1 + 1) * h2 + (h2 + 1) * scores) of them.
*Reference*: K. He et al., "Delving deep into rectifiers" (2015); A. Maas et al., "Rectifier nonlinearities
improve neural network acoustic models" (2013); T. Tieleman, G. Hinton, "Lecture 6.5: RMSprop" (2012).
"""

import math
from typing import Annotated

import msgspec
import numpy as np

from adaptd.contracts import LEARN, PREDICT, Bytes, Floats, Ints, Layout, State, Vitals
from adaptd.kernels import ladder, scaling
from adaptd.kernels.compile import kernel, subkernel
from adaptd.kernels.random import generator, next_normal
from adaptd.numerics import enlarged, pack, total_bytes, unpack

TASKS = ("classification", "regression")
HAS_RATE = True
MUTABLE = ("margin", "cool_down_rows", "huber", "clip")

Width = Annotated[int, msgspec.Meta(ge=1, le=1024)]


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    hidden: Annotated[tuple[Width, ...], msgspec.Meta(min_length=1, max_length=8)] = (10, 10)
    """Neurons of each hidden layer."""
    learning_rate: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] = 0.003
    """Where the ladder's middle rung starts; the rate itself when there is no ladder."""
    ladder: bool = True
    """Three copies at neighbouring rates that look for the right one. Off: a third of the time."""
    margin: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.002
    """How much better an outer rung's fading loss must be for the ladder to move."""
    cool_down_rows: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 200
    """Labelled rows between two moves of the ladder, at least."""
    huber: Annotated[float, msgspec.Meta(gt=0.0, le=100.0)] = 0.5
    """Regression: errors beyond so many target deviations pull no harder than one of this size. Small
    values aim at the median, great ones (3) at the mean."""
    clip: Annotated[float, msgspec.Meta(gt=0.0, le=100.0)] = 3.0
    """Standardised numbers are cut to plus and minus this."""
    scale_fade: Annotated[float, msgspec.Meta(ge=0.0, le=0.5)] = 0.0
    """Fading of the standardisation; 0: all rows count the same."""


# Handed in where labels are classes, not probabilities.
HARD: Floats = np.zeros((0, 0))
LEAK = 0.2
SQUARE_FADE = 0.001
# Added to sqrt(G): keeps a step small where gradients have all but vanished.
SQUARE_FLOOR = 1e-3
# A rare input's G is young; without a bound its first steps are 30 times too long.
LONGEST_STEP = 10.0
# Out of reach for a net that works; one that runs away stays finite.
LARGEST_ACTIVATION = 1e6
# A row's weight counts up to this; more in one step would throw the weights about.
HEAVIEST = 100.0
# Targets further out than this many deviations count as just so far.
FARTHEST_TARGET = 10.0
# The lengths for the vitals are taken every so many labelled rows, and fade by this much each time.
VITALS_ROWS = 16
VITALS_FADE = 0.1
LEAST_LIKELIHOOD = 1e-9

# Places in the array of what moves, after the ladder's.
LEARNED, GRADIENT_NORM, STEP_NORM, MOVING = range(ladder.OWN, ladder.OWN + 4)
# Places in the array of options.
HUBER, CLIP, SCALE_FADE, MARGIN, COOL_DOWN, RATE_SCALE, IS_REGRESSION, OPTIONS = range(8)


def build(config: Config, layout: Layout, seed: int) -> "Perceptron":
    return Perceptron(config, layout, seed)


class Perceptron:
    """See the module's docstring. Weights are [rungs, n]: each layer's [inputs, neurons] after the other.

    The first layer's inputs are the slots, of which slot 0 is the constant; the other layers have theirs as
    their last input.
    """

    _STATE = ("rate_scale", "weights", "squares", "rungs", "moving", "stats", "target", "rng")

    def __init__(self, config: Config, layout: Layout, seed: int) -> None:
        self._config = config
        self.rate_scale = 1.0
        self.rungs = ladder.rungs(3 if config.ladder else 1)
        self.moving = np.zeros(MOVING)
        self.moving[ladder.ETA] = config.learning_rate
        self.target = scaling.target_statistics()
        self.rng = generator(seed)
        self._layout = layout
        self._plan, self._n_slots = scaling.plan_slots(layout)
        self.stats = scaling.statistics(layout.n_features)
        self._sizes = sizes_of(config, layout, self._n_slots)
        layers = [self._first_layer(self._plan, self._n_slots)]
        for n_in, n_out in zip(config.hidden[:-1], config.hidden[1:], strict=True):
            layers.append(np.zeros((n_in + 1, n_out)))
            fill_normal(layers[-1][:-1], math.sqrt(2.0 / n_in), self.rng)
        # With the last layer at 0 the first predictions are even, whatever was drawn for the others.
        layers.append(np.zeros((config.hidden[-1] + 1, int(self._sizes[-1]))))
        flat = np.concatenate([layer.ravel() for layer in layers])
        self.weights = np.tile(flat, (self.rungs.shape[1], 1))
        self.squares = np.zeros_like(flat)

    def _first_layer(self, plan: Ints, n_slots: int) -> Floats:
        """He's initialisation for as many inputs as a row has active."""
        rows = np.zeros((n_slots, self._config.hidden[0]))
        fill_normal(rows[1:], math.sqrt(2.0 / max(1, len(plan))), self.rng)
        # "Missing" starts as no influence: rows without a feature that is new are predicted as before.
        rows[plan[:, scaling.FIRST]] = 0.0
        return rows

    def step(self, x: Floats, y: Floats, op: Bytes, weight: Floats, out: Floats) -> None:
        self.teach(x, y, op, weight, out, HARD)

    def teach(self, x: Floats, y: Floats, op: Bytes, weight: Floats, out: Floats, soft: Floats) -> None:
        """As `step`; classes are learned from the probabilities `soft` [n, n_classes] in place of `y`."""
        c = self._config
        options = np.zeros(OPTIONS)
        options[HUBER], options[CLIP], options[SCALE_FADE] = c.huber, c.clip, c.scale_fade
        options[MARGIN], options[COOL_DOWN] = c.margin, c.cool_down_rows
        options[RATE_SCALE], options[IS_REGRESSION] = self.rate_scale, self._layout.task == "regression"
        rows = (x, y, op, weight, out)
        model = (self._plan, self.stats, self._sizes, self.weights, self.squares, self.rungs, self.moving)
        walk(*rows, *model, options, self.target, soft)

    def grow(self, layout: Layout) -> None:
        plan, n_slots = scaling.plan_slots(layout)
        moves = scaling.slot_moves(self._plan, self._n_slots, plan)
        sizes = sizes_of(self._config, layout, n_slots)
        fresh = self._first_layer(plan, n_slots)
        weights = self._relaid(self.weights, fresh, moves, sizes, mirror=-1.0)
        self.squares = self._relaid(self.squares[None], np.zeros_like(fresh), moves, sizes, mirror=1.0)[0]
        self.weights = weights
        self.stats = enlarged(self.stats, scaling.statistics(layout.n_features).shape)
        self._plan, self._n_slots, self._sizes, self._layout = plan, n_slots, sizes, layout

    def _relaid(
        self, old: Floats, fresh: Floats, moves: list[tuple[int, int, int]], sizes: Ints, mirror: float
    ) -> Floats:
        """`old` under new sizes: new slots as in `fresh`, new classes 0."""
        n_rungs = len(old)
        _, *_, last_in, old_scores = self._sizes.tolist()
        first_end = self._n_slots * int(sizes[1])
        last_start = old.shape[1] - (last_in + 1) * old_scores
        known = old[:, :first_end].reshape(n_rungs, self._n_slots, -1)
        first = np.tile(fresh, (n_rungs, 1, 1))
        for new, place, size in moves:
            first[:, new : new + size] = known[:, place : place + size]
        last = old[:, last_start:].reshape(n_rungs, last_in + 1, old_scores)
        if old_scores == 1 and sizes[-1] > 1:
            # One score of two classes is two scores, each the other's mirror image.
            last = np.concatenate([mirror * last, last], axis=2)
        last = enlarged(last, (n_rungs, last_in + 1, int(sizes[-1])))
        parts = (first.reshape(n_rungs, -1), old[:, first_end:last_start], last.reshape(n_rungs, -1))
        return np.concatenate(parts, axis=1)

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


def sizes_of(config: Config, layout: Layout, n_slots: int) -> Ints:
    """Slots, then the neurons of each layer; the last are the scores, one for up to two classes."""
    n_scores = layout.n_classes if layout.n_classes > 2 else 1
    return np.array([n_slots, *config.hidden, n_scores], dtype=np.int64)


@kernel("void(f8[:,::1], f8, u8[::1])")
def fill_normal(weights, deviation, rng):
    for i in range(weights.shape[0]):
        for j in range(weights.shape[1]):
            weights[i, j] = deviation * next_normal(rng)


@subkernel(inline=True)
def forward(weights, sizes, slots, values, outputs):
    """Fill outputs [layers, neurons]: what hidden layers give, then the scores."""
    for j in range(sizes[1]):
        outputs[0, j] = 0.0
    for i in range(slots.shape[0]):
        row = slots[i] * sizes[1]
        for j in range(sizes[1]):
            outputs[0, j] += weights[row + j] * values[i]
    start = sizes[0] * sizes[1]
    for layer in range(1, sizes.shape[0] - 1):
        n_in = sizes[layer]
        n_out = sizes[layer + 1]
        for j in range(n_out):
            outputs[layer, j] = weights[start + n_in * n_out + j]
        for i in range(n_in):
            a = outputs[layer - 1, i]
            h = min(max(a if a > 0.0 else LEAK * a, -LARGEST_ACTIVATION), LARGEST_ACTIVATION)
            outputs[layer - 1, i] = h
            row = start + i * n_out
            for j in range(n_out):
                outputs[layer, j] += weights[row + j] * h
        start += (n_in + 1) * n_out


@subkernel(inline=True)
def measure(squares, scales, gradient, fade):
    """Take a gradient into G, and what steps are to be multiplied with into `scales`."""
    # Indexed by the loop's variable alone: only such loops become vector instructions.
    for j in range(squares.shape[0]):
        g = gradient[j]
        squares[j] += fade * (g * g - squares[j])
        scales[j] = 1.0 / (math.sqrt(squares[j]) + SQUARE_FLOOR)


@subkernel(inline=True)
def adjust(weights, scales, gradient, rate):
    """One normalised step of all `weights` by `gradient`, arrays of one length."""
    for j in range(weights.shape[0]):
        weights[j] -= rate * min(max(gradient[j] * scales[j], -LONGEST_STEP), LONGEST_STEP)


@subkernel(inline=True)
def backward(weights, squares, scales, sizes, slots, values, outputs, errors, gradient, rate, fade):
    """One step; errors [layers, neurons] comes with its last row filled, the derivative by the scores.

    `gradient` is room for one of all weights; with a `fade` above 0 it is taken into G first.
    """
    first_end = sizes[0] * sizes[1]
    end = weights.shape[0]
    for layer in range(sizes.shape[0] - 2, 0, -1):
        n_in = sizes[layer]
        n_out = sizes[layer + 1]
        start = end - (n_in + 1) * n_out
        for i in range(n_in):
            h = outputs[layer - 1, i]
            row = start + i * n_out
            error = 0.0
            for j in range(n_out):
                error += weights[row + j] * errors[layer, j]
                gradient[row + j] = errors[layer, j] * h
            errors[layer - 1, i] = error if h > 0.0 else LEAK * error
        for j in range(n_out):
            gradient[start + n_in * n_out + j] = errors[layer, j]
        end = start
    if fade > 0.0:
        measure(squares[first_end:], scales[first_end:], gradient[first_end:], fade)
    adjust(weights[first_end:], scales[first_end:], gradient[first_end:], rate)
    n = sizes[1]
    for i in range(slots.shape[0]):
        for j in range(n):
            gradient[j] = errors[0, j] * values[i]
        first = slots[i] * n
        if fade > 0.0:
            measure(squares[first : first + n], scales[first : first + n], gradient[:n], fade)
        adjust(weights[first : first + n], scales[first : first + n], gradient[:n], rate)


@subkernel
def watch(scales, sizes, slots, values, errors, rate, moving):
    """Bring the lengths for the vitals up to date; the first layer, where most weights are, stands for it."""
    gradient2 = 0.0
    step2 = 0.0
    for i in range(slots.shape[0]):
        for j in range(sizes[1]):
            g = errors[0, j] * values[i]
            length = g * scales[slots[i] * sizes[1] + j]
            gradient2 += g * g
            step2 += (rate * min(max(length, -LONGEST_STEP), LONGEST_STEP)) ** 2
    moving[GRADIENT_NORM] += VITALS_FADE * (math.sqrt(gradient2) - moving[GRADIENT_NORM])
    moving[STEP_NORM] += VITALS_FADE * (math.sqrt(step2) - moving[STEP_NORM])


@subkernel
def softmax(scores, n, p):
    """Probabilities of the `n` scores; of one score, that of class 1."""
    if n == 1:
        # The other class's score is the mirror image, so their difference is twice the score.
        p[0] = 1.0 / (1.0 + math.exp(-2.0 * scores[0]))
        return
    greatest = scores[0]
    for k in range(1, n):
        greatest = max(greatest, scores[k])
    total = 0.0
    for k in range(n):
        p[k] = math.exp(scores[k] - greatest)
        total += p[k]
    for k in range(n):
        p[k] /= total


@subkernel
def judge(scores, n, y, options, target, errors):
    """Fill `errors` with the loss's derivative by the scores; returns the loss."""
    if options[IS_REGRESSION] > 0.0:
        huber = options[HUBER]
        error = scores[0] - scaling.standardise(y, target, 0, FARTHEST_TARGET)
        size = abs(error)
        errors[0] = min(max(error, -huber), huber)
        return 0.5 * size * size if size <= huber else huber * (size - 0.5 * huber)
    softmax(scores, n, errors)
    if n == 1:
        p = errors[0] if y == 1.0 else 1.0 - errors[0]
        errors[0] -= y
    else:
        p = errors[np.int64(y)]
        errors[np.int64(y)] -= 1.0
    return -math.log(max(p, LEAST_LIKELIHOOD))


@subkernel
def judge_soft(scores, n, soft, errors):
    """As `judge`, for the probabilities `soft` in place of a class: the cross-entropy."""
    softmax(scores, n, errors)
    if n == 1:
        goal = soft[1] if soft.shape[0] > 1 else 0.0
        p = errors[0]
        errors[0] -= goal
        hit = -goal * math.log(max(p, LEAST_LIKELIHOOD))
        return hit - (1.0 - goal) * math.log(max(1.0 - p, LEAST_LIKELIHOOD))
    loss = 0.0
    for k in range(n):
        loss -= soft[k] * math.log(max(errors[k], LEAST_LIKELIHOOD))
        errors[k] -= soft[k]
    return loss


@subkernel
def predict(outputs, n_scores, rungs, options, target, p, out):
    """Mix what the rungs say into `out` [width]."""
    last = outputs.shape[1] - 1
    if options[IS_REGRESSION] > 0.0:
        mixed = 0.0
        for r in range(outputs.shape[0]):
            mixed += rungs[ladder.SHARES, r] * outputs[r, last, 0]
        out[0] = scaling.unscale(mixed, target)
        return
    if out.shape[0] == 1:
        out[0] = 1.0
        return
    for k in range(out.shape[0]):
        out[k] = 0.0
    for r in range(outputs.shape[0]):
        softmax(outputs[r, last], n_scores, p)
        for k in range(n_scores):
            out[k] += rungs[ladder.SHARES, r] * p[k]
    if n_scores == 1 and out.shape[0] == 2:
        out[1] = min(out[0], 1.0)
        out[0] = 1.0 - out[1]


@kernel(
    "void(f8[:,::1], f8[::1], u1[::1], f8[::1], f8[:,::1], i8[:,::1], f8[:,::1], i8[::1], f8[:,::1], "
    "f8[::1], f8[:,::1], f8[::1], f8[::1], f8[:,::1], f8[:,::1])",
    allocates=True,
)
def walk(x, y, op, weight, out, plan, stats, sizes, weights, squares, rungs, moving, options, target, soft):
    n_rungs = weights.shape[0]
    n_layers = sizes.shape[0] - 1
    n_scores = sizes[n_layers]
    widest = sizes[1]
    for layer in range(1, n_layers):
        widest = max(widest, sizes[layer + 1])
    slots = np.empty(plan.shape[0] + 1, np.int64)
    values = np.empty(plan.shape[0] + 1)
    outputs = np.zeros((n_rungs, n_layers, widest))
    errors = np.empty((n_layers, widest))
    likelihoods = np.empty(n_rungs)
    row_losses = np.empty(n_rungs)
    p = np.empty(n_scores)
    gradient = np.empty(weights.shape[1])
    scales = np.empty(weights.shape[1])
    for t in range(x.shape[0]):
        learns = op[t] & LEARN != 0 and weight[t] > 0.0 and options[RATE_SCALE] > 0.0
        predicts = op[t] & PREDICT != 0
        if predicts and moving[LEARNED] == 0.0:
            for k in range(out.shape[1]):
                out[t, k] = np.nan
            predicts = False
        if not (learns or predicts):
            continue
        scaling.gather(x[t], plan, stats, options[CLIP], slots, values)
        for r in range(n_rungs):
            forward(weights[r], sizes, slots, values, outputs[r])
        if predicts:
            predict(outputs, n_scores, rungs, options, target, p, out[t])
        if not learns:
            continue
        middle = n_rungs // 2
        fade = max(1.0 / (moving[LEARNED] + 1.0), SQUARE_FADE)
        least = np.inf
        # The middle rung goes first: G is its own, and the others step by it too.
        for turn in range(n_rungs):
            r = (turn + middle) % n_rungs
            rate = moving[ladder.ETA] * 2.0 ** (r - middle) * options[RATE_SCALE] * min(weight[t], HEAVIEST)
            if soft.shape[0] > 0 and options[IS_REGRESSION] == 0.0:
                row_losses[r] = judge_soft(outputs[r, n_layers - 1], n_scores, soft[t], errors[n_layers - 1])
            else:
                row_losses[r] = judge(
                    outputs[r, n_layers - 1], n_scores, y[t], options, target, errors[n_layers - 1]
                )
            least = min(least, row_losses[r])
            backward(
                weights[r],
                squares,
                scales,
                sizes,
                slots,
                values,
                outputs[r],
                errors,
                gradient,
                rate,
                fade if r == middle else 0.0,
            )
            if r == middle and moving[LEARNED] % VITALS_ROWS == 0.0:
                watch(scales, sizes, slots, values, errors, rate, moving)
        # A regression's losses in units of their usual size are log likelihoods, whatever the noise.
        unit = 1.0
        if options[IS_REGRESSION] > 0.0:
            unit = rungs[ladder.LOSSES, middle] + 1e-9
        for r in range(n_rungs):
            excess = (least - row_losses[r]) / unit
            likelihoods[r] = math.exp(max(-20.0, 0.5 * excess if options[IS_REGRESSION] > 0.0 else excess))
        move = ladder.climb(
            rungs, likelihoods, row_losses, moving, options[MARGIN] * unit, options[COOL_DOWN]
        )
        ladder.shift(weights, move)
        scaling.observe_row(x[t], plan, stats, options[SCALE_FADE])
        if options[IS_REGRESSION] > 0.0:
            scaling.observe_target(y[t], target, options[SCALE_FADE])
        moving[LEARNED] += 1.0
