"""JSON lines: one object a line, its features flat beside the id and the target, or nested under `x`.

How: the columns known so far make a typed struct, a whole batch of lines is decoded into it at C speed, and
columns are pulled out with `operator.attrgetter`. Lines that do not fit (a new column, text where numbers
were, NaN) are decoded one by one, and their values are put in at their places.

| in the record | becomes |
| --- | --- |
| number | float64; beyond float64's range infinite, which the schema takes as missing |
| `true`, `false` | a boolean (1.0 and 0.0 in a column of numbers) |
| text | a category |
| `null`, `NaN`, or no such key | missing; a value that is not there |
| `Infinity`, `-Infinity` | infinite, which the schema takes as missing |
| list or object as a feature | Reject `bad_feature` |
| the same key twice | the last one counts |
| `ts`: ISO 8601 text (UTC unless it says), or seconds since 1970 | seconds; anything else is missing |
| a weight that is not a finite number of at least 0 | Reject `bad_weight`; missing or null is 1 |
| an id or target that is a list, an object, or above 1,024 bytes | Reject `bad_id`, `bad_label` |
| no features at all | a label when there are id and target; else Reject `no_features`, `label_without_id` |
| an object under `x` | the features; other keys beside it are no features |
| not UTF-8; not JSON or nested too deeply | Reject `bad_encoding`, `not_json` |
| JSON, but no object | Reject `not_an_object` |

Empty lines are no records. A UTF-8 byte order mark before a record is passed over.

Use it when: the producer can write JSON; it is the only form in which labels may come later than features.
Do not use it when: a file has hundreds of columns and no late labels; CSV says the names once.
Cost: about 1.5 microseconds a row of 10 numbers, 0.055 for each more; 5 for a line that does not fit.
"""

import math
import re
from collections.abc import Mapping
from itertools import repeat
from operator import attrgetter, is_, itemgetter
from typing import Any

import msgspec
import numpy as np

from adaptd.contracts import NUMBER, Column, Fields, Reject, Rows, State
from adaptd.records import (
    BOM,
    KEY_BYTES_MAX,
    RAW_BYTES_MAX,
    RecordError,
    check_use,
    checked_weight,
    column_of,
    seconds,
    without_empty_columns,
)

NAMES_MAX = 1024
"""Columns the typed struct holds beside those in `kinds`; records with more lose only speed."""

NAN = math.nan
Raw = msgspec.Raw
# Quoted text first, so that a NaN inside of it is passed over.
NOT_FINITE = re.compile(rb'"(?:[^"\\\n]|\\.)*+"|(-?)(NaN|Infinity)')

_decode_any = msgspec.json.Decoder().decode
_decode_object = msgspec.json.Decoder(dict[str, Raw]).decode


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """JSON lines have nothing to set."""


def build(config: Config, fields: Fields) -> "JsonDecoder":
    """A decoder at the start of its input."""
    return JsonDecoder(fields)


