"""What all trees share: nodes and leaves in flat arrays, the way down, splits, and giving storage back.

A node is a row of `nodes`: FEATURE (a number's column f as f, a category's as -(f + 2), a leaf as -1),
THRESHOLD (or a category's bucket), CHILD (the left child's row, the right one follows; a leaf's row in the
leaf arrays) and HEAVY (0 or 1: the child that missing values go to). Children lie side by side, so that one
step down reads one row of 32 bytes.

Nodes are handed out in pairs and leaves singly from free lists threaded through the arrays themselves. Each
member of a forest has a part of its own of each array: the tree that votes and the one growing in its
background share it, and members can be walked one after the other, each over a whole block, without touching
each other.
"""

import math

import numpy as np

from adaptd.kernels.adwin import adwin_add, adwin_clear
from adaptd.kernels.compile import kernel, subkernel
from adaptd.kernels.random import next_uniform

# Columns of `nodes`.
FEATURE, THRESHOLD, CHILD, HEAVY = 0, 1, 2, 3
NODE_SIZE = 4

# Entries of `counters` (int64).
ROOT = 0  # node of the tree that votes
BACKGROUND = 1  # node of the tree that may replace it, or -1
FREE_NODE, FREE_LEAF = 2, 3  # heads of the free lists, or -1
NODES_USED, LEAVES_USED = 4, 5  # rows handed out so far, free ones included
LEAVES, BACKGROUND_LEAVES = 6, 7
WARNINGS, DRIFTS = 8, 9
N_COUNTERS = 10

# Entries of `options`.
GRACE, DELTA, TIE, LEAVES_MAX, WARNING_DELTA, DRIFT_DELTA, FADING = 0, 1, 2, 3, 4, 5, 6
N_OPTIONS = 7

# One row takes at most: each of two trees may split once, and one may start.
NODES_A_ROW, LEAVES_A_ROW = 6, 4

# `walk_block` of each kind of member: rows, votes, answers and where each member is; the members' arrays as
# `tree_members.Members` has them; then what all share.
WALK_BLOCK = (
    "b1(f8[:,::1], f8[::1], u1[::1], f8[::1], f8[:,::1], f8[:,::1], i8[::1], f8[:,:,::1], f8[:,:,::1],"
    "i4[:,:,::1], f8[:,:,:,:,::1], i8[:,::1], f8[:,:,::1], f8[:,::1], f8[:,:,::1], u8[:,::1], i8[::1],"
    "f8[::1], f8[::1], f8[:,::1])"
)

# Labelled rows' worth of its predecessor's record that a tree starts with when it takes over.
RECORD_KEPT = 20.0

# Codes below DIRECT have a bucket of their own; later, rarer ones share what is left.
BUCKETS = 64
DIRECT = 48


@subkernel
def bucket(code):
    """The bucket of a category's code. It depends on nothing else, so growth moves nothing."""
    b = int(code)
    if b < DIRECT:
        return b
    return DIRECT + ((b * 2654435761) >> 8) % (BUCKETS - DIRECT)


@subkernel
def child_of(nodes, node, x):
    """The node that `x` goes to from the branch `node`."""
    feature = nodes[node, FEATURE]
    child = int(nodes[node, CHILD])
    if feature >= 0.0:
        value = x[int(feature)]
        if value <= nodes[node, THRESHOLD]:
            return child
        if value > nodes[node, THRESHOLD]:
            return child + 1
        return child + int(nodes[node, HEAVY])
    value = x[-int(feature) - 2]
    if math.isnan(value):
        return child + int(nodes[node, HEAVY])
    return child + (0 if bucket(value) == nodes[node, THRESHOLD] else 1)


@subkernel
def find_leaf(nodes, node, x):
    """The node of the leaf that `x` falls into."""
    while nodes[node, FEATURE] != -1.0:
        node = child_of(nodes, node, x)
    return node


@subkernel
def take_pair(nodes, counters):
    """Row of the first of two free nodes; the caller made sure that there is room."""
    pair = counters[FREE_NODE]
    if pair >= 0:
        counters[FREE_NODE] = int(nodes[pair, CHILD])
        return pair
    pair = counters[NODES_USED]
    counters[NODES_USED] = pair + 2
    return pair


@subkernel
def take_leaf(leaves, slots, observers, counters, n_features, random):
    """A cleared leaf that watches a random choice of features, in ascending order."""
    leaf = counters[FREE_LEAF]
    if leaf >= 0:
        counters[FREE_LEAF] = int(leaves[leaf, 0])
    else:
        leaf = counters[LEAVES_USED]
        counters[LEAVES_USED] = leaf + 1
    clear_leaf(leaves, slots, observers, leaf, n_features, random)
    return leaf


@subkernel
def clear_leaf(leaves, slots, observers, leaf, n_features, random):
    # Loops, not slices: a slice assigned costs the compiler half a second.
    for k in range(leaves.shape[1]):
        leaves[leaf, k] = 0.0
    for c in range(observers.shape[1]):
        for s in range(observers.shape[2]):
            for k in range(observers.shape[3]):
                observers[leaf, c, s, k] = 0.0
    wanted = slots.shape[1]
    chosen = 0
    for feature in range(n_features):
        left = n_features - feature
        if wanted - chosen >= left or next_uniform(random) * left < wanted - chosen:
            slots[leaf, chosen] = feature
            chosen += 1
            if chosen == wanted:
                break
    # Fewer features than slots: the others watch nothing.
    for slot in range(chosen, wanted):
        slots[leaf, slot] = -1


