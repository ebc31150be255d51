"""Hoeffding tree and adaptive random forest: what the learner contract does not ask."""

import numpy as np
import pytest
from river import datasets

from adaptd.contracts import CATEGORY, LEARN, NUMBER, PREDICT, Layout
from adaptd.kernels import tree
from adaptd.kernels.tree_classify import normal_below
from adaptd.learners import adaptive_tree, forest, hoeffding_tree
from adaptd.numerics import same_state


def classes(kinds=(NUMBER, NUMBER), capacities=None, n=2):
    return Layout("classification", kinds, capacities or (0,) * len(kinds), n)


def numbers(n_features):
    return Layout("regression", (NUMBER,) * n_features, (0,) * n_features)


def run(learner, x, y, block=500, width=None):
    """Test-then-train over labelled rows; gives the predictions."""
    width = width or learner.layout.width
    out = np.full((len(y), width), np.nan)
    op = np.full(len(y), PREDICT | LEARN, dtype=np.uint8)
    weight = np.ones(len(y))
    for start in range(0, len(y), block):
        part = slice(start, start + block)
        learner.step(np.ascontiguousarray(x[part]), y[part], op[part], weight[part], out[part])
    return out


def accuracy(out, y):
    return float(np.mean(out.argmax(axis=1) == y))


def squares_board(n, seed, flip=False):
    """Two classes on a 2 by 2 board: no single feature tells anything. Some noise in the labels."""
    rng = np.random.default_rng(seed)
    x = rng.random((n, 2))
    y = ((x[:, 0] > 0.5) ^ (x[:, 1] > 0.3)) ^ (rng.random(n) < 0.05) ^ flip
    return x, y.astype(float)


def test_tree_finds_rules_on_two_features():
    x, y = squares_board(8000, 0)
    out = run(hoeffding_tree.build(hoeffding_tree.Config(), classes(), 0), x, y)
    assert accuracy(out[4000:], y[4000:]) > 0.9


def test_tree_splits_where_the_classes_part():
    rng = np.random.default_rng(1)
    x = rng.random((500, 2))
    y = (x[:, 1] > 0.6).astype(float)
    learner = hoeffding_tree.build(hoeffding_tree.Config(), classes(), 0)
    run(learner, x, y)
    nodes = learner.state()["members"][0]["nodes"]
    assert nodes[0, tree.FEATURE] == 1.0
    assert abs(nodes[0, tree.THRESHOLD] - 0.6) < 0.06


def test_tree_does_not_split_without_a_reason():
    rng = np.random.default_rng(2)
    config = hoeffding_tree.Config(tie=0.0, delta=1e-6)
    learner = hoeffding_tree.build(config, classes(), 0)
    run(learner, rng.random((5000, 2)), rng.integers(0, 2, 5000).astype(float))
    assert learner.vitals().details["leaves"] == 1


def test_category_splits_off_one_code():
    rng = np.random.default_rng(3)
    x = np.column_stack([rng.integers(0, 200, 6000), rng.random(6000)]).astype(float)
    x[rng.random(6000) < 0.3, 0] = 7.0
    y = (x[:, 0] == 7.0).astype(float)
    learner = hoeffding_tree.build(hoeffding_tree.Config(), classes((CATEGORY, NUMBER), (256, 0)), 0)
    out = run(learner, x, y)
    nodes = learner.state()["members"][0]["nodes"]
    assert (nodes[0, tree.FEATURE], nodes[0, tree.THRESHOLD]) == (-2.0, 7.0)
    assert accuracy(out[2000:], y[2000:]) > 0.99


def test_buckets_of_categories_are_bounded_and_early_codes_have_their_own():
    buckets = [tree.bucket(float(code)) for code in range(5000)]
    assert buckets[: tree.DIRECT] == list(range(tree.DIRECT))
    assert set(buckets[tree.DIRECT :]) == set(range(tree.DIRECT, tree.BUCKETS))


