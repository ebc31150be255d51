"""Engine and controller without the learners: CPU microseconds a row, 10 learners, 2 classes.

Measured: everything a labelled row goes through between the decoder and the output lines (encoding, planning,
controller, scores, detector, control points, formatting), by CPU time of the process. Not measured: decoding,
and the learners, which are replaced by ones that copy predictions drawn beforehand. Why to doubt it: one
processor's caches serve only this; a machine under load shows more; run it several times.
"""

import argparse
import io
import time

import numpy as np

from adaptd import config as configuration
from adaptd import events, predictions
from adaptd.answers import formatted
from adaptd.clock import SystemClock
from adaptd.contracts import PREDICT, Rows, Vitals
from adaptd.engine import Lane
from adaptd.journal import Journal

LEARNERS = 10
READ_ROWS = 4096


class Parrot:
    """Says what was drawn beforehand."""

    rate_scale = 1.0

    def __init__(self, said: np.ndarray) -> None:
        self.said = said
        self.at = 0

    def step(self, x, y, op, weight, out) -> None:
        out[(op & PREDICT) != 0] = self.said[self.at : self.at + len(op)]
        self.at = (self.at + len(op)) % (len(self.said) - READ_ROWS)

    def grow(self, layout) -> None: ...

    def state(self) -> dict:
        return {}

    def vitals(self) -> Vitals:
        return Vitals(state_bytes=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--controller", default="stack")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    n = 65_536
    truth = rng.integers(0, 2, n)
    learners = {f"learner{k}": {"kind": "prior"} for k in range(LEARNERS)}
    tree = {
        "pool": {"learners": learners, "threads": 1},
        "controller": {"kind": options.controller},
        # A stand-in has no state that a memory could keep.
        "memory": {"enabled": False},
    }
    config = configuration.read(tree, "bench")
    lane = Lane(config, events.Events(SystemClock(), io.StringIO(), Journal(None)))
    features = {f"f{j}": rng.normal(size=n) for j in range(8)}
    labels = [b'"up"' if y else b'"down"' for y in truth]

    def read(start: int) -> Rows:
        part = slice(start, start + READ_ROWS)
        return Rows(
            n=READ_ROWS,
            columns={name: column[part] for name, column in features.items()},
            ids=[b"%d" % i for i in range(start, start + READ_ROWS)],
            labels=labels[part],
            has_features=np.ones(READ_ROWS, bool),
            times=np.full(READ_ROWS, np.nan),
            weights=np.ones(READ_ROWS),
        )

    lane.process(read(0))
    for slot in lane.pool.slots:
        right = rng.beta(4, 2, n)
        first = np.where(truth == int(lane.classes.spellings[0] == b'"up"'), right, 1 - right)
        slot.learner = Parrot(np.column_stack([first, 1 - first]))
    reads = [read(start) for start in range(0, n, READ_ROWS)]
    lines = predictions.JsonLines()
    started, done = time.process_time(), 0
    while done < options.rows:
        for part in lane.process(reads[(done // READ_ROWS) % len(reads)]):
            formatted(lines, part, lane.classes.spellings)
        done += READ_ROWS
    seconds = time.process_time() - started
    each = seconds / done * 1e6
    print(f"{options.controller}, {LEARNERS} learners, 2 classes: {each:.2f} CPU microseconds a row")


if __name__ == "__main__":
    main()
