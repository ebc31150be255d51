"""The bounded store behind the live page."""

import math
import sqlite3

import pytest

from adaptd.history import TIER_SLOTS, History
from adaptd.metrics import LABEL_DELAY_BOUNDS_ROWS, Histogram, LearnerFigures, Snapshot
from tests.services import Running

START = 1_700_000_000.0


def snapshot(rows: int, names: tuple[str, ...] = ("linear", "forest"), **fields) -> Snapshot:
    learners = [
        LearnerFigures(name=name, scores={"accuracy": 0.5 + k / 10}, weight=0.25, is_champion=k == 1)
        for k, name in enumerate(names)
    ]
    return Snapshot(
        rows=rows,
        labels=rows // 2,
        learners=learners,
        blend_scores={"accuracy": 0.9, "log_loss": 0.3},
        **fields,
    )


def filled(history: History, seconds: int, step: float = 0.5) -> History:
    for i in range(int(seconds / step)):
        history.add(snapshot(i * 50), START + i * step)
    return history


def slots(path) -> int:
    with sqlite3.connect(path) as connection:
        return connection.execute("SELECT count(*) FROM point").fetchone()[0]


def test_a_point_says_what_the_snapshot_said():
    history = filled(History(), 10)
    read = history.read()
    assert read["learners"] == ["linear", "forest"]
    assert read["score_name"] == "accuracy"
    point = read["points"][-1]
    assert point["row"] == 18 * 50 // 2
    assert point["rows_per_second"] == pytest.approx(100.0)
    assert point["blend"] == 0.9
    assert point["score"] == [0.5, 0.6]
    assert point["weight"] == [0.25, 0.25]
    assert point["champion"] == "forest"
    # What is not known is null in JSON, never NaN.
    assert point["learning_rate"] == [None, None]
    assert point["lag_bytes"] is None
    assert point["label_delay_rows"] is None


def test_the_store_stays_bounded_on_disk_and_in_what_is_read(tmp_path):
    path = tmp_path / "history.sqlite"
    history = filled(History(path), 10 * TIER_SLOTS, step=1.0)
    assert len(history.read(0.0, 600)["points"]) <= 600
    history.close()
    assert slots(path) <= 3 * TIER_SLOTS


def test_a_short_window_is_fine_and_a_long_one_reaches_back():
    history = filled(History(hours=2.0), 7200, step=1.0)
    end = START + 7199
    fine = history.read(end - 60, 600)["points"]
    assert len(fine) == 60
    assert fine[-1]["t"] == end
    whole = history.read(0.0, 600)["points"]
    assert whole[0]["t"] - START < 30
    assert end - whole[-1]["t"] < 30


@pytest.mark.parametrize("points", [1, 7, 600])
def test_thinning_keeps_the_newest_point(points):
    history = filled(History(), 100)
    newest = history.read()["points"][-1]
    read = history.read(0.0, points)["points"]
    assert len(read) <= points
    assert read[-1] == newest
    assert read == sorted(read, key=lambda point: point["t"])


def test_what_is_read_since_the_last_point_is_new():
    history = filled(History(), 30)
    last = history.read()["points"][-1]["t"]
    assert history.read(last)["points"] == []
    history.add(snapshot(99_999), START + 40)
    assert [point["t"] for point in history.read(last)["points"]] == [START + 40]


def test_a_learner_that_came_later_has_no_past():
    history = filled(History(), 5)
    history.add(snapshot(1000, ("linear", "forest", "mlp")), START + 60)
    read = history.read()
    assert set(read["learners"]) == {"linear", "forest", "mlp"}
    place = read["learners"].index("mlp")
    assert read["points"][0]["score"][place] is None
    assert read["points"][-1]["score"][place] == 0.7


def test_label_delay_is_that_of_the_labels_since_the_point_before():
    history, delays = History(), Histogram(LABEL_DELAY_BOUNDS_ROWS)
    delays.add(100.0)
    history.add(snapshot(10, label_delay_rows=delays.copy()), START)
    delays.add(10.0)
    delays.add(20.0)
    history.add(snapshot(20, label_delay_rows=delays.copy()), START + 1)
    assert [point["label_delay_rows"] for point in history.read()["points"]] == [100.0, 15.0]


def test_the_history_outlives_the_daemon(tmp_path):
    path = tmp_path / "deeper" / "history.sqlite"
    history = filled(History(path), 20)
    before = history.read()
    history.close()
    history.close()
    again = History(path)
    assert again.failure == ""
    assert again.read()["points"] == before["points"]
    # Rows are counted anew by a new process: no speed is told across the gap.
    again.add(snapshot(5), START + 500)
    assert again.read()["points"][-1]["rows_per_second"] is None


def test_a_clock_that_is_set_back_leaves_no_future():
    history = filled(History(), 100)
    history.add(snapshot(10), START + 20)
    times = [point["t"] for point in history.read()["points"]]
    assert max(times) == START + 20
    assert times == sorted(times)


@pytest.mark.parametrize("content", [b"x" * 5000, b"SQLite format 3\x00" + b"\xff" * 4000])
def test_a_damaged_file_is_moved_aside(tmp_path, content):
    path = tmp_path / "history.sqlite"
    path.write_bytes(content)
    history = filled(History(path), 10)
    assert str(path) in history.failure
    assert len(history.read()["points"]) == 10
    history.close()
    assert path.with_name("history.sqlite.damaged").read_bytes() == content
    again = History(path)
    assert again.failure == ""
    assert len(again.read()["points"]) == 10


def test_another_programs_database_is_not_written_to(tmp_path):
    path = tmp_path / "history.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE precious (x)")
    history = filled(History(path), 3)
    assert "another program" in history.failure
    history.close()
    with sqlite3.connect(path) as connection:
        assert [row[0] for row in connection.execute("SELECT name FROM sqlite_master")] == ["precious"]


def test_a_file_that_fails_later_stops_nothing(tmp_path):
    path = tmp_path / "history.sqlite"
    history = filled(History(path), 10)
    history.read()
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE point")
    history.add(snapshot(1), START + 50)
    assert "point" in history.failure
    assert [point["t"] for point in history.read()["points"]] == [START + 50]


def test_no_figures_yet_is_no_failure():
    history = History()
    assert history.read()["points"] == []
    history.add(Snapshot(blend_loss=math.nan), START)
    assert history.read()["points"][0]["blend"] is None


def test_a_history_that_is_given_up_is_told_once():
    with Running() as running:
        running.daemon.history.failure = "the disk is full"
        while running.daemon.log.counts["history_failed"] == 0:
            assert running.failure is None
            running.learn([{"id": 1, "x": {"a": 1}, "y": "up"}])
        published = running.daemon.figures.published
        while running.daemon.figures.published == published:
            running.learn([{"id": 1, "x": {"a": 1}, "y": "up"}])
    assert running.daemon.log.counts["history_failed"] == 1
    assert "the disk is full" in running.stderr.getvalue()