def test_missing_value_goes_to_the_heavier_child():
    rng = np.random.default_rng(4)
    x = rng.random((2000, 1))
    y = (x[:, 0] > 0.8).astype(float)
    learner = hoeffding_tree.build(hoeffding_tree.Config(), classes((NUMBER,)), 0)
    run(learner, x, y)
    out = np.empty((1, 2))
    learner.step(np.full((1, 1), np.nan), np.full(1, np.nan), np.full(1, PREDICT, np.uint8), np.ones(1), out)
    assert out[0, 0] > 0.9


def test_table_of_the_normal_distribution_is_close():
    from statistics import NormalDist

    for z in np.linspace(-7, 7, 501).tolist():
        assert abs(normal_below(z) - NormalDist().cdf(z)) < 1e-4


@pytest.mark.parametrize("module", [forest, hoeffding_tree])
def test_real_stream_is_learned(module):
    rows = list(datasets.Phishing())
    names = sorted(rows[0][0])
    x = np.array([[row[name] for name in names] for row, _ in rows], dtype=float)
    y = np.array([float(label) for _, label in rows])
    out = run(module.build(module.Config(), classes((NUMBER,) * len(names)), 0), x, y)
    assert accuracy(out[100:], y[100:]) > (0.88 if module is forest else 0.85)


def test_forest_beats_the_tree_after_a_drift_and_tells_of_it():
    x0, y0 = squares_board(6000, 5)
    x1, y1 = squares_board(4000, 6, flip=True)
    x, y = np.vstack([x0, x1]), np.concatenate([y0, y1])
    learner = forest.build(forest.Config(), classes(), 0)
    adaptive = accuracy(run(learner, x, y)[7000:], y[7000:])
    still = accuracy(run(hoeffding_tree.build(hoeffding_tree.Config(), classes(), 0), x, y)[7000:], y[7000:])
    details = learner.vitals().details
    assert adaptive > 0.85
    assert adaptive > still + 0.1
    assert details["drifts"] >= 8
    assert details["warnings"] >= details["drifts"]


def test_trees_that_were_replaced_give_their_storage_back():
    learner = forest.build(forest.Config(trees=3), classes(), 0)
    sizes = []
    for turn in range(8):
        run(learner, *squares_board(2000, turn, flip=bool(turn % 2)))
        sizes.append(learner.vitals().state_bytes)
    assert learner.vitals().details["drifts"] >= 12
    assert sizes[-1] <= 2 * sizes[1]
    for member in learner.members():
        in_trees = count_leaves(member, tree.ROOT) + count_leaves(member, tree.BACKGROUND)
        free = 0
        leaf = member["counters"][tree.FREE_LEAF]
        while leaf >= 0:
            free += 1
            leaf = int(member["leaves"][leaf, 0])
        assert in_trees + free == member["counters"][tree.LEAVES_USED]


def count_leaves(member, role):
    pending = [int(member["counters"][role])] if member["counters"][role] >= 0 else []
    leaves = 0
    while pending:
        node = pending.pop()
        if member["nodes"][node, tree.FEATURE] == -1.0:
            leaves += 1
        else:
            child = int(member["nodes"][node, tree.CHILD])
            pending += [child, child + 1]
    return leaves


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_leaves_and_bytes_stay_within_their_bounds(task):
    rng = np.random.default_rng(7)
    x = rng.random((6000, 3))
    y = np.floor(10 * x[:, 0]) % 2 if task == "classification" else np.sin(20 * x[:, 0]) + x[:, 1]
    layout = classes((NUMBER,) * 3) if task == "classification" else numbers(3)
    few = forest.build(forest.Config(leaves_max=5), layout, 0)
    run(few, x, y)
    assert 20 < few.vitals().details["leaves"] <= 50
    small = forest.build(forest.Config(state_bytes_max=1_000_000), layout, 0)
    run(small, x, y)
    assert small.vitals().state_bytes <= 1_000_000


