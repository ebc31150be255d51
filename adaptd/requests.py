"""What came over HTTP meets the loop: between two pieces of the stream, in order, a few milliseconds at once.

Whatever changes state is written to the input log (`inbox.py`) first, stamped with the number of source
rows before it, and then flows like any row. A prediction without an id changes nothing and is not logged.
Nobody hears of an operation, neither the client nor the sink, before it is on disk.
"""

import collections
import contextlib
import functools
import math
import os
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec
import numpy as np

from adaptd import asking, predictions
from adaptd.answers import Answers, formatted
from adaptd.contracts import Column, Reject, Rows, State
from adaptd.inbox import Entry, Inbox
from adaptd.lines import build_decoder

if TYPE_CHECKING:
    from adaptd.daemon import Daemon

# How long the loop works on one thing while somebody may be waiting for another.
PIECE_SECONDS = 0.005
# The same when nobody has asked for a while: larger pieces cost less.
QUIET_PIECE_SECONDS = 0.025
QUIET_AFTER_SECONDS = 10.0
# A piece costs something however short it is: after a drift, with copies of the learners on trial, more than
# its time. Cut ever shorter for that, all the time would go into the cutting.
PIECE_ROWS_MIN = 16
# So many rows that are only asked for go along with a piece of the stream: the learners are called once for
# both. More would make the piece longer, and are worth a walk of their own.
ALONG_ROWS = 8
# Pieces on the way to a control point are equal. They may be so much longer where that saves one: a block
# more costs more, and where the speed is about the limit its cost would keep it there.
LONGER = 1.25
# Rows of a first piece, before anything is known about the speed.
FIRST_PIECE_ROWS = 64
# Replies and output lines that wait for the input log stay below this.
HELD_BYTES_MAX = 4 << 20
# Part of a new piece in the mean time of a row, for pieces of at least so many rows.
SPEED_FADE = 0.2
SPEED_ROWS = 32
# What took more than so many times as long as expected was not the rows, and shorter pieces would not help.
STALL = 2.0

WRITES_REFUSED = (
    "with the source kafka rows and labels must be sent to its topics, and learners are changed in the "
    "configuration; a prediction without an id is answered here"
)
# The number stands after the speaker, wherever that is: nothing else has this key and a text for a value.
ROW_NUMBER = re.compile(rb'("learner":"(?:[^"\\]|\\.)*"),"row":\d+')


# A JSON body, or what makes it, for the thread that sends it: in the loop the learners would stand still.
Reply = bytes | Callable[[], bytes]
# Takes the HTTP status and the reply, once, from any thread.
Resolve = Callable[[int, Reply], None]


class Request(msgspec.Struct):
    """One call."""

    kind: Literal["preview", "rows", "command", "checkpoint", "reload"]
    resolve: Resolve
    body: bytes = b""
    """What goes to the input log."""
    rows: Rows | None = None
    config: Any = None
    said: list[Answers] = []
    """To the rows of a preview that are done."""
    at: int = 0
    """Rows of a preview that are done."""


class Share(NamedTuple):
    """Part of a preview."""

    request: Request
    rows: Rows
    stop: int
    """Rows of the preview that are done with this."""


