"""Every log event, one class each, and where it goes: the log, the journal, a counter.

An event is one JSON line on stderr, or a line for people when stderr is a terminal. The decisions of the
learning system go to the journal too, numbered. Every event moves `adaptd_events_total{event}`. Nothing
is emitted for a row.
"""

import contextlib
import datetime
import math
import re
import threading
from collections.abc import Callable
from typing import Any, ClassVar, Literal, Protocol, TextIO

import msgspec
import numpy as np

from adaptd.clock import Clock
from adaptd.contracts import State
from adaptd.errors import AdaptdError
from adaptd.journal import Journal

Level = Literal["info", "warning", "error"]
LEVELS: tuple[Level, ...] = ("info", "warning", "error")


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened. The class name in snake case is the event's name."""

    level: ClassVar[Level] = "info"
    decided: ClassVar[bool] = False
    """Follows from the input alone, so a replay emits it again; it goes to the journal. Such an event
    has a field `row`."""
    logged: ClassVar[bool] = True
    """False: for the journal only."""


class Decision(Event, frozen=True, kw_only=True):
    """An event of the learning system."""

    decided: ClassVar[bool] = True

    row: int
    """Labelled rows learned so far."""


class DaemonStarted(Event, frozen=True, kw_only=True):
    version: str
    config: str | None = None
    """The configuration file, when there is one."""
    learners: list[str] = []
    seed: int = 0


class DaemonStopped(Event, frozen=True, kw_only=True):
    reason: str
    """`end_of_input`, `sigterm`, `sigint`, `output_closed`, `failed`."""
    rows: int
    seconds: float


class HttpStarted(Event, frozen=True, kw_only=True):
    listen: str
    """Address and port that were taken."""


class TaskDecided(Decision, frozen=True, kw_only=True):
    task: str
    reason: str
    """`configured`, `first_label`, `non_integer_label`, `distinct_integers`."""


class LayoutGrown(Decision, frozen=True, kw_only=True):
    features: list[str] = []
    """Names that are new; cut to the first ten."""
    classes: list[str] = []
    n_features: int
    n_classes: int


class WarningRaised(Decision, frozen=True, kw_only=True):
    detector: str
    signal: str
    value: float = math.nan
    """What the detector compares with its threshold, or the signal's mean."""


class DriftDetected(Decision, frozen=True, kw_only=True):
    level: ClassVar[Level] = "warning"
    detector: str
    signal: str
    value: float = math.nan
    change_rows: int = 0
    """Rows since the estimated change; 0 when unknown."""


class CovariateShiftDetected(Decision, frozen=True, kw_only=True):
    """Inputs lie elsewhere than they did. Nothing is reset for it."""

    level: ClassVar[Level] = "warning"
    predicted_rows: int
    """Rows predicted so far."""
    features: list[str] = []
    """Which have moved; cut to the first ten."""


class UnlabelledDriftSuspected(Decision, frozen=True, kw_only=True):
    """Most rows have no label yet, and the blend is less sure, or its learners agree less, than they did."""

    level: ClassVar[Level] = "warning"
    predicted_rows: int
    signals: list[str]
    """`uncertainty`, `disagreement`."""
    expected_accuracy: float = math.nan
    """Estimated from confidence."""


class RatesBoosted(Decision, frozen=True, kw_only=True):
    factor: float
    """The greatest."""
    half_life_rows: float
    """Of that one."""
    factors: dict[str, float] = {}
    """Of every learner that has a learning rate."""
    reason: str = "drift_detected"


class BoostsCompared(Decision, frozen=True, kw_only=True):
    """Copies of the learners have met a drift with boosts of several sizes."""

    rows: int
    """Labelled rows of the trial."""
    gains: dict[str, dict[str, float]]
    """By learner and boost: the share of the loss without a boost that it saved."""
    chosen: dict[str, str]
    """By learner: what the next drift is met with."""