@pytest.mark.parametrize("module", [forest, adaptive_tree])
def test_room_follows_from_what_is_kept_and_what_was_never_used_is_not(module):
    """Limits on bytes decide what is done, so after a crash they must find the same number."""
    x, y = squares_board(4000, 14)
    learner = module.build(module.Config(), classes(), 0)
    kept = []
    for start in range(0, len(y), 200):
        run(learner, x[start : start + 200], y[start : start + 200])
        twin = module.build(module.Config(), classes(), 0)
        state = learner.state()
        twin.load_state(state)
        assert twin.vitals() == learner.vitals()
        assert all(len(member["nodes"]) == member["counters"][tree.NODES_USED] for member in state["members"])
        kept.append(sum(array.nbytes for member in state["members"] for array in member.values()))
    assert kept[-1] > 2 * kept[0]
    assert kept[-1] < learner.vitals().state_bytes < 4 * kept[-1]


def test_forest_weighs_a_bad_tree_down():
    x, y = squares_board(3000, 8)
    learner = forest.build(forest.Config(trees=2), classes(), 0)
    run(learner, x, y)
    learner.record[:] = (95.0, 100.0), (0.0, 100.0)
    alone = forest.build(forest.Config(trees=1), classes(), 0)
    state = learner.state()
    alone.load_state(state | {"members": state["members"][:1]})
    op = np.full(50, PREDICT, dtype=np.uint8)
    both, one = np.empty((50, 2)), np.empty((50, 2))
    for trees, out in ((learner, both), (alone, one)):
        trees.step(x[:50], np.full(50, np.nan), op, np.ones(50), out)
    np.testing.assert_allclose(both, one, atol=0.01)


def test_other_seed_gives_another_forest():
    x, y = squares_board(1000, 9)
    first, second = (forest.build(forest.Config(), classes(), seed) for seed in (0, 1))
    run(first, x, y)
    run(second, x, y)
    assert not same_state(first.state(), second.state())


def test_regression_tree_finds_steps_and_slopes():
    rng = np.random.default_rng(10)
    x = rng.random((8000, 3))
    y = np.where(x[:, 0] > 0.4, 10.0, -10.0) + 5.0 * x[:, 1] + rng.normal(0, 0.1, 8000)
    learner = hoeffding_tree.build(hoeffding_tree.Config(), numbers(3), 0)
    out = run(learner, x, y)
    nodes = learner.state()["members"][0]["nodes"]
    assert nodes[0, tree.FEATURE] == 0.0
    assert abs(nodes[0, tree.THRESHOLD] - 0.4) < 0.05
    assert np.abs(out[4000:, 0] - y[4000:]).mean() < 0.5


@pytest.mark.parametrize("module", [forest, hoeffding_tree])
def test_regression_answers_stay_within_the_targets_seen(module):
    rng = np.random.default_rng(11)
    x = rng.normal(size=(3000, 2))
    y = 100.0 + x[:, 0]
    learner = module.build(module.Config(), numbers(2), 0)
    run(learner, x, y)
    wild = np.array([[1e300, -1e300], [-1e9, 1e9], [np.nan, np.inf]])
    out = np.empty((3, 1))
    learner.step(wild, np.full(3, np.nan), np.full(3, PREDICT, np.uint8), np.ones(3), out)
    assert (out >= y.min()).all()
    assert (out <= y.max()).all()


def test_regression_forest_recovers_from_a_drift():
    rng = np.random.default_rng(12)
    x = rng.random((8000, 2))
    sign = np.where(np.arange(8000) < 4000, 1.0, -1.0)
    y = sign * 10.0 * np.floor(4 * x[:, 0]) + rng.normal(0, 0.5, 8000)
    learner = forest.build(forest.Config(), numbers(2), 0)
    errors = np.abs(run(learner, x, y)[:, 0] - y)
    assert learner.vitals().details["drifts"] >= 5
    assert errors[6000:].mean() < 2.0 < errors[4000:4030].mean()