class JsonDecoder:
    """Decodes JSON lines; see the module's docstring for what becomes of what."""

    def __init__(self, fields: Fields) -> None:
        self.fields = fields
        self.records = 0
        special = [fields.id, fields.target, fields.time, fields.weight, *fields.ignore, *fields.echo]
        self._special = frozenset(name for name in special if name)
        self._ignore = frozenset(fields.ignore)
        # The names below are there for speed only and so no part of the state.
        self._kinds: dict[str, int] = {}
        self._names: dict[str, None] = {}
        self._beside: dict[str, None] = {}
        self._nested = False
        self._typed: TypedRecords | None = None

    def decode(self, lines: bytes, kinds: Mapping[str, int]) -> Rows:
        if self._kinds != kinds:
            self._kinds = dict(kinds)
            self._typed = None
        if not self._names:
            self._learn_names(lines)
        if self._typed is None:
            self._typed = TypedRecords(self)
        records = self._typed.decode(lines)
        rows = None if records is None else self._typed.rows(records)
        if rows is None:
            return self._decode_singly(self._typed, lines)
        rows.positions = np.arange(self.records + 1, self.records + rows.n + 1)
        self.records += rows.n
        return without_empty_columns(rows)

    def state(self) -> State:
        return {"records": self.records}

    def load_state(self, state: State) -> None:
        self.records = int(state["records"])

    def _learn_names(self, lines: bytes) -> None:
        """What the first line has, so that the lines after it find a struct that fits."""
        try:
            self._decode_loosely(lines.lstrip().split(b"\n", 1)[0])
        except RecordError:
            return

    def _decode_singly(self, typed: "TypedRecords", lines: bytes) -> Rows:
        """Each line by itself: by the struct where it fits, else loosely; then both put together."""
        split = [stripped for line in lines.split(b"\n") if (stripped := line.strip(b" \t\r"))]
        records = [typed.decode_one(line) for line in split]
        if typed.rows([record for record in records if record is not None]) is None:
            records = [record if record and typed.rows([record]) else None for record in records]
        typed_at: list[int] = []
        loose: list[LooseRecord] = []
        loose_at: list[int] = []
        positions: list[int] = []
        rejects: list[Reject] = []
        for line, record in zip(split, records, strict=True):
            self.records += 1
            try:
                if record is None:
                    loose.append(self._decode_loosely(line))
                    loose_at.append(len(positions))
                else:
                    typed_at.append(len(positions))
                positions.append(self.records)
            except RecordError as fault:
                rejects.append(Reject(fault.reason, fault.detail, self.records, line[:RAW_BYTES_MAX]))
        rows = typed.rows([record for record in records if record is not None])
        assert rows is not None
        rows = merged(rows, typed_at, loose_rows(loose, self.fields), loose_at)
        rows.positions = np.array(positions, dtype=np.int64)
        rows.rejects = rejects
        if self._shape() != typed.shape:
            self._typed = None
        return without_empty_columns(rows)

    def _shape(self) -> tuple[bool, int, int]:
        """Changes when another struct would fit better."""
        return self._nested, len(self._names), len(self._beside)

    def _decode_loosely(self, line: bytes) -> "LooseRecord":
        """One record of any shape. Raises RecordError with reason and detail."""
        line = line.removeprefix(BOM).strip(b" \t\r")
        try:
            line.decode()
        except UnicodeDecodeError as fault:
            raise RecordError(
                "bad_encoding", f"must be UTF-8; byte {fault.start} of the record is not"
            ) from None
        raws = parsed(line, _decode_object)
        fields = self.fields
        inside = raws.get(fields.features)
        nested = inside is not None and bytes(inside)[:1] == b"{"
        if nested:
            assert inside is not None
            source = parsed(bytes(inside), _decode_object)
            names = [name for name in source if name not in self._ignore]
        else:
            source = raws
            names = [name for name in source if name not in self._special]
        values = feature_values(names, source, line if inside is None or not nested else bytes(inside))
        special = {name: raws[name] for name in self._special if name in raws}
        identity = key_bytes(special.get(fields.id), "bad_id", fields.id)
        label = key_bytes(special.get(fields.target), "bad_label", fields.target)
        weight = weight_value(bytes(special[fields.weight])) if fields.weight in special else 1.0
        time = seconds(raw_value(special[fields.time])) if fields.time in special else NAN
        has_features = nested or bool(names)
        check_use(has_features, identity, label)
        if has_features:
            self._nested = nested
            beside = [name for name in raws if name not in self._special and name != fields.features]
            add_names(self._names, names)
            add_names(self._beside, beside if nested else [])
        echo = echo_bytes([(name, bytes(special[name])) for name in fields.echo if name in special])
        return LooseRecord(values, identity, label, time, weight, has_features, echo)


def add_names(known: dict[str, None], names: list[str]) -> None:
    """Put `names` to the known ones, while there is room."""
    for name in names:
        if len(known) < NAMES_MAX:
            known.setdefault(name)


class LooseRecord(msgspec.Struct):
    """One record that was decoded by itself."""

    values: dict[str, float | bool | str | None]
    id: bytes | None
    label: bytes | None
    time: float
    weight: float
    has_features: bool
    echo: bytes


