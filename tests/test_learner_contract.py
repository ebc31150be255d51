"""Every learner that the registry finds keeps the promises of `contracts.Learner`.

A learner that cannot keep one says so in its module, as data: `EXCEPTIONS = {"test_name": "the reason"}`.
That test then has to fail.
"""

import numpy as np
import pytest

from adaptd import registry
from adaptd.contracts import CATEGORY, LEARN, NUMBER, PREDICT, Layout
from adaptd.numerics import same_state

ROWS = 600


def cases(trait: str = "", default: bool = True) -> list:
    """(kind, task) for every learner that has `trait` (by default or not), and each task it serves."""
    return [
        pytest.param(kind, task, id=f"{kind}-{task}")
        for kind in registry.kinds("learners")
        for task in registry.load("learners", kind).TASKS
        if not trait or getattr(registry.load("learners", kind), trait, default)
    ]


every_learner = pytest.mark.parametrize(("kind", "task"), cases())
learners_that_look_at_features = pytest.mark.parametrize(("kind", "task"), cases("USES_FEATURES"))
gradient_learners = pytest.mark.parametrize(("kind", "task"), cases("HAS_RATE", default=False))


@pytest.fixture(autouse=True)
def declared_exceptions(request):
    kind = request.node.callspec.params.get("kind")
    reasons = getattr(registry.load("learners", kind), "EXCEPTIONS", {})
    reason = reasons.get(request.node.originalname)
    if reason:
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))


def layout_for(task: str, n_classes: int = 3) -> Layout:
    return Layout(
        task, (NUMBER, NUMBER, CATEGORY, NUMBER), (0, 0, 8, 0), n_classes * (task == "classification")
    )


def make(kind: str, layout: Layout, seed: int = 0):
    module = registry.load("learners", kind)
    return module.build(module.Config(), layout, seed)


def stream(task: str, n: int = ROWS, seed: int = 1, n_classes: int = 3):
    """Rows that can be learned, with missing values, late labels and unlabelled rows among them."""
    rng = np.random.default_rng(seed)
    x = np.column_stack(
        [rng.normal(3, 2, n), rng.normal(0, 1, n), rng.integers(0, 8, n), rng.exponential(1, n)]
    )
    score = x[:, 0] - 3 + 2 * x[:, 1] + (x[:, 2] > 3) - x[:, 3]
    if task == "classification":
        y = np.digitize(score, [-1.0, 1.0])[:n].astype(float) % n_classes
    else:
        y = 10 + 2 * score + rng.normal(0, 0.3, n)
    x[rng.random(x.shape) < 0.05] = np.nan
    op = rng.choice([PREDICT, LEARN, PREDICT | LEARN], n, p=[0.15, 0.15, 0.7]).astype(np.uint8)
    y[(op & LEARN) == 0] = np.nan
    return np.ascontiguousarray(x), y, op, np.ones(n)


def run(learner, data, cuts, width):
    """Step through `data` cut at `cuts`; rows that are not predicted keep the mark -7."""
    x, y, op, weight = data
    out = np.full((len(y), width), -7.0)
    for start, stop in zip([0, *cuts], [*cuts, len(y)], strict=True):
        part = slice(start, stop)
        learner.step(np.ascontiguousarray(x[part]), y[part], op[part], weight[part], out[part])
    return out


@every_learner
def test_any_cut_gives_the_same_bits(kind, task):
    layout = layout_for(task)
    data = stream(task)
    whole = make(kind, layout)
    expected = run(whole, data, [], layout.width)
    random_cuts = sorted(np.random.default_rng(5).choice(np.arange(1, ROWS), 23, replace=False).tolist())
    for cuts in (list(range(1, ROWS)), list(range(7, ROWS, 7)), random_cuts):
        learner = make(kind, layout)
        np.testing.assert_array_equal(run(learner, data, cuts, layout.width), expected)
        assert same_state(learner.state(), whole.state())


@every_learner
def test_predictions_have_the_promised_form(kind, task):
    layout = layout_for(task)
    x, y, op, weight = stream(task)
    out = run(make(kind, layout), (x, y, op, weight), [], layout.width)
    assert np.all(out[(op & PREDICT) == 0] == -7.0), "wrote where PREDICT is not set"
    predicted = out[(op & PREDICT) != 0]
    awake = ~np.isnan(predicted).any(axis=1)
    assert awake[50:].all()
    if task == "classification":
        assert np.all(predicted[awake] >= 0)
        np.testing.assert_allclose(predicted[awake].sum(axis=1), 1, atol=1e-9)
    assert np.isfinite(predicted[awake]).all()


