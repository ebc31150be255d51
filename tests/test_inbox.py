"""The durable input log: what is in it, what a crash leaves, and a real crash."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request

import numpy as np
import pytest

from adaptd.checkpoint import CheckpointStore
from adaptd.errors import CheckpointError
from adaptd.inbox import Inbox
from tests import streams


def filled(folder: pathlib.Path, n: int = 5) -> Inbox:
    inbox = Inbox(folder)
    for k in range(n):
        inbox.append(10 * k, [("rows", b'{"a":%d}\n' % k)])
    inbox.wait()
    return inbox


def segments(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.glob("inbox-*"))


def test_entries_come_back_in_order_with_their_places(tmp_path):
    filled(tmp_path).close()
    entries = Inbox(tmp_path).resume(2)
    assert [(entry.seq, entry.after, entry.body) for entry in entries] == [
        (3, 20, b'{"a":2}\n'), (4, 30, b'{"a":3}\n'), (5, 40, b'{"a":4}\n'),
    ]  # fmt: skip


def test_numbers_go_on_after_a_restart(tmp_path):
    filled(tmp_path).close()
    inbox = Inbox(tmp_path)
    inbox.resume(5)
    assert inbox.append(50, [("command", b"{}")])[0].seq == 6
    inbox.close()
    assert [entry.seq for entry in Inbox(tmp_path).resume(0)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("cut", [1, 9, 17, 25])
def test_a_half_written_end_is_cut_off_and_told(cut, tmp_path):
    filled(tmp_path).close()
    (path,) = tmp_path.glob("inbox-*")
    size = path.stat().st_size
    os.truncate(path, size - cut)
    inbox = Inbox(tmp_path)
    assert inbox.torn is not None
    kept = [entry.seq for entry in inbox.resume(0)]
    assert kept in ([1, 2, 3, 4], [1, 2, 3])
    assert inbox.append(99, [("rows", b"{}\n")])[0].seq == kept[-1] + 1
    inbox.close()
    again = Inbox(tmp_path)
    assert again.torn is None
    assert again.resume(0)[-1].after == 99


def test_damage_before_the_last_segment_is_refused(tmp_path):
    inbox = filled(tmp_path)
    inbox.checkpointed(0)
    inbox.append(60, [("rows", b"{}\n")])
    inbox.close()
    first, _ = sorted(tmp_path.glob("inbox-*"))
    content = bytearray(first.read_bytes())
    content[40] ^= 1
    first.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{first.name} is damaged at byte"):
        Inbox(tmp_path)


def test_a_foreign_file_is_refused(tmp_path):
    (tmp_path / "inbox-0000000001.log").write_bytes(b"something else")
    with pytest.raises(CheckpointError, match="must be an input log"):
        Inbox(tmp_path)


def test_a_missing_segment_is_refused(tmp_path):
    inbox = filled(tmp_path)
    inbox.checkpointed(0)
    inbox.append(60, [("rows", b"{}\n")])
    inbox.close()
    sorted(tmp_path.glob("inbox-*"))[0].unlink()
    with pytest.raises(CheckpointError, match="must go on with entry 3"):
        Inbox(tmp_path).resume(2)


def test_segments_are_dropped_once_every_kept_checkpoint_holds_them(tmp_path):
    inbox = filled(tmp_path)
    inbox.checkpointed(3)
    inbox.append(60, [("rows", b"{}\n")])
    assert segments(tmp_path) == ["inbox-0000000001.log", "inbox-0000000006.log"]
    inbox.checkpointed(5)
    assert segments(tmp_path) == ["inbox-0000000006.log"]
    inbox.checkpointed(6)
    assert segments(tmp_path) == []
    assert inbox.append(70, [("rows", b"{}\n")])[0].seq == 7
    inbox.close()


def test_what_waits_for_the_disk_is_called_in_order(tmp_path):
    inbox, called = Inbox(tmp_path), []
    for k in range(20):
        (entry,) = inbox.append(0, [("rows", b"{}\n")])
        inbox.when_synced(entry.seq, lambda k=k: called.append(k))
    inbox.wait()
    inbox.close()
    assert called == sorted(called)
    assert len(called) == 20


def test_a_disk_that_refuses_takes_nothing(tmp_path):
    inbox = filled(tmp_path)
    os.close(inbox._descriptor)
    (path,) = tmp_path.glob("inbox-*")
    # A descriptor that cannot be written stands for a disk that is full.
    inbox._descriptor = os.open(path, os.O_RDONLY)
    with pytest.raises(OSError, match="Bad file descriptor"):
        inbox.append(60, [("rows", b"{}\n")])
    assert inbox.last_seq == 5
    inbox.close()
    assert len(Inbox(tmp_path).resume(0)) == 5


def test_without_a_directory_entries_count_as_synced():
    inbox = Inbox(None)
    assert inbox.append(0, [("rows", b"{}\n")])[0].seq == 1
    assert inbox.is_synced
    inbox.close()


# A real process, killed.

TIMEOUT_SECONDS = 60


class Service:
    """A process that follows a file and takes requests."""

    def __init__(self, folder: pathlib.Path, rows: int) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.sink = folder, folder / "out.jsonl"
        (folder / "in.jsonl").write_bytes(streams.lines(streams.classes(rows)))

    def start(self, *more: str) -> "Service":
        self.process = subprocess.Popen(
            [sys.executable, "-m", "adaptd", "run", "--set", "pool.learners.linear.kind=linear",
             "--set", "pool.learners.prior.kind=prior", "--set", "source.kind=file",
             "--set", f"source.path={self.folder}/in.jsonl", "--set", "source.follow=true",
             "--set", "source.poll_rows_max=50", "--set", "sink.kind=file", "--set", f"sink.path={self.sink}",
             "--set", f"checkpoint.directory={self.folder}/state", "--set", "checkpoint.keep=1000",
             "--set", "checkpoint.interval_seconds=0.2", "--set", "http.enabled=true",
             "--set", "http.listen=127.0.0.1:0", *more],
            stderr=subprocess.PIPE,
        )  # fmt: skip
        events = map(json.loads, self.process.stderr)
        self.listen = next(event["listen"] for event in events if event["event"] == "http_started")
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        return self

    def post(self, path: str, body: object = None) -> dict:
        request = urllib.request.Request(
            f"http://{self.listen}/api/v1/{path}",
            b"" if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            return json.load(answer)

    def wait_for_lines(self, n: int) -> None:
        end = time.monotonic() + TIMEOUT_SECONDS
        while self.sink.read_bytes().count(b"\n") < n:
            assert self.process.poll() is None
            assert time.monotonic() < end

    def end(self, number: int) -> None:
        self.process.send_signal(number)
        self.process.wait(TIMEOUT_SECONDS)

    def lane(self) -> dict:
        store = CheckpointStore(self.folder / "state", keep=1000)
        loaded = store.load_latest()
        store.close()
        return loaded.state["lane"]


def same(one: object, other: object) -> bool:
    """Bit for bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    return one == other or (one != one and other != other)


