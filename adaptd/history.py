"""The last day in figures: what the live page draws, in an SQLite table that cannot outgrow its slots.

Each tier is a ring of slots, from one second a slot to minutes: 10 minutes, 2 hours and 24 hours by
default. A figure goes into the slot of its time, over what stood there a round ago. So the store is
bounded by construction, in memory and on disk, and reading a day costs as much as reading ten minutes.

The history serves the reader and never the daemon: a damaged file is moved aside, one that cannot be
used is given up, and the history goes on in memory.
"""

import math
import os
import pathlib
import sqlite3
import threading
from typing import Any

import msgspec

from adaptd.metrics import Snapshot

TIER_SLOTS = 600
"""Slots of each tier; no screen shows more points."""
COMMIT_SECONDS = 5.0
"""A crash loses so much of the picture and nothing else."""

# "adah" in ASCII: says whose database it is.
APPLICATION_ID = 0x61646168

SCHEMA = """
CREATE TABLE IF NOT EXISTS point (
    tier INTEGER NOT NULL,
    slot INTEGER NOT NULL,
    t REAL NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (tier, slot)
);
CREATE INDEX IF NOT EXISTS point_time ON point (tier, t);
"""


class Point(msgspec.Struct, array_like=True):
    """The figures of one moment; None: there is none."""

    row: int
    """Rows learned so far, the count that the journal's entries carry."""
    rows_per_second: float | None
    blend: float | None
    label_delay_rows: float | None
    """Mean over the labels since the tier's point before."""
    lag_bytes: int | None
    champion: str | None
    learners: dict[str, tuple[float | None, float | None, float | None]]
    """Score, weight and learning rate by name."""


class _Tier:
    """What a ring needs to know of its point before."""

    def __init__(self, step: float) -> None:
        self.step = step
        self.tick = -1
        self.t = math.nan
        self.rows = 0
        self.delays = (0, 0.0)


