"""K nearest neighbours over a window of the last learned rows, every feature on the scale of its spread.

How: the squared distance sums over features the squared difference in standard deviations of the window (a
missing value stands at the mean; two different categories are `category_distance` apart). For each k of
`neighbours` the k nearest vote with `v / (d + d_k / 4)`, d_k the distance of the k-th:

    q[c] ~ votes[c] / sum(votes) + smoothing * prior[c]          p_k[c] ~ q[c]^a_k

The exponents a_k follow the gradient of the log loss; the p_k, each over the whole window and over
its newest parts, are mixed by their fading likelihood, and the mixture is sharpened by one more learned
exponent. For regression the weighted means of the k nearest targets are mixed by their fading absolute error.
Use it when: similar rows have similar labels and the window holds enough of each kind; it learns from a
single row and forgets by itself.
Do not use it when: most features mean nothing, or the concept needs more rows than the window.
Cost: O(window D) a row (about 7 microseconds for a window of 1000 rows of 8 numbers, 11 for 4000);
12 window D bytes.
Reference: Losing, Hammer, Wersing, "KNN classifier with self adjusting memory" (2016), for kNN under drift.
"""

import math
from typing import Annotated

import msgspec
import numpy as np

from adaptd.contracts import CATEGORY, Bytes, Floats, Layout, State, Vitals
from adaptd.kernels.compile import kernel, subkernel
from adaptd.kernels.neighbours import BLOCK, nearest, place_all, rescale, scaled_value
from adaptd.numerics import enlarged, pack, total_bytes, unpack

TASKS = ("classification", "regression")

# The scales are computed anew after this many learned rows, and at each power of two before.
RESCALE_ROWS = 128
# Scaled values are cut here: single precision has to hold the squares of all features.
LARGEST_SCALED = 1e6
LARGEST_TARGET = 1e150

Part = Annotated[float, msgspec.Meta(gt=0.0, lt=1.0)]
Count = Annotated[int, msgspec.Meta(ge=1, le=100)]


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    window: Annotated[int, msgspec.Meta(ge=8, le=100_000)] = 4000
    """Learned rows that are kept."""
    neighbours: Annotated[tuple[Count, ...], msgspec.Meta(min_length=1, max_length=8)] = (1, 2, 4, 8, 16, 32)
    """Numbers of neighbours that vote, each for itself; their predictions are mixed."""
    recent: Annotated[tuple[Part, ...], msgspec.Meta(max_length=4)] = (0.03, 0.12, 0.5)
    """Newest parts of the window, in which the nearest rows vote for themselves too; () for none."""
    smoothing: Annotated[float, msgspec.Meta(gt=0.0, le=100.0)] = 0.05
    """Weight of the window's class frequencies beside the votes (which weigh 1)."""
    category_distance: Annotated[float, msgspec.Meta(ge=0.0, le=100.0)] = 8.0
    """Squared distance of two different categories."""
    scale_limit: Annotated[float, msgspec.Meta(gt=0.0, le=1e6)] = 3.0
    """Standard deviations from the mean at which a scaled value is cut."""
    fading_factor: Annotated[float, msgspec.Meta(ge=0.5, le=1.0)] = 0.98
    """Weight that the past keeps, at each learned row, in how well each number of neighbours did."""


def build(config: Config, layout: Layout, seed: int) -> "NearestNeighbours":
    return NearestNeighbours(config, layout)


