"""Lines to a Kafka topic: with the source `kafka` in transactions, each exactly once; else at least once.

How: one producer. A transaction is opened by the first row after the last one, and carries predictions,
dead letters and the positions of the rows that were read; it is committed when
`transaction_interval_seconds` have passed. Who reads with `isolation.level=read_committed` sees all of it or
nothing. So the interval is the latency of the output: shorter ones cost the brokers more.

A prediction goes to the partition of its row's number (modulo the partitions of the topic) and has the
row's key. A dead letter is the record as it came, with headers in the form that Kafka Streams uses:
`__streams.errors.exception` (the reason), `.message`, `.topic`, `.partition`, `.offset`.

Use it when: other programs read predictions from Kafka.
Do not use it when: an answer is needed within a few milliseconds; ask over HTTP.
Cost: about 2 microseconds a line, most of it in librdkafka's threads.
Guarantee: `exactly_once`, only with the source `kafka` on the same brokers: outputs and positions are one
transaction. `at_least_once`: no line is lost; after a crash those since the last commit come again.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from adaptd import kafka_client
from adaptd.contracts import Reject, State
from adaptd.errors import AdaptdError

RESERVED = {"bootstrap.servers", "transactional.id", "enable.idempotence", "transaction.timeout.ms"}
# One call to the brokers; until the time is up it is made again.
CALL_SECONDS = 2.0
# librdkafka can wait for ever for a coordinator that has moved, whatever time limit it is given (librdkafka
# issues 5456 and 5511; `kafka_client.STEADY` makes it rare): such a producer is left alone and replaced.
HANGING_SECONDS = 5.0
# A producer that the brokers shut out is replaced so many times in a row, and then adaptd gives up.
REPLACED_MAX = 5

Seconds = Annotated[float, msgspec.Meta(ge=0.001, le=3600)]


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which topics are written, and what is promised."""

    servers: str = ""
    """Brokers to begin with; empty: those of the source. Another cluster needs `at_least_once`."""
    topic: str = "predictions"
    """Predictions."""
    dead_letters_topic: str = ""
    """Records that could not be used; empty: they go where `[dead_letters]` says."""
    delivery: Literal["exactly_once", "at_least_once"] = "exactly_once"
    """What a reader of committed records sees of a prediction after crashes; the second is cheaper."""
    transaction_interval_seconds: Seconds = 0.1
    """Time from the first row of a transaction to its commit: the latency of the output."""
    transaction_timeout_seconds: Annotated[float, msgspec.Meta(ge=1, le=900)] = 10.0
    """The brokers abort a transaction that stays open for longer; that of a replica that died is aborted
    by whoever has its partitions next, if one comes sooner."""
    timeout_seconds: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 120.0
    """So long the brokers may be away before adaptd stops with an error."""
    options: dict[str, Any] = {}
    """[sink.options]: options of librdkafka by name, as for the source; those of a Kafka source that lead to
    the brokers hold here too."""


class Aborted(AdaptdError):  # noqa: N818  (what was sent is void; who sent it goes back and sends again)
    """Nothing that was sent since the last commit will be seen, unless the broker had it all."""


def build(
    config: Config, servers: str = "", options: dict[str, Any] | None = None, name: str = ""
) -> "KafkaSink":
    """servers, options: those of the source, if it is Kafka; name: of its transactions, empty for none."""
    return KafkaSink(config, servers, options or {}, name)


def reached(
    config: Config, servers: str = "", options: dict[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, int]]:
    """Options of a client, and the partitions of each topic. Raises ConfigError, InputError."""
    own = kafka_client.client_options(config.servers or servers, config.options, "sink", RESERVED)
    merged = {**kafka_client.reaching(options or {}), **own}
    topics = [topic for topic in (config.topic, config.dead_letters_topic) if topic]
    return merged, kafka_client.partition_counts(merged, topics, "sink")


