"""Kafka beside stdin: rows per CPU second, a burst of rows, one replica and two, on a real broker.

Measured: `speed`, CPU time (user and system) of adaptd's process over all rows, its start taken off, JSON
from topic to topic with exactly-once delivery, beside the same rows on a pipe in the same minutes. `burst`,
lag and resident memory while rows are read that were written at once. `replicas`, rows a second of one and of
two replicas with `pool.threads = 1` and four partitions, over the same middle stretch of rows written before.
Not measured: the broker's own work, and a network. Why to doubt it: the broker shares the machine with the
replicas, so on two processors wall times and the gain of a second replica are lower bounds; the rows are
easy (10 numbers, two classes), and the default pool costs more with more features.

    python benchmarks/kafka.py speed burst replicas
"""

import argparse
import os
import pathlib
import resource
import signal
import statistics
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))

from confluent_kafka import Consumer, TopicPartition

from benchmarks.throughput import measured, write_rows
from tests.broker import Broker, running
from tests.groups import Group, Replica, wait_until

WAIT_SECONDS = 1800.0
LINEAR = {"linear": {"kind": "linear"}}
# The stretch over which replicas are compared, as shares of all rows.
FROM, TO = 0.2, 0.95


def lines_of(folder: pathlib.Path, rows: int) -> tuple[str, list[bytes]]:
    """The file of the rows, for a pipe, and its lines."""
    path = folder / "rows.jsonl"
    write_rows(str(path), rows)
    return str(path), path.read_bytes().splitlines()


def group(broker: Broker, folder: pathlib.Path, name: str, topic: str, partitions: int, pool: dict) -> Group:
    """A group as a user has it: a checkpoint a minute, the default transaction interval."""
    return Group(broker, folder, name, topic, partitions, pool, checkpoint={"interval_seconds": 60.0})


