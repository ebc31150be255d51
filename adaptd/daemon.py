"""Builds all parts, turns the loop from poll to commit, and stops as if it had not stopped.

The order of a commit: flush the sink, then save the checkpoint, which holds the source's position and the
sink's. A crash between any two of these repeats work and loses nothing: on start the sink, the dead letters
and the journal are cut back to what the checkpoint says, and the source resumes after its position.
"""

import contextlib
import math
import pathlib
import signal
import sys
import threading
from typing import Any, TextIO

import numpy as np
from apscheduler.schedulers.background import BackgroundScheduler
from prometheus_client import CollectorRegistry

import adaptd
from adaptd import checkpoint, events, metrics, predictions
from adaptd import config as configuration
from adaptd.clock import Clock, SystemClock
from adaptd.contracts import REJECT_REASONS, Rows, Sink, Source
from adaptd.dead_letters import DeadLetters
from adaptd.engine import Answers, Lane
from adaptd.errors import CheckpointError
from adaptd.http import HttpServer
from adaptd.journal import Journal

# A scrape sees numbers at most this old.
PUBLISH_SECONDS = 0.5


class Daemon:
    """One lane between a source and a sink, with checkpoints, journal, metrics and signals."""

    def __init__(
        self,
        config: configuration.Config,
        config_path: str | None = None,
        stderr: TextIO = sys.stderr,
        clock: Clock | None = None,
    ) -> None:
        self.config = config
        self.clock = clock or SystemClock()
        self.stopped_by = ""
        self.is_ready = False
        self.checkpoint_is_due = threading.Event()
        directory = config.checkpoint.directory
        self.store = checkpoint.CheckpointStore(directory, config.checkpoint.keep) if directory else None
        with contextlib.ExitStack() as built:
            self.closing = built
            if self.store is not None:
                built.callback(self.store.close)
            self.journal = Journal(
                beside(config.journal.path, directory, "journal.sqlite"), config.journal.rows_max
            )
            built.callback(self.journal.close)
            self.log = events.Events(self.clock, stderr, self.journal, config.log.level)
            if self.journal.moved_aside is not None:
                self.log.emit(events.JournalMovedAside(path=str(self.journal.moved_aside)))
            self.dead_letters = DeadLetters(
                beside(config.dead_letters.path, directory, "dead_letters.jsonl"),
                self.log,
                config.dead_letters.bytes_max,
                config.dead_letters.files_keep,
            )
            built.callback(self.dead_letters.close)
            # Before the lane, which may have to compile: what cannot be opened is said at once.
            self.source = self.open_source()
            built.callback(self.source.close)
            module, options = configuration.built("sinks", config.sink, ("format",))
            self.sink: Sink = module.build(options)
            built.callback(self.sink.close)
            self.lane = Lane(config, self.log)
            built.callback(self.lane.close)
            self.lines = predictions.FORMATS[config.sink.get("format", "json")]()
            self.stages = metrics.StageTimes(self.clock.monotonic)
            self.figures = Figures(self)
            self.registry = CollectorRegistry()
            self.metrics = metrics.Metrics(self.registry, self.clock, self.figures.snapshot())
            self.closing = built.pop_all()
        self.log.emit(
            events.DaemonStarted(
                version=adaptd.__version__,
                config=config_path,
                learners=self.lane.pool.names,
                seed=config.seed,
            )
        )

    def open_source(self) -> Source:
        module, options = configuration.built("sources", self.config.source)
        source: Source = module.build(options, self.config.fields)
        return source

    # Running.

    def run(self, restore: int | None = None) -> None:
        """Until the input ends or a signal comes. Raises AdaptdError."""
        started = self.clock.monotonic()
        with self.closing, self.signals(), self.scheduler(), self.server():
            try:
                self.resume(restore)
                self.is_ready = True
                while self.turn():
                    pass
                self.commit()
            except BaseException as error:
                self.stopped_by = "output_closed" if is_closed_output(error) else "failed"
                raise
            finally:
                self.report_scores()
                self.log.emit(
                    events.DaemonStopped(
                        reason=self.stopped_by,
                        rows=self.lane.rows,
                        seconds=round(self.clock.monotonic() - started, 3),
                    )
                )

    def turn(self) -> bool:
        """Poll, predict and learn, write; then commit when a checkpoint is due. False at the end."""
        if self.stopped_by:
            self.source.stop()
        self.stages.start()
        rows = self.source.poll(self.lane.schema.kinds)
        self.stages.lap("poll")
        if rows is None:
            if not self.stopped_by:
                self.stopped_by = "end_of_input"
                self.lane.end_of_input()
                self.bury()
            return False
        self.take(rows)
        if self.checkpoint_is_due.is_set():
            self.checkpoint_is_due.clear()
            self.commit()
        self.figures.publish_if_due()
        return True

    def take(self, rows: Rows) -> None:
        """One read, from decoded rows to written answers."""
        answers = self.lane.process(rows)
        self.figures.taken(rows)
        self.stages.lap("learn")
        for part in answers:
            self.sink.write(self.formatted(part))
        if answers:
            self.sink.push()
        self.bury()
        self.stages.lap("write")

    def formatted(self, part: Answers) -> bytes:
        return formatted(self.lines, part, self.lane.classes.spellings, self.lane.pool.names)

    def bury(self) -> None:
        """Records that could not be used go to the dead letters."""
        for reject in self.lane.dead:
            self.dead_letters.write(reject)
        self.lane.dead.clear()

    def report_scores(self) -> None:
        """The last word of a run: how good its predictions were."""
        lane, names = self.lane, self.lane.pool.names
        if not lane.learned:
            return
        score = "accuracy" if lane.layout.task == "classification" else "mae"
        self.log.emit(
            events.ScoresReported(
                blend=lane.scores.cumulative(len(names)),
                learners={name: lane.scores.cumulative(k)[score] for k, name in enumerate(names)},
            )
        )

    # State.

    def resume(self, restore: int | None) -> None:
        """Load the newest good checkpoint, or `restore`; else save one before the first byte of output."""
        if self.store is None:
            if restore is not None:
                raise CheckpointError(
                    "--restore needs checkpoint.directory. Set it to where the checkpoints are."
                )
            self.sink.write(self.lines.header())
            return
        loaded = self.store.load_latest() if restore is None else self.store.load(restore)
        if loaded is None:
            self.sink.write(self.lines.header())
            self.commit()
            return
        for damaged in loaded.damaged:
            self.log.emit(events.CheckpointDamaged(path=str(damaged.path), detail=damaged.reason))
        state = loaded.state
        if restore is not None:
            self.store.cut_after(restore)
        self.log.load_state(state["events"])
        fresh = self.lane.load_state(state["lane"])
        self.source.seek(state["source"])
        self.sink.seek(state["sink"])
        self.dead_letters.seek(state["dead_letters"])
        self.number = loaded.info.number + 1
        self.figures.checkpoint(loaded.info)
        self.log.emit(
            events.CheckpointLoaded(
                path=str(loaded.info.path),
                number=loaded.info.number,
                bytes=loaded.info.bytes,
                seconds=round(loaded.info.seconds, 3),
                fresh=fresh,
            )
        )

    number = 0

    def commit(self) -> None:
        """Flush the sink, then save the checkpoint. A checkpoint that fails is reported, and tried again."""
        self.stages.start()
        self.sink.flush()
        self.dead_letters.flush()
        self.log.flush()
        if self.store is None:
            return
        state = {
            "lane": self.lane.state(),
            "source": self.source.position(),
            "sink": self.sink.position(),
            "dead_letters": self.dead_letters.position(),
            "events": self.log.state(),
        }
        try:
            info = self.store.save(state, self.number)
        except (OSError, CheckpointError) as error:
            self.figures.checkpoint_failures += 1
            self.log.emit(events.CheckpointFailed(detail=str(error)))
            return
        self.number += 1
        self.stages.lap("checkpoint")
        self.figures.checkpoints += 1
        self.figures.checkpoint(info)
        self.log.emit(
            events.CheckpointSaved(
                path=str(info.path), number=info.number, bytes=info.bytes, seconds=round(info.seconds, 3)
            )
        )

    # What surrounds the loop.

    @contextlib.contextmanager
    def signals(self) -> Any:
        """SIGTERM and SIGINT end the loop after the rows that were read."""

        def stop(number: int, frame: Any) -> None:
            self.stopped_by = signal.Signals(number).name.lower()

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def scheduler(self) -> Any:
        """Only asks for checkpoints; the loop saves them between two reads."""
        if self.store is None:
            yield
            return
        scheduler = BackgroundScheduler(timezone="UTC")
        scheduler.add_job(
            self.checkpoint_is_due.set, "interval", seconds=self.config.checkpoint.interval_seconds
        )
        scheduler.start()
        try:
            yield
        finally:
            scheduler.shutdown(wait=False)

    @contextlib.contextmanager
    def server(self) -> Any:
        if not self.config.http.enabled:
            yield
            return
        server = HttpServer(self.config.http.listen, self.registry, lambda: self.is_ready)
        self.log.emit(events.HttpStarted(listen=f"{server.host}:{server.port}"))
        try:
            yield
        finally:
            server.close()


