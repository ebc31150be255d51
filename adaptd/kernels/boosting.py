"""One boosted tree: fitted to the gradients of the rows of a window, on histograms, leaf by leaf.

A node is a row of `nodes`: FEATURE (a column, or -1 in a leaf), THRESHOLD (numbers: values up to it go left;
categories: ranks up to it), CHILD (the left child's row, the right one follows; a leaf's number) and HEAVY (0 or
1: the child that missing values go to).

The code of a category gets a rank a tree: codes ordered by the mean gradient of the rows that the tree is fitted
to, cut into as many bins as a number has. `ranks` [trees, categories, codes + 1] holds them; rank 0, and the code
-1 before all others, are the missing value.
"""

import math

from adaptd.kernels.compile import kernel, subkernel
from adaptd.kernels.random import next_below, next_normal, next_uniform

# Columns of `nodes`.
FEATURE, THRESHOLD, CHILD, HEAVY = 0, 1, 2, 3

# Columns of `plan`, one row a feature.
BINS, PLACE = 0, 1  # bins in use, the missing value's not counted; a category's row in `ranks`, or -1
# Codes beyond share places.
CODES_MAX = 1024

# Entries of `options` (float64).
RATE, RIDGE, LEAST_HESSIAN, SUBSAMPLE, WORK, DELTA, REACH, SMOOTH, FOCUS, GAMMA = range(10)
N_OPTIONS = 10

# Columns of a leaf's record while a tree is fitted.
START, COUNT, NODE, GRADIENT, HESSIAN, GAIN, SLOT, BIN, MISSING_LEFT, LEFT_GRADIENT, LEFT_HESSIAN = range(11)
N_RECORD = 11


@subkernel
def place_of(code):
    """The place of a category's code in `ranks`; 0 is the missing value's."""
    if math.isnan(code):
        return 0
    return 1 + int(code) % CODES_MAX


@subkernel
def bin_row(x, edges, plan, bins):
    """The bin of each feature into `bins`: 0 is missing, a number's are 1, 2, ...; a category's are its places."""
    for f in range(x.shape[0]):
        if plan[f, PLACE] >= 0:
            bins[f] = place_of(x[f])
            continue
        if math.isnan(x[f]):
            bins[f] = 0
            continue
        low, high = 0, plan[f, BINS] - 1
        while low < high:
            middle = (low + high) // 2
            if edges[f, middle] < x[f]:
                low = middle + 1
            else:
                high = middle
        bins[f] = 1 + low


@kernel("void(f8[:,::1], f8[:,::1], i8[:,::1], u2[:,::1])")
def bin_rows(rows, edges, plan, bins):
    """Bin all rows again, after the edges have moved."""
    for i in range(rows.shape[0]):
        bin_row(rows[i], edges, plan, bins[i])


@subkernel
def find_leaf(nodes, ranks, plan, x):
    """The number of the leaf of one tree that `x` falls into."""
    node = 0
    while True:
        feature = int(nodes[node, FEATURE])
        child = int(nodes[node, CHILD])
        if feature < 0:
            return child
        value = x[feature]
        place = plan[feature, PLACE]
        if place >= 0:
            rank = ranks[place, place_of(value)]
            value = math.nan if rank == 0 else float(rank)
        if value <= nodes[node, THRESHOLD]:
            node = child
        elif value > nodes[node, THRESHOLD]:
            node = child + 1
        else:
            node = child + int(nodes[node, HEAVY])


@subkernel
def choose_features(features, n_features, random):
    """A random choice into `features`, in ascending order; gives how many."""
    wanted = features.shape[0]
    chosen = 0
    for feature in range(n_features):
        left = n_features - feature
        if wanted - chosen >= left or next_uniform(random) * left < wanted - chosen:
            features[chosen] = feature
            chosen += 1
            if chosen == wanted:
                break
    return chosen


@subkernel
def rank_codes(rank, n_bins, n_codes, totals, order, smooth):
    """Order the codes of a category by their mean gradient and cut them into bins of about equal weight.

    totals: [codes + 1, 2], gradients and weights by place.
    """
    n = 0
    weight = 0.0
    mean = 0.0
    for place in range(1, n_codes + 1):
        rank[place] = 0
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
        totals[place, 0] = (totals[place, 0] + smooth * mean) / (totals[place, 1] + smooth)
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
        rank[place] = last
        taken += totals[place, 1]