class Queue:
    """Requests on their way to the loop; a descriptor that can be read as long as some wait."""

    def __init__(self) -> None:
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._requests: collections.deque[Request] = collections.deque()
        self._closed = False

    def put(self, request: Request) -> None:
        """From any thread."""
        self._requests.append(request)
        if self._closed:
            self.refuse()
        else:
            self.wake()

    def wake(self) -> None:
        """The loop shall not go on waiting for its source."""
        with contextlib.suppress(OSError):
            os.eventfd_write(self.descriptor, 1)

    def take(self) -> list[Request]:
        taken = []
        while self._requests:
            taken.append(self._requests.popleft())
        return taken

    def sleep(self) -> None:
        """Nobody is woken by what has come so far; call before `take`."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.descriptor)

    def close(self) -> None:
        """What comes from now on is refused."""
        self._closed = True
        self.refuse()

    def refuse(self) -> None:
        while self._requests:
            with contextlib.suppress(IndexError):
                self._requests.popleft().resolve(503, fault("the daemon is stopping"))


class Speed:
    """How many rows fit into a piece, by what the last pieces took; it decides nothing but the cut."""

    def __init__(self) -> None:
        self.row_seconds = 0.0

    def rows(self, seconds: float) -> int:
        return max(PIECE_ROWS_MIN, int(seconds / self.row_seconds)) if self.row_seconds else FIRST_PIECE_ROWS

    def took(self, rows: int, seconds: float) -> None:
        """A piece of so many rows took so long; the few rows at the end of a read tell little of others."""
        if rows and self.row_seconds:
            fade = SPEED_FADE * min(1.0, rows / SPEED_ROWS)
            self.row_seconds += fade * (min(seconds / rows, STALL * self.row_seconds) - self.row_seconds)
        elif rows:
            self.row_seconds = seconds / rows


class Desk:
    """Serves the queue; the loop's part of the API."""

    def __init__(self, daemon: "Daemon", inbox: Inbox) -> None:
        self.daemon = daemon
        self.inbox = inbox
        self.queue = Queue()
        self.taken = 0
        """Rows of the source that were taken in."""
        self.records = 0
        """Records that came over HTTP and were taken in."""
        self.applied = 0
        """The last entry of the input log that was worked on."""
        self.replaying: collections.deque[Entry] = collections.deque()
        self.decoder = build_decoder("json", ",", daemon.config.fields)
        self.json = predictions.JsonLines()
        self.previews: collections.deque[Request] = collections.deque()
        self.writes: collections.deque[Request] = collections.deque()
        self.between: collections.deque[Request] = collections.deque()
        """Checkpoints and reloads: for between two reads, as the source's position is behind a whole one."""
        self.is_in_read = False
        self.speed, self.preview_speed = Speed(), Speed()
        self.last_request = -math.inf
        self.held: list[bytes] = []
        self.kept: dict[str, int] = {}

    # The stream, in pieces.

    def piece_rows(self) -> int:
        """Rows of the source to work on before the next look at the queue, at most."""
        if not self.daemon.config.http.enabled:
            return 1 << 62
        quiet = self.daemon.clock.monotonic() - self.last_request > QUIET_AFTER_SECONDS
        return self.speed.rows(QUIET_PIECE_SECONDS if quiet else PIECE_SECONDS)

    def aligned(self, rows: int) -> int:
        """About `rows`, at most `LONGER` times as many, so that pieces end where the lane ends its blocks.

        Each block costs something, and a piece that reached across a control point would be two.
        """
        left, control_rows = self.daemon.lane.rows_to_control, self.daemon.config.control.rows
        if rows >= left:
            return left + (rows - left) // control_rows * control_rows
        return math.ceil(left / math.ceil(left / (LONGER * rows)))

    def take(self, rows: Rows) -> None:
        """One read of the source, with what came over HTTP at its places."""
        at = 0
        self.is_in_read = True
        while True:
            self.serve()
            stop = min(rows.n, at + self.aligned(self.piece_rows()))
            if self.replaying:
                stop = min(stop, at + self.replaying[0].after - self.taken)
            self.work(part(rows, at, stop), self.gathered(ALONG_ROWS) if self.go_along else [])
            self.taken += stop - at
            at = stop
            if at == rows.n:
                self.is_in_read = False
                return

    def work(self, rows: Rows, along: Sequence[Share] = ()) -> tuple[list[Answers], list[Reject]]:
        """Rows from wherever, through the lane and on to the sink, and with them those who only ask."""
        begun, lane = self.daemon.clock.monotonic(), self.daemon.lane
        asked = lane.asked = asking.Asked(lane, [share.rows for share in along]) if along else None
        result = self.daemon.step(rows)
        self.speed.took(rows.n, self.daemon.clock.monotonic() - begun)
        lane.asked = None
        if asked is not None:
            # Where no block came of the rows, or one under another layout, nobody has been asked yet.
            self.reply(along, asked.answers or asking.preview(lane, [share.rows for share in along]))
        return result

    def put_out(self, lines: bytes) -> None:
        """Lines for the sink, once what they rest on is on disk."""
        if not self.held and self.inbox.is_synced:
            self.daemon.sink.write(lines)
            return
        self.held.append(lines)
        if sum(map(len, self.held)) > HELD_BYTES_MAX:
            self.let_out(wait=True)

    def let_out(self, wait: bool = False) -> None:
        """Write the lines that wait, when they may go."""
        self.inbox.check()
        if wait:
            self.inbox.wait()
        if self.held and self.inbox.is_synced:
            self.daemon.sink.write(b"".join(self.held))
            self.held.clear()
            self.daemon.sink.push()

    # The queue.

    def serve(self, is_idle: bool = False) -> None:
        """Between two pieces. is_idle: the source has nothing, so nothing can come again either."""
        while self.replaying and (is_idle or self.replaying[0].after <= self.taken):
            self.apply(self.replaying.popleft(), None)
        self.sort_in()
        if is_idle or not self.go_along:
            self.answer_previews()
        if not self.replaying:
            self.take_writes()
            if self.between and not self.is_in_read:
                self.take_between(self.between.popleft())
        self.let_out()

    def sort_in(self) -> None:
        if not self.is_in_read:
            # Also when nothing waits: a wake-up that came late would keep the source from waiting.
            self.queue.sleep()
        taken = self.queue.take()
        if taken:
            self.last_request = self.daemon.clock.monotonic()
        waiting = {"preview": self.previews, "checkpoint": self.between, "reload": self.between}
        for request in taken:
            waiting.get(request.kind, self.writes).append(request)

    def answer_previews(self) -> None:
        """Predictions that change nothing, for one piece's time: of all who wait at once, for a call of the
        learners costs as much as several rows."""
        clock = self.daemon.clock
        end = clock.monotonic() + PIECE_SECONDS
        while self.previews and (begun := clock.monotonic()) < end:
            shares = self.gathered(self.preview_speed.rows(PIECE_SECONDS))
            self.reply(shares, asking.preview(self.daemon.lane, [share.rows for share in shares]))
            self.preview_speed.took(sum(share.rows.n for share in shares), clock.monotonic() - begun)

    @property
    def go_along(self) -> bool:
        """Whether those who wait for a preview wait for the next piece."""
        rows = sum(request.rows.n - request.at for request in self.previews if request.rows is not None)
        return rows <= ALONG_ROWS and asking.may_go_along(self.daemon.lane)

    def gathered(self, limit: int) -> list[Share]:
        """At most `limit` rows of those who wait for a preview, first come, first served."""
        shares: list[Share] = []
        while self.previews and limit > 0:
            request = self.previews.popleft()
            rows = request.rows
            assert rows is not None
            stop = min(rows.n, request.at + limit)
            shares.append(Share(request, part(rows, request.at, stop), stop))
            limit -= stop - request.at
        return shares

    def reply(self, shares: Sequence[Share], answers: Answers) -> None:
        """Tell those who asked; who asked for more goes to the end of the line, for others wait too."""
        start, spellings = 0, list(self.daemon.lane.classes.spellings)
        for request, rows, stop in shares:
            request.said.append(answers.between(start, start + rows.n))
            start += rows.n
            request.at = stop
            if request.rows is not None and stop < request.rows.n:
                self.previews.append(request)
            else:
                request.resolve(200, functools.partial(previewed, request.said, spellings))

    def take_writes(self) -> None:
        """Operations that change state, as many as fit into a piece's time; at least one."""
        if not self.daemon.takes_writes:
            self.refuse_writes()
        batch: list[Request] = []
        n_rows, limit = 0, self.speed.rows(PIECE_SECONDS)
        while self.writes and n_rows < limit:
            batch.append(self.writes.popleft())
            n_rows += 0 if batch[-1].rows is None else batch[-1].rows.n
        if batch:
            try:
                entries = self.inbox.append(
                    self.taken,
                    [("rows" if request.kind == "rows" else "command", request.body) for request in batch],
                )
            except OSError as error:
                words = fault(f"the input log cannot be written: {error.strerror}; nothing was taken in")
                for request in batch:
                    request.resolve(503, words)
                return
            for entry, request in zip(entries, batch, strict=True):
                self.apply(entry, request)

    def take_between(self, request: Request) -> None:
        if request.kind == "checkpoint":
            request.resolve(*self.daemon.checkpoint_now())
        else:
            request.resolve(*self.daemon.take_config(request.config))

    def tell(self, command: bytes) -> None:
        """A command of the daemon's own, durable like all; one that the disk refuses is told again later."""
        with contextlib.suppress(OSError):
            (entry,) = self.inbox.append(self.taken, [("command", command)])
            self.apply(entry, None)

    def refuse_writes(self) -> None:
        """Kafka alone says what comes after what, and has no place for what comes over HTTP."""
        while self.writes:
            self.writes.popleft().resolve(409, fault(WRITES_REFUSED))

    def apply(self, entry: Entry, request: Request | None) -> None:
        """Work on an entry; the one who asked, when there still is one, hears when it is on disk."""
        if entry.kind == "command":
            command = msgspec.json.decode(entry.body)
            self.daemon.lane.commands.append((command["action"], command["learner"]))
            reply = msgspec.json.encode(
                {"accepted": True, "seq": entry.seq, "takes_effect": "next control point"}
            )
            status = 202
        else:
            lines, rejects = self.apply_rows(entry, None if request is None else request.rows)
            reply, status = body(lines, rejects), 200
        self.applied = entry.seq
        if request is not None:
            resolve = request.resolve

            def tell() -> None:
                resolve(status, reply)
                self.queue.wake()

            self.inbox.when_synced(entry.seq, tell)

    def apply_rows(self, entry: Entry, rows: Rows | None) -> tuple[list[bytes], list[Reject]]:
        """The entry's rows; they were decoded already unless the entry is done again."""
        if rows is None:
            rows = self.decoder.decode(entry.body, self.daemon.lane.schema.kinds)
        rows.positions = np.arange(self.records + 1, self.records + rows.n + 1)
        self.records += rows.n
        lines: list[bytes] = []
        rejects: list[Reject] = []
        at = 0
        while at < rows.n:
            stop = min(rows.n, at + self.speed.rows(PIECE_SECONDS))
            answers, rejected = self.work(part(rows, at, stop))
            rejects += rejected
            for answer in answers:
                lines += self.spoken(answer).splitlines()
            at = stop
            if at < rows.n:
                self.sort_in()
                self.answer_previews()
        return lines, rejects

    def spoken(self, answers: Answers) -> bytes:
        """As lines of JSON, whatever the sink's form."""
        return self.daemon.formatted(answers, self.json)

    # State.

    def state(self, number: int, keep: int) -> State:
        """For checkpoint `number`, when the last `keep` are kept; call after the held lines are out."""
        self.kept = {key: seq for key, seq in self.kept.items() if number - keep < int(key) < number}
        self.kept[str(number)] = self.applied
        return {
            "seq": self.applied,
            "taken": self.taken,
            "records": self.records,
            # What each kept checkpoint holds, so that it is known which entries nobody needs any more.
            "kept": dict(self.kept),
        }

    def start(self) -> None:
        """Without a checkpoint: entries whose checkpoints were taken away are none of ours."""
        self.applied = self.inbox.last_seq

    def load_state(self, state: State) -> None:
        self.applied, self.taken, self.records = state["seq"], state["taken"], state["records"]
        self.kept = dict(state["kept"])
        self.replaying.extend(self.inbox.resume(self.applied))

    def checkpointed(self) -> None:
        self.inbox.checkpointed(min(self.kept.values(), default=0))

    def close(self) -> None:
        """Everybody who waits is told that it is over."""
        self.queue.close()
        for waiting in (self.previews, self.writes, self.between):
            while waiting:
                waiting.popleft().resolve(503, fault("the daemon is stopping"))


