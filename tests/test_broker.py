"""The broker of the tests refuses and hides what exactly-once delivery rests on."""

import contextlib
import json
import pathlib
import subprocess
import sys
import time

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from tests.broker import Broker, broker
from tests.groups import wait_until

__all__ = ["broker"]


def producer(broker: Broker, name: str, timeout_ms: int = 10_000) -> Producer:
    client = Producer({
        "bootstrap.servers": broker.servers, "transactional.id": name, "transaction.timeout.ms": timeout_ms,
    })  # fmt: skip
    client.init_transactions(30)
    return client


def write(client: Producer, topic: str, *values: bytes) -> None:
    """Values that have reached the broker, in the open transaction."""
    for value in values:
        client.produce(topic, value, partition=0)
    assert client.flush(30) == 0


def values(broker: Broker, topic: str) -> list[bytes]:
    return [record.value for record in broker.committed(topic)]


def test_aborted_and_open_records_are_hidden_from_read_committed(broker):
    topic = broker.create("hidden")
    client = producer(broker, "hidden")
    client.begin_transaction()
    write(client, topic, b"aborted")
    client.abort_transaction(30)
    client.begin_transaction()
    write(client, topic, b"kept")
    assert values(broker, topic) == [], "open"
    client.commit_transaction(30)
    assert values(broker, topic) == [b"kept"]
    assert [record.value for record in broker.uncommitted(topic)] == [b"aborted", b"kept"]


def test_a_zombie_producer_is_fenced(broker):
    topic = broker.create("fenced")
    zombie = producer(broker, "fenced")
    zombie.begin_transaction()
    write(zombie, topic, b"of the zombie")
    heir = producer(broker, "fenced")
    with pytest.raises(KafkaException) as caught:
        zombie.commit_transaction(30)
    assert caught.value.args[0].code() in (KafkaError._FENCED, KafkaError.INVALID_PRODUCER_EPOCH)
    heir.begin_transaction()
    write(heir, topic, b"of the heir")
    heir.commit_transaction(30)
    assert values(broker, topic) == [b"of the heir"]


def test_a_member_of_an_older_generation_cannot_commit_offsets(broker):
    """Two producers with ids of their own: what fences the first is that its group went on without it."""
    topic = broker.create("generation")
    broker.produce(topic, [b"row"] * 10)
    options = {
        "bootstrap.servers": broker.servers, "group.id": "generation", "enable.auto.commit": False,
        "auto.offset.reset": "earliest", "session.timeout.ms": 6000, "group.instance.id": "one",
    }  # fmt: skip
    first = Consumer(options)
    first.subscribe([topic])
    assert first.consume(10, timeout=30)
    stale = first.consumer_group_metadata()
    zombie = producer(broker, "generation-1")
    second = Consumer(options)  # the same static member, as after a restart on another machine
    second.subscribe([topic])
    assert second.consume(10, timeout=30)
    zombie.begin_transaction()
    with pytest.raises(KafkaException) as caught:
        zombie.send_offsets_to_transaction([TopicPartition(topic, 0, 7)], stale, 10)
    assert caught.value.args[0].code() in (KafkaError.FENCED_INSTANCE_ID, KafkaError.UNKNOWN_MEMBER_ID)
    zombie.abort_transaction(30)
    heir = producer(broker, "generation-2")
    heir.begin_transaction()
    heir.send_offsets_to_transaction(
        [TopicPartition(topic, 0, 5, metadata="named")], second.consumer_group_metadata(), 10
    )
    heir.commit_transaction(30)
    assert broker.group_offsets("generation", topic) == {0: (5, "named")}
    second.close()
    first.close()


def test_an_abandoned_transaction_ends_soon_after_its_time_limit(broker):
    topic = broker.create("abandoned")
    abandoned = producer(broker, "abandoned", timeout_ms=1000)
    abandoned.begin_transaction()
    write(abandoned, topic, b"never committed")
    other = producer(broker, "other")
    other.begin_transaction()
    write(other, topic, b"later")
    other.commit_transaction(30)
    begun = time.monotonic()
    while values(broker, topic) != [b"later"]:
        assert time.monotonic() < begun + 15, "later records stay hidden behind the abandoned transaction"


def test_the_log_outlives_a_kill_and_a_stop(broker):
    topic = broker.create("outlives", partitions=2)
    lines = [json.dumps({"id": i}).encode() for i in range(5000)]
    broker.produce(topic, lines, partition=1)
    before = broker.committed(topic)
    assert [(record.partition, record.offset, record.value) for record in before] == [
        (1, i, line) for i, line in enumerate(lines)
    ]
    broker.kill()
    broker.start()
    assert broker.committed(topic) == before
    broker.stop()
    broker.start()
    assert broker.committed(topic) == before
    broker.produce(topic, lines[:10], partition=0, keys=[b"key"] * 10)
    assert broker.ends(topic) == [10, 5000]


def test_no_broker_outlives_tests_that_are_killed():
    program = (
        "import subprocess\n"
        "from tests.mortal import mortal\n"
        "print(subprocess.Popen(mortal(['sleep', '600'])).pid, flush=True)\n"
        "input()\n"
    )
    tests = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    about = pathlib.Path(f"/proc/{int(tests.stdout.readline())}")

    def command() -> str:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            return (about / "cmdline").read_bytes().decode().replace("\0", " ")
        return ""

    wait_until(lambda: command().startswith("sleep"), "the command does not run")
    tests.kill()
    tests.communicate()
    wait_until(lambda: not command(), "the command outlives its parent")