class RatesRestored(Decision, frozen=True, kw_only=True):
    learners: list[str] = []
    boosted_row: int = 0
    """The row at which they were boosted."""


class ChampionChanged(Decision, frozen=True, kw_only=True):
    champion: str
    previous: str | None
    margin: float = math.nan
    """By how much its fading loss is lower."""


class ChampionPinned(Decision, frozen=True, kw_only=True):
    champion: str | None
    """None: let go again."""


class WeightsReported(Decision, frozen=True, kw_only=True):
    """Now and then, so that the journal alone shows how the pool developed."""

    logged: ClassVar[bool] = False
    weights: dict[str, float]
    losses: dict[str, float]
    learning_rates: dict[str, float] = {}


class LearnerSetAside(Decision, frozen=True, kw_only=True):
    level: ClassVar[Level] = "warning"
    learner: str
    reason: str
    """`raised`, `not_finite`, `too_big`, `too_slow`."""
    detail: str = ""


class LearnerReset(Decision, frozen=True, kw_only=True):
    learner: str
    reason: str


class LearnerJoined(Decision, frozen=True, kw_only=True):
    """The default pool has it where a category has many codes, and now one has."""

    learner: str


class LearnerEnabled(Decision, frozen=True, kw_only=True):
    """It goes on with what it had learned."""

    learner: str


class CommandRefused(Decision, frozen=True, kw_only=True):
    """When its control point came, a command could not be followed any more."""

    level: ClassVar[Level] = "warning"
    learner: str
    action: str
    reason: str
    """`unknown`, `last_one`, `not_pinned`."""


class LaneReconfigured(Decision, frozen=True, kw_only=True):
    """A new configuration has taken effect."""

    learners: list[str]
    fresh: list[str]
    """Parts that start fresh."""


class LearnerFrozen(Decision, frozen=True, kw_only=True):
    learner: str
    frozen: bool = True
    """False: it learns again."""


class OverloadDetected(Decision, frozen=True, kw_only=True):
    """The student answers, as rows come faster than the pool can answer them within the budget."""

    level: ClassVar[Level] = "warning"
    learners: list[str]
    """Those that rest: the dearest for their weight."""
    stride: int
    """They work on one operation in so many."""


class OverloadEnded(Decision, frozen=True, kw_only=True):
    """The blend answers again, and all learners work."""


class ConceptStored(Decision, frozen=True, kw_only=True):
    """What was known at a stable point is kept."""

    concept: str
    noted: int
    """Labelled row of the stable point."""
    member: str
    """The learner that stays awake for it, frozen."""
    learners: list[str]
    """Whose states are kept."""
    loss: float
    """The member's: half a Brier score, or about its mean absolute error."""


class ConceptRecalled(Decision, frozen=True, kw_only=True):
    """A concept holds again: the learners go on from what they knew then."""

    level: ClassVar[Level] = "warning"
    concept: str
    first_seen: int
    """Labelled row at which it was first noted."""
    learners: list[str]
    """Those that go on from their kept states."""
    evidence: float
    """That the concept's frozen learner is better than the live one."""
    distance: float
    """Between its rows and those of now, by their fingerprints."""


class ConceptDropped(Decision, frozen=True, kw_only=True):
    """It made room for another."""

    concept: str
    first_seen: int
    utility: float


class ChallengerRaised(Decision, frozen=True, kw_only=True):
    """A learner starts in the background; one control interval later it joins."""

    challenger: str
    """Its place."""
    learner: str
    """The relative that it is to be better than."""
    action: str
    """`fresh`, `warm`, `mutate`."""
    reason: str
    """`warning`, `drift`."""
    replay_rows: int
    """Rows since the estimated change that it begins with."""
    options: dict[str, Any] = {}


class ChallengerPromoted(Decision, frozen=True, kw_only=True):
    """It has taken its relative's slot."""

    level: ClassVar[Level] = "warning"
    challenger: str
    learner: str
    action: str
    evidence: float
    """That it is better."""
    loss_saved: float | None
    """The share of its relative's loss, on the rows of the trial."""
    options: dict[str, Any] = {}