class KafkaSink:
    """See the module. `blocked_seconds` is time spent waiting for brokers, in all."""

    def __init__(self, config: Config, servers: str, options: dict[str, Any], name: str) -> None:
        self.config = config
        self.name = name
        self.options, self.partitions = reached(config, servers, options)
        self.blocked_seconds = 0.0
        self.replaced = 0
        self.is_open = False
        self.opened = 0.0
        self.failure: KafkaError | None = None
        self.caller = kafka_client.Caller()
        self.is_hanging = False
        self.producer = self.connect(name)

    def connect(self, name: str) -> Producer:
        """A new producer. Under a `name` it shuts out whoever had that before, and ends what he left open."""
        options = {
            # Many records a request; what is waited for is the transaction, which flushes them.
            "linger.ms": 20,
            "batch.num.messages": 20_000,
            "batch.size": 4_000_000,
            "queue.buffering.max.messages": 500_000,
            "delivery.report.only.error": True,
            **self.options,
            "enable.idempotence": True,
            "on_delivery": self.delivered,
        }
        if name:
            options["transactional.id"] = name
            options["transaction.timeout.ms"] = int(self.config.transaction_timeout_seconds * 1000)
        else:
            # What the brokers do not take within this time has failed, and is seen at the next flush.
            options.setdefault("message.timeout.ms", int(self.config.timeout_seconds * 1000))
        producer: Producer = kafka_client.built(Producer, options, "sink")
        if name:
            self.insist(producer.init_transactions, "a transactional producer could not be registered")
        return producer

    def end(self, name: str) -> None:
        """Abort what the producer `name` left open when it died. Raises Aborted, AdaptdError.

        It may be called from another thread. One that is alive has what it sent aborted, and is replaced.
        """
        self.connect(name)

    def delivered(self, error: KafkaError | None, message: Any) -> None:
        """Called from within polls, for failures only."""
        if error is not None:
            self.failure = error

    # Transactions.

    def begin(self) -> None:
        """The next record belongs to a new transaction, if none is open. Raises Aborted."""
        if self.is_open:
            return
        if self.name:
            try:
                self.producer.begin_transaction()
            except KafkaException as error:
                raise Aborted(kafka_client.words(error)) from error
        self.is_open, self.opened = True, time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether the open transaction has had its time."""
        return self.is_open and time.monotonic() - self.opened >= self.config.transaction_interval_seconds

    @property
    def seconds_left(self) -> float:
        """Until the open transaction is due."""
        return max(0.0, self.opened + self.config.transaction_interval_seconds - time.monotonic())

    def send(self, lines: Sequence[bytes], keys: Sequence[bytes | None] | None, partition: int) -> None:
        """Predictions of rows of input partition `partition`. Raises Aborted, AdaptdError."""
        topic, place = self.config.topic, partition % self.partitions[self.config.topic]
        produce = self.producer.produce
        done = 0
        while done < len(lines):
            try:
                if keys is None:
                    for line in lines[done:]:
                        produce(topic, line, None, place)
                        done += 1
                else:
                    for line, key in zip(lines[done:], keys[done:], strict=True):
                        produce(topic, line, key, place)
                        done += 1
            except BufferError:
                self.make_room()
            except KafkaException as error:
                raise Aborted(kafka_client.words(error)) from error
        self.producer.poll(0)

    def bury(self, reject: Reject, key: bytes | None, topic: str, partition: int, offset: int) -> None:
        """A record that could not be used, with its reason. Raises Aborted, AdaptdError."""
        headers: list[tuple[str, str | bytes | None]] = [
            ("__streams.errors.exception", reject.reason),
            ("__streams.errors.message", reject.detail),
            ("__streams.errors.topic", topic),
            ("__streams.errors.partition", str(partition)),
            ("__streams.errors.offset", str(offset)),
        ]
        target = self.config.dead_letters_topic
        place = partition % self.partitions[target]
        while True:
            try:
                self.producer.produce(target, reject.raw, key, place, headers=headers)
            except BufferError:
                self.make_room()
            except KafkaException as error:
                raise Aborted(kafka_client.words(error)) from error
            else:
                return

    def make_room(self) -> None:
        """The local queue is full: wait until the brokers have taken something."""
        begun = time.monotonic()
        before = len(self.producer)
        while len(self.producer) >= before:
            self.producer.poll(0.05)
            if self.failure is not None:
                raise Aborted(kafka_client.words(self.failure))
            if time.monotonic() - begun > self.config.timeout_seconds:
                raise AdaptdError(self.gone("the brokers take no records"))
        self.blocked_seconds += time.monotonic() - begun

    def commit(self, offsets: list[TopicPartition], group: Any) -> None:
        """All that was sent, and the input's `offsets`, become visible at once.

        Without transactions: what was sent has arrived; the offsets are the caller's business. Raises
        Aborted: then the caller asks the brokers which offsets hold, since a commit whose answer was lost
        may have happened; AdaptdError when the brokers are away for too long.
        """
        begun = time.monotonic()
        try:
            if self.name:
                producer = self.producer
                self.insist(
                    lambda seconds: self.guarded(
                        partial(producer.send_offsets_to_transaction, offsets, group, seconds)
                    ),
                    "the positions could not be added to the transaction",
                )
                self.insist(producer.commit_transaction, "a transaction could not be committed")
                self.replaced = 0
                self.is_open = False
            else:
                self.flush()
                self.is_open = False
        finally:
            self.blocked_seconds += time.monotonic() - begun

    def guarded(self, call: Callable[[], None]) -> None:
        """A call that may hang. Raises Aborted then."""
        try:
            self.caller.call(call, HANGING_SECONDS)
        except TimeoutError:
            # The hanging thread keeps what it hangs in; taking that apart would hang as well.
            self.caller, self.is_hanging = kafka_client.Caller(), True
            raise Aborted("the Kafka client does not come back from adding positions") from None

    def insist(self, call: Callable[[float], Any], failed: str) -> None:
        """Make the call until it is done, the transaction has to be aborted, or the time is up."""
        end = time.monotonic() + self.config.timeout_seconds
        while True:
            try:
                call(CALL_SECONDS)
                return
            except KafkaException as error:
                why: KafkaError = error.args[0]
                # A conflict: the client never comes back from a commit whose producer was shut out meanwhile.
                is_stuck = why.code() == KafkaError._CONFLICT
                if why.fatal() or why.txn_requires_abort() or is_stuck:
                    raise Aborted(f"{failed}: {kafka_client.words(why)}") from error
                if not why.retriable():
                    raise AdaptdError(self.gone(f"{failed}: {kafka_client.words(why)}")) from error
                if time.monotonic() > end:
                    raise AdaptdError(self.gone(f"{failed}: {kafka_client.words(why)}")) from error
                time.sleep(0.05)

    def abort(self) -> None:
        """Nothing that was sent since the last commit will be seen. Raises AdaptdError."""
        self.is_open, self.failure = False, None
        if not self.name:
            self.producer.purge()
            self.producer.poll(0)
            self.failure = None
            return
        if self.is_hanging:
            self.is_hanging = False
            self.replace(Aborted("the Kafka client hangs"))
            return
        try:
            self.insist(self.producer.abort_transaction, "a transaction could not be aborted")
        except Aborted as error:
            self.replace(error)

    def replace(self, why: Aborted) -> None:
        """The brokers have shut this producer out, as they do when its transaction took too long."""
        self.replaced += 1
        if self.replaced > REPLACED_MAX:
            raise AdaptdError(self.gone(f"the producer is shut out again and again: {why}")) from why
        self.producer = self.connect(self.name)

    def gone(self, what: str) -> str:
        return (
            f"sink: {what}. Look after the brokers and their log, then start adaptd again: nothing is lost."
        )

    # For a source that is not Kafka: at least once.

    def write(self, lines: bytes) -> None:
        topic = self.config.topic
        for line in lines.split(b"\n"):
            while line:
                try:
                    self.producer.produce(topic, line)
                except BufferError:
                    self.make_room()
                else:
                    break

    def push(self, wait: bool = False) -> None:
        self.producer.poll(0.5 if wait else 0)

    def waiting_bytes(self) -> int:
        # What waits in librdkafka's queue goes out by itself; a full queue makes `write` wait.
        return 0

    def flush(self) -> None:
        """Raises Aborted when the brokers did not take a record in time."""
        end = time.monotonic() + self.config.timeout_seconds + CALL_SECONDS
        while self.producer.flush(CALL_SECONDS) and time.monotonic() < end:
            pass
        if self.failure is not None or len(self.producer):
            why = kafka_client.words(self.failure) if self.failure is not None else "no answer in time"
            raise Aborted(self.gone(f"records were not taken: {why}"))

    def position(self) -> State:
        return {}

    def seek(self, position: State) -> None:
        """What has gone out cannot be taken back."""

    def close(self) -> None:
        """Safe to call twice. An open transaction is aborted by the brokers."""
        self.producer.flush(CALL_SECONDS) if not self.name else self.producer.purge()
