"""Nearest neighbours with a short-term memory that finds its size and a long-term memory that agrees with it.

How: the short-term memory holds the last rows, at most `window`. The `neighbours` nearest of its newest 64,
128, 256, ... rows vote with 1 / distance, so do those of the long-term memory, and those of both together;
the votes are mixed by their fading likelihood. When the newest rows alone have been right more often than all
(fading accuracy, by `margin`), what is older leaves. A row that leaves goes into the long-term memory unless
it was contradicted: a row of another class came nearer to it than its own class reaches,

    d <= theta,    theta = greatest distance among the nearest rows that have the new row's class,

and by the same rule each new row takes what contradicts it out of the long-term memory. A long-term memory
that is full is halved: each row is merged with the nearest of its class among the next `MERGED_AMONG`.
Use it when: neighbours tell the class, and old concepts come back or hold on in parts of the space.
Do not use it when: most features mean nothing. `knn` mixes more numbers of neighbours.
Cost: O((window + long_term) D) a row, about 8 microseconds for 8 features; 12 (window + long_term) D bytes.
Reference: Losing, Hammer, Wersing, "KNN classifier with self adjusting memory for heterogeneous concept
drift" (ICDM 2016), with mixing in place of choosing, marks in place of cleaning, merging in place of k-means.
"""

import math
from typing import Annotated

import msgspec
import numpy as np

from adaptd.contracts import CATEGORY, Bytes, Floats, Layout, State, Vitals
from adaptd.kernels.compile import kernel, subkernel
from adaptd.kernels.neighbours import BLOCK, nearest, place_all, rescale, scaled_value
from adaptd.numerics import enlarged, pack, total_bytes, unpack

TASKS = ("classification",)

# The scales are computed anew after this many learned rows, and at each power of two before.
RESCALE_ROWS = 128
# Learned rows between two looks at the size of the short-term memory.
SIZE_ROWS = 64
MERGED_AMONG = 64
# Fading factors a row: of how well each voter did, of the accuracies that decide the size, of class weights.
VOTER_FADING, SIZE_FADING, CLASS_FADING = 0.98, 0.995, 0.999
UNLIKELY = 1e-3

# Entries of `counters`.
LEARNED, LONG_ROWS, CUTS = 0, 1, 2
N_COUNTERS = 3


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    window: Annotated[int, msgspec.Meta(ge=64, le=100_000)] = 4096
    """Rows that the short-term memory holds at most."""
    long_term: Annotated[int, msgspec.Meta(ge=64, le=100_000)] = 1600
    """Rows that the long-term memory holds at most."""
    neighbours: Annotated[int, msgspec.Meta(ge=1, le=100)] = 3
    """Rows that vote."""
    smoothing: Annotated[float, msgspec.Meta(gt=0.0, le=100.0)] = 0.05
    """Weight of the class frequencies beside the votes (which weigh 1)."""
    category_distance: Annotated[float, msgspec.Meta(ge=0.0, le=100.0)] = 8.0
    """Squared distance of two different categories."""
    scale_limit: Annotated[float, msgspec.Meta(gt=0.0, le=1e6)] = 3.0
    """Standard deviations from the mean at which a scaled value is cut."""
    margin: Annotated[float, msgspec.Meta(gt=0.0, lt=1.0)] = 0.05
    """How much more often right the newest rows must be for the older ones to leave."""


def build(config: Config, layout: Layout, seed: int) -> "SelfAdjustingMemory":
    return SelfAdjustingMemory(config, layout)


