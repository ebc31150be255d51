"""Gradient boosted trees over a window of recent rows: one tree after the other is fitted anew."""

import math
from typing import Annotated

import msgspec
import numpy as np

from adaptd.contracts import CATEGORY, LEARN, PREDICT, Bytes, Floats, Layout, State, Vitals
from adaptd.kernels import boosting as trees
from adaptd.kernels.adwin import ADWIN_SIZE, WIDTH, adwin_add
from adaptd.kernels.boosting import (
    CHILD,
    CODES_MAX,
    COUNT,
    DELTA,
    FOCUS,
    N_RECORD,
    RATE,
    REACH,
    RIDGE,
    START,
    SUBSAMPLE,
    WORK,
    bin_row,
    choose_features,
    draw_direction,
    draw_rows,
    find_leaf,
    grow_tree,
)
from adaptd.kernels.compile import kernel, subkernel
from adaptd.kernels.random import generator
from adaptd.numerics import enlarged, pack, total_bytes, unpack

TASKS = ("classification", "regression")


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    trees: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 60
    leaves: Annotated[int, msgspec.Meta(ge=2, le=256)] = 16
    rate: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    ridge: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    least_hessian: Annotated[float, msgspec.Meta(gt=0)] = 2.0
    max_features: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.75
    features_max: Annotated[int, msgspec.Meta(ge=1)] = 24
    subsample: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.6
    bins: Annotated[int, msgspec.Meta(ge=4, le=1000)] = 64
    window: Annotated[int, msgspec.Meta(ge=100)] = 16384
    online_rates: tuple[float, ...] = (0.1, 0.5, 2.0, 6.0)
    work: Annotated[float, msgspec.Meta(gt=0)] = 10000.0
    delta: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 1e-5
    reach: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    smooth: float = 10.0
    focus: float = 0.5
    gamma: float = 4.0
    state_bytes_max: Annotated[int, msgspec.Meta(ge=1_000_000)] = 12_000_000


FIRST_ROWS = 32
# Counters.
LEARNED, IN_WINDOW, NEXT_TREE, PLANTED, REBIN_AT, DRIFTS, FITTED = range(7)
# Moving numbers.
CREDIT, USUAL = range(2)
LARGEST = 1e100
SHARE = 0.01
SURE = 0.005


def build(config: Config, layout: Layout, seed: int) -> "Boosting":
    return Boosting(config, layout, seed)


@subkernel
def probabilities(scores, base, out):
    """Softmax of scores + base into out."""
    top = -math.inf
    for k in range(scores.shape[0]):
        top = max(top, scores[k] + base[k])
    total = 0.0
    for k in range(scores.shape[0]):
        out[k] = math.exp(scores[k] + base[k] - top)
        total += out[k]
    for k in range(scores.shape[0]):
        out[k] /= total


@subkernel
def log_prior(counts, base):
    total = 0.0
    K = counts.shape[0]
    for k in range(K):
        total += counts[k] + 0.5
    for k in range(K):
        base[k] = math.log((counts[k] + 0.5) / total)


