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
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

import msgspec
from apscheduler.schedulers.background import BackgroundScheduler
from prometheus_client import CollectorRegistry

import adaptd
from adaptd import checkpoint, events, metrics, notify, overload, predictions, reload
from adaptd import config as configuration
from adaptd.answers import Answers, formatted
from adaptd.clock import Clock, SystemClock
from adaptd.contracts import Reject, Rows, Sink, Source
from adaptd.dead_letters import DeadLetters
from adaptd.engine import Lane
from adaptd.errors import CheckpointError, ConfigError, UsageError
from adaptd.figures import Figures
from adaptd.history import History
from adaptd.inbox import Inbox
from adaptd.journal import Journal
from adaptd.requests import Desk, Reply, Request, Resolve, fault

if TYPE_CHECKING:
    from adaptd.api import Api

# How long a thread may keep the interpreter from another; Python's own 5 milliseconds add up in a request.
SWITCH_SECONDS = 0.0005
# So long nobody has read the output before the log says so, and says it again.
SLOW_SINK_SECONDS = 10.0


class Daemon:
    """One lane between a source and a sink, with checkpoints, journal, metrics and signals."""

    takes_writes = True
    """Whether rows and commands over HTTP have a durable place in the input's order."""

    def __init__(
        self,
        config: configuration.Config,
        config_path: str | None = None,
        stderr: TextIO = sys.stderr,
        clock: Clock | None = None,
        reread: Callable[[], configuration.Config] | None = None,
    ) -> None:
        self.config = config
        self.config_path = config_path
        self.reread = reread
        self.reload_is_due = False
        self.clock = clock or SystemClock()
        self.started = self.clock.monotonic()
        self.stopped_by = ""
        self.is_ready = False
        self.checkpoint_is_due = threading.Event()
        directory = config.checkpoint.directory
        self.store = checkpoint.CheckpointStore(directory, config.checkpoint.keep) if directory else None
        with contextlib.ExitStack() as built:
            self.closing = built
            self.notifier, self.status = notify.Notifier(), notify.Status()
            built.callback(self.notifier.close)
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
            self.inbox = Inbox(directory or None)
            built.callback(self.inbox.close)
            self.history = History(beside("", directory, "history.sqlite"))
            built.callback(self.history.close)
            self.sink = self.open_sink()
            built.callback(self.sink.close)
            self.lane = Lane(config, self.log)
            built.callback(self.lane.close)
            self.desk = Desk(self, self.inbox)
            self.load = overload.Watch()
            built.callback(self.desk.close)
            if hasattr(self.source, "wake_on"):
                self.source.wake_on(self.desk.queue.descriptor)
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

    def open_sink(self) -> Sink:
        module, options = configuration.built("sinks", self.config.sink, ("format",))
        sink: Sink = module.build(options)
        return sink

    @property
    def keeps_checkpoints(self) -> bool:
        return self.store is not None

    def lanes(self) -> list[Lane]:
        """The lanes that are at work."""
        return [self.lane]

    def source_figures(self) -> dict[str, Any]:
        """What a snapshot says of the source."""
        return {"source_lag_bytes": self.source.lag_bytes()}

    # Running.

    def run(self, restore: int | None = None) -> None:
        """Until the input ends or a signal comes. Raises AdaptdError."""
        started = self.clock.monotonic()
        with self.closing, self.signals(), self.scheduler(), self.server():
            try:
                self.notifier.extend("Loading the newest checkpoint")
                self.resume(restore)
                self.metrics.begin(self.figures.snapshot())
                self.is_ready = True
                self.notifier.ready(self.status_line())
                while self.turn():
                    pass
                self.notifier.stopping("Saving the last checkpoint")
                self.commit_or_fail()
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
        if self.sink.waiting_bytes():
            self.wait_for_reader()
            return True
        if self.stopped_by:
            self.source.stop()
        self.reload_if_due()
        self.desk.serve()
        self.stages.start()
        rows = self.source.poll(self.lane.schema.kinds)
        self.stages.lap("poll")
        if rows is None:
            self.desk.serve(is_idle=not self.stopped_by)
            if not self.stopped_by:
                self.stopped_by = "end_of_input"
                self.lane.end_of_input()
                self.bury()
            return False
        begun = self.clock.monotonic()
        self.desk.take(rows)
        self.desk.serve(is_idle=rows.n == 0 and not rows.rejects)
        self.watch_load(self.clock.monotonic() - begun)
        if self.checkpoint_is_due.is_set() and not self.sink.waiting_bytes():
            self.checkpoint_is_due.clear()
            self.commit()
        self.turned()
        return True

    def turned(self) -> None:
        self.figures.publish_if_due()
        self.notifier.turn(self.status_line)

    def watch_load(self, seconds: float) -> None:
        """A read took so long. What was decided before a crash is in the input log and comes first."""
        output = self.lane.config.output
        if output.serve != "auto" or self.desk.replaying:
            return
        now, is_told = self.clock.monotonic(), overload.is_told(self.lane)
        action = self.load.review(now, seconds, output.latency_budget_seconds, is_told)
        if action:
            self.desk.tell(overload.command(self.lane, action))

    blocked_since = math.inf

    def wait_for_reader(self) -> None:
        """Nobody reads the output: no more input is read either, and yet the loop turns."""
        now = self.clock.monotonic()
        self.blocked_since = min(self.blocked_since, now)
        if now - self.blocked_since >= SLOW_SINK_SECONDS:
            self.log.emit(events.SinkSlowed(seconds=round(now - self.blocked_since, 3)))
            self.blocked_since = math.inf
        self.stages.start()
        self.sink.push(wait=True)
        self.stages.lap("blocked")
        if not self.sink.waiting_bytes():
            self.blocked_since = math.inf
        self.desk.sort_in()
        self.desk.answer_previews()
        self.turned()

    def reload_if_due(self) -> None:
        if self.reload_is_due:
            self.reload_is_due = False
            threading.Thread(target=self.read_config, args=(ignore,), name="reload", daemon=True).start()

    def status_line(self) -> str:
        return self.status.line(self.metrics.snapshot, self.clock.wall())

    def step(self, rows: Rows) -> tuple[list[Answers], list[Reject]]:
        """One piece, from decoded rows to written answers; also what the lane could not use of it."""
        self.stages.start()
        answers = self.lane.process(rows)
        self.figures.taken(self.lane, rows)
        self.stages.lap("learn")
        for part in answers:
            self.desk.put_out(self.formatted(part, self.lines))
        if answers:
            self.sink.push()
        rejects = self.lane.dead.copy()
        self.bury()
        self.stages.lap("write")
        return answers, rejects

    def formatted(self, part: Answers, lines: predictions.Lines) -> bytes:
        return formatted(lines, part, self.lane.classes.spellings)

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
                learners={
                    slot.name: lane.scores.cumulative(k)[score]
                    for k, slot in enumerate(lane.pool.slots)
                    if not slot.is_place
                },
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
            self.desk.start()
            self.sink.write(self.lines.header())
            self.commit_or_fail()
            return
        for damaged in loaded.damaged:
            self.log.emit(events.CheckpointDamaged(path=str(damaged.path), detail=damaged.reason))
        state = loaded.state
        if restore is not None:
            self.store.cut_after(restore)
        if self.inbox.torn is not None:
            self.log.emit(events.InboxTruncated(path=str(self.inbox.torn.path), bytes=self.inbox.torn.bytes))
        self.log.load_state(state["events"])
        fresh = reload.resume(self.lane, state["lane"])
        self.source.seek(state["source"])
        self.sink.seek(state["sink"])
        self.dead_letters.seek(state["dead_letters"])
        self.desk.load_state(state["inbox"])
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

    def commit(self) -> str:
        """Flush the sink, then save the checkpoint. One that fails is reported, and tried again.

        Returns why it failed; empty when it did not.
        """
        self.stages.start()
        self.desk.let_out(wait=True)
        self.sink.push()
        if self.sink.waiting_bytes():
            return "nobody reads the output, and a checkpoint holds what was read only"
        self.sink.flush()
        self.dead_letters.flush()
        self.log.flush()
        if self.store is None:
            return ""
        state = {
            "lane": self.lane.state(),
            "source": self.source.position(),
            "sink": self.sink.position(),
            "dead_letters": self.dead_letters.position(),
            "events": self.log.state(),
            "inbox": self.desk.state(self.number, self.store.keep),
        }
        try:
            info = self.store.save(state, self.number)
        except (OSError, CheckpointError) as error:
            self.figures.checkpoint_failures += 1
            self.log.emit(events.CheckpointFailed(detail=str(error)))
            return str(error)
        self.number += 1
        self.desk.checkpointed()
        self.stages.lap("checkpoint")
        self.figures.checkpoints += 1
        self.figures.checkpoint(info)
        self.log.emit(
            events.CheckpointSaved(
                path=str(info.path), number=info.number, bytes=info.bytes, seconds=round(info.seconds, 3)
            )
        )
        return ""

    def commit_or_fail(self) -> None:
        """At the start and at the end there is no next time. Raises CheckpointError."""
        self.desk.let_out(wait=True)
        self.sink.push()
        while self.sink.waiting_bytes():
            self.wait_for_reader()
        failure = self.commit()
        if failure:
            raise CheckpointError(failure)

    def checkpoint_now(self) -> tuple[int, bytes]:
        """For the API: HTTP status and reply."""
        if not self.keeps_checkpoints:
            return 409, fault("there is no checkpoint.directory")
        failure = self.commit()
        if failure or self.figures.info is None:
            return 503, fault(failure)
        info = self.figures.info
        reply = {"number": info.number, "path": str(info.path), "bytes": info.bytes, "seconds": info.seconds}
        return 200, msgspec.json.encode(reply)

    # Reload.

    def read_config(self, resolve: Resolve) -> None:
        """Read the configuration anew and see whether it can be taken live; not in the loop's thread.

        Building and compiling what is new can take long. The loop goes on with the old one meanwhile.
        """
        old, name = self.config, self.config_path or "command line"
        self.notifier.reloading()
        try:
            if self.reread is None:
                raise UsageError("there is no configuration file to read. Start with --config FILE.")
            new = self.reread()
            changed = reload.differences(old, new)
            faults = reload.faults(changed, name)
            if faults:
                raise ConfigError(faults)
            reload.rehearse(old, new, self.lane.layout.task)
        except Exception as error:  # whatever is wrong with the new one, the old one goes on
            faults = error.faults if isinstance(error, ConfigError) else [f"{name}: {error}"]
            self.log.emit(events.ConfigRefused(faults=faults))
            self.notifier.ready(self.status_line())
            resolve(422, msgspec.json.encode({"error": "the configuration was refused", "faults": faults}))
            return
        self.desk.queue.put(Request("reload", resolve, config=new))

    def take_config(self, new: configuration.Config) -> tuple[int, bytes]:
        """Go on with a configuration that `read_config` found good; HTTP status and reply."""
        changed = reload.differences(self.config, new)
        failure = ""
        if reload.concerns_lane(changed):
            self.lane.next_config = new
            # Durable before it takes effect: a crash must find the same control point again.
            failure = self.commit()
            if failure:
                self.lane.next_config = None
        if failure:
            self.log.emit(events.ConfigRefused(faults=[failure]))
            self.notifier.ready(self.status_line())
            return 503, fault(failure)
        self.config = new
        self.log.set_level(new.log.level)
        if self.store is not None:
            self.store.keep = new.checkpoint.keep
        if self.interval is not None:
            self.interval.reschedule("interval", seconds=new.checkpoint.interval_seconds)
        if self.api is not None:
            self.api.limit(new.http)
        self.log.emit(events.ConfigChanged(changed=changed))
        self.notifier.ready(self.status_line())
        return 200, msgspec.json.encode({"changed": changed})

    # What surrounds the loop.

    api: "Api | None" = None
    interval: Any = None

    @contextlib.contextmanager
    def signals(self) -> Any:
        """SIGTERM and SIGINT end the loop after the rows read; SIGHUP reads the configuration anew."""

        def stop(number: int, frame: Any) -> None:
            self.stopped_by = signal.Signals(number).name.lower()
            self.desk.queue.wake()

        def reload_soon(number: int, frame: Any) -> None:
            self.reload_is_due = True
            self.desk.queue.wake()

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGHUP: reload_soon}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def scheduler(self) -> Any:
        """Only asks for checkpoints; the loop saves them between two reads."""
        if not self.keeps_checkpoints:
            yield
            return
        scheduler = BackgroundScheduler(timezone="UTC")
        self.interval = scheduler.add_job(
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
        # Without HTTP nobody pays for the import of a server.
        from adaptd.api import Api
        from adaptd.http import HttpServer

        http = self.config.http
        self.api = Api(
            self.config,
            self.metrics,
            self.journal,
            self.history,
            self.desk.queue,
            self.read_config,
            lambda: dict(self.lane.schema.kinds),
        )
        # A request must get the interpreter within a piece's time, beside the loop and the learners.
        switch_seconds = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_SECONDS)
        server = HttpServer(http.listen, self.registry, lambda: self.is_ready, self.api, http)
        self.log.emit(events.HttpStarted(listen=f"{server.host}:{server.port}"))
        try:
            yield
        finally:
            # First an answer for everybody who waits for one.
            self.desk.close()
            server.close()
            sys.setswitchinterval(switch_seconds)


def ignore(status: int, reply: Reply) -> None:
    """Nobody waits for the reply; the log has it."""


def beside(path: str, directory: str, name: str) -> str | None:
    """`path` when it is given, else `name` in the checkpoint directory, else None."""
    if path:
        return path
    return str(pathlib.Path(directory) / name) if directory else None


def is_closed_output(error: BaseException) -> bool:
    """Whoever read our output has gone, as `head` does."""
    return isinstance(error, BrokenPipeError) or isinstance(error.__cause__, BrokenPipeError)
