"""Every controller that the registry finds keeps the promises of `contracts.Controller`.

`REGRET_MAX` of a controller's module: how much more it loses than the best learner of each half of `stream`,
in summed losses between 0 and 1.
"""

import itertools

import numpy as np
import pytest

from adaptd import registry
from adaptd.contracts import LEARN, PREDICT, Layout
from adaptd.numerics import same_state

ROWS = 600
TASKS = ("classification", "regression")

every_controller = pytest.mark.parametrize("kind", registry.kinds("controllers"))
every_task = pytest.mark.parametrize("task", TASKS)


def make(kind: str, task: str, n_learners: int = 5, n_classes: int = 3):
    module = registry.load("controllers", kind)
    layout = Layout(task, n_classes=n_classes if task == "classification" else 0)
    return module.build(module.Config(), layout, n_learners)


def logged(task: str, skills: np.ndarray, seed: int = 0, n_classes: int = 3):
    """What learners of these `skills` [n_learners, n] said, and the labels: (predictions, y)."""
    rng = np.random.default_rng(seed)
    n_learners, n = skills.shape
    if task == "regression":
        y = 20.0 + 5.0 * rng.normal(size=n)
        return (y + rng.normal(size=skills.shape) * (1.1 - skills))[:, :, None].copy(), y
    y = rng.integers(n_classes, size=n)
    logits = rng.normal(size=(n_learners, n, n_classes))
    logits[:, np.arange(n), y] += 4.0 * skills
    p = np.exp(logits)
    return p / p.sum(axis=2, keepdims=True), y.astype(float)


