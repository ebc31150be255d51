"""Kafka source and sink on a real broker: what goes in comes out once, whatever happens in between."""

import io
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import tomllib
from functools import partial

import httpx
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from adaptd import cli, kafka_client
from adaptd import config as configuration
from adaptd.daemon import Daemon
from adaptd.errors import AdaptdError, CheckpointError, ConfigError
from tests import replicas
from tests.broker import broker
from tests.groups import Watch
from tests.replicas import Running, expected, rows, topics, tree, wait_for

__all__ = ["broker"]


def has(broker, topic, n):
    return len(broker.committed(topic)) >= n


def values(broker, topic, partition=0):
    return [record.value for record in broker.committed(topic) if record.partition == partition]


def test_predictions_are_those_of_one_undisturbed_lane(broker, tmp_path):
    topics(broker, "plain")
    lines = rows(500)
    broker.produce("plain-in", lines, keys=[b"k%d" % i for i in range(500)])
    configured = tree(broker, "plain", tmp_path)
    with Running(configured) as running:
        running.wait_for(partial(has, broker, "plain-out", 500), "the predictions")
    assert values(broker, "plain-out") == expected(configured, lines)
    assert [record.key for record in broker.committed("plain-out")] == [b"k%d" % i for i in range(500)]


def test_a_restart_goes_on_where_the_last_one_stopped(broker, tmp_path):
    topics(broker, "again")
    lines = rows(600)
    configured = tree(broker, "again", tmp_path, source={"instance": "one"})
    for start, stop in ((0, 200), (200, 600)):
        broker.produce("again-in", lines[start:stop])
        with Running(configured) as running:
            running.wait_for(partial(has, broker, "again-out", stop), "the predictions")
        assert running.events("partition_started")[0]["replayed"] == 0
    assert values(broker, "again-out") == expected(configured, lines)


def test_a_new_group_can_begin_at_the_end(broker, tmp_path):
    topics(broker, "late")
    lines = rows(150)
    broker.produce("late-in", lines[:100])
    configured = tree(broker, "late", tmp_path, source={"start": "latest"})
    with Running(configured) as running:
        running.wait_for(lambda: running.events("partition_started"), "its partition")
        broker.produce("late-in", lines[100:])
        running.wait_for(partial(has, broker, "late-out", 50), "the predictions")
    assert values(broker, "late-out") == expected(configured, lines[100:])


def test_sigkill_loses_nothing_and_doubles_nothing(broker, tmp_path):
    topics(broker, "killed")
    lines = rows(3000)
    configured = tree(
        broker, "killed", tmp_path / "state", source={"instance": "one"},
        checkpoint={"interval_seconds": 0.5}, sink={"transaction_interval_seconds": 0.02},
    )  # fmt: skip
    path = tmp_path / "config.toml"
    path.write_text(toml(configured))
    assert tomllib.loads(path.read_text()) == configured
    for stop in (1000, 2000):
        broker.produce("killed-in", lines[stop - 1000 : stop])
        before = len(broker.committed("killed-out"))
        process = subprocess.Popen(
            [sys.executable, "-m", "adaptd", "run", "--config", str(path)], stderr=subprocess.PIPE
        )
        wait_for(partial(has, broker, "killed-out", before + 1), "the first predictions")
        broker.produce("killed-in", lines[2000:2500] if stop == 1000 else lines[2500:])
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    order = lines[:1000] + lines[2000:2500] + lines[1000:2000] + lines[2500:]
    with Running(configured) as running:
        running.wait_for(partial(has, broker, "killed-out", 3000), "the predictions")
    assert values(broker, "killed-out") == expected(configured, order)


def toml(configured):
    """The sections of a configuration; two levels are enough for these."""

    def value(thing):
        if isinstance(thing, dict):
            return "{" + ", ".join(f'"{key}" = {value(entry)}' for key, entry in thing.items()) + "}"
        return repr(thing).lower() if isinstance(thing, bool) else repr(thing)

    return "\n".join(f"{section} = {value(keys)}" for section, keys in configured.items())


