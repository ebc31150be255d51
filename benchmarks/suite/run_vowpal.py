"""Vowpal Wabbit on its native path: a text file in, predictions to a file, one pass.

Two classes: logistic loss, `--link logistic`; more: `--oaa` with probabilities, so their number is known
beforehand. CPU seconds count its parser and not the writing of the text file.
"""

import importlib.metadata
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.suite.said import Said
from benchmarks.suite.streams import Stream


def version() -> str:
    return importlib.metadata.version("vowpalwabbit")


def write(stream: Stream, path: str) -> None:
    """Rows in VW's format: `label | f0:0.5 f3=v7`."""
    binary = len(stream.classes) == 2
    is_text = [name in stream.categories for name in stream.features]
    with open(path, "w", encoding="ascii") as file:
        for x, y in stream.blocks():
            for values, label in zip(x.tolist(), y.tolist(), strict=True):
                named = " ".join(
                    f"f{j}={int(value)}" if text else f"f{j}:{value:.9g}"
                    for j, (value, text) in enumerate(zip(values, is_text, strict=True))
                    if value == value
                )
                shown: Any = label
                if stream.classes:
                    shown = int(2 * label - 1) if binary else int(label) + 1
                file.write(f"{shown} | {named}\n")


def run(
    stream: Stream, options: dict[str, Any], said: Said, progress: Callable[[int], None]
) -> dict[str, Any]:
    from vowpalwabbit import Workspace

    k = len(stream.classes)
    with tempfile.TemporaryDirectory() as folder:
        rows, answers = os.path.join(folder, "rows.txt"), os.path.join(folder, "answers.txt")
        write(stream, rows)
        kind = ""
        if k == 2:
            kind = "--loss_function logistic --link logistic"
        elif k > 2:
            kind = f"--oaa {k} --loss_function logistic --probabilities"
        started = time.process_time()
        workspace = Workspace(f"-d {rows} -p {answers} {kind} {options['arguments']} --quiet")
        workspace.finish()
        seconds = time.process_time() - started
        with open(answers) as file:
            lines = file.read().splitlines()
    if k == 0:
        said.numbers(0, np.array([float(line.split()[0]) for line in lines]))
    elif k == 2:
        of_second = np.array([float(line.split()[0]) for line in lines])
        said.probabilities(0, np.column_stack([1 - of_second, of_second]))
    else:
        said.probabilities(
            0, np.array([[float(part.partition(":")[2]) for part in line.split()] for line in lines])
        )
    progress(stream.rows)
    return {"loop_seconds": seconds}