def stream(task: str, n: int = ROWS, seed: int = 0):
    """Five learners, the best of the first half the worst of the second; sleepers and late labels."""
    rng = np.random.default_rng(seed + 1)
    skills = np.tile(np.array([0.1, 0.3, 0.5, 0.7, 0.9])[:, None], (1, n))
    skills[:, n // 2 :] = skills[::-1, n // 2 :]
    predictions, y = logged(task, skills, seed)
    predictions[rng.random(predictions.shape[:2]) < 0.1] = np.nan
    predictions[:, 5] = np.nan
    op = rng.choice(np.array([PREDICT, LEARN, PREDICT | LEARN], np.uint8), size=n, p=[0.2, 0.2, 0.6])
    y = np.where(op & LEARN, y, np.nan)
    return predictions, y, op, rng.choice([0.0, 0.5, 1.0, 3.0], size=n, p=[0.1, 0.2, 0.6, 0.1])


def labelled(predictions, y):
    """The same as rows that come with their label."""
    return predictions, y, np.full(len(y), PREDICT | LEARN, np.uint8), np.ones(len(y))


def walk(controller, rows, cuts=(), review_rows=0):
    """Blend and learn `rows`, cut into blocks after `cuts`; -999 where nothing was written."""
    predictions, y, op, weight = rows
    out = np.full(predictions.shape[1:], -999.0)
    awake = np.ones(len(predictions), np.bool_)
    if review_rows:
        cuts = range(review_rows, len(y), review_rows)
    edges = [0, *cuts, len(y)]
    for a, b in itertools.pairwise(edges):
        block = np.full((b - a, out.shape[1]), -999.0)
        controller.step(np.ascontiguousarray(predictions[:, a:b]), y[a:b], op[a:b], weight[a:b], block)
        out[a:b] = block
        if review_rows:
            controller.review(awake)
    return out


def loss(task: str, said, y):
    """Half the Brier score, or the absolute error cut at 4 and scaled: in [0, 1], one a row."""
    if task == "regression":
        return np.minimum(np.abs(said[:, 0] - y) / 4.0, 1.0)
    truth = np.eye(said.shape[1])[y.astype(int)]
    return 0.5 * ((said - truth) ** 2).sum(axis=1)


@every_task
@every_controller
def test_any_split_gives_the_same_bits(kind, task):
    rows = stream(task)
    cuts = sorted(np.random.default_rng(3).choice(np.arange(1, ROWS), size=60, replace=False).tolist())
    whole, pieces = make(kind, task), make(kind, task)
    assert walk(whole, rows).tobytes() == walk(pieces, rows, cuts).tobytes()
    assert same_state(whole.state(), pieces.state())


@every_task
@every_controller
def test_predicting_changes_nothing(kind, task):
    rows = stream(task)
    controller = make(kind, task)
    walk(controller, rows)
    before = controller.state()
    walk(controller, (rows[0], np.full(ROWS, np.nan), np.full(ROWS, PREDICT, np.uint8), rows[3]))
    assert same_state(before, controller.state())


@every_task
@every_controller
def test_learning_changes_something(kind, task):
    controller = make(kind, task)
    before = controller.state()
    walk(controller, stream(task))
    assert not same_state(before, controller.state())


@every_task
@every_controller
def test_writes_where_predict_is_set_and_nowhere_else(kind, task):
    predictions, y, op, weight = stream(task)
    out = walk(make(kind, task), (predictions, y, op, weight))
    asked = (op & PREDICT) > 0
    asleep = np.isnan(predictions[:, :, 0]).all(axis=0)
    assert (out[~asked] == -999.0).all()
    assert np.isnan(out[asked & asleep]).all()
    said = out[asked & ~asleep]
    assert np.isfinite(said).all()
    if task == "classification":
        assert (said >= 0.0).all()
        np.testing.assert_allclose(said.sum(axis=1), 1.0, rtol=1e-9)


@every_task
@every_controller
def test_all_asleep_gives_nan(kind, task):
    predictions, y, op, weight = stream(task)
    op[5] = PREDICT
    assert np.isnan(walk(make(kind, task), (predictions, y, op, weight))[5]).all()


@every_task
@every_controller
def test_arguments_are_left_alone(kind, task):
    rows = stream(task)
    copies = [array.copy() for array in rows]
    walk(make(kind, task), rows)
    for array, copy in zip(rows, copies, strict=True):
        assert array.tobytes() == copy.tobytes()


@every_task
@every_controller
def test_weights_are_shares_at_any_time(kind, task):
    controller = make(kind, task)
    rows = stream(task)
    for start in range(0, ROWS, 50):
        weights = controller.weights()
        assert (weights >= 0.0).all()
        assert weights.sum() == pytest.approx(1.0)
        predictions, *rest = [array[..., start : start + 50] for array in (rows[0].swapaxes(1, 2), *rows[1:])]
        walk(controller, (np.ascontiguousarray(predictions.swapaxes(1, 2)), *rest))
        controller.review(np.ones(5, np.bool_))


@every_task
@every_controller
def test_best_learner_has_the_greatest_weight(kind, task):
    skills = np.tile(np.array([0.0, 0.0, 0.9])[:, None], (1, 2000))
    controller = make(kind, task, 3)
    walk(controller, labelled(*logged(task, skills)), review_rows=100)
    assert controller.weights().argmax() == 2
    assert controller.champion() == 2


@every_task
@every_controller
def test_set_aside_means_weight_0_and_no_title(kind, task):
    controller = make(kind, task)
    walk(controller, stream(task), review_rows=100)
    for last_out in range(1, 5):
        awake = np.ones(5, np.bool_)
        awake[controller.champion()] = False
        awake[:last_out] = False
        if not awake.any():
            break
        controller.review(awake)
        assert (controller.weights()[~awake] == 0.0).all()
        assert controller.weights().sum() == pytest.approx(1.0)
        assert awake[controller.champion()]


@every_task
@every_controller
def test_equal_learners_do_not_flap(kind, task):
    controller = make(kind, task)
    predictions, y = logged(task, np.full((5, 20_000), 0.4), seed=5)
    champions = []
    for start in range(0, 20_000, 128):
        walk(controller, labelled(predictions[:, start : start + 128].copy(), y[start : start + 128]))
        controller.review(np.ones(5, np.bool_))
        champions.append(controller.champion())
    # The first rows may try everyone; after that a change in 50,000 rows is what the threshold allows.
    assert (np.diff(champions[:8]) != 0).sum() <= 4
    assert (np.diff(champions[8:]) != 0).sum() <= 1


@every_task
@every_controller
def test_champion_changes_in_review_only(kind, task):
    skills = np.tile(np.array([0.1, 0.9])[:, None], (1, ROWS))
    controller = make(kind, task, 2)
    walk(controller, labelled(*logged(task, skills)))
    assert (controller.champion(), controller.speaker()) in {(0, 0), (0, -1)}
    controller.review(np.ones(2, np.bool_))
    assert (controller.champion(), controller.speaker()) in {(1, 1), (1, -1)}


@every_task
@every_controller
def test_champion_follows_the_best_learner(kind, task):
    skills = np.repeat(np.array([[0.8, 0.1], [0.1, 0.8]]), 2000, axis=1)
    predictions, y = logged(task, skills)
    controller = make(kind, task, 2)
    walk(controller, labelled(predictions[:, :2000].copy(), y[:2000]), review_rows=128)
    assert controller.champion() == 0
    walk(controller, labelled(predictions[:, 2000:].copy(), y[2000:]), review_rows=128)
    assert controller.champion() == 1


@every_task
@every_controller
def test_regret_stays_below_what_is_declared(kind, task):
    n = 6000
    skills = np.tile(np.array([0.1, 0.3, 0.5, 0.7, 0.9])[:, None], (1, n))
    skills[:, n // 2 :] = skills[::-1, n // 2 :]
    predictions, y = logged(task, skills)
    out = walk(make(kind, task), labelled(predictions, y), review_rows=128)
    best = np.concatenate([loss(task, predictions[4], y)[: n // 2], loss(task, predictions[0], y)[n // 2 :]])
    regret = (loss(task, out, y) - best).sum()
    assert regret < registry.load("controllers", kind).REGRET_MAX


@every_task
@every_controller
def test_speaker_says_its_own_words(kind, task):
    controller = make(kind, task)
    predictions, y = logged(task, np.full((5, 300), 0.5))
    walk(controller, labelled(predictions, y), review_rows=100)
    speaker = controller.speaker()
    out = walk(controller, labelled(predictions[:, :50].copy(), y[:50]))
    if speaker == -1:
        assert all(not np.array_equal(out, predictions[k, :50]) for k in range(5))
    else:
        assert np.array_equal(out, predictions[speaker, :50])


@every_task
@every_controller
def test_state_round_trip_continues_bit_for_bit(kind, task):
    first, second = stream(task, seed=1), stream(task, seed=2)
    controller, other = make(kind, task), make(kind, task)
    walk(controller, first, review_rows=100)
    other.load_state(controller.state())
    assert same_state(other.state(), controller.state())
    assert (
        walk(other, second, review_rows=100).tobytes() == walk(controller, second, review_rows=100).tobytes()
    )
    assert same_state(other.state(), controller.state())
    assert other.champion() == controller.champion()
    assert np.array_equal(other.weights(), controller.weights())


@every_task
@every_controller
def test_state_is_a_copy(kind, task):
    controller, same = make(kind, task), make(kind, task)
    for each in (controller, same):
        walk(each, stream(task, seed=1))
    state = controller.state()
    walk(controller, stream(task, seed=2))
    assert same_state(state, same.state())


@every_controller
def test_new_class_joins_in_the_middle(kind):
    controller = make(kind, "classification", n_classes=2)
    skills = np.full((5, 600), 0.5)
    walk(controller, labelled(*logged("classification", skills, n_classes=2)), review_rows=100)
    controller.grow(Layout("classification", n_classes=3))
    predictions, y = logged("classification", skills, seed=7, n_classes=3)
    # Rows whose features came before the class was known: it has probability 0 there.
    predictions[:, :100, 2] = 0.0
    predictions[:, :100] /= predictions[:, :100].sum(axis=2, keepdims=True)
    out = walk(controller, labelled(predictions, y), review_rows=100)
    assert np.isfinite(out).all()
    np.testing.assert_allclose(out.sum(axis=1), 1.0, rtol=1e-9)
    assert (out.argmax(axis=1) == y)[200:].mean() > 0.6


@every_controller
def test_only_class_is_certain(kind):
    controller = make(kind, "classification", n_classes=1)
    out = walk(controller, labelled(np.ones((5, 20, 1)), np.zeros(20)))
    np.testing.assert_allclose(out, 1.0, rtol=1e-12)


@pytest.mark.parametrize("right", [0, 1, 2])
@every_controller
def test_learners_that_are_certain_leave_probabilities_that_sum_to_1(kind, right):
    controller = make(kind, "classification", 2)
    y = np.random.default_rng(0).integers(3, size=2000)
    predictions = np.zeros((2, 2000, 3))
    predictions[:right, np.arange(2000), y] = 1.0
    predictions[right:, np.arange(2000), (y + 1) % 3] = 1.0
    out = walk(controller, labelled(predictions, y.astype(float)), review_rows=100)
    assert (out >= 0.0).all()
    np.testing.assert_allclose(out.sum(axis=1), 1.0, rtol=1e-9)
    assert np.isfinite(controller.weights()).all()


@every_controller
def test_freak_numbers_do_no_lasting_harm(kind):
    predictions, y = logged("regression", np.full((4, 2000), 0.9))
    calm = walk(make(kind, "regression", 4), labelled(predictions, y), review_rows=100)
    wild, y_wild = predictions.copy(), y.copy()
    wild[0, 500:520] = 1e300
    wild[1, 600:620] = np.inf
    y_wild[700] = -1e12
    controller = make(kind, "regression", 4)
    out = walk(controller, labelled(wild, y_wild), review_rows=100)
    assert np.isfinite(out).all()
    later = slice(1200, 2000)
    assert np.abs(out[later, 0] - y[later]).mean() < 1.3 * np.abs(calm[later, 0] - y[later]).mean() + 0.05


@every_controller
def test_target_that_stood_still_may_move_again(kind):
    predictions, y = logged("regression", np.full((3, 1500), 0.9))
    predictions[:, :500], y[:500] = 7.0, 7.0
    out = walk(make(kind, "regression", 3), labelled(predictions, y), review_rows=100)
    assert np.abs(out[1000:, 0] - y[1000:]).mean() < 0.3


@every_task
@every_controller
def test_rebuilt_learner_is_forgotten(kind, task):
    skills = np.tile(np.array([0.1, 0.5, 0.9])[:, None], (1, 1500))
    controller = make(kind, task, 3)
    walk(controller, labelled(*logged(task, skills)), review_rows=100)
    before = controller.weights()[2]
    assert controller.champion() == 2
    controller.reset_learner(2)
    controller.review(np.ones(3, np.bool_))
    assert controller.champion() == 1
    assert controller.weights()[2] < before
    assert controller.weights().sum() == pytest.approx(1.0)


@every_task
@every_controller
def test_rows_of_weight_0_teach_nothing(kind, task):
    predictions, y, op, _ = stream(task)
    controller = make(kind, task)
    before = controller.weights()
    first = walk(controller, (predictions, y, op, np.zeros(ROWS)))
    assert np.array_equal(before, controller.weights())
    assert first.tobytes() == walk(controller, (predictions, y, op, np.zeros(ROWS))).tobytes()


@every_task
@every_controller
def test_single_learner_is_heard(kind, task):
    controller = make(kind, task, 1)
    predictions, y = logged(task, np.full((1, 500), 0.9))
    out = walk(controller, labelled(predictions, y), review_rows=100)
    assert controller.weights().tolist() == [1.0]
    assert loss(task, out, y)[100:].mean() < 1.2 * loss(task, predictions[0], y)[100:].mean()


@every_task
def test_stack_beats_learners_that_complement_each_other(task):
    predictions, y = logged(task, np.full((4, 3000), 0.4), seed=11)
    out = walk(make("stack", task, 4), labelled(predictions, y))
    half = slice(1500, 3000)
    best = min(loss(task, predictions[k, half], y[half]).mean() for k in range(4))
    assert loss(task, out[half], y[half]).mean() < 0.8 * best


def test_stack_seeks_the_median_or_the_mean():
    rng = np.random.default_rng(4)
    y = rng.exponential(10.0, 6000)
    predictions = (10.0 + 0.1 * rng.normal(size=(3, 6000)))[:, :, None].copy()
    stack = registry.load("controllers", "stack")
    said = {}
    for name in ("absolute", "squared"):
        controller = stack.build(stack.Config(loss=name), Layout("regression"), 3)
        said[name] = walk(controller, labelled(predictions, y))[2000:, 0].mean()
    assert said["squared"] == pytest.approx(10.0, abs=0.7)
    assert said["absolute"] < 8.5


def test_new_learner_enters_the_mixers_with_weight_0():
    controller = make("stack", "classification", 3)
    walk(controller, labelled(*logged("classification", np.full((3, 500), 0.5))))
    controller.reset_learner(1)
    assert (controller.state()["w"][:, 1] == 0.0).all()
    assert controller.state()["shares"].sum() == pytest.approx(1.0)


@every_task
@every_controller
def test_an_empty_place_behind_the_others_changes_no_champion_and_gets_no_weight(kind, task):
    predictions, y, op, weight = stream(task)
    plain, longer = make(kind, task), make(kind, task)
    longer.add_learner()
    asleep = np.full((1, *predictions.shape[1:]), np.nan)
    walk(plain, (predictions, y, op, weight))
    walk(longer, (np.concatenate([predictions, asleep]), y, op, weight))
    awake = np.array([True] * len(predictions) + [False])
    plain.review(awake[:-1])
    longer.review(awake)
    assert longer.champion() == plain.champion()
    assert longer.weights()[-1] == 0.0
    assert longer.weights()[:-1] == pytest.approx(plain.weights(), abs=0.05)


@every_task
@every_controller
def test_trust_comes_back_as_it_was(kind, task):
    skills = np.tile(np.array([0.1, 0.5, 0.9])[:, None], (1, 1500))
    controller = make(kind, task, 3)
    walk(controller, labelled(*logged(task, skills)))
    then, trust = controller.weights(), controller.trust(3)
    controller.add_learner()
    controller.reset_learner(3)
    turned = np.concatenate([skills[::-1], skills[:1]])
    walk(controller, labelled(*logged(task, turned, seed=1)))
    between = np.abs(controller.weights()[:3] - then).sum()
    controller.restore_trust(3, trust)
    assert controller.weights().sum() == pytest.approx(1.0)
    if kind != "champion":
        assert np.abs(controller.weights()[:3] - then).sum() < between


@every_task
@every_controller
def test_who_takes_a_slot_has_the_trust_that_both_had(kind, task):
    skills = np.tile(np.array([0.1, 0.5, 0.9, 0.9])[:, None], (1, 1500))
    controller = make(kind, task, 3)
    controller.add_learner()
    controller.reset_learner(3)
    predictions, y, op, weight = labelled(*logged(task, skills))
    walk(controller, (predictions, y, op, weight))
    everyone = np.ones(4, np.bool_)
    controller.review(everyone)
    before, was_champion = controller.weights(), controller.champion()
    controller.replace_learner(2, 3)
    controller.reset_learner(3)
    controller.review(np.array([True, True, True, False]))
    after = controller.weights()
    assert after.sum() == pytest.approx(1.0)
    assert after[3] == 0.0
    assert after[2] >= before[2] - 1e-9
    assert controller.champion() == (2 if was_champion in (2, 3) else was_champion)
    predictions[3] = np.nan
    out = walk(controller, (predictions, y, op, weight))
    assert np.isfinite(out).all()


@every_task
@every_controller
@pytest.mark.parametrize("number", [0.5, -7.0, 1e12, -1e12, 0.0])
def test_habits_from_anywhere_break_no_promise(kind, task, number):
    predictions, y, op, weight = stream(task)
    teacher = make(kind, task)
    walk(teacher, (predictions, y, op, weight))
    learners, blend = teacher.habits(len(predictions))
    wrong = [{name: [number] * len(values) for name, values in each.items()} for each in learners]
    controller = make(kind, task)
    wrong_blend = {name: [number] * len(values) for name, values in blend.items()}
    controller.adopt([*wrong[:-1], None], wrong_blend)
    walk(controller, (predictions, y, op, weight))
    controller.lean([*wrong[:-1], None], wrong_blend, 0.5)
    out = walk(controller, (predictions, y, op, weight))
    said = (op & PREDICT) != 0
    assert np.isfinite(out[said]).all()
    assert (controller.weights() >= 0.0).all()
    assert controller.weights().sum() == pytest.approx(1.0)


@every_task
@every_controller
def test_what_a_controller_came_to_think_another_can_begin_with(kind, task):
    skills = np.tile(np.array([0.1, 0.5, 0.9])[:, None], (1, 1500))
    teacher = make(kind, task, 3)
    walk(teacher, labelled(*logged(task, skills)))
    plain, taught = make(kind, task, 3), make(kind, task, 3)
    learners, blend = teacher.habits(3)
    taught.adopt(learners, blend)
    if any(learners):
        best = int(np.argmax(teacher.weights()))
        assert taught.weights()[best] > plain.weights()[best]


@every_task
@every_controller
def test_who_comes_with_a_part_of_anothers_weight_takes_no_more_than_that(kind, task):
    skills = np.tile(np.array([0.1, 0.5, 0.9])[:, None], (1, 1500))
    none, half = make(kind, task, 3), make(kind, task, 3)
    for controller, part in ((none, 0.0), (half, 0.5)):
        walk(controller, labelled(*logged(task, skills)))
        controller.add_learner()
        controller.reset_learner(3)
        before = controller.weights()
        controller.challenge(3, 2, part)
        after = controller.weights()
        assert after.sum() == pytest.approx(1.0)
        if part == 0.0:
            assert after == pytest.approx(before)
        elif kind != "champion":
            assert after[2] <= before[2]
            assert after[3] >= before[3]
