"""What the prior, the last value and naive Bayes promise beyond the contract."""

import numpy as np
import pytest

from adaptd.contracts import CATEGORY, LEARN, NUMBER, PREDICT, Layout
from adaptd.learners import last_value, naive_bayes, prior

BOTH = PREDICT | LEARN


def walk(learner, x, y, width, op=None, weight=None):
    n = len(y)
    x = np.zeros((n, 0)) if x is None else np.ascontiguousarray(x, dtype=float)
    op = np.full(n, BOTH, np.uint8) if op is None else np.array(op, np.uint8)
    weight = np.ones(n) if weight is None else np.array(weight, float)
    out = np.full((n, width), -7.0)
    learner.step(x, np.array(y, float), op, weight, out)
    return out


def classes(n):
    return Layout("classification", (), (), n)


NUMBERS = Layout("regression")


def log_loss(out, y, start):
    shares = out[np.arange(len(y)), y.astype(int)][start:]
    return -np.log(shares).mean()


def test_prior_sleeps_until_something_is_learned():
    out = walk(prior.build(prior.Config(), classes(2), 0), None, [1, 1], 2)
    assert np.isnan(out[0]).all()
    np.testing.assert_allclose(out[1], [0.25, 0.75])


def test_prior_without_fading_is_the_smoothed_frequency():
    learner = prior.build(prior.Config(fading_factor=1.0), classes(3), 0)
    out = walk(learner, None, [0, 0, 1, 2, 0, 0], 3)
    np.testing.assert_allclose(out[-1], np.array([3.5, 1.5, 1.5]) / 6.5)


def test_prior_forgets_the_class_of_long_ago():
    y = np.array([0.0] * 2000 + [1.0] * 2000)
    out = walk(prior.build(prior.Config(fading_factor=0.99), classes(2), 0), None, y, 2)
    assert out[1999, 0] > 0.98
    assert out[-1, 1] > 0.98


def test_prior_weights_count_like_repeated_rows():
    once = prior.build(prior.Config(fading_factor=1.0), NUMBERS, 0)
    many = prior.build(prior.Config(fading_factor=1.0), NUMBERS, 0)
    walk(once, None, [1.0, 5.0], 1, weight=[1, 3])
    walk(many, None, [1.0, 5.0, 5.0, 5.0], 1)
    probe = {"op": [PREDICT], "weight": [1]}
    np.testing.assert_allclose(walk(once, None, [np.nan], 1, **probe), [[4.0]])
    np.testing.assert_allclose(walk(many, None, [np.nan], 1, **probe), [[4.0]])


def test_prior_median_withstands_outliers_that_move_the_mean():
    rng = np.random.default_rng(3)
    y = rng.normal(10, 1, 4000)
    y[::10] += 1000
    median = walk(prior.build(prior.Config(centre="median"), NUMBERS, 0), None, y, 1)
    mean = walk(prior.build(prior.Config(centre="mean"), NUMBERS, 0), None, y, 1)
    assert 9 < np.median(median[2000:]) < 12
    assert np.median(mean[2000:]) > 90


def test_last_value_learns_a_cycle():
    y = np.arange(300) % 3
    out = walk(last_value.build(last_value.Config(), classes(3), 0), None, y, 3)
    assert (out[30:].argmax(axis=1) == y[30:]).all()
    assert out[-1, y[-1]] > 0.9


def test_last_value_probabilities_match_how_often_labels_repeat():
    rng = np.random.default_rng(4)
    y = np.zeros(6000)
    for i in range(1, len(y)):
        y[i] = y[i - 1] if rng.random() < 0.8 else rng.integers(0, 4)
    out = walk(last_value.build(last_value.Config(), classes(4), 0), None, y, 4)
    repeats = 0.8 + 0.2 / 4
    best = -repeats * np.log(repeats) - (1 - repeats) * np.log((1 - repeats) / 3)
    assert log_loss(out, y, 1000) < best + 0.05
    stay = out[np.arange(1, len(y)), y[:-1].astype(int)][1000:]
    assert abs(stay.mean() - repeats) < 0.03


def test_last_value_of_a_class_with_no_history_leans_on_the_other_classes():
    learner = last_value.build(last_value.Config(), classes(5), 0)
    out = walk(learner, None, [0] * 50 + [1] * 50 + [2, 2], 5)
    assert out[-1].argmax() == 2
    assert out[-1, 2] > 0.8


