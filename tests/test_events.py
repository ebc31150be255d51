"""Events: one line each, a counter each, and decisions in the journal under numbers that repeat."""

import inspect
import io
import json
import math
import re

import numpy as np
import pytest

from adaptd import events
from adaptd.clock import FakeClock
from adaptd.events import (
    CheckpointFailed,
    DaemonStarted,
    DriftDetected,
    Events,
    LearnerSetAside,
    WeightsReported,
    event_name,
)
from adaptd.journal import Journal

CLASSES = [
    cls
    for _, cls in inspect.getmembers(events, inspect.isclass)
    if issubclass(cls, events.Event) and cls not in (events.Event, events.Decision)
]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def drift(row=1280):
    return DriftDetected(row=row, detector="adwin", signal="blend", value=0.31, change_rows=200)


def lines(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_event_is_one_json_line():
    stream = io.StringIO()
    Events(FakeClock(1_700_000_000.25), stream).emit(drift())
    assert lines(stream) == [
        {
            "ts": "2023-11-14T22:13:20.250Z",
            "level": "warning",
            "event": "drift_detected",
            "row": 1280,
            "detector": "adwin",
            "signal": "blend",
            "value": 0.31,
            "change_rows": 200,
        }
    ]


def test_line_feeds_in_a_text_stay_in_the_line():
    for stream in (io.StringIO(), Terminal()):
        Events(FakeClock(), stream).emit(CheckpointFailed(detail="disk\nfull: 100 %s"))
        assert stream.getvalue().count("\n") == 1
        assert "100 %s" in stream.getvalue()


def test_terminal_gets_a_line_for_people():
    stream = Terminal()
    Events(FakeClock(1_700_000_000.0), stream).emit(drift())
    assert stream.getvalue() == (
        "22:13:20 warning drift_detected  row=1280 detector=adwin signal=blend value=0.31 change_rows=200\n"
    )


def test_below_the_level_nothing_is_logged_and_all_is_counted():
    stream = io.StringIO()
    hub = Events(FakeClock(), stream, level="error")
    hub.emit(DaemonStarted(version="1"))
    hub.emit(drift())
    hub.emit(CheckpointFailed(detail="disk full"))
    assert [line["event"] for line in lines(stream)] == ["checkpoint_failed"]
    assert (hub.counts["daemon_started"], hub.counts["drift_detected"]) == (1, 1)


def test_decisions_go_to_the_journal_with_their_row():
    journal = Journal()
    hub = Events(FakeClock(5.0), io.StringIO(), journal)
    hub.emit(DaemonStarted(version="1"))
    hub.emit(drift())
    hub.emit(LearnerSetAside(row=2560, learner="forest", reason="not_finite"))
    found = [(entry.seq, entry.row, entry.kind, entry.wall) for entry in journal.read()]
    assert found == [(1, 1280, "drift_detected", 5.0), (2, 2560, "learner_set_aside", 5.0)]
    assert journal.read()[1].payload == {"learner": "forest", "reason": "not_finite", "detail": ""}


def test_periodic_weights_are_in_the_journal_only():
    stream, journal = io.StringIO(), Journal()
    hub = Events(FakeClock(), stream, journal)
    hub.emit(WeightsReported(row=5000, weights={"forest": 1.0}, losses={"forest": math.nan}))
    assert stream.getvalue() == ""
    assert journal.read()[0].payload["losses"] == {"forest": None}


def test_replay_from_a_checkpoint_writes_the_same_numbers_once():
    journal = Journal()
    hub = Events(FakeClock(), io.StringIO(), journal)
    hub.emit(drift(128))
    state = hub.state()
    hub.emit(drift(256))
    again = Events(FakeClock(), io.StringIO(), journal)
    again.load_state(state)
    again.emit(drift(256))
    assert [(entry.seq, entry.row) for entry in journal.read()] == [(1, 128), (2, 256)]


def test_numpy_numbers_and_odd_objects_do_not_stop_an_event():
    stream, journal = io.StringIO(), Journal()
    hub = Events(FakeClock(), stream, journal)
    hub.emit(DriftDetected(row=np.int64(5), detector="adwin", signal={1, 2}, value=np.float64(0.5)))
    assert (lines(stream)[0]["row"], lines(stream)[0]["value"]) == (5, 0.5)
    assert journal.read()[0].payload["value"] == 0.5


def test_run_without_a_checkpoint_writes_behind_what_is_in_the_journal():
    journal = Journal()
    Events(FakeClock(), io.StringIO(), journal).emit(drift(128))
    Events(FakeClock(), io.StringIO(), journal).emit(drift(256))
    assert [(entry.seq, entry.row) for entry in journal.read()] == [(1, 128), (2, 256)]


def test_journal_that_fails_is_reported_and_stops_nothing(tmp_path):
    stream = io.StringIO()
    journal = Journal(tmp_path / "journal.sqlite")
    hub = Events(FakeClock(), stream, journal)
    hub.emit(drift())
    journal.close()
    hub.emit(drift())
    hub.flush()
    assert lines(stream)[-1]["event"] == "journal_failed"
    assert hub.counts["journal_failed"] == 1


def test_closed_stderr_stops_nothing():
    stream = io.StringIO()
    hub = Events(FakeClock(), stream)
    stream.close()
    hub.emit(drift())
    assert hub.counts["drift_detected"] == 1


def test_every_event_is_counted_from_the_start():
    assert set(Events(FakeClock(), io.StringIO()).counts) == {event_name(cls) for cls in CLASSES}


@pytest.mark.parametrize("cls", CLASSES, ids=event_name)
def test_event_is_named_subject_and_past_verb_and_has_a_level(cls):
    assert re.fullmatch(
        r"[a-z]+(_[a-z]+)*_([a-z]+ed|frozen|grown|reset|set_aside|moved_aside)", event_name(cls)
    )
    assert cls.level in events.LEVELS
    assert cls.__struct_config__.frozen
    # A field of these names would take the place of the line's own.
    assert not {"ts", "level", "event"} & set(cls.__struct_fields__)
    assert cls.decided == ("row" in cls.__struct_fields__)
