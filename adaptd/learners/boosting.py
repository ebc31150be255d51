"""Gradient boosted trees that are never finished: on a window of rows, the oldest tree is fitted anew.

*How*: the score of class k is F_k = base_k + effects_k(x) + sum_t values[t, leaf_t(x), k]; classes answer
with softmax(F), a number with F. Effects are what codes of categories and pairs of codes add
(`kernels/category_effects.py`); they are learned row by row and know what the window has forgotten. The last
rows lie in a window, with the scores that the trees give them and the effects as they were before each row's
own label. Without a category of many codes there are no effects. Every row earns
`work`; as soon as that pays for a pass over the window, the oldest tree is taken out of the scores and
another is fitted to the gradients that are left: split along one random direction of the gradients, and in
its leaves a Newton step -rate G_k / (H_k + ridge) for every class at once. Small windows are cheap, so after
a start or a drift trees change every few rows.

Between two fits, copies of the leaves' answers follow the labels: copy c moves by rates[c] / trees times the
row's gradient in each leaf the row fell into. The copies, and the trees as fitted, answer as a fixed-share
mixture. ADWIN on the mixture's error finds drift and cuts the window to the rows since.

Numbers lie in quantile bins, found again every `REBIN_ROWS` rows. Categories are put in the order of their
mean gradient, anew for each tree; where codes are many, by rows that the tree is not fitted to. Missing
values go to the side that gains more. For numbers the loss is Huber's, with its bend at `reach` times the
fading mean error.

*Use it when* features are a table of numbers and categories, and rules or interactions tell the label.
*Do not use it when* neighbourhoods in many equal dimensions tell it (knn), or when only a few microseconds
a row are to spare.

*Cost*: a row takes about `work` times 0.7 ns plus 30 ns a tree. `state_bytes_max` bounds the window, whose
rows take 18 bytes a feature and 8 a class; trees take 8 bytes x trees x leaves x copies x classes more.

*Example*: `tests/test_boosting.py` shows accuracies on a rule, under drift, with 300 codes, with outliers.

*Reference*: J. Friedman, "Stochastic gradient boosting" (2002); N. Gunasekara et al., "Gradient boosted
trees for evolving data streams", Machine Learning 113 (2024), for boosting on streams, done otherwise here.
"""

import math
from typing import Annotated

import msgspec
import numpy as np

from adaptd.contracts import CATEGORY, LEARN, PREDICT, Bytes, Floats, Layout, State, Vitals
from adaptd.kernels import boosting as trees
from adaptd.kernels.adwin import ADWIN_SIZE, WIDTH, adwin_add
from adaptd.kernels.boosting import CHILD, FEATURE, RECORD_SIZE, bin_row, find_each_leaf, probabilities
from adaptd.kernels.category_effects import (
    active_slots,
    add_effects,
    doubt,
    find_active,
    learn_effects,
    moved,
    plan_effects,
)
from adaptd.kernels.compile import kernel, subkernel
from adaptd.kernels.random import generator
from adaptd.numerics import enlarged, pack, total_bytes, unpack

TASKS = ("classification", "regression")
MUTABLE = ("ridge", "hessian_min", "gain_min", "smoothing", "one_class", "drift_delta")

