"""Rows of named values become rows of float64: columns and category codes are given out as they appear.

A column stands where its first value stands: columns are ordered by the first row that has a value for them,
and by name within that row. Its type is that of this first value, or what `[schema] types` says. A column's
place, type and codes depend on the rows alone, never on how they were cut into batches.

| value | in a column of numbers | in a category column |
| --- | --- | --- |
| number | float64; beyond 1e300 it counts as 1e300 (`clipped`) | the code of its text; 3 and 3.0 are `3` |
| boolean | 1.0 or 0.0 | the code of `true` or `false` |
| text | missing (`text_in_number`), unless the type was told and it reads as one | its code |
| infinite | missing (`not_finite`) | missing (`not_finite`) |
| None, NaN | missing: NaN | missing: NaN |

The words in brackets are keys of `Schema.counts`. Codes count from 0 by first appearance; once there are
`categories_max`, further texts share 64 more codes by their hash (`category_hashed`). Columns beyond
`features_max` are left out (`feature_left_out`).

Cost: about 10 nanoseconds a number, 60 a category. State: the names and texts, at most `features_max` times
`categories_max`, each text at most 200 characters.
"""

import hashlib
import math
import sys
import zlib
from typing import Any, Literal

import msgspec
import numpy as np

from adaptd.contracts import CATEGORY, NUMBER, Column, Floats, Rows, State
from adaptd.records import JSON_NUMBER, number_text

VALUE_MAX = 1e300
HASH_CODES = 64
TEXT_MAX = 200
"""Longer texts are known by their beginning and a hash, so that the state stays bounded."""