def part(rows: Rows, start: int, stop: int) -> Rows:
    """Rows `start` to `stop`, and the rejects among them: those before the row that follows."""
    if start == 0 and stop == rows.n:
        return rows

    def of(column: Column) -> Column:
        return column[start:stop]

    if rows.positions is None:
        rejects = rows.rejects if start == 0 else []
    else:
        low = int(rows.positions[start]) if start else 0
        high = int(rows.positions[stop]) if stop < rows.n else 1 << 62
        rejects = [reject for reject in rows.rejects if low <= reject.position < high]
    return Rows(
        n=stop - start,
        columns={name: of(column) for name, column in rows.columns.items()},
        ids=rows.ids[start:stop],
        labels=rows.labels[start:stop],
        has_features=rows.has_features[start:stop],
        times=rows.times[start:stop],
        weights=rows.weights[start:stop],
        echo=None if rows.echo is None else rows.echo[start:stop],
        positions=None if rows.positions is None else rows.positions[start:stop],
        rejects=rejects,
    )


def previewed(said: list[Answers], spellings: list[bytes]) -> bytes:
    """The reply to a prediction that has no place in the stream, so its lines have no numbers."""
    lines = b"".join(formatted(predictions.JsonLines(), part, spellings) for part in said)
    return body(ROW_NUMBER.sub(rb"\1", lines).splitlines(), [])


def body(lines: list[bytes], rejects: list[Reject]) -> bytes:
    """The reply to predict, learn, label."""
    told = msgspec.json.encode([{"reason": reject.reason, "detail": reject.detail} for reject in rejects])
    return b'{"predictions":[' + b",".join(lines) + b'],"rejected":' + told + b"}"


def fault(words: str) -> bytes:
    return msgspec.json.encode({"error": words})
