"""adaptd: a lane fed with decoded rows, as the daemon feeds it, in reads of 4,096 rows.

The learners walk their blocks in one thread, so that CPU seconds mean the same as for the peers; how many
threads there are changes no bit of what is said. Decoding and writing lines is not in it
(`benchmarks/throughput.py` measures the whole process).
"""

import hashlib
import io
import json
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import adaptd
from adaptd import config as configuration
from adaptd import events, meta, pool
from adaptd.clock import SystemClock
from adaptd.contracts import Rows
from adaptd.engine import Lane
from adaptd.journal import Journal
from adaptd.kernels import warm
from benchmarks.suite.said import Said
from benchmarks.suite.streams import Stream


def version() -> str:
    """The version and a digest of the sources: an edit makes another system of it."""
    folder = pathlib.Path(adaptd.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.read_bytes())
    return f"{adaptd.__version__}+{digest.hexdigest()[:8]}"


def prepare() -> None:
    """Compile before anything is measured."""
    components = [
        f"adaptd.{family}.{kind}" for family in warm.FAMILIES for kind in warm.registry.kinds(family)
    ]
    warm.compile_all(warm.needed(components), len(os.sched_getaffinity(0)), lambda done, total: None)


def run(
    stream: Stream, options: dict[str, Any], said: Said, progress: Callable[[int], None]
) -> dict[str, Any]:
    # Peers know the task by which of their classes is taken; whole numbers may be either.
    assignments = ["pool.threads=1", f"schema.task={stream.task}", *options["set"]]
    config = configuration.load(None, assignments)
    journal = Journal(None)
    lane = Lane(config, events.Events(SystemClock(), io.StringIO(), journal))
    labels = [json.dumps(text).encode() for text in stream.classes]
    codes = {text: code for code, text in enumerate(stream.classes)}
    places = np.zeros(0, int)
    done, seconds = 0, 0.0
    for x, y in stream.blocks():
        started = time.process_time()
        rows = read(stream, x, y, labels)
        answers = lane.process(rows)
        seconds += time.process_time() - started
        for part in answers:
            if stream.task == "classification":
                if len(places) < part.values.shape[1]:
                    spelled = [json.loads(text) for text in lane.classes.spellings]
                    places = np.array([codes[str(text)] for text in spelled], int)
                said.probabilities(done, part.values, places)
            else:
                said.numbers(done, part.values[:, 0])
            done += len(part.ids)
        progress(done)
    lane.end_of_input()
    found = [entry.row for entry in journal.read(last=100_000, kind="drift_detected")]
    loss = "accuracy" if stream.task == "classification" else "mae"
    # Those that were there from the first row on: places that fill later are scored on other rows.
    lasting = [name for name in lane.pool.names if name in pool.chosen(config, lane.layout.task)]
    places_of = {name: lane.pool.names.index(name) for name in lasting}
    result = {
        "loop_seconds": seconds,
        "drifts": found,
        "warnings": lane.counts["warnings"],
        "learners": {name: lane.scores.cumulative(index).get(loss) for name, index in places_of.items()},
    }
    if "meta" in options:
        meta.write(str(pathlib.Path(options["meta"]) / f"{stream.name}.json"), meta.of_state(lane.state()))
    lane.close()
    return result


def read(stream: Stream, x: np.ndarray, y: np.ndarray, labels: list[bytes]) -> Rows:
    """Rows as a decoder gives them."""
    n = len(x)
    columns: dict[str, Any] = {}
    for j, name in enumerate(stream.features):
        if name in stream.categories:
            texts = stream.categories[name]
            columns[name] = [None if code != code else texts[int(code)] for code in x[:, j].tolist()]
        else:
            columns[name] = x[:, j].copy()
    return Rows(
        n=n,
        columns=columns,
        ids=[None] * n,
        labels=[labels[int(code)] for code in y.tolist()]
        if labels
        else [b"%r" % value for value in y.tolist()],
        has_features=np.ones(n, bool),
        times=np.full(n, np.nan),
        weights=np.ones(n),
    )
