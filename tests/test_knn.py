"""What the nearest neighbours promise beyond the contract."""

import numpy as np

from adaptd.contracts import CATEGORY, LEARN, NUMBER, PREDICT, Layout
from adaptd.learners import knn


def walk(learner, x, y, width, op=PREDICT | LEARN):
    n = len(y)
    out = np.full((n, width), np.nan)
    learner.step(
        np.ascontiguousarray(x, dtype=float), np.array(y, float), np.full(n, op, np.uint8), np.ones(n), out
    )
    return out


def build(kinds, task="classification", n_classes=2, **options):
    capacities = tuple(64 if kind == CATEGORY else 0 for kind in kinds)
    layout = Layout(task, kinds, capacities, n_classes if task == "classification" else 0)
    return knn.build(knn.Config(**options), layout, 0)


def ask(learner, x, width=2):
    return walk(learner, x, np.full(len(x), np.nan), width, op=PREDICT)


def chessboard(n, seed=1):
    rng = np.random.default_rng(seed)
    x = rng.random((n, 2))
    return x, (np.floor(4 * x).sum(axis=1) % 2).astype(float)


def test_learns_a_chessboard():
    x, y = chessboard(3000)
    out = walk(build((NUMBER, NUMBER)), x, y, 2)
    assert (out.argmax(axis=1) == y)[1500:].mean() > 0.9


def test_nearest_neighbour_is_the_one_that_brute_force_finds():
    rng = np.random.default_rng(2)
    window, d = 200, 19
    x = rng.normal(0, 1, (1000, d)) * rng.uniform(0.1, 50, d) + rng.normal(0, 100, d)
    y = rng.normal(0, 1, 1000)
    learner = build((NUMBER,) * d, "regression", window=window, neighbours=(1,), recent=(), scale_limit=1e6)
    # The scales are those after the last multiple of 128 learned rows.
    walk(learner, x[:896], y[:896], 1)
    kept = x[896 - window : 896]
    mean, sd = kept.mean(axis=0), kept.std(axis=0)
    found = ask(learner, x[896:], 1)[:, 0]
    distances = ((((x[896:, None] - mean) - (kept[None] - mean)) / sd) ** 2).sum(axis=2)
    np.testing.assert_array_equal(found, y[896 - window : 896][distances.argmin(axis=1)])


def test_the_unit_of_a_feature_does_not_matter():
    x, y = chessboard(1500)
    plain = walk(build((NUMBER, NUMBER)), x, y, 2)
    # Powers of two: nothing is rounded, so that the bits agree.
    scaled = walk(build((NUMBER, NUMBER)), x * np.array([2.0**40, 2.0**-40]), y, 2)
    np.testing.assert_array_equal(plain, scaled)


def test_a_large_offset_does_not_hide_small_differences():
    x, y = chessboard(3000)
    out = walk(build((NUMBER, NUMBER)), x + 1.7e9, y, 2)
    assert (out.argmax(axis=1) == y)[1500:].mean() > 0.88


def test_rows_older_than_the_window_are_forgotten():
    x, y = chessboard(2000)
    learner = build((NUMBER, NUMBER), window=300, neighbours=(1,), recent=())
    walk(learner, x, y, 2)
    walk(learner, x[:300], 1 - y[:300], 2)
    assert (ask(learner, x[:300]).argmax(axis=1) == 1 - y[:300]).all()


def test_the_newest_rows_take_over_after_a_drift():
    x, y = chessboard(4000)
    y[2000:] = 1 - y[2000:]
    after = slice(2300, 2800)
    with_part = walk(build((NUMBER, NUMBER)), x, y, 2)[after].argmax(axis=1) == y[after]
    without = walk(build((NUMBER, NUMBER), recent=()), x, y, 2)[after].argmax(axis=1) == y[after]
    assert with_part.mean() > without.mean() + 0.2


def test_probabilities_are_as_sure_as_they_are_right():
    rng = np.random.default_rng(3)
    x = rng.random((6000, 2))
    y = (rng.random(6000) < np.where(x[:, 0] > 0.5, 0.9, 0.2)).astype(float)
    out = walk(build((NUMBER, NUMBER)), x, y, 2)[2000:]
    top = out.max(axis=1)
    right = out.argmax(axis=1) == y[2000:]
    assert abs(top.mean() - right.mean()) < 0.03, (top.mean(), right.mean())


def test_equal_categories_are_near_and_codes_have_no_order():
    rng = np.random.default_rng(4)
    x = np.column_stack([rng.integers(0, 40, 3000), rng.random(3000)]).astype(float)
    y = x[:, 0] % 2
    out = walk(build((CATEGORY, NUMBER)), x, y, 2)
    assert (out.argmax(axis=1) == y)[1000:].mean() > 0.97


def test_missing_values_leave_the_rest_of_the_row_in_use():
    x, y = chessboard(3000)
    x = np.column_stack([x, np.random.default_rng(5).random(3000)])
    x[:, 2] = np.nan
    out = walk(build((NUMBER,) * 3), x, y, 2)
    assert (out.argmax(axis=1) == y)[1500:].mean() > 0.9


def test_regression_follows_a_curve():
    rng = np.random.default_rng(6)
    x = rng.random((3000, 1))
    y = np.sin(6 * x[:, 0]) + rng.normal(0, 0.1, 3000)
    out = walk(build((NUMBER,), "regression"), x, y, 1)[1000:, 0]
    assert np.abs(out - np.sin(6 * x[1000:, 0])).mean() < 0.05


def test_a_window_that_is_no_multiple_of_a_block_works_to_its_edge():
    x, y = chessboard(500)
    learner = build((NUMBER, NUMBER), window=65, neighbours=(1,), recent=())
    walk(learner, x, y, 2)
    assert (ask(learner, x[-65:]).argmax(axis=1) == y[-65:]).all()
