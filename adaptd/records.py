"""What decoders, table readers and the schema agree on about single values of a record."""

import math
import re
from datetime import UTC, datetime
from typing import Any

import numpy as np

from adaptd.contracts import Column, Rows

RAW_BYTES_MAX = 64 * 1024
"""A rejected record is kept up to here."""
KEY_BYTES_MAX = 1024
"""Ids and labels are held in buffers and echoed; longer ones are rejected."""

BOM = b"\xef\xbb\xbf"
"""Editors put it before a text in UTF-8."""

JSON_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class RecordError(Exception):
    """A record that cannot be used: `reason` and `detail` of its Reject."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


def number_text(value: float) -> str:
    """The one text of a finite number: 3 and 3.0 are `3`, 0.5 is `0.5`."""
    if value == math.floor(value) and abs(value) < 1e16:
        return str(int(value))
    return repr(value)


def seconds(value: Any) -> float:
    """Event time in seconds since 1970 from ISO 8601 text (UTC unless it says) or a number; else NaN."""
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            return math.nan
        return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - EPOCH).total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e300 < value < 1e300:
        return math.nan
    return float(value)


def checked_weight(value: Any) -> float:
    """A row's weight, 1 when missing. Raises RecordError."""
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e300:
        got = repr(value)[:200]
        raise RecordError("bad_weight", f"the weight must be a finite number of at least 0; got {got}")
    return float(value)


def check_use(has_features: bool, key: bytes | None, label: bytes | None) -> None:
    """Raises RecordError for a record that nothing could be done with."""
    if has_features or (key is not None and label is not None):
        return
    if label is not None:
        raise RecordError("label_without_id", "a label alone must have the id of the row it belongs to")
    raise RecordError("no_features", "must have features; a row without any writes an empty object for them")


def column_of(values: list[Any]) -> Column:
    """An array when all values are float or None, else the list as it is."""
    if {float, type(None)}.issuperset(map(type, values)):
        return np.array(values, dtype=np.float64)
    return values


def without_empty_columns(rows: Rows) -> Rows:
    """A name appears when any of the records has a value for it, whatever columns were expected."""
    for name, column in list(rows.columns.items()):
        if isinstance(column, np.ndarray):
            # Mostly the first tells, and a request has no other.
            empty = not len(column) or (math.isnan(column[0]) and bool(np.isnan(column).all()))
        else:
            empty = all(value is None for value in column)
        if empty:
            del rows.columns[name]
    return rows
