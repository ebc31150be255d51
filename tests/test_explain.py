"""Contributions: they add up to what was said, change nothing else, and do not depend on how rows are cut."""

import itertools
import json
import math

import numpy as np
import pytest

from adaptd import answers, explain, predictions, registry
from adaptd import config as configuration
from adaptd.contracts import PREDICT
from adaptd.errors import ConfigError
from adaptd.numerics import same_state
from tests import streams
from tests.lanes import SMALL_POOL, Bench
from tests.services import POOL, Running
from tests.test_controller_contract import labelled, logged, make, stream, walk
from tests.test_engine import eventful

every_controller = pytest.mark.parametrize("kind", registry.kinds("controllers"))
every_task = pytest.mark.parametrize("task", ["classification", "regression"])


def explained(controller, rows, cuts=()):
    """What the controller said of `rows`, and who contributed what; -999 where nothing was written."""
    said, y, op, weight = rows
    out, parts = np.full(said.shape[1:], -999.0), np.full((len(y), len(said) + 1), -999.0)
    for a, b in itertools.pairwise([0, *cuts, len(y)]):
        block, part = out[a:b].copy(), parts[a:b].copy()
        controller.step_explained(
            np.ascontiguousarray(said[:, a:b]), y[a:b], op[a:b], weight[a:b], block, part
        )
        out[a:b], parts[a:b] = block, part
    return out, parts


def whole(task: str, out):
    """What the contributions have to add up to, written out anew."""
    if task == "regression":
        return out[:, 0]
    ordered = np.sort(np.maximum(out, 1e-15), axis=1)
    return np.log(ordered[:, -1] / ordered[:, -2])


@every_task
@every_controller
def test_asking_changes_no_bit(kind, task):
    rows = stream(task)
    asked, unasked = make(kind, task), make(kind, task)
    assert explained(asked, rows)[0].tobytes() == walk(unasked, rows).tobytes()
    assert same_state(asked.state(), unasked.state())


@every_task
@every_controller
def test_contributions_and_bias_add_up_to_the_whole(kind, task):
    rows = stream(task)
    out, parts = explained(make(kind, task), rows)
    asked = (rows[2] & PREDICT) > 0
    asleep = np.isnan(rows[0]).all(axis=(0, 2))
    assert (parts[~asked] == -999.0).all()
    assert (np.isnan(parts[asked & asleep]) | (parts[asked & asleep] == -999.0)).all()
    said = asked & ~asleep
    np.testing.assert_allclose(parts[said].sum(axis=1), whole(task, out[said]), rtol=1e-9, atol=1e-9)


@every_task
@every_controller
def test_sleepers_contribute_nothing(kind, task):
    rows = stream(task)
    _, parts = explained(make(kind, task), rows)
    sleeps = np.isnan(rows[0]).all(axis=2).T & ((rows[2] & PREDICT) > 0)[:, None]
    sleeps &= ~np.isnan(rows[0]).all(axis=(0, 2))[:, None]
    assert sleeps.any()
    assert (parts[:, :-1][sleeps] == 0.0).all()


@every_task
@every_controller
def test_any_cut_gives_the_same_contributions(kind, task):
    rows = stream(task)
    cuts = sorted(np.random.default_rng(5).choice(np.arange(1, 600), size=60, replace=False).tolist())
    pieces = explained(make(kind, task), rows, cuts)[1]
    assert explained(make(kind, task), rows)[1].tobytes() == pieces.tobytes()


@every_controller
def test_who_knows_contributes_most(kind):
    predictions, y = logged("classification", np.tile(np.array([0.0, 0.0, 0.9])[:, None], (1, 2000)))
    controller = make(kind, "classification", 3)
    walk(controller, labelled(predictions[:, :1500].copy(), y[:1500]), review_rows=100)
    _, parts = explained(controller, labelled(predictions[:, 1500:].copy(), y[1500:]))
    brought = np.abs(parts[:, :-1]).mean(axis=0)
    assert brought[2] > 3 * brought[:2].max()


def test_shares_are_split_as_the_logarithmic_mean_says():
    predictions, y = logged("classification", np.full((2, 1), 0.5), n_classes=2)
    controller = make("fixed_share", "classification", 2, 2)
    out, parts = explained(controller, labelled(predictions, y))
    floored = 0.999 * predictions[:, 0] + 0.0005
    a = int(out[0].argmax())
    mean = (out[0, a] - out[0, 1 - a]) / np.log(out[0, a] / out[0, 1 - a])
    expected = 0.5 * (floored[:, a] - floored[:, 1 - a]) / mean
    np.testing.assert_allclose(parts[0], [*expected, 0.0], rtol=1e-9)


