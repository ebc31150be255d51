"""Boosted trees: binning rows, the way down a tree, and fitting one tree to the rows of a window.

A node is a row of `nodes`: FEATURE (a column, or -1 in a leaf), THRESHOLD (numbers: values up to it go left;
categories: ranks up to it), CHILD (the left child's row, the right one follows; a leaf's number) and HEAVY
(0 or 1: the child that missing values go to).

A category's code has a rank of its own in each tree: codes in the order of their mean gradient, cut into as
many ranks as a number has bins. Where codes are many (options[OTHERS]) the order is that of the window's rows
that the tree is *not* fitted to: hundreds of codes that mean nothing, ordered by the noise of the rows that
it is fitted to, would gain more than any number does. `ranks` [trees, categories, codes + 1] holds them by
*place*: place 0 is the missing value, place 1 + c is code c. Rank 0 is a code that the tree has never seen,
and it is treated as missing.

Fitting is three kernels, called one after the other: `draw` (which rows, and their gradients), `grow` (the
tree's branches), `settle` (its leaves' answers). One kernel that holds them all takes three times as long to
compile.
"""

import math

import numpy as np

from adaptd.kernels.compile import kernel, subkernel
from adaptd.kernels.random import next_normal, next_uniform

# Columns of `nodes`.
FEATURE, THRESHOLD, CHILD, HEAVY = 0, 1, 2, 3

# Columns of `plan`, one row a feature.
BINS, PLACE = 0, 1  # bins in use, the missing value's not counted; a category's row in `ranks`, or -1

# Entries of `options` (float64) that fitting reads; the learner's own follow.
RATE, RIDGE, HESSIAN_MIN, GAIN_MIN, SUBSAMPLE, SMOOTHING, ONE_CLASS, OTHERS, OWN = range(9)

# Columns of a leaf's record while a tree grows.
START, COUNT, NODE, GRADIENT, HESSIAN, GAIN, SLOT, BIN, MISSING_LEFT, LEFT_GRADIENT, LEFT_HESSIAN = range(11)
# The stretch of the rows that were not drawn.
REST_START, REST_COUNT = 11, 12
RECORD_SIZE = 13

# A leaf moves a class's score no further than this in one step; one row of a rare class would otherwise
# make it certain.
FARTHEST_STEP = 1.0
# Weight, in the order of codes, of one that only rows have that the tree is fitted to: it gets the mean.
TRACE = 1e-6
# A curvature below is what subtracting histograms leaves of nothing.
ROUNDING = 1e-9


@subkernel(inline=True)
def place_of(code, n_codes):
    """The place of a category's code in `ranks`. Codes beyond the last place share places."""
    return 0 if math.isnan(code) else 1 + int(code) % n_codes


@subkernel(inline=True)
def bin_row(x, i, edges, plan, n_codes, bins, place):
    """Row `i` of `x` as bins: 0 is missing, a number's go up from 1, a category's is its place."""
    for f in range(x.shape[1]):
        if plan[f, PLACE] >= 0:
            bins[f, place] = place_of(x[i, f], n_codes)
        elif math.isnan(x[i, f]):
            bins[f, place] = 0
        else:
            low, high = 0, plan[f, BINS] - 1
            while low < high:
                middle = (low + high) // 2
                if edges[f, middle] < x[i, f]:
                    low = middle + 1
                else:
                    high = middle
            bins[f, place] = 1 + low


@kernel("void(f8[:,::1], i8, i8, f8[:,::1], i8[:,::1], i8, u2[:,::1])")
def bin_rows(rows, first, n, edges, plan, n_codes, bins):
    """Bin the `n` rows from `first` on again, after the edges have moved."""
    for i in range(first, first + n):
        row = i % rows.shape[0]
        bin_row(rows, row, edges, plan, n_codes, bins, row)


