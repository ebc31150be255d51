"""Every Prometheus metric, built when somebody asks for it.

The engine publishes a `Snapshot`, plain numbers, every control point or so; a scrape turns the newest one
into metric families. So the rows pay nothing, every series exists from the start, and a scrape sees
numbers of one moment. Labels are names from the configuration and enums, never anything from the data.
"""

import bisect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec
from prometheus_client import ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector, CollectorRegistry

from adaptd.clock import Clock

STAGES = ("poll", "learn", "write", "blocked", "checkpoint")
STAGE_BOUNDS_SECONDS = (
    *(0.00001, 0.000025, 0.0001, 0.00025, 0.001, 0.0025, 0.01, 0.025),
    *(0.1, 0.25, 1.0, 2.5, 10.0, 30.0),
)
LABEL_DELAY_BOUNDS_ROWS = (0.0, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
EXPECTED_OF = ("predicted", "labelled")
EXPIRY_REASONS = ("rows", "bytes", "age")


class Histogram:
    """Counts of values by bucket, in plain lists: under a microsecond a value.

    >>> histogram = Histogram((1.0, 10.0))
    >>> for value in (0.5, 1.0, 7.0, 99.0):
    ...     histogram.add(value)
    >>> histogram.counts, histogram.sum
    ([2, 1, 1], 107.5)
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        """Values up to each bound and above the one before; the last: above all of them."""
        self.sum = 0.0

    def add(self, value: float, count: int = 1) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += count
        self.sum += value * count

    def copy(self) -> "Histogram":
        other = Histogram(self.bounds)
        other.counts = self.counts.copy()
        other.sum = self.sum
        return other


class StageTimes:
    """How long each stage of a turn of the loop took. One thread only.

    `lap(stage)` ends a stage that began at the last `lap` or `start`; `monotonic` is the clock's.
    """

    def __init__(self, monotonic: Callable[[], float], stages: Iterable[str] = STAGES) -> None:
        self.histograms = {stage: Histogram(STAGE_BOUNDS_SECONDS) for stage in stages}
        self._monotonic = monotonic
        self._last = monotonic()

    def start(self) -> None:
        """Time since the last lap belongs to no stage."""
        self._last = self._monotonic()

    def lap(self, stage: str) -> float:
        """Seconds that `stage` took."""
        now = self._monotonic()
        seconds = now - self._last
        self._last = now
        histogram = self.histograms[stage]
        histogram.counts[bisect.bisect_left(STAGE_BOUNDS_SECONDS, seconds)] += 1
        histogram.sum += seconds
        return seconds

    def copy(self) -> dict[str, Histogram]:
        """For a `Snapshot`, which another thread reads."""
        return {stage: histogram.copy() for stage, histogram in self.histograms.items()}


class LearnerFigures(msgspec.Struct):
    """A learner as it stands. NaN: has no such thing, or not yet."""

    name: str
    """Its name in the configuration, or a slot's."""
    loss: float = math.nan
    """Fading mean: log loss, or the absolute error."""
    scores: dict[str, float] = {}
    """Fading, by name: accuracy, kappa; or mae, rmse."""
    weight: float = math.nan
    learning_rate: float = math.nan
    rate_scale: float = 1.0
    boost_factor: float = math.nan
    boost_half_life_rows: float = math.nan
    gradient_norm: float = math.nan
    step_norm: float = math.nan
    state_bytes: int = 0
    is_champion: bool = False
    is_set_aside: bool = False
    set_aside: str = ""
    """Why it is not used; empty while it is."""
    is_frozen: bool = False
    about: str = ""
    """Why it is in its place, for one that came by a decision of the daemon's."""


def _stage_histograms() -> dict[str, Histogram]:
    return {stage: Histogram(STAGE_BOUNDS_SECONDS) for stage in STAGES}


class PartitionFigures(msgspec.Struct):
    """Where a lane stands in its partition."""

    partition: int
    position: int
    """Offset of the next record."""
    lag_rows: int
    """Records that wait behind it; -1: unknown."""


class Snapshot(msgspec.Struct):
    """All numbers of one moment. Who publishes it changes nothing in it afterwards.

    Every key that a mapping will ever have is in it from the start, with 0.
    """

    version: str = ""
    task: str = ""
    rows: int = 0
    """Records with features or a label that were taken in."""
    predictions: int = 0
    labels: int = 0
    """Rows learned."""
    rejects: dict[str, int] = {}
    values_missing: dict[str, int] = {}
    duplicate_ids: int = 0
    labels_unknown: int = 0
    labels_expired: dict[str, int] = msgspec.field(default_factory=lambda: dict.fromkeys(EXPIRY_REASONS, 0))
    label_buffer_rows: int = 0
    label_buffer_bytes: int = 0
    label_delay_rows: Histogram = msgspec.field(default_factory=lambda: Histogram(LABEL_DELAY_BOUNDS_ROWS))
    learners: list[LearnerFigures] = []
    blend_loss: float = math.nan
    blend_scores: dict[str, float] = {}
    expected_accuracy: dict[str, float] = msgspec.field(
        default_factory=lambda: dict.fromkeys(EXPECTED_OF, math.nan)
    )
    """Fading, estimated from confidence: of all predicted rows, and of those whose label has come."""
    coverage: dict[str, float | None] = {}
    """`Coverage.figures`; empty: none is asked for."""
    student_scores: dict[str, float] = {}
    """Fading; empty: there is no student."""
    warnings: int = 0
    drifts: int = 0
    covariate_shifts: int = 0
    unlabelled_drifts: int = 0
    switches: int = 0
    concepts: int = 0
    """Kept in the memory."""
    recalls: int = 0
    challengers: dict[str, int] = {}
    """By action and what became of it, as in `fresh_promoted`."""
    stages: dict[str, Histogram] = msgspec.field(default_factory=_stage_histograms)
    checkpoint_time: float = math.nan
    """Wall time of the last one saved or loaded; its age is counted when somebody asks."""
    checkpoint_seconds: float = math.nan
    checkpoint_bytes: int = 0
    checkpoints: int = 0
    checkpoint_failures: int = 0
    events: dict[str, int] = {}
    source_lag_bytes: int = -1
    """-1: unknown."""
    partitions: list[PartitionFigures] = []
    """Those of a Kafka source that are at work here."""
    partitions_loading: int = 0
    transactions: int = 0
    transactions_aborted: int = 0
    blocked_seconds: float = 0.0
    """Time spent waiting for the brokers to take output."""
    features: int = 0
    classes: int = 0
    last_row_time: float = math.nan
    """The greatest event time seen."""
    learner_kinds: dict[str, str] = {}
    speaker: str = ""
    """The learner whose prediction is the output; `blend` when it is a blend."""
    is_overloaded: bool = False
    rows_per_second: float = math.nan
    uptime_seconds: float = 0.0
    stopped_by: str = ""


class Metrics(Collector):
    """Puts adaptd's metrics, and those of the process, on `registry`."""

    def __init__(self, registry: CollectorRegistry, clock: Clock, snapshot: Snapshot | None = None) -> None:
        self._clock = clock
        self._snapshot = snapshot or Snapshot()
        self._base = Snapshot()
        self._published = clock.monotonic()
        registry.register(self)
        ProcessCollector(registry=registry)

    def publish(self, snapshot: Snapshot) -> None:
        """The next scrape shows `snapshot`. One reference changes hands, so any thread may call this."""
        self._snapshot = snapshot
        self._published = self._clock.monotonic()

    def begin(self, snapshot: Snapshot) -> None:
        """Counters count from here. What a checkpoint brought was counted by the process before.

        After a crash a checkpoint is behind what was scraped last; a counter that went back a little would
        be taken for one that began at 0, and its whole value for an increase.
        """
        self._base = snapshot
        self.publish(snapshot)

    @property
    def snapshot(self) -> Snapshot:
        """What was published last."""
        return self._snapshot

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering does not scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        s = since(self._snapshot, self._base)
        yield InfoMetricFamily(
            "adaptd_build", "The version that runs, and its task.", {"version": s.version, "task": s.task}
        )
        yield from _row_families(s)
        yield from _learner_families(s)
        yield from _daemon_families(s, self._clock.wall() - s.checkpoint_time)
        # The other figures stay as they were when the loop hangs; this one rises.
        yield _gauge(
            "adaptd_turn_age_seconds",
            "Time since the loop turned and published its figures; below 1 while it turns.",
            self._clock.monotonic() - self._published,
        )


# Fields of a `Snapshot` that a checkpoint brings along.
LASTING_COUNTS = (
    "predictions", "labels", "rejects", "values_missing", "duplicate_ids", "labels_unknown", "labels_expired",
    "warnings", "drifts", "switches", "recalls", "challengers",
)  # fmt: skip


def since(now: Snapshot, base: Snapshot) -> Snapshot:
    """`now` with the counts of `base` taken off.

    >>> since(Snapshot(labels=7, rejects={"a": 3, "b": 1}), Snapshot(labels=5, rejects={"a": 1})).rejects
    {'a': 2, 'b': 1}
    """

    def less(count: Any, before: Any) -> Any:
        if isinstance(count, dict):
            return {key: value - before.get(key, 0) for key, value in count.items()}
        return count - before

    counts = {name: less(getattr(now, name), getattr(base, name)) for name in LASTING_COUNTS}
    return msgspec.structs.replace(now, **counts)


def _row_families(s: Snapshot) -> Iterator[Metric]:
    yield _counter("adaptd_rows", "Records taken in, with features or a label.", s.rows)
    yield _counter("adaptd_predictions", "Rows predicted.", s.predictions)
    yield _counter("adaptd_labels", "Rows learned.", s.labels)
    yield _counters("adaptd_rejects", "Records that could not be used.", "reason", s.rejects)
    yield _counters("adaptd_values_missing", "Values taken as missing.", "reason", s.values_missing)
    yield _counter("adaptd_duplicate_ids", "Rows that replaced a waiting one of their id.", s.duplicate_ids)
    yield _counter("adaptd_labels_unknown", "Labels that found no row.", s.labels_unknown)
    yield _counters(
        "adaptd_labels_expired", "Rows whose label did not come in time.", "reason", s.labels_expired
    )
    yield _gauge("adaptd_label_buffer_rows", "Rows that wait for their label.", s.label_buffer_rows)
    yield _gauge("adaptd_label_buffer_bytes", "Bytes that these rows take.", s.label_buffer_bytes)
    delay = HistogramMetricFamily(
        "adaptd_label_delay_rows", "Predictions made between a row's prediction and its label."
    )
    delay.add_metric([], *_buckets(s.label_delay_rows))
    yield delay
    yield _gauge(
        "adaptd_overloaded", "1 while the student answers because rows come too fast.", int(s.is_overloaded)
    )
    yield _gauge("adaptd_features", "Features seen.", s.features)
    yield _gauge("adaptd_classes", "Classes seen; 0 for regression.", s.classes)
    yield _gauge("adaptd_last_row_timestamp_seconds", "Greatest event time seen.", s.last_row_time)
    yield _gauge("adaptd_source_lag_bytes", "Bytes waiting in the source; -1 if unknown.", s.source_lag_bytes)
    lag = GaugeMetricFamily(
        "adaptd_source_lag_rows",
        "Records of a Kafka partition that wait; -1 if unknown.",
        labels=["partition"],
    )
    position = GaugeMetricFamily(
        "adaptd_source_position", "Offset of the next record of a Kafka partition.", labels=["partition"]
    )
    for each in s.partitions:
        lag.add_metric([str(each.partition)], each.lag_rows)
        position.add_metric([str(each.partition)], each.position)
    yield lag
    yield position
    yield _gauge("adaptd_partitions", "Kafka partitions at work in this process.", len(s.partitions))
    yield _gauge("adaptd_partitions_loading", "Kafka partitions whose state is loaded.", s.partitions_loading)
    yield _counter("adaptd_transactions", "Kafka transactions committed.", s.transactions)
    yield _counter("adaptd_transactions_aborted", "Kafka transactions aborted.", s.transactions_aborted)
    yield _counter(
        "adaptd_blocked_seconds", "Time spent waiting for Kafka to take output.", s.blocked_seconds
    )


# Metric, what it says, the field of `LearnerFigures`.
_LEARNER_GAUGES = (
    ("adaptd_learner_loss", "Fading loss: log loss, or the mean absolute error.", "loss"),
    ("adaptd_learner_weight", "Share in the blend.", "weight"),
    ("adaptd_learner_learning_rate", "Learning rate in force, rate scale included.", "learning_rate"),
    ("adaptd_learner_rate_scale", "The controller's factor on the learning rate.", "rate_scale"),
    ("adaptd_learner_boost_factor", "Factor on the rate that the next drift is met with.", "boost_factor"),
    ("adaptd_learner_boost_half_life_rows", "Rows in which half of it wears off.", "boost_half_life_rows"),
    ("adaptd_learner_gradient_norm", "Fading mean length of a loss gradient.", "gradient_norm"),
    ("adaptd_learner_step_norm", "Fading mean length of a gradient step.", "step_norm"),
    ("adaptd_learner_state_bytes", "Bytes of the learner's state.", "state_bytes"),
    ("adaptd_learner_champion", "1 for the learner that is trusted most.", "is_champion"),
    ("adaptd_learner_set_aside", "1 for a learner that failed and is not used any more.", "is_set_aside"),
    ("adaptd_learner_frozen", "1 for a learner that predicts and does not learn.", "is_frozen"),
)


def nan_for_none(value: float | None) -> float:
    return math.nan if value is None else value


SCORE_WORDS = (
    "Fading score, prequential; calibration_error: mean distance between confidence and hits, in 15 bins."
)


def _learner_families(s: Snapshot) -> Iterator[Metric]:
    for name, text, field in _LEARNER_GAUGES:
        family = GaugeMetricFamily(name, text, labels=["learner"])
        for learner in s.learners:
            family.add_metric([learner.name], float(getattr(learner, field)))
        yield family
    scores = GaugeMetricFamily("adaptd_learner_score", SCORE_WORDS, labels=["learner", "score"])
    for learner in s.learners:
        for score, value in learner.scores.items():
            scores.add_metric([learner.name, score], value)
    yield scores
    yield _gauge("adaptd_blend_loss", "Fading loss of the blend.", s.blend_loss)
    blend = GaugeMetricFamily("adaptd_blend_score", f"The blend's. {SCORE_WORDS}", labels=["score"])
    for score, value in s.blend_scores.items():
        blend.add_metric([score], value)
    yield blend
    expected = GaugeMetricFamily(
        "adaptd_expected_accuracy",
        "Fading accuracy of the blend as its confidence lets expect: of all rows, and of those whose label "
        "came, to be held against adaptd_blend_score.",
        labels=["rows"],
    )
    for rows, value in s.expected_accuracy.items():
        expected.add_metric([rows], value)
    yield expected
    student = GaugeMetricFamily("adaptd_student_score", f"The student's. {SCORE_WORDS}", labels=["score"])
    for score, value in s.student_scores.items():
        student.add_metric([score], value)
    yield student
    about = s.coverage.get
    for name, text, share in (
        ("asked", "Share of labels that intervals or sets of classes shall hold", about("asked")),
        ("reached", "Share that they held", about("reached")),
        ("recent", "Share that they held, fading", about("recent")),
        ("worst_window", "Share that they held in the worst 1,000 rows", about("worst_window")),
    ):
        yield _gauge(f"adaptd_coverage_{name}", f"{text}; NaN: none is asked for.", nan_for_none(share))
    for size, text in (
        ("interval_width", "Fading mean width of the intervals"),
        ("set_size", "Fading mean number of classes in the sets"),
    ):
        fading = nan_for_none(about(f"recent_{size}"))
        yield _gauge(f"adaptd_{size}", f"{text}; NaN: none is asked for.", fading)
    yield _counter("adaptd_warnings", "Times that a drift detector warned.", s.warnings)
    yield _counter("adaptd_drifts", "Times that concept drift was detected.", s.drifts)
    yield _counter("adaptd_covariate_shifts", "Times that the inputs moved.", s.covariate_shifts)
    yield _counter(
        "adaptd_unlabelled_drifts",
        "Times that drift seemed possible on rows without labels.",
        s.unlabelled_drifts,
    )
    yield _gauge("adaptd_concepts", "Concepts kept in the memory.", s.concepts)
    yield _counter("adaptd_concept_recalls", "Times that a kept concept was found to hold again.", s.recalls)
    challengers = CounterMetricFamily(
        "adaptd_challengers", "Challengers, by how they were made and what became of them.",
        labels=["action", "outcome"],
    )  # fmt: skip
    for key, value in s.challengers.items():
        challengers.add_metric(key.split("_"), value)
    yield challengers
    yield _counter("adaptd_switches", "Times that another learner became champion.", s.switches)


def _daemon_families(s: Snapshot, checkpoint_age_seconds: float) -> Iterator[Metric]:
    stages = HistogramMetricFamily(
        "adaptd_stage_duration_seconds", "Time that a stage took of a turn of the loop.", labels=["stage"]
    )
    for stage, histogram in s.stages.items():
        stages.add_metric([stage], *_buckets(histogram))
    yield stages
    yield _gauge(
        "adaptd_checkpoint_age_seconds",
        "Time since the last checkpoint was saved or loaded.",
        checkpoint_age_seconds,
    )
    yield _gauge("adaptd_checkpoint_duration_seconds", "Time the last one took.", s.checkpoint_seconds)
    yield _gauge("adaptd_checkpoint_bytes", "Size of the last one.", s.checkpoint_bytes)
    yield _counter("adaptd_checkpoints", "Checkpoints saved.", s.checkpoints)
    yield _counter("adaptd_checkpoint_failures", "Checkpoints that were not saved.", s.checkpoint_failures)
    yield _counters("adaptd_events", "Log events, whether logged or not.", "event", s.events)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _counters(name: str, text: str, label: str, values: dict[str, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _buckets(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    """Cumulative, as Prometheus wants them, and the sum."""
    bounds = [*(repr(bound) for bound in histogram.bounds), "+Inf"]
    totals = map(float, itertools.accumulate(histogram.counts))
    return list(zip(bounds, totals, strict=True)), histogram.sum
