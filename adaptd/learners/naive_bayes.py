"""Naive Bayes: per class a normal distribution of each number, per value of a category the classes it had.

How: with the fading factor f, class K's fading mean m and variance s^2 of a number x, shrunk towards those of
all classes while the class has few rows; of each value of a category the classes that it came with, fading
whenever it comes, beside the shares q_Kj of the classes in all rows that had the category (P(x|K) is
P(K|x) / P(K), up to what all classes share):

    l[K] = sum_j log N(x_j; m_Kj, s_Kj)  +  sum_j log (count[K, j, x_j] / q_Kj + smoothing)

So a rare value keeps what little is known of it. (Shares of the values within a class, fading row by row, had
forgotten all but the frequent ones.)
    p[K] ~ prior[K] exp(a l[K])

Features are never independent, so that plain naive Bayes is far too sure of itself. The exponent a (one for
all classes, from 0.02 to 2) follows the gradient of the log loss. Missing values are left out of the sum.
Use it when: there are few labels, many features, or many categories; it needs tens of rows, not thousands.
Do not use it when: classes differ by how features go together; a tree or `knn` sees that.
Cost: O(D K) a row (about 0.2 microseconds for 8 features and 2 classes); 40 D K bytes and 8 K for each value
of a category.
Reference: John and Langley, "Estimating continuous distributions in Bayesian classifiers" (1995).
"""

import math
from typing import Annotated

import msgspec
import numpy as np

from adaptd.contracts import Bytes, Floats, Layout, State, Vitals
from adaptd.kernels.compile import kernel, subkernel
from adaptd.numerics import enlarged, pack, total_bytes, unpack

TASKS = ("classification",)
MUTABLE = ("fading_factor", "prior_fading_factor", "shrinkage", "variance_floor")

# Values are cut here: their squared differences still have to be finite, with room to be summed.
LARGEST = 1e150
# Weight that the past keeps, a row, in the shares of the classes that a category's values are compared with:
# they must reach about as far back as the values do.
SHARES_FADING_FACTOR = 0.999


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    fading_factor: Annotated[float, msgspec.Meta(ge=0.5, le=1.0)] = 0.995
    """Weight that a class's past keeps at each of its learned rows, and a category's value's at each row that
    has it; 1.0 never forgets."""
    prior_fading_factor: Annotated[float, msgspec.Meta(ge=0.5, le=1.0)] = 0.995
    """Weight that the past keeps in the class frequencies at each learned row."""
    shrinkage: Annotated[float, msgspec.Meta(ge=0.0, le=1e6)] = 2.0
    """Rows that the distribution over all classes counts for within each class."""
    variance_floor: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] = 1e-3
    """Least variance within a class, as a part of the variance over all classes."""
    smoothing: Annotated[float, msgspec.Meta(gt=0.0, le=1e6)] = 10.0
    """Rows with the usual classes that stand beside those that a category's value came with."""
    exponent_rate: Annotated[float, msgspec.Meta(ge=0.0, le=10.0)] = 0.05
    """Step of the exponent (AdaGrad); 0.0 keeps it at 1 over the square root of the number of features."""


def build(config: Config, layout: Layout, seed: int) -> "NaiveBayes":
    return NaiveBayes(config, layout)


