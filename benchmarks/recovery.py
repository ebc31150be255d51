"""Recovery after abrupt drift with rate control learned, fixed and off, on the same rows.

Measured: the mean loss of the blend and of each gradient learner over the first rows after every known change
(log loss), and the accuracy of the blend there and over the whole stream; the boosts that the trials chose.
Not measured: gradual drift, late labels. Why to doubt it: generated streams of four families, where the
changes are as abrupt as can be; the pool here is mostly gradient learners, which a boost concerns, so that
its effect is not hidden behind trees and neighbours (`--pool default` has all).

    python -m benchmarks.recovery --rows 40000 --seeds 2
"""

import argparse
import io
import time

import numpy as np

from adaptd import config as configuration
from adaptd import events
from adaptd.clock import SystemClock
from adaptd.contracts import Rows
from adaptd.engine import Lane
from adaptd.journal import Journal
from benchmarks.suite.generated import Plan, generate

GRADIENT = {
    "prior": {"kind": "prior"},
    "naive_bayes": {"kind": "naive_bayes"},
    "linear": {"kind": "linear"},
    "pairs": {"kind": "linear", "interactions": True, "learning_rate": 0.001},
    "mlp": {"kind": "mlp"},
}
MODES = {"learned": {}, "fixed": {"learned": False}, "off": {"enabled": False}}


def run(x: np.ndarray, y: np.ndarray, tree: dict, after_rows: int, points: list[int]) -> dict:
    """The stream through a lane; losses after the changes by learner, accuracy, events."""
    config = configuration.read(tree, "recovery")
    journal = Journal(None)
    lane = Lane(config, events.Events(SystemClock(), io.StringIO(), journal))
    n = len(y)
    ends = sorted({n, *points, *(point + after_rows for point in points)})
    totals: dict[str, list[float]] = {}
    hits = rows = 0
    start = 0
    labels = [b"%d" % int(label) for label in y]
    started = time.process_time()
    for end in ends:
        before = lane.scores.sums.copy()
        part = slice(start, end)
        lane.process(
            Rows(
                n=end - start,
                columns={f"f{j}": np.ascontiguousarray(x[part, j]) for j in range(x.shape[1])},
                ids=[None] * (end - start),
                labels=labels[part],
                has_features=np.ones(end - start, bool),
                times=np.full(end - start, np.nan),
                weights=np.ones(end - start),
            )
        )
        if start in points:
            gone = lane.scores.sums - before
            for name, sums in zip([*lane.pool.names, "blend"], gone, strict=True):
                totals.setdefault(name, []).append(float(sums[3] / max(sums[1], 1.0)))
            hits, rows = hits + gone[-1][2], rows + gone[-1][0]
        start = end
    seconds = time.process_time() - started
    whole = lane.scores.cumulative(len(lane.pool.names))
    chosen: dict[str, str] = {}
    for entry in journal.read(last=10**6, kind="boosts_compared"):
        chosen |= entry.payload["chosen"]
    lane.close()
    return {
        "losses": {name: float(np.mean(values)) for name, values in totals.items()},
        "accuracy_after": hits / max(rows, 1),
        "accuracy": whole["accuracy"],
        "drifts": lane.counts["drifts"],
        "chosen": chosen,
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--stretch-rows", type=int, default=5_000)
    parser.add_argument("--after-rows", type=int, default=1_000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--families", default="sea,agrawal,rbf,led")
    parser.add_argument("--pool", choices=("gradient", "default"), default="gradient")
    options = parser.parse_args()
    print("| stream | rates | drifts | accuracy | after changes | log loss after changes | CPU s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for family in options.families.split(","):
        stretches = -(-options.rows // options.stretch_rows)
        plan = Plan(family, tuple(k % 4 for k in range(stretches)), options.stretch_rows)
        for seed in range(options.seeds):
            stream, x, y = generate(family, plan, seed, options.rows)
            for mode, rates in MODES.items():
                # Whatever else answers a drift would hide what the rates do.
                tree = {
                    "rates": rates,
                    "pool": {"threads": 1},
                    "memory": {"enabled": False},
                    "challengers": {"enabled": False},
                }
                if options.pool == "gradient":
                    tree["pool"]["learners"] = GRADIENT
                found = run(x, y, tree, options.after_rows, stream.change_points)
                losses = ", ".join(
                    f"{name} {loss:.4f}"
                    for name, loss in found["losses"].items()
                    if name in ("linear", "pairs", "mlp", "blend")
                )
                print(
                    f"| {stream.name} | {mode} | {found['drifts']} | {found['accuracy']:.4f} "
                    f"| {found['accuracy_after']:.4f} | {losses} | {found['seconds']:.1f} |",
                    *([f"<!-- {found['chosen']} -->"] if found["chosen"] else []), flush=True,
                )  # fmt: skip


if __name__ == "__main__":
    main()
