"""`learners/factors.py`: what codes of two features mean together; and when it joins the default pool."""

import numpy as np
import pytest

from adaptd.contracts import CATEGORY, LEARN, NUMBER, PREDICT, Layout
from adaptd.learners import factors, linear
from adaptd.learners.factors import BYTES_MAX, WORK_MAX, Config, build
from adaptd.numerics import same_state
from adaptd.pool import DEFAULT_LEARNERS, FOR_MANY_CODES, NUMBERS_AFTER
from tests import streams
from tests.lanes import Bench

BOTH = PREDICT | LEARN


def walk(learner, x, y, layout, op=BOTH, weight=1.0):
    """Step through all rows at once; what was predicted, [n, width]."""
    out = np.full((len(x), layout.width), np.nan)
    x = np.ascontiguousarray(x, dtype=float)
    learner.step(x, np.asarray(y, float), np.full(len(x), op, np.uint8), np.full(len(x), weight), out)
    return out


def predict(learner, x, layout):
    return walk(learner, x, np.full(len(x), np.nan), layout, op=PREDICT)


def log_loss(out, y):
    return -np.log(np.maximum(out[np.arange(len(y)), y.astype(int)], 1e-15)).mean()


def classes(n_classes, *capacities):
    """Categories of these capacities, a 0 is a number."""
    kinds = tuple(CATEGORY if capacity else NUMBER for capacity in capacities)
    return Layout("classification", kinds, capacities, n_classes)


def numbers(*capacities):
    kinds = tuple(CATEGORY if capacity else NUMBER for capacity in capacities)
    return Layout("regression", kinds, capacities)


