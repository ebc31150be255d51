"""Members of a forest for classification, walked over a block: predict, learn, watch for drift.

A leaf holds class weights and, for each class and each feature it watches, five numbers (weight, mean, sum of
squared deviations, least, greatest) or a category's weight and that of each bucket. It answers with its class
weights or with naive Bayes, whichever was right more often in this leaf.
"""

import math

import numpy as np

from adaptd.contracts import LEARN, PREDICT
from adaptd.kernels.compile import kernel, subkernel
from adaptd.kernels.tree import (
    BUCKETS,
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

# Columns of `leaves` before the class weights.
SEEN = 0  # weight seen, what came from the parent included
TRIED = 1  # the same at the last attempt to split
MAJORITY_RIGHT, BAYES_RIGHT = 2, 3
HEAD = 4

# A number's observer.
WEIGHT, MEAN, SQUARES, LEAST, GREATEST = 0, 1, 2, 3, 4
NUMBER_SIZE = 5

CANDIDATES = 10
# A branch that takes less than this share is not worth a split.
SMALLEST_SHARE = 0.01
IMPOSSIBLE = -1e300

# A class's variance starts as that of so much weight, spread over this share of the leaf's range. Without it
# the few first rows of a class are taken for certainties.
PRIOR_WEIGHT = 2.0
PRIOR_SPREAD = 0.25
# Features that depend on each other make naive Bayes too sure: its scores are divided by 1 + 0.1 a feature.
TEMPER = 0.1
# Within these, products of variances neither overflow nor vanish before their logarithm is taken.
SMALLEST_SPREAD, LARGEST_SPREAD = 1e-70, 1e70
# Squares of what is larger overflow.
LARGEST = 1e150

# The normal distribution function in steps of 1/64 up to 6: interpolated, off by less than 1e-5.
STEPS = 64
PHI = np.array([0.5 * (1.0 + math.erf(i / STEPS / math.sqrt(2.0))) for i in range(6 * STEPS + 2)])


def sizes(
    n_slots: int, n_features: int, n_classes: int, has_numbers: bool, buckets: int
) -> tuple[int, tuple[int, int, int]]:
    """Columns of `leaves`, and the shape of one leaf's observers."""
    size = max(NUMBER_SIZE if has_numbers else 1, 1 + buckets)
    return HEAD + n_classes, (n_classes, n_slots, size)


def vote_columns(n_classes: int) -> int:
    return n_classes


@subkernel
def normal_below(z):
    """The normal distribution function."""
    position = abs(z) * STEPS
    # NaN (0 / 0, a spread that vanished) must not become an index.
    if position < 6.0 * STEPS:
        i = int(position)
        value = PHI[i] + (position - i) * (PHI[i + 1] - PHI[i])
    else:
        value = 1.0
    return value if z >= 0.0 else 1.0 - value


@subkernel
def weight_below(observer, threshold):
    """Weight of a number's observations at or below `threshold`, taken as normal between the extremes."""
    n = observer[WEIGHT]
    if n <= 0.0 or threshold < observer[LEAST]:
        return 0.0
    if threshold >= observer[GREATEST]:
        return n
    return n * normal_below((threshold - observer[MEAN]) / math.sqrt(observer[SQUARES] / n))


@subkernel
def find_best(weights):
    best = 0
    for c in range(1, weights.shape[0]):
        if weights[c] > weights[best]:
            best = c
    return best


@subkernel
def bayes_scores(x, class_weights, slots, observer, capacities, scores, spreads):
    """A class's log of prior times likelihood, up to a constant; False when no class is possible.

    spreads: scratch, one a slot: the squared deviations that a class starts with, -1 to pass over the slot.
    """
    for s in range(slots.shape[0]):
        spreads[s] = -1.0
        feature = slots[s]
        if feature < 0:
            break
        if math.isnan(x[feature]):
            continue
        if capacities[feature] != 0:
            spreads[s] = 1.0
            continue
        low, high = math.inf, -math.inf
        for c in range(scores.shape[0]):
            if class_weights[c] > 0.0 and observer[c, s, WEIGHT] > 0.0:
                low = min(low, observer[c, s, LEAST])
                high = max(high, observer[c, s, GREATEST])
        # What has one value only in this leaf tells nothing.
        if low < high:
            spread = min(max(PRIOR_SPREAD * (high - low), SMALLEST_SPREAD), LARGEST_SPREAD)
            spreads[s] = PRIOR_WEIGHT * spread * spread
    strength = 0.5 / (1.0 + TEMPER * (slots.shape[0] - 1))
    possible = False
    for c in range(scores.shape[0]):
        scores[c] = IMPOSSIBLE
        prior = class_weights[c]
        if prior <= 0.0:
            continue
        # The normalisers are multiplied and one logarithm is taken of the product.
        product = prior * prior
        score = 0.0
        distance = 0.0
        for s in range(slots.shape[0]):
            feature = slots[s]
            if feature < 0:
                break
            if spreads[s] < 0.0:
                continue
            value = x[feature]
            if capacities[feature] == 0:
                n = observer[c, s, WEIGHT]
                if n <= 0.0:
                    score = IMPOSSIBLE
                    break
                variance = (observer[c, s, SQUARES] + spreads[s]) / (n + PRIOR_WEIGHT)
                variance = min(variance, LARGEST_SPREAD * LARGEST_SPREAD)
                difference = value - observer[c, s, MEAN]
                distance += difference * difference / variance
                product /= variance
            else:
                # One pseudo-observation spread evenly keeps an unseen category possible.
                n = min(capacities[feature], BUCKETS)
                likelihood = (observer[c, s, 1 + bucket(value)] + 1.0 / n) / (observer[c, s, WEIGHT] + 1.0)
                product *= likelihood * likelihood
            if product < 1e-150 or product > 1e150:
                score += math.log(product)
                product = 1.0
        if score > IMPOSSIBLE and distance < 1e300:
            scores[c] = strength * (score + math.log(product) - distance)
            possible = True
    return possible


@subkernel
def branch_weights(observer, s, is_number, threshold, left, total):
    """Class weights of a feature's observations in `total`, of those that a split sends left in `left`."""
    for c in range(total.shape[0]):
        total[c] = observer[c, s, WEIGHT]
        left[c] = weight_below(observer[c, s], threshold) if is_number else observer[c, s, 1 + int(threshold)]


@subkernel
def purity(left, total):
    """Sum over both branches of the sum of squared class weights over the weight: Gini, higher is purer."""
    n0 = n1 = q0 = q1 = 0.0
    for c in range(total.shape[0]):
        right = total[c] - left[c]
        n0 += left[c]
        n1 += right
        q0 += left[c] * left[c]
        q1 += right * right
    least = SMALLEST_SHARE * (n0 + n1)
    if n0 <= least or n1 <= least:
        return -1.0
    return q0 / n0 + q1 / n1


@subkernel
def n_log_n(n):
    return n * math.log(n) if n > 0.0 else 0.0


@subkernel
def information_gain(left, total):
    """In bits a unit of weight."""
    n0 = n1 = before = after = 0.0
    for c in range(total.shape[0]):
        right = total[c] - left[c]
        n0 += left[c]
        n1 += right
        before += n_log_n(total[c])
        after += n_log_n(left[c]) + n_log_n(right)
    n = n0 + n1
    gain = n_log_n(n) - before - (n_log_n(n0) + n_log_n(n1) - after)
    return gain / n / math.log(2.0)


@subkernel
def find_threshold(observer, s, is_number, left, total):
    """The feature's purest split as (threshold or bucket, purity); purity -1 when there is none."""
    best, best_purity = 0.0, -1.0
    if is_number:
        low, high = math.inf, -math.inf
        for c in range(total.shape[0]):
            if observer[c, s, WEIGHT] > 0.0:
                low = min(low, observer[c, s, LEAST])
                high = max(high, observer[c, s, GREATEST])
        if not low < high:
            return best, best_purity
        step = high / (CANDIDATES + 1) - low / (CANDIDATES + 1)
        for i in range(1, CANDIDATES + 1):
            threshold = low + step * i
            branch_weights(observer, s, is_number, threshold, left, total)
            value = purity(left, total)
            if value > best_purity:
                best, best_purity = threshold, value
    else:
        for b in range(observer.shape[2] - 1):
            branch_weights(observer, s, is_number, float(b), left, total)
            value = purity(left, total)
            if value > best_purity:
                best, best_purity = float(b), value
    return best, best_purity


@subkernel
def try_split(nodes, leaves, slots, observers, counters, capacities, random, options, node, work):
    """Split the leaf at `node` when it is impure and the Hoeffding bound lets it; 1 when split, else 0.

    The threshold within a feature is chosen by Gini, which needs no logarithms; features are compared by
    their information gain.
    """
    leaf = int(nodes[node, CHILD])
    row = leaves[leaf]
    row[TRIED] = row[SEEN]
    if row[HEAD + find_best(row[HEAD:])] == row[SEEN]:
        return 0
    observer = observers[leaf]
    left, total = work[0, : observers.shape[1]], work[1, : observers.shape[1]]
    best = second = 0.0
    best_slot = -1
    best_threshold = 0.0
    for s in range(slots.shape[1]):
        feature = slots[leaf, s]
        if feature < 0:
            break
        is_number = capacities[feature] == 0
        threshold, value = find_threshold(observer, s, is_number, left, total)
        if value < 0.0:
            continue
        branch_weights(observer, s, is_number, threshold, left, total)
        gain = information_gain(left, total)
        if gain > best:
            best, second = gain, best
            best_slot, best_threshold = s, threshold
        elif gain > second:
            second = gain
    if best_slot < 0:
        return 0
    classes = 0
    for c in range(total.shape[0]):
        classes += row[HEAD + c] > 0.0
    reach = math.log2(max(classes, 2))
    bound = reach * math.sqrt(math.log(1.0 / options[DELTA]) / (2.0 * row[SEEN]))
    if best - second <= bound and bound >= options[TIE]:
        return 0
    feature = slots[leaf, best_slot]
    is_number = capacities[feature] == 0
    branch_weights(observer, best_slot, is_number, best_threshold, left, total)
    n0 = n1 = 0.0
    for c in range(total.shape[0]):
        n0 += left[c]
        n1 += total[c] - left[c]
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
        best_threshold,
        0.0 if n0 >= n1 else 1.0,
    )
    leaf0, leaf1 = int(nodes[pair, CHILD]), int(nodes[pair + 1, CHILD])
    for c in range(total.shape[0]):
        leaves[leaf0, HEAD + c] = left[c]
        leaves[leaf1, HEAD + c] = max(0.0, total[c] - left[c])
    leaves[leaf0, SEEN] = leaves[leaf0, TRIED] = n0
    leaves[leaf1, SEEN] = leaves[leaf1, TRIED] = n1
    return 1


