"""The adaptive Hoeffding tree walked over a block: every node watches its error and may raise a replacement.

A node has a fifth column, ALTERNATE: 0, or one more than the root of the subtree that may take its place; and
a row of `windows`: ADWIN over the errors of the tree on the rows that pass the node. An alternate's errors
are watched at its root. Of the nodes that a row passes, only the topmost alternate learns it (those below
wait for what becomes of it), so that a row is learned twice at most.
"""

import math

from adaptd.contracts import LEARN, PREDICT
from adaptd.kernels import tree_classify
from adaptd.kernels.adwin import HEAD as ADWIN_HEAD
from adaptd.kernels.adwin import ROW_SIZE, WIDTH, adwin_add, adwin_clear, adwin_mean
from adaptd.kernels.compile import kernel, subkernel
from adaptd.kernels.tree import (
    CHILD,
    DRIFT_DELTA,
    DRIFTS,
    FEATURE,
    FREE_LEAF,
    FREE_NODE,
    GRACE,
    LEAVES,
    LEAVES_MAX,
    ROOT,
    THRESHOLD,
    WALK_BLOCK,
    WARNING_DELTA,
    WARNINGS,
    child_of,
    draw_weight,
    has_room,
    new_tree,
)
from adaptd.kernels.tree_classify import (
    BAYES_RIGHT,
    HEAD,
    MAJORITY_RIGHT,
    SEEN,
    TRIED,
    answer,
    bayes_scores,
    find_best,
    learn_leaf,
    try_split,
)

sizes = tree_classify.sizes
vote_columns = tree_classify.vote_columns

ALTERNATE = 4
NODE_SIZE = 5
# Windows of nodes hold up to 5 x 2**12 rows: a longer past tells no more, and a node stays small.
WINDOW_SIZE = ADWIN_HEAD + 12 * ROW_SIZE
# Rows that both sides need before they are compared.
COMPARED = 100.0
# No leaf lies further down.
DEPTH = 64


@subkernel
def clear_node(nodes, windows, node):
    nodes[node, ALTERNATE] = 0.0
    adwin_clear(windows[node])


@subkernel
def free_pairs(nodes, leaves, counters, pair):
    """Give back a pair of nodes and all beneath them, alternates too; gives how many leaves that were."""
    gone = 0
    # Pairs still to be visited are chained through their THRESHOLD, which nobody needs any more.
    nodes[pair, THRESHOLD] = -1.0
    pending = pair
    while pending >= 0:
        pair = pending
        pending = int(nodes[pair, THRESHOLD])
        for node in range(pair, pair + 2):
            child = int(nodes[node, CHILD])
            if nodes[node, FEATURE] != -1.0:
                nodes[child, THRESHOLD] = pending
                pending = child
            elif child >= 0:
                leaves[child, 0] = counters[FREE_LEAF]
                counters[FREE_LEAF] = child
                gone += 1
            alternate = int(nodes[node, ALTERNATE]) - 1
            if alternate >= 0:
                nodes[alternate, THRESHOLD] = pending
                pending = alternate
            nodes[node, ALTERNATE] = 0.0
        nodes[pair, CHILD] = counters[FREE_NODE]
        counters[FREE_NODE] = pair
    return gone


@subkernel
def drop_alternate(nodes, leaves, counters, node):
    gone = free_pairs(nodes, leaves, counters, int(nodes[node, ALTERNATE]) - 1)
    nodes[node, ALTERNATE] = 0.0
    return gone


@subkernel
def replace(nodes, leaves, counters, windows, node):
    """Put a node's alternate in its place; gives how many leaves are gone."""
    alternate = int(nodes[node, ALTERNATE]) - 1
    # What the two roots are is exchanged; then the alternate's pair holds what is to go.
    for k in range(ALTERNATE):
        nodes[node, k], nodes[alternate, k] = nodes[alternate, k], nodes[node, k]
    for k in range(windows.shape[1]):
        windows[node, k] = windows[alternate, k]
    return drop_alternate(nodes, leaves, counters, node)


@subkernel
def judge(windows, node, alternate, delta):
    """1: the alternate errs less than the node, -1: more, 0: too early to tell (Hoeffding's bound)."""
    n0, n1 = windows[node, WIDTH], windows[alternate, WIDTH]
    if n0 < COMPARED or n1 < COMPARED:
        return 0
    old, new = adwin_mean(windows[node]), adwin_mean(windows[alternate])
    spread = max(old * (1.0 - old), 1.0 / n0)
    bound = math.sqrt(2.0 * spread * math.log(2.0 / delta) * (1.0 / n0 + 1.0 / n1))
    if old - new > bound:
        return 1
    return -1 if new - old > bound else 0


