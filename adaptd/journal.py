"""The journal: what was decided, at which row, and why, in an SQLite table of bounded length.

Entries are numbered by `seq` in the order of the decisions, and a checkpoint remembers the last one. On
start what lies after it is cut: the rows are worked on again and decide the same again, so a crash
doubles nothing.

The journal serves the reader and never the daemon. A file that is no journal any more is moved aside.
"""

import contextlib
import os
import pathlib
import sqlite3
import threading
from typing import Any

import msgspec

from adaptd.errors import AdaptdError

PENDING_MAX = 500
# Old entries go in batches, so that not every flush searches for one to delete.
SURPLUS_MAX = 1000

# "adap" in ASCII: says whose database it is.
APPLICATION_ID = 0x61646170

SCHEMA = """
CREATE TABLE IF NOT EXISTS journal (
    seq INTEGER PRIMARY KEY,
    row INTEGER NOT NULL,
    kind TEXT NOT NULL,
    payload TEXT NOT NULL,
    wall REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS journal_kind ON journal (kind, seq);
"""
INSERT = "INSERT OR REPLACE INTO journal (seq, row, kind, payload, wall) VALUES (?, ?, ?, ?, ?)"


class Entry(msgspec.Struct, frozen=True):
    """One decision."""

    seq: int
    row: int
    """The labelled row at which it was taken."""
    kind: str
    payload: dict[str, Any]
    wall: float
    """Seconds since 1970 when it was written; the only part that a replay changes."""


class Journal:
    """Entries in the file `path`, or in memory when it is None; at most about `rows_max` of them.

    `moved_aside` names the file that a damaged one was renamed to, or is None. Safe to read from other
    threads. Raises AdaptdError when the file cannot be opened or is another program's.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, rows_max: int = 100_000) -> None:
        self.path = None if path is None else pathlib.Path(path)
        self.rows_max = max(1, rows_max)
        self.moved_aside: str | None = None
        self._lock = threading.RLock()
        self._pending: list[tuple[int, int, str, str, float]] = []
        try:
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._connection = self._open()
            except sqlite3.OperationalError:
                raise  # no permission, no room, locked: the file itself may be whole
            except sqlite3.DatabaseError:
                self._move_aside()
                self._connection = self._open()
        except (sqlite3.Error, OSError) as error:
            raise AdaptdError(
                f"the journal {self.path} could not be opened: {error}. Correct journal.path or its "
                "permissions, or leave it out to keep the journal in memory."
            ) from error
        self._rows = self._connection.execute("SELECT count(*) FROM journal").fetchone()[0]

    def _open(self) -> sqlite3.Connection:
        """Raises sqlite3.DatabaseError for a damaged file, AdaptdError for another program's."""
        connection = sqlite3.connect(
            self.path or ":memory:", timeout=10.0, isolation_level=None, check_same_thread=False
        )
        try:
            owner = connection.execute("PRAGMA application_id").fetchone()[0]
            is_new = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
            if owner != APPLICATION_ID and not is_new:
                raise AdaptdError(
                    f"journal.path must name a journal of adaptd or a new file; {self.path} is another "
                    "program's database. Choose another path."
                )
            # A reader (`adaptd status`) does not hold up the daemon under a write-ahead log.
            connection.execute("PRAGMA journal_mode=WAL")
            if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                raise sqlite3.DatabaseError("the pages of the file are damaged")
            if is_new:
                connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            connection.executescript(SCHEMA)
        except BaseException:
            connection.close()
            raise
        return connection

    def _move_aside(self) -> None:
        assert self.path is not None
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.damaged-{number}")).exists():
            number += 1
        self.path.rename(aside)
        # These belong to the damaged file; SQLite would apply them to the new one.
        for suffix in ("-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        self.moved_aside = str(aside)

    def append(self, seq: int, row: int, kind: str, payload: dict[str, Any], wall: float) -> None:
        """Keep an entry; it is on disk after the next `flush`. One of the same `seq` is replaced."""
        with self._lock:
            self._pending.append((seq, row, kind, msgspec.json.encode(payload).decode(), wall))
            # A disk that is full stays full for a while: do not try again on every single entry.
            if len(self._pending) % PENDING_MAX == 0:
                self.flush()

    def flush(self) -> None:
        """Commit what was appended. Raises AdaptdError, and then keeps it for the next flush."""
        with self._lock:
            if not self._pending:
                return
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                self._connection.executemany(INSERT, self._pending)
                self._connection.execute("COMMIT")
            except sqlite3.Error as error:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                self._drop_oldest_pending()
                raise AdaptdError(
                    f"the journal {self.path} could not be written: {error}. {len(self._pending)} entries "
                    "wait in memory; make room or correct the permissions."
                ) from error
            self._rows += len(self._pending)
            self._pending.clear()
            if self._rows > self.rows_max + min(self.rows_max, SURPLUS_MAX):
                self._delete_oldest()

    def _drop_oldest_pending(self) -> None:
        """What waits in memory is bounded as the file is."""
        del self._pending[: -self.rows_max]

    def _delete_oldest(self) -> None:
        self._connection.execute(
            "DELETE FROM journal WHERE seq <= (SELECT seq FROM journal ORDER BY seq DESC LIMIT 1 OFFSET ?)",
            (self.rows_max,),
        )
        self._rows = self._connection.execute("SELECT count(*) FROM journal").fetchone()[0]

    def cut_after(self, seq: int) -> None:
        """Forget the entries after `seq`: what follows a checkpoint is decided anew."""
        with self._lock:
            self._pending = [entry for entry in self._pending if entry[0] <= seq]
            try:
                self._connection.execute("DELETE FROM journal WHERE seq > ?", (seq,))
            except sqlite3.Error as error:
                raise AdaptdError(
                    f"the journal {self.path} could not be cut: {error}. Correct its permissions or move "
                    "it away."
                ) from error
            self._rows = self._connection.execute("SELECT count(*) FROM journal").fetchone()[0]

    def last_seq(self) -> int:
        """The number of the newest entry; 0 when there is none."""
        with self._lock:
            waiting = max((entry[0] for entry in self._pending), default=0)
            found = self._connection.execute("SELECT max(seq) FROM journal").fetchone()[0]
            return max(waiting, found or 0)

    def read(self, last: int = 100, since: int = 0, kind: str | None = None) -> list[Entry]:
        """The newest `last` entries with `seq` above `since`, of one kind when given; ascending."""
        with self._lock:
            # A reader shall see what waits; when that cannot be written it sees what is on disk.
            with contextlib.suppress(AdaptdError):
                self.flush()
            rows = self._connection.execute(
                "SELECT seq, row, kind, payload, wall FROM journal WHERE seq > ? AND (? IS NULL OR kind = ?)"
                " ORDER BY seq DESC LIMIT ?",
                (since, kind, kind, last),
            ).fetchall()
        return [Entry(s, r, k, msgspec.json.decode(p), w) for s, r, k, p, w in reversed(rows)]

    def close(self) -> None:
        """Flush and let go of the file. Safe to call twice."""
        with self._lock:
            try:
                self.flush()
            finally:
                self._connection.close()