@subkernel
def learn_leaf(x, c, weight, row, slots, observer, capacities, bayes_class):
    """Learn one row; `bayes_class`: what naive Bayes says of it, or -1."""
    if row[SEEN] > 0.0:
        if find_best(row[HEAD:]) == c:
            row[MAJORITY_RIGHT] += weight
        if bayes_class == c:
            row[BAYES_RIGHT] += weight
    row[SEEN] += weight
    row[HEAD + c] += weight
    for s in range(slots.shape[0]):
        feature = slots[s]
        if feature < 0:
            break
        value = x[feature]
        if math.isnan(value):
            continue
        if capacities[feature] != 0:
            observer[c, s, WEIGHT] += weight
            observer[c, s, 1 + bucket(value)] += weight
            continue
        value = min(max(value, -LARGEST), LARGEST)
        n = observer[c, s, WEIGHT] + weight
        if n == weight:
            observer[c, s, MEAN] = value
            observer[c, s, LEAST] = value
            observer[c, s, GREATEST] = value
        else:
            difference = value - observer[c, s, MEAN]
            mean = observer[c, s, MEAN] + difference * weight / n
            observer[c, s, MEAN] = mean
            # An infinite variance would make all distances NaN.
            observer[c, s, SQUARES] = min(
                observer[c, s, SQUARES] + weight * difference * (value - mean), 1e300
            )
            observer[c, s, LEAST] = min(observer[c, s, LEAST], value)
            observer[c, s, GREATEST] = max(observer[c, s, GREATEST], value)
        observer[c, s, WEIGHT] = n


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
    """Walk one member from row `start`; votes are added to `votes` where PREDICT is set.

    Gives the row where it stopped: the number of rows, or a row that needs more storage first.
    record: [2], how often the tree was right, and of how much (both fade). scale: not used. work: scratch.
    """
    n_features = capacities.shape[0]
    scores, vote = work[2, : votes.shape[1]], work[3, : votes.shape[1]]
    for i in range(start, x.shape[0]):
        learns = (op[i] & LEARN) != 0 and weight[i] > 0.0 and y[i] >= 0.0
        predicts = (op[i] & PREDICT) != 0
        if learns and not has_room(nodes, leaves, counters):
            return i
        node = find_leaf(nodes, counters[ROOT], x[i])
        leaf = int(nodes[node, CHILD])
        row = leaves[leaf]
        known = row[SEEN] > 0.0
        bayes_class = -1
        if known:
            use_bayes = row[BAYES_RIGHT] > row[MAJORITY_RIGHT]
            if (learns or use_bayes) and bayes_scores(
                x[i], row[HEAD:], slots[leaf], observers[leaf], capacities, scores, work[4]
            ):
                bayes_class = find_best(scores)
            if use_bayes and bayes_class >= 0:
                answered = bayes_class
            else:
                answered = find_best(row[HEAD:])
                use_bayes = False
            if predicts:
                total = 0.0
                for c in range(vote.shape[0]):
                    vote[c] = math.exp(scores[c] - scores[answered]) if use_bayes else row[HEAD + c]
                    total += vote[c]
                trust = record[0] / record[1] if record[1] > 0.0 else 1.0
                for c in range(vote.shape[0]):
                    votes[i, c] += vote[c] / total * max(trust, 1e-3)
        if not learns:
            continue
        times = weight[i] * draw_weight(cumulative, random)
        c = int(y[i])
        for role in range(2):
            if times <= 0.0 or counters[ROOT + role] < 0:
                continue
            if role > 0:
                node = find_leaf(nodes, counters[ROOT + role], x[i])
                leaf = int(nodes[node, CHILD])
                bayes_class = -1
                if leaves[leaf, SEEN] > 0.0 and bayes_scores(
                    x[i], leaves[leaf, HEAD:], slots[leaf], observers[leaf], capacities, scores, work[4]
                ):
                    bayes_class = find_best(scores)
            learn_leaf(x[i], c, times, leaves[leaf], slots[leaf], observers[leaf], capacities, bayes_class)
            if (
                leaves[leaf, SEEN] - leaves[leaf, TRIED] >= options[GRACE]
                and counters[LEAVES + role] < options[LEAVES_MAX]
            ):
                counters[LEAVES + role] += try_split(
                    nodes, leaves, slots, observers, counters, capacities, random, options, node, work
                )
        if not known or options[DRIFT_DELTA] <= 0.0:
            continue
        wrong = 0.0 if answered == c else 1.0
        record[0] = options[FADING] * record[0] + 1.0 - wrong
        record[1] = options[FADING] * record[1] + 1.0
        watch_drift(wrong, nodes, leaves, slots, observers, counters, windows, record, n_features, random,
                    options)  # fmt: skip
    return x.shape[0]


@subkernel
def answer(votes, op, out):
    """Votes to probabilities; NaN where no member had anything to say."""
    for i in range(votes.shape[0]):
        if (op[i] & PREDICT) == 0:
            continue
        total = 0.0
        for c in range(votes.shape[1]):
            total += votes[i, c]
        for c in range(votes.shape[1]):
            out[i, c] = votes[i, c] / total if total > 0.0 else np.nan


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
