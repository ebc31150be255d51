"""Who asks beside a stream is told what they would be told by themselves, and leaves no trace."""

import json
import queue

import pytest

from adaptd import asking
from adaptd.lines import build_decoder
from adaptd.numerics import same_state
from adaptd.requests import ALONG_ROWS, Request
from tests import streams
from tests.lanes import SMALL_POOL, Bench
from tests.services import Running
from tests.test_engine import eventful

PROBES = [{"a": 0.3, "b": -0.2}, {"colour": "shade3"}, {"a": 1.5, "never": "met"}]


def reads_of(bench: Bench, records: list[dict]):
    decoder = build_decoder("json", ",", bench.config.fields)
    return [decoder.decode(streams.lines([record]), bench.lane.schema.kinds) for record in records]


def said(answers) -> list[bytes | None]:
    arrays = answers.values, answers.beside.parts, answers.beside.given
    return [None if array is None else array.tobytes() for array in arrays]


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_with_a_block_they_are_told_the_same_and_nothing_changes(task):
    records = streams.numbers(900) if task == "regression" else eventful(900)
    tree = {"output": {"explain": True, "coverage": 0.9}}
    alone, beside = Bench(tree, learners={}).feed(records[:300]), Bench(tree, learners={}).feed(records[:300])
    went = 0
    for start in range(300, len(records), 40):
        expected = asking.preview(alone.lane, reads_of(alone, PROBES))
        beside.lane.asked = asked = asking.Asked(beside.lane, reads_of(beside, PROBES))
        alone.feed(records[start : start + 40])
        beside.feed(records[start : start + 40])
        if asked.answers is not None:
            went += 1
            assert said(asked.answers) == said(expected)
        beside.lane.asked = None
    # A block of another layout takes nobody along.
    assert went >= 10
    assert [value.tobytes() for value in beside.values] == [value.tobytes() for value in alone.values]
    assert same_state(beside.lane.state(), alone.lane.state())


def test_beside_learners_that_rest_they_are_told_the_same():
    """Those who work on some rows only say nothing to who asks."""
    alone, beside = (Bench().feed(streams.classes(300)) for _ in range(2))
    for bench in (alone, beside):
        bench.lane.pool.rest(["tree", "lagged"], 3)
    expected = asking.preview(alone.lane, reads_of(alone, PROBES))
    beside.lane.asked = asked = asking.Asked(beside.lane, reads_of(beside, PROBES))
    for bench in (alone, beside):
        bench.feed(streams.classes(400)[300:])
    assert said(asked.answers) == said(expected)
    assert same_state(beside.lane.state(), alone.lane.state())


def test_a_stream_takes_along_who_waits_and_who_asks_for_much_has_a_walk_of_their_own(monkeypatch):
    daemon = Running().daemon
    desk, lane = daemon.desk, daemon.lane
    walks: list[int] = []
    preview = asking.preview
    monkeypatch.setattr(asking, "preview", lambda *given: walks.append(1) or preview(*given))
    told: queue.Queue = queue.Queue()

    def ask(records: list[dict]) -> None:
        read = build_decoder("json", ",", daemon.config.fields).decode(
            streams.lines(records), lane.schema.kinds
        )
        desk.queue.put(
            Request("preview", lambda status, body: told.put((status, json.loads(body()))), rows=read)
        )

    def stream(records: list[dict]) -> None:
        desk.take(desk.decoder.decode(streams.lines(records), lane.schema.kinds))

    stream(streams.classes(200))
    for _ in range(3):
        ask([{"a": 0.3}])
    stream(streams.classes(300)[200:])
    assert [told.get_nowait()[0] for _ in range(3)] == [200] * 3
    assert walks == []
    ask([{"a": 0.3}] * (ALONG_ROWS + 1))
    stream(streams.classes(310)[300:])
    status, answer = told.get_nowait()
    assert (status, len(answer["predictions"])) == (200, ALONG_ROWS + 1)
    assert walks == [1]
    # Nothing comes from the stream.
    ask([{"a": 0.3}])
    stream([])
    desk.serve(is_idle=True)
    assert told.get_nowait()[0] == 200
    assert walks == [1, 1]
    lane.close()


def test_nobody_goes_along_with_a_guest():
    guest = {"kind": "river", "estimator": "river.linear_model.LogisticRegression"}
    assert asking.may_go_along(Bench().lane)
    assert not asking.may_go_along(Bench(learners={**SMALL_POOL, "guest": guest}).lane)
