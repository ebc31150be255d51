"""What the service manager is told, over a real socket."""

import contextlib
import math
import os
import re
import socket
import subprocess
import sys
import threading
import time

import pytest

from adaptd import notify
from adaptd.clock import FakeClock
from adaptd.metrics import LearnerFigures, Snapshot
from tests import streams


class Manager:
    """The other end of the socket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address.replace("@", "\0", 1) if address.startswith("@") else address)
        self.socket.settimeout(120)

    def environment(self, **more: str) -> dict[str, str]:
        return {"NOTIFY_SOCKET": self.address, **more}

    def heard(self) -> dict[str, str]:
        """The next message."""
        return dict(line.split("=", 1) for line in self.socket.recv(65536).decode().split("\n"))

    def rest(self) -> list[dict[str, str]]:
        """All messages that are there by now."""
        messages = []
        self.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                messages.append(self.heard())
        self.socket.settimeout(120)
        return messages


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    name = "@adaptd-test-" + os.urandom(8).hex() if request.param == "abstract" else str(tmp_path / "notify")
    manager = Manager(name)
    yield manager
    manager.socket.close()


def test_each_message_is_what_systemd_reads(manager):
    notifier = notify.Notifier(manager.environment())
    notifier.ready("Ready")
    assert manager.heard() == {"READY": "1", "STATUS": "Ready"}
    notifier.status("Busy")
    assert manager.heard() == {"STATUS": "Busy"}
    notifier.extend("Compiling", 90)
    assert manager.heard() == {"EXTEND_TIMEOUT_USEC": "90000000", "STATUS": "Compiling"}
    notifier.stopping("Bye")
    assert manager.heard() == {"STOPPING": "1", "STATUS": "Bye"}


def test_a_reload_carries_the_monotonic_time_in_microseconds(manager):
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notify.Notifier(manager.environment()).reloading()
    heard = manager.heard()
    assert heard["RELOADING"] == "1"
    assert before <= int(heard["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_a_status_cannot_say_anything_else(manager):
    notify.Notifier(manager.environment()).status("one\nREADY=1\n" + "x" * 10_000)
    heard = manager.heard()
    assert set(heard) == {"STATUS"}
    assert len(heard["STATUS"]) == notify.STATUS_CHARACTERS_MAX


def test_turns_feed_the_watchdog_four_times_in_its_time_and_nothing_else_does(manager):
    clock = FakeClock()
    notifier = notify.Notifier(manager.environment(WATCHDOG_USEC="2000000"), clock.monotonic)
    heard = []
    for _ in range(1000):  # ten seconds
        notifier.turn(lambda: "fine")
        clock.advance(0.01)
        heard += manager.rest()
    assert 19 <= sum("WATCHDOG" in message for message in heard) <= 21
    assert sum("STATUS" in message for message in heard) == 2
    clock.advance(100)
    assert manager.rest() == []


def test_without_a_watchdog_only_the_status_is_said(manager):
    notifier = notify.Notifier(manager.environment())
    notifier.turn(lambda: "fine")
    assert manager.heard() == {"STATUS": "fine"}


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, 0.0),
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
    ],
)
def test_a_watchdog_that_is_meant_for_another_process_is_not_ours(environment, seconds):
    assert notify.watchdog_seconds(environment) == seconds


@pytest.mark.parametrize("address", ["", "relative/path", "/nowhere/at/all"])
def test_without_a_manager_nothing_happens(address):
    notifier = notify.Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1"})
    notifier.ready("Ready")
    notifier.turn(lambda: "fine")
    notifier.stopping("Bye")
    notifier.close()
    notifier.status("after all")


def test_a_manager_that_does_not_read_holds_nothing_up_for_long(tmp_path, monkeypatch):
    monkeypatch.setattr(notify, "SEND_SECONDS_MAX", 0.01)
    manager = Manager(str(tmp_path / "deaf"))
    notifier = notify.Notifier(manager.environment())
    for _ in range(1000):  # more than the socket's queue holds
        notifier.status("hello")
    assert manager.heard() == {"STATUS": "hello"}


def test_the_status_says_what_a_person_wants_to_know():
    clock = FakeClock()
    status = notify.Status(clock.monotonic)
    snapshot = Snapshot(rows=1000)
    assert status.line(snapshot, clock.wall()) == "1,000 rows; no checkpoint"
    clock.advance(10)
    snapshot = Snapshot(
        rows=51_000,
        learners=[
            LearnerFigures(name="forest", is_champion=True),
            LearnerFigures(name="linear", is_set_aside=True),
        ],
        blend_scores={"accuracy": 0.91234, "log_loss": math.nan},
        checkpoint_time=clock.wall() - 42,
        checkpoint_failures=2,
    )
    assert status.line(snapshot, clock.wall()) == (
        "51,000 rows; 5,000 a second; champion forest; accuracy 0.9123; 1 of 2 learners set aside; "
        "checkpoint 42 s ago; 2 checkpoints failed"
    )


def test_a_run_says_ready_before_its_first_row_and_stopping_before_its_end(manager):
    process = subprocess.Popen(
        [sys.executable, "-m", "adaptd", "run", "--set", "pool.learners.prior.kind=prior"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env={**os.environ, **manager.environment(WATCHDOG_USEC="1000000")},
    )  # fmt: skip
    heard = [manager.heard()]
    while "READY" not in heard[-1]:
        assert "WATCHDOG" not in heard[-1]
        heard.append(manager.heard())
    assert heard[0] == {"EXTEND_TIMEOUT_USEC": "120000000", "STATUS": "Starting"}
    # An idle source is a turn.
    for _ in range(3):
        assert manager.heard()["WATCHDOG"] == "1"
    process.stdin.write(streams.lines(streams.classes(200)))
    process.stdin.close()
    while "STOPPING" not in heard[-1]:
        heard.append(manager.heard())
    assert len(process.stdout.read().splitlines()) == 200
    assert process.wait(60) == 0


def test_an_output_that_nobody_reads_is_a_turn_and_ends_the_reading(manager):
    process = subprocess.Popen(
        [sys.executable, "-m", "adaptd", "run", "--set", "pool.learners.prior.kind=prior"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env={**os.environ, **manager.environment(WATCHDOG_USEC="1000000")},
    )  # fmt: skip
    data = streams.lines(streams.classes(50_000))
    # More than the pipes hold: the writing ends when all was read.
    writing = threading.Thread(target=lambda: (process.stdin.write(data), process.stdin.close()))
    writing.start()
    while "READY" not in manager.heard():
        pass
    fed = 0
    while fed < 12:  # three seconds of a time limit of one
        fed += manager.heard().get("WATCHDOG") == "1"
    assert process.poll() is None
    assert writing.is_alive()
    assert len(process.stdout.read().splitlines()) == 50_000
    writing.join()
    assert process.wait(60) == 0


def test_each_kernel_that_is_compiled_asks_for_time(manager, tmp_path):
    """In a cache of its own, so there is something to compile; a small kernel of this test's."""
    script = (
        "from adaptd import notify\n"
        "with notify.starting(notify.Notifier()):\n"
        "    import adaptd.kernels.random\n"
        "    from adaptd.kernels.compile import kernel\n"
        "    def double(x): return x + x\n"
        "    double.__module__ = 'adaptd.example'\n"
        "    double = kernel('f8(f8)')(double)\n"
        "assert double(2.0) == 4.0\n"
    )
    path = tmp_path / "script.py"
    path.write_text(script)
    subprocess.run(
        [sys.executable, str(path)],
        check=True,
        env={**os.environ, **manager.environment(), "NUMBA_CACHE_DIR": str(tmp_path)},
    )
    heard = manager.rest()
    assert any(re.match(r"Compiling kernel \d+, double: ", message["STATUS"]) for message in heard)
    assert all(message["EXTEND_TIMEOUT_USEC"] == "120000000" for message in heard)