@subkernel
def bin_of(bins, feature, ranks, plan):
    place = plan[feature, PLACE]
    b = int(bins[feature])
    return int(ranks[place, b]) if place >= 0 else b


@subkernel
def fill_histogram(histogram, order, start, count, bins, features, n_chosen, ranks, plan, gradients):
    for s in range(n_chosen):
        for b in range(plan[features[s], BINS] + 1):
            histogram[s, b, 0] = 0.0
            histogram[s, b, 1] = 0.0
    for i in range(start, start + count):
        row = order[i]
        g = gradients[row, 0]
        h = gradients[row, 1]
        for s in range(n_chosen):
            b = bin_of(bins[row], features[s], ranks, plan)
            histogram[s, b, 0] += g
            histogram[s, b, 1] += h


@subkernel
def find_split(histogram, record, features, n_chosen, plan, options):
    """The best split of a leaf into its record; a GAIN of 0: none."""
    ridge = options[RIDGE]
    least = options[LEAST_HESSIAN]
    G, H = record[GRADIENT], record[HESSIAN]
    before = G * G / (H + ridge)
    record[GAIN] = 0.0
    for s in range(n_chosen):
        n_bins = plan[features[s], BINS]
        missing = histogram[s, 0, 1] > 0.0
        for side in range(2 if missing else 1):
            g = histogram[s, 0, 0] if side == 1 else 0.0
            h = histogram[s, 0, 1] if side == 1 else 0.0
            # With missing values the last bin counts too: what is known goes left, the others right.
            for b in range(1, n_bins + 1 if missing and side == 0 else n_bins):
                g += histogram[s, b, 0]
                h += histogram[s, b, 1]
                if h < least:
                    continue
                if H - h < least:
                    break
                gain = g * g / (h + ridge) + (G - g) * (G - g) / (H - h + ridge) - before
                if gain > record[GAIN]:
                    record[GAIN] = gain
                    record[SLOT] = s
                    record[BIN] = b
                    record[LEFT_GRADIENT] = g
                    record[LEFT_HESSIAN] = h
                    if missing:
                        record[MISSING_LEFT] = side
                    else:
                        record[MISSING_LEFT] = 1.0 if 2.0 * h >= H else 0.0


@subkernel
def part_rows(order, spare, record, bins, feature, ranks, plan):
    """Bring the rows that go left to the front of the leaf's stretch of `order`; gives how many."""
    start = int(record[START])
    count = int(record[COUNT])
    n_left = 0
    n_right = 0
    for i in range(start, start + count):
        row = order[i]
        b = bin_of(bins[row], feature, ranks, plan)
        if (record[MISSING_LEFT] == 1.0) if b == 0 else (b <= record[BIN]):
            order[start + n_left] = row
            n_left += 1
        else:
            spare[n_right] = row
            n_right += 1
    for i in range(n_right):
        order[start + n_left + i] = spare[i]
    return n_left


@subkernel
def set_leaf(nodes, node, leaf):
    nodes[node, FEATURE] = -1.0
    nodes[node, THRESHOLD] = 0.0
    nodes[node, CHILD] = leaf
    nodes[node, HEAVY] = 0.0