class ChallengerRetired(Decision, frozen=True, kw_only=True):
    challenger: str
    learner: str
    action: str
    reason: str
    """`worse`, `no_better`, `failed`, `too_big`, `relative_gone`, `concept_recalled`."""
    evidence: float
    """That it is better."""
    loss_saved: float | None
    """None: it was never compared."""


class RecordRejected(Event, frozen=True, kw_only=True):
    """One of the first ten records that could not be used, when there is no dead-letter file."""

    level: ClassVar[Level] = "warning"
    reason: str
    detail: str
    position: int
    raw: str
    """Its first 200 characters."""


class CheckpointSaved(Event, frozen=True, kw_only=True):
    path: str
    number: int
    bytes: int
    seconds: float


class CheckpointFailed(Event, frozen=True, kw_only=True):
    level: ClassVar[Level] = "error"
    detail: str


class CheckpointLoaded(Event, frozen=True, kw_only=True):
    path: str
    number: int
    bytes: int
    seconds: float
    fresh: list[str] = []
    """Parts that the configuration has changed and that start fresh."""


class CheckpointDamaged(Event, frozen=True, kw_only=True):
    level: ClassVar[Level] = "error"
    path: str
    detail: str


class ScoresReported(Event, frozen=True, kw_only=True):
    """At the end: how good the predictions were."""

    blend: dict[str, float | None]
    learners: dict[str, float | None]
    """The first score of each."""


class ConfigChanged(Event, frozen=True, kw_only=True):
    changed: list[str]
    """Keys."""
    reason: str = "reloaded"


class ConfigRefused(Event, frozen=True, kw_only=True):
    level: ClassVar[Level] = "error"
    faults: list[str]


class InboxTruncated(Event, frozen=True, kw_only=True):
    """The end of the input log was half written; nobody was told that it had been taken in."""

    level: ClassVar[Level] = "warning"
    path: str
    bytes: int


class JournalMovedAside(Event, frozen=True, kw_only=True):
    level: ClassVar[Level] = "warning"
    path: str
    """Where the damaged file is now."""


class JournalFailed(Event, frozen=True, kw_only=True):
    level: ClassVar[Level] = "error"
    detail: str


class HistoryFailed(Event, frozen=True, kw_only=True):
    """The live page's past is lost, or no more is kept of it; nothing else rests on it."""

    level: ClassVar[Level] = "warning"
    detail: str


class PartitionAssigned(Event, frozen=True, kw_only=True):
    """Its lane is loaded next; until then it is not read."""

    partition: int


class PartitionStarted(Event, frozen=True, kw_only=True):
    """Its lane is loaded. What was predicted before is done again in silence, from the checkpoint on."""

    partition: int
    checkpoint: str
    replayed: int
    """Offsets from the checkpoint's position to the committed one."""
    seconds: float
    """Since it was assigned, or had to go back."""


class PartitionDropped(Event, frozen=True, kw_only=True):
    partition: int
    reason: str
    """`revoked`, `lost`, `aborted`."""


class TransactionAborted(Event, frozen=True, kw_only=True):
    """Nothing of it was seen; its rows are done again."""

    level: ClassVar[Level] = "warning"
    detail: str


class BrokerReported(Event, frozen=True, kw_only=True):
    """What the Kafka client says; at most one a second."""

    level: ClassVar[Level] = "warning"
    detail: str


class SinkSlowed(Event, frozen=True, kw_only=True):
    """The output took its time; one event a stall, not one a write."""

    level: ClassVar[Level] = "warning"
    seconds: float


def event_name(event: type[Event] | Event) -> str:
    """`DriftDetected` is `drift_detected`."""
    cls = event if isinstance(event, type) else type(event)
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__).lower()


