"""The student learns from labels and the blend, tells its teacher nothing, and is scored like everybody."""

import math

import msgspec
import numpy as np
import pytest

from adaptd import config as configuration
from adaptd import registry
from adaptd.contracts import LEARN, PREDICT, Layout
from adaptd.errors import ConfigError
from adaptd.numerics import same_state
from tests import streams
from tests.lanes import Bench
from tests.services import Running
from tests.test_engine import eventful

every_kind = pytest.mark.parametrize("kind", ["linear", "mlp"])


def build(kind: str, n_classes: int):
    module = registry.load("learners", kind)
    return module.build(module.Config(), Layout("classification", (0, 0), (0, 0), n_classes), 0)


def taught(learner, x, y, soft):
    op, out = np.full(len(x), PREDICT | LEARN, np.uint8), np.zeros((len(x), soft.shape[1] or 2))
    learner.teach(x, y, op, np.ones(len(x)), out, soft)
    return out


@every_kind
@pytest.mark.parametrize("n_classes", [2, 4])
def test_a_certain_teacher_is_a_label(kind, n_classes):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(800, 2))
    y = rng.integers(n_classes, size=800).astype(float)
    by_label, by_teacher = build(kind, n_classes), build(kind, n_classes)
    out = np.zeros((800, n_classes))
    by_label.step(x, y, np.full(800, PREDICT | LEARN, np.uint8), np.ones(800), out)
    same = taught(by_teacher, x, np.full(800, np.nan), np.eye(n_classes)[y.astype(int)])
    np.testing.assert_allclose(same[1:], out[1:], atol=1e-9)


@every_kind
@pytest.mark.parametrize("n_classes", [2, 4])
def test_probabilities_are_learned_for_what_they_are(kind, n_classes):
    rng = np.random.default_rng(1)
    soft = np.tile(np.arange(1.0, n_classes + 1) / sum(range(1, n_classes + 1)), (4000, 1))
    out = taught(build(kind, n_classes), rng.normal(size=(4000, 2)), np.full(4000, np.nan), soft)
    np.testing.assert_allclose(out[-500:].mean(axis=0), soft[0], atol=0.02)


STUDENT = {"student": {"kind": "linear"}}


def test_the_blend_does_not_know_its_student():
    records = eventful(1500)
    without, beside = Bench().feed(records), Bench(STUDENT).feed(records)
    assert [value.tobytes() for value in beside.values] == [value.tobytes() for value in without.values]
    for part in ("pool", "controller", "scores"):
        assert same_state(beside.lane.state()[part], without.lane.state()[part])


@pytest.mark.parametrize("serve", ["blend", "student"])
@every_kind
def test_any_cut_and_any_stop_give_the_same_bits(kind, serve):
    tree = {"student": {"kind": kind}, "output": {"serve": serve, "coverage": 0.8}}
    records = eventful(1200)
    whole = Bench(tree).feed(records)
    pieces = Bench(tree).feed(records, list(range(7, len(records), 7)))
    assert [value.tobytes() for value in pieces.values] == [value.tobytes() for value in whole.values]
    assert same_state(pieces.lane.state(), whole.lane.state())
    first, second = Bench(tree).feed(records[:777]), Bench(tree)
    assert second.lane.load_state(first.lane.state()) == []
    second.decoder.load_state(first.decoder.state())
    second.feed(records[777:])
    values = first.values + second.values
    assert [value.tobytes() for value in values] == [value.tobytes() for value in whole.values]
    assert same_state(second.lane.state(), whole.lane.state())


def test_scores_are_those_of_what_it_said_when_it_serves():
    tree = {**STUDENT, "output": {"serve": "student"}}
    records = streams.with_late_labels(streams.classes(1500), delay=80, share=0.5)
    bench = Bench(tree).feed(records)
    truth = {record["id"]: record["y"] for record in records if record.get("y")}
    printed = dict(zip(bench.ids, bench.predictions(), strict=True))
    hits = [printed[str(key).encode()] == f'"{label}"' for key, label in truth.items()]
    assert bench.lane.student.scores.cumulative(0)["accuracy"] == pytest.approx(np.mean(hits), abs=1e-12)