OnlineRate = Annotated[float, msgspec.Meta(gt=0, le=100)]


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    trees: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 60
    """Trees that answer together."""
    leaves: Annotated[int, msgspec.Meta(ge=2, le=256)] = 16
    """Leaves a tree, at most."""
    rate: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    """How far a tree goes towards its rows' labels; 0: 0.1 for classes, 0.3 for a number."""
    online_rates: tuple[OnlineRate, ...] = (0.1, 0.5, 2.0, 6.0)
    """Rates of the copies that follow the labels row by row."""
    window: Annotated[int, msgspec.Meta(ge=100, le=1_000_000)] = 16384
    """Rows that trees are fitted to, at most."""
    work: Annotated[float, msgspec.Meta(gt=0)] = 10000.0
    """What fitting may cost a row, in touched histogram cells."""
    subsample: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.6
    """Share of the window that a tree is fitted to."""
    max_features: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.75
    """Share of the features that a tree may split on."""
    features_max: Annotated[int, msgspec.Meta(ge=1)] = 24
    """The same, as a number."""
    bins: Annotated[int, msgspec.Meta(ge=2, le=255)] = 64
    """Bins of a feature."""
    ridge: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    """Added to a leaf's curvature: its answer shrinks."""
    hessian_min: Annotated[float, msgspec.Meta(gt=0)] = 2.0
    """Least curvature of a leaf; for a number this is rows."""
    gain_min: Annotated[float, msgspec.Meta(ge=0)] = 4.0
    """Least gain of a split, in variances of the gradient: splits of noise gain about one."""
    smoothing: Annotated[float, msgspec.Meta(ge=0)] = 10.0
    """Curvature of the overall mean that is mixed into a category's."""
    one_class: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5
    """Share of the trees that are split for one class; the others for a random mixture of classes."""
    reach: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    """Residual beyond which a number's loss goes on as a straight line, in fading mean errors."""
    drift_delta: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 1e-5
    """Confidence of ADWIN for cutting the window; 0: it is never cut."""
    state_bytes_max: Annotated[int, msgspec.Meta(ge=1_000_000)] = 10_000_000
    """Bound on the bytes of the window; it gets shorter for it, down to `SHORTEST` rows."""


# Rows that the window starts with; it doubles from there.
FIRST_ROWS = 32
SHORTEST = 1000
REBIN_ROWS = 2048
# Rows that bins are found from, and bytes that the ranks of categories may take.
SAMPLE_ROWS = 4096
RANK_BYTES = 4_000_000
CODES_MAX = 1024
# Fewer rows are not worth a tree; a drift leaves that many.
FIT_ROWS = 10
ROWS_KEPT = 20
# A row's leaves lie that much further than a power of two apart: else all want one place in the cache.
APART = 64
# Larger targets overflow when squared.
LARGEST = 1e100
# Part of the shares that is handed round on each row, and the least likelihood that a copy is judged by.
SHARE = 0.01
UNLIKELY = 0.005
# A number's mean error takes a row in with this step, and no row counts more than FAR times that mean.
ERROR_STEP = 0.005
FAR = 20.0

LEARNED, IN_WINDOW, NEXT_TREE, PLANTED, REBIN_AT, FIT_DUE, DRIFTS, FITTED = range(8)
N_COUNTERS = 8
# Entries of `moving`: work earned, the mean error, a number's mean, least and greatest.
EARNED, ERROR, MEAN, LEAST, GREATEST = range(5)
N_MOVING = 5
# Entries of the options behind those of the fitting kernels; REACH in residuals, 0 for classes.
REACH, WORK, DRIFT_DELTA, ROWS_MAX, FIT_CELLS, TREE_CELLS = range(trees.OWN, trees.OWN + 6)
N_OPTIONS = trees.OWN + 6


def build(config: Config, layout: Layout, seed: int) -> "Boosting":
    return Boosting(config, layout, seed)


@subkernel
def log_prior(counts, base):
    """The logarithms of the classes' fading frequencies."""
    total = 0.0
    for k in range(counts.shape[0]):
        total += counts[k] + 0.5
    for k in range(counts.shape[0]):
        base[k] = math.log((counts[k] + 0.5) / total)


@subkernel
def share_out(shares, likelihoods):
    """One row of the fixed-share mixture."""
    total = 0.0
    for c in range(shares.shape[0]):
        shares[c] *= likelihoods[c]
        total += shares[c]
    for c in range(shares.shape[0]):
        shares[c] = (1.0 - SHARE) * shares[c] / total + SHARE / shares.shape[0]