_decode = msgspec.json.Decoder().decode


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the schema is told; all else it finds by itself."""

    types: dict[str, Literal["number", "category", "boolean", "ignore"]] = {}
    """Types of columns by name, where the first value would say another one."""
    categories_max: int = 1024
    """Codes a category column gives out before further texts share 64 codes."""
    features_max: int = 1024
    """Columns that are taken in."""

    def __post_init__(self) -> None:
        for name in ("categories_max", "features_max"):
            if not 1 <= getattr(self, name) <= 1 << 20:
                raise ValueError(f"{name} must be from 1 to 1048576; got {getattr(self, name)}")


class Segment(msgspec.Struct):
    """Rows `start` to `stop` of a batch, all of one shape."""

    start: int
    stop: int
    kinds: tuple[int, ...]
    """As in Layout."""
    capacities: tuple[int, ...]
    """As in Layout."""
    x: Floats
    """[stop - start, len(kinds)], C-contiguous."""


class Schema:
    """The columns seen so far, and the way from rows to arrays."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.names: list[str] = []
        self.counts = {
            "text_in_number": 0,
            "not_finite": 0,
            "clipped": 0,
            "category_hashed": 0,
            "feature_left_out": 0,
        }
        """Values that were not taken as they came, by what happened to them."""
        self.kinds: dict[str, int] = {}
        """NUMBER or CATEGORY of the columns whose type is known: what decoders want to know."""
        self._capacities: list[int] = []
        self._codes: dict[str, dict[str | None, float]] = {}
        self._told: dict[str, int] = {}
        for name, told in config.types.items():
            if told != "ignore":
                self._told[name] = self.kinds[name] = CATEGORY if told == "category" else NUMBER

    def categories(self, name: str) -> list[str]:
        """The texts of a category column in the order of their codes."""
        return [text for text in self._codes[name] if text is not None]

    def encode(self, rows: Rows) -> list[Segment]:
        """The rows as arrays. A row that makes the layout grow is the first of a new segment."""
        if rows.n == 0:
            return []
        capacities = list(self._capacities)
        known = set(self.names)
        columns: dict[str, Floats | list[str | None]] = {}
        appearing: list[tuple[int, str]] = []
        for name, column in rows.columns.items():
            if self.config.types.get(name) == "ignore":
                continue
            kind = self.kinds.get(name)
            if name in known:
                columns[name], first = self._taken(name, column), None
            elif kind is not None:
                converted = columns[name] = self._converted(name, column, kind)
                first = first_place(converted)
            else:
                first = first_usable(column)
                if first is None:
                    self._count_unused(column)
            if first is not None:
                appearing.append((first, name))
        events = self._append(sorted(appearing), rows, columns)
        x = np.full((rows.n, len(self.names)), np.nan)
        for j, name in enumerate(self.names):
            if name not in columns:
                continue
            if self.kinds[name] == NUMBER:
                x[:, j] = columns[name]
            else:
                x[:, j] = codes = self._encoded(name, columns[name])
                events += self._raised(j, codes)
        return self._segments(self._bounded(x), capacities, events)

    def encode_known(self, rows: Rows) -> Floats:
        """[n, features] of the columns known so far; changes nothing. A text without a code is missing."""
        x = np.full((rows.n, len(self.names)), np.nan)
        counts = self.counts.copy()
        for j, name in enumerate(self.names):
            if name not in rows.columns:
                continue
            column = self._taken(name, rows.columns[name])
            if self.kinds[name] == NUMBER:
                x[:, j] = column
                continue
            known = self._codes[name]
            codes = np.array([known.get(text, math.nan) for text in column], dtype=np.float64)
            x[:, j] = np.where(codes < self._capacities[j], codes, np.nan)
        x = self._bounded(x)
        self.counts = counts
        return x

    def state(self) -> State:
        return {
            "names": list(self.names),
            "kinds": [self.kinds[name] for name in self.names],
            "capacities": list(self._capacities),
            "categories": {name: self.categories(name) for name in self._codes},
            "counts": dict(self.counts),
        }

    def load_state(self, state: State) -> None:
        self.names = list(state["names"])
        self.kinds = self._told | dict(zip(self.names, map(int, state["kinds"]), strict=True))
        self._capacities = [int(capacity) for capacity in state["capacities"]]
        self._codes = {
            name: {None: math.nan} | {text: float(code) for code, text in enumerate(texts)}
            for name, texts in state["categories"].items()
        }
        self.counts = {name: int(count) for name, count in state["counts"].items()}

    def _append(
        self, appearing: list[tuple[int, str]], rows: Rows, columns: dict[str, Any]
    ) -> list[tuple[int, int, int]]:
        """Give places to new columns. Returns for each its row, its place and its capacity."""
        events = []
        for first, name in appearing:
            if len(self.names) >= self.config.features_max:
                if name in columns:
                    self.counts["feature_left_out"] += n_present(columns.pop(name))
                else:
                    self.counts["feature_left_out"] += self._count_unused(rows.columns[name])
                continue
            if name not in columns:
                column = rows.columns[name]
                text = isinstance(column, list) and isinstance(column[first], str)
                self.kinds[name] = CATEGORY if text else NUMBER
                columns[name] = self._converted(name, column, self.kinds[name])
            capacity = 0
            if self.kinds[name] == CATEGORY:
                capacity = 4
                self._codes[name] = {None: math.nan}
            events.append((first, len(self.names), capacity))
            self.names.append(name)
            self._capacities.append(capacity)
        return events

    def _taken(self, name: str, column: Column) -> Floats | list[str | None]:
        """As `_converted`, of a known column; but an array of numbers is bounded later, with all others."""
        kind = self.kinds[name]
        if kind == NUMBER and isinstance(column, np.ndarray):
            return column
        return self._converted(name, column, kind)

    def _converted(self, name: str, column: Column, kind: int) -> Floats | list[str | None]:
        """Numbers, or the texts of categories; what cannot be taken is missing and counted."""
        return self._numbers(column, name in self._told) if kind == NUMBER else self._texts(column)

    def _numbers(self, column: Column, told: bool) -> Floats:
        if isinstance(column, np.ndarray):
            values = column
        else:
            values = np.array([self._number(value, told) for value in column], dtype=np.float64)
        return self._bounded(values)

    def _bounded(self, values: Floats) -> Floats:
        """Infinite ones are missing, those beyond `VALUE_MAX` clipped, and both counted."""
        large = np.abs(values) > VALUE_MAX
        if large.any():
            infinite = np.isinf(values)
            self.counts["not_finite"] += int(infinite.sum())
            self.counts["clipped"] += int((large & ~infinite).sum())
            values = np.where(infinite, np.nan, np.clip(values, -VALUE_MAX, VALUE_MAX))
        return values

    def _number(self, value: Any, told: bool) -> float:
        if value is None:
            return math.nan
        if isinstance(value, str):
            number = number_in_text(value) if told else None
            if number is None:
                self.counts["text_in_number"] += 1
                return math.nan
            return number
        try:
            return float(value)
        except OverflowError:
            return math.inf

    def _texts(self, column: Column) -> list[str | None]:
        values: list[Any] = column.tolist() if isinstance(column, np.ndarray) else column
        if {str, type(None)}.issuperset(map(type, values)):
            return values
        return [self._text(value) for value in values]

    def _text(self, value: Any) -> str | None:
        if value is None or isinstance(value, str):
            return value
        if isinstance(value, bool):
            return "true" if value else "false"
        number = self._number(value, False)
        if math.isinf(number):
            self.counts["not_finite"] += 1
        return number_text(number) if math.isfinite(number) else None

    def _encoded(self, name: str, texts: Any) -> Floats:
        """The codes of texts; new texts get theirs."""
        known = self._codes[name]
        codes = list(map(known.get, texts))
        if None in codes:
            codes = [
                self._code(known, text) if code is None else code
                for code, text in zip(codes, texts, strict=True)
            ]
        return np.array(codes, dtype=np.float64)

    def _code(self, known: dict[str | None, float], text: str) -> float:
        if len(text) > TEXT_MAX:
            text = text[: TEXT_MAX - 41] + "#" + hashlib.sha256(text.encode()).hexdigest()[:40]
        code = known.get(text)
        if code is not None:
            return code
        given = len(known) - 1  # the None that stands for missing
        if given < self.config.categories_max:
            known[text] = float(given)
            return known[text]
        self.counts["category_hashed"] += 1
        return float(self.config.categories_max + zlib.crc32(text.encode()) % HASH_CODES)

    def _raised(self, j: int, codes: Floats) -> list[tuple[int, int, int]]:
        """Raise the capacity of column `j` to what its codes need: row, place, capacity of each step."""
        events = []
        while (above := np.flatnonzero(codes >= self._capacities[j])).size:
            capacity = self._capacities[j]
            while capacity <= codes[above[0]]:
                capacity *= 2
            self._capacities[j] = capacity
            events.append((int(above[0]), j, capacity))
        return events

    def _segments(
        self, x: Floats, capacities: list[int], events: list[tuple[int, int, int]]
    ) -> list[Segment]:
        """Cut `x` where the layout grows. `capacities`: before the first row."""
        kinds = tuple(self.kinds[name] for name in self.names)
        segments = []
        # A new column's first event is its own, so within one row the order of places is the right one.
        events = sorted(events)
        starts = sorted({0, *(row for row, _, _ in events)})
        for start, stop in zip(starts, [*starts[1:], len(x)], strict=True):
            while events and events[0][0] == start:
                _, j, capacity = events.pop(0)
                if j == len(capacities):
                    capacities.append(capacity)
                else:
                    capacities[j] = capacity
            n = len(capacities)
            part = np.ascontiguousarray(x[start:stop, :n])
            segments.append(Segment(start, stop, kinds[:n], tuple(capacities), part))
        return segments

    def _count_unused(self, column: Column) -> int:
        """Count the infinite values of a column without a place. Returns how many others there are."""
        infinite = sum(is_infinite(value) for value in column)
        self.counts["not_finite"] += infinite
        return n_present(column) - infinite


