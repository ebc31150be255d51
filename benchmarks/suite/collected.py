"""Where the suite's streams come from: what River bundles, the generators, files of a folder.

What River would have to download (Elec2, Insects, ...) is no part of it. `--data DIR` adds every `.csv` or
`.csv.gz` there, the label in column `y` or else the last one; a `manifest.json` beside them (a list of
objects with `file`, `name`, `task`, `known_drift_points`) says more where there is one.
"""

import csv
import gzip
import hashlib
import io
import json
import pathlib
from collections.abc import Callable
from typing import Any

from benchmarks.suite import generated, streams
from benchmarks.suite.streams import Stream

# Their name in River and the task.
BUNDLED = {
    "phishing_small": ("Phishing", "classification"),
    "bananas": ("Bananas", "classification"),
    "segments": ("ImageSegments", "classification"),
    "shuttle": ("Shuttle", "classification"),
    "approval": ("TrumpApproval", "regression"),
    "chicks": ("ChickWeights", "regression"),
    "stocks": ("SP500Stocks", "regression"),
}
FRIEDMAN = {"friedman_abrupt": "gra", "friedman_local": "lea", "friedman_gradual": "gsg"}
QUICK = (
    "phishing_small", "segments", "approval", "sea_abrupt", "agrawal_recurring", "rbf_abrupt",
    "hyperplane_rotating", "friedman_abrupt",
)  # fmt: skip
# More distinct values than this are quantities.
CLASSES_MAX = 50


class UnknownStreamError(Exception):
    """A name that no stream has; the message says which there are."""


def names(data: pathlib.Path | None) -> list[str]:
    """All streams there are, files first."""
    of_files = [entry["name"] for entry in manifest(data)] if data else []
    return [*of_files, *BUNDLED, *generated.plans(), *FRIEDMAN]


def is_seeded(name: str) -> bool:
    return name in FRIEDMAN or name in generated.plans() | generated.more_plans()


def collect(
    name: str, folder: pathlib.Path, rows: int, seed: int = 0, data: pathlib.Path | None = None,
    stretch_rows: int = 5000,
) -> Stream:  # fmt: skip
    """The first `rows` rows (0: all, of a generated one four stretches) of a stream, made when it is not
    there yet. Raises UnknownStreamError."""
    if is_seeded(name):
        plan = (generated.plans(stretch_rows) | generated.more_plans(stretch_rows)).get(name)
        rows = rows or stretch_rows * max(4, len(plan.order) if plan else 4)
        kept = folder / f"{name}-{rows}-{stretch_rows}-{seed}-{digest('generated.py')}"
        make: Callable[[], Any] = (
            (lambda: generated.generate(name, plan, seed, rows))
            if plan
            else (lambda: generated.friedman(name, FRIEDMAN[name], seed, rows))
        )
    elif name in BUNDLED:
        kept = folder / f"{name}-{digest('collected.py')}"
        make = lambda: bundled(name)  # noqa: E731
    else:
        entry = next((entry for entry in manifest(data) if entry["name"] == name), None) if data else None
        if entry is None:
            raise UnknownStreamError(f"--streams must be of {', '.join(names(data))}; got {name}.")
        assert data is not None
        path = data / entry["file"]
        kept = folder / f"{name}-{path.stat().st_size}-{digest('collected.py')}"
        make = lambda: from_file(path, entry)  # noqa: E731
    if not (kept / "meta.json").exists():
        stream, x, y = make()
        streams.save(stream, x, y, kept)
    return streams.load(kept, rows)


def digest(file: str) -> str:
    """Of what makes a stream: an edit makes it anew."""
    folder = pathlib.Path(__file__).parent
    text = (folder / file).read_bytes() + (folder / "streams.py").read_bytes()
    return hashlib.sha256(text).hexdigest()[:8]


def bundled(name: str) -> Any:
    from river import datasets

    kind, task = BUNDLED[name]
    pairs = list(getattr(datasets, kind)())
    fields = streams.encoded([x for x, _ in pairs], [y for _, y in pairs], task)
    x, y = fields.pop("x"), fields.pop("y")
    return Stream(name=name, task=task, rows=len(y), source="river", **fields), x, y


def manifest(data: pathlib.Path) -> list[dict[str, Any]]:
    """The files of a folder, as its manifest lists them, or as they lie there."""
    listed = data / "manifest.json"
    if listed.exists():
        return [entry for entry in json.loads(listed.read_text()) if (data / entry["file"]).exists()]
    files = [path for path in sorted(data.iterdir()) if path.name.endswith((".csv", ".csv.gz"))]
    return [{"name": path.name.partition(".")[0], "file": path.name} for path in files]


def from_file(path: pathlib.Path, entry: dict[str, Any]) -> Any:
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    table = csv.reader(io.StringIO(text))
    header = next(table)
    target = header.index("y") if "y" in header else len(header) - 1
    columns = list(zip(*table, strict=True))
    parsed = {name: numbers(column) for j, (name, column) in enumerate(zip(header, columns, strict=True))
              if j != target}  # fmt: skip
    labels = list(columns[target])
    task = "regression" if is_quantity(labels, entry.get("task")) else "classification"
    records = [dict(zip(parsed, values, strict=True)) for values in zip(*parsed.values(), strict=True)]
    fields = streams.encoded(records, labels, task)
    x, y = fields.pop("x"), fields.pop("y")
    points = list(entry.get("known_drift_points") or [])
    stream = Stream(
        name=entry["name"], task=task, rows=len(y), change_points=points, changes_known=bool(points),
        concepts=list(range(len(points) + 1)), source="file", **fields,
    )  # fmt: skip
    return stream, x, y


def numbers(column: tuple[str, ...]) -> list[Any]:
    """As numbers when all that are not empty are numbers, else as texts."""
    try:
        return [float(text) if text else None for text in column]
    except ValueError:
        return list(column)


def is_quantity(labels: list[str], task: str | None) -> bool:
    if task:
        return task == "regression"
    try:
        values = {float(label) for label in labels}
    except ValueError:
        return False
    return len(values) > CLASSES_MAX or any(value != int(value) for value in values)
