"""A real Kafka broker for the tests: one node in KRaft mode on loopback, its jars fetched by Maven.

Exactly-once delivery rests on what the broker refuses and hides, so nothing here is imitated: the same log
is there after `stop` and `start`, and after `kill`. `python -m tests.broker` runs one by hand.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import pathlib
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from tests.conftest import not_run
from tests.mortal import mortal

HERE = pathlib.Path(__file__).parent / "kafka"
CLUSTER_ID = "YWRhcHRkLXRlc3RzLWJyb2"
START_SECONDS_MAX = 120.0
STOP_SECONDS_MAX = 30.0
CALL_SECONDS_MAX = 30.0
# Heap, code and buffers stay near half a gigabyte together, on a machine that tests much else.
JAVA = ["java", "-Xms128m", "-Xmx320m", "-XX:MaxDirectMemorySize=64m", "-XX:+UseSerialGC"]
# Without the second compiler a start costs half the processor time, and that is most of what a test costs.
QUICK = ["-XX:TieredStopAtLevel=1"]

# What it answers for a moment after a start.
PASSING = (
    KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE, KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError.COORDINATOR_NOT_AVAILABLE,
)  # fmt: skip

# One node: it alone holds every internal topic. An abandoned transaction is ended within a second of its
# time limit instead of ten, a lone consumer does not wait for others, and after a kill the controller
# takes the broker back without waiting long for the one before. Topics are made on purpose only.
SETTINGS = """
process.roles=broker,controller
node.id=1
listeners=CLIENT://127.0.0.1:{client},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=CLIENT://127.0.0.1:{client}
inter.broker.listener.name=CLIENT
controller.listener.names=CONTROLLER
listener.security.protocol.map=CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
log.dirs={log}
num.network.threads=2
num.io.threads=3
log.cleaner.dedupe.buffer.size=4194304
auto.create.topics.enable=false
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.abort.timed.out.transaction.cleanup.interval.ms=500
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
broker.session.timeout.ms=1500
broker.heartbeat.interval.ms=300
group.min.session.timeout.ms=1000
"""


@dataclasses.dataclass(frozen=True)
class Record:
    """One record of a topic as a consumer sees it."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes]
    milliseconds: int


def jars() -> pathlib.Path:
    """The directory with the broker's jars, outside the repository; fetched when it is not there yet."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "adaptd-tests"
    pom = HERE / "pom.xml"
    place = cache / f"kafka-{hashlib.sha256(pom.read_bytes()).hexdigest()[:16]}"
    cache.mkdir(parents=True, exist_ok=True)
    # Maven's own store must not be written by two at once, and two test processes begin together.
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            if shutil.which("mvn") is None:
                not_run("Maven is not installed, which fetches the Kafka broker")
            with tempfile.TemporaryDirectory(dir=cache) as folder:
                command = ["mvn", "-B", "-q", "-f", str(pom), "dependency:copy-dependencies"]
                options = [f"-DoutputDirectory={folder}/jars", "-DincludeScope=runtime"]
                done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=600)
                if done.returncode:
                    raise RuntimeError(f"Maven could not fetch the broker's jars:\n{done.stdout[-4000:]}")
                os.rename(f"{folder}/jars", place)
    return place


def free_port() -> int:
    """A port that nobody listens on, below those that the system gives to outgoing connections.

    A client that tries again and again while the broker is away would else meet, one day, itself: a
    connection from the very port that it wants to reach succeeds on loopback.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def answered(call: Callable[..., Any], *arguments: object) -> Any:
    """What the broker says, asked again while it is still taking up its partitions after a start."""
    until = time.monotonic() + CALL_SECONDS_MAX
    while True:
        try:
            return call(*arguments, timeout=CALL_SECONDS_MAX)
        except KafkaException as error:
            if time.monotonic() > until or (
                not error.args[0].retriable() and error.args[0].code() not in PASSING
            ):
                raise
            time.sleep(0.05)