@subkernel
def grow_tree(
    nodes,
    ranks,
    order,
    spare,
    n,
    bins,
    edges,
    plan,
    gradients,
    features,
    n_chosen,
    histograms,
    records,
    options,
):
    """Grow one tree over the rows order[:n]; gives the number of leaves.

    gradients: [rows, 2], gradient and hessian. histograms: [leaves, chosen, bins + 1, 2].
    """
    G = H = squares = 0.0
    for i in range(n):
        g = gradients[order[i], 0]
        G += g
        squares += g * g
        H += gradients[order[i], 1]
    # What the best of many splits of pure noise gains is a few times the gradients' variance.
    least_gain = options[GAMMA] * squares / max(H, 1e-300)
    records[0, START], records[0, COUNT], records[0, NODE] = 0.0, n, 0.0
    records[0, GRADIENT], records[0, HESSIAN] = G, H
    set_leaf(nodes, 0, 0)
    fill_histogram(histograms[0], order, 0, n, bins, features, n_chosen, ranks, plan, gradients)
    find_split(histograms[0], records[0], features, n_chosen, plan, options)
    leaves = 1
    while leaves < records.shape[0]:
        best = 0
        for leaf in range(1, leaves):
            if records[leaf, GAIN] > records[best, GAIN]:
                best = leaf
        parent = records[best]
        if not parent[GAIN] > least_gain:
            break
        feature = features[int(parent[SLOT])]
        n_left = part_rows(order, spare, parent, bins, feature, ranks, plan)
        n_right = int(parent[COUNT]) - n_left
        if n_left == 0 or n_right == 0:
            parent[GAIN] = 0.0
            continue
        node, pair = int(parent[NODE]), 2 * leaves - 1
        nodes[node, FEATURE] = feature
        b = int(parent[BIN])
        if plan[feature, PLACE] >= 0:
            nodes[node, THRESHOLD] = b
        else:
            nodes[node, THRESHOLD] = edges[feature, b - 1] if b < plan[feature, BINS] else math.inf
        nodes[node, CHILD] = pair
        nodes[node, HEAVY] = 0.0 if parent[MISSING_LEFT] == 1.0 else 1.0
        set_leaf(nodes, pair, best)
        set_leaf(nodes, pair + 1, leaves)
        other = records[leaves]
        other[START], other[COUNT], other[NODE] = parent[START] + n_left, n_right, pair + 1
        other[GRADIENT] = parent[GRADIENT] - parent[LEFT_GRADIENT]
        other[HESSIAN] = parent[HESSIAN] - parent[LEFT_HESSIAN]
        parent[COUNT], parent[NODE] = n_left, pair
        parent[GRADIENT], parent[HESSIAN] = parent[LEFT_GRADIENT], parent[LEFT_HESSIAN]
        # Only the smaller child's rows are read; the other's histogram is the difference.
        small = parent if n_left <= n_right else other
        mine, theirs = histograms[best], histograms[leaves]
        fill_histogram(
            theirs,
            order,
            int(small[START]),
            int(small[COUNT]),
            bins,
            features,
            n_chosen,
            ranks,
            plan,
            gradients,
        )
        for s in range(n_chosen):
            for b in range(plan[features[s], BINS] + 1):
                for k in range(2):
                    rest = mine[s, b, k] - theirs[s, b, k]
                    if n_left <= n_right:
                        mine[s, b, k] = theirs[s, b, k]
                        theirs[s, b, k] = rest
                    else:
                        mine[s, b, k] = rest
        find_split(mine, parent, features, n_chosen, plan, options)
        find_split(theirs, other, features, n_chosen, plan, options)
        leaves += 1
    return leaves


@subkernel
def draw_direction(direction, strength, focus, random):
    """A random direction in the space of the scores, of length 1: one class against all, or a mixture.

    strength: by class, how much gradient there is. A tree's splits are found along the direction; its leaves
    answer for all classes.
    """
    K = direction.shape[0]
    if K == 1:
        direction[0] = 1.0
        return
    if next_uniform(random) < focus:
        total = 0.0
        for k in range(K):
            total += strength[k]
        u = next_uniform(random) * total
        chosen = K - 1
        for k in range(K):
            u -= strength[k]
            if u < 0.0:
                chosen = k
                break
        for k in range(K):
            direction[k] = 1.0 if k == chosen else 0.0
    else:
        for k in range(K):
            direction[k] = next_normal(random) * math.sqrt(strength[k])
    mean = 0.0
    for k in range(K):
        mean += direction[k] / K
    length = 0.0
    for k in range(K):
        direction[k] -= mean
        length += direction[k] * direction[k]
    length = math.sqrt(max(length, 1e-300))
    for k in range(K):
        direction[k] /= length


@subkernel
def draw_rows(order, first, n, capacity, share, random):
    """The window's rows that a tree is fitted to, into `order`; gives how many."""
    drawn = 0
    for i in range(n):
        if share >= 1.0 or next_uniform(random) < share:
            order[drawn] = (first + i) % capacity
            drawn += 1
    return drawn


@subkernel
def next_slot(random, n):
    return next_below(random, n)
