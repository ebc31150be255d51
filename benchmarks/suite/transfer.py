"""Does what was learned of learning on some streams help on others?

Each family of generated streams in turn is the other one: meta-knowledge goes through streams of all other
families, and through small real ones: each teacher begins with what those before it have learned. Then adaptd
runs this family's streams without it and with it. Compared are, on the same rows, the log loss over the first
rows of the stream and over the first rows after each change. The teachers' seeds are not the pupils'. In
another round a pupil's family teaches, so the results of the families are not quite independent.
"""

import math
import pathlib

import numpy as np

from benchmarks.suite import collected, ranks, tables
from benchmarks.suite.bars import Part, verdict
from benchmarks.suite.runs import Run, Runner
from benchmarks.suite.streams import Stream
from benchmarks.suite.systems import System, adaptd

FAMILIES = ("sea", "agrawal", "rbf", "led", "sine", "tree", "plane", "stagger")
REAL = ("phishing_small", "bananas", "segments")
# Seeds that no pupil has.
TEACHER_SEED = 1001
STRETCHES = 4
START_ROWS = 2_000
CHANGE_ROWS = 500
SPANS = (f"first {START_ROWS:,} rows", f"{CHANGE_ROWS} rows after each change", "all rows")


def transfer(
    runner: Runner, families: list[str], more: list[str], seeds: int, stretch_rows: int, folder: pathlib.Path
) -> Part:
    """Losses of each family's streams without and with what the others taught."""
    rows = STRETCHES * stretch_rows
    files = folder.parent.absolute() / "meta"
    files.mkdir(parents=True, exist_ok=True)
    streams = {
        family: [collected.collect(f"{family}_abrupt", folder, rows, seed, stretch_rows=stretch_rows)
                 for seed in (TEACHER_SEED, *range(seeds))]
        for family in FAMILIES
    }  # fmt: skip
    real = [collected.collect(name, folder, 0) for name in REAL]
    runner.total += len(families) * (len(REAL) + len(FAMILIES) - 1 + 2 * seeds)
    lines, figures = [], []
    for family in families:
        teachers = [*real, *(made[0] for other, made in streams.items() if other != family)]
        path = taught(runner, teachers, more, files / family)
        pupils = streams[family][1:]
        plain = runner.run_all(adaptd("without", *more), pupils)
        helped = runner.run_all(adaptd("with", *more, f'meta.path="{path}"'), pupils)
        for k, span in enumerate(SPANS):
            before, after = ([mean_losses(run)[k] for run in runs] for runs in (plain, helped))
            gain, error = ranks.mean_and_error([b[0] - a[0] for b, a in zip(before, after, strict=True)])
            hits, hits_error = ranks.mean_and_error([b[1] - a[1] for b, a in zip(before, after, strict=True)])
            loss = float(np.mean([b[0] for b in before]))
            figures.append({
                "family": family, "span": span, "seeds": len(plain), "log_loss_without": loss,
                "log_loss_saved": gain, "log_loss_saved_error": error, "accuracy_gained": hits,
            })  # fmt: skip
            lines.append([
                family, span, tables.number(loss), tables.number(loss - gain),
                tables.number(gain, error=error), f"{100 * gain / loss:.1f} %",
                tables.number(100 * hits, 2, error=100 * hits_error),
            ])  # fmt: skip
    words = [
        "## What was learned of learning, on other streams\n",
        f"Taught by {', '.join(REAL)} and then a stream of each other family, one after another; "
        f"{rows:,} rows, a change every {stretch_rows:,}, {seeds} seeds. Log loss without and with the "
        "others' meta-knowledge, what it saves (± the standard error over seeds), and points of accuracy.\n",
        tables.table(["family", "over", "without", "with", "saved", "of it", "accuracy"], lines),
    ]
    for span in SPANS:
        saved = [figure["log_loss_saved"] for figure in figures if figure["span"] == span]
        errors = [figure["log_loss_saved_error"] for figure in figures if figure["span"] == span]
        mean, error = float(np.mean(saved)), math.hypot(*errors) / len(errors)
        lose = sum(value < -2 * of for value, of in zip(saved, errors, strict=True))
        words.append(
            f"{span}: {mean:+.4f} ± {error:.4f} on the mean of the families, more than two errors: "
            f"{verdict(mean > 2 * error)}; of {len(saved)} families {sum(value > 0 for value in saved)} "
            f"gain, {lose} lose by more than two errors.\n"
        )
    return "\n".join(words), {"meta": figures}, {}


def taught(runner: Runner, teachers: list[Stream], more: list[str], folder: pathlib.Path) -> pathlib.Path:
    """What the last of them knows, who began with what the one before it knew, and so on."""
    known: pathlib.Path | None = None
    for place, stream in enumerate(teachers):
        # A folder each: a run is kept by its options.
        own = folder / str(place)
        own.mkdir(parents=True, exist_ok=True)
        given = [] if known is None else [f'meta.path="{known}"']
        runner.run(System("teacher", "run_adaptd", {"set": [*more, *given], "meta": str(own)}), stream)
        known = own / f"{stream.name}.json"
    assert known is not None
    return known


def mean_losses(run: Run) -> list[tuple[float, float]]:
    """Log loss and share of errors over each of `SPANS`."""
    of_true = np.nan_to_num(run.said.of_true.astype(float), nan=1.0 / max(1, len(run.stream.classes)))
    log_loss = -np.log(np.maximum(of_true, 1e-3))
    wrong = (run.said.predicted != run.said.truth).astype(float)
    rows = np.arange(len(wrong))
    after = np.zeros(len(wrong), bool)
    for point in run.stream.change_points:
        after |= (rows >= point) & (rows < point + CHANGE_ROWS)
    found = []
    for span in (rows < START_ROWS, after, np.ones(len(rows), bool)):
        found.append(
            (float(log_loss[span].mean()), float(wrong[span].mean())) if span.any() else (math.nan, math.nan)
        )
    return found