@subkernel
def fit_tree(
    t,
    first,
    n,
    rows,
    bins,
    targets,
    weights,
    scores,
    nodes,
    values,
    ranks,
    edges,
    plan,
    base,
    regression,
    reach,
    random,
    options,
    order,
    spare,
    gradients,
    slopes,
    features,
    histograms,
    records,
    direction,
    strength,
    totals,
    p,
):
    capacity = rows.shape[0]
    K = scores.shape[1]
    C = values.shape[2] // K
    L = values.shape[1]
    # take the old tree out
    if nodes[t, 0, CHILD] >= 0.0:
        for i in range(n):
            row = (first + i) % capacity
            leaf = find_leaf(nodes[t], ranks[t], plan, rows[row])
            for k in range(K):
                scores[row, k] -= values[t, leaf, k]
    # gradients of all
    drawn = draw_rows(order, first, n, capacity, options[SUBSAMPLE], random)
    for k in range(K):
        strength[k] = 1e-9
    for i in range(drawn):
        row = order[i]
        if regression:
            residual = scores[row, 0] + base[0] - targets[row]
            slopes[row, 0] = min(max(residual, -reach), reach)
        else:
            probabilities(scores[row], base, slopes[row])
            slopes[row, int(targets[row])] -= 1.0
            for k in range(K):
                strength[k] += abs(slopes[row, k])
    draw_direction(direction, strength, options[FOCUS], random)
    for i in range(drawn):
        row = order[i]
        g = 0.0
        h = 1.0
        if regression:
            g = slopes[row, 0]
        else:
            target = int(targets[row])
            square = 0.0
            mean = 0.0
            for k in range(K):
                q = slopes[row, k] + (1.0 if k == target else 0.0)
                g += slopes[row, k] * direction[k]
                mean += q * direction[k]
                square += q * direction[k] * direction[k]
            h = max(square - mean * mean, 1e-6)
        gradients[row, 0] = weights[row] * g
        gradients[row, 1] = weights[row] * h
    chosen = choose_features(features, plan.shape[0], random)
    for s in range(chosen):
        place = plan[features[s], 1]
        if place < 0:
            continue
        n_codes = ranks.shape[2] - 1
        for c in range(n_codes + 1):
            totals[c, 0] = 0.0
            totals[c, 1] = 0.0
        for i in range(drawn):
            row = order[i]
            c = int(bins[row, features[s]])
            totals[c, 0] += gradients[row, 0]
            totals[c, 1] += gradients[row, 1]
        trees.rank_codes(ranks[t, place], plan[features[s], 0], n_codes, totals, spare, options[trees.SMOOTH])
    leaves = grow_tree(
        nodes[t],
        ranks[t],
        order,
        spare,
        drawn,
        bins,
        edges,
        plan,
        gradients,
        features,
        chosen,
        histograms,
        records,
        options,
    )
    for leaf in range(leaves):
        start, count = int(records[leaf, START]), int(records[leaf, COUNT])
        for k in range(K):
            G = H = 0.0
            for i in range(start, start + count):
                row = order[i]
                G += weights[row] * slopes[row, k]
                if regression:
                    H += weights[row]
                else:
                    q = slopes[row, k] + (1.0 if k == int(targets[row]) else 0.0)
                    H += weights[row] * q * (1.0 - q)
            step = -options[RATE] * G / (H + options[RIDGE])
            if not regression:
                step = min(max(step * (K - 1.0) / K, -1.0), 1.0)
            for c in range(C):
                values[t, leaf, c * K + k] = step
    for i in range(n):
        row = (first + i) % capacity
        leaf = find_leaf(nodes[t], ranks[t], plan, rows[row])
        for k in range(K):
            scores[row, k] += values[t, leaf, k]


