"""Lanes of Kafka partitions in the store of checkpoints: how one is found again, and how one is saved.

The committed position T of a partition has the name of a checkpoint beside it. That checkpoint stands at a
position C, at or before T: whoever loads it does the records from C to T again in silence. Objects of the
store never change, and names are published by transactions only, so a replica that was shut out can save
what it likes: nobody reads it. The name of the owner's producer stands there as well, for its heir.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import msgspec
from confluent_kafka import KafkaError, KafkaException

from adaptd import config as configuration
from adaptd import events, kafka_client, reload
from adaptd.checkpoint_objects import CheckpointObjects, Pending, Saved
from adaptd.contracts import State
from adaptd.engine import Lane
from adaptd.errors import AdaptdError, CheckpointError
from adaptd.sinks.kafka import KafkaSink
from adaptd.sources.kafka import KafkaSource

FRESH = "To start fresh, choose another source.group."
# A commit that was under way is over by then; positions that still wait for one are of an owner that died.
COMMIT_SECONDS = 0.5

Answer = TypeVar("Answer")


class Named(msgspec.Struct):
    """What stands in the metadata of a committed position."""

    checkpoint: str
    producer: str = ""
    """Whose transactions may have outputs of this partition; empty when its owner left in order."""


class LaneLog:
    """What a lane reports, with its partition; nothing while it does again what was reported before."""

    def __init__(self, log: events.Events, partition: int) -> None:
        self.log, self.partition = log, partition
        self.is_silent = True

    def emit(self, event: events.Event) -> None:
        if not self.is_silent:
            self.log.emit(event, partition=self.partition)


class Part:
    """A partition that is at work: its lane, and where it stands."""

    def __init__(self, partition: int, lane: Lane, log: LaneLog) -> None:
        self.partition, self.lane, self.log = partition, lane, log
        self.positions: dict[str, int] = {}
        """By topic: the next record that the lane has not seen."""
        self.committed: dict[str, int] = {}
        """By topic: the committed position. Records before it are done in silence."""
        self.checkpoint = ""
        """The name that the next transaction publishes."""
        self.producer = ""
        """And the producer, which stands there before it sends its first output."""
        self.is_parting = False
        """No output comes any more, and the next transaction says so."""
        self.published = Named("")
        """What stands beside the committed position."""
        self.saved: dict[str, int] = {}
        """Positions of that checkpoint."""
        self.seconds = 0.0
        """How long saving took, the last time."""
        self.saving: Pending[Saved] | None = None
        self.saving_at: dict[str, int] = {}
        """Positions of the checkpoint on its way to the store."""

    @property
    def is_replaying(self) -> bool:
        return any(self.positions[topic] < at for topic, at in self.committed.items())

    @property
    def is_ahead(self) -> bool:
        """Whether it has seen records that are not committed."""
        return any(self.positions[topic] > at for topic, at in self.committed.items())

    @property
    def names(self) -> Named:
        """What the next transaction writes beside the committed position."""
        return Named(self.checkpoint, "" if self.is_parting else self.producer)

    @property
    def is_named(self) -> bool:
        """Whether its outputs may come: who sends them stands there, and what they come from."""
        return self.is_parting or bool(self.published.checkpoint and self.published.producer == self.producer)

    @property
    def is_published(self) -> bool:
        return self.published == self.names

    def metadata(self) -> str:
        return msgspec.json.encode(self.names).decode()

    def reached(self) -> dict[str, int]:
        """What can be committed: never back behind what is."""
        return {topic: max(at, self.committed[topic]) for topic, at in self.positions.items()}


class LaneKeeper:
    """Loads and saves the lanes of one group. The methods may be called from several threads."""

    def __init__(
        self, config: configuration.Config, source: KafkaSource, sink: KafkaSink, log: events.Events
    ) -> None:
        self.config, self.source, self.sink, self.log = config, source, sink, log
        self.ending: set[str] = set()
        """Producers whose open transaction is being ended."""
        self.cluster = source.cluster()
        told = config.checkpoint
        # Replicas share the store; journal and dead letters stay in the directory of each.
        self.store = CheckpointObjects(
            told.url or os.path.join(told.directory, "lanes"), told.options, told.seconds_max
        )

    def name(self, partition: int) -> str:
        """The lane's name in the store: groups and clusters may share it."""
        told = self.source.config
        return f"{self.cluster}/{told.group}/{told.topic}/{partition}"

    def start_saving(self, part: Part) -> Pending[Saved]:
        """An object with the lane as it is; it may go on meanwhile."""
        state: State = {
            "lane": part.lane.state(),
            "positions": dict(part.positions),
            "cluster": self.cluster,
            "group": self.source.config.group,
        }
        # The number grows with the lane, whoever owns it.
        return self.store.start(self.name(part.partition), sum(part.positions.values()), state)

    def drop_older(self, partition: int, name: str) -> None:
        """Delete what `name` has made useless. What cannot be deleted is tried again with the next."""
        with contextlib.suppress(CheckpointError):
            self.store.drop_older(self.name(partition), name, self.config.checkpoint.keep)

    def load(self, partition: int, given_up: threading.Event) -> Part | None:
        """The lane as its checkpoint has it; None when the partition is not wanted any more."""
        committed = self.settled(partition, given_up)
        if committed is None:
            return None
        log = LaneLog(self.log, partition)
        lane = Lane(self.config, log)
        part = Part(partition, lane, log)
        try:
            if committed:
                self.restore(part, committed)
            else:
                for topic in self.source.topics:
                    start = self.asked(partial(self.source.start, topic, partition), given_up)
                    if start is None:
                        lane.close()
                        return None
                    part.positions[topic] = start
                part.committed = dict(part.positions)
                # Named before the first output, so that a crash finds what the output came from.
                info = self.start_saving(part).result()
                part.checkpoint, part.saved, part.seconds = info.name, dict(part.positions), info.seconds
        except BaseException:
            lane.close()
            raise
        part.producer = self.sink.name
        return part

    def restore(self, part: Part, committed: dict[str, tuple[int, str]]) -> None:
        """Raises CheckpointError when the committed position has no checkpoint that leads there."""
        place = (
            f"partition {part.partition} of {self.source.config.topic!r}, group {self.source.config.group!r}"
        )
        missing = [topic for topic in self.source.topics if topic not in committed]
        found = self.named(committed)
        if missing or not found.checkpoint:
            raise CheckpointError(
                f"{place}: the committed position must come from adaptd with the same topics; it names no "
                f"checkpoint. Somebody else has committed in this group, or reset it. {FRESH}"
            )
        name = found.checkpoint
        state = self.store.load(name)
        part.committed = {topic: offset for topic, (offset, _) in committed.items()}
        part.positions = {topic: int(at) for topic, at in state["positions"].items()}
        if set(part.positions) != set(self.source.topics) or state["cluster"] != self.cluster:
            raise CheckpointError(
                f"{place}: {name} is of other topics or of another cluster. Correct source.servers and the "
                f"topics. {FRESH}"
            )
        for topic, at in part.positions.items():
            if at > part.committed[topic]:
                raise CheckpointError(
                    f"{place}: {name} stands at {at} of {topic!r}, behind the committed position "
                    f"{part.committed[topic]}. The group was reset; adaptd cannot unlearn. {FRESH}"
                )
        reload.resume(part.lane, state["lane"])
        part.checkpoint, part.saved, part.published = name, dict(part.positions), found

    def named(self, committed: dict[str, tuple[int, str]]) -> Named:
        """What stands beside a committed position; nothing when it is not of adaptd."""
        try:
            return msgspec.json.decode(committed[self.source.config.topic][1], type=Named)
        except (KeyError, msgspec.MsgspecError):
            return Named("")

    def settled(self, partition: int, given_up: threading.Event) -> dict[str, tuple[int, str]] | None:
        """Committed positions that no transaction is about to move; None once they are not wanted any more.

        What the former owner left open, if it died, is ended: its positions are waited for here, and readers
        of its outputs' partitions wait for it too, where the brokers would let it stand until its time is up.
        """
        begun = time.monotonic()
        ended = ""

        def question() -> dict[str, tuple[int, str]]:
            nonlocal ended
            try:
                return self.source.committed(partition)
            except KafkaException as error:
                is_open = error.args[0].code() == KafkaError.UNSTABLE_OFFSET_COMMIT
                if is_open and not ended and time.monotonic() - begun > COMMIT_SECONDS:
                    ended = self.end_of(self.source.committed(partition, is_settled=False))
                raise

        committed = self.asked(question, given_up)
        if committed and not ended:
            self.end_of(committed)
        return committed

    def end_of(self, committed: dict[str, tuple[int, str]]) -> str:
        """End the open transaction of the producer named beside `committed`, not waiting; its name."""
        name = self.named(committed).producer
        # Whoever may commit in this group must not shut out producers of others.
        is_ours = name.startswith(self.source.producers)
        if not is_ours or name == self.sink.name or name in self.ending:
            return name
        self.ending.add(name)

        def end() -> None:
            try:
                self.sink.end(name)
            except AdaptdError as error:
                kafka_client.LOG.warning("%s is left to the brokers: %s", name, error)
            finally:
                self.ending.discard(name)

        threading.Thread(target=end, name="kafka ender", daemon=True).start()
        return name

    def asked(self, question: Callable[[], Answer], given_up: threading.Event) -> Answer | None:
        """The brokers' answer; None once it is not wanted any more. Raises AdaptdError when none comes."""
        end = time.monotonic() + self.sink.config.timeout_seconds
        while not given_up.is_set():
            try:
                return question()
            except KafkaException as error:
                if time.monotonic() > end:
                    raise AdaptdError(
                        f"source: the brokers do not say where to go on: {kafka_client.words(error)}. "
                        "Look after them, then start adaptd again: nothing is lost."
                    ) from error
            given_up.wait(0.1)
        return None
