"""Rows that come too fast: the student answers, dear learners rest, and a crash leaves no trace of itself."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from adaptd import config as configuration
from adaptd import overload
from adaptd.errors import ConfigError
from adaptd.learners import linear as linear_module
from adaptd.numerics import same_state
from tests import streams
from tests.lanes import Bench
from tests.test_engine import eventful

AUTO = {"student": {"kind": "linear"}, "output": {"serve": "auto"}}
RESTING = json.dumps(["linear", "tree"])


def test_an_overload_takes_some_reads_in_a_row_and_ends_after_a_calm():
    watch = overload.Watch()
    slow = [
        watch.review(float(k), seconds, 0.2, False) for k, seconds in enumerate((0.3, 0.1, 0.3, 0.3, 0.3))
    ]
    assert slow == ["", "", "", "", overload.SHED]
    assert watch.review(9.0, 0.15, 0.2, True) == ""
    assert watch.review(18.9, 0.05, 0.2, True) == ""
    assert watch.review(19.0, 0.05, 0.2, True) == overload.RESTORE


def test_the_dearest_for_their_weight_rest_until_a_quarter_of_the_cost_is_left():
    bench = Bench(AUTO).feed(streams.classes(300))
    for slot, seconds in zip(bench.lane.pool.slots, (1, 5, 100, 1, 10), strict=True):
        slot.seconds = float(seconds)
    assert overload.dearest(bench.lane.pool, [0.2] * 5) == ["tree"]
    rest = overload.dearest(bench.lane.pool, [0.02, 0.01, 0.99, 0.5, 0.0])
    assert rest == ["lagged", "linear", "tree"]


def told(bench: Bench, action: str, names: str = "[]") -> None:
    bench.lane.commands.append((action, names))


def shed_and_restored(bench: Bench, records: list[dict], cuts: tuple[int, ...] = ()) -> Bench:
    """An overload from about row 700 to row 1,600; `cuts` in each of the three parts."""
    bench.feed(records[:700], [cut for cut in cuts if cut < 700])
    told(bench, overload.SHED, RESTING)
    bench.feed(records[700:1600], cuts)
    told(bench, overload.RESTORE)
    return bench.feed(records[1600:], [cut for cut in cuts if cut < len(records) - 1600])


def test_the_student_answers_and_the_learners_named_work_on_one_row_in_eight():
    bench = Bench(AUTO).feed(streams.classes(640))
    told(bench, overload.SHED, RESTING)
    bench.feed(streams.classes(128, seed=1))
    assert bench.lane.speaker_name == "student"
    assert bench.events("overload_detected")[0][1]["learners"] == ["linear", "tree"]
    linear = bench.lane.pool.slots[1].learner
    before = linear.moving.copy()
    bench.feed(streams.classes(800, seed=2))
    taught = linear.moving - before
    assert taught[linear_module.LEARNED] == 100
    told(bench, overload.RESTORE)
    bench.feed(streams.classes(256, seed=3))
    assert bench.lane.speaker_name is None
    assert [slot.stride for slot in bench.lane.pool.slots] == [1] * 5


def test_any_split_and_any_stop_within_an_overload_go_on_alike():
    records = eventful(2400)
    whole, cut = shed_and_restored(Bench(AUTO), records), Bench(AUTO)
    shed_and_restored(cut, records, (1, 130, 131, 500, 777))
    assert same_state(whole.lane.state(), cut.lane.state())
    for first, second in zip(whole.values, cut.values, strict=True):
        np.testing.assert_array_equal(first, second)
    stopped = Bench(AUTO).feed(records[:700])
    told(stopped, overload.SHED, RESTING)
    stopped.feed(records[700:1100])
    resumed = Bench(AUTO)
    resumed.lane.load_state(stopped.lane.state())
    resumed.decoder.load_state(stopped.decoder.state())
    assert resumed.lane.is_overloaded
    resumed.feed(records[1100:1600])
    told(resumed, overload.RESTORE)
    resumed.feed(records[1600:])
    assert same_state(whole.lane.state(), resumed.lane.state())


def test_who_takes_auto_back_gets_the_blend_back():
    bench = Bench(AUTO).feed(streams.classes(300))
    told(bench, overload.SHED, RESTING)
    bench.feed(streams.classes(128))
    blend = Bench({"student": {"kind": "linear"}})
    blend.lane.load_state(bench.lane.state())
    assert blend.lane.speaker_name is None
    assert [slot.stride for slot in blend.lane.pool.slots] == [1] * 5


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"output": {"serve": "auto"}}, "student.kind must be one of linear, mlp"),
        ({**AUTO, "source": {"kind": "kafka", "servers": "a:1", "topic": "t"}}, "got 'auto'"),
    ],
)
def test_what_auto_needs_is_said(tree, words):
    with pytest.raises(ConfigError) as found:
        configuration.read(tree, "test")
    assert any(words in fault for fault in found.value.faults)


def test_a_kill_in_an_overload_repeats_the_same_bytes(tmp_path):
    """A budget that every read exceeds: the clock alone decides when, and the input log knows it after."""
    source, sink = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    records = [{"id": k, **record} for k, record in enumerate(streams.classes(20_000))]
    source.write_bytes(streams.lines(records))
    command = [
        sys.executable, "-m", "adaptd", "run",
        "--set", "pool.learners.linear.kind=linear", "--set", "pool.learners.tree.kind=hoeffding_tree",
        "--set", "student.kind=linear", "--set", "output.serve=auto",
        "--set", "output.latency_budget_seconds=1e-6", "--set", "source.kind=file",
        "--set", f"source.path={source}", "--set", "source.poll_rows_max=100", "--set", "sink.kind=file",
        "--set", f"sink.path={sink}", "--set", f"checkpoint.directory={tmp_path / 'state'}",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        while not (sink.exists() and sink.read_bytes().count(b'"learner":"student"') > 500):
            assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    before = sink.read_bytes()
    subprocess.run(command, stderr=subprocess.DEVNULL, check=True, timeout=120)
    after = sink.read_bytes()
    assert after.startswith(before[: before.rfind(b"\n") + 1])
    assert [json.loads(line)["id"] for line in after.splitlines()] == list(range(20_000))
    assert before.count(b'"learner":"student"') > 500