def cpu_seconds(broker: Broker, made: Group, seconds: float = WAIT_SECONDS) -> tuple[float, float]:
    """CPU seconds and megabytes of a replica that reads the topic to its end and stops."""
    replica = made.start()
    made.caught_up(seconds)
    replica.process.send_signal(signal.SIGTERM)
    _, status, used = os.wait4(replica.process.pid, 0)
    replica.process.returncode = status
    if status:
        raise SystemExit(replica.log.read_text()[-4000:])
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def speed(broker: Broker, folder: pathlib.Path, rows: int, rounds: int) -> None:
    path, lines = lines_of(folder, rows)
    for kind, pool, n in (("linear", LINEAR, rows), ("default pool", {}, max(1, rows // 20))):
        one, many = f"{kind.split()[0]}-one", f"{kind.split()[0]}-rows"
        broker.produce(broker.create(one), lines[:1])
        broker.produce(broker.create(many), lines[:n])
        arguments = ["--set", "pool.learners.linear.kind=linear"] if pool else []
        for k in range(rounds):
            # Each beside the other: the machine's speed changes from minute to minute.
            begun, _ = measured(path, 1, arguments)
            seconds, _ = measured(path, n, arguments)
            pipe = (n - 1) / (seconds - begun)
            begun, _ = cpu_seconds(broker, group(broker, folder, f"{one}-{k}", one, 1, pool))
            seconds, size = cpu_seconds(broker, group(broker, folder, f"{many}-{k}", many, 1, pool))
            kafka = (n - 1) / (seconds - begun)
            print(f"{kind}, {n:,} rows: Kafka {kafka:,.0f} rows per CPU second, stdin {pipe:,.0f}: "
                  f"{kafka / pipe:.2f}; start {begun:.1f} CPU s, {size:.0f} MB", flush=True)  # fmt: skip


def resident_megabytes(pid: int) -> float:
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


def burst(broker: Broker, folder: pathlib.Path, rows: int) -> None:
    _, lines = lines_of(folder, rows)
    topic = broker.create("burst")
    with group(broker, folder, "burst-group", topic, 1, LINEAR) as made:
        replica = made.start()
        wait_until(lambda: replica.events("partition_started"), "no lane has started", WAIT_SECONDS)
        begun = time.monotonic()
        broker.produce(topic, lines)
        print(f"burst: {rows:,} rows written in {time.monotonic() - begun:.1f} s", flush=True)
        print("seconds        lag  MB resident")
        while True:
            done, _ = made.broker.group_offsets(made.name, topic).get(0, (0, ""))
            size = resident_megabytes(replica.process.pid)
            print(f"{time.monotonic() - begun:7.1f} {rows - done:10,} {size:12.0f}", flush=True)
            if done >= rows:
                break
            time.sleep(2)
        made.stop()


def replicas(broker: Broker, folder: pathlib.Path, rows: int, rounds: int) -> None:
    _, lines = lines_of(folder, rows)
    speeds: dict[int, list[float]] = {1: [], 2: []}
    for k, n in enumerate([1, 2] * rounds):
        topic = broker.create(f"shared-{k}", 4)
        with group(broker, folder, f"group-{k}", topic, 4, {}) as made:
            running_here = [made.start(f"r{number}", static=False) for number in range(n)]

            def is_shared(found: list[Replica] = running_here) -> bool:
                return all(len(owned(replica)) == 4 // len(found) for replica in found)

            wait_until(is_shared, "the partitions are not shared", WAIT_SECONDS)
            for partition in range(4):
                broker.produce(topic, lines[partition::4], partition)
            # Between two moments at which all lanes are at work, whatever was loaded or compiled before.
            done, begun, used_then = reached(made, rows * FROM, running_here)
            end, ended, used = reached(made, rows * TO, running_here)
            seconds = ended - begun
            speeds[n].append((end - done) / seconds)
            shares = ", ".join(
                f"{(now - then) / seconds:.2f}" for now, then in zip(used, used_then, strict=True)
            )
            made.stop()
        print(f"{n} replica(s), default pool: {speeds[n][-1]:,.0f} rows a second; of a processor the broker "
              f"and each replica take {shares}", flush=True)  # fmt: skip
    print(f"two against one: {statistics.median(speeds[2]) / statistics.median(speeds[1]):.2f} times")


def reached(made: Group, rows: float, found: list[Replica]) -> tuple[int, float, list[float]]:
    """Once so many rows are committed: how many, when, and CPU seconds of the broker and the replicas."""
    client = Consumer({"bootstrap.servers": made.broker.servers, "group.id": made.name})
    asked = [TopicPartition(made.rows, partition) for partition in range(made.partitions)]
    try:
        while True:
            done = sum(max(0, each.offset) for each in client.committed(asked, timeout=30))
            if done >= rows:
                pids = [made.broker.process.pid, *(replica.process.pid for replica in found)]
                return done, time.monotonic(), [cpu_seconds_of(pid) for pid in pids]
            time.sleep(0.05)
    finally:
        client.close()


def cpu_seconds_of(pid: int) -> float:
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        user, system = file.read().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def owned(replica: Replica) -> set[int]:
    """Partitions that are at work in it, by its log."""
    begun = [(event["ts"], event["partition"], True) for event in replica.events("partition_started")]
    ended = [(event["ts"], event["partition"], False) for event in replica.events("partition_dropped")]
    is_here = {partition: here for _, partition, here in sorted(begun + ended)}
    return {partition for partition, here in is_here.items() if here}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", default=["speed", "burst", "replicas"])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for what in options.what:
        with tempfile.TemporaryDirectory() as name, running(pathlib.Path(name), quick=False) as broker:
            folder = pathlib.Path(name)
            if what == "speed":
                speed(broker, folder, options.rows, options.rounds)
            elif what == "burst":
                burst(broker, folder, options.rows)
            elif what == "replicas":
                replicas(broker, folder, options.rows // 20, options.rounds)
            else:
                parser.error(f"{what!r} must be one of speed, burst, replicas.")


if __name__ == "__main__":
    main()
