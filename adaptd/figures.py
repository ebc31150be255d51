"""Gathers the numbers of a snapshot from all lanes of the process; costs the rows nothing.

Counters add up over the lanes. Scores and rates of a learner are means over the lanes, weighted by the rows
that each has learned; what only one can have (the champion, the speaker) is that of the lane with most rows.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

import adaptd
from adaptd import boosts, checkpoint, events, metrics, places, predictions
from adaptd.contracts import REJECT_REASONS, Rows
from adaptd.engine import Lane

if TYPE_CHECKING:
    from adaptd.daemon import Daemon

# A scrape sees numbers at most this old.
PUBLISH_SECONDS = 0.5
# How much of the rows a second shown is that of half a second before.
SPEED_FADE = 0.7

# Counts of a lane, nested by reason.
Counts = dict[str, Any]


class Figures:
    """See the module."""

    def __init__(self, daemon: "Daemon") -> None:
        self.daemon = daemon
        self.records = 0
        self.delays = metrics.Histogram(metrics.LABEL_DELAY_BOUNDS_ROWS)
        self.checkpoints = 0
        self.checkpoint_failures = 0
        self.info: checkpoint.CheckpointInfo | None = None
        self.info_time = math.nan
        self.published = -math.inf
        self.published_records = 0
        self.rows_per_second = math.nan
        self.history_failure = ""
        self.gone: Counts = {}
        """What was counted in lanes that have left this process."""
        self.before: dict[int, Counts] = {}
        """What lanes had counted when they came to this process, by the lane's identity."""

    def taken(self, lane: Lane, rows: Rows) -> None:
        self.records += rows.n
        for delay in lane.delays:
            self.delays.add(delay)
        lane.delays.clear()

    def arrived(self, lane: Lane) -> None:
        """What `lane` has counted so far was counted by another process, or before."""
        self.before[id(lane)] = counts(lane)

    def left(self, lane: Lane) -> None:
        """`lane` is not one of the process any more; what it counted here stays counted."""
        self.gone = plus(self.gone, self.counted(lane))
        self.before.pop(id(lane), None)

    def counted(self, lane: Lane) -> Counts:
        return plus(counts(lane), self.before.get(id(lane), {}), -1)

    def checkpoint(self, info: checkpoint.CheckpointInfo) -> None:
        self.info, self.info_time = info, self.daemon.clock.wall()

    def publish_if_due(self) -> None:
        now = self.daemon.clock.monotonic()
        if now - self.published >= PUBLISH_SECONDS:
            if self.published > -math.inf:
                speed = (self.records - self.published_records) / (now - self.published)
                steady = 0.0 if math.isnan(self.rows_per_second) else SPEED_FADE
                self.rows_per_second = (
                    speed if not steady else speed + steady * (self.rows_per_second - speed)
                )
            self.published, self.published_records = now, self.records
            snapshot = self.snapshot()
            self.daemon.metrics.publish(snapshot)
            self.daemon.history.add(snapshot, self.daemon.clock.wall())
            self.report_history()

    def report_history(self) -> None:
        failure = self.daemon.history.failure
        if failure and failure != self.history_failure:
            self.daemon.log.emit(events.HistoryFailed(detail=failure))
        self.history_failure = failure

    def snapshot(self) -> metrics.Snapshot:
        daemon = self.daemon
        # The lane with most rows is the first: it speaks for all where only one can.
        lanes = sorted(daemon.lanes(), key=lambda lane: -lane.learned)
        first = lanes[0] if lanes else daemon.lane
        shown = lanes or [first]
        total = self.gone
        for lane in lanes:
            total = plus(total, self.counted(lane))
        total = plus(counts(daemon.lane, empty=True), total)
        weights = [float(lane.learned) for lane in shown]
        blends = [lane.scores.fading(len(lane.pool.slots)) for lane in shown]
        buffers = [lane.labels.counts() for lane in shown]
        loss = "log_loss" if first.layout.task == "classification" else "mae"
        blend = mean_scores(blends, weights)
        times = [lane.labels.now for lane in shown if math.isfinite(lane.labels.now)]
        return metrics.Snapshot(
            version=adaptd.__version__,
            task=first.layout.task,
            rows=self.records,
            label_buffer_rows=sum(buffer["rows"] for buffer in buffers),
            label_buffer_bytes=sum(buffer["bytes"] for buffer in buffers),
            label_delay_rows=self.delays.copy(),
            learners=joined([learners(lane) for lane in shown], weights),
            blend_loss=blend.get(loss, math.nan),
            blend_scores=blend,
            expected_accuracy=mean_scores([lane.detector.expected_accuracy() for lane in shown], weights),
            student_scores={} if first.student is None else first.student.scores.fading(0),
            coverage={} if first.coverage is None else first.coverage.figures(),
            concepts=sum(len(lane.strategy.memory.concepts) for lane in shown),
            stages=daemon.stages.copy(),
            checkpoint_time=self.info_time,
            checkpoint_seconds=math.nan if self.info is None else self.info.seconds,
            checkpoint_bytes=0 if self.info is None else self.info.bytes,
            checkpoints=self.checkpoints,
            checkpoint_failures=self.checkpoint_failures,
            events=dict(daemon.log.counts),
            features=max(lane.layout.n_features for lane in shown),
            classes=max(lane.layout.n_classes for lane in shown),
            last_row_time=max(times, default=math.nan),
            learner_kinds={slot.name: slot.kind for slot in first.pool.slots},
            speaker=first.speaker_name or predictions.BLEND,
            is_overloaded=any(lane.is_overloaded for lane in shown),
            rows_per_second=self.rows_per_second,
            uptime_seconds=daemon.clock.monotonic() - daemon.started,
            stopped_by=daemon.stopped_by,
            **total,
            **daemon.source_figures(),
        )