class TypedRecords:
    """The struct for the columns known, its decoder, and the way from its objects to columns."""

    def __init__(self, decoder: JsonDecoder) -> None:
        fields = self.fields = decoder.fields
        self.nested = decoder._nested
        self.shape = decoder._shape()
        hidden = decoder._ignore if self.nested else decoder._special
        known = dict.fromkeys([*decoder._kinds, *decoder._names])
        names = [name for name in known if name not in hidden and is_plain(name)]
        self.features = {f"f{i}": name for i, name in enumerate(names)}
        self.getters = {name: attrgetter(attribute) for attribute, name in self.features.items()}
        self.numeric = {name: decoder._kinds.get(name) == NUMBER for name in names}
        number, anything = float | bool | None, float | bool | str | None
        feature_fields: list[tuple[str, Any, Any]] = [
            (attribute, number if self.numeric[name] else anything, NAN)
            for attribute, name in self.features.items()
        ]
        beside = [name for name in decoder._beside if is_plain(name)] if self.nested else []
        special = [name for name in dict.fromkeys([*sorted(decoder._special), *beside]) if is_plain(name)]
        self.raws = {name: f"r{i}" for i, name in enumerate(special)}
        self.beside = [self.raws[name] for name in beside]
        raw_fields: list[tuple[str, Any, Any]] = [(attribute, Raw, Raw()) for attribute in self.raws.values()]
        options: dict[str, Any] = {"forbid_unknown_fields": True, "gc": False, "eq": False}
        rename = {attribute: name for name, attribute in self.raws.items()}
        if self.nested:
            ignored = {f"i{i}": name for i, name in enumerate(sorted(hidden)) if is_plain(name)}
            feature_fields += [(attribute, Raw, Raw()) for attribute in ignored]
            inner = msgspec.defstruct("Features", feature_fields, rename=self.features | ignored, **options)
            self.empty = inner()
            raw_fields.append(("x", inner | msgspec.UnsetType, msgspec.UNSET))
            rename["x"] = fields.features
        else:
            raw_fields += feature_fields
            rename |= self.features
        outer = msgspec.defstruct("Record", raw_fields, rename=rename, **options)
        self.decoder = msgspec.json.Decoder(outer)

    def decode(self, lines: bytes) -> list[Any] | None:
        """The records of `lines`, one a line; None when any line needs a closer look."""
        records = self._decode_lines(lines)
        if records is None and b"NaN" in lines:
            # Python's and Java's writers put NaN for a missing number, often in every line.
            records = self._decode_lines(without_nan(lines))
        return records

    def _decode_lines(self, lines: bytes) -> list[Any] | None:
        code = np.frombuffer(lines, np.uint8)
        ends = np.flatnonzero(code == 10)
        # The decoder would take a record across two lines and two records on one line. That each line
        # opens and closes with a brace, and that there are as many records as lines, excludes both.
        if (
            not len(ends)
            or ends[-1] != len(lines) - 1
            or code[0] != 123
            or not (code[ends[:-1] + 1] == 123).all()
            or not (code[ends - 1] == 125).all()
        ):
            return None
        try:
            # It checks the encoding only of what becomes Python text, which raw ids and labels do not.
            if not lines.isascii():
                lines.decode()
            records = self.decoder.decode_lines(lines)
        except (ValueError, RecursionError):
            return None
        return records if len(records) == len(ends) else None

    def decode_one(self, line: bytes) -> Any:
        """One record; None when it does not fit."""
        try:
            line.decode()
            return self.decoder.decode(NOT_FINITE.sub(finite_token, line) if b"NaN" in line else line)
        except (ValueError, RecursionError):
            return None

    def rows(self, records: list[Any]) -> Rows | None:
        """Columns of records, positions not yet; None when one of them needs a closer look."""
        n = len(records)
        fields = self.fields
        bodies = records
        has_features = np.ones(n, dtype=np.bool_)
        if self.nested:
            bodies = list(map(attrgetter("x"), records))
            absent = np.fromiter(map(is_, bodies, repeat(msgspec.UNSET)), np.bool_, n)
            if absent.any():
                has_features = ~absent
                bodies = [self.empty if body is msgspec.UNSET else body for body in bodies]
                for attribute in self.beside:
                    # Without `x` they are flat records, and what stands beside it elsewhere are features.
                    if any(bytes(getattr(records[i], attribute)) for i in np.flatnonzero(absent)):
                        return None
        columns: dict[str, Column] = {}
        for name, getter in self.getters.items():
            columns[name] = typed_column(bodies, getter, self.numeric[name])
        if not self.nested:
            self._find_labels(bodies, columns, has_features)
        ids = self._keys(records, fields.id)
        labels = self._keys(records, fields.target)
        if ids is None or labels is None:
            return None
        if not has_features.all():
            for i in np.flatnonzero(~has_features):
                if ids[i] is None or labels[i] is None:
                    return None
        times = np.full(n, NAN)
        if fields.time in self.raws:
            stamps = self._raw(records, fields.time)
            if any(stamps):
                times = np.array([seconds(raw_value(stamp)) if stamp else NAN for stamp in stamps])
        weights = np.ones(n)
        if fields.weight in self.raws:
            try:
                weights = np.array(
                    [weight_value(raw) if raw else 1.0 for raw in self._raw(records, fields.weight)]
                )
            except RecordError:
                return None
        echo = None
        if fields.echo:
            named = [(name, self._raw(records, name)) for name in fields.echo if name in self.raws]
            echo = [echo_bytes([(name, raws[i]) for name, raws in named if raws[i]]) for i in range(n)]
        return Rows(n, columns, ids, labels, has_features, times, weights, echo)

    def _raw(self, records: list[Any], name: str) -> list[bytes]:
        return list(map(bytes, map(attrgetter(self.raws[name]), records)))

    def _keys(self, records: list[Any], name: str) -> list[bytes | None] | None:
        """Ids or labels; None for the list when one is of a form that has to be rejected."""
        if name not in self.raws:
            return [None] * len(records)
        raws = self._raw(records, name)
        keys: list[bytes | None] = list(raws)
        if b"" in raws or b"null" in raws:
            keys = [None if raw in (b"", b"null") else raw for raw in raws]
            raws = [raw for raw in raws if raw]
        if raws and (
            not {91, 123}.isdisjoint(map(itemgetter(0), raws)) or max(map(len, raws)) > KEY_BYTES_MAX
        ):
            return None
        return keys

    def _find_labels(self, bodies: list[Any], columns: dict[str, Column], has_features: Any) -> None:
        """Clear `has_features` where a flat record has no feature's key."""
        candidates = np.ones(len(bodies), dtype=np.bool_)
        for column in columns.values():
            if not candidates.any():
                return
            if isinstance(column, np.ndarray):
                candidates &= np.isnan(column)
            else:
                candidates &= np.fromiter(map(is_, column, repeat(None)), np.bool_, len(column))
        for i in np.flatnonzero(candidates):
            # A key that is there with null gives None; one that is not leaves the default, NaN.
            has_features[i] = any(getter(bodies[i]) is None for getter in self.getters.values())


