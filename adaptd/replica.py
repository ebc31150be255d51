"""A daemon whose source is Kafka: one of several replicas, with a lane for each partition it has.

The order of a commit: the transaction of predictions, dead letters and positions first; then, now and then,
a checkpoint of each lane at the position just committed, as an object of its own that nobody ever changes;
its name travels with the positions of the next transaction. So of all
checkpoints that there are, the brokers name the one that counts, and they take names only from the owner.

A partition that comes is loaded beside the loop: committed position T, the checkpoint named there with its
position C at or before T, then the records from C to T once more in silence, then on from T. What a
transaction that failed has done to a lane is undone in the same way. The owner's producer is named there too,
from before its first output until it gives the partition away: what it left open when it died can be ended.
"""

import concurrent.futures
import contextlib
import hashlib
import pathlib
import threading
import time
from typing import Any

import msgspec
import numpy as np
from confluent_kafka import KafkaException, TopicPartition

from adaptd import config as configuration
from adaptd import events, kafka_client, metrics, reload
from adaptd.answers import formatted
from adaptd.checkpoint import CheckpointInfo
from adaptd.contracts import Sink, Source
from adaptd.daemon import Daemon
from adaptd.engine import Lane
from adaptd.errors import AdaptdError, CheckpointError, UsageError
from adaptd.lane_keeper import LaneKeeper, Part
from adaptd.requests import fault
from adaptd.sinks.kafka import Aborted, KafkaSink
from adaptd.sources.kafka import ConsumerFailed, Fetch, KafkaSource

# How long the loop waits for records, and looks for requests meanwhile.
POLL_SECONDS = 0.1
BUSY_POLL_SECONDS = 0.01
# Work between two looks at the clock, unless somebody may be waiting for an answer over HTTP.
PIECE_SECONDS = 0.1
# A smaller piece costs more a row; for this many rows the look may come later, but not later than that.
PIECE_ROWS_MIN = 512
PIECE_SECONDS_MAX = 1.0
# Lanes that are loaded at the same time.
LOADERS = 2
# A partition that goes takes a fresh checkpoint along if saving took no longer, the last time.
PARTING_SECONDS = 2.0
# Transactions that may fail one after the other. Each waits twice as long as the one before: that the group
# has moved on without us the brokers tell transactions at once, and the consumer with its next heartbeat.
ABORTS_MAX = 10
ABORTED_SECONDS = 0.05
ABORTED_SECONDS_MAX = 1.0


class Loading(msgspec.Struct):
    """A partition whose lane is being loaded."""

    begun: float
    given_up: threading.Event
    future: "concurrent.futures.Future[Part | None]"