@every_learner
def test_predicting_changes_nothing(kind, task):
    layout = layout_for(task)
    x, y, op, weight = stream(task)
    learner = make(kind, layout)
    run(learner, (x, y, op, weight), [], layout.width)
    before = learner.state()
    only_predict = np.full(len(y), PREDICT, np.uint8)
    first = run(learner, (x, np.full(len(y), np.nan), only_predict, weight), [], layout.width)
    second = run(learner, (x, np.full(len(y), np.nan), only_predict, weight), [], layout.width)
    np.testing.assert_array_equal(first, second)
    assert same_state(learner.state(), before)


@every_learner
def test_state_goes_on_bit_for_bit(kind, task):
    layout = layout_for(task)
    data = stream(task)
    for row in (0, 1, 333):
        learner = make(kind, layout)
        run(learner, [part[:row] for part in data], [], layout.width)
        twin = make(kind, layout)
        twin.load_state(learner.state())
        rest = [part[row:] for part in data]
        np.testing.assert_array_equal(run(twin, rest, [], layout.width), run(learner, rest, [], layout.width))
        assert same_state(twin.state(), learner.state())


@every_learner
def test_a_taken_state_does_not_move_on(kind, task):
    layout = layout_for(task)
    data = stream(task)
    learner, twin = make(kind, layout), make(kind, layout)
    for each in (learner, twin):
        run(each, [part[:300] for part in data], [], layout.width)
    taken = learner.state()
    run(learner, [part[300:] for part in data], [], layout.width)
    assert same_state(taken, twin.state())


@every_learner
def test_same_seed_same_state(kind, task):
    layout = layout_for(task)
    first, second = make(kind, layout, seed=3), make(kind, layout, seed=3)
    data = stream(task)
    run(first, data, [], layout.width)
    run(second, data, [], layout.width)
    assert same_state(first.state(), second.state())


@every_learner
def test_grows_by_a_feature_a_category_and_a_class(kind, task):
    small = Layout(task, (NUMBER, NUMBER), (0, 0), 2 * (task == "classification"))
    wider = Layout(task, (NUMBER, NUMBER, CATEGORY), (0, 0, 4), small.n_classes)
    large = layout_for(task)
    x, y, op, weight = stream(task)
    learner = make(kind, small)
    few = np.where(np.isnan(y), np.nan, np.minimum(y, 1)) if task == "classification" else y
    run(learner, (np.ascontiguousarray(x[:, :2]), few, op, weight), [], small.width)
    learner.grow(wider)
    in_reach = x[:, :3].copy()
    in_reach[:, 2] = np.minimum(in_reach[:, 2], 3)
    out = run(learner, (in_reach, few, op, weight), [], wider.width)
    assert not np.isnan(out).any()
    learner.grow(large)
    out = run(learner, (x, y, op, weight), [], large.width)
    assert not np.isnan(out).any()
    twin = make(kind, large)
    twin.load_state(learner.state())
    np.testing.assert_array_equal(
        run(twin, (x, y, op, weight), [], large.width), run(learner, (x, y, op, weight), [], large.width)
    )


@every_learner
def test_starts_with_no_feature_and_one_class(kind, task):
    empty = Layout(task, (), (), int(task == "classification"))
    learner = make(kind, empty)
    y = np.zeros(5)
    op = np.full(5, PREDICT | LEARN, np.uint8)
    out = run(learner, (np.zeros((5, 0)), y, op, np.ones(5)), [], 1)
    assert out.shape == (5, 1)
    awake = out[~np.isnan(out)]
    assert np.all(awake == 1.0) if task == "classification" else np.all(np.isfinite(awake))


