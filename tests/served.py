"""A real adaptd with its HTTP server, fed by hand."""

import contextlib
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

from tests import streams

WAIT_SECONDS = 120.0
# Few learners, of different kinds: one with a learning rate among them.
POOL = ("linear", "naive_bayes", "prior")


class Served:
    """The process, its address, and its standard input."""

    def __init__(self, process: subprocess.Popen, url: str) -> None:
        self.process = process
        self.url = url

    def feed(self, records: list[dict]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(streams.lines(records))
        self.process.stdin.flush()

    def get(self, path: str) -> dict:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return json.loads(answer.read())

    def until_learned(self, rows: int) -> None:
        """Come back when so many rows are learned and published."""
        deadline = time.monotonic() + WAIT_SECONDS
        pause = 0.05
        while self.get("/api/v1/status")["labels"] < rows:
            assert self.process.poll() is None, "the daemon ended"
            assert time.monotonic() < deadline, f"{rows} rows were not learned in {WAIT_SECONDS} s"
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(pause)


@contextlib.contextmanager
def adaptd(*assignments: str) -> Iterator[Served]:
    """Serves on a free port of loopback; stdin brings the rows."""
    command = [sys.executable, "-m", "adaptd", "run", "--set", "http.enabled=true"]
    settings = [f"pool.learners.{kind}.kind={kind}" for kind in POOL]
    for setting in ("http.listen=127.0.0.1:0", *settings, *assignments):
        command += ["--set", setting]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=False
    )
    seen = b""
    try:
        assert process.stderr is not None
        for line in process.stderr:
            seen += line
            event = json.loads(line) if line.startswith(b"{") else {}
            if event.get("event") == "http_started":
                break
        else:
            raise AssertionError(f"adaptd did not serve: {seen.decode()}")
        yield Served(process, f"http://{event['listen']}")
    finally:
        process.stdin.close()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stderr.close()