class NaiveBayes:
    _NAMES = (
        "rate_scale",
        "_classes",
        "_class_numbers",
        "_all_numbers",
        "_counts",
        "_totals",
        "_exponent",
    )

    def __init__(self, config: Config, layout: Layout) -> None:
        self.rate_scale = 1.0
        self._config = config
        self._classes = np.zeros(0)
        # Weight, mean, variance of each number: [class, feature, 3] within a class, [feature, 3] over all.
        self._class_numbers = np.zeros((0, 0, 3))
        self._all_numbers = np.zeros((0, 3))
        # [class, place of a value], [class, feature].
        self._counts = np.zeros((0, 0))
        self._totals = np.zeros((0, 0))
        # The exponent, the sum of its squared gradients, and how many rows moved it.
        self._exponent = np.array([1.0 / math.sqrt(max(layout.n_features, 1)), 0.01])
        self._layout = Layout(layout.task)
        self._starts = np.zeros(1, dtype=np.int64)
        self.grow(layout)

    def step(self, x: Floats, y: Floats, op: Bytes, weight: Floats, out: Floats) -> None:
        config = self._config
        parameters = np.array(
            [
                config.fading_factor,
                config.prior_fading_factor,
                config.shrinkage,
                config.variance_floor,
                config.exponent_rate,
                config.smoothing,
            ]
        )
        _step(
            x,
            y,
            op,
            weight,
            parameters,
            self._starts,
            self._classes,
            self._class_numbers,
            self._all_numbers,
            self._counts,
            self._totals,
            self._exponent,
            out,
        )

    def grow(self, layout: Layout) -> None:
        k, d = layout.n_classes, layout.n_features
        starts = np.zeros(d + 1, dtype=np.int64)
        np.cumsum(layout.capacities, out=starts[1:])
        counts = np.zeros((k, int(starts[-1])))
        for j, capacity in enumerate(self._layout.capacities):
            old = self._counts[:, self._starts[j] : self._starts[j] + capacity]
            counts[: old.shape[0], starts[j] : starts[j] + capacity] = old
        self._counts = counts
        self._starts = starts
        self._classes = enlarged(self._classes, (k,))
        self._class_numbers = enlarged(self._class_numbers, (k, d, 3))
        self._all_numbers = enlarged(self._all_numbers, (d, 3))
        self._totals = enlarged(self._totals, (k, d))
        self._layout = layout

    def state(self) -> State:
        return pack(self, self._NAMES)

    def load_state(self, state: State) -> None:
        unpack(self, self._NAMES, state)

    def vitals(self) -> Vitals:
        size = total_bytes(self._class_numbers, self._all_numbers, self._counts, self._totals)
        return Vitals(state_bytes=size + self._classes.nbytes, details={"exponent": float(self._exponent[0])})


@subkernel
def _follow(numbers, value, weight, fading_factor):
    """Fading weight, mean and variance (West's update) of one number."""
    total = fading_factor * numbers[0] + weight
    share = weight / total
    difference = value - numbers[1]
    numbers[0] = total
    numbers[1] += share * difference
    # The old variance's own weight is total - weight, so that fading leaves it as it is.
    numbers[2] = (1.0 - share) * (numbers[2] + share * difference * difference)


@subkernel
def _evidence(row, parameters, starts, classes, class_numbers, all_numbers, counts, totals, evidence):
    """Log likelihood of the row's values under each class; its mean over the classes seen is 0."""
    shrinkage = parameters[2]
    n_classes = classes.size
    for k in range(n_classes):
        evidence[k] = 0.0
    for j in range(row.size):
        if np.isnan(row[j]):
            continue
        capacity = starts[j + 1] - starts[j]
        if capacity > 0:
            place = starts[j] + np.int64(row[j])
            total = 0.0
            for k in range(n_classes):
                total += totals[k, j]
            for k in range(n_classes):
                usual = (totals[k, j] + 0.5) / (total + 0.5 * n_classes)
                evidence[k] += math.log(counts[k, place] / usual + parameters[5])
    # Class by class, as the numbers of a class lie side by side.
    for k in range(n_classes):
        # Variances are multiplied, and one logarithm is taken of many.
        product, distance = 1.0, 0.0
        for j in range(row.size):
            if np.isnan(row[j]) or starts[j + 1] > starts[j] or not all_numbers[j, 2] > 0.0:
                continue
            value = min(max(row[j], -LARGEST), LARGEST)
            n = class_numbers[k, j, 0]
            # What little the class knows of the feature stands beside what all classes know of it.
            own = n / (n + shrinkage) if n > 0.0 else 0.0
            mean = all_numbers[j, 1] + own * (class_numbers[k, j, 1] - all_numbers[j, 1])
            variance = own * class_numbers[k, j, 2] + (1.0 - own) * all_numbers[j, 2]
            variance = max(variance, parameters[3] * all_numbers[j, 2])
            # Beyond 20 standard deviations a value says no more: it is an outlier for every class.
            difference = value - mean
            distance += min(difference * difference / variance, 400.0)
            if 1e-150 < product * variance < 1e150:
                product *= variance
            else:
                distance += math.log(product) + math.log(variance)
                product = 1.0
        evidence[k] -= 0.5 * (distance + math.log(product))
    total = 0.0
    seen = 0
    for k in range(n_classes):
        if classes[k] > 0.0:
            total += evidence[k]
            seen += 1
    for k in range(n_classes):
        evidence[k] -= total / max(seen, 1)


