"""Boosted trees: what they learn, how they follow drift, and that fitting stays within its bounds."""

import numpy as np
import pytest

from adaptd.contracts import CATEGORY, LEARN, NUMBER, PREDICT, Layout
from adaptd.kernels import boosting as trees
from adaptd.kernels import category_effects
from adaptd.learners import boosting
from adaptd.learners.boosting import Config, build, find_edges
from adaptd.numerics import same_state

BOTH = PREDICT | LEARN


def walk(learner, x, y, layout, op=BOTH, weight=1.0):
    out = np.full((len(x), layout.width), np.nan)
    x = np.ascontiguousarray(x, dtype=np.float64)
    learner.step(x, y, np.full(len(x), op, np.uint8), np.full(len(x), weight), out)
    return out


def accuracy(out, y):
    return float(np.mean(out.argmax(axis=1) == y))


def layout_of(n_classes=0, n_numbers=3, codes=()):
    kinds = (NUMBER,) * n_numbers + (CATEGORY,) * len(codes)
    task = "classification" if n_classes else "regression"
    return Layout(task, kinds, (0,) * n_numbers + tuple(codes), n_classes)


def rule(x):
    """A box within a box: no line and no single split tells it."""
    return ((np.abs(x[:, 0]) < 1) != (x[:, 1] > 0.3)).astype(float)


def test_learns_a_rule_that_no_line_tells():
    x = np.random.default_rng(0).normal(size=(3000, 3))
    y = rule(x)
    layout = layout_of(2)
    out = walk(build(Config(), layout, 0), x, y, layout)
    assert accuracy(out[1500:], y[1500:]) > 0.95


def test_a_reversed_rule_cuts_the_window_and_is_learned_anew():
    x = np.random.default_rng(1).normal(size=(6000, 3))
    y = rule(x)
    y[3000:] = 1 - y[3000:]
    layout = layout_of(2)
    learner = build(Config(), layout, 0)
    out = walk(learner, x, y, layout)
    assert accuracy(out[2000:3000], y[2000:3000]) > 0.95
    assert accuracy(out[4000:], y[4000:]) > 0.93
    assert learner.vitals().details["drifts"] >= 1
    assert learner.vitals().details["window_rows"] < 3500


def test_no_false_alarm_on_pure_noise():
    rng = np.random.default_rng(2)
    layout = layout_of(2)
    learner = build(Config(), layout, 0)
    walk(learner, rng.normal(size=(5000, 3)), rng.integers(0, 2, 5000).astype(float), layout)
    assert learner.vitals().details["drifts"] == 0