@kernel(
    "i8(f8[:,::1], f8[::1], u1[::1], f8[::1], f8[:,::1], i8, f8[:,::1], u2[:,::1], f8[::1], f8[::1], f8[:,::1],"
    "f8[:,::1], i8[:,::1], f8[:,:,::1], f8[:,:,::1], u2[:,:,::1], f8[::1], f8[::1], f8[::1], i8[::1], f8[::1],"
    "u8[::1], f8[::1], f8[::1], f8[::1], b1, i8, i4[::1], i4[::1], f8[:,::1], f8[:,::1], i8[::1], f8[:,:,:,::1], f8[:,::1], f8[:,::1])"
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
    counts,
    shares,
    window,
    counters,
    moving,
    random,
    options,
    rates,
    limits,
    regression,
    max_rows,
    order,
    spare,
    gradients,
    slopes,
    features,
    histograms,
    records,
    work,
):
    T = nodes.shape[0]
    K = scores.shape[1]
    C = values.shape[2] // K
    M = C * K
    capacity = rows.shape[0]
    sums, base, p, direction, strength = work[0], work[1][:K], work[2], work[3][:K], work[4][:K]
    found = spare
    totals = work[5 : 5 + 2].reshape((work.shape[1], 2))
    for i in range(start, x.shape[0]):
        learns = (op[i] & LEARN) != 0 and weight[i] > 0.0 and math.isfinite(y[i])
        if learns and counters[LEARNED] == counters[REBIN_AT]:
            return i
        planted = counters[PLANTED]
        for m in range(M):
            sums[m] = 0.0
        for t in range(planted):
            leaf = find_leaf(nodes[t], ranks[t], plan, x[i])
            found[t] = leaf
            for m in range(M):
                sums[m] += values[t, leaf, m]
        known = counters[LEARNED] > 0
        if regression:
            base[0] = counts[0]
            answer = 0.0
            for c in range(C):
                answer += shares[c] * sums[c]
            answer = min(max(answer + base[0], limits[0]), limits[1])
            if (op[i] & PREDICT) != 0:
                out[i, 0] = answer if known else math.nan
        else:
            log_prior(counts, base)
            for k in range(K):
                work[7, k] = 0.0
            for c in range(C):
                probabilities(sums[c * K : c * K + K], base, p[c * K : c * K + K])
                for k in range(K):
                    work[7, k] += shares[c] * p[c * K + k]
            if (op[i] & PREDICT) != 0:
                for k in range(K):
                    out[i, k] = work[7, k] if known else math.nan
        if not learns:
            continue
        target = min(max(y[i], -LARGEST), LARGEST)
        label = 0 if regression else int(target)
        w = weight[i]
        # judge the copies
        total = 0.0
        signal = 0.0
        usual = moving[USUAL]
        if regression:
            error = abs(target - answer)
            for c in range(C):
                if usual > 0.0:
                    shares[c] *= math.exp(-min(abs(target - base[0] - sums[c]) / usual, 20.0))
                total += shares[c]
            signal = error / (error + usual) if error + usual > 0.0 else 0.0
        else:
            best = 0
            for c in range(C):
                shares[c] *= max(p[c * K + label], SURE)
                total += shares[c]
            for k in range(K):
                if work[7, k] > work[7, best]:
                    best = k
            signal = 0.0 if best == label else 1.0
        for c in range(C):
            shares[c] = (1.0 - SHARE) * shares[c] / total + SHARE / C
        # window
        position = counters[LEARNED] % capacity
        for f in range(x.shape[1]):
            rows[position, f] = x[i, f]
        bin_row(x[i], edges, plan, bins[position])
        targets[position] = target
        weights[position] = w
        for k in range(K):
            scores[position, k] = sums[k]
        # online
        reach = options[REACH] * usual
        for c in range(1, C):
            eta = rates[c] * min(w, 1.0) / max(planted, 1)
            for k in range(K):
                if regression:
                    g = min(max(sums[c] + base[0] - target, -reach), reach)
                else:
                    g = p[c * K + k] - (1.0 if k == label else 0.0)
                for t in range(planted):
                    values[t, found[t], c * K + k] -= eta * g
        counters[LEARNED] += 1
        n = counters[LEARNED]
        if regression:
            step = max(1.0 / n, 1.0 / max_rows)
            if n == 1:
                counts[0] = limits[0] = limits[1] = target
            else:
                far = 10.0 * usual if n > 10 else math.inf
                near = min(max(target, counts[0] - far), counts[0] + far) if usual > 0.0 else target
                counts[0] += step * (near - counts[0])
                limits[0] = min(limits[0], near)
                limits[1] = max(limits[1], near)
                moving[USUAL] += max(1.0 / n, 0.002) * (min(error, far) - usual)
        else:
            for k in range(K):
                counts[k] *= 1.0 - 1.0 / max_rows
            counts[label] += 1.0
        counters[IN_WINDOW] = min(counters[IN_WINDOW] + 1, capacity)
        if options[DELTA] > 0.0 and adwin_add(window, signal, options[DELTA]) > 0:
            counters[DRIFTS] += 1
            counters[IN_WINDOW] = min(counters[IN_WINDOW], max(20, int(window[WIDTH])))
        moving[CREDIT] += options[WORK]
        n = counters[IN_WINDOW]
        S = features.shape[0]
        cost = (
            n * (20.0 + options[SUBSAMPLE] * (4.0 * S + 10.0 * K))
            + 2.0 * records.shape[0] * S * edges.shape[1]
        )
        if n >= 10 and moving[CREDIT] >= cost:
            moving[CREDIT] = min(moving[CREDIT] - cost, cost)
            t = counters[NEXT_TREE]
            if regression:
                base[0] = counts[0]
            else:
                log_prior(counts, base)
            fit_tree(
                t,
                counters[LEARNED] - n,
                n,
                rows,
                bins,
                targets,
                weights,
                scores,
                nodes,
                values,
                ranks,
                edges,
                plan,
                base,
                regression,
                options[REACH] * moving[USUAL],
                random,
                options,
                order,
                spare,
                gradients,
                slopes,
                features,
                histograms,
                records,
                direction,
                strength,
                totals,
                p,
            )
            counters[NEXT_TREE] = (t + 1) % T
            counters[PLANTED] = max(counters[PLANTED], t + 1)
            counters[FITTED] += 1
    return x.shape[0]


