"""Exactly once, with the real process and a real broker: whatever is killed, and whenever, a reader of
committed records sees what an uninterrupted run gives.

`pytest tests/test_kafka_faults.py --long -s` runs the long form and shows its figures.
"""

import os
import pathlib
import random
import signal
import statistics
import time
from datetime import datetime

import pytest

from adaptd.contracts import Fields
from adaptd.sources import kafka
from tests import streams
from tests.broker import Broker, broker
from tests.groups import Feeder, Group, Replica, Watch, assert_same, wait_until

__all__ = ["broker"]

SEED = 11
ROWS_PER_SECOND = 2000.0
# After an outage, with a session timeout of 6 seconds.
GOES_ON_SECONDS_MAX = 30.0


@pytest.fixture
def is_long(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--long"))


def stream(rows: int, seed: int) -> tuple[list[bytes], int]:
    """Rows with drift, labels that come later, lines that are no record; and how many are predicted."""
    records = streams.with_late_labels(streams.classes(rows, seed, drift_at=rows // 2), delay=300, share=0.3)
    lines = streams.lines(records).splitlines()
    rng = random.Random(seed)
    for k in range(rows // 200):
        lines.insert(rng.randrange(len(lines)), b'{"broken": %d' % k)
    return lines, rows


def uninterrupted(broker: Broker, folder: pathlib.Path, name: str, rows: str, partitions: int) -> Group:
    group = Group(broker, folder, name, rows, partitions)
    group.start()
    group.finish()
    return group


def started(replica: Replica) -> bool:
    assert replica.process.poll() is None, replica.log.read_text()[-4000:]
    return bool(replica.events("partition_started"))


def test_killed_at_random_moments_nothing_is_missing_or_double(broker, tmp_path, is_long):
    rounds, n = (50, 200_000) if is_long else (4, 8_000)
    rng = random.Random(SEED)
    topic = broker.create("killed-rows")
    lines, predicted = stream(n, SEED)
    starts = []
    with Group(broker, tmp_path, "killed", topic) as group:
        with Feeder(broker, topic, [lines], ROWS_PER_SECOND) as feeder:
            for k in range(rounds):
                begun = time.monotonic()
                replica = group.start()
                if starts and rng.random() < 0.2:
                    # While it starts, loads, or does again what was done.
                    time.sleep(rng.uniform(0, 1.5) * statistics.median(starts))
                else:
                    wait_until(lambda one=replica: started(one), "no lane has started")
                    starts.append(time.monotonic() - begun)
                    feeder.allow(len(lines) * (k + 1) // rounds)
                    time.sleep(rng.uniform(0, 1.2 * len(lines) / rounds / ROWS_PER_SECOND))
                replica.kill()
        group.start()
        group.finish()
        assert_same(group, uninterrupted(broker, tmp_path, "killed-not", topic, 1), predicted)
    replayed = [
        event["replayed"] for replica in group.processes for event in replica.events("partition_started")
    ]
    assert any(replayed), "no kill came between a checkpoint and the next"
    print(f"\n{rounds} kills, {n:,} rows: identical; started in {statistics.median(starts):.1f} s (median), "
          f"replayed {statistics.mean(replayed):,.0f} rows (mean)")  # fmt: skip


def test_while_the_broker_is_stopped_and_killed_nothing_is_missing_or_double(broker, tmp_path, is_long):
    rounds, n = (20, 100_000) if is_long else (2, 8_000)
    rng = random.Random(SEED)
    topic = broker.create("outage-rows")
    lines, predicted = stream(n, SEED + 1)
    pauses = []
    with Group(broker, tmp_path, "outage", topic) as group:
        replica = group.start()
        wait_until(lambda: started(replica), "no lane has started")

        def committed() -> int:
            return broker.group_offsets("outage", topic).get(0, (0, ""))[0]

        with Feeder(broker, topic, [lines], ROWS_PER_SECOND) as feeder:
            for k in range(rounds):
                feeder.allow(len(lines) * (2 * k + 1) // (2 * rounds))
                time.sleep(rng.uniform(0, len(lines) / rounds / 2 / ROWS_PER_SECOND))
                if k % 2:
                    broker.stop()
                else:
                    broker.kill()
                time.sleep(rng.uniform(0, 2))
                broker.start()
                begun, before = time.monotonic(), committed()
                feeder.allow(len(lines) * (k + 1) // rounds)
                wait_until(
                    lambda at=before: committed() > at, "predictions do not go on", GOES_ON_SECONDS_MAX
                )
                pauses.append(time.monotonic() - begun)
        group.finish()
        assert_same(group, uninterrupted(broker, tmp_path, "outage-not", topic, 1), predicted)
    print(f"\n{rounds} outages, {n:,} rows: identical; predictions go on {max(pauses):.1f} s after it "
          f"answers at most ({statistics.median(pauses):.1f} median)")  # fmt: skip


def test_a_slow_answer_about_the_log_does_not_move_a_partition(broker):
    """A start that the client has to look up would take the place of ours when the answer comes."""
    partitions = 8
    topic = broker.create("slow-rows", partitions)
    for partition in range(partitions):
        broker.produce(topic, [b"{}"] * 300, partition)

    class Stopping:
        """Stops the broker, as a machine under load does, from the assignment until the lanes are loaded."""

        def __init__(self):
            self.partitions = []

        def assigned(self, partitions):
            os.kill(broker.process.pid, signal.SIGSTOP)
            self.partitions = partitions

        def revoked(self, partitions): ...
        def lost(self, partitions): ...

    source = kafka.build(kafka.Config(servers=broker.servers, topic=topic, group="slow"), Fields())
    try:
        listener = Stopping()
        source.subscribe(listener)
        wait_until(lambda: source.poll(0.05) == [] and listener.partitions, "no partition came")
        for partition in listener.partitions:
            source.begin(partition, {topic: 100})
        time.sleep(0.2)
        os.kill(broker.process.pid, signal.SIGCONT)
        first: dict[int, int] = {}

        def all_came():
            for fetch in source.poll(0.05):
                first.setdefault(fetch.partition, int(fetch.offsets[0]))
            return len(first) == partitions

        wait_until(all_came, f"partitions stand still; {first}", 20)
        assert set(first.values()) == {100}
    finally:
        os.kill(broker.process.pid, signal.SIGCONT)
        source.close()


def test_a_partition_that_was_paused_when_it_went_is_read_when_it_comes_back(broker):
    """As after a transaction that failed in a rebalance."""
    topic = broker.create("paused-rows")
    broker.produce(topic, [b"{}"] * 300)

    class Noting:
        def __init__(self):
            self.partitions = []

        def assigned(self, partitions):
            self.partitions = partitions

        def revoked(self, partitions): ...
        def lost(self, partitions): ...

    source = kafka.build(kafka.Config(servers=broker.servers, topic=topic, group="paused"), Fields())
    try:
        listener = Noting()
        source.subscribe(listener)
        wait_until(lambda: source.poll(0.05) == [] and listener.partitions, "no partition came")
        for start in (0, 100):
            source.begin(0, {topic: start})
            wait_until(
                lambda at=start: any(each.offsets[0] == at for each in source.poll(0.05)), "no record", 20
            )
            source.pause([0])
            source.let_go([0])
    finally:
        source.close()


def test_a_replica_that_was_paused_is_shut_out_and_works_again(broker, tmp_path):
    """Its partitions have gone to another, which has ended what it had open: it must not take that ill."""
    n, partitions = 5_000, 4
    topic = broker.create("zombie-rows", partitions)
    streams_of = [stream(n, SEED + 20 + k) for k in range(partitions)]
    lines = [part for part, _ in streams_of]
    with Group(broker, tmp_path, "zombie", topic, partitions) as group:
        with (
            Watch(broker, group.predictions, partitions) as watch,
            Feeder(broker, topic, lines, ROWS_PER_SECOND / 4) as feeder,
        ):
            total = sum(map(len, lines))
            replicas = [group.start(name, static=False) for name in ("one", "two")]
            for replica in replicas:
                wait_until(lambda one=replica: started(one), "no lane has started")
            for k, replica in enumerate(replicas):
                before = len(replica.events("partition_started"))
                feeder.allow(total * (2 * k + 1) // 5)
                watch.seconds_until_next(0, time.time())
                os.kill(replica.process.pid, signal.SIGSTOP)
                stopped = time.time()
                feeder.allow(total * (2 * k + 2) // 5)
                for partition in range(partitions):
                    watch.seconds_until_next(partition, stopped + 1.0)
                os.kill(replica.process.pid, signal.SIGCONT)
                wait_until(
                    lambda one=replica, k=before: len(one.events("partition_started")) > k,
                    "it has no partition again",
                )
        group.finish()
        other = uninterrupted(broker, tmp_path, "zombie-not", topic, partitions)
        assert_same(group, other, sum(rows for _, rows in streams_of))
    assert all(replica.process.returncode == 0 for replica in replicas)


def seconds_from_assignment(watch: Watch, replicas: list[Replica], after: float) -> list[float]:
    """Of each assignment since `after`: until that partition's predictions went on."""
    found = []
    for replica in replicas:
        for event in replica.events("partition_assigned"):
            assigned = datetime.fromisoformat(event["ts"]).timestamp()
            if assigned >= after:
                found.append(watch.seconds_until_next(event["partition"], assigned))
    return found


def test_while_partitions_move_between_replicas_nothing_is_missing_or_double(broker, tmp_path, is_long):
    moves, n, partitions = (30, 50_000, 4) if is_long else (2, 3_000, 4)
    rng = random.Random(SEED)
    topic = broker.create("moved-rows", partitions)
    streams_of = [stream(n, SEED + 10 + k) for k in range(partitions)]
    lines = [part for part, _ in streams_of]
    total = sum(map(len, lines))
    after_kill: list[float] = []
    after_assignment: list[float] = []
    with Group(broker, tmp_path, "moved", topic, partitions) as group:
        with (
            Watch(broker, group.predictions, partitions) as watch,
            Feeder(broker, topic, lines, ROWS_PER_SECOND / 4) as feeder,
        ):
            names = ["one", "two", "three"]
            running = {name: group.start(name, static=False) for name in names}
            feeder.allow(total // (moves + 1))
            for partition in range(partitions):
                watch.seconds_until_next(partition, 0.0)
            for k in range(moves):
                feeder.allow(total * (k + 2) // (moves + 1))
                name = names[k % 3]
                leaving = time.time()
                if k % 2:
                    running[name].kill()
                    after_kill.append(max(watch.seconds_until_next(p, leaving) for p in range(partitions)))
                else:
                    running[name].stop()
                    for partition in range(partitions):
                        watch.seconds_until_next(partition, leaving)
                after_assignment += seconds_from_assignment(watch, list(running.values()), leaving)
                running[name] = group.start(name, static=False)
                time.sleep(rng.uniform(0, 4))
            feeder.allow(total)
        group.finish()
        other = uninterrupted(broker, tmp_path, "moved-not", topic, partitions)
        assert_same(group, other, sum(rows for _, rows in streams_of))
    print(f"\n{moves} moves, {partitions} partitions, {n:,} rows each: identical; predictions go on "
          f"{max(after_kill):.1f} s after SIGKILL at most, {max(after_assignment):.1f} s after an assignment "
          f"at most ({statistics.median(after_assignment):.2f} median)")  # fmt: skip
