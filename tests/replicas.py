"""Replicas of adaptd on a real broker, in threads of the test, and what they are compared with."""

import io
import json
import random
import threading
import time
from collections.abc import Callable
from typing import Any

from adaptd import config as configuration
from adaptd.answers import formatted
from adaptd.clock import FakeClock
from adaptd.engine import Lane
from adaptd.events import Events
from adaptd.lines import build_decoder
from adaptd.predictions import JsonLines
from adaptd.replica import Replica
from tests.broker import Broker

POOL = {"linear": {"kind": "linear"}, "prior": {"kind": "prior"}}
WAIT_SECONDS_MAX = 60.0


def tree(broker: Broker, name: str, directory: Any, **more: Any) -> dict[str, Any]:
    """A configuration with topics `NAME-in`, `NAME-out`, `NAME-dead`; `more` goes into its sections."""
    base = {
        "source": {
            "kind": "kafka", "servers": broker.servers, "topic": f"{name}-in", "group": name,
            "session_timeout_seconds": 6.0,
        },
        "sink": {"kind": "kafka", "topic": f"{name}-out", "dead_letters_topic": f"{name}-dead"},
        "checkpoint": {"directory": str(directory), "interval_seconds": 3600.0},
        "pool": {"learners": POOL},
        "control": {"rows": 16},
    }  # fmt: skip
    for section, keys in more.items():
        base[section] = {**base.get(section, {}), **keys}
    return base


def topics(broker: Broker, name: str, partitions: int = 1) -> None:
    for kind in ("in", "out", "dead"):
        broker.create(f"{name}-{kind}", partitions)


def rows(n: int, seed: int = 0, labelled: bool = True, first: int = 0) -> list[bytes]:
    """Records with an id, two features and, where asked for, a label."""
    generator = random.Random(seed)
    lines = []
    for i in range(first, first + n):
        a, b = generator.random(), generator.random()
        label = {"y": "up" if a > b else "down"} if labelled else {}
        lines.append(json.dumps({"id": i, "x": {"a": round(a, 4), "b": round(b, 4)}, **label}).encode())
    return lines


def expected(configured: dict[str, Any], lines: list[bytes]) -> list[bytes]:
    """What one lane that is never disturbed says to `lines`."""
    config = configuration.read(configured, "test")
    lane = Lane(config, Events(FakeClock(), io.StringIO()))
    decoder = build_decoder("json", ",", config.fields)
    answers = lane.process(decoder.decode(b"".join(line + b"\n" for line in lines), {}))
    lane.close()
    return b"".join(formatted(JsonLines(), part, lane.classes.spellings) for part in answers).splitlines()


def wait_for(holds: Callable[[], Any], what: str) -> Any:
    """Until `holds` gives something; what it gave."""
    end = time.monotonic() + WAIT_SECONDS_MAX
    while not (found := holds()):
        assert time.monotonic() < end, f"{what} did not come in time"
        time.sleep(0.05)
    return found


class Running:
    """A replica that runs until `stop` or the end of the `with`."""

    def __init__(self, configured: dict[str, Any]) -> None:
        self.stderr = io.StringIO()
        self.replica = Replica(configuration.read(configured, "test"), "test.toml", self.stderr)
        self.failure: BaseException | None = None
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.replica.run()
        except BaseException as error:
            self.failure = error

    def __enter__(self) -> "Running":
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        if self.failure is not None and error[0] is None:
            raise self.failure

    def stop(self) -> None:
        self.replica.stopped_by = self.replica.stopped_by or "test"
        self.thread.join()

    def wait_for(self, holds: Callable[[], Any], what: str) -> Any:
        """As the function, as long as the replica runs."""
        return wait_for(lambda: holds() or not self.thread.is_alive(), what)

    def events(self, name: str) -> list[dict[str, Any]]:
        """Log events of one kind so far; a line that is being written is left out."""
        whole = self.stderr.getvalue().rpartition("\n")[0]
        return [event for event in map(json.loads, whole.splitlines()) if event["event"] == name]