class Boosting:
    _STATE = (
        "rate_scale",
        "rows",
        "bins",
        "targets",
        "weights",
        "scores",
        "edges",
        "plan",
        "nodes",
        "values",
        "ranks",
        "counts",
        "shares",
        "window",
        "counters",
        "moving",
        "random",
        "limits",
    )

    def __init__(self, config: Config, layout: Layout, seed: int) -> None:
        self.rate_scale = 1.0
        self._config = config
        self._layout = layout
        D = layout.n_features
        self.copies = 1 + len(config.online_rates)
        K = max(layout.width, 1)
        N = FIRST_ROWS
        self.rows = np.zeros((N, D))
        self.bins = np.zeros((N, D), np.uint16)
        self.targets = np.zeros(N)
        self.weights = np.zeros(N)
        self.scores = np.zeros((N, K))
        self.edges = np.zeros((D, config.bins))
        self.plan = np.zeros((D, 2), np.int64)
        self.nodes = np.zeros((config.trees, 2 * config.leaves, 4))
        self.nodes[:, :, 0] = self.nodes[:, :, 2] = -1.0
        self.values = np.zeros((config.trees, config.leaves, self.copies * K))
        self.ranks = np.zeros((config.trees, 0, 1), np.uint16)
        self.counts = np.zeros(K)
        self.shares = np.full(self.copies, 1.0 / self.copies)
        self.window = np.zeros(ADWIN_SIZE)
        self.counters = np.zeros(7, np.int64)
        self.counters[REBIN_AT] = FIRST_ROWS
        self.moving = np.zeros(2)
        self.random = generator(seed)
        self.limits = np.zeros(2)
        self._set_layout(layout)

    def _set_layout(self, layout):
        c = self._config
        self._layout = layout
        D, K = layout.n_features, max(layout.width, 1)
        n_cat = 0
        known = len(self.plan)
        plan = np.zeros((D, 2), np.int64)
        for f, kind in enumerate(layout.kinds):
            plan[f] = (c.bins if kind == CATEGORY else 1, n_cat if kind == CATEGORY else -1)
            if f < known and kind != CATEGORY:
                plan[f, 0] = max(1, self.plan[f, 0])
            n_cat += kind == CATEGORY
        self.plan = plan
        codes = min(CODES_MAX, max((0, *layout.capacities)))
        self.ranks = enlarged(self.ranks, (c.trees, n_cat, codes + 1))
        self.max_rows = int(min(c.window, max(1000, c.state_bytes_max // (10 * D + 8 * K + 24))))
        S = min(D, max(1, min(round(c.max_features * D), c.features_max))) if D else 0
        self.features = np.zeros(S, np.int64)
        self.histograms = np.zeros((c.leaves, S, c.bins + 1, 2))
        self.records = np.zeros((c.leaves, N_RECORD))
        self.work = np.zeros((8, max(self.copies * K, codes + 1, 8)))
        self._rates = np.array([0.0, *c.online_rates])
        self._options = np.array(
            [
                c.rate or (0.3 if layout.task == "regression" else 0.1),
                c.ridge,
                c.least_hessian,
                c.subsample,
                c.work,
                c.delta,
                c.reach,
                c.smooth,
                c.focus,
                c.gamma,
            ]
        )
        self._set_scratch()

    def _set_scratch(self):
        N, K = self.scores.shape
        n = max(N, CODES_MAX + 1, self._config.trees)
        self.order = np.zeros(n, np.int32)
        self.spare = np.zeros(n, np.int32)
        self.gradients = np.zeros((N, 2))
        self.slopes = np.zeros((N, K))

    def _rebin(self) -> None:
        learned = int(self.counters[LEARNED])
        N = len(self.rows)
        if learned == N and self.max_rows > N:
            n = min(2 * N, self.max_rows)
            for name in ("rows", "bins", "scores"):
                a = getattr(self, name)
                setattr(self, name, enlarged(a, (n, a.shape[1])))
            self.targets = enlarged(self.targets, (n,))
            self.weights = enlarged(self.weights, (n,))
            self._set_scratch()
        n = int(min(self.counters[IN_WINDOW], 4096))
        recent = np.arange(learned - n, learned) % len(self.rows)
        B = self._config.bins
        for f in range(len(self.plan)):
            if self.plan[f, 1] >= 0:
                continue
            column = self.rows[recent, f]
            column = np.sort(column[~np.isnan(column)])
            if not len(column):
                continue
            distinct = np.unique(column)
            if len(distinct) <= B:
                edges = distinct[:-1] / 2 + distinct[1:] / 2
            else:
                at = np.arange(1, B) * len(column) // B
                edges = np.unique(column[at - 1] / 2 + column[at] / 2)
            self.plan[f, 0] = len(edges) + 1
            self.edges[f, : len(edges)] = edges
        trees.bin_rows(self.rows, self.edges, self.plan, self.bins)
        # the next
        if len(self.rows) < self.max_rows:
            self.counters[REBIN_AT] = min(len(self.rows), learned + 2048)
        else:
            self.counters[REBIN_AT] = learned + 2048

    def step(self, x: Floats, y: Floats, op: Bytes, weight: Floats, out: Floats) -> None:
        start = 0
        while True:
            start = walk(
                x,
                y,
                op,
                weight,
                out,
                start,
                self.rows,
                self.bins,
                self.targets,
                self.weights,
                self.scores,
                self.edges,
                self.plan,
                self.nodes,
                self.values,
                self.ranks,
                self.counts,
                self.shares,
                self.window,
                self.counters,
                self.moving,
                self.random,
                self._options,
                self._rates,
                self.limits,
                self._layout.task == "regression",
                self.max_rows,
                self.order,
                self.spare,
                self.gradients,
                self.slopes,
                self.features,
                self.histograms,
                self.records,
                self.work,
            )
            if start == len(x):
                break
            self._rebin()

    def grow(self, layout: Layout) -> None:
        D, K, old = layout.n_features, max(layout.width, 1), self.scores.shape[1]
        N = len(self.rows)
        self.rows = enlarged(self.rows, (N, D), np.nan)
        self.bins = enlarged(self.bins, (N, D))
        self.edges = enlarged(self.edges, (D, self._config.bins))
        self.scores = enlarged(self.scores, (N, K))
        self.counts = enlarged(self.counts, (K,))
        shape = self.values.shape[:2]
        values = np.zeros((*shape, self.copies, K))
        values[..., :old] = self.values.reshape(*shape, self.copies, old)
        self.values = values.reshape(*shape, -1)
        self._set_layout(layout)

    def state(self) -> State:
        return pack(self, self._STATE)

    def load_state(self, state: State) -> None:
        unpack(self, self._STATE, state)
        self._set_scratch()

    def vitals(self) -> Vitals:
        return Vitals(
            state_bytes=total_bytes(*(getattr(self, n) for n in self._STATE[1:])),
            details={
                "drifts": float(self.counters[DRIFTS]),
                "trees_fitted": float(self.counters[FITTED]),
                "window_rows": float(self.counters[IN_WINDOW]),
                **{f"share{c}": float(s) for c, s in enumerate(self.shares)},
            },
        )
