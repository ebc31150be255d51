"""Members of a forest for regression, walked over a block: predict, learn, watch for drift.

A leaf answers with its mean or with a linear model of the standardised numbers, whichever has the smaller
fading error. A number it watches is kept as a histogram of `BINS` equal bins, each with weight, sum and sum
of squares of the target (as deviations from a fixed number near the leaf's mean, so that large targets cancel
no digits). A value outside doubles the bins' width: neighbours merge, and nothing is lost or guessed.
"""

import math

from adaptd.contracts import LEARN, PREDICT
from adaptd.kernels.compile import kernel, subkernel
from adaptd.kernels.tree import (
    CHILD,
    DELTA,
    DRIFT_DELTA,
    FADING,
    GRACE,
    LEAVES,
    LEAVES_MAX,
    ROOT,
    TIE,
    WALK_BLOCK,
    bucket,
    draw_weight,
    find_leaf,
    has_room,
    split_leaf,
    watch_drift,
)

# Columns of `leaves`; behind them the linear model: bias, then a coefficient a feature.
SEEN, TRIED, MEAN, SHIFT = 0, 1, 2, 3
MEAN_ERROR, LINEAR_ERROR = 4, 5  # fading, of equal weight
LEAST, GREATEST = 6, 7  # of the target
HEAD = 8

# An observer: a number's lower end and bin width (0: one value so far), then three numbers a bin.
LOW, WIDTH, FIRST_BIN = 0, 1, 2
BINS = 32
# Beyond this, differences of a feature's values are of no use and squares overflow.
LARGEST = 1e100

ERROR_FADING = 0.995
STEP = 0.1
# A residual above this many fading mean residuals moves the linear model no further.
CLIP = 4.0
SMALLEST_WEIGHT = 5.0


def sizes(
    n_slots: int, n_features: int, n_classes: int, has_numbers: bool, buckets: int
) -> tuple[int, tuple[int, int, int]]:
    """Columns of `leaves`, and the shape of one leaf's observers."""
    bins = max(BINS if has_numbers else 1, buckets)
    return HEAD + 1 + n_features, (1, n_slots, FIRST_BIN + 3 * bins)


def vote_columns(n_classes: int) -> int:
    return 2


@subkernel
def learn_scale(x, scale):
    """Running mean and squared deviations of the features; scale: [features, 3]."""
    for feature in range(x.shape[0]):
        value = x[feature]
        if not abs(value) <= LARGEST:
            continue
        n = scale[feature, 0] + 1.0
        difference = value - scale[feature, 1]
        scale[feature, 0] = n
        scale[feature, 1] += difference / n
        scale[feature, 2] += difference * (value - scale[feature, 1])


@subkernel
def standardise(x, scale, capacities, z):
    """Into `z`; 0 for categories and what is missing. Gives the squared length, bias included."""
    length = 1.0
    for feature in range(x.shape[0]):
        z[feature] = 0.0
        if capacities[feature] == 0 and scale[feature, 2] > 0.0 and abs(x[feature]) <= LARGEST:
            deviation = math.sqrt(scale[feature, 2] / scale[feature, 0])
            value = (x[feature] - scale[feature, 1]) / deviation
            z[feature] = min(max(value, -5.0), 5.0)
            length += z[feature] * z[feature]
    return length


@subkernel
def linear_answer(row, z):
    total = row[HEAD]
    for feature in range(z.shape[0]):
        total += row[HEAD + 1 + feature] * z[feature]
    return min(max(total, row[LEAST]), row[GREATEST])


@subkernel
def answer_of(row, linear):
    return linear if row[LINEAR_ERROR] < row[MEAN_ERROR] else row[MEAN]