def test_tells_many_classes_apart():
    rng = np.random.default_rng(3)
    y = rng.integers(0, 8, 6000).astype(float)
    x = rng.normal(0, 0.15, (6000, 3)) + np.column_stack([y // 4, (y // 2) % 2, y % 2])
    layout = layout_of(8)
    out = walk(build(Config(), layout, 0), x, y, layout)
    np.testing.assert_allclose(out[1:].sum(axis=1), 1)
    assert accuracy(out[3000:], y[3000:]) > 0.95


def test_categories_of_many_codes_are_told_by_their_gradients():
    rng = np.random.default_rng(4)
    n_codes = 300
    effect = rng.integers(0, 2, n_codes)
    x = np.column_stack([rng.normal(size=8000), rng.integers(0, n_codes, 8000)])
    y = effect[x[:, 1].astype(int)].astype(float)
    layout = layout_of(2, 1, (512,))
    out = walk(build(Config(), layout, 0), x, y, layout)
    assert accuracy(out[5000:], y[5000:]) > 0.9


def test_codes_that_mean_nothing_are_not_taken_for_rules():
    """The order of hundreds of codes by the noise of their own labels would gain more than the numbers do."""
    rng = np.random.default_rng(12)
    numbers = rng.normal(size=(8000, 3))
    y = np.where(rng.random(8000) < 0.85, rule(numbers), 1 - rule(numbers))
    x = np.column_stack([numbers, rng.integers(0, 400, (8000, 3))])
    plain, noisy = layout_of(2), layout_of(2, 3, (512, 512, 512))
    without = walk(build(Config(), plain, 0), numbers, y, plain)
    out = walk(build(Config(), noisy, 0), x, y, noisy)
    assert accuracy(out[4000:], y[4000:]) > accuracy(without[4000:], y[4000:]) - 0.02


def test_effects_of_codes_are_remembered_beyond_the_window():
    rng = np.random.default_rng(13)
    n_codes = 1000
    effect = rng.normal(0, 3, n_codes)
    x = np.column_stack([rng.normal(size=20000), rng.integers(0, n_codes, 20000)])
    score = effect[x[:, 1].astype(int)] + 2 * (np.abs(x[:, 0]) < 0.7)
    y = (rng.random(20000) < 1 / (1 + np.exp(-score))).astype(float)
    layout = layout_of(2, 1, (1024,))
    # Of the window's rows each code has two.
    out = walk(build(Config(window=2000), layout, 0), x, y, layout)
    best = accuracy(np.column_stack([-score, score])[15000:], y[15000:])
    assert accuracy(out[15000:], y[15000:]) > best - 0.04


def test_effects_of_pairs_of_codes_are_learned():
    rng = np.random.default_rng(16)
    x = np.column_stack([rng.normal(size=20000), rng.integers(0, (80, 12), (20000, 2))])
    codes = x[:, 1:].astype(int)
    y = rng.integers(0, 2, (80, 12))[codes[:, 0], codes[:, 1]].astype(float)
    layout = layout_of(2, 1, (128, 16))
    out = walk(build(Config(window=2000), layout, 0), x, y, layout)
    assert accuracy(out[15000:], y[15000:]) > 0.8


def test_rows_without_a_feature_are_answered():
    y = (np.random.default_rng(17).random(300) < 0.8).astype(float)
    layout = layout_of(2, 0)
    learner = build(Config(), layout, 0)
    out = walk(learner, np.zeros((300, 0)), y, layout)
    assert learner.vitals().details["trees_fitted"] > 0
    assert abs(out[100:, 1].mean() - 0.8) < 0.1


def test_few_codes_are_left_to_the_trees():
    learner = build(Config(), layout_of(2, 1, (64, 32)), 0)
    assert learner.effects.size == learner.spreads.size == 0
    learner.grow(layout_of(2, 1, (128, 32)))
    assert learner.effects.size > 0


def test_an_effect_that_turns_is_followed():
    rng = np.random.default_rng(14)
    effect = rng.normal(0, 10, (2, 100))
    x = np.column_stack([rng.normal(size=16000), rng.integers(0, 100, 16000)])
    y = effect[(np.arange(16000) >= 8000).astype(int), x[:, 1].astype(int)] + rng.normal(size=16000)
    layout = layout_of(0, 1, (128,))
    error = np.abs(walk(build(Config(), layout, 0), x, y, layout)[:, 0] - y)
    assert error[6000:8000].mean() < 1.5
    assert error[13000:].mean() < 2.0


def test_room_for_more_codes_changes_no_prediction():
    rng = np.random.default_rng(15)
    x = np.column_stack([rng.normal(size=1000), rng.integers(0, 4, (1000, 2))])
    y = (x[:, 1] > x[:, 2]).astype(float)
    small, large = layout_of(2, 1, (4, 128)), layout_of(2, 1, (4, 256))
    learner = build(Config(), small, 0)
    walk(learner, x, y, small)
    before = walk(learner, x[:50], y[:50], small, PREDICT)
    learner.grow(large)
    np.testing.assert_array_equal(walk(learner, x[:50], y[:50], large, PREDICT), before)


def test_missing_values_that_tell_the_label_are_used():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(2000, 3))
    y = rng.integers(0, 2, 2000).astype(float)
    x[y == 1, 1] = np.nan
    layout = layout_of(2)
    out = walk(build(Config(), layout, 0), x, y, layout)
    assert accuracy(out[300:], y[300:]) > 0.97


def test_numbers_are_predicted_and_outliers_do_not_lead_astray():
    rng = np.random.default_rng(6)
    x = rng.uniform(-2, 2, (6000, 3))
    clean = 100 + 10 * np.sin(2 * x[:, 0]) * (x[:, 1] > 0) + 5 * x[:, 2]
    y = clean + rng.normal(0, 0.5, 6000)
    y[rng.random(6000) < 0.01] = 1e7
    layout = layout_of()
    out = walk(build(Config(), layout, 0), x, y, layout)[:, 0]
    spread = np.abs(clean - clean.mean()).mean()
    assert np.abs(out[3000:] - clean[3000:]).mean() < 0.2 * spread


def test_a_target_that_was_constant_is_followed_when_it_moves():
    x = np.random.default_rng(7).normal(size=(3000, 3))
    y = np.where(np.arange(3000) < 1000, 5.0, 50.0 + 10 * (x[:, 0] > 0))
    layout = layout_of()
    out = walk(build(Config(), layout, 0), x, y, layout)[:, 0]
    assert np.abs(out[2500:] - y[2500:]).mean() < 2.0


def test_the_window_stops_at_its_bound_and_the_state_stays_small():
    rng = np.random.default_rng(8)
    layout = layout_of(2, 30)
    learner = build(Config(window=3000, work=2000.0), layout, 0)
    sizes = []
    for _ in range(4):
        x = rng.normal(size=(2500, 30))
        walk(learner, x, (x[:, 0] > 0).astype(float), layout)
        sizes.append(learner.vitals().state_bytes)
    assert learner.vitals().details["window_rows"] == 3000
    assert sizes[2] == sizes[3] < 5_000_000


def test_scores_in_the_window_are_those_of_the_trees():
    """The window's scores are kept by adding and taking out trees; they must not drift away from these."""
    x = np.random.default_rng(9).normal(size=(3000, 3))
    layout = layout_of(2)
    learner = build(Config(online_rates=()), layout, 0)
    walk(learner, x, rule(x), layout)
    learner.step(x[:1], np.full(1, np.nan), np.full(1, PREDICT, np.uint8), np.ones(1), np.empty((1, 2)))
    assert learner.vitals().details["trees_fitted"] > 60
    for row in range(0, 3000, 500):
        total = np.zeros(2)
        for tree in range(len(learner.nodes)):
            leaf = trees.find_leaf(learner.nodes, learner.ranks, learner.plan, tree, learner.rows, row)
            total += learner.values[tree, leaf]
        np.testing.assert_allclose(learner.scores[row], total, atol=1e-9)


def test_a_third_class_and_a_new_category_find_room_mid_stream():
    rng = np.random.default_rng(10)
    x = np.column_stack([rng.normal(size=4000), rng.integers(0, 3, 4000)])
    y = (x[:, 0] > 0).astype(float)
    small, large = layout_of(2, 1), layout_of(3, 1, (4,))
    learner = build(Config(), small, 0)
    walk(learner, x[:1000, :1], y[:1000], small)
    learner.grow(large)
    y[x[:, 1] == 2] = 2.0
    out = walk(learner, x[1000:], y[1000:], large)
    assert accuracy(out[1000:], y[2000:]) > 0.97


@pytest.mark.parametrize(("n_codes", "capacity"), [(20, 32), (100, 128)])
def test_state_goes_on_bit_for_bit_across_fits_and_new_bins(n_codes, capacity):
    rng = np.random.default_rng(11)
    x = np.column_stack([rng.normal(size=(5200, 2)), rng.integers(0, n_codes, (5200, 2))])
    y = rule(x)
    layout = layout_of(2, 2, (capacity, capacity))
    config = Config(window=1500)
    whole = build(config, layout, 0)
    expected = walk(whole, x, y, layout)
    for cut in (1024, 2049, 4000):
        first = build(config, layout, 0)
        walk(first, x[:cut], y[:cut], layout)
        second = build(config, layout, 0)
        second.load_state(first.state())
        np.testing.assert_array_equal(walk(second, x[cut:], y[cut:], layout), expected[cut:])
        assert same_state(second.state(), whole.state())


@pytest.mark.parametrize(
    ("values", "bins", "expected"),
    [
        ([1.0, 1.0, 3.0, 5.0], 8, [2.0, 4.0]),
        ([2.0, 2.0], 8, []),
        ([], 8, []),
        ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], 2, [2.5]),
    ],
)
def test_edges_lie_between_values(values, bins, expected):
    np.testing.assert_array_equal(find_edges(np.array(values), bins), expected)


def test_bins_agree_with_edges_and_missing_is_bin_zero():
    rows = np.array([[-1.0], [2.0], [2.5], [9.0], [np.nan]])
    edges = np.array([[2.0, 4.0]])
    bins = np.zeros((5, 1), np.uint16)
    trees.bin_rows(rows, 0, 5, edges, np.array([[3, -1]]), 1, bins)
    # A value on an edge belongs below it, as the way down a tree has it.
    assert bins[:, 0].tolist() == [1, 1, 2, 3, 0]


def test_many_categories_share_places_within_the_bound():
    layout = layout_of(2, 0, (1024,) * 400)
    learner = build(Config(), layout, 0)
    assert learner.ranks.nbytes <= boosting.RANK_BYTES * 1.1
    for classes in (2, 200):
        learner.grow(Layout("classification", layout.kinds, layout.capacities, classes))
        assert learner.effects.nbytes + learner.spreads.nbytes <= 2 * category_effects.BYTES_MAX
