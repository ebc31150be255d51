"""The journal: bounded, cut to the checkpoint, and no reason for the daemon to stop."""

import sqlite3

import pytest

from adaptd.errors import AdaptdError
from adaptd.journal import PENDING_MAX, SURPLUS_MAX, Journal


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "journal.sqlite"


def filled(path, n, **options):
    journal = Journal(path, **options)
    for seq in range(1, n + 1):
        kind = "drift_detected" if seq % 3 == 0 else "rates_boosted"
        journal.append(seq, seq * 128, kind, {"factor": seq / 3, "learners": ["forest"]}, 1.5 + seq)
    return journal


@pytest.mark.parametrize("in_memory", [False, True])
def test_entries_come_back_in_order(path, in_memory):
    journal = filled(None if in_memory else path, 10)
    entries = journal.read(last=3)
    assert [entry.seq for entry in entries] == [8, 9, 10]
    assert (entries[1].row, entries[1].kind, entries[1].wall) == (9 * 128, "drift_detected", 10.5)
    assert entries[1].payload == {"factor": 3.0, "learners": ["forest"]}
    assert [entry.seq for entry in journal.read(kind="drift_detected")] == [3, 6, 9]
    assert [entry.seq for entry in journal.read(since=8)] == [9, 10]
    journal.close()


def test_entries_outlive_the_process(path):
    filled(path, 10).close()
    journal = Journal(path)
    assert len(journal.read()) == 10
    assert journal.moved_aside is None
    journal.close()


def test_entries_are_committed_at_flush_and_every_so_many(path):
    journal = filled(path, 10)
    reader = sqlite3.connect(path)
    count = "SELECT count(*) FROM journal"
    assert reader.execute(count).fetchone() == (0,)
    journal.flush()
    assert reader.execute(count).fetchone() == (10,)
    for seq in range(11, 11 + PENDING_MAX):
        journal.append(seq, seq, "weights_reported", {}, 0.0)
    assert reader.execute(count).fetchone() == (10 + PENDING_MAX,)
    reader.close()
    journal.close()


def test_replay_after_a_cut_doubles_nothing(path):
    filled(path, 10).close()
    journal = Journal(path)
    journal.append(11, 0, "never_flushed", {}, 0.0)
    journal.cut_after(4)
    assert [entry.seq for entry in journal.read()] == [1, 2, 3, 4]
    for seq in range(5, 11):
        journal.append(seq, seq, "again", {}, 0.0)
    assert [entry.seq for entry in journal.read()] == list(range(1, 11))
    journal.close()


def test_oldest_entries_go_when_it_is_full(path):
    journal = filled(path, 5000, rows_max=100)
    journal.flush()
    entries = journal.read(last=10_000)
    assert entries[-1].seq == 5000
    assert 100 <= len(entries) <= 100 + min(100, SURPLUS_MAX) + PENDING_MAX
    assert [entry.seq for entry in entries] == list(range(5001 - len(entries), 5001))
    journal.close()


@pytest.mark.parametrize("damage", ["not_sqlite", "torn_pages"])
def test_damaged_file_is_moved_aside_and_a_new_one_begun(path, damage):
    filled(path, 2000).close()
    data = path.read_bytes()
    if damage == "not_sqlite":
        path.write_bytes(b"not a database, and long enough to have a header of one" * 20)
    else:
        path.write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))
    before = path.read_bytes()
    journal = Journal(path)
    assert journal.moved_aside == f"{path}.damaged-1"
    assert path.with_name("journal.sqlite.damaged-1").read_bytes() == before
    assert journal.read() == []
    journal.append(1, 1, "begun", {}, 0.0)
    journal.close()
    again = Journal(path)
    assert (again.moved_aside, len(again.read())) == (None, 1)
    again.close()


def test_database_of_another_program_is_left_alone(tmp_path):
    path = tmp_path / "books.sqlite"
    with sqlite3.connect(path) as foreign:
        foreign.execute("CREATE TABLE journal (title)")
    foreign.close()
    before = path.read_bytes()
    with pytest.raises(AdaptdError, match="another program's database"):
        Journal(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_failed_flush_keeps_the_entries(path):
    journal = filled(path, 10)
    other = sqlite3.connect(path, isolation_level=None)
    journal._connection.execute("PRAGMA busy_timeout=0")
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(AdaptdError, match="10 entries wait"):
        journal.flush()
    other.execute("ROLLBACK")
    other.close()
    assert len(journal.read()) == 10
    journal.close()


def test_directory_in_the_place_of_the_file_is_refused_with_its_name(tmp_path):
    with pytest.raises(AdaptdError, match=r"the journal .* could not be opened"):
        Journal(tmp_path)


def test_closing_twice_is_harmless(path):
    journal = filled(path, 1)
    journal.close()
    journal.close()