@subkernel(inline=True)
def step_down(nodes, ranks, plan, tree, node, x, i):
    """The child of a node of `tree` that row `i` of `x` goes to; of a leaf its number.

    Which of them it is cannot be foretold, so no branch of the program depends on it.
    """
    feature = int(nodes[tree, node, FEATURE])
    value = x[i, max(feature, 0)]
    place = plan[max(feature, 0), PLACE]
    if place >= 0:
        rank = ranks[tree, place, place_of(value, ranks.shape[2] - 1)]
        value = math.nan if rank == 0 else float(rank)
    is_right = value > nodes[tree, node, THRESHOLD]
    is_lost = math.isnan(value) & (nodes[tree, node, HEAVY] > 0.0)
    return int(nodes[tree, node, CHILD]) + ((feature >= 0) & (is_right | is_lost))


@subkernel
def find_leaf(nodes, ranks, plan, tree, x, i):
    """The number of the leaf of `tree` that row `i` of `x` falls into."""
    node = 0
    while nodes[tree, node, FEATURE] >= 0.0:
        node = step_down(nodes, ranks, plan, tree, node, x, i)
    return int(nodes[tree, node, CHILD])


@subkernel(inline=True)
def find_each_leaf(nodes, ranks, plan, n, x, i, found, pending):
    """Fill found[:n] with the leaves of the first `n` trees that row `i` of `x` falls into.

    All trees go down a level at a time, so that none waits for another. pending: scratch [trees], those that
    are still on their way.
    """
    for t in range(n):
        found[t] = 0
        pending[t] = t
    # Without a feature each tree is its first leaf.
    left = n if x.shape[1] > 0 else 0
    while left > 0:
        last, left = left, 0
        for j in range(last):
            t = pending[j]
            node = found[t]
            pending[left] = t
            left += nodes[t, node, FEATURE] >= 0.0
            found[t] = step_down(nodes, ranks, plan, t, node, x, i)


@kernel("void(i8, f8[:,::1], i8, i8, f8[:,:,::1], u1[:,:,::1], i8[:,::1], u1[:,::1])")
def find_leaves(tree, rows, first, n, nodes, ranks, plan, leaf_of):
    """The leaf of `tree` that each of the `n` rows from `first` on falls into."""
    if nodes[tree, 0, CHILD] < 0.0:
        return
    for i in range(first, first + n):
        row = i % rows.shape[0]
        leaf_of[tree, row] = find_leaf(nodes, ranks, plan, tree, rows, row)


@subkernel(inline=True)
def probabilities(scores, first, base, out):
    """Softmax of base + scores[first:] into out[first:]."""
    n = base.shape[0]
    if n == 2:
        # The greater one's exponential is 1.
        one, other = scores[first] + base[0], scores[first + 1] + base[1]
        low = math.exp(min(one, other) - max(one, other))
        total = 1.0 + low
        out[first] = (1.0 if one >= other else low) / total
        out[first + 1] = (low if one >= other else 1.0) / total
        return
    top = -math.inf
    for k in range(n):
        top = max(top, scores[first + k] + base[k])
    total = 0.0
    for k in range(n):
        below = scores[first + k] + base[k] - top
        out[first + k] = math.exp(below) if below != 0.0 else 1.0
        total += out[first + k]
    for k in range(n):
        out[first + k] /= total


@subkernel
def draw_direction(direction, strength, one_class, random):
    """A random direction of length 1 in the space of the scores: one class against all, or a mixture.

    strength: how much gradient each class has. A tree is split along the direction; its leaves answer for all
    classes. Source: L. Iosipoi, A. Vakhrushev, "SketchBoost", NeurIPS 2022 (random projections).
    """
    n = direction.shape[0]
    if next_uniform(random) < one_class:
        total = 0.0
        for k in range(n):
            total += strength[k]
        left = next_uniform(random) * total
        chosen = -1
        for k in range(n):
            left -= strength[k]
            if chosen < 0 and (left < 0.0 or k == n - 1):
                chosen = k
            direction[k] = 1.0 if k == chosen else 0.0
    else:
        for k in range(n):
            direction[k] = next_normal(random) * math.sqrt(strength[k])
    mean = 0.0
    for k in range(n):
        mean += direction[k] / n
    length = 0.0
    for k in range(n):
        direction[k] -= mean
        length += direction[k] * direction[k]
    length = math.sqrt(max(length, 1e-300))
    for k in range(n):
        direction[k] /= length