def test_what_cannot_be_used_is_a_dead_letter_with_its_place(broker, tmp_path):
    topics(broker, "dead")
    good = rows(3)
    broker.produce("dead-in", [good[0], b"garbage", b"", b'{"id": 9,\n "x": {"a": 1}}', b"[1]", good[1]])
    with Running(tree(broker, "dead", tmp_path)) as running:
        running.wait_for(partial(has, broker, "dead-out", 3), "the predictions")
    dead = broker.committed("dead-dead")
    assert [record.value for record in dead] == [b"garbage", b"[1]"]
    assert dead[0].headers["__streams.errors.exception"] == b"not_json"
    assert dead[1].headers["__streams.errors.exception"] == b"not_an_object"
    assert [record.headers["__streams.errors.offset"] for record in dead] == [b"1", b"4"]
    assert dead[0].headers["__streams.errors.topic"] == b"dead-in"
    assert dead[0].headers["__streams.errors.partition"] == b"0"


def test_partitions_are_lanes_of_their_own(broker, tmp_path):
    topics(broker, "lanes", 3)
    for partition in range(3):
        broker.produce("lanes-in", rows(300, seed=partition), partition)
    configured = tree(broker, "lanes", tmp_path)
    with Running(configured) as running:
        running.wait_for(partial(has, broker, "lanes-out", 900), "the predictions")
        figures = running.replica.figures.snapshot()
    assert figures.predictions == 900
    assert [each.position for each in figures.partitions] == [300, 300, 300]
    for partition in range(3):
        assert values(broker, "lanes-out", partition) == expected(configured, rows(300, seed=partition))


def test_a_committed_position_without_a_checkpoint_is_refused(broker, tmp_path):
    topics(broker, "foreign")
    broker.produce("foreign-in", rows(10))
    with Running(tree(broker, "foreign", tmp_path / "one")) as running:
        running.wait_for(partial(has, broker, "foreign-out", 10), "the predictions")
    running = Running(tree(broker, "foreign", tmp_path / "two"))
    with pytest.raises(CheckpointError, match="there is none"), running:
        running.thread.join(replicas.WAIT_SECONDS_MAX)
    assert len(broker.committed("foreign-out")) == 10


def test_what_does_not_go_together_is_said_beforehand():
    kafka = {"source": {"kind": "kafka"}, "checkpoint": {"directory": "/tmp/x"}}
    with pytest.raises(ConfigError, match=r"sink.kind must be 'kafka' when source.kind is 'kafka'"):
        configuration.read(kafka, "test")
    with pytest.raises(ConfigError, match=r"checkpoint.directory or checkpoint.url must be given"):
        configuration.read({"source": {"kind": "kafka"}, "sink": {"kind": "kafka"}}, "test")
    with pytest.raises(ConfigError, match=r"sink.delivery must be 'at_least_once'"):
        configuration.read({"sink": {"kind": "kafka", "servers": "x:1"}}, "test")
    with pytest.raises(ConfigError, match=r"sink.servers must be those of the source"):
        configuration.read({**kafka, "sink": {"kind": "kafka", "servers": "other:1"}}, "test")


def test_secrets_come_from_files_and_credentials_and_are_never_shown(tmp_path, monkeypatch):
    (tmp_path / "password").write_text("hunter22\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    told = {
        "sasl.password": {"file": str(tmp_path / "password")},
        "ssl.key.password": {"credential": "password"},
    }
    options = kafka_client.client_options("x:1", told, "source", ())
    assert options["sasl.password"] == options["ssl.key.password"] == "hunter22"
    for wrong in (
        {"sasl.password": {"file": "hunter22", "credential": "x"}},
        {"sasl.password": ["hunter22"]},
    ):
        with pytest.raises(ConfigError) as caught:
            kafka_client.client_options("x:1", wrong, "source", ())
        assert "hunter22" not in str(caught.value)
        assert "source.options.sasl.password" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        kafka_client.built(kafka_client.AdminClient, {"security.protocol": "hunter22"}, "source")
    assert "hunter22" not in str(caught.value)


