"""Records of a Kafka topic, in JSON: one lane a partition, shared by all replicas of a consumer group.

How: one consumer in a group with cooperative rebalancing. A partition that comes to this replica is not read
before its lane is loaded; then it is, from where the lane's checkpoint stands. Positions are kept by
adaptd, to the row: nothing is committed behind its back. The labels topic is not subscribed to; its partition
i is read along with partition i of the features topic, so that both are always on one replica.

| in the record | becomes |
| --- | --- |
| value | what a line is on stdin: features, a label, or both; a record without a value is passed over |
| key | the key of the prediction |
| timestamp | the event time, where the value has none |

Use it when: the stream is in Kafka; with the sink `kafka` every prediction comes out exactly once.
Do not use it when: predictions shall go to a file: let another program copy the topic.
Cost: about 1.5 microseconds a record beside decoding it; memory as in `queued.max.messages.kbytes`.
Guarantee: each record is learned once, also across crashes and rebalances (with `delivery =
"exactly_once"` in the sink its prediction is seen once, too). One ordered input: the same state and the same
predictions as without the crash. With a labels topic the order between the two topics is that of arrival,
which a replay does not repeat: nothing is lost or doubled, but a label may be learned earlier or later.
"""

import contextlib
import itertools
import threading
import time
from collections.abc import Mapping
from operator import itemgetter
from typing import Annotated, Any, Literal, Protocol

