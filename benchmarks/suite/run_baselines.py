"""Those that know nothing of the features: the last label again, the most frequent class, the mean."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.suite.said import Said
from benchmarks.suite.streams import Stream


def version() -> str:
    return "1"


def run(
    stream: Stream, options: dict[str, Any], said: Said, progress: Callable[[int], None]
) -> dict[str, Any]:
    y = said.truth
    started = time.process_time()
    if options["kind"] == "no_change":
        said.predicted[1:] = y[:-1]
    elif options["kind"] == "mean":
        said.predicted[1:] = np.cumsum(y)[:-1] / np.arange(1, len(y))
    else:
        counts = [0] * len(stream.classes)
        most = -1
        for row, label in enumerate(y.astype(int).tolist()):
            said.predicted[row] = most
            counts[label] += 1
            if most < 0 or counts[label] > counts[most]:
                most = label
    progress(len(y))
    return {"loop_seconds": time.process_time() - started}
