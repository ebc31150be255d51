"""The gradient learners (linear, mlp) and what they stand on (scaling, ladder), beyond the contract."""

import msgspec
import numpy as np
import pytest
from sklearn.datasets import make_moons
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from adaptd.contracts import CATEGORY, LEARN, NUMBER, PREDICT, Layout
from adaptd.kernels import scaling
from adaptd.learners import linear, mlp

both = pytest.mark.parametrize("module", [linear, mlp], ids=["linear", "mlp"])


def numbers(task, n_features, n_classes=0):
    return Layout(task, (NUMBER,) * n_features, (0,) * n_features, n_classes)


def walk(learner, x, y, width, op=PREDICT | LEARN, weight=1.0):
    """Step through all rows at once; what was predicted, [n, width]."""
    out = np.full((len(x), width), np.nan)
    x = np.ascontiguousarray(x, dtype=float)
    learner.step(x, np.asarray(y, float), np.full(len(x), op, np.uint8), np.full(len(x), weight), out)
    return out


def predict(learner, x, width):
    return walk(learner, x, np.full(len(x), np.nan), width, op=PREDICT)


def line_stream(n, seed=0, n_features=4):
    """Numbers, a class by the sign of a noisy sum, and the sum."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, n_features))
    total = x @ np.linspace(1.0, -1.0, n_features) + 0.1 * rng.normal(size=n)
    return x, (total > 0).astype(float), total


def xor_stream(n, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, 2))
    return x, (x[:, 0] * x[:, 1] > 0).astype(float)


def observed(values, fade=0.0):
    stats = scaling.statistics(1)
    for value in values:
        scaling.observe(float(value), stats, 0, fade)
    return stats


def test_statistics_are_mean_and_variance():
    values = np.random.default_rng(0).normal(1e6, 2.0, 5000)
    stats = observed(values)
    assert stats[0, scaling.MEAN] == pytest.approx(values.mean(), rel=1e-12)
    assert stats[0, scaling.VARIANCE] == pytest.approx(values.var(), rel=1e-6)
    assert scaling.standardise(1e6 + 4.0, stats, 0, 5.0) == pytest.approx(2.0, abs=0.1)


def test_one_absurd_value_does_not_flatten_a_column():
    values = np.random.default_rng(0).normal(size=1000)
    stats = observed([*values, 1e300, *values])
    assert stats[0, scaling.VARIANCE] < 2.0
    assert scaling.standardise(1e300, stats, 0, 3.0) == 3.0


def test_a_true_change_of_scale_gets_through():
    values = np.random.default_rng(0).normal(size=1000)
    stats = observed([*values, *(1e6 * values)])
    assert 0.1 < stats[0, scaling.INVERSE] * 1e6 < 3.0


def test_fading_statistics_follow_a_move():
    values = np.random.default_rng(0).normal(size=2000)
    moved = np.concatenate([values, values + 5.0])
    assert observed(moved)[0, scaling.MEAN] == pytest.approx(2.5, abs=0.2)
    assert observed(moved, fade=0.005)[0, scaling.MEAN] == pytest.approx(5.0, abs=0.3)


@pytest.mark.parametrize("value", [0.0, 1.0, -1e300, 5e-324])
def test_a_constant_column_says_nothing(value):
    stats = observed([value] * 50)
    assert scaling.standardise(value, stats, 0, 3.0) == 0.0


def test_missing_is_the_mean_and_teaches_no_statistics():
    stats = observed([1.0, np.nan, 3.0])
    assert stats[0, scaling.COUNT] == 2.0
    assert scaling.standardise(np.nan, stats, 0, 3.0) == 0.0


@both
def test_two_classes_keep_their_odds_when_a_third_comes(module):
    x, y, _ = line_stream(500)
    learner = module.build(module.Config(ladder=False), numbers("classification", 4, 2), 0)
    walk(learner, x, y, 2)
    before = predict(learner, x, 2)
    learner.grow(numbers("classification", 4, 3))
    after = predict(learner, x, 3)
    np.testing.assert_allclose(
        np.log(after[:, 1] / after[:, 0]), np.log(before[:, 1] / before[:, 0]), rtol=1e-9, atol=1e-9
    )


@both
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_growing_leaves_predictions_of_rows_without_the_new_as_they_were(module, task):
    n_classes = 3 if task == "classification" else 0
    width = max(1, n_classes)
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.integers(0, 4, 400), rng.normal(size=400), rng.integers(0, 4, 400)])
    y = x[:, 0] % 3
    small = Layout(task, (CATEGORY, NUMBER, CATEGORY), (4, 0, 4), n_classes)
    large = Layout(task, (CATEGORY, NUMBER, CATEGORY, NUMBER, CATEGORY), (16, 0, 4, 0, 4), n_classes)
    learner = module.build(module.Config(), small, 0)
    walk(learner, x, y, width)
    before = predict(learner, x, width)
    learner.grow(large)
    wider = np.column_stack([x, np.full((400, 2), np.nan)])
    np.testing.assert_allclose(predict(learner, wider, width), before, rtol=1e-12)


def test_interactions_survive_a_raised_capacity():
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.integers(0, 4, 400), rng.normal(size=400)])
    y = np.where(x[:, 0] > 1, x[:, 1], -x[:, 1])
    learner = linear.build(
        linear.Config(interactions=True), Layout("regression", (CATEGORY, NUMBER), (4, 0)), 0
    )
    walk(learner, x, y, 1)
    before = predict(learner, x, 1)
    learner.grow(Layout("regression", (CATEGORY, NUMBER), (32, 0)))
    np.testing.assert_array_equal(predict(learner, x, 1), before)


def test_interactions_survive_classes_that_leave_fewer_slots():
    """From four scores on there are a quarter of the slots; little is lost where pairs share one then."""
    rng = np.random.default_rng(0)
    kinds, capacities = (CATEGORY, CATEGORY, NUMBER), (64, 64, 0)
    x = np.column_stack([rng.integers(0, 16, (4000, 2)), rng.normal(size=4000)])
    y = ((x[:, 0] + x[:, 1]) % 4).astype(float)
    learner = linear.build(
        linear.Config(interactions=True), Layout("classification", kinds, capacities, 4), 0
    )
    walk(learner, x, y, 4)
    before = predict(learner, x, 4).argmax(axis=1)
    learner.grow(Layout("classification", kinds, capacities, 5))
    assert (predict(learner, x, 5).argmax(axis=1) == before).mean() > 0.95


def test_lines_need_interactions_to_learn_xor():
    x, y = xor_stream(4000)
    layout = numbers("classification", 2, 2)
    plain = walk(linear.build(linear.Config(), layout, 0), x, y, 2)[2000:]
    paired = walk(linear.build(linear.Config(interactions=True), layout, 0), x, y, 2)[2000:]
    assert np.mean(plain.argmax(axis=1) == y[2000:]) < 0.6
    assert np.mean(paired.argmax(axis=1) == y[2000:]) > 0.95


def test_mlp_learns_xor():
    x, y = xor_stream(6000)
    out = walk(mlp.build(mlp.Config(), numbers("classification", 2, 2), 0), x, y, 2)[4000:]
    assert np.mean(out.argmax(axis=1) == y[4000:]) > 0.9


def test_one_pass_of_mlp_reaches_scikit_learns_mlp():
    """On rows that neither has seen, after one pass over 4,000 rows against up to 200 epochs of them."""
    x, y = make_moons(5_000, noise=0.25, random_state=1)
    scaler = StandardScaler().fit(x[:4000])
    # Its matrices are tiny: on a busy machine more threads only wait for each other.
    with threadpool_limits(1):
        peer = MLPClassifier((10, 10), random_state=0).fit(scaler.transform(x[:4000]), y[:4000])
    target = peer.score(scaler.transform(x[4000:]), y[4000:])
    learner = mlp.build(mlp.Config(), numbers("classification", 2, 2), 0)
    walk(learner, x[:4000], y[:4000], 2)
    assert np.mean(predict(learner, x[4000:], 2).argmax(axis=1) == y[4000:]) > target - 0.02


@both
def test_recovers_within_a_thousand_rows_when_the_concept_turns_over(module):
    x, y, _ = line_stream(8000)
    y[4000:] = 1.0 - y[4000:]
    out = walk(module.build(module.Config(), numbers("classification", 4, 2), 0), x, y, 2)
    right = out.argmax(axis=1) == y
    assert right[3000:4000].mean() > 0.9
    assert right[5000:].mean() > 0.9


@both
def test_the_ladder_climbs_where_haste_pays_and_descends_where_patience_does(module):
    rng = np.random.default_rng(0)
    n = 6000
    x = rng.normal(size=(n, 3))
    layout = numbers("classification", 3, 2)
    # Labels in long runs that no feature tells of: whoever follows at once is right.
    runs = (np.arange(n) // 40 % 2).astype(float)
    noisy = (x[:, 0] + 2.0 * rng.normal(size=n) > 0).astype(float)
    config = module.Config(learning_rate=0.01)
    rates = []
    for labels in (runs, noisy):
        learner = module.build(config, layout, 0)
        walk(learner, x, labels, 2)
        rates.append(learner.vitals().learning_rate)
    assert rates[0] > 0.01 > rates[1]


def test_a_row_of_weight_two_takes_twice_the_step():
    moved = []
    for weight in (1.0, 2.0):
        learner = linear.build(linear.Config(), numbers("classification", 1, 2), 0)
        walk(learner, np.ones((1, 1)), [1.0], 2, weight=weight)
        moved.append(learner.state()["weights"])
    assert np.abs(moved[0]).max() > 0
    np.testing.assert_allclose(moved[1], 2.0 * moved[0])


@both
def test_absurd_targets_do_not_spoil_a_regression(module):
    x, _, y = line_stream(6000)
    broken = y.copy()
    broken[1000::500] = 1e300
    layout = numbers("regression", 4)
    clean = walk(module.build(module.Config(), layout, 0), x, y, 1)[4000:, 0]
    out = walk(module.build(module.Config(), layout, 0), x, broken, 1)[4000:, 0]
    assert np.abs(out - y[4000:]).mean() < 2.0 * np.abs(clean - y[4000:]).mean() + 0.2


@both
def test_a_regression_stays_near_what_it_has_seen(module):
    x, _, y = line_stream(2000)
    learner = module.build(module.Config(clip=100.0), numbers("regression", 4), 0)
    walk(learner, x, y, 1)
    out = predict(learner, 1e6 * x, 1)
    assert out.min() >= y.min() - 1.01 * y.std()
    assert out.max() <= y.max() + 1.01 * y.std()


@both
def test_a_code_beyond_its_capacity_counts_as_missing(module):
    layout = Layout("classification", (CATEGORY, NUMBER), (4, 0), 2)
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.integers(0, 4, 300), rng.normal(size=300)])
    learner = module.build(module.Config(), layout, 0)
    walk(learner, x, (x[:, 0] > 1).astype(float), 2)
    out = predict(learner, [[4.0, 0.5], [np.nan, 0.5], [-1.0, 0.5]], 2)
    np.testing.assert_array_equal(out[0], out[1])
    np.testing.assert_array_equal(out[2], out[1])


@both
def test_asleep_until_the_first_label(module):
    learner = module.build(module.Config(), numbers("classification", 2, 2), 0)
    assert np.isnan(predict(learner, np.ones((3, 2)), 2)).all()
    out = walk(learner, np.ones((2, 2)), [0.0, 0.0], 2)
    assert np.isnan(out[0]).all()
    assert out[1, 0] > 0.5


@both
def test_vitals_tell_the_rate_in_force(module):
    x, y, _ = line_stream(500)
    learner = module.build(
        module.Config(ladder=False, learning_rate=0.01), numbers("classification", 4, 2), 0
    )
    learner.rate_scale = 0.5
    walk(learner, x, y, 2)
    vitals = learner.vitals()
    assert vitals.learning_rate == 0.005
    assert vitals.gradient_norm > 0
    assert vitals.step_norm > 0


@both
def test_an_unknown_option_is_refused(module):
    with pytest.raises(msgspec.ValidationError, match="momentum"):
        msgspec.convert({"momentum": 0.9}, module.Config)