def is_plain(name: str) -> bool:
    """Whether a msgspec struct can have a field of this name."""
    return not ('"' in name or "\\" in name or any(character < " " for character in name))


def typed_column(bodies: list[Any], getter: Any, numeric: bool) -> Column:
    """One column of typed records: an array when all are numbers (booleans too if `numeric`)."""
    if numeric:
        try:
            return np.fromiter(map(getter, bodies), np.float64, len(bodies))
        except TypeError:  # a null
            return np.array(list(map(getter, bodies)), dtype=np.float64)
    values = list(map(getter, bodies))
    if {float, type(None)}.issuperset(map(type, values)):
        return column_of(values)
    # NaN, which differs from itself, stands for a key that is not there.
    return [None if value != value else value for value in values]


def merged(typed: Rows, typed_at: list[int], loose: Rows, loose_at: list[int]) -> Rows:
    """Both sorts of rows in the order they came."""
    if not loose_at:
        return typed
    n = typed.n + loose.n
    columns: dict[str, Column] = {}
    for name in dict.fromkeys([*typed.columns, *loose.columns]):
        parts = [(typed.columns.get(name), typed_at), (loose.columns.get(name), loose_at)]
        if all(part is None or isinstance(part, np.ndarray) for part, _ in parts):
            column: Any = np.full(n, NAN)
            for part, places in parts:
                if part is not None:
                    column[places] = part
        else:
            column = [None] * n
            for part, places in parts:
                if part is not None:
                    for place, value in zip(places, as_list(part), strict=True):
                        column[place] = value
        columns[name] = column
    order = np.argsort(np.array(typed_at + loose_at, dtype=np.int64))

    def both(first: Any, second: Any) -> Any:
        if isinstance(first, np.ndarray):
            return np.concatenate([first, second])[order]
        joined = first + second
        return [joined[i] for i in order]

    return Rows(
        n,
        columns,
        both(typed.ids, loose.ids),
        both(typed.labels, loose.labels),
        both(typed.has_features, loose.has_features),
        both(typed.times, loose.times),
        both(typed.weights, loose.weights),
        None if typed.echo is None else both(typed.echo, loose.echo),
    )