@kernel(
    "i8(f8[:,::1], f8[::1], u1[::1], f8[::1], f8[:,::1], i8, f8[:,::1], u2[:,::1], f8[::1], f8[::1],"
    "f8[:,::1], f8[:,::1], i8[:,::1], f8[:,:,::1], f8[:,:,::1], u1[:,:,::1], u1[:,::1], f8[::1], f8[::1],"
    "f8[::1], f8[::1], i8[::1], f8[::1], f8[::1], f8[::1], u4[::1], u4[::1], f8[:,::1], i8[::1],"
    "i8[::1], i8[::1], f8[:,::1], f8[::1])"
)
def walk(
    x,
    y,
    op,
    weight,
    out,
    start,
    rows,
    bins,
    targets,
    weights,
    scores,
    edges,
    plan,
    nodes,
    values,
    ranks,
    leaf_of,
    counts,
    base,
    shares,
    adwin,
    counters,
    moving,
    options,
    rates,
    found,
    pending,
    work,
    categories,
    effects_plan,
    active,
    effects,
    spreads,
):
    """Walk from row `start`. Gives the row where it stopped: the number of rows, or a row before which a tree
    is to be fitted or the bins are to be found again.

    found: scratch, the leaf of each tree; pending: scratch alike. work: scratch [5, copies x scores].
    """
    n_scores = scores.shape[1]
    n_copies = shares.shape[0]
    capacity = rows.shape[0]
    is_number = options[REACH] > 0.0
    sums, chances, blend, likelihoods, slopes = work[0], work[1], work[2], work[3], work[4]
    answer = 0.0
    for i in range(start, x.shape[0]):
        learns = (op[i] & LEARN) != 0 and weight[i] > 0.0 and math.isfinite(y[i])
        if counters[FIT_DUE] > 0 or (learns and counters[LEARNED] == counters[REBIN_AT]):
            return i
        planted = counters[PLANTED]
        for m in range(n_scores):
            sums[m] = 0.0
        find_active(x, i, categories, effects_plan, active)
        add_effects(active, effects, sums)
        for m in range(n_scores, values.shape[2]):
            sums[m] = sums[m - n_scores]
        find_each_leaf(nodes, ranks, plan, planted, x, i, found, pending)
        for t in range(planted):
            for m in range(values.shape[2]):
                sums[m] += values[t, found[t], m]
        is_known = counters[LEARNED] > 0
        if is_number:
            answer = moving[MEAN]
            for c in range(n_copies):
                answer += shares[c] * sums[c]
            answer = min(max(answer, moving[LEAST]), moving[GREATEST])
            if (op[i] & PREDICT) != 0:
                out[i, 0] = answer if is_known else math.nan
        else:
            log_prior(counts, base)
            for k in range(n_scores):
                blend[k] = 0.0
            for c in range(n_copies):
                probabilities(sums, c * n_scores, base, chances)
                for k in range(n_scores):
                    blend[k] += shares[c] * chances[c * n_scores + k]
            if (op[i] & PREDICT) != 0:
                for k in range(n_scores):
                    out[i, k] = blend[k] if is_known else math.nan
        if not learns:
            continue

        target = min(max(y[i], -LARGEST), LARGEST)
        place = counters[LEARNED] % capacity
        for f in range(x.shape[1]):
            rows[place, f] = x[i, f]
        bin_row(x, i, edges, plan, ranks.shape[2] - 1, bins, place)
        targets[place] = target
        weights[place] = weight[i]
        for k in range(n_scores):
            scores[place, k] = sums[k]
        for t in range(planted):
            leaf_of[t, place] = found[t]
        counters[LEARNED] += 1
        counters[IN_WINDOW] = min(counters[IN_WINDOW] + 1, capacity)

        signal = 0.0
        label = 0
        if is_number:
            usual = moving[ERROR]
            error = abs(target - answer)
            signal = error / (error + usual) if error + usual > 0.0 else 0.0
            for c in range(n_copies):
                away = abs(target - moving[MEAN] - sums[c])
                likelihoods[c] = math.exp(-min(away / usual, FAR)) if usual > 0.0 else 1.0
        else:
            label = int(target)
            best = 0
            for k in range(1, n_scores):
                if blend[k] > blend[best]:
                    best = k
            signal = 0.0 if best == label else 1.0
            for c in range(n_copies):
                likelihoods[c] = max(chances[c * n_scores + label], UNLIKELY)
        share_out(shares, likelihoods)

        curvature = 1.0
        if is_number:
            reach = options[REACH] * moving[ERROR]
            slopes[0] = min(max(answer - target, -reach), reach)
        else:
            curvature = 0.0
            for k in range(n_scores):
                slopes[k] = blend[k] - (1.0 if k == label else 0.0)
                curvature += blend[k] * (1.0 - blend[k]) / max(n_scores - 1, 1)
        learn_effects(active, effects_plan, effects, spreads, slopes, curvature, min(weight[i], 1.0))

        # Copy 0 stays as it was fitted.
        for m in range(n_scores, values.shape[2]):
            c = m // n_scores
            if is_number:
                reach = options[REACH] * moving[ERROR]
                slope = min(max(sums[m] + moving[MEAN] - target, -reach), reach)
            else:
                slope = chances[m] - (1.0 if m - c * n_scores == label else 0.0)
            move = rates[c] * min(weight[i], 1.0) * slope / max(planted, 1)
            for t in range(planted):
                values[t, found[t], m] -= move

        n_learned = counters[LEARNED]
        if is_number:
            if n_learned == 1:
                moving[MEAN] = moving[LEAST] = moving[GREATEST] = target
            else:
                # One absurd target must not decide what is usual; a true change of scale gets through in
                # some rows, as each multiplies the mean error.
                far = FAR * moving[ERROR] if n_learned > FIT_ROWS and moving[ERROR] > 0.0 else math.inf
                near = min(max(target, moving[MEAN] - far), moving[MEAN] + far)
                moving[LEAST] = min(moving[LEAST], near)
                moving[GREATEST] = max(moving[GREATEST], near)
                moving[MEAN] += max(1.0 / n_learned, 1.0 / options[ROWS_MAX]) * (near - moving[MEAN])
                error = min(abs(target - answer), far)
                moving[ERROR] += max(1.0 / n_learned, ERROR_STEP) * (error - moving[ERROR])
        else:
            for k in range(n_scores):
                counts[k] *= 1.0 - 1.0 / options[ROWS_MAX]
            counts[label] += 1.0

        if options[DRIFT_DELTA] > 0.0 and adwin_add(adwin, signal, options[DRIFT_DELTA]) > 0:
            counters[DRIFTS] += 1
            counters[IN_WINDOW] = min(counters[IN_WINDOW], max(ROWS_KEPT, int(adwin[WIDTH])))
            doubt(effects_plan, spreads)
        moving[EARNED] += options[WORK]
        cost = counters[IN_WINDOW] * options[FIT_CELLS] + options[TREE_CELLS]
        if counters[IN_WINDOW] >= FIT_ROWS and moving[EARNED] >= cost:
            # What a fit after a drift leaves over would else be saved up for later.
            moving[EARNED] = min(moving[EARNED] - cost, cost)
            counters[FIT_DUE] = 1
    return x.shape[0]