@subkernel
def think(x, row, slots, observer, capacities, scores, spreads):
    """What a leaf that knows something answers, and what naive Bayes says there (-1: nothing)."""
    bayes_class = -1
    if bayes_scores(x, row[HEAD:], slots, observer, capacities, scores, spreads):
        bayes_class = find_best(scores)
    use_bayes = bayes_class >= 0 and row[BAYES_RIGHT] > row[MAJORITY_RIGHT]
    return bayes_class if use_bayes else find_best(row[HEAD:]), bayes_class


@subkernel
def learn_at(
    node, depth, x, c, weight, bayes_class, nodes, leaves, slots, observers, counters, windows, capacities,
    random, options, work,
):  # fmt: skip
    """Learn a row in the leaf at `node`, and split it when it is time."""
    leaf = int(nodes[node, CHILD])
    learn_leaf(x, c, weight, leaves[leaf], slots[leaf], observers[leaf], capacities, bayes_class)
    if (
        leaves[leaf, SEEN] - leaves[leaf, TRIED] >= options[GRACE]
        and counters[LEAVES] < options[LEAVES_MAX]
        and depth < DEPTH
        and try_split(nodes, leaves, slots, observers, counters, capacities, random, options, node, work) > 0
    ):
        counters[LEAVES] += 1
        pair = int(nodes[node, CHILD])
        clear_node(nodes, windows, pair)
        clear_node(nodes, windows, pair + 1)


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
    """Walk the tree from row `start`; its answer is added to `votes` where PREDICT is set.

    Gives the row where it stopped: the number of rows, or a row that needs more storage first. options:
    WARNING_DELTA for raising an alternate, DRIFT_DELTA for putting it in place. record, scale: not used.
    """
    n_features = capacities.shape[0]
    scores, path = work[2, : votes.shape[1]], work[5]
    for i in range(start, x.shape[0]):
        learns = (op[i] & LEARN) != 0 and weight[i] > 0.0 and y[i] >= 0.0
        if learns and not has_room(nodes, leaves, counters):
            return i
        node = counters[ROOT]
        depth = above = 0
        topmost = -1
        path[0] = node
        while True:
            if topmost < 0 and nodes[node, ALTERNATE] > 0.0:
                topmost, above = node, depth
            if nodes[node, FEATURE] == -1.0:
                break
            node = child_of(nodes, node, x[i])
            depth += 1
            path[depth] = node
        leaf = int(nodes[node, CHILD])
        row = leaves[leaf]
        known = row[SEEN] > 0.0
        answered = bayes_class = -1
        if known:
            answered, bayes_class = think(
                x[i], row, slots[leaf], observers[leaf], capacities, scores, work[4]
            )
            if (op[i] & PREDICT) != 0:
                use_bayes = bayes_class >= 0 and row[BAYES_RIGHT] > row[MAJORITY_RIGHT]
                for c in range(votes.shape[1]):
                    votes[i, c] += math.exp(scores[c] - scores[answered]) if use_bayes else row[HEAD + c]
        if not learns:
            continue
        c = int(y[i])
        times = weight[i] * draw_weight(cumulative, random)
        raised = -1
        if known:
            for k in range(depth + 1):
                passed = int(path[k])
                rose = adwin_add(windows[passed], 0.0 if answered == c else 1.0, options[WARNING_DELTA]) > 0
                if rose and raised < 0:
                    raised = passed
        learn_at(
            node, depth, x[i], c, times, bayes_class, nodes, leaves, slots, observers, counters, windows,
            capacities, random, options, work,
        )  # fmt: skip
        if topmost >= 0:
            node = alternate = int(nodes[topmost, ALTERNATE]) - 1
            depth = above
            while nodes[node, FEATURE] != -1.0:
                node = child_of(nodes, node, x[i])
                depth += 1
            leaf = int(nodes[node, CHILD])
            bayes_class = -1
            if leaves[leaf, SEEN] > 0.0:
                answered, bayes_class = think(
                    x[i], leaves[leaf], slots[leaf], observers[leaf], capacities, scores, work[4]
                )
                adwin_add(windows[alternate], 0.0 if answered == c else 1.0, options[WARNING_DELTA])
            learn_at(
                node, depth, x[i], c, times, bayes_class, nodes, leaves, slots, observers, counters, windows,
                capacities, random, options, work,
            )  # fmt: skip
            verdict = judge(windows, topmost, alternate, options[DRIFT_DELTA])
            if verdict > 0:
                counters[DRIFTS] += 1
                counters[LEAVES] -= replace(nodes, leaves, counters, windows, topmost)
            elif verdict < 0:
                counters[LEAVES] -= drop_alternate(nodes, leaves, counters, topmost)
        elif raised >= 0 and counters[LEAVES] < options[LEAVES_MAX]:
            counters[WARNINGS] += 1
            counters[LEAVES] += 1
            alternate = new_tree(nodes, leaves, slots, observers, counters, n_features, random)
            clear_node(nodes, windows, alternate)
            clear_node(nodes, windows, alternate + 1)
            nodes[raised, ALTERNATE] = alternate + 1
    return x.shape[0]


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
