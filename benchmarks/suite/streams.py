"""A stream of the suite: numbers on disk that every system reads alike, a block at a time.

A folder holds `x.f8` [rows, features] and `y.f8` [rows], plain float64, and `meta.json`. A category is its
code by first appearance, a class too; missing is NaN. So a process that measures a peer needs NumPy only,
and holds no more of the stream than one block: what it is seen to take is the peer's.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

BLOCK_ROWS = 4096


@dataclasses.dataclass
class Stream:
    """What is known of a stream beside its rows."""

    name: str
    """With the seed behind an @ where there are several: `sea_abrupt@3`."""
    task: str
    """classification or regression."""
    rows: int
    features: list[str]
    categories: dict[str, list[str]]
    """Texts of the columns that are categories, by code."""
    classes: list[str]
    """Texts of the classes, by code; empty for regression."""
    change_points: list[int] = dataclasses.field(default_factory=list)
    """Rows (from 0) at which another concept begins; of a gradual change, the middle."""
    changes_known: bool = False
    """Whether `change_points` are all there are: false alarms can be told on such a stream only."""
    concepts: list[int] = dataclasses.field(default_factory=list)
    """The concept of each stretch between two change points; the same number: the same concept."""
    source: str = ""
    """Where it comes from: `river` (bundled), `generated`, `file`."""
    folder: str = ""

    @property
    def family(self) -> str:
        """The name without the seed."""
        return self.name.partition("@")[0]

    def truth(self) -> np.ndarray:
        """All labels: [rows] codes or numbers."""
        return np.fromfile(os.path.join(self.folder, "y.f8"))[: self.rows]

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows in order: x [n, features] and y [n]."""
        width = len(self.features)
        with (
            open(os.path.join(self.folder, "x.f8"), "rb") as xs,
            open(os.path.join(self.folder, "y.f8"), "rb") as ys,
        ):
            for start in range(0, self.rows, BLOCK_ROWS):
                n = min(BLOCK_ROWS, self.rows - start)
                yield np.fromfile(xs, count=n * width).reshape(n, width), np.fromfile(ys, count=n)


def save(stream: Stream, x: np.ndarray, y: np.ndarray, folder: pathlib.Path) -> Stream:
    """Put a stream on disk; a folder that is there is whole."""
    stream.folder = str(folder)
    folder.mkdir(parents=True, exist_ok=True)
    x.astype(np.float64).tofile(folder / "x.f8")
    y.astype(np.float64).tofile(folder / "y.f8")
    text = json.dumps(dataclasses.asdict(stream), indent=1)
    (folder / "meta.json.new").write_text(text)
    os.replace(folder / "meta.json.new", folder / "meta.json")
    return stream


def load(folder: pathlib.Path, rows: int = 0) -> Stream:
    """The stream in `folder`, or its first `rows` rows."""
    stream = Stream(**json.loads((folder / "meta.json").read_text()))
    stream.folder = str(folder)
    if rows and rows < stream.rows:
        stream.rows = rows
        stream.change_points = [point for point in stream.change_points if point < rows]
        stream.concepts = stream.concepts[: len(stream.change_points) + 1]
    return stream


def encoded(records: list[dict[str, Any]], targets: list[Any], task: str) -> dict[str, Any]:
    """Records as arrays: the fields `x`, `y`, `features`, `categories`, `classes`.

    A column with a text or a truth value anywhere is a category.
    """
    features = list(dict.fromkeys(name for record in records for name in record))
    x = np.full((len(records), len(features)), np.nan)
    categories: dict[str, list[str]] = {}
    for j, name in enumerate(features):
        values = [record.get(name) for record in records]
        if any(isinstance(value, (str, bool)) for value in values):
            codes: dict[str, int] = {}
            x[:, j] = [
                np.nan if value is None or value == "" else codes.setdefault(str(value), len(codes))
                for value in values
            ]
            categories[name] = list(codes)
        else:
            x[:, j] = [np.nan if value is None else float(value) for value in values]
    classes: dict[str, int] = {}
    if task == "classification":
        y = np.array([classes.setdefault(str(target), len(classes)) for target in targets], dtype=float)
    else:
        y = np.array(targets, dtype=float)
    return {
        "x": x,
        "y": y,
        "features": [str(name) for name in features],
        "categories": categories,
        "classes": list(classes),
    }
