"""Does what was learned of learning on some streams help on others?

Each family of generated streams in turn is the other one: meta-knowledge is trained on streams of all other
families, and on small real ones, one file a stream, merged; then adaptd runs this family's streams without it
and with it. Compared are, on the same rows, the log loss over the first rows of the stream and over the first
rows after each change. The teachers' seeds are not the pupils'. In another round a pupil's family teaches, so
the results of the families are not quite independent.
"""

import hashlib
import math
import pathlib

import numpy as np

from adaptd import meta
from benchmarks.suite import collected, ranks, tables
from benchmarks.suite.bars import Part, verdict
from benchmarks.suite.runs import Run, Runner
from benchmarks.suite.systems import System, adaptd

FAMILIES = ("sea", "agrawal", "rbf", "led")
REAL = ("phishing_small", "bananas", "segments")
# Seeds that no pupil has.
TEACHER_SEEDS = (1001, 1002)
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
    taught = System("adaptd-teacher", "run_adaptd", {"set": more, "meta": str(files)})
    teachers = {
        family: [collected.collect(f"{family}_abrupt", folder, rows, seed, stretch_rows=stretch_rows)
                 for seed in TEACHER_SEEDS]
        for family in FAMILIES
    } | {name: [collected.collect(name, folder, 0)] for name in REAL}  # fmt: skip
    pupils = {
        family: [collected.collect(f"{family}_abrupt", folder, rows, seed, stretch_rows=stretch_rows)
                 for seed in range(seeds)]
        for family in families
    }  # fmt: skip
    runner.total += sum(map(len, teachers.values())) + 2 * len(families) * seeds
    runner.run_all(taught, [stream for made in teachers.values() for stream in made])
    lines, figures = [], []
    for family, streams in pupils.items():
        known = [
            meta.read(str(files / f"{stream.name}.json"))
            for other, made in teachers.items() if other != family for stream in made
        ]  # fmt: skip
        path = merged_file(files, known)
        plain = runner.run_all(adaptd("without", *more), streams)
        helped = runner.run_all(adaptd("with", *more, f'meta.path="{path}"'), streams)
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
        f"Taught by {len(TEACHER_SEEDS)} streams of each other family and by {', '.join(REAL)}; "
        f"{rows:,} rows, a change every {stretch_rows:,}, {seeds} seeds. Log loss without and with the "
        "others' meta-knowledge, what it saves (± the standard error over seeds), and points of accuracy.\n",
        tables.table(["family", "over", "without", "with", "saved", "of it", "accuracy"], lines),
    ]
    for span in SPANS[:2]:
        saved = [figure["log_loss_saved"] for figure in figures if figure["span"] == span]
        mean = float(np.mean(saved))
        words.append(f"{span}: {mean:+.4f} on the mean of the families, {verdict(mean > 0)}; "
                     f"of {len(saved)} families {sum(value > 0 for value in saved)} gain.\n")  # fmt: skip
    return "\n".join(words), {"meta": figures}, {}


def merged_file(folder: pathlib.Path, known: list[meta.Knowledge]) -> pathlib.Path:
    """Its name says what is in it, since a run is kept by its options."""
    knowledge = meta.merged(known)
    digest = hashlib.sha256(repr(knowledge).encode()).hexdigest()[:12]
    path = folder / f"merged-{digest}.json"
    meta.write(str(path), knowledge)
    return path


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