def hidden(n, n_codes=100, n_factors=2, seed=0):
    """Pairs of codes, and a score that is the product of what the codes' hidden numbers say."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, n_codes, (n, 2))
    first, second = rng.normal(0, 1.5, (2, n_codes, n_factors))
    score = (first[x[:, 0]] * second[x[:, 1]]).sum(axis=1)
    return x.astype(float), score, rng


def test_products_of_hidden_factors_are_learned_where_pairs_would_need_each_pair():
    """10,000 possible pairs, 20,000 rows: what two codes mean together is known from other pairs."""
    x, score, rng = hidden(20000)
    y = (rng.random(20000) < 1 / (1 + np.exp(-score))).astype(float)
    layout = classes(2, 128, 128)
    said = walk(build(Config(), layout, 0), x, y, layout)[15000:]
    pairs = linear.build(linear.Config(interactions=True, learning_rate=0.001), layout, 0)
    paired = walk(pairs, x, y, layout)[15000:]
    alone = walk(build(Config(factors=0), layout, 0), x, y, layout)[15000:]
    truth = np.column_stack([1 / (1 + np.exp(score)), 1 / (1 + np.exp(-score))])[15000:]
    tail = y[15000:]
    assert log_loss(said, tail) < log_loss(paired, tail) - 0.15
    assert log_loss(said, tail) < log_loss(alone, tail) - 0.15
    assert log_loss(said, tail) < log_loss(truth, tail) + 0.08


def test_products_are_learned_for_numbers_and_for_many_classes():
    x, score, rng = hidden(20000)
    y = 100 + 20 * score + rng.normal(0, 5, 20000)
    layout = numbers(128, 128)
    error = np.abs(walk(build(Config(), layout, 0), x, y, layout)[:, 0] - y)
    assert error[15000:].mean() < 0.4 * np.abs(y - y.mean()).mean()
    y = np.digitize(score, [-1.0, 1.0]).astype(float)
    layout = classes(3, 128, 128)
    out = walk(build(Config(), layout, 0), x, y, layout)
    assert np.mean(out.argmax(axis=1) == y) > 0.7


def test_a_sum_of_curves_is_learned():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(6000, 3))
    y = np.sin(2 * x[:, 0]) + np.abs(x[:, 1]) + rng.normal(0, 0.1, 6000)
    layout = numbers(0, 0, 0)
    error = np.abs(walk(build(Config(), layout, 0), x, y, layout)[:, 0] - y)
    assert error[4000:].mean() < 0.2


def test_a_code_met_once_is_believed_and_one_met_often_is_not_thrown_about():
    rng = np.random.default_rng(2)
    n = 4000
    layout = numbers(4096)
    rare = np.where(np.arange(n) % 2, 0, 1 + np.arange(n) // 4)[:, None]
    effect = np.where(rare[:, 0] == 0, 0.0, rng.normal(0, 10, 1001)[rare[:, 0]])
    learner = build(Config(), layout, 0)
    out = walk(learner, rare, effect, layout)[:, 0]
    second = (np.arange(n) % 4 == 2) & (np.arange(n) > 2000)
    # Each rare code comes twice; the second time a good part of what it says is known.
    assert np.abs(out[second] - effect[second]).mean() < 0.8 * np.abs(effect[second]).mean()
    assert np.abs(out[(np.arange(n) % 2 == 1) & (np.arange(n) > 2000)]).mean() < 0.5


def test_codes_that_mean_nothing_cost_little():
    rng = np.random.default_rng(3)
    x = np.column_stack([rng.normal(size=8000), rng.integers(0, 400, (8000, 2))])
    y = (rng.random(8000) < 1 / (1 + np.exp(-2 * x[:, 0]))).astype(float)
    plain, noisy = classes(2, 0), classes(2, 0, 512, 512)
    without = log_loss(walk(build(Config(), plain, 0), x[:, :1], y, plain)[4000:], y[4000:])
    assert log_loss(walk(build(Config(), noisy, 0), x, y, noisy)[4000:], y[4000:]) < without + 0.06


def test_effects_that_turn_all_at_once_are_learned_anew():
    """What 80 rows a code have shown must not have to be outvoted."""
    rng = np.random.default_rng(4)
    x = rng.integers(0, 100, (14000, 1))
    effects = rng.normal(0, 10, (2, 100))
    y = effects[(np.arange(14000) >= 8000).astype(int), x[:, 0]] + rng.normal(size=14000)
    layout = numbers(128)
    learner, stubborn = build(Config(), layout, 0), build(Config(drift_delta=0.0), layout, 0)
    error = np.abs(walk(learner, x, y, layout)[:, 0] - y)
    kept = np.abs(walk(stubborn, x, y, layout)[:, 0] - y)
    assert error[6000:8000].mean() < 1.2
    assert error[12000:].mean() < 2.0 < 5.0 < kept[12000:].mean()
    assert learner.vitals().details["drifts"] > 0


def test_no_drift_is_found_where_there_is_none():
    x, score, rng = hidden(20000)
    y = (rng.random(20000) < 1 / (1 + np.exp(-score))).astype(float)
    layout = classes(2, 128, 128)
    learner = build(Config(), layout, 0)
    walk(learner, x, y, layout)
    assert learner.vitals().details["drifts"] == 0


def test_a_target_that_was_constant_is_followed_when_it_moves():
    rng = np.random.default_rng(5)
    x = rng.integers(0, 100, (8000, 1))
    y = np.where(np.arange(8000) < 2000, 5.0, 50.0 + rng.normal(0, 10, 100)[x[:, 0]])
    layout = numbers(128)
    out = walk(build(Config(), layout, 0), x, y, layout)[:, 0]
    assert np.abs(out[7000:] - y[7000:]).mean() < 0.6 * np.abs(y[7000:] - y[7000:].mean()).mean()


def test_labels_that_turn_round_all_at_once_leave_it_calm():
    """Sure predictions that are all wrong: steps stay small enough to be of use."""
    x, score, _ = hidden(12000, n_codes=30)
    y = (score > 0).astype(float)
    y[6000:] = 1 - y[6000:]
    layout = classes(2, 64, 64)
    learner = build(Config(), layout, 0)
    out = walk(learner, x, y, layout)
    assert np.isfinite(learner.weights).all()
    assert np.abs(learner.weights).max() < 20
    assert np.mean(out[10000:].argmax(axis=1) == y[10000:]) > 0.8


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_growing_leaves_predictions_of_rows_without_the_new_as_they_were(task):
    rng = np.random.default_rng(6)
    make = classes if task == "classification" else lambda n_classes, *capacities: numbers(*capacities)
    small, large = make(3, 4, 0, 128), make(3, 16, 0, 256, 0, 4)
    x = np.column_stack([rng.integers(0, 4, 400), rng.normal(size=400), rng.integers(0, 100, 400)])
    learner = build(Config(), small, 0)
    walk(learner, x, x[:, 0] % 3, small)
    before = predict(learner, x, small)
    learner.grow(large)
    wider = np.column_stack([x, np.full((400, 2), np.nan)])
    np.testing.assert_allclose(predict(learner, wider, large), before, rtol=1e-12)


def test_two_classes_keep_their_odds_when_a_third_comes():
    x, score, _ = hidden(2000, n_codes=30)
    x = np.column_stack([x, score / 4])
    two, three = classes(2, 64, 64, 0), classes(3, 64, 64, 0)
    learner = build(Config(), two, 0)
    walk(learner, x, score > 0, two)
    before = predict(learner, x, two)
    learner.grow(three)
    after = predict(learner, x, three)
    np.testing.assert_allclose(
        np.log(after[:, 1] / after[:, 0]), np.log(before[:, 1] / before[:, 0]), rtol=1e-9, atol=1e-9
    )


def test_time_and_bytes_are_bounded_however_many_features_classes_and_codes():
    few = build(Config(), classes(2, 128, 128), 0)
    wide = build(Config(), classes(40, *[65536] * 30), 0)
    assert few.vitals().details["factors"] == 4
    assert wide.vitals().state_bytes < BYTES_MAX + 1_000_000
    pairs = 24 * 23 // 2
    assert wide.vitals().details["factors"] * pairs * 40 <= WORK_MAX
    x = np.random.default_rng(7).integers(0, 65536, (50, 30))
    out = walk(wide, x, np.arange(50) % 40, classes(40, *[65536] * 30))
    assert np.isfinite(out[1:]).all()


def test_what_a_state_of_few_places_knows_goes_on_where_there_are_fewer():
    """Classes that come take room from codes; the codes met first keep theirs."""
    rng = np.random.default_rng(8)
    x = rng.integers(0, 50, (3000, 4))
    y = (x[:, 0] % 2).astype(float)
    capacities = (16384,) * 4
    learner = build(Config(), classes(2, *capacities), 0)
    walk(learner, x, y, classes(2, *capacities))
    places = learner._plan[0, factors.PLACES]
    learner.grow(classes(8, *capacities))
    assert learner._plan[0, factors.PLACES] < places
    out = predict(learner, x, classes(8, *capacities))
    assert np.mean(out.argmax(axis=1) == y) > 0.95


# In the default pool.

FEW_CODES, MANY_CODES = 60, 90


def records(n, n_codes, seed=0, of_numbers=False):
    """A user and a shop; how they suit each other, by what each is like and by two hidden numbers."""
    rng = np.random.default_rng(seed)
    first, second, user, shop = rng.normal(size=(4, n_codes))
    found = []
    for i in range(n):
        a, b = (int(code) for code in rng.integers(0, min(n_codes, 4 + i), 2))
        score = round(user[a] + shop[b] + 2 * first[a] * second[b] + 0.3 * rng.normal(), 4)
        y = score if of_numbers else "yes" if score > 0 else "no"
        found.append({"id": i, "user": f"u{a}", "shop": f"s{b}", "size": round(rng.normal(), 4), "y": y})
    return found


def joined(bench):
    return [(row, payload["learner"]) for row, payload in bench.events("learner_joined")]


def test_joins_the_default_pool_with_the_65th_code_and_not_before():
    few, many = Bench(learners={}), Bench(learners={})
    few.feed(records(600, FEW_CODES))
    assert joined(few) == []
    assert not set(FOR_MANY_CODES) & set(few.lane.pool.names)
    rows = records(600, MANY_CODES)
    many.feed(rows)
    (row, name), *others = joined(many)
    assert [name, *(other for _, other in others)] == list(FOR_MANY_CODES)
    assert {at for at, _ in others} == {row}
    assert len({record["user"] for record in rows[:row]}) <= 64
    assert 65 in (len({record[key] for record in rows[: row + 1]}) for key in ("user", "shop"))
    assert not np.isnan(many.lane.scores.cumulative(many.lane.pool.names.index("factors"))["log_loss"])


@pytest.mark.parametrize("stop", [NUMBERS_AFTER - 100, NUMBERS_AFTER, NUMBERS_AFTER + 100])
def test_joins_where_the_target_is_a_number_after_some_rows_and_a_stop_leaves_no_trace(stop):
    rows, tree = streams.numbers(NUMBERS_AFTER + 300), {"schema": {"task": "regression"}}
    whole = Bench(tree, {}).feed(rows)
    assert joined(whole) == [(NUMBERS_AFTER, "factors")]
    before, after = Bench(tree, {}).feed(rows[:stop], list(range(9, stop, 9))), Bench(tree, {})
    assert after.lane.load_state(before.lane.state()) == []
    after.feed(rows[stop:])
    np.testing.assert_array_equal(before.numbers() + after.numbers(), whole.numbers())
    assert same_state(after.lane.state(), whole.lane.state())


def test_leaves_a_configured_pool_alone():
    bench = Bench(learners={"prior": {"kind": "prior"}, "linear": {"kind": "linear"}})
    bench.feed(records(400, MANY_CODES))
    assert bench.lane.pool.names == ["prior", "linear"]


def test_the_pool_is_better_with_it():
    rows = records(6000, MANY_CODES, of_numbers=True)
    tree = {"schema": {"task": "regression"}}
    with_it, without = Bench(tree, {}).feed(rows), Bench(tree, DEFAULT_LEARNERS).feed(rows)
    names = with_it.lane.pool.names
    truth = np.array([record["y"] for record in rows])
    errors = [np.abs(np.array(each.numbers()) - truth)[3000:].mean() for each in (with_it, without)]
    assert errors[0] < 0.9 * errors[1]
    weights = with_it.lane.controller.weights()
    assert sum(weights[names.index(name)] for name in FOR_MANY_CODES) > 0.15


@pytest.mark.parametrize("step", [1, 7, 250])
def test_reads_of_any_size_give_the_same_bits_across_its_coming(step):
    rows = records(500, MANY_CODES)
    first = Bench(learners={}).feed(rows)
    second = Bench(learners={}).feed(rows, list(range(step, len(rows), step)))
    assert joined(first)
    for one, other in zip(first.values, second.values, strict=True):
        np.testing.assert_array_equal(one, other)
    assert same_state(second.lane.state(), first.lane.state())


@pytest.mark.parametrize("stop", [50, 400])
def test_a_stop_before_or_after_its_coming_leaves_no_trace(stop):
    rows = records(600, MANY_CODES)
    whole = Bench(learners={}).feed(rows)
    row, _ = joined(whole)[0]
    assert 50 < row < 400
    before = Bench(learners={}).feed(rows[:stop])
    after = Bench(learners={})
    assert after.lane.load_state(before.lane.state()) == []
    after.feed(rows[stop:])
    for one, other in zip(after.values, whole.values[stop:], strict=True):
        np.testing.assert_array_equal(one, other)
    assert same_state(after.lane.state(), whole.lane.state())


def test_numbers_that_turn_the_task_keep_it():
    rng = np.random.default_rng(9)
    rows = [
        {"id": i, "user": f"u{i % 80}", "y": i % 7 if i < 150 else round(rng.normal(), 3)} for i in range(400)
    ]
    bench = Bench(learners={}).feed(rows)
    assert bench.lane.layout.task == "regression"
    assert set(FOR_MANY_CODES) <= set(bench.lane.pool.names)


def test_a_pool_that_is_configured_later_goes_on_without_it_and_the_default_pool_with_it():
    rows = records(800, MANY_CODES)
    bench = Bench(learners={}).feed(rows[:400])
    named = Bench(learners={"prior": {"kind": "prior"}, "linear": {"kind": "linear"}})
    bench.lane.next_config = named.config
    bench.feed(rows[400:600])
    assert bench.lane.pool.names[:2] == ["prior", "linear"]
    assert not set(FOR_MANY_CODES) & set(bench.lane.pool.names)
    bench.lane.next_config = Bench(learners={}).config
    bench.feed(rows[600:])
    assert set(FOR_MANY_CODES) <= set(bench.lane.pool.names)