def counts(lane: Lane, empty: bool = False) -> Counts:
    """What a lane has counted, as fields of a snapshot; with `empty` all of them as 0."""
    labels = lane.labels.counts()
    found = {
        "predictions": lane.rows,
        "labels": lane.learned,
        "rejects": dict.fromkeys(REJECT_REASONS, 0) | lane.rejected,
        "values_missing": dict(lane.schema.counts),
        "duplicate_ids": labels["duplicates"],
        "labels_unknown": labels["unknown"],
        "labels_expired": labels["expired"],
        "warnings": lane.counts["warnings"],
        "drifts": lane.counts["drifts"],
        "covariate_shifts": lane.counts["covariate_shifts"],
        "unlabelled_drifts": lane.counts["unlabelled_drifts"],
        "switches": lane.counts["switches"],
        "recalls": lane.strategy.memory.recalls,
        "challengers": dict(lane.strategy.challengers.counts),
    }
    return plus(found, found, -1) if empty else found


def plus(one: Mapping[str, Any], other: Mapping[str, Any], sign: int = 1) -> Counts:
    """The sum of two trees of counts, or with -1 their difference."""
    result: Counts = dict(one)
    for key, value in other.items():
        if isinstance(value, Mapping):
            result[key] = plus(result.get(key, {}), value, sign)
        else:
            result[key] = result.get(key, 0) + sign * value
    return result


def learners(lane: Lane) -> list[metrics.LearnerFigures]:
    """The learners of one lane as they stand."""
    loss = "log_loss" if lane.layout.task == "classification" else "mae"
    weights = lane.controller.weights()
    found = []
    for index, slot in enumerate(lane.pool.slots):
        if places.is_empty(slot):
            continue
        vitals, scores = slot.learner.vitals(), lane.scores.fading(index)
        boost = lane.boosts.boost_of(slot.name) if boosts.has_rate(slot) else (math.nan, math.nan)
        found.append(
            metrics.LearnerFigures(
                name=slot.name,
                loss=scores[loss],
                scores=scores,
                weight=float(weights[index]),
                learning_rate=vitals.learning_rate,
                rate_scale=slot.learner.rate_scale,
                boost_factor=boost[0],
                boost_half_life_rows=boost[1],
                gradient_norm=vitals.gradient_norm,
                step_norm=vitals.step_norm,
                state_bytes=vitals.state_bytes,
                is_champion=index == lane.champion,
                is_set_aside=bool(slot.set_aside),
                set_aside=slot.set_aside,
                is_frozen=slot.frozen,
                about=lane.strategy.about(index),
            )
        )
    return found


MEANS = (
    "loss",
    "weight",
    "learning_rate",
    "rate_scale",
    "boost_factor",
    "boost_half_life_rows",
    "gradient_norm",
    "step_norm",
)


def joined(lanes: list[list[metrics.LearnerFigures]], weights: list[float]) -> list[metrics.LearnerFigures]:
    """The learners of several lanes, by name; whose lane comes first is told where only one can be."""
    if len(lanes) == 1:
        return lanes[0]
    by_name: dict[str, list[tuple[metrics.LearnerFigures, float]]] = {}
    for found, weight in zip(lanes, weights, strict=True):
        for learner in found:
            by_name.setdefault(learner.name, []).append((learner, weight))
    result = []
    for group in by_name.values():
        of, shares = [learner for learner, _ in group], [weight for _, weight in group]
        changes: dict[str, Any] = {
            field: mean([getattr(learner, field) for learner in of], shares) for field in MEANS
        }
        changes["scores"] = mean_scores([learner.scores for learner in of], shares)
        changes["state_bytes"] = sum(learner.state_bytes for learner in of)
        aside = [learner.set_aside for learner in of if learner.is_set_aside]
        changes["is_set_aside"], changes["set_aside"] = bool(aside), aside[0] if aside else ""
        result.append(msgspec.structs.replace(of[0], **changes))
    return result


def mean(values: list[float], weights: list[float]) -> float:
    """Weighted mean of the values that are numbers; NaN when there are none."""
    if len(values) == 1:
        return values[0]
    pairs = [(value, weight) for value, weight in zip(values, weights, strict=True) if not math.isnan(value)]
    whole = sum(weight for _, weight in pairs)
    if not whole:
        return pairs[0][0] if pairs else math.nan
    return sum(value * weight for value, weight in pairs) / whole


def mean_scores(scores: list[dict[str, float]], weights: list[float]) -> dict[str, float]:
    """The mean of each score over the lanes that have it."""
    if len(scores) == 1:
        return scores[0]
    result = {}
    for name in dict.fromkeys(name for found in scores for name in found):
        pairs = [
            (found[name], weight) for found, weight in zip(scores, weights, strict=True) if name in found
        ]
        result[name] = mean([value for value, _ in pairs], [weight for _, weight in pairs])
    return result
