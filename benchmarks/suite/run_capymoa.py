"""CapyMOA: MOA's learners on the JVM, a loop of predict and train from Python.

Only its streams and learners are used: they run without torch, which its own evaluation asks for. A category
is a nominal attribute whose values are known beforehand, as in the header of an ARFF file. CPU seconds are
those of the whole process during the loop, so Java's compiler and garbage collector count.
"""

import contextlib
import importlib.metadata
import os
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.suite.said import Said
from benchmarks.suite.streams import Stream


def version() -> str:
    return importlib.metadata.version("capymoa")


def find_java() -> None:
    """CapyMOA wants JAVA_HOME; a `java` on the path tells it. Raises ImportError without one."""
    if "JAVA_HOME" not in os.environ:
        java = shutil.which("java")
        if java is None:
            raise ImportError("CapyMOA needs Java: no java on the path, and JAVA_HOME is not set")
        os.environ["JAVA_HOME"] = str(pathlib.Path(java).resolve().parent.parent)


def run(
    stream: Stream, options: dict[str, Any], said: Said, progress: Callable[[int], None]
) -> dict[str, Any]:
    find_java()
    from capymoa import classifier, regressor
    from capymoa.core import LabeledInstance, RegressionInstance
    from capymoa.stream import Schema

    is_classes = stream.task == "classification"
    # Names and values of their own: MOA's header has rules about what may be in them.
    names = [f"a{j}" for j in range(len(stream.features))]
    categories = {
        name: [f"v{code}" for code in range(len(stream.categories[feature]))]
        for name, feature in zip(names, stream.features, strict=True)
        if feature in stream.categories
    }
    if is_classes:
        categories["y"] = [f"c{code}" for code in range(len(stream.classes))]
    schema = Schema.from_custom(features=[*names, "y"], target="y", categories=categories, name="stream")
    settings = dict(options)
    family = classifier if is_classes else regressor
    learner = getattr(family, settings.pop("kind"))(schema=schema, **settings)
    row, seconds = 0, 0.0
    for x, y in stream.blocks():
        started = time.process_time()
        out = np.full((len(y), max(1, len(stream.classes))), np.nan)
        for i, label in enumerate(y.tolist()):
            if is_classes:
                instance = LabeledInstance.from_array(schema, x[i], int(label))
                # Before its first row a learner may have no answer, and says so by raising.
                with contextlib.suppress(Exception) if row + i == 0 else contextlib.nullcontext():
                    chances = learner.predict_proba(instance)
                    if chances is not None:
                        out[i] = chances
            else:
                instance = RegressionInstance.from_array(schema, x[i], label)
                with contextlib.suppress(Exception) if row + i == 0 else contextlib.nullcontext():
                    value = learner.predict(instance)
                    if value is not None:
                        out[i, 0] = value
            learner.train(instance)
        seconds += time.process_time() - started
        if is_classes:
            said.probabilities(row, out)
        else:
            said.numbers(row, out[:, 0])
        row += len(y)
        progress(row)
    return {"loop_seconds": seconds}