def test_who_serves_changes_at_a_control_point_and_nothing_starts_anew():
    records = streams.classes(600)
    bench = Bench(STUDENT).feed(records[:200])
    served = msgspec.structs.replace(bench.config.output, serve="student")
    bench.lane.next_config = msgspec.structs.replace(bench.config, output=served)
    bench.feed(records[200:])
    ((row, payload),) = bench.events("lane_reconfigured")
    assert (row, payload["fresh"]) == (256, [])
    steady = Bench(STUDENT).feed(records)
    same = [a.tobytes() == b.tobytes() for a, b in zip(bench.values, steady.values, strict=True)]
    assert all(same[:256])
    assert not any(same[256:])
    parts = ("pool", "controller", "student")
    assert all(same_state(bench.lane.state()[part], steady.lane.state()[part]) for part in parts)


def test_numbers_are_taught_too():
    bench = Bench({**STUDENT, "schema": {"task": "regression"}}).feed(streams.numbers(1500))
    assert bench.lane.student.scores.fading(0)["mae"] < 0.5


def test_rows_without_a_label_teach_when_the_blend_is_sure():
    records = streams.classes(3000)
    for i, record in enumerate(records):
        if i % 10:
            del record["y"]
    taught, untaught = (
        Bench({"student": {"kind": "linear", "unlabelled_weight": weight}}).feed(records)
        for weight in (0.5, 0.0)
    )
    learned = [float(bench.lane.student.learner.moving[2]) for bench in (taught, untaught)]
    assert learned[1] == 300
    assert learned[0] > 1500
    losses = [bench.lane.student.scores.cumulative(0)["log_loss"] for bench in (taught, untaught)]
    assert losses[0] < losses[1]


def test_lessons_are_half_label_half_blend():
    student = {"kind": "linear", "unlabelled_weight": 0.25, "confidence_min": 0.8}
    lane = Bench({"student": student}).feed(streams.classes(50)).lane
    blend = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [math.nan, math.nan]])
    y = np.array([1.0, math.nan, math.nan, 0.0])
    op = np.array([PREDICT | LEARN, PREDICT, PREDICT, LEARN], np.uint8)
    soft, told, weight = lane.student.lessons(y, op, np.ones(4), blend)
    np.testing.assert_allclose(soft[[0, 1, 3]], [[0.45, 0.55], [0.9, 0.1], [1.0, 0.0]])
    assert told.tolist() == [PREDICT | LEARN, PREDICT | LEARN, PREDICT, LEARN]
    assert weight.tolist() == [1.0, 0.25, 1.0, 1.0]


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"output": {"serve": "student"}}, r"student\.kind must be one of linear, mlp"),
        ({**STUDENT, "output": {"serve": "student", "explain": True}}, r"output\.explain must be false"),
        ({"student": {"kind": "linear", "options": {"hidden": [3]}}}, r"student\.options\.hidden"),
        ({"student": {"kind": "forest"}}, r"student\.kind must be one of none, linear, mlp"),
    ],
)
def test_what_does_not_fit_is_said(tree, words):
    with pytest.raises(ConfigError, match=words):
        configuration.read(tree, "test")


def test_the_api_answers_from_the_student_and_shows_both_scores():
    with Running({**STUDENT, "output": {"serve": "student"}}) as running:
        running.learn(streams.classes(300))
        (line,) = running.post("predict", {"a": 1.0, "b": 0.5, "colour": "red"})["predictions"]
        assert line["learner"] == "student"
        assert set(line["proba"]) == {"up", "down"}
        while not (status := running.get("status"))["student"] or status["labels"] < 300:
            pass
        assert status["speaker"] == "student"
        assert status["student"]["accuracy"] > 0.7
        page = running.client.get(f"{running.url}/metrics").text
        assert 'adaptd_student_score{score="accuracy"}' in page
        assert 'adaptd_blend_score{score="accuracy"}' in page