@subkernel
def widen(observer, downwards):
    """Double the bins' width; the range grows at its lower or its upper end."""
    offset = BINS // 2 if downwards else 0
    if downwards:
        observer[LOW] -= BINS * observer[WIDTH]
    # Walking away from the end that is filled, no bin is overwritten before it was read.
    for j in range(BINS // 2):
        b = BINS // 2 - 1 - j if downwards else j
        for k in range(3):
            merged = observer[FIRST_BIN + 6 * b + k] + observer[FIRST_BIN + 6 * b + 3 + k]
            observer[FIRST_BIN + 6 * b + k] = 0.0
            observer[FIRST_BIN + 6 * b + 3 + k] = 0.0
            observer[FIRST_BIN + 3 * (b + offset) + k] = merged
    observer[WIDTH] *= 2.0


@subkernel
def bin_of(observer, value):
    """The bin (low, high] that `value` lies in, made so that there is one."""
    if observer[WIDTH] == 0.0:
        if observer[FIRST_BIN] == 0.0:
            observer[LOW] = value
        if value == observer[LOW]:
            return 0
        first = observer[LOW]
        width = abs(value - first) / (BINS // 2)
        observer[WIDTH] = width
        observer[LOW] = min(value, first) - width * (BINS // 4) - 0.5 * width
        b = min(max(math.ceil((first - observer[LOW]) / width) - 1, 0), BINS - 1)
        for k in range(3):
            moved = observer[FIRST_BIN + k]
            observer[FIRST_BIN + k] = 0.0
            observer[FIRST_BIN + 3 * b + k] = moved
    while value <= observer[LOW] or value > observer[LOW] + BINS * observer[WIDTH]:
        widen(observer, value <= observer[LOW])
    b = math.ceil((value - observer[LOW]) / observer[WIDTH]) - 1
    return min(max(b, 0), BINS - 1)


@subkernel
def learn_leaf(x, y, weight, z, length, row, slots, observers, capacities):
    if row[SEEN] == 0.0:
        row[MEAN] = row[SHIFT] = row[HEAD] = row[LEAST] = row[GREATEST] = y
    row[LEAST] = min(row[LEAST], y)
    row[GREATEST] = max(row[GREATEST], y)
    linear = linear_answer(row, z)
    residual = y - linear
    row[MEAN_ERROR] += (1.0 - ERROR_FADING) * (abs(y - row[MEAN]) - row[MEAN_ERROR])
    reach = CLIP * max(row[LINEAR_ERROR], row[MEAN_ERROR])
    row[LINEAR_ERROR] += (1.0 - ERROR_FADING) * (abs(residual) - row[LINEAR_ERROR])
    move = STEP / length * min(max(residual, -reach), reach)
    row[HEAD] += move
    for feature in range(z.shape[0]):
        row[HEAD + 1 + feature] += move * z[feature]
    row[SEEN] += weight
    row[MEAN] += weight / row[SEEN] * (y - row[MEAN])
    deviation = min(max(y - row[SHIFT], -LARGEST), LARGEST)
    for s in range(slots.shape[0]):
        feature = slots[s]
        if feature < 0:
            break
        value = x[feature]
        if math.isnan(value):
            continue
        if capacities[feature] == 0:
            b = bin_of(observers[s], min(max(value, -LARGEST), LARGEST))
        else:
            b = bucket(value)
        observers[s, FIRST_BIN + 3 * b] += weight
        observers[s, FIRST_BIN + 3 * b + 1] += weight * deviation
        observers[s, FIRST_BIN + 3 * b + 2] += weight * deviation * deviation


@subkernel
def spread(n, total, squares):
    """Sum of squared deviations from the mean."""
    return max(0.0, squares - total * total / n)


@subkernel
def find_split(observer, is_number, n_bins, result):
    """The best reduction of the sum of squares into `result`: [share of it that goes away, bin, left weight,
    left sum, all weight, all sum, all spread]."""
    n = total = squares = 0.0
    for b in range(n_bins):
        n += observer[FIRST_BIN + 3 * b]
        total += observer[FIRST_BIN + 3 * b + 1]
        squares += observer[FIRST_BIN + 3 * b + 2]
    result[0] = 0.0
    result[1] = -1.0
    if n <= 0.0:
        return
    result[4] = n
    result[5] = total
    result[6] = spread(n, total, squares)
    if result[6] <= 0.0:
        return
    least = max(SMALLEST_WEIGHT, 0.01 * n)
    n0 = total0 = squares0 = 0.0
    for b in range(n_bins):
        if is_number:
            n0 += observer[FIRST_BIN + 3 * b]
            total0 += observer[FIRST_BIN + 3 * b + 1]
            squares0 += observer[FIRST_BIN + 3 * b + 2]
        else:
            n0 = observer[FIRST_BIN + 3 * b]
            total0 = observer[FIRST_BIN + 3 * b + 1]
            squares0 = observer[FIRST_BIN + 3 * b + 2]
        if n0 < least or n - n0 < least:
            continue
        after = spread(n0, total0, squares0) + spread(n - n0, total - total0, squares - squares0)
        gain = 1.0 - after / result[6]
        if gain > result[0]:
            result[0] = gain
            result[1] = b
            result[2] = n0
            result[3] = total0


@subkernel
def try_split(nodes, leaves, slots, observers, counters, capacities, random, options, node, work):
    """Split the leaf at `node` when the Hoeffding bound lets it; 1 when it was split, else 0."""
    leaf = int(nodes[node, CHILD])
    leaves[leaf, TRIED] = leaves[leaf, SEEN]
    found, best_found = work[0], work[1]
    best = second = 0.0
    best_slot = -1
    for s in range(slots.shape[1]):
        feature = slots[leaf, s]
        if feature < 0:
            break
        is_number = capacities[feature] == 0
        n_bins = BINS if is_number else (observers.shape[3] - FIRST_BIN) // 3
        find_split(observers[leaf, 0, s], is_number, n_bins, found)
        if found[0] > best:
            best, second = found[0], best
            best_slot = s
            for k in range(7):
                best_found[k] = found[k]
        elif found[0] > second:
            second = found[0]
    if best_slot < 0:
        return 0
    bound = math.sqrt(math.log(1.0 / options[DELTA]) / (2.0 * leaves[leaf, SEEN]))
    # The Hoeffding bound is put on the ratio of the two best reductions, which lies in [0, 1].
    if second / best >= 1.0 - bound and bound >= options[TIE]:
        return 0
    feature = slots[leaf, best_slot]
    is_number = capacities[feature] == 0
    threshold = best_found[1]
    if is_number:
        observer = observers[leaf, 0, best_slot]
        threshold = observer[LOW] + (best_found[1] + 1.0) * observer[WIDTH]
    n0, n1 = best_found[2], best_found[4] - best_found[2]
    parent = work[2]
    for k in range(leaves.shape[1]):
        parent[k] = leaves[leaf, k]
    pair = split_leaf(
        nodes,
        leaves,
        slots,
        observers,
        counters,
        capacities.shape[0],
        random,
        node,
        float(feature) if is_number else -float(feature) - 2.0,
        threshold,
        0.0 if n0 >= n1 else 1.0,
    )
    for side in range(2):
        row = leaves[int(nodes[pair + side, CHILD])]
        for k in range(leaves.shape[1]):
            row[k] = parent[k]
        n = n0 if side == 0 else n1
        total = best_found[3] if side == 0 else best_found[5] - best_found[3]
        row[SEEN] = row[TRIED] = n
        row[MEAN] = row[SHIFT] = parent[SHIFT] + total / n
    return 1


@subkernel
def walk_member(
    x,
    y,
    op,
    weight,
    votes,
    start,
    nodes,
    leaves,
    slots,
    observers,
    counters,
    windows,
    record,
    scale,
    random,
    capacities,
    options,
    cumulative,
    work,
):
    """Walk one member from row `start`; where PREDICT is set its answer, weighed by how good it was, is added
    to `votes` [n, 2] (sum of weight times answer, sum of weights).

    Gives the row where it stopped: the number of rows, or a row that needs more storage first.
    record: [2], sum and count of the tree's absolute errors (both fade). work: scratch [4, ...].
    """
    n_features = capacities.shape[0]
    z = work[3][:n_features]
    for i in range(start, x.shape[0]):
        learns = (op[i] & LEARN) != 0 and weight[i] > 0.0 and math.isfinite(y[i])
        if learns and not has_room(nodes, leaves, counters):
            return i
        node = find_leaf(nodes, counters[ROOT], x[i])
        row = leaves[int(nodes[node, CHILD])]
        known = row[SEEN] > 0.0
        length = standardise(x[i], scale, capacities, z)
        answered = answer_of(row, linear_answer(row, z))
        if known and (op[i] & PREDICT) != 0:
            error = record[0] / record[1] if record[1] > 0.0 else 0.0
            trust = 1.0 / max(error * error, 1e-200)
            votes[i, 0] += trust * answered
            votes[i, 1] += trust
        if not learns:
            continue
        learn_scale(x[i], scale)
        times = weight[i] * draw_weight(cumulative, random)
        target = min(max(y[i], -LARGEST), LARGEST)
        for role in range(2):
            if times <= 0.0 or counters[ROOT + role] < 0:
                continue
            node = find_leaf(nodes, counters[ROOT + role], x[i])
            leaf = int(nodes[node, CHILD])
            learn_leaf(
                x[i], target, times, z, length, leaves[leaf], slots[leaf], observers[leaf, 0], capacities
            )
            if (
                leaves[leaf, SEEN] - leaves[leaf, TRIED] >= options[GRACE]
                and counters[LEAVES + role] < options[LEAVES_MAX]
            ):
                counters[LEAVES + role] += try_split(
                    nodes, leaves, slots, observers, counters, capacities, random, options, node, work
                )
        if not known:
            continue
        error = abs(y[i] - answered)
        usual = record[0] / record[1] if record[1] > 0.0 else error
        record[0] = options[FADING] * record[0] + error
        record[1] = options[FADING] * record[1] + 1.0
        if options[DRIFT_DELTA] <= 0.0:
            continue
        # In [0, 1), and a single huge error weighs no more than 1.
        signal = error / (error + usual) if error + usual > 0.0 else 0.0
        watch_drift(signal, nodes, leaves, slots, observers, counters, windows, record, n_features, random,
                    options)  # fmt: skip
    return x.shape[0]


@subkernel
def answer(votes, op, out):
    """The weighted mean of the members' answers; NaN where none had one."""
    for i in range(votes.shape[0]):
        if (op[i] & PREDICT) != 0:
            out[i, 0] = votes[i, 0] / votes[i, 1] if votes[i, 1] > 0.0 else math.nan


@kernel(WALK_BLOCK)
def walk_block(
    x, y, op, weight, votes, out, starts, nodes, leaves, slots, observers, counters, windows, record, scale,
    random, capacities, options, cumulative, work,
):  # fmt: skip
    """Walk the members in turn, each from its row in `starts`. True: all are through and have room for the
    next row, and their answer is in `out`; False: one needs more storage, call again with it."""
    for m in range(starts.shape[0]):
        starts[m] = walk_member(
            x, y, op, weight, votes, starts[m], nodes[m], leaves[m], slots[m], observers[m], counters[m],
            windows[m], record[m], scale[m], random[m], capacities, options, cumulative, work,
        )  # fmt: skip
        # The others wait: votes are added up member by member, or the last bit would tell where a block ends.
        if not has_room(nodes[m], leaves[m], counters[m]):
            return False
    answer(votes, op, out)
    return True