def test_after_sigkill_what_was_answered_is_done_again_at_its_place(tmp_path):
    rows = 10_000
    service = Service(tmp_path / "run", rows)
    told: dict[str, dict] = {}
    for life in range(2):
        service.start()
        for k in range(12):
            name = f"api-{life}-{k}"
            (told[name],) = service.post("predict", {"id": name, "a": 0.1 * k, "b": 1.0})["predictions"]
            service.post("learn", [{"a": k, "b": -k, "colour": "red", "y": "up"}])
            service.post("label", {"id": name, "y": "down"})
            if k == 6:
                service.post(f"learners/linear/{'un' * life}freeze")
        if life < 1:
            service.end(signal.SIGKILL)
    # Each life's 12 ids and 12 learned rows.
    service.wait_for_lines(rows + 2 * 24)
    service.end(signal.SIGTERM)
    lines = service.sink.read_bytes()
    written = {line["id"]: line for line in map(json.loads, lines.splitlines()) if "id" in line}
    # What a client was told is what the sink has, whatever was killed in between.
    assert {name: written[name] for name in told} == told

    # One life that was never killed, from the first checkpoint on with the same log.
    shutil.copytree(service.folder, tmp_path / "whole")
    twin = Service(tmp_path / "whole", rows)
    twin.sink.write_bytes(b"")
    entries = Inbox(twin.folder / "state").resume(0)
    assert any(0 < entry.after < rows for entry in entries)
    twin.start("--restore", "0")
    twin.wait_for_lines(rows + 2 * 24)
    twin.end(signal.SIGTERM)
    assert twin.sink.read_bytes() == lines
    assert same(twin.lane(), service.lane())


def test_a_checkpoint_that_was_asked_for_holds_no_part_of_a_read(tmp_path):
    rows = 20_000
    service = Service(tmp_path, rows).start(
        "--set", "source.poll_rows_max=10000", "--set", "checkpoint.interval_seconds=1000",
    )  # fmt: skip
    service.wait_for_lines(1)
    # The first comes when the read that is in hand is done, the second as soon as the next one is.
    first = service.post("checkpoint")["number"]
    second = service.post("checkpoint")["number"]
    service.end(signal.SIGKILL)
    assert second > first
    service.start()
    service.wait_for_lines(rows)
    service.end(signal.SIGTERM)
    written = [json.loads(line)["row"] for line in service.sink.read_bytes().splitlines()]
    assert written == list(range(1, rows + 1))