@every_learner
@pytest.mark.parametrize("trouble", ["constant", "huge", "tiny", "missing", "collinear", "outlier"])
def test_survives_hard_input(kind, task, trouble):
    layout = layout_for(task)
    x, y, op, weight = stream(task)
    if trouble == "constant":
        x[:, [0, 1, 3]] = 5.0
    elif trouble == "huge":
        x[:, [0, 1, 3]] *= 1e150
    elif trouble == "tiny":
        x[:, [0, 1, 3]] *= 1e-150
    elif trouble == "missing":
        x[:] = np.nan
    elif trouble == "collinear":
        x[:, 1] = x[:, 0]
        x[:, 3] = 2 * x[:, 0]
    elif trouble == "outlier":
        x[::97, 0] = 1e12
        if task == "regression":
            y[::89] *= 1e9
    learner = make(kind, layout)
    run(learner, (x, y, op, weight), [], layout.width)
    normal = stream(task, seed=2)
    out = run(learner, normal, [], layout.width)
    predicted = out[(normal[2] & PREDICT) != 0]
    assert np.isfinite(predicted).all()


@learners_that_look_at_features
def test_learns_more_than_nothing(kind, task):
    """Better than a constant answer where features tell."""
    layout = layout_for(task)
    x, y, op, weight = stream(task, n=3000)
    op[:] = PREDICT | LEARN
    y = stream(task, n=3000)[1]
    rng = np.random.default_rng(1)
    score = np.nan_to_num(x[:, 0], nan=3) - 3 + 2 * np.nan_to_num(x[:, 1]) - np.nan_to_num(x[:, 3], nan=1)
    y = (
        np.digitize(score, [-1.0, 1.0]).astype(float)
        if task == "classification"
        else score + rng.normal(0, 0.1, 3000)
    )
    out = run(make(kind, layout), (x, y, op, weight), [], layout.width)[1500:]
    if task == "classification":
        accuracy = np.mean(out.argmax(axis=1) == y[1500:])
        assert accuracy > 0.6
    else:
        assert np.abs(out[:, 0] - y[1500:]).mean() < 0.7 * np.abs(y[1500:] - y[1500:].mean()).mean()


@gradient_learners
def test_a_zero_rate_scale_learns_nothing(kind, task):
    layout = layout_for(task)
    data = stream(task)
    learner = make(kind, layout)
    run(learner, data, [], layout.width)
    probe = (data[0], np.full(ROWS, np.nan), np.full(ROWS, PREDICT, np.uint8), data[3])
    before = run(learner, probe, [], layout.width)
    learner.rate_scale = 0.0
    run(learner, stream(task, seed=9), [], layout.width)
    np.testing.assert_array_equal(run(learner, probe, [], layout.width), before)


@every_learner
def test_who_tells_a_learning_rate_obeys_the_rate_scale(kind, task):
    """Copies of whoever tells one are tried with other scales after a drift."""
    layout = layout_for(task)
    data = stream(task)
    learner = make(kind, layout)
    run(learner, data, [], layout.width)
    if np.isnan(learner.vitals().learning_rate):
        assert not getattr(registry.load("learners", kind), "HAS_RATE", False)
        return
    twin = make(kind, layout)
    twin.load_state(learner.state())
    twin.rate_scale = 4.0
    more = stream(task, seed=9)
    assert (run(learner, more, [], layout.width) != run(twin, more, [], layout.width)).any()


@every_learner
def test_a_heavier_row_counts_no_less(kind, task):
    """Row weights of zero teach nothing about the label."""
    layout = layout_for(task)
    x, y, op, weight = stream(task)
    learner, twin = make(kind, layout), make(kind, layout)
    run(learner, (x, y, op, weight), [], layout.width)
    twin.load_state(learner.state())
    probe = (x[:50], np.full(50, np.nan), np.full(50, PREDICT, np.uint8), weight[:50])
    wrong = (y + 1) % 3 if task == "classification" else y + 100
    run(learner, (x[:60], wrong[:60], op[:60], np.zeros(60)), [], layout.width)
    np.testing.assert_allclose(
        run(learner, probe, [], layout.width), run(twin, probe, [], layout.width), atol=0.2, rtol=0.2
    )


@every_learner
def test_state_stays_bounded(kind, task):
    layout = layout_for(task)
    learner = make(kind, layout)
    rows = 100_000 if getattr(registry.load("learners", kind), "COMPILED", True) else 3_000
    x, y, op, weight = stream(task, n=rows)
    run(learner, (x, y, op, weight), [], layout.width)
    vitals = learner.vitals()
    assert 0 < vitals.state_bytes < 64_000_000
    assert len(vitals.details) <= 16