def test_huge_targets_keep_their_digits():
    rng = np.random.default_rng(13)
    x = rng.random((3000, 1))
    y = 1e9 + np.where(x[:, 0] > 0.5, 1.0, 0.0)
    out = run(hoeffding_tree.build(hoeffding_tree.Config(), numbers(1), 0), x, y)
    assert np.abs(out[2000:, 0] - y[2000:]).mean() < 0.1


@pytest.mark.parametrize("module", [forest, hoeffding_tree])
def test_work_of_a_row_is_bounded_as_classes_come(module):
    rng = np.random.default_rng(9)
    n_features = 60
    trees = 10 if module is forest else 1
    cells_max = 120 * trees
    learner = module.build(module.Config(cells_max=cells_max), classes((NUMBER,) * n_features, n=1), 0)
    centres = rng.normal(size=(20, n_features))
    for n_classes in range(1, 21):
        layout = classes((NUMBER,) * n_features, n=n_classes)
        learner.grow(layout)
        y = rng.integers(0, n_classes, 100).astype(float)
        out = run(learner, centres[y.astype(int)] + rng.normal(size=(100, n_features)), y)
        for member in learner.members():
            watched = member["slots"].shape[1]
            assert watched == min(n_features * (0.6 if module is forest else 1), 120 // n_classes)
            assert all(len(set(row)) == watched and min(row) >= 0 for row in member["slots"].tolist())
    y = rng.integers(0, 20, 2000).astype(float)
    out = run(learner, centres[y.astype(int)] + rng.normal(size=(2000, n_features)), y)
    assert accuracy(out[1000:], y[1000:]) > 0.25


def test_adaptive_tree_replaces_what_changed():
    """Left of the middle the rule turns round every 4,000 rows, right of it nothing happens."""
    rng = np.random.default_rng(3)
    x = rng.uniform(-1, 1, (24_000, 2))
    turned = (np.arange(24_000) // 4_000) % 2 * (x[:, 0] < 0)
    y = (x[:, 1] > 0) ^ (turned > 0) ^ (rng.random(24_000) < 0.05)
    learner = adaptive_tree.build(adaptive_tree.Config(), classes(), 0)
    out = run(learner, x[:3_999], y[:3_999].astype(float))
    assert learner.vitals().details["replaced"] == 0
    out = run(learner, x[3_999:], y[3_999:].astype(float))
    assert learner.vitals().details["replaced"] > 0
    stays = run(hoeffding_tree.build(hoeffding_tree.Config(), classes(), 0), x, y.astype(float))
    assert accuracy(out[1:], y[4_000:]) > accuracy(stays[4_000:], y[4_000:]) + 0.05


def test_adaptive_tree_gives_back_what_it_replaces():
    rng = np.random.default_rng(4)
    x = rng.uniform(-1, 1, (60_000, 3))
    turn = (np.arange(60_000) // 5_000) % 3
    y = (x[np.arange(60_000), turn] * x[np.arange(60_000), (turn + 1) % 3] > 0).astype(float)
    config = adaptive_tree.Config(leaves_max=100)
    learner = adaptive_tree.build(config, classes((NUMBER,) * 3), 0)
    run(learner, x, y)
    [member] = learner.members()
    assert learner.vitals().details["replaced"] > 3
    assert 2 <= member["counters"][tree.LEAVES] <= 101
    # Each leaf handed out is in the tree, in an alternate or in the free list.
    free, leaf = 0, member["counters"][tree.FREE_LEAF]
    while leaf >= 0:
        free, leaf = free + 1, int(member["leaves"][leaf, 0])
    assert member["counters"][tree.LEAVES_USED] == member["counters"][tree.LEAVES] + free
    assert member["counters"][tree.LEAVES_USED] < 250