@subkernel
def _posterior(evidence, exponent, classes, probabilities):
    largest = -np.inf
    total = 0.0
    for k in range(classes.size):
        total += classes[k]
    for k in range(classes.size):
        prior = (classes[k] + 0.5) / (total + 0.5 * classes.size)
        # A class not learned yet has its prior alone, as if its evidence were average.
        probabilities[k] = math.log(prior) + (exponent * evidence[k] if classes[k] > 0.0 else 0.0)
        largest = max(largest, probabilities[k])
    total = 0.0
    for k in range(classes.size):
        probabilities[k] = math.exp(probabilities[k] - largest)
        total += probabilities[k]
    for k in range(classes.size):
        probabilities[k] /= total


@kernel(
    "void(f8[:,::1], f8[::1], u1[::1], f8[::1], f8[::1], i8[::1], f8[::1], f8[:,:,::1], f8[:,::1], f8[:,::1],"
    " f8[:,::1], f8[::1], f8[:,::1])",
    allocates=True,
)
def _step(
    x,
    y,
    op,
    weight,
    parameters,
    starts,
    classes,
    class_numbers,
    all_numbers,
    counts,
    totals,
    exponent,
    out,
):
    n_classes = classes.size
    evidence = np.zeros(n_classes)
    probabilities = np.zeros(n_classes)
    for i in range(op.size):
        learn = (op[i] & 2) != 0 and weight[i] > 0.0
        seen = 0.0
        for k in range(n_classes):
            seen += classes[k]
        if seen > 0.0:
            _evidence(x[i], parameters, starts, classes, class_numbers, all_numbers, counts, totals, evidence)
            _posterior(evidence, exponent[0], classes, probabilities)
        if op[i] & 1:
            for k in range(n_classes):
                out[i, k] = probabilities[k] if seen > 0.0 else np.nan
        if not learn:
            continue
        label = np.int64(y[i])
        # The exponent first: its gradient belongs to what was known before this row.
        if classes[label] > 0.0:
            gradient = -evidence[label]
            for k in range(n_classes):
                if classes[k] > 0.0:
                    gradient += probabilities[k] * evidence[k]
            gradient = min(max(gradient, -10.0), 10.0)
            exponent[1] += gradient * gradient
            exponent[0] -= parameters[4] * gradient / math.sqrt(exponent[1])
            exponent[0] = min(max(exponent[0], 0.02), 2.0)
        for k in range(n_classes):
            classes[k] *= parameters[1]
        classes[label] += weight[i]
        for j in range(x.shape[1]):
            if np.isnan(x[i, j]):
                continue
            if starts[j + 1] > starts[j]:
                place = starts[j] + np.int64(x[i, j])
                for k in range(n_classes):
                    counts[k, place] *= parameters[0]
                    totals[k, j] *= SHARES_FADING_FACTOR
                counts[label, place] += weight[i]
                totals[label, j] += weight[i]
            else:
                value = min(max(x[i, j], -LARGEST), LARGEST)
                _follow(class_numbers[label, j], value, weight[i], parameters[0])
                _follow(all_numbers[j], value, weight[i], parameters[0])