class Figures:
    """Gathers the numbers of a snapshot; costs the rows nothing."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.records = 0
        self.delays = metrics.Histogram(metrics.LABEL_DELAY_BOUNDS_ROWS)
        self.checkpoints = 0
        self.checkpoint_failures = 0
        self.info: checkpoint.CheckpointInfo | None = None
        self.info_time = math.nan
        self.published = -math.inf

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
            self.published = now
            self.daemon.metrics.publish(self.snapshot())

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
        )


def formatted(lines: predictions.Lines, part: Answers, spellings: list[bytes], names: list[str]) -> bytes:
    """The output lines of `part`."""
    if part.task == "regression":
        values = np.ascontiguousarray(part.values[:, 0])
        return lines.regression(part.ids, part.first_row, values, names, part.speaker, part.echo)
    known = spellings[: part.values.shape[1]]
    return lines.classification(part.ids, part.first_row, part.values, known, names, part.speaker, part.echo)


def beside(path: str, directory: str, name: str) -> str | None:
    """`path` when it is given, else `name` in the checkpoint directory, else None."""
    if path:
        return path
    return str(pathlib.Path(directory) / name) if directory else None


def is_closed_output(error: BaseException) -> bool:
    """Whoever read our output has gone, as `head` does."""
    return isinstance(error, BrokenPipeError) or isinstance(error.__cause__, BrokenPipeError)