def test_last_value_uses_only_labels_that_arrived():
    learner = last_value.build(last_value.Config(), NUMBERS, 0)
    nan = np.nan
    y = [3.0, nan, nan, 4.0, nan]
    op = [BOTH, PREDICT, PREDICT, LEARN, PREDICT]
    out = walk(learner, None, y, 1, op=op)[:, 0]
    assert np.isnan(out[0])
    np.testing.assert_array_equal(out[1:], [3.0, 3.0, -7.0, 4.0])


def two_normals(n=3000, seed=5):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n).astype(float)
    return rng.normal(0, 1, (n, 2)) + 1.5 * y[:, None], y


def test_naive_bayes_finds_the_best_boundary_of_two_normals():
    x, y = two_normals()
    out = walk(
        naive_bayes.build(naive_bayes.Config(), Layout("classification", (NUMBER,) * 2, (0, 0), 2), 0),
        x,
        y,
        2,
    )
    best = (x.sum(axis=1) > 1.5) == y
    assert (out.argmax(axis=1) == y)[500:].mean() > best[500:].mean() - 0.015


def test_naive_bayes_is_not_surer_for_copies_of_a_feature():
    x, y = two_normals()
    layout = Layout("classification", (NUMBER,) * 2, (0,) * 2, 2)
    wide = Layout("classification", (NUMBER,) * 20, (0,) * 20, 2)
    once = walk(naive_bayes.build(naive_bayes.Config(), layout, 0), x, y, 2)
    copies = walk(naive_bayes.build(naive_bayes.Config(), wide, 0), np.tile(x, 10), y, 2)
    assert abs(log_loss(copies, y, 500) - log_loss(once, y, 500)) < 0.03


def test_naive_bayes_learns_categories_and_skips_missing_values():
    rng = np.random.default_rng(6)
    x = rng.integers(0, 8, (3000, 2)).astype(float)
    y = ((x[:, 0] >= 4) ^ (rng.random(3000) < 0.1)).astype(float)
    x[rng.random(x.shape) < 0.2] = np.nan
    out = walk(
        naive_bayes.build(naive_bayes.Config(), Layout("classification", (CATEGORY,) * 2, (8, 8), 2), 0),
        x,
        y,
        2,
    )
    known = ~np.isnan(x[:, 0])
    known[:500] = False
    assert (out.argmax(axis=1) == y)[known].mean() > 0.87
    assert abs(out[~known][500:, 1].mean() - 0.5) < 0.1


def test_naive_bayes_keeps_category_counts_when_a_capacity_grows():
    small = Layout("classification", (CATEGORY, CATEGORY), (4, 4), 2)
    large = Layout("classification", (CATEGORY, CATEGORY), (16, 8), 2)
    learner = naive_bayes.build(naive_bayes.Config(), small, 0)
    rng = np.random.default_rng(7)
    x = rng.integers(0, 4, (400, 2)).astype(float)
    y = (x[:, 1] >= 2).astype(float)
    walk(learner, x, y, 2)
    learner.grow(large)
    op = np.full(400, PREDICT, np.uint8)
    assert (walk(learner, x, np.full(400, np.nan), 2, op=op).argmax(axis=1) == y).all()


def test_naive_bayes_remembers_values_that_come_once_in_a_thousand_rows():
    rng = np.random.default_rng(8)
    x = rng.integers(0, 1000, (12_000, 1)).astype(float)
    y = ((x[:, 0] * 7 % 10 < 5) ^ (rng.random(12_000) < 0.05)).astype(float)
    layout = Layout("classification", (CATEGORY,), (1024,), 2)
    out = walk(naive_bayes.build(naive_bayes.Config(), layout, 0), x, y, 2)
    assert (out.argmax(axis=1) == y)[8000:].mean() > 0.92


@pytest.mark.parametrize("module", [prior, last_value, naive_bayes])
def test_probabilities_stay_honest_for_a_class_not_learned_yet(module):
    out = walk(module.build(module.Config(), classes(3), 0), None, [0, 1, 0, 1], 3)
    assert (out[1:] > 0).all()
    assert (out[1:, 2] < 1 / 3).all()