@kernel(
    "i8(i8, i8, i8, f8[::1], f8[::1], f8[:,::1], f8[:,:,::1], f8[:,:,::1], u1[:,::1], f8[::1], f8[::1],"
    "u8[::1], u4[::1], u4[::1], f8[:,::1], f8[:,::1], f8[:,::1], i8, i8[::1])"
)
def draw(
    tree,
    first,
    n,
    targets,
    weights,
    scores,
    nodes,
    values,
    leaf_of,
    base,
    options,
    random,
    order,
    spare,
    slopes,
    gradients,
    directions,
    n_features,
    features,
):
    """Take the old tree out of the scores, draw rows and features for a new one, find the rows' gradients.

    The window is the `n` rows from `first` on, in a ring. order: the rows drawn, then the others; returns how
    many were drawn. leaf_of [trees, rows]: the leaf that a row fell into. slopes: [rows, scores], the loss's
    derivatives at each row (at those not drawn only with options[OTHERS]); gradients: [rows, 2],
    derivative and curvature along the drawn direction, times the row's weight. directions: scratch [2,
    scores]. options[OWN] is 0 for classes, else the residual beyond which a number's loss goes on as a
    straight line (Huber).
    """
    capacity, n_scores = scores.shape
    reach = options[OWN]
    strength, direction = directions[0], directions[1]
    drawn = 0
    is_used = nodes[tree, 0, CHILD] >= 0.0
    row = first % capacity - 1
    for i in range(n):
        row = row + 1 if row + 1 < capacity else 0
        if is_used:
            leaf = leaf_of[tree, row]
            for k in range(n_scores):
                scores[row, k] -= values[tree, leaf, k]
        is_drawn = next_uniform(random) < options[SUBSAMPLE]
        order[drawn] = row
        spare[i - drawn] = row
        drawn += is_drawn
    for i in range(n - drawn):
        order[drawn + i] = spare[i]
    asked = n if options[OTHERS] > 0.0 else drawn
    for k in range(n_scores):
        strength[k] = 1e-9
    for i in range(asked):
        row = order[i]
        if reach > 0.0:
            slopes[row, 0] = min(max(scores[row, 0] + base[0] - targets[row], -reach), reach)
            continue
        probabilities(scores[row], 0, base, slopes[row])
        slopes[row, int(targets[row])] -= 1.0
        if i < drawn:
            for k in range(n_scores):
                strength[k] += abs(slopes[row, k])
    if reach == 0.0:
        draw_direction(direction, strength, options[ONE_CLASS], random)
    for i in range(asked):
        row = order[i]
        g, h = slopes[row, 0], 1.0
        if reach == 0.0:
            label = int(targets[row])
            g = mean = square = 0.0
            for k in range(n_scores):
                p = slopes[row, k] + (1.0 if k == label else 0.0)
                g += slopes[row, k] * direction[k]
                mean += p * direction[k]
                square += p * direction[k] * direction[k]
            h = max(square - mean * mean, 1e-6)
        gradients[row, 0] = weights[row] * g
        gradients[row, 1] = weights[row] * h
    wanted = features.shape[0]
    chosen = 0
    for feature in range(n_features):
        left = n_features - feature
        if chosen < wanted and next_uniform(random) * left < wanted - chosen:
            features[chosen] = feature
            chosen += 1
    return drawn


@subkernel
def sum_codes(totals, order, n, n_all, bins, feature, gradients, options):
    """What the codes of a category are put in order by, gradients and curvatures by place, into `totals`."""
    for place in range(totals.shape[0]):
        totals[place, 0] = totals[place, 1] = 0.0
    # A window that is drawn whole leaves no others.
    is_by_others = options[OTHERS] > 0.0 and n < n_all
    of = bins[feature]
    for row in order[n:n_all] if is_by_others else order[:n]:
        totals[of[row], 0] += gradients[row, 0]
        totals[of[row], 1] += gradients[row, 1]
    if is_by_others:
        for row in order[:n]:
            totals[of[row], 1] += TRACE