@subkernel
def set_leaf(nodes, node, leaf):
    nodes[node, FEATURE] = -1.0
    nodes[node, THRESHOLD] = 0.0
    nodes[node, CHILD] = leaf
    nodes[node, HEAVY] = 0.0


@subkernel
def new_tree(nodes, leaves, slots, observers, counters, n_features, random):
    """The root of a tree that is one empty leaf."""
    root = take_pair(nodes, counters)
    set_leaf(nodes, root, take_leaf(leaves, slots, observers, counters, n_features, random))
    # A root has no sibling, which a leaf's row of -1 says.
    set_leaf(nodes, root + 1, root - root - 1)
    return root


@subkernel
def split_leaf(
    nodes, leaves, slots, observers, counters, n_features, random, node, feature, threshold, heavy
):
    """Turn the leaf at `node` into a branch with two cleared leaves. Gives the left child's node."""
    leaf = int(nodes[node, CHILD])
    pair = take_pair(nodes, counters)
    clear_leaf(leaves, slots, observers, leaf, n_features, random)
    set_leaf(nodes, pair, leaf)
    set_leaf(nodes, pair + 1, take_leaf(leaves, slots, observers, counters, n_features, random))
    nodes[node, FEATURE] = feature
    nodes[node, THRESHOLD] = threshold
    nodes[node, CHILD] = pair
    nodes[node, HEAVY] = heavy
    return pair


@subkernel
def free_tree(nodes, leaves, counters, root):
    """Give all that a tree holds back to the free lists."""
    # Pairs still to be visited are chained through their THRESHOLD, which nobody needs any more.
    nodes[root, THRESHOLD] = -1.0
    pending = root
    while pending >= 0:
        pair = pending
        pending = int(nodes[pair, THRESHOLD])
        for node in range(pair, pair + 2):
            child = int(nodes[node, CHILD])
            if nodes[node, FEATURE] == -1.0:
                if child >= 0:
                    leaves[child, 0] = counters[FREE_LEAF]
                    counters[FREE_LEAF] = child
            else:
                nodes[child, THRESHOLD] = pending
                pending = child
        nodes[pair, CHILD] = counters[FREE_NODE]
        counters[FREE_NODE] = pair


@subkernel
def has_room(nodes, leaves, counters):
    """Whether one row can be learned."""
    # The free lists are not looked at: so how much storage there is follows from what was ever used.
    room_for_nodes = counters[NODES_USED] + NODES_A_ROW <= nodes.shape[0]
    room_for_leaves = counters[LEAVES_USED] + LEAVES_A_ROW <= leaves.shape[0]
    return room_for_nodes and room_for_leaves


@subkernel
def draw_weight(cumulative, random):
    """A Poisson number from its cumulative probabilities; without any, 1."""
    n = cumulative.shape[0]
    if n == 0:
        return 1.0
    u = next_uniform(random)
    k = 0
    while k < n and u >= cumulative[k]:
        k += 1
    return float(k)


@subkernel
def watch_drift(
    signal, nodes, leaves, slots, observers, counters, windows, record, n_features, random, options
):
    """Take the voting tree's error in [0, 1]: a warning plants a tree in the background, a drift swaps it in.

    A drift without a warning before it counts as both.
    """
    warning = adwin_add(windows[0], signal, options[WARNING_DELTA]) > 0
    drift = adwin_add(windows[1], signal, options[DRIFT_DELTA]) > 0
    if not (warning or drift):
        return
    adwin_clear(windows[0])
    if warning or counters[BACKGROUND] < 0:
        counters[WARNINGS] += 1
        if counters[BACKGROUND] >= 0:
            free_tree(nodes, leaves, counters, counters[BACKGROUND])
        counters[BACKGROUND] = new_tree(nodes, leaves, slots, observers, counters, n_features, random)
        counters[BACKGROUND_LEAVES] = 1
    if drift:
        counters[DRIFTS] += 1
        free_tree(nodes, leaves, counters, counters[ROOT])
        counters[ROOT] = counters[BACKGROUND]
        counters[LEAVES] = counters[BACKGROUND_LEAVES]
        counters[BACKGROUND] = -1
        counters[BACKGROUND_LEAVES] = 0
        kept = min(1.0, RECORD_KEPT / max(record[1], 1.0))
        record[0] *= kept
        record[1] *= kept
        adwin_clear(windows[1])


@kernel("void(f8[:,::1], f8[:,::1], i4[:,::1], f8[:,:,:,::1], i8[::1], i8, u8[::1])")
def plant(nodes, leaves, slots, observers, counters, n_features, random):
    """Start a member: empty storage and one tree of one leaf."""
    for k in range(N_COUNTERS):
        counters[k] = 0
    counters[BACKGROUND] = counters[FREE_NODE] = counters[FREE_LEAF] = -1
    counters[ROOT] = new_tree(nodes, leaves, slots, observers, counters, n_features, random)
    counters[LEAVES] = 1


def poisson_cumulative(rate: float) -> np.ndarray:
    """P(k <= 0), P(k <= 1), ... of a Poisson number up to 1 - 1e-9; empty for rate 0."""
    if rate <= 0.0:
        return np.zeros(0)
    total, term, k, result = 0.0, math.exp(-rate), 0, []
    while total < 1.0 - 1e-9:
        total += term
        result.append(total)
        k += 1
        term *= rate / k
    return np.array(result)
