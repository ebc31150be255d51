"""Tables in files: `.npy`, `.parquet`, `.arff`, read in pieces as rows.

| file | columns | target |
| --- | --- | --- |
| .npy | a 2-D array of numbers, mapped; its columns are called x1, x2, ... | the one told, else the last |
| .parquet | numbers, booleans, text, dictionaries, times (as seconds since 1970) | see below |
| .arff | numeric, nominal, string; `?` is missing; sparse rows are rejected | see below |

The target is `fields.target`, else (where no target was told) `class`, else the last column.
"""

import csv
import datetime
import decimal
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np

from adaptd.contracts import Column, Fields, Reject, Rows
from adaptd.errors import InputError
from adaptd.records import (
    RAW_BYTES_MAX,
    RecordError,
    check_use,
    checked_weight,
    column_of,
    number_text,
    seconds,
    without_empty_columns,
)

BATCH_ROWS = 4096
# Of a wide table fewer rows: several copies of a batch are on their way at once.
BATCH_CELLS = 1 << 18

# From a row number (from 0) on, the rows of a table in batches.
Batches = Callable[[int], Iterator[Rows]]


def open_table(path: str, fields: Fields) -> Batches:
    """The table's rows in batches. Raises InputError."""
    readers = {".npy": open_npy, ".parquet": open_parquet, ".arff": open_arff}
    ending = pathlib.PurePath(path).suffix.lower()
    if ending not in readers:
        raise InputError(f"{path!r} must end in one of {', '.join(readers)}; got {ending!r}.")
    try:
        return readers[ending](path, fields)
    except FileNotFoundError as fault:
        raise InputError(f"{path!r} does not exist. Check the path.") from fault
    except (OSError, ValueError, EOFError) as fault:
        raise InputError(f"{path!r} must be a readable {ending} file: {fault}.") from fault