class Broker:
    """A broker with its log in `folder`. It can be stopped, killed and started again on the same log.

    quick: starts in half the time and serves somewhat slower; benchmarks want it False.
    """

    def __init__(self, folder: str | os.PathLike[str], port: int = 0, quick: bool = True) -> None:
        if shutil.which("java") is None:
            not_run("Java is not installed, which runs the Kafka broker")
        self.folder = pathlib.Path(folder)
        self._java = [*JAVA, *(QUICK if quick else ())]
        self._classes = f"{jars()}/*"
        self.port = port or free_port()
        self.servers = f"127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self._settings = self.folder / "server.properties"
        settings = SETTINGS.format(client=self.port, controller=free_port(), log=self.folder / "log")
        self._settings.write_text(settings)
        self._run("kafka.tools.StorageTool", "format", "--standalone", "-t", CLUSTER_ID, "-c", self._settings)
        # It outlives every restart, so it must not wait ever longer between two tries.
        backoff = {"reconnect.backoff.ms": 50, "reconnect.backoff.max.ms": 200}
        self.admin = AdminClient({"bootstrap.servers": self.servers, "log_level": 0, **backoff})

    def _command(self, name: str, *arguments: object) -> list[str]:
        log = f"-Dlog4j2.configurationFile={HERE / 'log4j2.xml'}"
        return [*self._java, log, "-cp", self._classes, name, *map(str, arguments)]

    def _run(self, name: str, *arguments: object) -> None:
        done = subprocess.run(self._command(name, *arguments), capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise RuntimeError(f"{name} ended with {done.returncode}:\n{done.stdout}{done.stderr}")

    def start(self) -> None:
        """Start it and wait until it answers."""
        assert self.process is None, "it runs already"
        with open(self.folder / "broker.log", "ab") as log:
            command = mortal(self._command("kafka.Kafka", self._settings))
            # A session of its own: Ctrl-C at a terminal ends the tests, and they end the broker.
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        until = time.monotonic() + START_SECONDS_MAX
        while True:
            if self.process.poll() is not None or time.monotonic() > until:
                text = (self.folder / "broker.log").read_text(errors="replace")
                self.kill()
                raise RuntimeError(f"the broker did not start:\n{text[-4000:]}")
            with contextlib.suppress(KafkaException):
                if self.admin.list_topics(timeout=1.0).brokers:
                    return

    def stop(self) -> None:
        """End it in order; afterwards `start` begins where it was."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    def kill(self) -> None:
        """SIGKILL: nothing is said to anybody."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def create(self, topic: str, partitions: int = 1, **settings: str) -> str:
        """Make a topic; `settings` are the broker's, with `_` for `.` (`retention_ms="1000"`). Its name."""
        options = {name.replace("_", "."): value for name, value in settings.items()}
        new = NewTopic(topic, num_partitions=partitions, replication_factor=1, config=options)
        self.admin.create_topics([new], operation_timeout=CALL_SECONDS_MAX)[topic].result(CALL_SECONDS_MAX)
        # Created is not yet known to whoever asks next.
        until = time.monotonic() + CALL_SECONDS_MAX
        while (
            len(self.admin.list_topics(topic, timeout=CALL_SECONDS_MAX).topics[topic].partitions)
            != partitions
        ):
            assert time.monotonic() < until, f"{topic} did not appear"
        return topic

    def produce(
        self,
        topic: str,
        lines: Iterable[bytes],
        partition: int = 0,
        keys: Iterable[bytes] | None = None,
    ) -> None:
        """Write a record a line to one partition, in order, and wait until all are there.

        partition: -1 spreads by the hash of the key, as Kafka's own clients do.
        """
        producer = Producer({
            "bootstrap.servers": self.servers,
            "enable.idempotence": True,
            "partitioner": "murmur2_random",
            "linger.ms": 20,
            "queue.buffering.max.messages": 1_000_000,
        })  # fmt: skip
        records = [{"value": line} for line in lines]
        if keys is not None:
            for record, key in zip(records, keys, strict=True):
                record["key"] = key
        for start in range(0, len(records), 100_000):
            part = records[start : start + 100_000]
            queued = producer.produce_batch(topic, part, partition=partition)
            assert queued == len(part), f"{len(part) - queued} records were not taken"
            assert producer.flush(CALL_SECONDS_MAX) == 0, f"{topic} did not take all records in time"

    def ends(self, topic: str) -> list[int]:
        """The offset after the last record, a partition; what belongs to an open transaction counts."""
        return [high for _, high in self._watermarks(topic)]

    def _watermarks(self, topic: str) -> list[tuple[int, int]]:
        partitions = self.admin.list_topics(topic, timeout=CALL_SECONDS_MAX).topics[topic].partitions
        with self._consumer("read_uncommitted") as consumer:
            return [
                answered(consumer.get_watermark_offsets, TopicPartition(topic, partition))
                for partition in sorted(partitions)
            ]

    @contextlib.contextmanager
    def _consumer(self, isolation: str) -> Iterator[Consumer]:
        consumer = Consumer({
            "bootstrap.servers": self.servers,
            "group.id": "tests",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": isolation,
        })  # fmt: skip
        try:
            yield consumer
        finally:
            consumer.close()

    def committed(self, topic: str) -> list[Record]:
        """What a `read_committed` consumer sees of `topic` up to its end or its first open transaction.

        Ordered by partition, then offset.
        """
        return self._read(topic, "read_committed")

    def uncommitted(self, topic: str) -> list[Record]:
        """All records, those of aborted and open transactions too; ordered as in `committed`."""
        return self._read(topic, "read_uncommitted")

    def _read(self, topic: str, isolation: str) -> list[Record]:
        waiting = set(self.admin.list_topics(topic, timeout=CALL_SECONDS_MAX).topics[topic].partitions)
        found: list[Record] = []
        with self._consumer(isolation) as consumer:
            consumer.assign([TopicPartition(topic, partition, 0) for partition in waiting])
            until = time.monotonic() + CALL_SECONDS_MAX
            while waiting:
                assert time.monotonic() < until, f"{topic}: no end of partitions {sorted(waiting)} in time"
                for message in consumer.consume(10_000, timeout=1.0):
                    until = time.monotonic() + CALL_SECONDS_MAX
                    if (error := message.error()) is None:
                        found.append(
                            Record(
                                message.partition(),
                                message.offset(),
                                message.key(),
                                message.value(),
                                dict(message.headers() or ()),
                                message.timestamp()[1],
                            )
                        )
                    elif error.code() == KafkaError._PARTITION_EOF:
                        waiting.discard(message.partition())
                    else:
                        raise KafkaException(error)
        return sorted(found, key=lambda record: (record.partition, record.offset))

    def group_offsets(self, group: str, topic: str) -> dict[int, tuple[int, str]]:
        """Committed offset and its metadata a partition, of those that have one."""
        partitions = self.admin.list_topics(topic, timeout=CALL_SECONDS_MAX).topics[topic].partitions
        consumer = Consumer({"bootstrap.servers": self.servers, "group.id": group})
        try:
            asked = [TopicPartition(topic, partition) for partition in sorted(partitions)]
            answers = answered(consumer.committed, asked)
        finally:
            consumer.close()
        return {at.partition: (at.offset, at.metadata or "") for at in answers if at.offset >= 0}


@contextlib.contextmanager
def running(folder: str | os.PathLike[str], port: int = 0, quick: bool = True) -> Iterator[Broker]:
    """A broker for the length of a `with`."""
    broker = Broker(folder, port, quick)
    try:
        broker.start()
        yield broker
    finally:
        broker.kill()


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One broker for all tests of a process. Who stops it starts it again; topics have names of their own."""
    with running(tmp_path_factory.mktemp("kafka")) as started:
        yield started


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, running(folder, int(sys.argv[1])) as started:
        print(f"Kafka at {started.servers}, its log in {folder}; Ctrl-C ends it.", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            started.process.wait()


if __name__ == "__main__":
    main()