class NearestNeighbours:
    _NAMES = (
        "rate_scale",
        "_rows",
        "_labels",
        "_weights",
        "_learned",
        "_scales",
        "_classes",
        "_mixing",
        "_sharpness",
    )

    def __init__(self, config: Config, layout: Layout) -> None:
        self.rate_scale = 1.0
        self._config = config
        self._layout = layout
        self._neighbours = np.array(sorted(set(config.neighbours)), dtype=np.int64)
        self._limits = np.array(
            [config.smoothing, config.category_distance, config.scale_limit, config.fading_factor]
        )
        # The rows as they came; `_scaled` is made from them and is no part of the state.
        self._rows = np.zeros((config.window, layout.n_features))
        self._labels = np.zeros(config.window)
        self._weights = np.zeros(config.window)
        self._learned = np.zeros(1, dtype=np.int64)
        # Mean and reciprocal standard deviation in force.
        self._scales = np.zeros((2, layout.n_features))
        # Weight of each class in the window.
        self._classes = np.zeros(layout.n_classes)
        # For each number of neighbours: log of the mixing weight (or fading squared error), exponent, the sum
        # of its squared gradients.
        blocks = -(-config.window // BLOCK)
        # How many blocks each part of the newest rows has; the last place is the whole window.
        visits = {min(max(1, round(blocks * part)), blocks) for part in config.recent}
        self._visits = np.array([*sorted(visits), blocks + 1], dtype=np.int64)
        parts = self._visits.size
        self._mixing = np.zeros((parts, self._neighbours.size, 3))
        self._mixing[:, :, 1] = 1.0
        self._mixing[:, :, 2] = 0.01
        # Exponent of the mixture, and the sum of its squared gradients.
        self._sharpness = np.array([1.0, 1.0])
        self._arrange()

    def step(self, x: Floats, y: Floats, op: Bytes, weight: Floats, out: Floats) -> None:
        _step(
            x,
            y,
            op,
            weight,
            self._is_category,
            self._neighbours,
            self._visits,
            self._limits,
            self._rows,
            self._labels,
            self._weights,
            self._learned,
            self._scales,
            self._scaled,
            self._absent,
            self._classes,
            self._mixing,
            self._sharpness,
            out,
        )

    def grow(self, layout: Layout) -> None:
        d = layout.n_features
        if d > self._layout.n_features:
            # Older rows never had the new features: missing, on scale 0 until the next rescaling.
            self._rows = enlarged(self._rows, (self._config.window, d), np.nan)
            self._scales = enlarged(self._scales, (2, d))
        if layout.n_classes > self._classes.size:
            self._classes = enlarged(self._classes, (layout.n_classes,))
        self._layout = layout
        self._arrange()

    def state(self) -> State:
        return pack(self, self._NAMES)

    def load_state(self, state: State) -> None:
        unpack(self, self._NAMES, state)
        self._arrange()

    def vitals(self) -> Vitals:
        details = {
            f"exponent_{k}": float(a) for k, a in zip(self._neighbours, self._mixing[-1, :, 1], strict=True)
        }
        arrays = (self._rows, self._labels, self._weights, self._scaled, self._absent)
        return Vitals(state_bytes=total_bytes(*arrays), details=details)

    def _arrange(self) -> None:
        self._is_category = np.array([kind == CATEGORY for kind in self._layout.kinds], dtype=np.uint8)
        blocks = -(-self._config.window // BLOCK)
        self._scaled = np.zeros((blocks, self._layout.n_features, BLOCK), dtype=np.float32)
        # Added to each distance: infinite where no row is.
        self._absent = np.full((blocks, BLOCK), np.inf, dtype=np.float32)
        filled = min(int(self._learned[0]), self._config.window)
        self._absent.reshape(-1)[:filled] = 0.0
        place_all(self._rows, filled, self._is_category, self._limits, self._scales, self._scaled)


@subkernel(inline=True)
def _vote(found, distances, slots, neighbours, labels, weights, limits, classes, mixing, logs, shares):
    """For each number of neighbours: log of the smoothed votes, and what these give with its exponent."""
    n_classes = classes.size
    in_window = 0.0
    for c in range(n_classes):
        in_window += classes[c]
    for m in range(neighbours.size):
        k = min(found, neighbours[m])
        farthest = math.sqrt(distances[k - 1])
        for c in range(n_classes):
            shares[m, c] = 0.0
        total = 0.0
        for i in range(k):
            slot = slots[i]
            vote = weights[slot] / (math.sqrt(distances[i]) + 0.25 * farthest + 1e-6)
            shares[m, np.int64(labels[slot])] += vote
            total += vote
        largest = -np.inf
        for c in range(n_classes):
            prior = (classes[c] + 0.5) / (in_window + 0.5 * n_classes)
            logs[m, c] = math.log(shares[m, c] / total + limits[0] * prior)
            largest = max(largest, logs[m, c])
        total = 0.0
        for c in range(n_classes):
            shares[m, c] = math.exp(mixing[m, 1] * (logs[m, c] - largest))
            total += shares[m, c]
        for c in range(n_classes):
            shares[m, c] /= total


@subkernel(inline=True)
def _mix(mixing, shares, p):
    """Mix the predictions of all voters into `p`."""
    largest = -np.inf
    for s in range(mixing.shape[0]):
        for m in range(mixing.shape[1]):
            largest = max(largest, mixing[s, m, 0])
    total = 0.0
    for c in range(p.size):
        p[c] = 0.0
    for s in range(mixing.shape[0]):
        for m in range(mixing.shape[1]):
            share = math.exp(mixing[s, m, 0] - largest)
            total += share
            for c in range(p.size):
                p[c] += share * shares[s, m, c]
    for c in range(p.size):
        p[c] /= total


@subkernel
def _sharpen(mixture, exponent, p):
    """A mean of calibrated predictions is less sure than it is right: raise it to a learned power."""
    total = 0.0
    for c in range(mixture.size):
        p[c] = mixture[c] ** exponent
        total += p[c]
    for c in range(mixture.size):
        p[c] /= total


@subkernel(inline=True)
def _learn_mixing(label, fading_factor, logs, shares, mixing):
    """Fading log likelihood of each voter, and a gradient step of its exponent."""
    for m in range(mixing.shape[0]):
        mixing[m, 0] = fading_factor * mixing[m, 0] + math.log(max(shares[m, label], 1e-6))
        gradient = -logs[m, label]
        for c in range(logs.shape[1]):
            gradient += shares[m, c] * logs[m, c]
        mixing[m, 2] += gradient * gradient
        mixing[m, 1] -= 0.1 * gradient / math.sqrt(mixing[m, 2])
        mixing[m, 1] = min(max(mixing[m, 1], 0.1), 4.0)


@subkernel
def _learn_sharpness(label, mixture, sharpened, sharpness):
    gradient = -math.log(mixture[label])
    for c in range(mixture.size):
        gradient += sharpened[c] * math.log(mixture[c])
    sharpness[1] += gradient * gradient
    sharpness[0] -= 0.1 * gradient / math.sqrt(sharpness[1])
    sharpness[0] = min(max(sharpness[0], 0.5), 4.0)


@subkernel
def _means(found, distances, slots, neighbours, labels, weights, means):
    for m in range(neighbours.size):
        k = min(found, neighbours[m])
        farthest = math.sqrt(distances[k - 1])
        total = 0.0
        means[m] = 0.0
        for i in range(k):
            slot = slots[i]
            vote = weights[slot] / (math.sqrt(distances[i]) + 0.25 * farthest + 1e-6)
            total += vote
            # The running form of the mean: sums of votes times targets could overflow.
            means[m] += vote / total * (labels[slot] - means[m])


@subkernel
def _mix_means(mixing, means):
    """Mix by the eighth power of the fading absolute error's reciprocal."""
    least = np.inf
    for s in range(mixing.shape[0]):
        for m in range(mixing.shape[1]):
            least = min(least, mixing[s, m, 0])
    total = 0.0
    mean = 0.0
    for s in range(mixing.shape[0]):
        for m in range(mixing.shape[1]):
            # The least positive number keeps the ratio at 1 when all errors are 0.
            share = ((least + 1e-300) / (mixing[s, m, 0] + 1e-300)) ** 8
            total += share
            mean += share / total * (means[s, m] - mean)
    return mean


@kernel(
    "void(f8[:,::1], f8[::1], u1[::1], f8[::1], u1[::1], i8[::1], i8[::1], f8[::1], f8[:,::1], f8[::1],"
    " f8[::1], i8[::1], f8[:,::1], f4[:,:,::1], f4[:,::1], f8[::1], f8[:,:,::1], f8[::1], f8[:,::1])",
    allocates=True,
)
def _step(
    x,
    y,
    op,
    weight,
    is_category,
    neighbours,
    visits,
    limits,
    rows,
    labels,
    weights,
    learned,
    scales,
    scaled,
    absent,
    classes,
    mixing,
    sharpness,
    out,
):
    window, n_features = rows.shape
    n_parts, n_sizes, _ = mixing.shape
    classifies = classes.size > 0
    query = np.zeros(n_features, dtype=np.float32)
    wanted = min(neighbours[n_sizes - 1], window)
    distances = np.zeros((n_parts, wanted), dtype=np.float32)
    slots = np.zeros((n_parts, wanted), dtype=np.uint32)
    found = np.zeros(n_parts, dtype=np.int64)
    sums = np.zeros(64, dtype=np.float32)
    near_rows = np.zeros(64, dtype=np.uint32)
    logs = np.zeros((n_parts, n_sizes, classes.size))
    shares = np.zeros((n_parts, n_sizes, classes.size))
    mixture = np.zeros(classes.size)
    sharpened = np.zeros(classes.size)
    means = np.zeros((n_parts, n_sizes))
    category_distance = np.float32(limits[1])
    for i in range(op.size):
        learns = (op[i] & 2) != 0 and weight[i] > 0.0
        predicts = (op[i] & 1) != 0
        if not learns and not predicts:
            continue
        for j in range(n_features):
            query[j] = scaled_value(x[i, j], is_category[j], scales[0, j], scales[1, j], limits[2])
        if learned[0] > 0:
            newest = (learned[0] - 1) % window
            nearest(
                query,
                is_category,
                category_distance,
                scaled,
                absent,
                newest,
                visits,
                distances,
                slots,
                found,
                sums,
                near_rows,
            )
            for s in range(n_parts):
                if classifies:
                    _vote(
                        found[s],
                        distances[s],
                        slots[s],
                        neighbours,
                        labels,
                        weights,
                        limits,
                        classes,
                        mixing[s],
                        logs[s],
                        shares[s],
                    )
                else:
                    _means(found[s], distances[s], slots[s], neighbours, labels, weights, means[s])
            if classifies:
                _mix(mixing, shares, mixture)
                _sharpen(mixture, sharpness[0], sharpened)
            if predicts and classifies:
                for c in range(out.shape[1]):
                    out[i, c] = sharpened[c]
            elif predicts:
                out[i, 0] = _mix_means(mixing, means)
        elif predicts:
            for c in range(out.shape[1]):
                out[i, c] = np.nan
        if not learns:
            continue
        target = y[i] if classifies else min(max(y[i], -LARGEST_TARGET), LARGEST_TARGET)
        if learned[0] > 0:
            if classifies:
                _learn_sharpness(np.int64(target), mixture, sharpened, sharpness)
            for s in range(n_parts):
                if classifies:
                    _learn_mixing(np.int64(target), limits[3], logs[s], shares[s], mixing[s])
                else:
                    for m in range(n_sizes):
                        distance = abs(target - means[s, m])
                        mixing[s, m, 0] = limits[3] * mixing[s, m, 0] + (1.0 - limits[3]) * distance
        slot = learned[0] % window
        if classifies:
            if learned[0] >= window:
                old = np.int64(labels[slot])
                # Rounding must not leave a weight below zero.
                classes[old] = max(classes[old] - weights[slot], 0.0)
            classes[np.int64(target)] += weight[i]
        for j in range(n_features):
            rows[slot, j] = x[i, j]
            scaled[slot // 64, j, slot % 64] = query[j]
        labels[slot] = target
        weights[slot] = weight[i]
        absent[slot // 64, slot % 64] = np.float32(0.0)
        learned[0] += 1
        n = learned[0]
        if n % RESCALE_ROWS == 0 or (n < RESCALE_ROWS and (n & (n - 1)) == 0):
            filled = min(n, window)
            rescale(rows, filled, is_category, scales)
            place_all(rows, filled, is_category, limits, scales, scaled)
