"""Tells the service manager how the daemon does: systemd's notification protocol, and nothing without it.

One datagram of `KEY=value` lines a message, to the socket that NOTIFY_SOCKET names (a name that begins with
`@` is in Linux's abstract namespace). Without NOTIFY_SOCKET every call returns at once.

The watchdog is fed by `turn`, which the loop calls after each turn, and by nothing else: no timer and no
other thread, so a learner that hangs is noticed. A turn in which the source had nothing is a turn.

Reference: sd_notify(3), systemd.service(5).
"""

import contextlib
import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from adaptd.metrics import Snapshot

STATUS_SECONDS = 5.0
# A kernel takes up to half a minute to compile on a slow processor.
EXTEND_SECONDS = 120.0
# A service manager that does not read shall not hold the rows up for longer.
SEND_SECONDS_MAX = 1.0
STATUS_CHARACTERS_MAX = 400


class Notifier:
    """Speaks to the service manager that `environment` tells of."""

    def __init__(
        self,
        environment: Mapping[str, str] = os.environ,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._monotonic = monotonic
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._socket: socket.socket | None = None
        if self._address.startswith(("/", "@")):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.settimeout(SEND_SECONDS_MAX)
            self._address = self._address.replace("@", "\0", 1) if self._address[0] == "@" else self._address
        self._feed_seconds = watchdog_seconds(environment) / 4
        self._next = math.inf if self._socket is None else -math.inf
        self._next_status = -math.inf

    @property
    def is_heard(self) -> bool:
        """Whether there is a service manager."""
        return self._socket is not None

    def ready(self, status: str) -> None:
        """Kernels are compiled and the state is loaded; also the end of a reload."""
        self._send("READY=1", shown(status))

    def status(self, status: str) -> None:
        self._send(shown(status))

    def reloading(self, status: str = "Reading the configuration anew") -> None:
        """A reload begins; `ready` ends it. By the time the manager tells one reload from another."""
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={microseconds}", shown(status))

    def stopping(self, status: str) -> None:
        self._send("STOPPING=1", shown(status))

    def extend(self, status: str, seconds: float = EXTEND_SECONDS) -> None:
        """Starting, or stopping, goes on for at most `seconds` more. Said at a step done, not by a timer."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}", shown(status))

    def turn(self, status: Callable[[], str]) -> None:
        """A turn of the loop is done: feed the watchdog and say `status()`, both only as often as needed."""
        now = self._monotonic()
        if now < self._next:
            return
        lines = ["WATCHDOG=1"] if self._feed_seconds else []
        if now >= self._next_status:
            self._next_status = now + STATUS_SECONDS
            lines.append(shown(status()))
        self._next = min(now + (self._feed_seconds or math.inf), self._next_status)
        if lines:
            self._send(*lines)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket, self._next = None, math.inf

    def _send(self, *lines: str) -> None:
        if self._socket is None:
            return
        # A manager that is gone or restarts itself is no reason to stop predicting; a lost watchdog
        # message comes again a quarter of the time limit later.
        with contextlib.suppress(OSError):
            self._socket.sendto("\n".join(lines).encode(), self._address)


def watchdog_seconds(environment: Mapping[str, str]) -> float:
    """The time limit of the watchdog; 0 when there is none, or when it is meant for another process."""
    try:
        process = int(environment.get("WATCHDOG_PID") or os.getpid())
        seconds = int(environment.get("WATCHDOG_USEC") or 0) / 1e6
    except ValueError:
        return 0.0
    return max(0.0, seconds) if process == os.getpid() else 0.0


def shown(status: str) -> str:
    """One line: a line break would begin another key."""
    return "STATUS=" + " ".join(status.split())[:STATUS_CHARACTERS_MAX]


class Status:
    """The line that `systemctl status` shows, from one published snapshot to the next."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._rows = 0
        self._time = math.nan

    def line(self, snapshot: Snapshot, wall: float) -> str:
        """Rows, their rate since the last line, champion, score, checkpoint.

        >>> Status(lambda: 0.0).line(Snapshot(rows=1200, blend_scores={"accuracy": 0.9}), wall=0.0)
        '1,200 rows; accuracy 0.9; no checkpoint'
        """
        now = self._monotonic()
        parts = [f"{snapshot.rows:,} rows"]
        if now > self._time:
            parts.append(f"{max(0, snapshot.rows - self._rows) / (now - self._time):,.0f} a second")
        self._rows, self._time = snapshot.rows, now
        parts += [f"champion {learner.name}" for learner in snapshot.learners if learner.is_champion]
        for score in ("accuracy", "mae"):
            if not math.isnan(snapshot.blend_scores.get(score, math.nan)):
                parts.append(f"{score} {snapshot.blend_scores[score]:.4g}")
        aside = sum(learner.is_set_aside for learner in snapshot.learners)
        if aside:
            parts.append(f"{aside} of {len(snapshot.learners)} learners set aside")
        if math.isnan(snapshot.checkpoint_time):
            parts.append("no checkpoint")
        else:
            parts.append(f"checkpoint {max(0.0, wall - snapshot.checkpoint_time):.0f} s ago")
        if snapshot.checkpoint_failures:
            parts.append(f"{snapshot.checkpoint_failures:,} checkpoints failed")
        return "; ".join(parts)


@contextlib.contextmanager
def starting(notifier: Notifier) -> Iterator[None]:
    """Each kernel that has to be compiled asks the service manager for more time to start.

    So a first start, which compiles all of them, may take its minutes, and one that hangs is ended.
    """
    if not notifier.is_heard:
        yield
        return
    # Sets the cache's place before Numba is imported, which reads it only then.
    import adaptd.kernels.compile  # noqa: F401, I001
    from numba.core import event

    class Compiling(event.Listener):
        count = 0

        def on_start(self, event: Any) -> None:
            function = event.data["dispatcher"].py_func
            if function.__module__.startswith("adaptd."):  # and not a part of Numba's own
                self.count += 1
                notifier.extend(
                    f"Compiling kernel {self.count}, {function.__name__}: the first start of a version does"
                )

        def on_end(self, event: Any) -> None:
            """The next start of one asks again."""

    listener = Compiling()
    event.register("numba:compile", listener)  # type: ignore[no-untyped-call]
    notifier.extend("Starting")
    try:
        yield
    finally:
        event.unregister("numba:compile", listener)  # type: ignore[no-untyped-call]