@pytest.mark.parametrize("n_classes", [2, 3, 7])
def test_kernel_and_numpy_find_the_same_two_classes(n_classes):
    from adaptd.kernels.explaining import two_greatest

    rng = np.random.default_rng(0)
    said = np.round(rng.dirichlet(np.ones(n_classes), size=300), 1)
    pairs = np.transpose(explain.two_greatest(said))
    assert [tuple(pair) for pair in pairs.tolist()] == [two_greatest(row) for row in said]


@every_controller
def test_a_single_class_owes_nothing_to_anybody(kind):
    _, parts = explained(make(kind, "classification", n_classes=1), labelled(np.ones((5, 4, 1)), np.zeros(4)))
    assert (parts == 0.0).all()


# In the lane and on the line.


def lines(records, tree=None, cuts=()):
    """The output lines of `records` as objects."""
    bench, form, found = Bench(tree), predictions.JsonLines(), []
    for a, b in itertools.pairwise([0, *cuts, len(records)]):
        read = bench.decoder.decode(streams.lines(records[a:b]), bench.lane.schema.kinds)
        for part in bench.lane.process(read):
            text = answers.formatted(form, part, bench.lane.classes.spellings)
            found += [json.loads(line) for line in text.splitlines()]
    return found


EXPLAIN = {"output": {"explain": True}}
KEYS = {"contributions", "bias", "against"}


def test_lines_say_who_contributed_what_and_nothing_else_changes():
    records = eventful(1500)
    plain, told = lines(records), lines(records, EXPLAIN)
    assert [{key: line[key] for key in line if key not in KEYS} for line in told] == plain
    assert not any(KEYS & line.keys() for line in plain)
    spoken = [line for line in told if len(line["proba"]) > 1]
    assert len(spoken) > 1400
    for line in spoken:
        assert list(line["contributions"]) == list(SMALL_POOL)
        ordered = sorted(line["proba"], key=line["proba"].get)
        assert line["against"] != line["prediction"]
        odds = sum(line["contributions"].values()) + line["bias"]
        if line["proba"][ordered[-2]] > 0.01:
            assert odds == pytest.approx(
                math.log(line["proba"][str(line["prediction"])] / line["proba"][str(line["against"])]),
                abs=1e-3,
            )


def test_lines_are_the_same_however_the_input_is_cut():
    records = eventful(900)
    told = lines(records, EXPLAIN)
    assert lines(records, EXPLAIN, range(7, len(records), 7)) == told


def test_numbers_are_sums_of_what_learners_bring():
    for line in lines(streams.numbers(300), {**EXPLAIN, "schema": {"task": "regression"}})[50:]:
        assert sum(line["contributions"].values()) + line["bias"] == pytest.approx(
            line["prediction"], rel=1e-5
        )
        assert "against" not in line


def test_a_pinned_learner_answers_for_everything():
    tree = {**EXPLAIN, "control": {"pin": "linear"}}
    for line in lines(streams.classes(200), tree)[20:]:
        others = {name for name, part in line["contributions"].items() if part}
        assert others <= {"linear"}
        assert line["bias"] == 0.0


def test_before_anything_is_known_there_is_nothing_to_explain():
    first, second = lines([{"id": 1, "a": 1.0, "y": "up"}, {"id": 2, "a": 2.0}], EXPLAIN)
    for line in (first, second):
        assert (set(line["contributions"].values()), line["bias"], line["against"]) == ({0.0}, 0.0, None)
    first, *_ = lines(streams.numbers(3), {**EXPLAIN, "schema": {"task": "regression"}})
    assert (first["prediction"], first["contributions"], first["bias"]) == (None, None, None)


def test_echoed_fields_stay_and_may_not_be_called_alike():
    tree = {**EXPLAIN, "fields": {"echo": ["colour"]}}
    line = lines(streams.classes(50), tree)[-1]
    assert line["colour"] in ("red", "green", "blue")
    assert "bias" in line
    with pytest.raises(ConfigError, match=r"fields\.echo must be without"):
        configuration.read({**EXPLAIN, "fields": {"echo": ["bias"]}}, "test")
    with pytest.raises(ConfigError, match=r"output\.explain must be false when sink\.format is 'csv'"):
        configuration.read({**EXPLAIN, "sink": {"kind": "stdout", "format": "csv"}}, "test")


def test_the_api_explains_too_without_a_row_number():
    pool = {**POOL, "row": {"kind": "prior"}}
    with Running({**EXPLAIN, "pool": {"learners": pool}}) as running:
        running.learn(streams.classes(200))
        reply = running.post("predict", {"a": 1.0, "b": 0.5, "colour": "red"})
        (line,) = reply["predictions"]
        assert list(line["contributions"]) == list(pool)
        assert "row" not in line