class History:
    """Figures of the last `hours` in the file `path`, or in memory when it is None.

    Safe to use from several threads. `failure` says why a file was moved aside or given up; empty when all
    is well.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, hours: float = 24.0) -> None:
        # Three tiers, each coarser than the one before by the same factor.
        coarsest = max(1.0, hours * 3600 / TIER_SLOTS)
        self.tiers = [_Tier(step) for step in sorted({1.0, math.sqrt(coarsest), coarsest})]
        self.failure = ""
        self._lock = threading.Lock()
        self._committed = -math.inf
        self._last = -math.inf
        self._score = ""
        self._connection = self._opened(None if path is None else pathlib.Path(path))

    def _opened(self, path: pathlib.Path | None) -> sqlite3.Connection:
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    return _connected(path)
                except sqlite3.OperationalError:
                    raise  # no permission, no room, another program's: the file itself may be whole
                except sqlite3.DatabaseError as error:
                    aside = path.with_name(path.name + ".damaged")
                    path.replace(aside)
                    # These belong to the damaged file; SQLite would apply them to the new one.
                    for suffix in ("-wal", "-shm"):
                        path.with_name(path.name + suffix).unlink(missing_ok=True)
                    self.failure = f"{path} was damaged ({error}) and is now {aside}"
                    return _connected(path)
            except (sqlite3.Error, OSError) as error:
                self.failure = f"{path}: {error}"
        return _connected(None)

    def add(self, snapshot: Snapshot, wall: float) -> None:
        """Keep the figures of `snapshot`, taken at `wall`. Some 10 microseconds when no slot is due."""
        with self._lock:
            if wall < self._last:
                # The clock was set back: what lies ahead of it would be drawn as the future.
                self._do("DELETE FROM point WHERE t > ?", (wall,))
            self._last = wall
            for number, tier in enumerate(self.tiers):
                if int(wall // tier.step) != tier.tick:
                    self._put(number, tier, snapshot, wall)
            if abs(wall - self._committed) >= COMMIT_SECONDS:
                self._committed = wall
                self._commit()

    def _put(self, number: int, tier: _Tier, snapshot: Snapshot, wall: float) -> None:
        delay = snapshot.label_delay_rows
        count, total = sum(delay.counts), delay.sum
        seconds = wall - tier.t
        rows, labels = snapshot.rows - tier.rows, count - tier.delays[0]
        self._score = next(iter(snapshot.blend_scores), self._score)
        point = Point(
            row=snapshot.labels,
            rows_per_second=rows / seconds if seconds > 0 and rows >= 0 else None,
            blend=_first(snapshot.blend_scores),
            label_delay_rows=(total - tier.delays[1]) / labels if labels > 0 else None,
            lag_bytes=None if snapshot.source_lag_bytes < 0 else snapshot.source_lag_bytes,
            champion=next((learner.name for learner in snapshot.learners if learner.is_champion), None),
            learners={
                learner.name: (_first(learner.scores), _known(learner.weight), _known(learner.learning_rate))
                for learner in snapshot.learners
            },
        )
        tier.tick, tier.t = int(wall // tier.step), wall
        tier.rows, tier.delays = snapshot.rows, (count, total)
        self._do(
            "INSERT OR REPLACE INTO point (tier, slot, t, body) VALUES (?, ?, ?, ?)",
            (number, tier.tick % TIER_SLOTS, wall, msgspec.json.encode(point).decode()),
        )

    def _do(self, statement: str, values: tuple[Any, ...]) -> None:
        try:
            if not self._connection.in_transaction:
                self._connection.execute("BEGIN")
            self._connection.execute(statement, values)
        except sqlite3.Error as error:
            self._give_up(error)
            self._connection.execute(statement, values)

    def _commit(self) -> None:
        try:
            if self._connection.in_transaction:
                self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._give_up(error)

    def _give_up(self, error: sqlite3.Error) -> None:
        """A full disk or a damaged file: go on in memory, with nothing behind."""
        self.failure = self.failure or str(error)
        self._connection.close()
        self._connection = _connected(None)

    def read(self, since: float = 0.0, points: int = TIER_SLOTS) -> dict[str, Any]:
        """At most `points` points after `since` (seconds since 1970), oldest first, as fine as they are kept.

        Keys: `learners` (names), `score_name` (what the scores are), `points`, each with `t`, `row`,
        `rows_per_second`, `blend`, `label_delay_rows`, `lag_bytes`, `champion` and, one entry a
        learner, `score`, `weight`, `learning_rate`; None for what is not known.
        """
        with self._lock:
            kept = self._read(since)
        # Thinned from the newest back, so that the last point is always there.
        stride = -(-len(kept) // max(1, points))
        kept = kept[::-1][:: max(1, stride)][::-1]
        decoded = [(t, msgspec.json.decode(body, type=Point)) for t, body in kept]
        # The pool may have changed on the way; the newest point's order comes first.
        names = list(dict.fromkeys(name for _, point in reversed(decoded) for name in point.learners))
        return {
            "learners": names,
            "score_name": self._score,
            "points": [_shown(t, point, names) for t, point in decoded],
        }

    def _read(self, since: float) -> list[tuple[float, str]]:
        """Points of the finest tier that reaches back as far as any does."""
        try:
            if self._connection.in_transaction:
                self._connection.execute("COMMIT")
            oldest = dict(
                self._connection.execute("SELECT tier, min(t) FROM point WHERE t > ? GROUP BY tier", (since,))
            )
            if not oldest:
                return []
            enough = min(oldest.values()) + self.tiers[-1].step
            tier = min(number for number, t in oldest.items() if t <= enough)
            return self._connection.execute(
                "SELECT t, body FROM point WHERE tier = ? AND t > ? ORDER BY t", (tier, since)
            ).fetchall()
        except sqlite3.Error as error:
            self._give_up(error)
            return []

    def close(self) -> None:
        """Commit and let go of the file. Safe to call twice."""
        with self._lock:
            self._commit()
            self._connection.close()
            self._connection = _connected(None)


def _connected(path: pathlib.Path | None) -> sqlite3.Connection:
    """Raises sqlite3.Error for a damaged file or another program's."""
    connection = sqlite3.connect(
        path or ":memory:", timeout=1.0, isolation_level=None, check_same_thread=False
    )
    try:
        owner = connection.execute("PRAGMA application_id").fetchone()[0]
        is_new = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        if owner != APPLICATION_ID and not is_new:
            raise sqlite3.OperationalError("this is another program's database")
        if is_new:
            connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        connection.execute("PRAGMA journal_mode=WAL")
        # The loop writes here, and it waits for no disk on behalf of a picture.
        connection.execute("PRAGMA synchronous=OFF")
        connection.executescript(SCHEMA)
        if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("the pages of the file are damaged")
    except BaseException:
        connection.close()
        raise
    return connection


def _shown(t: float, point: Point, names: list[str]) -> dict[str, Any]:
    nothing = (None, None, None)
    score, weight, rate = (
        [point.learners.get(name, nothing)[column] for name in names] for column in range(3)
    )
    return {
        "t": round(t, 3),
        "row": point.row,
        "rows_per_second": point.rows_per_second,
        "blend": point.blend,
        "label_delay_rows": point.label_delay_rows,
        "lag_bytes": point.lag_bytes,
        "champion": point.champion,
        "score": score,
        "weight": weight,
        "learning_rate": rate,
    }


def _known(value: float) -> float | None:
    """`value` to six digits, None when it is not a finite number."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _first(scores: dict[str, float]) -> float | None:
    """The score that a task is judged by stands first: accuracy or mae."""
    return _known(next(iter(scores.values()), math.nan))