def test_a_broker_or_topic_that_is_not_there_is_said(broker, tmp_path, capsys):
    topics(broker, "there")
    configured = tree(broker, "there", tmp_path, sink={"topic": "nowhere"})
    with pytest.raises(AdaptdError, match="the topic 'nowhere' must be on"):
        Running(configured)
    path = tmp_path / "config.toml"
    path.write_text(toml(configured))
    capsys.readouterr()
    assert cli.main(["check", "--config", str(path)]) == 1
    assert "sink: the topic 'nowhere' must be on" in capsys.readouterr().err
    assert cli.main(["check", "--config", str(path), "--set", "sink.topic=there-out"]) == 0
    assert "source: there-in, 1 partitions, group there" in capsys.readouterr().out
    assert cli.main(["check", "--config", str(path), "--set", "source.servers=127.0.0.1:1"]) == 1
    assert "source.servers must be brokers that answer" in capsys.readouterr().err


def test_at_least_once_goes_on_after_a_restart(broker, tmp_path):
    topics(broker, "cheap")
    lines = rows(400)
    configured = tree(broker, "cheap", tmp_path, sink={"delivery": "at_least_once"})
    for start, stop in ((0, 150), (150, 400)):
        broker.produce("cheap-in", lines[start:stop])
        with Running(configured) as running:
            running.wait_for(partial(has, broker, "cheap-out", stop), "the predictions")
    # Nothing went wrong in between, so nothing came twice.
    assert values(broker, "cheap-out") == expected(configured, lines)


def test_a_file_is_answered_in_a_topic(broker, tmp_path):
    broker.create("from-file")
    (tmp_path / "rows.jsonl").write_bytes(b"".join(line + b"\n" for line in rows(300)))
    configured = {
        "source": {"kind": "file", "path": str(tmp_path / "rows.jsonl")},
        "sink": {
            "kind": "kafka", "servers": broker.servers, "topic": "from-file", "delivery": "at_least_once",
        },
        "pool": {"learners": replicas.POOL},
    }  # fmt: skip
    Daemon(configuration.read(configured, "test"), stderr=io.StringIO()).run()
    assert values(broker, "from-file") == expected(configured, rows(300))


def test_predictions_over_http_are_previews_and_writes_are_refused(broker, tmp_path):
    topics(broker, "asked")
    broker.produce("asked-in", rows(200))
    configured = tree(broker, "asked", tmp_path, http={"enabled": True, "listen": "127.0.0.1:0"})
    with Running(configured) as running:
        running.wait_for(partial(has, broker, "asked-out", 200), "the predictions")
        client = httpx.Client(
            base_url=f"http://{running.events('http_started')[0]['listen']}/api/v1/", timeout=60
        )
        preview = client.post("predict", json={"x": {"a": 0.9, "b": 0.1}})
        assert preview.json()["predictions"][0]["prediction"] == "up"
        refused = client.post("learn", json={"id": 1, "x": {"a": 0.9, "b": 0.1}, "y": "up"})
        assert refused.status_code == 409
        assert "must be sent to its topics" in refused.json()["error"]
        saved = client.post("checkpoint")
        assert saved.status_code == 200, saved.text


def test_a_producer_that_is_shut_out_sends_again_what_nobody_saw(broker, tmp_path):
    topics(broker, "fenced-lane")
    lines = rows(900)
    configured = tree(broker, "fenced-lane", tmp_path)
    with Running(configured) as running:
        for start in range(0, 900, 300):
            broker.produce("fenced-lane-in", lines[start : start + 300])
            running.wait_for(partial(has, broker, "fenced-lane-out", start + 300), "the predictions")
            # As a second owner of the name would, or the brokers after a transaction that took too long.
            name = running.replica.sink.name
            usurper = Producer({"bootstrap.servers": broker.servers, "transactional.id": name})
            usurper.init_transactions(30)
    assert values(broker, "fenced-lane-out") == expected(configured, lines)
    assert running.events("transaction_aborted")
    assert [event["reason"] for event in running.events("partition_dropped")] == [
        "aborted",
        "aborted",
        "revoked",
    ]


