"""`adaptd status`, against a real daemon and against what is none."""

import contextlib
import fcntl
import http.server
import io
import json
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading

import pytest
from rich.console import Console

from adaptd import status
from adaptd.errors import AdaptdError, UsageError
from tests import served, streams

ADAPTD = [sys.executable, "-m", "adaptd"]


@pytest.fixture(scope="module")
def daemon():
    with served.adaptd() as running:
        running.feed(streams.classes(3000, drift_at=1500))
        running.until_learned(3000)
        yield running


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([*ADAPTD, "status", *arguments], capture_output=True, timeout=60, text=True)


def test_the_table_shows_every_learner_and_the_decisions(daemon):
    done = run("--url", daemon.url)
    assert done.returncode == 0, done.stderr
    for words in ("accuracy", "3,000", "champion", *served.POOL, "drift detected"):
        assert words in done.stdout


def test_json_has_the_keys_of_the_api(daemon):
    done = run("--url", daemon.url, "--format", "json")
    assert done.returncode == 0, done.stderr
    now = json.loads(done.stdout)
    assert now["status"]["labels"] == 3000
    names = {learner["name"] for learner in now["learners"]}
    assert {name for name in names if not name.startswith("concept_")} == set(served.POOL)
    assert (now["status"]["concepts"] > 0) == ("concept_1" in names)
    assert any(entry["kind"] == "drift_detected" for entry in daemon.get("/api/v1/journal")["entries"])
    assert now["history"][-1]["row"] > 0


def test_watch_goes_on_showing_it_on_a_terminal_until_interrupted():
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))
    with served.adaptd() as running:
        running.feed(streams.classes(1000))
        running.until_learned(1000)
        watching = subprocess.Popen(
            [*ADAPTD, "status", "--watch", "--url", running.url],
            stdin=its, stdout=its, stderr=its, env={**os.environ, "TERM": "xterm", "LINES": "50"},
            # Shells start what runs in the background with the signal ignored, and that is inherited.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        os.close(its)

        def until(words: str) -> None:
            screen = b""
            while words.encode() not in screen:
                screen += os.read(ours, 65536)

        until("1,000")
        running.feed(streams.classes(777))
        until("1,777")
        watching.send_signal(signal.SIGINT)
        # Whoever interrupts what has no end has seen enough: no fault.
        with contextlib.suppress(OSError):
            while os.read(ours, 65536):
                pass
        assert watching.wait(60) in (0, 130)
    os.close(ours)


def test_nobody_there_is_told_with_what_to_do():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    done = run("--url", f"http://127.0.0.1:{port}")
    assert done.returncode == 1
    assert "http.enabled = true" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("url", ["localhost:9464", "ftp://x", ""])
def test_an_address_of_another_form_is_wrong_use(url):
    with pytest.raises(UsageError, match="--url must start with"):
        status.fetched(url, "status")


@pytest.mark.parametrize(("code", "body"), [(404, b"{}"), (200, b"<html>")])
def test_another_server_is_told_from_adaptd(code, body):
    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Other) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with pytest.raises(AdaptdError, match=r"adaptd"):
            status.fetched(f"http://127.0.0.1:{server.server_port}", "status")
        thread.join()


def test_a_daemon_that_knows_nothing_yet_is_shown():
    now = {
        "status": {"version": "1", "task": "", "ready": False, "scores": {}, "rejects": {"not_json": 2}},
        "learners": [
            {"name": "linear", "set_aside": "too_big", "scores": {}, "weight": None, "state_bytes": 0},
            {"name": "[bold]odd", "frozen": True, "scores": {}, "weight": 1.0},
        ],
        "journal": [
            {"seq": 1, "row": 0, "kind": "odd", "payload": {"a": [1, {"b": None}], "c": ""}, "wall": 0.0}
        ],
        "history": [],
    }
    console = Console(file=io.StringIO(), width=120)
    console.print(status.shown(now))
    text = console.file.getvalue()
    for words in ("starting", "2 not_json", "set aside: too_big", "frozen", "[bold]odd"):
        assert words in text


def test_every_score_of_the_blend_is_shown():
    scores = {"accuracy": 0.91, "log_loss": 0.25, "calibration_error": 0.0123}
    shown = status.figures({"scores": scores}, [])
    console = Console(file=io.StringIO(), width=120)
    console.print(shown)
    assert [line.split()[:-1] for line in console.file.getvalue().splitlines()[:3]] == [
        ["accuracy"], ["log", "loss"], ["calibration", "error"],
    ]  # fmt: skip