@subkernel
def rank_codes(ranks, tree, category, n_bins, totals, order, smoothing):
    """Order the codes of a category by their mean gradient and cut them into bins of about equal weight.

    totals: [codes + 1, 2], gradients and weights by place.
    """
    n = 0
    weight = 0.0
    mean = 0.0
    for place in range(1, totals.shape[0]):
        ranks[tree, category, place] = 0
        if totals[place, 1] > 0.0:
            order[n] = place
            n += 1
            weight += totals[place, 1]
            mean += totals[place, 0]
    if n == 0:
        return
    mean /= weight
    for i in range(n):
        place = order[i]
        totals[place, 0] = (totals[place, 0] + smoothing * mean) / (totals[place, 1] + smoothing)
    # Shell's sort, ties by code.
    gap = n // 2
    while gap > 0:
        for i in range(gap, n):
            moved = order[i]
            j = i
            while j >= gap and totals[order[j - gap], 0] > totals[moved, 0]:
                order[j] = order[j - gap]
                j -= gap
            order[j] = moved
        gap //= 2
    share = weight / n_bins
    taken = 0.0
    last = 0
    reached = 0.0
    for i in range(n):
        place = order[i]
        if n <= n_bins or last == 0 or taken >= reached:
            last = min(last + 1, n_bins)
            reached = max(taken, last * share) if n > n_bins else 0.0
        ranks[tree, category, place] = last
        taken += totals[place, 1]


@subkernel
def fill_histogram(histograms, leaf, order, start, count, bins, features, ranks, tree, plan, gradients, near):
    """Sums of gradients and curvatures a bin, feature by feature: what a row needs lies side by side then.

    near: scratch [rows, 2], the stretch's own gradients.
    """
    stretch = order[start : start + count]
    for i in range(count):
        near[i, 0] = gradients[stretch[i], 0]
        near[i, 1] = gradients[stretch[i], 1]
    for s in range(features.shape[0]):
        feature = features[s]
        place = plan[feature, PLACE]
        sums = histograms[leaf, s]
        of = bins[feature]
        for b in range(plan[feature, BINS] + 1):
            sums[b, 0] = 0.0
            sums[b, 1] = 0.0
        if place >= 0:
            rank = ranks[tree, place]
            for i in range(count):
                b = rank[of[stretch[i]]]
                sums[b, 0] += near[i, 0]
                sums[b, 1] += near[i, 1]
        else:
            for i in range(count):
                b = of[stretch[i]]
                sums[b, 0] += near[i, 0]
                sums[b, 1] += near[i, 1]


@subkernel
def find_split(histograms, records, leaf, features, plan, options):
    """The best split of a leaf into its record; a GAIN of 0: none."""
    ridge = options[RIDGE]
    least = options[HESSIAN_MIN]
    G, H = records[leaf, GRADIENT], records[leaf, HESSIAN]
    before = G * G / (H + ridge)
    records[leaf, GAIN] = 0.0
    for s in range(features.shape[0]):
        n_bins = plan[features[s], BINS]
        missing = histograms[leaf, s, 0, 1] > ROUNDING
        for side in range(2 if missing else 1):
            g = histograms[leaf, s, 0, 0] if side == 1 else 0.0
            h = histograms[leaf, s, 0, 1] if side == 1 else 0.0
            # With missing values the last bin counts too: what is known goes left, the others right.
            for b in range(1, n_bins + 1 if missing and side == 0 else n_bins):
                g += histograms[leaf, s, b, 0]
                h += histograms[leaf, s, b, 1]
                if h < least:
                    continue
                if H - h < least:
                    break
                gain = g * g / (h + ridge) + (G - g) * (G - g) / (H - h + ridge) - before
                if gain > records[leaf, GAIN]:
                    records[leaf, GAIN] = gain
                    records[leaf, SLOT] = s
                    records[leaf, BIN] = b
                    records[leaf, LEFT_GRADIENT] = g
                    records[leaf, LEFT_HESSIAN] = h
                    if missing:
                        records[leaf, MISSING_LEFT] = side
                    else:
                        records[leaf, MISSING_LEFT] = 1.0 if 2.0 * h >= H else 0.0


