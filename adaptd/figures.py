"""The numbers of one moment, gathered from the daemon's parts for metrics, status and history."""

import math
from typing import TYPE_CHECKING

import adaptd
from adaptd import checkpoint, events, metrics, predictions
from adaptd.contracts import REJECT_REASONS, Rows

if TYPE_CHECKING:
    from adaptd.daemon import Daemon

# A scrape sees numbers at most this old.
PUBLISH_SECONDS = 0.5
# How much of the rows a second shown is that of half a second before.
SPEED_FADE = 0.7


class Figures:
    """Gathers the numbers of a snapshot; costs the rows nothing."""

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

    def taken(self, rows: Rows) -> None:
        self.records += rows.n
        for delay in self.daemon.lane.delays:
            self.delays.add(delay)
        self.daemon.lane.delays.clear()

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
        daemon, lane = self.daemon, self.daemon.lane
        labels = lane.labels.counts()
        loss = "log_loss" if lane.layout.task == "classification" else "mae"
        weights = lane.controller.weights()
        learners = []
        for index, slot in enumerate(lane.pool.slots):
            vitals, scores = slot.learner.vitals(), lane.scores.fading(index)
            learners.append(
                metrics.LearnerFigures(
                    name=slot.name,
                    loss=scores[loss],
                    scores=scores,
                    weight=float(weights[index]),
                    learning_rate=vitals.learning_rate,
                    rate_scale=slot.learner.rate_scale,
                    gradient_norm=vitals.gradient_norm,
                    step_norm=vitals.step_norm,
                    state_bytes=vitals.state_bytes,
                    is_champion=index == lane.champion,
                    is_set_aside=bool(slot.set_aside),
                    set_aside=slot.set_aside,
                    is_frozen=slot.frozen,
                )
            )
        blend = lane.scores.fading(len(lane.pool.slots))
        return metrics.Snapshot(
            version=adaptd.__version__,
            task=lane.layout.task,
            rows=self.records,
            predictions=lane.rows,
            labels=lane.learned,
            rejects=dict.fromkeys(REJECT_REASONS, 0) | lane.rejected,
            values_missing=dict(lane.schema.counts),
            duplicate_ids=labels["duplicates"],
            labels_unknown=labels["unknown"],
            labels_expired=labels["expired"],
            label_buffer_rows=labels["rows"],
            label_buffer_bytes=labels["bytes"],
            label_delay_rows=self.delays.copy(),
            learners=learners,
            blend_loss=blend[loss],
            blend_scores=blend,
            warnings=lane.counts["warnings"],
            drifts=lane.counts["drifts"],
            switches=lane.counts["switches"],
            stages=daemon.stages.copy(),
            checkpoint_time=self.info_time,
            checkpoint_seconds=math.nan if self.info is None else self.info.seconds,
            checkpoint_bytes=0 if self.info is None else self.info.bytes,
            checkpoints=self.checkpoints,
            checkpoint_failures=self.checkpoint_failures,
            events=dict(daemon.log.counts),
            source_lag_bytes=daemon.source.lag_bytes(),
            features=lane.layout.n_features,
            classes=lane.layout.n_classes,
            last_row_time=lane.labels.now if math.isfinite(lane.labels.now) else math.nan,
            learner_kinds={slot.name: slot.kind for slot in lane.pool.slots},
            speaker=lane.pool.names[lane.speaker] if lane.speaker >= 0 else predictions.BLEND,
            rows_per_second=self.rows_per_second,
            uptime_seconds=daemon.clock.monotonic() - daemon.started,
            stopped_by=daemon.stopped_by,
        )
