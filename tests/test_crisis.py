"""`kernels/crisis.py`: whom to listen to while the blend does worse than it usually does."""

import numpy as np
import pytest

from adaptd.kernels.crisis import LATELY, LEVELS, NEWCOMERS, USUAL, VARIANCE, VARIANCE_MIN
from tests.test_controller_contract import labelled, logged, make, walk
from tests.test_explain import explained, whole

STRETCH = 1500
CRISIS = 100


def changes(times: int, seed: int):
    """Learner 1 knows much, but nothing for `CRISIS` rows after each change; there learner 2 does."""
    skills = np.tile(np.array([0.1, 0.9, 0.1, 0.1])[:, None], (1, STRETCH * (times + 1)))
    for k in range(1, times + 1):
        skills[1, k * STRETCH : k * STRETCH + CRISIS] = 0.0
        skills[2, k * STRETCH : k * STRETCH + CRISIS] = 0.9
    return labelled(*logged("classification", skills, seed))


def piece(rows, start: int, stop: int):
    """Those from `start` to `stop`."""
    predictions, y, op, weight = rows
    part = slice(start, stop)
    return np.ascontiguousarray(predictions[:, part]), y[part], op[part], weight[part]


def after_changes(times: int) -> np.ndarray:
    return np.concatenate([np.arange(k * STRETCH, k * STRETCH + CRISIS) for k in range(1, times + 1)])


def levels(controller, rows) -> list[int]:
    """The level of each row, by the formula of the module's documentation."""
    found = []
    for i in range(len(rows[1])):
        usual = controller.crisis.usual
        excess = (usual[LATELY] - usual[USUAL]) / np.sqrt((usual[VARIANCE] + VARIANCE_MIN) / 64.0)
        found.append(int((excess >= LEVELS).sum()) if i >= 1000 else 0)
        walk(controller, piece(rows, i, i + 1))
    return found


def test_a_crisis_begins_with_the_change_and_ends_with_it():
    found = np.array(levels(make("stack", "classification", 4), changes(1, 0)))
    assert (found[STRETCH + 10 : STRETCH + 50] > 0).mean() > 0.9
    assert (found[STRETCH - 400 : STRETCH] > 0).mean() < 0.05
    assert (found[-500:] > 0).mean() < 0.05


def test_where_all_is_as_usual_the_blend_is_said_and_a_crisis_comes_back_to_nothing():
    rows = changes(2, 1)
    plain, other = make("stack", "classification", 4), make("stack", "classification", 4)
    other.crisis.w[:] = 0.7
    expected, got = walk(plain, rows), walk(other, rows)
    calm = np.array(levels(make("stack", "classification", 4), rows)) == 0
    assert expected[calm].tobytes() == got[calm].tobytes()
    assert (expected[~calm] != got[~calm]).any()
    states = plain.state(), other.state()
    assert states[0]["crisis"]["usual"].tobytes() == states[1]["crisis"]["usual"].tobytes()
    for name in ("w", "shares", "top", "maps", "exponents"):
        assert states[0][name].tobytes() == states[1][name].tobytes()


def crisis_loss(controller, rows) -> float:
    """Log loss in the first crisis."""
    out = walk(controller, rows)
    return float(-np.log(out[np.arange(len(out)), rows[1].astype(int)])[after_changes(1)].mean())


def test_what_crises_taught_on_one_stream_helps_in_the_first_crisis_of_another():
    teacher = make("stack", "classification", 4)
    walk(teacher, changes(20, 2))
    learners, blend = teacher.crisis.habits(4)
    assert np.mean(learners[2]["w"]) > np.mean(learners[1]["w"])
    saved = []
    for seed in range(3, 7):
        rows = changes(1, seed)
        taught = make("stack", "classification", 4)
        taught.crisis.adopt(learners, blend)
        saved.append(crisis_loss(make("stack", "classification", 4), rows) - crisis_loss(taught, rows))
    assert min(saved) > 0.03


def test_challengers_have_one_weight_and_who_else_comes_to_a_place_has_none():
    controller = make("stack", "classification", 4)
    walk(controller, changes(1, 8))
    for _ in range(3):
        controller.add_learner()
    for index in (4, 5):
        controller.reset_learner(index)
    controller.reset_learner(6)
    controller.challenge(4, 1, 0.0)
    controller.challenge(5, 1, 0.0)
    assert controller.crisis.columns[4:].tolist() == [NEWCOMERS, NEWCOMERS, -1]
    controller.reset_learner(4)
    assert controller.crisis.columns[4:].tolist() == [-1, NEWCOMERS, -1]
    # Its weight is there for the next one.
    controller.crisis.w[:, NEWCOMERS] = 0.4
    controller.reset_learner(5)
    assert (controller.crisis.w[:, NEWCOMERS] == 0.4).all()


def test_a_learner_that_is_built_anew_has_to_earn_its_weight_anew():
    controller = make("stack", "classification", 4)
    walk(controller, changes(2, 9))
    others = controller.crisis.w.copy()
    controller.reset_learner(2)
    assert (controller.crisis.w[:, 4] == 0.0).all()
    assert (np.delete(controller.crisis.w, 4, axis=1) == np.delete(others, 4, axis=1)).all()


@pytest.mark.parametrize("number", [0.5, -7.0, 1e12, -1e12, 0.0])
def test_whatever_a_file_says_probabilities_come_out(number):
    rows = changes(1, 10)
    controller = make("stack", "classification", 4)
    learners, blend = controller.crisis.habits(4)
    wrong = [{name: [number] * len(of) for name, of in each.items()} for each in learners]
    controller.crisis.adopt([*wrong[:3], None], {name: [number] * len(of) for name, of in blend.items()})
    out = walk(controller, rows)
    assert (out >= 0.0).all()
    np.testing.assert_allclose(out.sum(axis=1), 1.0, rtol=1e-9)
    fits_not = make("stack", "classification", 4)
    fits_not.crisis.adopt([{"w": [number]}] * 4, {"blend": [number], "shares": [number]})
    assert fits_not.crisis.w.tolist() == make("stack", "classification", 4).crisis.w.tolist()


def test_in_a_crisis_contributions_still_add_up_to_the_whole():
    rows = changes(2, 11)
    controller = make("stack", "classification", 4)
    controller.crisis.w[:, 2:] = [0.3, -0.4, 0.8, -0.1]
    out, parts = explained(controller, rows)
    np.testing.assert_allclose(parts.sum(axis=1), whole("classification", out), rtol=1e-9, atol=1e-9)
    # Learner 2 says what comes out more often there than elsewhere.
    brought = np.abs(parts[:, 2])
    assert brought[after_changes(2)].mean() > 2 * brought[STRETCH - 500 : STRETCH].mean()


def test_rows_of_no_weight_teach_nothing_of_crises():
    rows = changes(1, 12)
    controller = make("stack", "classification", 4)
    walk(controller, piece(rows, 0, STRETCH + 50))
    before = controller.crisis.w.copy()
    walk(controller, (*piece(rows, STRETCH + 50, STRETCH + 100)[:3], np.zeros(50)))
    assert (controller.crisis.w == before).all()