def _classes(root: type[Event]) -> list[type[Event]]:
    found: list[type[Event]] = []
    for cls in root.__subclasses__():
        found += _classes(cls) if cls is Decision else [cls]
    return found


NAMES: tuple[str, ...] = tuple(sorted(event_name(cls) for cls in _classes(Event)))


def _plain(value: Any) -> Any:
    """A NumPy number as Python's; what nobody foresaw as text, for a log line must not stop the daemon."""
    return value.item() if isinstance(value, np.generic) else repr(value)


class Emitter(Protocol):
    """What the parts that report need to know of the hub."""

    def emit(self, event: Event) -> None: ...


class Events:
    """Takes every event to where it belongs. Safe to call from several threads.

    `stream` is usually `sys.stderr`. `level` is the lowest that is logged; counters and journal see all.
    """

    def __init__(
        self, clock: Clock, stream: TextIO, journal: Journal | None = None, level: Level = "info"
    ) -> None:
        self.counts = dict.fromkeys(NAMES, 0)
        self.seq = 0 if journal is None else journal.last_seq()
        """The number of the last journal entry. Without a checkpoint, old entries stay as they are."""
        self._clock = clock
        self._journal = journal
        self._level = level
        self._log = _Log(stream)
        self._lock = threading.RLock()

    def emit(self, event: Event, **where: int) -> None:
        """Log it, count it, and when it is a decision write it to the journal.

        where: of several lanes, which one it comes from.
        """
        name = event_name(event)
        wall = self._clock.wall()
        fields: dict[str, Any] = msgspec.to_builtins(event, enc_hook=_plain)
        fields |= where
        with self._lock:
            self.counts[name] += 1
            if event.logged and LEVELS.index(event.level) >= LEVELS.index(self._level):
                self._log.write(wall, event.level, name, fields)
            if event.decided:
                self.seq += 1
                row = fields.pop("row")
                self._with_journal(lambda journal: journal.append(self.seq, row, name, fields, wall))

    def set_level(self, level: Level) -> None:
        """The lowest level that is logged from now on."""
        self._level = level

    def flush(self) -> None:
        """Commit the journal. Before a checkpoint is saved: it must not name entries that are not there."""
        self._with_journal(lambda journal: journal.flush())

    def _with_journal(self, action: Callable[[Journal], None]) -> None:
        """A journal that cannot be written is reported and stops nothing: it keeps the entries."""
        if self._journal is None:
            return
        try:
            action(self._journal)
        except AdaptdError as error:
            self.emit(JournalFailed(detail=str(error)))

    def state(self) -> State:
        return {"seq": self.seq}

    def load_state(self, state: State) -> None:
        """Go on after the entry that the checkpoint knows; later ones in the journal are cut."""
        self.seq = state["seq"]
        if self._journal is not None:
            self._journal.cut_after(self.seq)


class _Log:
    """Writes lines to a stream, for machines or, on a terminal, for people."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._for_people = stream.isatty()

    def write(self, wall: float, level: Level, name: str, fields: dict[str, Any]) -> None:
        stamp = datetime.datetime.fromtimestamp(wall, datetime.UTC)
        if self._for_people:
            shown = " ".join(f"{key}={_shown(value)}" for key, value in fields.items())
            line = f"{stamp:%H:%M:%S} {level:<7} {name}  {shown}".rstrip()
        else:
            ts = f"{stamp:%Y-%m-%dT%H:%M:%S}.{stamp.microsecond // 1000:03d}Z"
            line = msgspec.json.encode({"ts": ts, "level": level, "event": name, **fields}).decode()
        # Who closes stderr, or fills its disk, wants predictions all the same.
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(line + "\n")
            self._stream.flush()


def _shown(value: Any) -> str:
    """A value for people: floats with four digits, text with blanks in quotes, never a line break."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_shown(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_shown(entry) for entry in value) + "]"
    text = str(value)
    return text if text.isprintable() and text and " " not in text else repr(text)