def batch_rows(columns: int) -> int:
    return max(64, min(BATCH_ROWS, BATCH_CELLS // columns))


def open_npy(path: str, fields: Fields) -> Batches:
    """A 2-D array; its last column is the target, unless `fields.target` is the name of another one."""
    table = np.load(path, mmap_mode="r", allow_pickle=False)
    is_table = isinstance(table, np.ndarray) and table.ndim == 2 and table.shape[1] > 0
    if not is_table or table.dtype.kind not in "biuf":
        raise InputError(f"{path!r} must hold one 2-D array of numbers, its last column the target.")
    names = [f"x{j + 1}" for j in range(table.shape[1])]
    if fields.target not in names:
        names[-1:] = [fields.target]

    size = batch_rows(len(names))

    def batches(start: int) -> Iterator[Rows]:
        for first in range(start, len(table), size):
            part = np.asarray(table[first : first + size], dtype=np.float64)
            columns: dict[str, Any] = {name: part[:, j].copy() for j, name in enumerate(names)}
            columns[fields.target] = columns[fields.target].tolist()
            yield table_rows(columns, fields, fields.target, range(first + 1, first + 1 + len(part)))

    return batches


def open_parquet(path: str, fields: Fields) -> Batches:
    """Batches of a Parquet file."""
    import pyarrow as pa
    from pyarrow import parquet

    table = parquet.ParquetFile(path)
    target = target_of(list(table.schema_arrow.names), fields, path)
    for field in table.schema_arrow:
        nested = pa.types.is_nested(field.type) or pa.types.is_binary(field.type)
        if nested and field.name not in fields.ignore:
            raise InputError(
                f"column {field.name!r} of {path!r} must hold numbers, booleans, text or times; "
                f"got {field.type}. Put it among the ignored columns."
            )

    # An id as float64 would lose digits.
    raw = {fields.id, target, fields.time, fields.weight, *fields.echo}

    def batches(start: int) -> Iterator[Rows]:
        groups: list[int] = []
        first = 0
        for group in range(table.num_row_groups):
            size = table.metadata.row_group(group).num_rows
            if first + size > start or groups:
                groups.append(group)
            else:
                first += size
        for batch in table.iter_batches(batch_rows(len(table.schema_arrow)), row_groups=groups):
            skip = min(max(0, start - first), batch.num_rows)
            first += batch.num_rows
            batch = batch.slice(skip)
            if batch.num_rows:
                columns = {
                    name: column.to_pylist() if name in raw else arrow_column(column)
                    for name, column in zip(batch.schema.names, batch.columns, strict=True)
                    if name not in fields.ignore
                }
                yield table_rows(columns, fields, target, range(first - batch.num_rows + 1, first + 1))

    return batches


def arrow_column(column: Any) -> Column:
    """Numbers as an array, all else as Python values."""
    import pyarrow as pa

    if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
        return np.array(
            column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), dtype=np.float64
        )
    return column_of([plain(value) for value in column.to_pylist()])


def plain(value: Any) -> float | bool | str | None:
    """A table's cell as a feature's value."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, datetime.datetime):
        return seconds(value.isoformat())
    if isinstance(value, int | float | decimal.Decimal):
        return float(value)
    return seconds(str(value)) if isinstance(value, datetime.date) else str(value)


def open_arff(path: str, fields: Fields) -> Batches:
    """Batches of an ARFF file, read line by line."""
    attributes, first_line = arff_header(path)
    names = [name for name, _ in attributes]
    target = target_of(names, fields, path)
    numeric = [isinstance(kind, str) and kind.upper() != "STRING" for _, kind in attributes]
    size = batch_rows(len(names))

    def batches(start: int) -> Iterator[Rows]:
        position = 0
        cells: list[list[Any]] = []
        kept: list[int] = []
        rejects: list[Reject] = []
        with open(path, encoding="utf-8", errors="surrogateescape") as stream:
            for number, line in enumerate(stream):
                line = line.strip()
                if number < first_line or not line or line.startswith("%"):
                    continue
                position += 1
                if position <= start:
                    continue
                try:
                    cells.append(arff_cells(line, numeric))
                    kept.append(position)
                except RecordError as fault:
                    raw = line.encode(errors="surrogateescape")[:RAW_BYTES_MAX]
                    rejects.append(Reject(fault.reason, fault.detail, position, raw))
                if len(cells) + len(rejects) == size:
                    yield arff_rows(cells, names, fields, target, kept, rejects)
                    cells, kept, rejects = [], [], []
        if cells or rejects:
            yield arff_rows(cells, names, fields, target, kept, rejects)

    return batches


def arff_header(path: str) -> tuple[list[tuple[str, Any]], int]:
    """Attributes with their types, and the number of the line after `@data`. Raises InputError."""
    import arff

    header = []
    with open(path, encoding="utf-8", errors="surrogateescape") as stream:
        for line in stream:
            header.append(line)
            if line.strip().lower() == "@data":
                break
        else:
            raise InputError(f"{path!r} must have a line @data.")
    try:
        return arff.loads("".join(header))["attributes"], len(header)
    except arff.ArffException as fault:
        raise InputError(f"{path!r} must have an ARFF header: {fault}") from fault


def arff_cells(line: str, numeric: list[bool]) -> list[Any]:
    """The values of one line. Raises RecordError."""
    try:
        line.encode()
    except UnicodeEncodeError:
        raise RecordError("bad_encoding", "must be UTF-8") from None
    if line.startswith("{"):
        raise RecordError("sparse_row", "must list all values; sparse ARFF is not supported")
    quote = "'" if "'" in line else '"'
    try:
        reader = csv.reader([line], quotechar=quote, skipinitialspace=True, escapechar="\\", strict=True)
        cells = [cell.strip() for cell in next(reader)]
    except csv.Error as fault:
        raise RecordError("bad_quoting", f"must have its quotes closed on the same line: {fault}") from None
    if len(cells) != len(numeric):
        raise RecordError("wrong_field_count", f"must have {len(numeric)} fields; got {len(cells)}")
    return [arff_value(cell, is_number) for cell, is_number in zip(cells, numeric, strict=True)]


def arff_value(cell: str, is_number: bool) -> float | str | None:
    """Text where a number should be stays text: the schema counts it."""
    if cell in ("?", ""):
        return None
    if is_number:
        try:
            return float(cell)
        except ValueError:
            return cell
    return cell


def arff_rows(
    cells: list[list[Any]],
    names: list[str],
    fields: Fields,
    target: str,
    kept: list[int],
    rejects: list[Reject],
) -> Rows:
    """The rows of one batch of lines."""
    by_column = zip(*cells, strict=True) if cells else ([] for _ in names)
    columns = {name: list(column) for name, column in zip(names, by_column, strict=True)}
    rows = table_rows(columns, fields, target, kept)
    rows.rejects = sorted([*rows.rejects, *rejects], key=lambda one: one.position)
    return rows


def target_of(names: list[str], fields: Fields, path: str) -> str:
    """The target's name. Raises InputError when the one that was told is not there."""
    if fields.target in names:
        return fields.target
    if fields.target != Fields().target:
        raise InputError(
            f"{path!r} must have the target column {fields.target!r}; got the columns "
            f"{', '.join(names)[:1000]}. Choose one of them with --target NAME."
        )
    return next((name for name in names if name.lower() == "class"), names[-1])


def table_rows(columns: dict[str, Any], fields: Fields, target: str, positions: Any) -> Rows:
    """Rows from a table's columns (arrays or lists); rows that cannot be used are rejected."""
    n = len(positions)
    special = {fields.id, target, fields.time, fields.weight, *fields.ignore, *fields.echo}
    features = {
        name: column if isinstance(column, np.ndarray) else column_of(column)
        for name, column in columns.items()
        if name not in special
    }
    none: list[Any] = [None] * n
    ids = [raw_json(value) for value in columns.get(fields.id, none)]
    labels = [raw_json(value) for value in columns[target]]
    times = np.array([seconds(plain(value)) for value in columns.get(fields.time, none)], dtype=np.float64)
    weights = np.ones(n)
    good, rejects = np.ones(n, dtype=np.bool_), []
    for i, value in enumerate(columns.get(fields.weight, none)):
        try:
            weights[i] = checked_weight(None if value != value else value)
            check_use(bool(features), ids[i], labels[i])
        except RecordError as fault:
            good[i] = False
            rejects.append(
                Reject(fault.reason, fault.detail, positions[i], repr(value).encode()[:RAW_BYTES_MAX])
            )
    echo = None
    if fields.echo:
        named = [(msgspec.json.encode(name), columns[name]) for name in fields.echo if name in columns]
        echo = [b",".join(name + b":" + (raw_json(c[i]) or b"null") for name, c in named) for i in range(n)]
    rows = Rows(n, features, ids, labels, np.full(n, bool(features)), times, weights, echo)
    rows.positions = np.array(positions, dtype=np.int64)
    if rejects:
        rows = chosen(rows, good)
    rows.rejects = rejects
    return without_empty_columns(rows)


def chosen(rows: Rows, good: Any) -> Rows:
    """The rows where `good`."""

    def keep(column: Any) -> Any:
        if isinstance(column, np.ndarray):
            return column[good]
        return [value for value, one in zip(column, good, strict=True) if one]

    return Rows(
        int(good.sum()),
        {name: keep(column) for name, column in rows.columns.items()},
        keep(rows.ids),
        keep(rows.labels),
        keep(rows.has_features),
        keep(rows.times),
        keep(rows.weights),
        None if rows.echo is None else keep(rows.echo),
        keep(rows.positions),
    )


def raw_json(value: Any) -> bytes | None:
    """An id or a label as raw JSON; None when missing. 3.0 is written 3, as tables have only floats."""
    if value is None or value != value:
        return None
    if isinstance(value, float):
        return number_text(value).encode() if math.isfinite(value) else None
    return msgspec.json.encode(value)