import msgspec
import numpy as np
from confluent_kafka import (
    Consumer,
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from adaptd import kafka_client
from adaptd.contracts import Fields, Ints, Rows
from adaptd.errors import InputError
from adaptd.lines import RowsMax, build_decoder, no_rows

# What the guarantee rests on.
RESERVED = {
    "bootstrap.servers", "group.id", "group.instance.id", "enable.auto.commit", "enable.auto.offset.store",
    "isolation.level", "auto.offset.reset", "partition.assignment.strategy", "session.timeout.ms",
    "group.protocol",
}  # fmt: skip
# One call to the brokers; who calls tries again.
CALL_SECONDS = 2.0
# Once a rebalance has begun a member hears of it with its next heartbeat.
HEARTBEAT_SECONDS = 1.0
# A consumer that failed is replaced so many times within so many seconds. librdkafka takes itself for shut
# out when its session ran out while the brokers were away; two replicas of one name shut each other out, and
# one of them has to stop.
RENEWED_MAX = 3
RENEWED_SECONDS = 60.0


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which topics are read, and as whom."""

    servers: str = "127.0.0.1:9092"
    """Brokers to begin with: `host:port`, several with commas."""
    topic: str = "events"
    """Rows: features, labelled or not, and labels as well unless they have a topic of their own."""
    labels_topic: str = ""
    """Labels, with as many partitions as `topic` and the same keys; empty: they come in `topic`."""
    group: str = "adaptd"
    """The consumer group; replicas of one group share the partitions."""
    instance: str = ""
    """This replica's name in the group, another one for each and the same after a restart: its partitions
    then wait for it as long as the session timeout. Empty: a new member with each start."""
    start: Literal["earliest", "latest"] = "earliest"
    """Where a group begins that has no position yet."""
    poll_rows_max: RowsMax = 4096
    """Records taken at once."""
    session_timeout_seconds: Annotated[float, msgspec.Meta(ge=1, le=1800)] = 30.0
    """A replica that is silent for so long loses its partitions."""
    options: dict[str, Any] = {}
    """[source.options]: options of librdkafka by name. A secret can be `{ file = "PATH" }` or
    `{ credential = "NAME" }`."""


def build(config: Config, fields: Fields) -> "KafkaSource":
    """Connects; no partition is asked for before `subscribe`. Raises ConfigError, InputError."""
    return KafkaSource(config, fields)


class ConsumerFailed(Exception):  # noqa: N818  (no fault of anybody yet)
    """This consumer will read nothing more: what it had may be another replica's. `renew` makes a new one."""


class Listener(Protocol):
    """Hears of partitions that come and go, from within `poll`."""

    def assigned(self, partitions: list[int]) -> None:
        """They are not read before `begin`. Returns at once."""

    def revoked(self, partitions: list[int]) -> None:
        """They go to another replica when this returns; until then positions can be committed."""

    def lost(self, partitions: list[int]) -> None:
        """Another replica may have them already."""


class Fetch(msgspec.Struct):
    """Records of one partition of one topic, in order, as they came."""

    topic: str
    partition: int
    messages: list[Message]
    offsets: Ints
    values: list[bytes | None]

    def cut(self, start: int, stop: int) -> "Fetch":
        """Records `start` to `stop`."""
        if start == 0 and stop == len(self.values):
            return self
        return Fetch(
            self.topic,
            self.partition,
            self.messages[start:stop],
            self.offsets[start:stop],
            self.values[start:stop],
        )

    def keys(self) -> list[bytes | None] | None:
        """One a record; None when none has a key."""
        keys = list(map(Message.key, self.messages))
        return keys if any(keys) else None


class KafkaSource:
    """See the module."""

    def __init__(self, config: Config, fields: Fields) -> None:
        self.config = config
        self.topics = [topic for topic in (config.topic, config.labels_topic) if topic]
        self.decoder = build_decoder("json", ",", fields)
        self.client_options = kafka_client.client_options(config.servers, config.options, "source", RESERVED)
        counts = kafka_client.partition_counts(self.client_options, self.topics, "source")
        self.partitions = counts[config.topic]
        if config.labels_topic and counts[config.labels_topic] != self.partitions:
            raise InputError(
                f"source.labels_topic must have the {self.partitions} partitions of {config.topic!r}; "
                f"{config.labels_topic!r} has {counts[config.labels_topic]}. A row and its label must be in "
                "partitions of one number: create the topic anew, and give both the same keys."
            )
        options = {
            # Larger answers of the brokers cost less; what waits here is bounded.
            "queued.max.messages.kbytes": 65536,
            "fetch.queue.backoff.ms": 50,
            # An answer that has to wait for a transaction to end comes soon after it has.
            "retry.backoff.ms": 50,
            "retry.backoff.max.ms": 200,
            "heartbeat.interval.ms": int(min(HEARTBEAT_SECONDS, config.session_timeout_seconds / 3) * 1000),
            **self.client_options,
            "group.id": config.group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "isolation.level": "read_committed",
            # Rows that are not there any more must not be passed over in silence.
            "auto.offset.reset": "error",
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": int(config.session_timeout_seconds * 1000),
        }
        if config.instance:
            options["group.instance.id"] = config.instance
        self.options = options
        self.consumer: Consumer = kafka_client.built(Consumer, options, "source")
        # For questions of other threads. A consumer makes one call at a time, so `poll`, and with it all
        # partitions and the group, would wait as long as one answer does.
        self.admin: AdminClient = kafka_client.built(
            AdminClient, kafka_client.reaching(self.client_options), "source"
        )
        self.begun: set[int] = set()
        """Partitions that are read, or paused."""
        self.renewed: list[float] = []
        """When the consumer was replaced, of late."""
        self.is_closed = False

    # The group.

    def subscribe(self, listener: Listener) -> None:
        """Ask for a share of the partitions; `listener` hears which ones, from within `poll`."""

        # What a consumer says that has been replaced is of no concern any more.
        def assigned(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            if consumer is not self.consumer:
                return
            # Nothing is fetched before the lane is loaded and `begin` says where. Without this call the
            # client would assign by itself; a logical offset, such as the end, must never be given: its
            # answer can come late and undo a seek, and the records between would be passed over.
            consumer.incremental_assign([])
            listener.assigned([each.partition for each in partitions])

        def revoked(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            if consumer is not self.consumer:
                return
            listener.revoked([each.partition for each in partitions])
            self.let_go([each.partition for each in partitions])

        def lost(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            if consumer is not self.consumer:
                return
            listener.lost([each.partition for each in partitions])
            self.let_go([each.partition for each in partitions])

        self.consumer.subscribe([self.config.topic], on_assign=assigned, on_revoke=revoked, on_lost=lost)

    def renew(self, why: ConsumerFailed) -> None:
        """A new one, without a partition; `subscribe` again. Raises InputError when this is of no use."""
        now = time.monotonic()
        self.renewed = [then for then in self.renewed if now - then < RENEWED_SECONDS]
        if len(self.renewed) >= RENEWED_MAX:
            raise InputError(
                f"source: the brokers must let this replica stay in the group {self.config.group!r}; {why}. "
                f"If another one has the same source.instance, {self.config.instance!r}, give each its own."
            )
        self.renewed.append(now)
        old, self.consumer = self.consumer, kafka_client.built(Consumer, self.options, "source")
        self.begun.clear()

        def close() -> None:
            with contextlib.suppress(KafkaException, RuntimeError):
                old.close()

        # Leaving needs the brokers' answer; nobody waits for it.
        threading.Thread(target=close, name="kafka closer", daemon=True).start()

    def let_go(self, partitions: list[int]) -> None:
        """Read them no more."""
        ours = [each for each in partitions if each in self.begun]
        self.begun -= set(ours)
        # Called for none as well: the client waits for this call.
        self.consumer.incremental_unassign(self.of_both(ours))

    def of_both(self, partitions: list[int]) -> list[TopicPartition]:
        return [TopicPartition(topic, each) for each in partitions for topic in self.topics]

    @property
    def producers(self) -> str:
        """What the transactional ids of the group's replicas begin with."""
        return f"adaptd-{self.config.group}-"

    def group_metadata(self) -> Any:
        """This member's generation, which a transaction is checked against."""
        return self.consumer.consumer_group_metadata()

    # Reading.

    def poll(self, seconds: float) -> list[Fetch]:
        """What there is, at most `poll_rows_max` records; waits up to `seconds` for the first.

        Rebalances happen within this call. Raises ConsumerFailed, and InputError for what trying again does
        not mend.
        """
        try:
            first = self.consumer.poll(seconds)
            if first is None:
                return []
            # Without waiting: more is there at once under load, and nobody waits for it else.
            messages = [first, *self.consumer.consume(self.config.poll_rows_max - 1, 0)]
        except KafkaException as error:
            raise InputError(f"source: {kafka_client.words(error)}.") from error
        if any(map(Message.error, messages)):
            for message in messages:
                self.check(message)
            messages = [message for message in messages if message.error() is None]
        return self.sorted_in(messages)

    def check(self, message: Message) -> None:
        """An error that came in place of a record: trouble that passes by itself; or raises as `poll`."""
        error = message.error()
        if error is None:
            return
        text = kafka_client.words(error)
        if error.code() == KafkaError._AUTO_OFFSET_RESET:
            raise InputError(
                f"source: partition {message.partition()} of {message.topic()!r} must reach back to where "
                f"adaptd stands; {text}. Records were deleted before they were read. Give the topic a longer "
                "retention; to start anew without them choose another source.group."
            )
        if error.fatal() or error.code() == KafkaError._FATAL:
            raise ConsumerFailed(text)
        if error.code() in (
            KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.TOPIC_AUTHORIZATION_FAILED,
            KafkaError.GROUP_AUTHORIZATION_FAILED, KafkaError._AUTHENTICATION, KafkaError._UNKNOWN_TOPIC,
        ):  # fmt: skip
            raise InputError(f"source: {text}. Correct it, and start adaptd again.")
        kafka_client.LOG.warning("%s", text)

    def sorted_in(self, messages: list[Message]) -> list[Fetch]:
        """By topic and partition; features before labels, which belong to earlier rows."""
        if not messages:
            return []
        partitions = list(map(Message.partition, messages))
        if len(self.topics) == 1 and partitions.count(partitions[0]) == len(partitions):
            return [fetched(self.config.topic, partitions[0], messages)]  # type: ignore[arg-type]
        groups: dict[tuple[int, int], list[Message]] = {}
        places = (
            (self.topics.index(str(message.topic())) for message in messages)
            if len(self.topics) > 1
            else itertools.repeat(0)
        )
        for place, partition, message in zip(places, partitions, messages, strict=False):
            groups.setdefault((place, partition), []).append(message)  # type: ignore[arg-type]
        return [
            fetched(self.topics[place], partition, groups[place, partition])
            for place, partition in sorted(groups)
        ]

    def decode(self, fetch: Fetch, kinds: Mapping[str, int]) -> Rows:
        """The rows of `fetch`. Their positions are offsets; those of the labels topic are -1 - offset."""
        values, offsets = fetch.values, fetch.offsets
        rows = None
        if None not in values:
            lines = b"\n".join(values) + b"\n"  # type: ignore[arg-type]
            if lines.count(b"\n") == len(values):
                rows = self.decoded(lines, kinds)
        used = np.arange(len(values))
        if rows is None or rows.n + len(rows.rejects) != len(values):
            # Some have no value, or line breaks within; those can only stand between two words of JSON.
            used = np.array(
                [k for k, value in enumerate(values) if value and value.strip(b" \t\r\n")], np.int64
            )
            one_line = [(values[k] or b"").replace(b"\n", b" ") for k in used.tolist()]
            rows = self.decoded(b"\n".join([*one_line, b""]), kinds) if one_line else no_rows()
        signed = offsets if fetch.topic == self.config.topic else -1 - offsets
        for reject in rows.rejects:
            reject.position = int(signed[used[reject.position - 1]])
        if rows.positions is not None and rows.n:
            places = used[rows.positions - 1]
            rows.positions = signed[places]
            untimed = np.isnan(rows.times)
            if untimed.any():
                stamps = map(itemgetter(1), map(Message.timestamp, fetch.messages))
                milliseconds = np.fromiter(stamps, np.float64, len(fetch.messages))
                rows.times[untimed] = milliseconds[places[untimed]] / 1000.0
        return rows

    def decoded(self, lines: bytes, kinds: Mapping[str, int]) -> Rows:
        self.decoder.load_state({"records": 0})
        return self.decoder.decode(lines, kinds)

    # Partitions; the first two may be called from another thread.

    def committed(self, partition: int, is_settled: bool = True) -> dict[str, tuple[int, str]]:
        """Committed position and its metadata by topic, without topics that have none.

        is_settled: no transaction is open that would move them; else what holds until it ends. Raises
        KafkaException, UNSTABLE_OFFSET_COMMIT when such a transaction is open; ask again.
        """
        group = self.config.group
        wanted = [TopicPartition(topic, partition) for topic in self.topics]
        answer = self.admin.list_consumer_group_offsets(
            [ConsumerGroupTopicPartitions(group, wanted)],
            require_stable=is_settled,
            request_timeout=CALL_SECONDS,
        )
        found = answer[group].result().topic_partitions
        for each in found:
            if each.error is not None:
                raise KafkaException(each.error)
        return {each.topic: (each.offset, each.metadata or "") for each in found if each.offset >= 0}

    def start(self, topic: str, partition: int) -> int:
        """Where a lane begins that has no committed position. Raises KafkaException; ask again."""
        place = TopicPartition(topic, partition)
        is_end = self.config.start == "latest"
        where = OffsetSpec.latest() if is_end else OffsetSpec.earliest()  # type: ignore[no-untyped-call]
        answer = self.admin.list_offsets(
            {place: where}, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=CALL_SECONDS
        )
        return int(answer[place].result().offset)

    def cluster(self) -> str:
        """The cluster's id. Raises InputError."""
        found = self.consumer.cluster_id(timeout=kafka_client.REACH_SECONDS)
        if not found:
            raise InputError(f"source: the brokers at {self.config.servers} do not answer. Look after them.")
        return str(found)

    def begin(self, partition: int, positions: Mapping[str, int]) -> None:
        """Read on from `positions`, by topic. Raises KafkaException; try again."""
        places = [TopicPartition(topic, partition, offset) for topic, offset in positions.items()]
        if partition not in self.begun:
            self.consumer.incremental_assign(places)
            self.begun.add(partition)
        else:
            for place in places:
                self.consumer.seek(place)
        # A pause outlives the partition's loss: one that was paused when it went would come back paused.
        self.consumer.resume(self.of_both([partition]))

    def pause(self, partitions: list[int]) -> None:
        """Give out nothing of these until `begin`."""
        self.consumer.pause(self.of_both([each for each in partitions if each in self.begun]))

    def lag(self, topic: str, partition: int, position: int) -> int:
        """Records known to wait behind `position`; -1 when unknown."""
        try:
            _, high = self.consumer.get_watermark_offsets(TopicPartition(topic, partition), cached=True)
        except KafkaException:
            return -1
        return max(0, high - position) if high >= 0 else -1

    def commit(self, offsets: list[TopicPartition]) -> None:
        """For at-least-once delivery: outside of a transaction. Raises KafkaException."""
        for each in self.consumer.commit(offsets=offsets, asynchronous=False) or []:
            if each.error is not None:
                raise KafkaException(each.error)

    def close(self) -> None:
        """Leave the group. Safe to call twice."""
        if not self.is_closed:
            self.is_closed = True
            self.consumer.close()


def fetched(topic: str, partition: int, messages: list[Message]) -> Fetch:
    first, last, n = messages[0].offset(), messages[-1].offset(), len(messages)
    assert first is not None
    assert last is not None
    # Ends of transactions and compaction leave gaps.
    offsets = (
        np.arange(first, last + 1)
        if last - first == n - 1
        else np.fromiter(map(Message.offset, messages), np.int64, n)
    )
    return Fetch(topic, partition, messages, offsets, list(map(Message.value, messages)))
