"""Replicas of adaptd as processes on a real broker, fed while they run, and what their readers see.

A `Group` is one consumer group with predictions, dead letters and checkpoints of its own over an input topic.
Two groups over one input must give the same, whatever happened to the processes of one of them.
"""

import bisect
import contextlib
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from adaptd.checkpoint import encoded
from adaptd.checkpoint_objects import CheckpointObjects
from tests.broker import Broker, Record
from tests.mortal import mortal

# Few learners that start quickly: what is tested is delivery.
POOL = {"linear": {"kind": "linear"}, "prior": {"kind": "prior"}, "tree": {"kind": "hoeffding_tree"}}
WAIT_SECONDS = 120.0


def toml(tree: dict[str, Any], place: str = "") -> str:
    """`tree` as TOML: values first, then tables."""
    lines = []
    for key, value in tree.items():
        if not isinstance(value, dict):
            lines.append(f"{key} = {json.dumps(value)}")
    for key, value in tree.items():
        if isinstance(value, dict):
            lines += ["", f"[{place}{key}]", toml(value, f"{place}{key}.")]
    return "\n".join(lines)


def wait_until(is_so: Callable[[], Any], what: str, seconds: float = WAIT_SECONDS) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until, f"after {seconds:g} seconds: {what}"
        time.sleep(0.05)