@subkernel
def part_rows(order, spare, start, count, record, bins, feature, ranks, tree, plan):
    """Bring the rows that go left to the front of a stretch of `order`; gives how many.

    Both sides are written and one counts: which way a row goes cannot be foretold, and a wrong guess of the
    processor costs more than a write.
    """
    # Stretches and unsigned numbers: of any other index it is asked whether it counts from the end.
    n_left = np.uint32(0)
    place = plan[feature, PLACE]
    of = bins[feature]
    stretch = order[start : start + count]
    missing_left = record[MISSING_LEFT] == 1.0
    last = int(record[BIN])
    for i in range(count):
        row = stretch[i]
        b = int(of[row]) if place < 0 else int(ranks[tree, place, of[row]])
        stretch[n_left] = row
        spare[np.uint32(i - n_left)] = row
        n_left += np.uint32((b <= last) & ((b > 0) | missing_left))
    for i in range(count - n_left):
        stretch[n_left + i] = spare[i]
    return int(n_left)


@subkernel
def set_leaf(nodes, tree, node, leaf):
    nodes[tree, node, FEATURE] = -1.0
    nodes[tree, node, THRESHOLD] = 0.0
    nodes[tree, node, CHILD] = leaf
    nodes[tree, node, HEAVY] = 0.0


@kernel(
    "i8(i8, f8[:,:,::1], u1[:,:,::1], u4[::1], u4[::1], i8, i8, u2[:,::1], f8[:,::1], i8[:,::1], f8[:,::1],"
    "f8[:,::1], i8[::1], f8[:,:,:,::1], f8[:,::1], f8[:,::1], f8[::1])"
)
def grow(
    tree,
    nodes,
    ranks,
    order,
    spare,
    n,
    n_all,
    bins,
    edges,
    plan,
    gradients,
    near,
    features,
    histograms,
    records,
    totals,
    options,
):
    """Grow one tree over the rows order[:n], always at the leaf that gains most; returns how many leaves.

    Afterwards each leaf's record tells its stretch of `order`, and that of the other rows, order[n:n_all].
    histograms: scratch [leaves, features drawn, bins + 1, 2]; totals: scratch [codes + 1, 2]; near: scratch
    [rows, 2].
    """
    for s in range(features.shape[0]):
        place = plan[features[s], PLACE]
        if place >= 0:
            sum_codes(totals, order, n, n_all, bins, features[s], gradients, options)
            rank_codes(ranks, tree, place, plan[features[s], BINS], totals, spare, options[SMOOTHING])
    G = H = squares = 0.0
    for i in range(n):
        g = gradients[order[i], 0]
        G += g
        squares += g * g
        H += gradients[order[i], 1]
    # What the best of many splits of pure noise gains is a few times the gradients' variance.
    least_gain = options[GAIN_MIN] * squares / max(H, 1e-300)
    records[0, START], records[0, COUNT], records[0, NODE] = 0.0, n, 0.0
    records[0, REST_START], records[0, REST_COUNT] = n, n_all - n
    records[0, GRADIENT], records[0, HESSIAN] = G, H
    set_leaf(nodes, tree, 0, 0)
    fill_histogram(histograms, 0, order, 0, n, bins, features, ranks, tree, plan, gradients, near)
    find_split(histograms, records, 0, features, plan, options)
    new = 1
    while new < records.shape[0]:
        old = 0
        for leaf in range(1, new):
            if records[leaf, GAIN] > records[old, GAIN]:
                old = leaf
        if not records[old, GAIN] > least_gain:
            break
        feature = features[int(records[old, SLOT])]
        start, count = int(records[old, START]), int(records[old, COUNT])
        n_left = part_rows(order, spare, start, count, records[old], bins, feature, ranks, tree, plan)
        n_right = count - n_left
        if n_left == 0 or n_right == 0:
            records[old, GAIN] = 0.0
            continue
        start, count = int(records[old, REST_START]), int(records[old, REST_COUNT])
        rest_left = part_rows(order, spare, start, count, records[old], bins, feature, ranks, tree, plan)
        node, pair = int(records[old, NODE]), 2 * new - 1
        b = int(records[old, BIN])
        nodes[tree, node, FEATURE] = feature
        if plan[feature, PLACE] >= 0:
            nodes[tree, node, THRESHOLD] = b
        else:
            nodes[tree, node, THRESHOLD] = edges[feature, b - 1] if b < plan[feature, BINS] else math.inf
        nodes[tree, node, CHILD] = pair
        nodes[tree, node, HEAVY] = 1.0 - records[old, MISSING_LEFT]
        set_leaf(nodes, tree, pair, old)
        set_leaf(nodes, tree, pair + 1, new)
        records[new, START], records[new, COUNT] = records[old, START] + n_left, n_right
        records[old, COUNT] = n_left
        records[new, REST_START], records[new, REST_COUNT] = start + rest_left, count - rest_left
        records[old, REST_COUNT] = rest_left
        records[old, NODE], records[new, NODE] = pair, pair + 1
        for k in range(2):
            left = records[old, LEFT_GRADIENT + k]
            records[new, GRADIENT + k] = records[old, GRADIENT + k] - left
            records[old, GRADIENT + k] = left
        # Only the smaller child's rows are read; the other's histogram is the difference.
        small = old if n_left <= n_right else new
        start, count = int(records[small, START]), int(records[small, COUNT])
        fill_histogram(
            histograms, new, order, start, count, bins, features, ranks, tree, plan, gradients, near
        )
        for s in range(features.shape[0]):
            for b in range(plan[features[s], BINS] + 1):
                for k in range(2):
                    rest = histograms[old, s, b, k] - histograms[new, s, b, k]
                    if small == old:
                        histograms[old, s, b, k] = histograms[new, s, b, k]
                        histograms[new, s, b, k] = rest
                    else:
                        histograms[old, s, b, k] = rest
        for side in range(2):
            find_split(histograms, records, old if side == 0 else new, features, plan, options)
        new += 1
    return new