def test_a_replica_that_was_shut_out_joins_anew(broker, tmp_path):
    topics(broker, "shut-out")
    lines = rows(600)
    configured = tree(broker, "shut-out", tmp_path, source={"instance": "one"})
    with Running(configured) as running:
        broker.produce("shut-out-in", lines[:300])
        running.wait_for(partial(has, broker, "shut-out-out", 300), "the predictions")
        # librdkafka does this to itself when its session runs out while the brokers are away.
        usurper = Consumer({
            "bootstrap.servers": broker.servers, "group.id": "shut-out", "group.instance.id": "one",
            "partition.assignment.strategy": "cooperative-sticky",
        })  # fmt: skip
        usurper.subscribe(["shut-out-in"])
        running.wait_for(lambda: usurper.poll(0.1) is None and usurper.assignment(), "its partition")
        usurper.close()
        broker.produce("shut-out-in", lines[300:])
        running.wait_for(partial(has, broker, "shut-out-out", 600), "the predictions")
    assert values(broker, "shut-out-out") == expected(configured, lines)
    assert any("joining the group anew" in event["detail"] for event in running.events("broker_reported"))


def test_of_two_replicas_with_one_name_one_stops(broker, tmp_path):
    topics(broker, "namesakes")
    lines = rows(300)
    configured = tree(broker, "namesakes", tmp_path / "one", source={"instance": "one"})
    other = tree(broker, "namesakes", tmp_path / "other", source={"instance": "one"})
    for each in (configured, other):
        each["checkpoint"]["url"] = str(tmp_path / "objects")
    with Running(configured) as first, Running(other) as second:
        wait_for(lambda: not (first.thread.is_alive() and second.thread.is_alive()), "an end of one")
        stopped, left = (second, first) if first.thread.is_alive() else (first, second)
        broker.produce("namesakes-in", lines)
        left.wait_for(partial(has, broker, "namesakes-out", 300), "the predictions")
        failure, stopped.failure = stopped.failure, None
    assert "the same source.instance, 'one', give each its own" in str(failure)
    assert values(broker, "namesakes-out") == expected(configured, lines)


def test_partitions_move_with_their_lanes_and_nothing_is_lost_or_doubled(broker, tmp_path):
    topics(broker, "moving", 2)
    lines = {partition: rows(1200, seed=partition) for partition in (0, 1)}
    configured = [
        tree(
            broker, "moving", tmp_path / name,
            checkpoint={"directory": str(tmp_path / name), "url": str(tmp_path / "shared")},
        )
        for name in ("one", "two")
    ]  # fmt: skip

    def feed(start, stop):
        for partition in (0, 1):
            broker.produce("moving-in", lines[partition][start:stop], partition)

    with Running(configured[0]) as one:
        feed(0, 300)
        one.wait_for(partial(has, broker, "moving-out", 600), "the first predictions")
        producer = one.replica.sink.producer
        with Running(configured[1]) as two:
            feed(300, 600)
            two.wait_for(lambda: two.events("partition_started"), "a partition of the second replica")
            feed(600, 900)
            two.wait_for(partial(has, broker, "moving-out", 1800), "the predictions of both")
            assert two.replica.figures.snapshot().predictions > 0
        feed(900, 1200)
        one.wait_for(partial(has, broker, "moving-out", 2400), "the last predictions")
    # Who gives a partition away in order has nothing open, and is not shut out.
    assert one.replica.sink.producer is producer
    # The one who went took a fresh checkpoint along: there was nothing to do again.
    assert {event["replayed"] for running in (one, two) for event in running.events("partition_started")} == {
        0
    }
    for partition in (0, 1):
        assert values(broker, "moving-out", partition) == expected(configured[0], lines[partition])


def left_open(broker, name, partition, metadata):
    """A replica that died in a commit: its output and its positions are in a transaction that nobody ends."""
    producer = Producer({
        "bootstrap.servers": broker.servers, "transactional.id": f"adaptd-{name}-dead",
        "transaction.timeout.ms": 900_000,
    })  # fmt: skip
    consumer = Consumer({"bootstrap.servers": broker.servers, "group.id": name})
    place = TopicPartition(f"{name}-in", partition, 100, metadata)
    producer.init_transactions(30)
    for is_open in (False, True):
        producer.begin_transaction()
        if is_open:
            producer.produce(f"{name}-out", b"never seen", partition=partition)
            producer.flush(30)
            place.offset += 50
        producer.send_offsets_to_transaction([place], consumer.consumer_group_metadata())
        if not is_open:
            producer.commit_transaction(30)
    consumer.close()
    return producer


