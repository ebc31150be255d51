"""Rows of a table in a file: `.npy`, `.parquet`, `.arff`.

How: reads 4,096 rows at a time; `tables.py` says what becomes of which column. The position is a row number.

Use it when: the data of a replay lie in one of these forms.
Do not use it when: the file grows while it is read; that is for `file`.
Cost: one piece of 4,096 rows in memory; resuming in an `.arff` reads over the lines before.
Guarantee: resumes at exactly the row after the last one given out.
"""

import os
from collections.abc import Iterator, Mapping

import msgspec

from adaptd.contracts import Fields, Rows, State
from adaptd.errors import InputError
from adaptd.tables import open_table


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which table."""

    path: str = ""
    """The file; its ending says its form."""


def build(config: Config, fields: Fields) -> "TableSource":
    """The table from its first row. Raises InputError when it cannot be opened."""
    return TableSource(config, fields)


class TableSource:
    """Rows of a table, in order."""

    def __init__(self, config: Config, fields: Fields) -> None:
        self.config = config
        self._size = os.path.getsize(config.path) if os.path.exists(config.path) else 0
        self._batches = open_table(config.path, fields)
        self._rows: Iterator[Rows] = self._batches(0)
        self._row = 0

    def poll(self, kinds: Mapping[str, int]) -> Rows | None:
        rows = next(self._rows, None)
        if rows is not None:
            self._row += rows.n + len(rows.rejects)
        return rows

    def stop(self) -> None:
        # The rows that were not given out can be read again.
        self._rows = iter(())

    def position(self) -> State:
        return {"path": self.config.path, "row": self._row, "size": self._size}

    def seek(self, position: State) -> None:
        if "row" not in position or position["size"] != self._size:
            raise InputError(
                f"{self.config.path!r} is not the table that the checkpoint was made from: it must have "
                f"{position.get('size', 'its former number of')} bytes; got {self._size}. "
                "Bring that table back, or choose another checkpoint directory to start anew."
            )
        self._row = int(position["row"])
        self._rows = self._batches(self._row)

    def lag_bytes(self) -> int:
        return -1

    def close(self) -> None:
        self._rows = iter(())