@kernel(
    "void(i8, i8, f8[::1], f8[::1], f8[:,::1], f8[:,:,::1], u1[:,::1], f8[::1], u4[::1], f8[:,::1],"
    "f8[:,::1], f8[:,::1])"
)
def settle(tree, leaves, targets, weights, scores, values, leaf_of, options, order, slopes, records, sums):
    """Give the leaves of a grown tree their answers (a Newton step each) and add them to the scores.

    sums: scratch [2, scores].
    """
    n_scores = scores.shape[1]
    for leaf in range(leaves):
        start = int(records[leaf, START])
        stop = start + int(records[leaf, COUNT])
        for k in range(n_scores):
            sums[0, k] = sums[1, k] = 0.0
        for row in order[start:stop]:
            label = -1 if options[OWN] > 0.0 else int(targets[row])
            for k in range(n_scores):
                sums[0, k] += weights[row] * slopes[row, k]
                if label < 0:
                    sums[1, k] += weights[row]
                else:
                    p = slopes[row, k] + (1.0 if k == label else 0.0)
                    sums[1, k] += weights[row] * p * (1.0 - p)
        for k in range(n_scores):
            step = -options[RATE] * sums[0, k] / (sums[1, k] + options[RIDGE])
            if options[OWN] == 0.0:
                # The scores of all classes move at once, so each has to go only so far.
                step *= (n_scores - 1.0) / n_scores
                step = min(max(step, -FARTHEST_STEP), FARTHEST_STEP)
            for m in range(k, values.shape[2], n_scores):
                values[tree, leaf, m] = step
        for part in range(2):
            start = int(records[leaf, REST_START if part else START])
            for row in order[start : start + int(records[leaf, REST_COUNT if part else COUNT])]:
                leaf_of[tree, row] = leaf
                for k in range(n_scores):
                    scores[row, k] += values[tree, leaf, k]