class Replica:
    """One process of a group."""

    def __init__(self, config: pathlib.Path, log: pathlib.Path, environment: dict[str, str]) -> None:
        self.log = log
        self.log_begins = log.stat().st_size if log.exists() else 0
        with open(log, "ab") as errors:
            self.process = subprocess.Popen(
                mortal([sys.executable, "-m", "adaptd", "run", "--config", str(config)]),
                stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, env={**os.environ, **environment},
            )  # fmt: skip

    def kill(self) -> None:
        """SIGKILL, at whatever it is doing."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """SIGTERM, and wait until it has saved and left."""
        self.process.send_signal(signal.SIGTERM)
        # One that is just starting has no handler yet, and nothing to save: the signal ends it.
        allowed = {0} if self.events("partition_assigned") else {0, -signal.SIGTERM}
        assert self.process.wait(WAIT_SECONDS) in allowed, self.log.read_text()[-4000:]

    def events(self, name: str) -> list[dict[str, Any]]:
        """Log events of one kind of this process."""
        with open(self.log, "rb") as file:
            file.seek(self.log_begins)
            text = file.read().rpartition(b"\n")[0]
        found = []
        for line in text.splitlines():
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if event["event"] == name:
                    found.append(event)
        return found


class Group:
    """A consumer group over `rows` with topics and checkpoints of its own. `sections`: more configuration."""

    def __init__(
        self,
        broker: Broker,
        folder: pathlib.Path,
        name: str,
        rows: str,
        partitions: int = 1,
        pool: dict[str, Any] = POOL,
        **sections: dict[str, Any],
    ) -> None:
        self.broker, self.name, self.rows, self.partitions = broker, name, rows, partitions
        self.folder = folder / name
        self.folder.mkdir()
        self.predictions = broker.create(f"{name}-predictions", partitions)
        self.dead_letters = broker.create(f"{name}-dead-letters", partitions)
        self.store = self.folder / "objects"
        self.pool, self.sections = pool, sections
        self.processes: list[Replica] = []
        """All that were ever started, in order."""

    def config(self, replica: str, static: bool) -> pathlib.Path:
        tree: dict[str, Any] = {
            "source": {
                "kind": "kafka", "servers": self.broker.servers, "topic": self.rows, "group": self.name,
                "session_timeout_seconds": 6.0, **({"instance": replica} if static else {}),
            },
            "sink": {"kind": "kafka", "topic": self.predictions, "dead_letters_topic": self.dead_letters},
            "pool": {"threads": 1, "learners": self.pool},
            "checkpoint": {
                "directory": str(self.folder / replica), "url": str(self.store), "interval_seconds": 0.5,
            },
        }  # fmt: skip
        for section, values in self.sections.items():
            tree[section] = {**tree.get(section, {}), **values}
        path = self.folder / f"{replica}.toml"
        path.write_text(toml(tree))
        return path

    def start(self, replica: str = "one", static: bool = True, **environment: str) -> Replica:
        """A process; the same `replica` again is the same one, restarted.

        static: it keeps its membership while it is away, as long as the session timeout.
        """
        started = Replica(self.config(replica, static), self.folder / f"{replica}.log", environment)
        self.processes.append(started)
        return started

    def caught_up(self, seconds: float = WAIT_SECONDS) -> None:
        """Wait until the committed offsets are the end of the input."""
        ends = dict(enumerate(self.broker.ends(self.rows)))

        def is_so() -> bool:
            done = self.broker.group_offsets(self.name, self.rows)
            return all(done.get(partition, (0, ""))[0] >= end for partition, end in ends.items() if end)

        wait_until(is_so, f"{self.name} has not read all rows; {self.tail()}", seconds)

    def tail(self) -> str:
        """The end of every log, for a message."""
        return "\n".join(path.read_text()[-1500:] for path in sorted(self.folder.glob("*.log")))

    def finish(self) -> None:
        """Let the last replicas read to the end, then stop them."""
        self.caught_up()
        self.stop()

    def stop(self) -> None:
        for replica in self.processes:
            if replica.process.poll() is None:
                replica.stop()

    def kill(self) -> None:
        for replica in self.processes:
            if replica.process.poll() is None:
                replica.kill()

    def answers(self) -> list[list[bytes | None]]:
        """Values of the predictions that can be seen, in order, a partition."""
        return by_partition(self.broker.committed(self.predictions), self.partitions)

    def rejects(self) -> list[list[bytes | None]]:
        return by_partition(self.broker.committed(self.dead_letters), self.partitions)

    def states(self) -> dict[int, tuple[int, bytes]]:
        """A partition: committed offset, and the bytes of the state in the checkpoint that it names."""
        store = CheckpointObjects(str(self.store))
        found = {}
        for partition, (offset, metadata) in self.broker.group_offsets(self.name, self.rows).items():
            state = store.load(msgspec.json.decode(metadata)["checkpoint"])
            blocks, _ = encoded({"lane": state["lane"], "positions": state["positions"]})
            found[partition] = (offset, b"".join(blocks))
        return found

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()


def by_partition(records: Iterable[Record], partitions: int) -> list[list[bytes | None]]:
    found: list[list[bytes | None]] = [[] for _ in range(partitions)]
    for record in records:
        found[record.partition].append(record.value)
    return found


def assert_same(group: Group, other: Group, predicted: int) -> None:
    """`group` gave what `other` did, to the bit: every prediction once and in order, rejects, states."""
    for partition, (found, expected) in enumerate(zip(group.answers(), other.answers(), strict=True)):
        numbers = [json.loads(line or b"")["row"] for line in found]
        assert numbers == list(range(1, len(numbers) + 1)), f"partition {partition}: missing or double rows"
        assert found == expected, f"partition {partition}: predictions differ"
    assert sum(map(len, other.answers())) == predicted
    assert group.rejects() == other.rejects()
    states, expected_states = group.states(), other.states()
    assert list(states) == list(expected_states)
    for partition, state in states.items():
        assert state == expected_states[partition], f"partition {partition}: another state"


class Feeder:
    """Writes `lines[p]` to partition p in the background, as far as it is allowed to, at most so fast.

    A broker that is away is waited for; nothing is written twice. At the end of the `with` all is there.
    """

    def __init__(self, broker: Broker, topic: str, lines: list[list[bytes]], rows_per_second: float) -> None:
        self.topic, self.rows_per_second = topic, rows_per_second
        # In turns, so that all partitions move on together.
        turns = itertools.zip_longest(*lines)
        self.queue = [
            (partition, line) for turn in turns for partition, line in enumerate(turn) if line is not None
        ]
        self.allowed = 0
        self.sent = 0
        self._in_a_hurry = False
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run)
        self._producer = Producer({
            "bootstrap.servers": broker.servers, "enable.idempotence": True, "linger.ms": 5, "log_level": 0,
            "queue.buffering.max.messages": 1_000_000, "reconnect.backoff.max.ms": 500,
        })  # fmt: skip

    def allow(self, rows: int) -> None:
        """Go on until so many rows in all have been sent."""
        with self._changed:
            self.allowed = min(max(rows, self.allowed), len(self.queue))
            self._changed.notify()

    def _run(self) -> None:
        try:
            while self.sent < len(self.queue):
                with self._changed:
                    self._changed.wait_for(lambda: self._in_a_hurry or self.sent < self.allowed)
                pause = 0.0 if self._in_a_hurry else 0.02
                n = len(self.queue) if self._in_a_hurry else max(1, round(self.rows_per_second * pause))
                end = len(self.queue) if self._in_a_hurry else min(self.allowed, self.sent + n)
                for partition, line in self.queue[self.sent : end]:
                    self._producer.produce(self.topic, line, partition=partition)
                self.sent = end
                self._producer.poll(pause)
            assert self._producer.flush(WAIT_SECONDS) == 0, "the broker did not take all rows"
        except BaseException as error:
            self._failure = error

    def __enter__(self) -> "Feeder":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._in_a_hurry = True
            self._changed.notify()
        self._thread.join()
        if self._failure is not None:
            raise self._failure


class Watch:
    """Reads committed predictions as they appear; `times[p]` is when each of partition p was seen."""

    def __init__(self, broker: Broker, topic: str, partitions: int) -> None:
        self.times: list[list[float]] = [[] for _ in range(partitions)]
        """Seconds since 1970, as in the log."""
        self._consumer = Consumer({
            "bootstrap.servers": broker.servers, "group.id": f"watch-{topic}", "enable.auto.commit": False,
            "isolation.level": "read_committed", "log_level": 0, "fetch.wait.max.ms": 50,
        })  # fmt: skip
        self._consumer.assign([TopicPartition(topic, partition, 0) for partition in range(partitions)])
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def _read(self) -> None:
        while not self._is_over.is_set():
            with contextlib.suppress(KafkaException):
                for message in self._consumer.consume(1000, timeout=0.05):
                    if message.error() is None:
                        self.times[message.partition() or 0].append(time.time())

    def seconds_until_next(self, partition: int, after: float, seconds: float = WAIT_SECONDS) -> float:
        """From `after` until the partition's next prediction can be read; waits for it."""
        times = self.times[partition]
        wait_until(lambda: times and times[-1] > after, f"no prediction of partition {partition}", seconds)
        return times[bisect.bisect_right(times, after)] - after

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._thread.join()
        self._consumer.close()