def is_infinite(value: Any) -> bool:
    """Infinite, or an integer beyond the range of float64."""
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) > sys.float_info.max
    return isinstance(value, float) and math.isinf(value)


def n_present(column: Any) -> int:
    """Values that are not missing."""
    return int(sum(value is not None and value == value for value in column))


def first_place(column: Floats | list[str | None]) -> int | None:
    """Where the first value is that is not missing."""
    if isinstance(column, np.ndarray):
        places = np.flatnonzero(~np.isnan(column))
        return int(places[0]) if places.size else None
    return next((i for i, value in enumerate(column) if value is not None), None)


def first_usable(column: Column) -> int | None:
    """Where the first value is that can say the type of its column."""
    if isinstance(column, np.ndarray):
        places = np.flatnonzero(np.isfinite(column))
        return int(places[0]) if places.size else None
    for i, value in enumerate(column):
        if value is not None and value == value and not is_infinite(value):
            return i
    return None


def number_in_text(text: str) -> float | None:
    """What a text says in a column that was told to hold numbers or booleans; None when it says neither."""
    lowered = text.strip().lower()
    if lowered in ("true", "false"):
        return float(lowered == "true")
    return float(lowered) if JSON_NUMBER.fullmatch(lowered) else None


class Classes:
    """Labels to class codes, in the order in which they were learned.

    `1`, `1.0` and `"1"` are one class, and so are `true` and `"true"`; the first spelling is echoed.
    """

    def __init__(self, classes_max: int = 1000) -> None:
        self.classes_max = classes_max
        self.spellings: list[bytes] = []
        """Raw JSON, one a class."""
        self._codes: dict[str, int] = {}
        self._by_raw: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self.spellings)

    def code(self, raw: bytes) -> int:
        """The code of a label, -1 for a class not seen yet."""
        code = self._by_raw.get(raw)
        if code is None:
            code = self._codes.get(canonical(raw), -1)
            # Only bounded: a class can be spelled in any number of ways (1, 1.0, 1.00).
            if code >= 0 and len(self._by_raw) < 16 * self.classes_max:
                self._by_raw[raw] = code
        return code

    def codes(self, labels: list[bytes | None]) -> Floats:
        """[n]: as `code`; NaN where there is no label."""
        found = np.array(list(map(self._by_raw.get, labels)), dtype=np.float64)  # type: ignore[arg-type]
        for i in np.flatnonzero(np.isnan(found)).tolist():
            label = labels[i]
            if label is not None:
                found[i] = self.code(label)
        return found

    def add(self, raw: bytes) -> int:
        """The code of a label, a new one for a new class; -1 when there are `classes_max` already."""
        code = self.code(raw)
        if code < 0 and len(self.spellings) < self.classes_max:
            code = len(self.spellings)
            self._codes[canonical(raw)] = code
            self.spellings.append(raw)
        return code

    def state(self) -> State:
        return {"spellings": list(self.spellings)}

    def load_state(self, state: State) -> None:
        self.spellings, self._codes, self._by_raw = [], {}, {}
        for raw in state["spellings"]:
            self.spellings.append(raw)
            self._codes[canonical(raw)] = len(self._codes)


def label_value(raw: bytes) -> float | int | bool | str:
    """A label's value; text that reads as a number is that number."""
    try:
        value = _decode(raw)
    except msgspec.DecodeError:
        value = raw.decode(errors="replace")
    if isinstance(value, str) and JSON_NUMBER.fullmatch(value):
        value = int(value) if value.removeprefix("-").isdigit() else float(value)
    return value  # type: ignore[no-any-return]


def canonical(raw: bytes) -> str:
    """One text for all spellings of a class."""
    value = label_value(raw)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return number_text(value) if math.isfinite(value) else repr(value)
    return str(value)


def label_number(raw: bytes) -> float:
    """The target as a number; NaN when it is none, or not a finite one."""
    value = label_value(raw)
    if isinstance(value, str | bool) or is_infinite(value):
        return math.nan
    return float(value)


def label_form(raw: bytes) -> Literal["text", "boolean", "integer", "fraction"]:
    """What a label looks like: the first three start classification, a fraction means regression."""
    value = label_value(raw)
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, str):
        return "text"
    return "integer" if value == value // 1 else "fraction"