class Boosting:
    _STATE = (
        "rate_scale", "rows", "targets", "weights", "scores", "edges", "plan", "nodes", "values", "ranks",
        "effects", "spreads", "counts", "shares", "adwin", "counters", "moving", "random",
    )  # fmt: skip

    def __init__(self, config: Config, layout: Layout, seed: int) -> None:
        self.rate_scale = 1.0
        self._config = config
        n_copies = 1 + len(config.online_rates)
        n_scores = max(1, layout.width)
        self.rows = np.zeros((FIRST_ROWS, layout.n_features))
        self.targets = np.zeros(FIRST_ROWS)
        self.weights = np.zeros(FIRST_ROWS)
        self.scores = np.zeros((FIRST_ROWS, n_scores))
        self.edges = np.zeros((layout.n_features, config.bins))
        self.plan = np.zeros((0, 2), dtype=np.int64)
        self.nodes = np.zeros((config.trees, 2 * config.leaves, 4))
        # No tree yet: a leaf without a number.
        self.nodes[:, :, [FEATURE, CHILD]] = -1.0
        self.values = np.zeros((config.trees, config.leaves, n_copies * n_scores))
        self.ranks = np.zeros((config.trees, 0, 2), dtype=np.uint8)
        self.effects, self.spreads = np.zeros((0, n_scores)), np.zeros(0)
        self._effects_plan = plan_effects(Layout(layout.task), CODES_MAX)
        self.counts = np.zeros(n_scores)
        self.shares = np.full(n_copies, 1.0 / n_copies)
        self.adwin = np.zeros(ADWIN_SIZE)
        self.counters = np.zeros(N_COUNTERS, dtype=np.int64)
        self.counters[REBIN_AT] = FIRST_ROWS
        self.moving = np.zeros(N_MOVING)
        self.random = generator(seed)
        self._set_layout(layout)

    def _set_layout(self, layout: Layout) -> None:
        """What follows from the layout: the plan of features, the ranks' shape, options, scratch."""
        c = self._config
        self._layout = layout
        n_features, n_scores = layout.n_features, max(1, layout.width)
        is_category = np.array([kind == CATEGORY for kind in layout.kinds], dtype=bool)
        plan = np.ones((n_features, 2), dtype=np.int64)
        plan[: len(self.plan)] = self.plan
        plan[is_category, trees.BINS] = c.bins
        plan[:, trees.PLACE] = np.where(is_category, np.cumsum(is_category) - 1, -1)
        self.plan = plan
        n_categories = int(is_category.sum())
        affordable = max(16, RANK_BYTES // (c.trees * max(1, n_categories)))
        n_codes = min(CODES_MAX, affordable, max((1, *layout.capacities)))
        if n_codes + 1 < self.ranks.shape[2]:
            # Codes share places otherwise than the trees know them: unknown until the next trees.
            self.ranks = np.zeros((c.trees, n_categories, n_codes + 1), dtype=np.uint8)
        self.ranks = enlarged(self.ranks, (c.trees, n_categories, n_codes + 1))
        effects_plan = plan_effects(layout, CODES_MAX)
        self.effects, self.spreads = moved(
            self.effects, self.spreads, self._effects_plan, effects_plan, n_scores
        )
        self._effects_plan, self._active = effects_plan, active_slots(effects_plan)
        has_effects = len(self.spreads) > 0
        self._categories = np.flatnonzero(is_category & has_effects)

        row_bytes = 18 * n_features + 8 * n_scores + 16
        self._rows_max = int(min(c.window, max(SHORTEST, c.state_bytes_max // row_bytes)))
        wanted = max(1, min(round(c.max_features * n_features), c.features_max, n_features))
        n_drawn = min(wanted, n_features)
        self._is_number = layout.task == "regression"
        options = np.zeros(N_OPTIONS)
        options[trees.RATE] = c.rate or (0.3 if self._is_number else 0.1)
        options[trees.RIDGE], options[trees.SMOOTHING] = c.ridge, c.smoothing
        options[trees.HESSIAN_MIN], options[trees.GAIN_MIN] = c.hessian_min, c.gain_min
        options[trees.SUBSAMPLE], options[trees.ONE_CLASS] = c.subsample, c.one_class
        options[trees.OTHERS] = has_effects
        options[REACH] = c.reach if self._is_number else 0.0
        options[WORK], options[DRIFT_DELTA], options[ROWS_MAX] = c.work, c.drift_delta, self._rows_max
        # Each level of a tree reads about half of the rows; scores are brought up to date for all.
        options[FIT_CELLS] = 20.0 + c.subsample * (4.0 * n_drawn + 10.0 * n_scores)
        options[TREE_CELLS] = 2.0 * c.leaves * n_drawn * c.bins
        self._options = options
        self._fit_options = options.copy()
        self._rates = np.array([0.0, *c.online_rates])
        self._features = np.zeros(n_drawn, dtype=np.int64)
        self._histograms = np.zeros((c.leaves, n_drawn, c.bins + 1, 2))
        self._records = np.zeros((c.leaves, RECORD_SIZE))
        self._totals = np.zeros((n_codes + 1, 2))
        # Unsigned, as are the rows in order: of a signed index it is asked whether it counts from the end.
        self._found = np.zeros(c.trees, dtype=np.uint32)
        self._pending = np.zeros(c.trees, dtype=np.uint32)
        self._base = np.zeros(n_scores)
        self._directions = np.zeros((2, n_scores))
        self._work = np.zeros((5, len(self.shares) * n_scores))
        self._set_rows()
        self._forget_leaves()

    def _set_rows(self) -> None:
        """Scratch that has a place a row; the rows' bins, which follow from the edges, wait until it learns.

        A frozen concept comes and goes without.
        """
        n, n_scores = self.scores.shape
        self._order = np.zeros(n, dtype=np.uint32)
        self._spare = np.zeros(max(n, self.ranks.shape[2]), dtype=np.uint32)
        self._gradients, self._near = np.zeros((n, 2)), np.zeros((n, 2))
        self._slopes = np.zeros((n, n_scores))
        self._bins = np.zeros(self.rows.shape[::-1], dtype=np.uint16)
        self._has_bins = False

    def _forget_leaves(self) -> None:
        """Which leaf of each tree each row fell into follows from the rows and trees, so it is no state.

        For all trees at once it is the larger part of a load; it is found again when a tree is replaced.
        """
        self._leaf_of = np.zeros((self._config.trees, len(self.rows) + APART), dtype=np.uint8)
        self._has_leaves = np.zeros(self._config.trees, dtype=bool)

    def step(self, x: Floats, y: Floats, op: Bytes, weight: Floats, out: Floats) -> None:
        start, learns = 0, bool((op & LEARN).any())
        while True:
            if learns and not self._has_bins:
                first, n = self._window()
                trees.bin_rows(
                    self.rows, first, n, self.edges, self.plan, self.ranks.shape[2] - 1, self._bins
                )
                self._has_bins = True
            start = walk(
                x, y, op, weight, out, start, self.rows, self._bins, self.targets, self.weights, self.scores,
                self.edges, self.plan, self.nodes, self.values, self.ranks, self._leaf_of, self.counts,
                self._base, self.shares, self.adwin, self.counters, self.moving, self._options, self._rates,
                self._found, self._pending, self._work, self._categories, self._effects_plan, self._active,
                self.effects, self.spreads,
            )  # fmt: skip
            if start == len(x):
                return
            if self.counters[FIT_DUE]:
                self._fit_tree()
            else:
                self._find_bins()

    def _window(self) -> tuple[int, int]:
        """The number of the first row in the window, and how many there are."""
        n = int(self.counters[IN_WINDOW])
        return int(self.counters[LEARNED]) - n, n

    def _fit_tree(self) -> None:
        """Replace the oldest tree, or plant one more."""
        self.counters[FIT_DUE] = 0
        tree = int(self.counters[NEXT_TREE])
        first, n = self._window()
        if self._is_number:
            self._base[0] = self.moving[MEAN]
            # Where the error is 0 there is nothing to bend, but 0 would mean classes.
            self._fit_options[REACH] = max(self._options[REACH] * self.moving[ERROR], 1e-300)
        else:
            self._base[:] = np.log((self.counts + 0.5) / (self.counts + 0.5).sum())
        if not self._has_leaves[tree]:
            trees.find_leaves(tree, self.rows, first, n, self.nodes, self.ranks, self.plan, self._leaf_of)
            self._has_leaves[tree] = True
        drawn = trees.draw(
            tree, first, n, self.targets, self.weights, self.scores, self.nodes, self.values, self._leaf_of,
            self._base, self._fit_options, self.random, self._order, self._spare, self._slopes,
            self._gradients, self._directions, len(self.plan), self._features,
        )  # fmt: skip
        leaves = trees.grow(
            tree, self.nodes, self.ranks, self._order, self._spare, drawn, n, self._bins, self.edges,
            self.plan, self._gradients, self._near, self._features, self._histograms, self._records,
            self._totals, self._fit_options,
        )  # fmt: skip
        trees.settle(
            tree, leaves, self.targets, self.weights, self.scores, self.values, self._leaf_of,
            self._fit_options, self._order, self._slopes, self._records, self._directions,
        )  # fmt: skip
        self.counters[NEXT_TREE] = (tree + 1) % self._config.trees
        self.counters[PLANTED] = max(self.counters[PLANTED], tree + 1)
        self.counters[FITTED] += 1

    def _find_bins(self) -> None:
        """Enlarge a window that is full and may grow; then find the numbers' bins from its latest rows."""
        learned, n = int(self.counters[LEARNED]), len(self.rows)
        if learned == n < self._rows_max:
            n = min(2 * n, self._rows_max)
            self.rows = enlarged(self.rows, (n, self.rows.shape[1]))
            self.scores = enlarged(self.scores, (n, self.scores.shape[1]))
            self.targets = enlarged(self.targets, (n,))
            self._leaf_of = enlarged(self._leaf_of, (len(self._leaf_of), n + APART))
            self.weights = enlarged(self.weights, (n,))
        latest = np.arange(max(0, learned - min(int(self.counters[IN_WINDOW]), SAMPLE_ROWS)), learned)
        sample = self.rows[latest % n]
        for f in np.flatnonzero(self.plan[:, trees.PLACE] < 0):
            values = np.sort(sample[~np.isnan(sample[:, f]), f])
            edges = find_edges(values, self._config.bins)
            self.plan[f, trees.BINS] = len(edges) + 1
            self.edges[f, : len(edges)] = edges
        self._set_rows()
        until = n if n < self._rows_max else learned + REBIN_ROWS
        self.counters[REBIN_AT] = min(until, learned + REBIN_ROWS)

    def grow(self, layout: Layout) -> None:
        n, old = self.scores.shape
        n_scores = max(1, layout.width)
        self.rows = enlarged(self.rows, (n, layout.n_features), np.nan)
        self.edges = enlarged(self.edges, (layout.n_features, self._config.bins))
        self.scores = enlarged(self.scores, (n, n_scores))
        self.counts = enlarged(self.counts, (n_scores,))
        shape = (*self.values.shape[:2], len(self.shares))
        values = enlarged(self.values.reshape(*shape, old), (*shape, n_scores))
        self.values = values.reshape(*self.values.shape[:2], -1)
        self._set_layout(layout)

    def state(self) -> State:
        return pack(self, self._STATE)

    def load_state(self, state: State) -> None:
        unpack(self, self._STATE, state)
        self._set_rows()
        self._forget_leaves()

    def vitals(self) -> Vitals:
        arrays = [getattr(self, name) for name in self._STATE[1:]]
        # No learning rate: the controller's boosts do not reach how far trees go.
        return Vitals(
            state_bytes=total_bytes(*arrays, self._bins),
            details={
                "trees_fitted": float(self.counters[FITTED]),
                "drifts": float(self.counters[DRIFTS]),
                "window_rows": float(self.counters[IN_WINDOW]),
                "rate": float(self._options[trees.RATE]),
                "online_rate": float(self.shares @ self._rates),
            },
        )


def find_edges(values: Floats, bins: int) -> Floats:
    """Where one bin ends and the next begins: between all distinct values when they are few, else quantiles.

    values: sorted, none missing.
    """
    distinct = np.unique(values)
    if len(distinct) <= bins:
        return distinct[:-1] / 2 + distinct[1:] / 2
    at = np.arange(1, bins) * len(values) // bins
    return np.unique(values[at - 1] / 2 + values[at] / 2)