class SelfAdjustingMemory:
    """Both memories keep rows as they came; the scaled copies that distances are taken of are no state."""

    _NAMES = (
        "rate_scale", "_rows", "_labels", "_weights", "_present", "_contradicted", "_long_rows",
        "_long_labels", "_long_weights", "_counters", "_scales", "_classes", "_voters", "_accuracies",
    )  # fmt: skip

    def __init__(self, config: Config, layout: Layout) -> None:
        self.rate_scale = 1.0
        self._config = config
        self._layout = layout
        self._limits = np.array(
            [config.smoothing, config.category_distance, config.scale_limit, config.margin]
        )
        n, m, d = config.window, config.long_term, layout.n_features
        self._rows, self._long_rows = np.zeros((n, d)), np.zeros((m, d))
        self._labels, self._long_labels = np.zeros(n), np.zeros(m)
        self._weights, self._long_weights = np.zeros(n), np.zeros(m)
        self._present = np.zeros(n, dtype=np.uint8)
        self._contradicted = np.zeros(n, dtype=np.uint8)
        self._counters = np.zeros(N_COUNTERS, dtype=np.int64)
        # Mean and reciprocal standard deviation in force.
        self._scales = np.zeros((2, d))
        self._classes = np.zeros(layout.n_classes)
        blocks = -(-n // BLOCK)
        # Blocks of the newest rows in each part, doubling; the last part is the whole memory.
        visits = [2**k for k in range(20) if 2**k < blocks]
        self._visits = np.array([*visits, blocks + 1], dtype=np.int64)
        # The parts of the short-term memory, the long-term memory, both.
        self._voters = np.zeros(len(self._visits) + 2)
        self._accuracies = np.zeros(len(self._visits))
        self._arrange()

    def step(self, x: Floats, y: Floats, op: Bytes, weight: Floats, out: Floats) -> None:
        _step(
            x, y, op, weight, out, self._is_category, self._config.neighbours, self._visits, self._limits,
            self._rows, self._labels, self._weights, self._present, self._contradicted, self._scaled,
            self._absent, self._long_rows, self._long_labels, self._long_weights, self._long_scaled,
            self._long_absent, self._counters, self._scales, self._classes, self._voters, self._accuracies,
        )  # fmt: skip

    def grow(self, layout: Layout) -> None:
        d = layout.n_features
        if d > self._layout.n_features:
            # Older rows never had the new features: missing, on scale 0 until the next rescaling.
            self._rows = enlarged(self._rows, (len(self._rows), d), np.nan)
            self._long_rows = enlarged(self._long_rows, (len(self._long_rows), d), np.nan)
            self._scales = enlarged(self._scales, (2, d))
        self._classes = enlarged(self._classes, (layout.n_classes,))
        self._layout = layout
        self._arrange()

    def state(self) -> State:
        return pack(self, self._NAMES)

    def load_state(self, state: State) -> None:
        unpack(self, self._NAMES, state)
        self._arrange()

    def vitals(self) -> Vitals:
        arrays = (self._rows, self._scaled, self._long_rows, self._long_scaled)
        return Vitals(
            state_bytes=total_bytes(*arrays),
            details={
                "short_term_rows": float(self._present.sum()),
                "long_term_rows": float(self._counters[LONG_ROWS]),
                "cuts": float(self._counters[CUTS]),
            },
        )

    def _arrange(self) -> None:
        """The scaled copies [blocks, features, rows of a block], and infinity where no row is."""
        self._is_category = np.array([kind == CATEGORY for kind in self._layout.kinds], dtype=np.uint8)
        d = self._layout.n_features
        filled = min(int(self._counters[LEARNED]), len(self._rows))
        in_long = int(self._counters[LONG_ROWS])
        blocks, long_blocks = -(-len(self._rows) // BLOCK), -(-len(self._long_rows) // BLOCK)
        self._scaled = np.zeros((blocks, d, BLOCK), dtype=np.float32)
        self._long_scaled = np.zeros((long_blocks, d, BLOCK), dtype=np.float32)
        self._absent = np.full((blocks, BLOCK), np.inf, dtype=np.float32)
        self._absent.reshape(-1)[: len(self._rows)][self._present == 1] = 0.0
        self._long_absent = np.full((long_blocks, BLOCK), np.inf, dtype=np.float32)
        self._long_absent.reshape(-1)[:in_long] = 0.0
        place_all(self._rows, filled, self._is_category, self._limits, self._scales, self._scaled)
        place_all(self._long_rows, in_long, self._is_category, self._limits, self._scales, self._long_scaled)


@subkernel
def _vote(found, distances, slots, labels, weights, shares):
    """Add the votes of a list of nearest rows to `shares`."""
    for i in range(found):
        shares[int(labels[slots[i]])] += weights[slots[i]] / (math.sqrt(distances[i]) + 1e-6)


@subkernel
def _smooth(shares, classes, smoothing):
    """Votes to probabilities; class frequencies where there are none."""
    total = in_all = 0.0
    n = classes.shape[0]
    for c in range(n):
        total += shares[c]
        in_all += classes[c]
    for c in range(n):
        prior = (classes[c] + 0.5) / (in_all + 0.5 * n)
        vote = shares[c] / total if total > 0.0 else 0.0
        shares[c] = (vote + smoothing * prior) / ((1.0 if total > 0.0 else 0.0) + smoothing)


@subkernel
def _merge_first(found, distances, slots, long_found, long_distances, long_slots, wanted, taken):
    """How many rows of each list are among the `wanted` nearest of both."""
    taken[0] = taken[1] = 0
    while taken[0] + taken[1] < wanted:
        short = taken[0] < found
        if not short and taken[1] >= long_found:
            break
        if short and taken[1] < long_found:
            short = distances[taken[0]] <= long_distances[taken[1]]
        taken[0 if short else 1] += 1


@subkernel
def _place_long(slot, is_category, limits, scales, rows, scaled):
    for j in range(rows.shape[1]):
        scaled[slot // 64, j, slot % 64] = scaled_value(
            rows[slot, j], is_category[j], scales[0, j], scales[1, j], limits[2]
        )


@subkernel
def _move_long(old, new, rows, labels, weights):
    for j in range(rows.shape[1]):
        rows[new, j] = rows[old, j]
    labels[new] = labels[old]
    weights[new] = weights[old]


@subkernel
def _forget_long(slot, rows, labels, weights, scaled, absent, counters):
    """Take a row out of the long-term memory; the last one takes its place."""
    last = counters[LONG_ROWS] - 1
    _move_long(last, slot, rows, labels, weights)
    for j in range(rows.shape[1]):
        scaled[slot // 64, j, slot % 64] = scaled[last // 64, j, last % 64]
    absent[last // 64, last % 64] = np.float32(np.inf)
    counters[LONG_ROWS] = last


@subkernel
def _halve_long(is_category, limits, scales, rows, labels, weights, scaled, absent, counters):
    """Merge pairs of rows: a number's mean by weight, the heavier row's category."""
    n = counters[LONG_ROWS]
    kept = 0
    for i in range(n):
        if weights[i] < 0.0:
            continue
        best, best_distance, seen = -1, np.inf, 0
        for k in range(i + 1, n):
            if weights[k] < 0.0 or labels[k] != labels[i]:
                continue
            distance = 0.0
            for j in range(rows.shape[1]):
                away = scaled[i // 64, j, i % 64] - scaled[k // 64, j, k % 64]
                distance += limits[1] * (away != 0.0) if is_category[j] else away * away
            if distance < best_distance:
                best, best_distance = k, distance
            seen += 1
            if seen == MERGED_AMONG:
                break
        if best >= 0:
            total = weights[i] + weights[best]
            for j in range(rows.shape[1]):
                value, other = rows[i, j], rows[best, j]
                if is_category[j]:
                    rows[i, j] = other if weights[best] > weights[i] else value
                elif math.isnan(value):
                    rows[i, j] = other
                elif not math.isnan(other):
                    # Shares first: a sum of huge values would overflow.
                    rows[i, j] = value * (weights[i] / total) + other * (weights[best] / total)
            weights[i] = min(total, 1e150)
            # Merged away.
            weights[best] = -1.0
        # `scaled` is still read for rows after i, and `kept` is never greater.
        _move_long(i, kept, rows, labels, weights)
        if kept < i:
            weights[i] = -1.0
        kept += 1
    for slot in range(kept):
        _place_long(slot, is_category, limits, scales, rows, scaled)
    for slot in range(kept, n):
        absent[slot // 64, slot % 64] = np.float32(np.inf)
    counters[LONG_ROWS] = kept


@subkernel
def _leave(
    slot, is_category, limits, scales, rows, labels, weights, present, contradicted, absent, long_rows,
    long_labels, long_weights, long_scaled, long_absent, counters,
):  # fmt: skip
    """A row leaves the short-term memory; when nothing contradicted it, it enters the long-term one."""
    present[slot] = 0
    absent[slot // 64, slot % 64] = np.float32(np.inf)
    if contradicted[slot]:
        return
    if counters[LONG_ROWS] == long_rows.shape[0]:
        _halve_long(
            is_category, limits, scales, long_rows, long_labels, long_weights, long_scaled, long_absent,
            counters,
        )  # fmt: skip
    place = counters[LONG_ROWS]
    if place == long_rows.shape[0]:
        # No two rows of one class were left to merge.
        return
    for j in range(rows.shape[1]):
        long_rows[place, j] = rows[slot, j]
    long_labels[place] = labels[slot]
    long_weights[place] = weights[slot]
    _place_long(place, is_category, limits, scales, long_rows, long_scaled)
    long_absent[place // 64, place % 64] = np.float32(0.0)
    counters[LONG_ROWS] = place + 1


@kernel(
    "void(f8[:,::1], f8[::1], u1[::1], f8[::1], f8[:,::1], u1[::1], i8, i8[::1], f8[::1], f8[:,::1], f8[::1],"
    "f8[::1], u1[::1], u1[::1], f4[:,:,::1], f4[:,::1], f8[:,::1], f8[::1], f8[::1], f4[:,:,::1], f4[:,::1],"
    "i8[::1], f8[:,::1], f8[::1], f8[::1], f8[::1])",
    allocates=True,
)
def _step(
    x, y, op, weight, out, is_category, k, visits, limits, rows, labels, weights, present, contradicted,
    scaled, absent, long_rows, long_labels, long_weights, long_scaled, long_absent, counters, scales, classes,
    voters, accuracies,
):  # fmt: skip
    window, n_features = rows.shape
    n_classes = classes.shape[0]
    n_parts = visits.shape[0]
    query = np.zeros(n_features, dtype=np.float32)
    sums = np.zeros(64, dtype=np.float32)
    near_rows = np.zeros(64, dtype=np.uint32)
    distances = np.zeros((n_parts, k), dtype=np.float32)
    slots = np.zeros((n_parts, k), dtype=np.int64)
    found = np.zeros(n_parts, dtype=np.int64)
    long_distances = np.zeros((1, k), dtype=np.float32)
    long_slots = np.zeros((1, k), dtype=np.int64)
    long_found = np.zeros(1, dtype=np.int64)
    long_visits = np.array([long_scaled.shape[0] + 1])
    long_newest = long_scaled.shape[0] * 64 - 1
    taken = np.zeros(2, dtype=np.int64)
    shares = np.zeros((n_parts + 2, n_classes))
    mixture = np.zeros(n_classes)
    category_distance = np.float32(limits[1])
    for i in range(op.size):
        learns = (op[i] & 2) != 0 and weight[i] > 0.0
        predicts = (op[i] & 1) != 0
        if not learns and not predicts:
            continue
        known = counters[LEARNED] > 0
        for j in range(n_features):
            query[j] = scaled_value(x[i, j], is_category[j], scales[0, j], scales[1, j], limits[2])
        if known:
            newest = (counters[LEARNED] - 1) % window
            nearest(
                query, is_category, category_distance, scaled, absent, newest, visits, distances, slots,
                found, sums, near_rows,
            )  # fmt: skip
            nearest(
                query, is_category, category_distance, long_scaled, long_absent, long_newest, long_visits,
                long_distances, long_slots, long_found, sums, near_rows,
            )  # fmt: skip
            for s in range(n_parts + 2):
                for c in range(n_classes):
                    shares[s, c] = 0.0
            for s in range(n_parts):
                _vote(found[s], distances[s], slots[s], labels, weights, shares[s])
            _vote(long_found[0], long_distances[0], long_slots[0], long_labels, long_weights, shares[n_parts])
            _merge_first(
                found[n_parts - 1], distances[n_parts - 1], slots[n_parts - 1], long_found[0],
                long_distances[0], long_slots[0], k, taken,
            )  # fmt: skip
            _vote(taken[0], distances[n_parts - 1], slots[n_parts - 1], labels, weights, shares[n_parts + 1])
            _vote(taken[1], long_distances[0], long_slots[0], long_labels, long_weights, shares[n_parts + 1])
            top = -np.inf
            for s in range(n_parts + 2):
                _smooth(shares[s], classes, limits[0])
                top = max(top, voters[s])
            total = 0.0
            for c in range(n_classes):
                mixture[c] = 0.0
            for s in range(n_parts + 2):
                trust = math.exp(voters[s] - top)
                total += trust
                for c in range(n_classes):
                    mixture[c] += trust * shares[s, c]
            for c in range(n_classes):
                mixture[c] /= total
        if predicts:
            for c in range(out.shape[1]):
                out[i, c] = mixture[c] if known else np.nan
        if not learns:
            continue
        label = int(y[i])
        if known:
            for s in range(n_parts + 2):
                voters[s] = VOTER_FADING * voters[s] + math.log(max(shares[s, label], UNLIKELY))
            for s in range(n_parts):
                best = 0
                for c in range(1, n_classes):
                    if shares[s, c] > shares[s, best]:
                        best = c
                accuracies[s] += (1.0 - SIZE_FADING) * ((1.0 if best == label else 0.0) - accuracies[s])
            # What lies nearer than the class reaches, and is of another, is contradicted.
            reach = -1.0
            whole = n_parts - 1
            for n in range(found[whole]):
                if int(labels[slots[whole, n]]) == label:
                    reach = distances[whole, n]
            for n in range(found[whole]):
                if distances[whole, n] <= reach and int(labels[slots[whole, n]]) != label:
                    contradicted[slots[whole, n]] = 1
            # From the last slot down: what takes a forgotten row's place is then never one still to go.
            while True:
                worst = -1
                for n in range(long_found[0]):
                    slot = long_slots[0, n]
                    if (
                        long_distances[0, n] <= reach
                        and slot >= 0
                        and slot > worst
                        and int(long_labels[slot]) != label
                    ):
                        worst = slot
                if worst < 0:
                    break
                for n in range(long_found[0]):
                    if long_slots[0, n] == worst:
                        long_slots[0, n] = -1
                _forget_long(worst, long_rows, long_labels, long_weights, long_scaled, long_absent, counters)
        slot = counters[LEARNED] % window
        if present[slot]:
            _leave(
                slot, is_category, limits, scales, rows, labels, weights, present, contradicted, absent,
                long_rows, long_labels, long_weights, long_scaled, long_absent, counters,
            )  # fmt: skip
        for j in range(n_features):
            rows[slot, j] = x[i, j]
            scaled[slot // 64, j, slot % 64] = query[j]
        labels[slot] = label
        weights[slot] = weight[i]
        present[slot] = 1
        contradicted[slot] = 0
        absent[slot // 64, slot % 64] = np.float32(0.0)
        for c in range(n_classes):
            classes[c] *= CLASS_FADING
        classes[label] += min(weight[i], 1e150)
        counters[LEARNED] += 1
        n_learned = counters[LEARNED]
        if n_learned % SIZE_ROWS == 0:
            best = n_parts - 1
            for s in range(n_parts - 1):
                if accuracies[s] > accuracies[best] + (limits[3] if best == n_parts - 1 else 0.0):
                    best = s
            keep = visits[best] * 64
            if best < n_parts - 1 and keep < min(n_learned, window):
                left = 0
                # The oldest first: that is the order in which they came.
                for age in range(min(n_learned, window) - 1, keep - 1, -1):
                    slot = (n_learned - 1 - age) % window
                    if present[slot]:
                        left += 1
                        _leave(
                            slot, is_category, limits, scales, rows, labels, weights, present, contradicted,
                            absent, long_rows, long_labels, long_weights, long_scaled, long_absent, counters,
                        )  # fmt: skip
                counters[CUTS] += left > 0
                for s in range(best + 1, n_parts):
                    accuracies[s] = accuracies[best]
        if n_learned % RESCALE_ROWS == 0 or (n_learned < RESCALE_ROWS and (n_learned & (n_learned - 1)) == 0):
            filled = min(n_learned, window)
            rescale(rows, filled, is_category, scales)
            place_all(rows, filled, is_category, limits, scales, scaled)
            place_all(long_rows, counters[LONG_ROWS], is_category, limits, scales, long_scaled)