@pytest.mark.parametrize("is_named", [True, False], ids=["named", "nameless"])
def test_positions_in_an_open_transaction_hold_up_no_other_partition(broker, tmp_path, is_named):
    """Of a dead owner that is named beside the position from before it is ended; it would stay for long."""
    name = f"left-{is_named}"
    topics(broker, name, 2)
    lines = {partition: rows(400, seed=partition) for partition in (0, 1)}
    configured = tree(broker, name, tmp_path)
    for partition in (0, 1):
        broker.produce(f"{name}-in", lines[partition][:100], partition)
    with Running(configured) as running:
        running.wait_for(partial(has, broker, f"{name}-out", 200), "the first predictions")
    metadata = json.loads(broker.group_offsets(name, f"{name}-in")[1][1])
    assert metadata["producer"] == "", "who leaves in order has nothing open"
    metadata["producer"] = f"adaptd-{name}-dead" if is_named else ""
    dead = left_open(broker, name, 1, json.dumps(metadata))
    broker.produce(f"{name}-in", lines[1][100:], 1)

    seconds = []
    with Running(configured) as running, Watch(broker, f"{name}-out", 2) as watch:
        running.wait_for(lambda: running.events("partition_started"), "the other partition")
        for start in range(100, 400, 50):
            begun = time.time()
            broker.produce(f"{name}-in", lines[0][start : start + 50], 0)
            seconds.append(watch.seconds_until_next(0, begun))
        if not is_named:
            assert len(values(broker, f"{name}-out", 1)) == 100
            dead.abort_transaction(30)
        running.wait_for(partial(has, broker, f"{name}-out", 800), "the predictions of both")
    assert statistics.median(seconds) < 1.0, "others had to wait as long as a question may take"
    for partition in (0, 1):
        assert values(broker, f"{name}-out", partition) == expected(configured, lines[partition])


def test_what_a_killed_replica_left_open_is_ended_by_who_comes_after_it(broker, tmp_path):
    """Outputs of its very first transaction, which nothing but the commit before it could tell of."""
    topics(broker, "open")
    lines = rows(300)
    configured = tree(
        broker, "open", tmp_path / "state", source={"session_timeout_seconds": 2.0},
        sink={"transaction_interval_seconds": 3600.0, "transaction_timeout_seconds": 900.0},
    )  # fmt: skip
    path = tmp_path / "config.toml"
    path.write_text(toml(configured))
    broker.produce("open-in", lines)
    process = subprocess.Popen(
        [sys.executable, "-m", "adaptd", "run", "--config", str(path)], stderr=subprocess.PIPE
    )
    wait_for(lambda: len(broker.uncommitted("open-out")) == 300, "outputs in an open transaction")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not broker.committed("open-out")
    configured["sink"]["transaction_interval_seconds"] = 0.1
    with Running(configured) as running:
        running.wait_for(partial(has, broker, "open-out", 300), "the predictions")
    assert values(broker, "open-out") == expected(configured, lines)


def all_learned(running, n):
    return sum(lane.learned for lane in running.replica.lanes()) == n


def test_labels_of_a_topic_of_their_own_meet_their_rows(broker, tmp_path):
    topics(broker, "two", 2)
    broker.create("two-labels", 2)
    configured = tree(broker, "two", tmp_path, source={"labels_topic": "two-labels"})
    records = {partition: rows(400, seed=partition) for partition in (0, 1)}

    def feed(start, stop):
        for partition, lines in records.items():
            whole = [json.loads(line) for line in lines[start:stop]]
            features = [json.dumps({"id": row["id"], "x": row["x"]}).encode() for row in whole]
            labels = [json.dumps({"id": row["id"], "y": row["y"]}).encode() for row in whole]
            broker.produce("two-in", features, partition)
            broker.produce("two-labels", labels, partition)

    learned = 0
    for start, stop in ((0, 250), (250, 400)):
        feed(start, stop)
        with Running(configured) as running:
            running.wait_for(partial(has, broker, "two-out", 2 * stop), "the predictions")
            running.wait_for(partial(all_learned, running, 2 * stop), "the labels")
        learned = running.replica.figures.snapshot().labels
    assert learned == 300, "what was learned before the restart was not learned again"
    found = [json.loads(record.value)["id"] for record in broker.committed("two-out")]
    assert sorted(found) == sorted([*range(400), *range(400)])
    assert not broker.committed("two-dead")