def as_list(column: Column) -> list[Any]:
    """Python values; None for missing."""
    if isinstance(column, np.ndarray):
        return [None if value != value else value for value in column.tolist()]
    return column


def loose_rows(records: list[LooseRecord], fields: Fields) -> Rows:
    """Columns of loosely decoded records."""
    columns: dict[str, Column] = {}
    for name in dict.fromkeys(name for record in records for name in record.values):
        columns[name] = column_of([record.values.get(name) for record in records])
    return Rows(
        len(records),
        columns,
        [record.id for record in records],
        [record.label for record in records],
        np.array([record.has_features for record in records], dtype=np.bool_),
        np.array([record.time for record in records], dtype=np.float64),
        np.array([record.weight for record in records], dtype=np.float64),
        [record.echo for record in records] if fields.echo else None,
    )


def parsed(line: bytes, decode: Any) -> dict[str, Raw]:
    """The object of a line, its values raw; NaN becomes null, Infinity a number beyond the range."""
    try:
        return decode(line)  # type: ignore[no-any-return]
    except RecursionError:
        raise RecordError("not_json", "must not be nested this deeply") from None
    except msgspec.ValidationError as fault:
        raise RecordError("not_an_object", f"must be a JSON object: {fault}") from None
    except ValueError as fault:
        plain = NOT_FINITE.sub(finite_token, line)
        if plain == line:
            raise RecordError("not_json", f"must be JSON: {fault}") from None
        return parsed(plain, decode)


def without_nan(lines: bytes) -> bytes:
    """NaN outside of text becomes null."""
    code = np.frombuffer(lines, np.uint8)
    inside = np.logical_xor.accumulate(code == 34)
    # Without a backslash a quote always opens or closes a text.
    simple = b"\\" not in lines and not inside[code == 10].any()
    if simple and not any(inside[match.start()] for match in re.finditer(b"NaN", lines)):
        return lines.replace(b"NaN", b"null")
    return NOT_FINITE.sub(finite_token, lines)


def finite_token(match: re.Match[bytes]) -> bytes:
    """What stands for NaN and Infinity in JSON; quoted text stays."""
    if match[2] is None:
        return match[0]
    return b"null" if match[2] == b"NaN" else match[1] + b"1e999"


def raw_value(raw: Raw | bytes) -> Any:
    """A number, text, bool or None; numbers beyond the range are infinite. None for what cannot be read."""
    try:
        return _decode_any(raw)
    except (ValueError, RecursionError):
        try:
            return float(bytes(raw))
        except ValueError:
            return None


def feature_values(names: list[str], raws: dict[str, Raw], body: bytes) -> dict[str, Any]:
    """The features of one record. Raises RecordError for a list or an object among them."""
    try:
        values = _decode_any(body)
    except (ValueError, RecursionError):
        values = {name: raw_value(raws[name]) for name in names}
    features: dict[str, float | bool | str | None] = {}
    for name in names:
        value = values[name]
        if isinstance(value, list | dict):
            raise RecordError(
                "bad_feature",
                f"{name[:200]!r} must be a number, a boolean, text or null; got {bytes(raws[name])[:200]!r}",
            )
        if isinstance(value, int) and not isinstance(value, bool):
            try:
                value = float(value)
            except OverflowError:
                value = math.inf if value > 0 else -math.inf
        features[name] = value
    return features


def key_bytes(raw: Raw | None, reason: str, name: str) -> bytes | None:
    """An id or a label, raw. Raises RecordError for one that cannot be a key."""
    text = b"" if raw is None else bytes(raw)
    if text[:1] in (b"[", b"{") or len(text) > KEY_BYTES_MAX:
        raise RecordError(
            reason,
            f"{name[:200]!r} must be a number, a boolean or a text of at most {KEY_BYTES_MAX} bytes; "
            f"got {text[:200]!r}",
        )
    return None if text in (b"", b"null") else text


def weight_value(raw: bytes) -> float:
    """A row's weight. Raises RecordError."""
    value = raw_value(raw)
    return checked_weight(raw.decode() if value is None and raw != b"null" else value)


def echo_bytes(named: list[tuple[str, bytes]]) -> bytes:
    """The inside of a JSON object."""
    return b",".join(msgspec.json.encode(name) + b":" + raw for name, raw in named)
