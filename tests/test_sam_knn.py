"""What the two memories promise beyond the contract."""

import numpy as np

from adaptd.contracts import LEARN, NUMBER, PREDICT, Layout
from adaptd.learners import sam_knn
from adaptd.learners.sam_knn import Config, build


def run(learner, x, y, n_classes=2):
    out = np.full((len(y), n_classes), np.nan)
    op = np.full(len(y), PREDICT | LEARN, np.uint8)
    learner.step(np.ascontiguousarray(x), y.astype(float), op, np.ones(len(y)), out)
    return out.argmax(axis=1) == y


def layout(d=2, n_classes=2):
    return Layout("classification", (NUMBER,) * d, (0,) * d, n_classes)


def board(rng, n, turned):
    """Four squares, two classes; `turned` changes the classes."""
    x = rng.uniform(-1, 1, (n, 2))
    return x, ((x[:, 0] > 0) ^ (x[:, 1] > 0) ^ turned).astype(int)


def test_short_memory_gives_up_what_a_new_concept_contradicts():
    rng = np.random.default_rng(0)
    learner = build(Config(), layout(), 0)
    run(learner, *board(rng, 3000, False))
    assert learner.vitals().details["cuts"] == 0
    assert learner.vitals().details["short_term_rows"] == 3000
    right = run(learner, *board(rng, 1000, True))
    assert learner.vitals().details["cuts"] > 0
    assert learner.vitals().details["short_term_rows"] < 2000
    assert right[300:].mean() > 0.93


def test_long_memory_holds_a_region_that_the_window_has_lost():
    """Rows on the right come first, then only rows on the left, more than the window holds."""
    rng = np.random.default_rng(1)
    learner = build(Config(window=512), layout(), 0)
    x, _ = board(rng, 1500, False)
    x[:, 0] = np.abs(x[:, 0])
    run(learner, x, (x[:, 1] > 0).astype(int))
    left, _ = board(rng, 2000, False)
    left[:, 0] = -np.abs(left[:, 0])
    run(learner, left, (left[:, 1] <= 0).astype(int))
    again = x[:200]
    assert (learner._rows[:, 0] < 0).all()
    assert run(learner, again, (again[:, 1] > 0).astype(int))[:60].mean() > 0.8


def test_long_memory_keeps_nothing_that_new_rows_contradict():
    rng = np.random.default_rng(2)
    learner = build(Config(window=256), layout(), 0)
    run(learner, *board(rng, 3000, False))
    run(learner, *board(rng, 3000, True))
    n = int(learner._counters[sam_knn.LONG_ROWS])
    rows, labels = learner._long_rows[:n], learner._long_labels[:n]
    inside = np.abs(rows).min(axis=1) > 0.15
    wrong = ((rows[:, 0] > 0) ^ (rows[:, 1] > 0)) == (labels == 1)
    assert n > 100
    assert wrong[inside].mean() < 0.05


def test_both_memories_stay_within_their_bounds_and_weight_is_kept():
    rng = np.random.default_rng(3)
    learner = build(Config(window=128, long_term=64), layout(3, 3), 0)
    x = rng.normal(size=(5000, 3))
    x[::7, 1] = np.nan
    run(learner, x, np.digitize(x[:, 0], [-0.5, 0.5]), 3)
    n = int(learner._counters[sam_knn.LONG_ROWS])
    assert 0 < n <= 64
    assert (learner._long_weights[:n] > 0).all()
    # Merged rows weigh as much as what they were made of.
    assert learner._long_weights[:n].max() > 1
    assert not np.isnan(learner._long_rows[:n, 0]).any()
    kept = learner._long_scaled.swapaxes(1, 2).reshape(-1, 3)[:n].copy()
    learner._arrange()
    np.testing.assert_array_equal(kept, learner._long_scaled.swapaxes(1, 2).reshape(-1, 3)[:n])