class Replica(Daemon):
    """See the module. Raises AdaptdError."""

    source: KafkaSource  # type: ignore[assignment]
    sink: KafkaSink
    takes_writes = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.parts: dict[int, Part] = {}
        self.loading: dict[int, Loading] = {}
        self.to_save: list[int] = []
        self.transactions = self.aborted = self.aborted_in_a_row = 0
        self.is_leaving = False
        super().__init__(*arguments, **options)
        self.keeper = LaneKeeper(self.config, self.source, self.sink, self.log)
        self.idle_lane = self.lane
        """Stands for the lanes while there is none."""
        self.loaders = concurrent.futures.ThreadPoolExecutor(LOADERS, "loader")
        self.closing.callback(self.loaders.shutdown, wait=False, cancel_futures=True)
        handler = kafka_client.Reporter(lambda text: self.log.emit(events.BrokerReported(detail=text)))
        kafka_client.LOG.addHandler(handler)
        self.closing.callback(kafka_client.LOG.removeHandler, handler)
        # Closed first: leaving the group calls back, and wants the others still there.
        self.closing.callback(self.source.close)

    def open_source(self) -> Source:
        module, options = configuration.built("sources", self.config.source)
        source: Source = module.build(options, self.config.fields)
        return source

    def open_sink(self) -> Sink:
        module, options = configuration.built("sinks", self.config.sink, ("format",))
        source = self.source
        name = ""
        if options.delivery == "exactly_once":
            # After a restart the same name ends what its predecessor left open; a nameless replica gets
            # a name of its own, and whoever has its partitions next ends what it left open.
            own = (
                source.config.instance
                or hashlib.sha256(f"{time.time_ns()}{id(self)}".encode()).hexdigest()[:16]
            )
            name = source.producers + own
        sink: Sink = module.build(options, source.config.servers, source.client_options, name)
        return sink

    @property
    def keeps_checkpoints(self) -> bool:
        return True

    def lanes(self) -> list[Lane]:
        return [part.lane for part in self.parts.values()]

    def source_figures(self) -> dict[str, Any]:
        topic = self.source.config.topic
        return {
            "partitions": [
                metrics.PartitionFigures(
                    number, part.positions[topic], self.source.lag(topic, number, part.positions[topic])
                )
                for number, part in sorted(self.parts.items())
            ],
            "partitions_loading": len(self.loading),
            "transactions": self.transactions,
            "transactions_aborted": self.aborted,
            "blocked_seconds": self.sink.blocked_seconds,
        }

    # The loop.

    def resume(self, restore: int | None) -> None:
        if restore is not None:
            raise UsageError(
                "--restore must be left out with the source kafka: the brokers say which checkpoint of a "
                "partition counts. To go back, reset nothing; start another source.group."
            )
        self.desk.start()
        self.source.subscribe(self)

    def turn(self) -> bool:
        """Poll, predict and learn, write; then commit when it is time. False at the end."""
        if self.stopped_by:
            return False
        self.reload_if_due()
        self.desk.serve(is_idle=True)
        self.stages.start()
        try:
            fetches = self.source.poll(self.poll_seconds())
        except ConsumerFailed as error:
            self.join_anew(error)
            fetches = []
        self.stages.lap("poll")
        for fetch in fetches:
            try:
                self.take(fetch)
            except Aborted as error:
                # The other partitions' records are taken all the same: they would not come again.
                self.go_back(error)
        self.take_in()
        if self.sink.is_due or (not self.sink.is_open and self.unpublished()):
            self.commit_transaction()
        if self.checkpoint_is_due.is_set():
            self.checkpoint_is_due.clear()
            self.to_save = list(self.parts)
        self.save_next()
        self.figures.publish_if_due()
        self.notifier.turn(self.status_line)
        return True

    def poll_seconds(self) -> float:
        """Until the transaction is due, or there may be something else to do."""
        wait = BUSY_POLL_SECONDS if self.loading or self.to_save else POLL_SECONDS
        if self.sink.is_open:
            wait = min(wait, self.sink.seconds_left)
        return wait

    def take(self, fetch: Fetch) -> None:
        """Records of one partition: those before the committed position in silence, the others aloud."""
        part = self.parts.get(fetch.partition)
        if part is None:
            return
        topic = fetch.topic
        start = int(np.searchsorted(fetch.offsets, part.positions[topic]))
        aloud = int(np.searchsorted(fetch.offsets, part.committed[topic]))
        at, n = start, len(fetch.offsets)
        while at < n and not self.stopped_by and self.parts.get(fetch.partition) is part:
            stop = min(at + self.piece_rows(), aloud if at < aloud else n)
            begun = self.clock.monotonic()
            self.work(part, fetch.cut(at, stop), is_silent=at < aloud)
            self.desk.speed.took(stop - at, self.clock.monotonic() - begun)
            at = stop
            self.desk.serve(is_idle=True)
            if self.sink.is_due:
                self.commit_transaction()

    def piece_rows(self) -> int:
        """Rows to work on before the next look at the clock and at the requests."""
        speed = self.desk.speed
        piece = max(speed.rows(PIECE_SECONDS), min(PIECE_ROWS_MIN, speed.rows(PIECE_SECONDS_MAX)))
        return min(piece, self.desk.piece_rows())

    def work(self, part: Part, fetch: Fetch, is_silent: bool) -> None:
        """One piece, from records to predictions in the open transaction."""
        lane = part.lane
        self.stages.start()
        part.log.is_silent = is_silent
        rows = self.source.decode(fetch, lane.schema.kinds)
        self.stages.lap("poll")
        answers = lane.process(rows)
        part.positions[fetch.topic] = int(fetch.offsets[-1]) + 1
        self.stages.lap("learn")
        if is_silent:
            lane.dead.clear()
            lane.delays.clear()
            # Counted before, by whoever did this the first time.
            self.figures.arrived(lane)
            return
        self.figures.taken(lane, rows)
        self.sink.begin()
        if answers:
            spellings = lane.classes.spellings
            lines = b"".join(formatted(self.lines, each, spellings) for each in answers).split(b"\n")
            lines.pop()
            keys = fetch.keys()
            if keys is not None:
                keys = self.keys_of_rows(keys, fetch, rows)
            self.sink.send(lines, keys, part.partition)
        if lane.dead:
            self.bury_of(part, fetch)
        self.stages.lap("write")

    def keys_of_rows(self, keys: list[bytes | None], fetch: Fetch, rows: Any) -> list[bytes | None]:
        """The key of each row that was predicted, in order."""
        asked = rows.has_features
        if rows.n == len(keys) and asked.all():
            return keys
        offsets = rows.positions[asked]
        places = np.searchsorted(fetch.offsets, np.where(offsets < 0, -1 - offsets, offsets))
        return [keys[place] for place in places.tolist()]

    def bury_of(self, part: Part, fetch: Fetch) -> None:
        """Records that could not be used, with the open transaction or to the file."""
        for reject in part.lane.dead:
            if not self.sink.config.dead_letters_topic:
                self.dead_letters.write(reject)
                continue
            is_row = reject.position >= 0
            topic = self.source.config.topic if is_row else self.source.config.labels_topic
            offset = reject.position if is_row else -1 - reject.position
            key = None
            if topic == fetch.topic:
                place = int(np.searchsorted(fetch.offsets, offset))
                if place < len(fetch.offsets) and fetch.offsets[place] == offset:
                    key = fetch.messages[place].key()
            self.sink.bury(reject, key, topic, part.partition, offset)
        part.lane.dead.clear()

    # Commits.

    def unpublished(self) -> bool:
        return any(not part.is_published for part in self.parts.values())

    def commit_transaction(self) -> None:
        """What was sent and the positions become visible at once; a transaction that fails is undone."""
        parts = [part for part in self.parts.values() if part.is_ahead or not part.is_published]
        if not parts and not self.sink.is_open:
            return
        reached = {part.partition: part.reached() for part in parts}
        offsets = [
            TopicPartition(topic, part.partition, offset, part.metadata())
            for part in parts
            for topic, offset in reached[part.partition].items()
        ]
        try:
            self.sink.begin()
            if self.sink.name:
                self.sink.commit(offsets, self.source.group_metadata())
            else:
                self.sink.commit([], None)
                self.commit_offsets(offsets)
        except Aborted as error:
            self.go_back(error)
            return
        self.transactions += 1
        self.aborted_in_a_row = 0
        for part in parts:
            part.committed = reached[part.partition]
            if not part.is_published:
                part.published = part.names
                self.loaders.submit(self.keeper.drop_older, part.partition, part.checkpoint)

    def commit_offsets(self, offsets: list[TopicPartition]) -> None:
        """At least once: the positions, after what was sent has arrived."""
        if not offsets:
            return
        try:
            self.source.commit(offsets)
        except KafkaException as error:
            raise Aborted(kafka_client.words(error)) from error

    def go_back(self, error: Aborted) -> None:
        """Lanes that the transaction that failed had records or the first name of are loaded anew."""
        self.aborted += 1
        self.aborted_in_a_row += 1
        self.log.emit(events.TransactionAborted(detail=str(error)))
        if self.aborted_in_a_row > ABORTS_MAX:
            raise AdaptdError(f"no transaction succeeds any more: {error}") from error
        if self.aborted_in_a_row > 1:
            time.sleep(min(ABORTED_SECONDS * 2 ** (self.aborted_in_a_row - 2), ABORTED_SECONDS_MAX))
        self.sink.abort()
        back = [part.partition for part in self.parts.values() if part.is_ahead or not part.is_named]
        self.drop(back, "aborted")
        with contextlib.suppress(KafkaException):
            self.source.pause(back)
        self.load_all(back)

    # Checkpoints.

    def save_next(self) -> None:
        """Start saving one lane, as it is after a commit; look after those on their way."""
        for part in self.parts.values():
            if part.saving is not None and part.saving.is_done():
                self.saved(part)
        if not self.to_save:
            return
        next_one = self.parts.get(self.to_save.pop())
        if next_one is not None and next_one.saving is None:
            self.commit_transaction()
            self.start_saving(next_one)

    def start_saving(self, part: Part) -> None:
        """An object at the committed position, if there is not one already."""
        if self.parts.get(part.partition) is part and not part.is_replaying and part.positions != part.saved:
            assert not part.is_ahead
            self.stages.start()
            part.saving, part.saving_at = self.keeper.start_saving(part), dict(part.positions)
            self.stages.lap("checkpoint")

    def saved(self, part: Part) -> str:
        """The object is there: the next transaction names it. Waits for it; why it failed, or nothing."""
        assert part.saving is not None
        pending, part.saving = part.saving, None
        try:
            info = pending.result()
        except CheckpointError as error:
            self.figures.checkpoint_failures += 1
            self.log.emit(events.CheckpointFailed(detail=str(error)))
            return str(error)
        part.checkpoint, part.saved = info.name, part.saving_at
        part.seconds = info.seconds
        self.number += 1
        self.figures.checkpoints += 1
        self.figures.checkpoint(
            CheckpointInfo(pathlib.Path(info.name), self.number, info.bytes, info.seconds)
        )
        self.log.flush()
        self.log.emit(
            events.CheckpointSaved(
                path=info.name, number=self.number, bytes=info.bytes, seconds=round(info.seconds, 3)
            )
        )
        return ""

    def save_all(self, partitions: list[int]) -> str:
        """Save these lanes and name the checkpoints; why one failed, or nothing."""
        self.commit_transaction()
        parts = [self.parts[number] for number in partitions if number in self.parts]
        for part in parts:
            if part.saving is not None:
                self.saved(part)
            self.start_saving(part)
        failures = [self.saved(part) for part in parts if part.saving is not None]
        self.commit_transaction()
        return next(filter(None, failures), "")

    def commit(self) -> str:
        """All that is done is committed, and a checkpoint of each lane is saved and named."""
        failure = self.save_all(list(self.parts))
        self.dead_letters.flush()
        self.log.flush()
        return failure

    def commit_or_fail(self) -> None:
        """The end: save, name, leave. Raises CheckpointError."""
        self.part_from(list(self.parts))
        failure = self.commit()
        self.is_leaving = True
        if failure:
            raise CheckpointError(failure)

    def take_config(self, new: configuration.Config) -> tuple[int, bytes]:
        """What no prediction depends on is taken at once; the rest needs a restart."""
        changed = [key for key in reload.differences(self.config, new) if reload.concerns_lane([key])]
        if changed:
            faults = [
                f"{key} must stay as it is while adaptd runs with the source kafka. Restart it."
                for key in changed
            ]
            self.log.emit(events.ConfigRefused(faults=faults))
            self.notifier.ready(self.status_line())
            return 422, fault("; ".join(faults))
        return super().take_config(new)

    # Partitions come and go: called from within `source.poll`.

    def assigned(self, partitions: list[int]) -> None:
        for number in partitions:
            self.log.emit(events.PartitionAssigned(partition=number))
        self.load_all(partitions)

    def revoked(self, partitions: list[int]) -> None:
        """Whoever gets them next goes on where we commit, from a fresh checkpoint if there is time."""
        if not self.is_leaving and self.stopped_by != "failed":
            self.part_from(partitions)
            self.save_all([number for number in partitions if self.is_quick(number)])
        self.drop(partitions, "revoked")

    def part_from(self, partitions: list[int]) -> None:
        """The next commit is our last for these, and says so: we leave nothing open that has to be ended."""
        for part in map(self.parts.get, partitions):
            if part is not None:
                part.is_parting = True

    def is_quick(self, partition: int) -> bool:
        part = self.parts.get(partition)
        return part is not None and part.seconds < PARTING_SECONDS

    def lost(self, partitions: list[int]) -> None:
        """They may be somebody else's already: nothing of them can be committed."""
        self.drop(partitions, "lost")
        if self.sink.is_open and not self.is_leaving:
            self.go_back(Aborted("partitions were lost"))

    def join_anew(self, error: ConsumerFailed) -> None:
        """Out of the group: as when all partitions were lost, and then a new member asks for its share."""
        self.log.emit(events.BrokerReported(detail=f"{error}; joining the group anew"))
        self.lost([*self.parts, *self.loading])
        self.source.renew(error)
        self.source.subscribe(self)

    def drop(self, partitions: list[int], reason: str) -> None:
        for number in partitions:
            loading = self.loading.pop(number, None)
            if loading is not None:
                loading.given_up.set()
                loading.future.add_done_callback(close_unused)
            part = self.parts.pop(number, None)
            if part is not None:
                self.figures.left(part.lane)
                part.lane.close()
                self.log.emit(events.PartitionDropped(partition=number, reason=reason))
        self.lane = next((self.parts[number].lane for number in sorted(self.parts)), self.idle_lane)

    # Loading, in a thread of its own.

    def load_all(self, partitions: list[int]) -> None:
        for number in partitions:
            given_up = threading.Event()
            future = self.loaders.submit(self.keeper.load, number, given_up)
            self.loading[number] = Loading(self.clock.monotonic(), given_up, future)

    def take_in(self) -> None:
        """Lanes that are loaded begin. Raises what went wrong with one."""
        for number, loading in list(self.loading.items()):
            if not loading.future.done():
                continue
            part = loading.future.result()
            if part is None:
                del self.loading[number]
                continue
            try:
                self.source.begin(number, part.positions)
            except KafkaException as error:
                # The partition is on its way; the next turn tries again.
                kafka_client.LOG.info("%s", kafka_client.words(error))
                continue
            del self.loading[number]
            self.parts[number] = part
            self.figures.arrived(part.lane)
            self.lane = self.parts[min(self.parts)].lane
            topic = self.source.config.topic
            self.log.emit(
                events.PartitionStarted(
                    partition=number,
                    checkpoint=part.checkpoint,
                    replayed=part.committed[topic] - part.positions[topic],
                    seconds=round(self.clock.monotonic() - loading.begun, 3),
                )
            )
        # Before a lane's first record is polled: whoever has it after our death finds the checkpoint that the
        # output came from, and whose open transaction to end.
        if not all(part.is_named for part in self.parts.values()):
            self.commit_transaction()


def close_unused(future: "concurrent.futures.Future[Part | None]") -> None:
    """A lane that was loaded for nothing."""
    if not future.cancelled() and future.exception() is None and (part := future.result()) is not None:
        part.lane.close()
