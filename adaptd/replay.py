"""The same engine over a file, as a back-test: prequential scores of every learner and of the blend."""

import io
import math
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec
import numpy as np

from adaptd import back_test, events, meta, places, predictions, scores
from adaptd import config as configuration
from adaptd.answers import Answers, formatted
from adaptd.clock import SystemClock
from adaptd.contracts import Column, Rows, Source
from adaptd.engine import Lane
from adaptd.errors import InputError, UsageError
from adaptd.journal import Journal

LINES = (".csv", ".jsonl", ".json", ".ndjson")
TABLES = (".npy", ".parquet", ".arff")


class Options(msgspec.Struct, frozen=True):
    """What `adaptd replay` was asked for."""

    path: str
    rows_max: int | None = None
    holdout: float = 0.0
    """Share of the rows, the last ones, that are predicted and not learned."""
    passes: int = 1
    """Times that the rows before the hold-out are learned."""
    shuffle: bool = False
    """Whether the rows are put into a random order, by the seed, first."""
    output: str | None = None
    """A file for the predictions."""
    report: str | None = None
    """A file for the HTML report."""
    meta: str | None = None
    """A file for what was learned of learning."""


def replay(
    config: configuration.Config, options: Options, progress: Callable[[int], None] = lambda rows: None
) -> dict[str, Any]:
    """Run the file through a fresh lane; the report, with the keys that `--format json` prints.

    progress: called with the number of rows done so far. Raises InputError for a file that cannot be read.
    """
    source = open_source(config, options.path)
    journal = Journal(None)
    log = events.Events(SystemClock(), io.StringIO(), journal)
    lane = Lane(config, log)
    lines = predictions.FORMATS[config.sink.get("format", "json")]()
    curves = back_test.Curves(lane) if options.report else None
    started = time.perf_counter()
    hold_out: Rows | None = None
    try:
        with open(options.output or "/dev/null", "wb") as output:
            output.write(lines.header())

            def take(rows: Rows) -> list[Answers]:
                answers = lane.process(rows)
                if options.output:
                    for part in answers:
                        output.write(formatted(lines, part, lane.classes.spellings))
                progress(lane.rows)
                return answers

            reads = limited(source, lane, options.rows_max)
            if options.holdout or options.passes > 1 or options.shuffle:
                whole = joined(list(reads))
                order = np.arange(whole.n)
                if options.shuffle:
                    order = np.random.default_rng(config.seed).permutation(whole.n)
                held = round(options.holdout * whole.n)
                hold_out = taken(whole, order[whole.n - held :])
                reads = parts(taken(whole, order[: whole.n - held]), options.passes)
            for rows in reads if curves is None else stepped(reads, curves):
                take(rows)
            lane.end_of_input()
            if options.meta:
                meta.write(options.meta, meta.of_state(lane.state()))
            report = summary(lane, time.perf_counter() - started)
            if hold_out is not None and hold_out.n:
                report["holdout"] = judged(lane, hold_out, take)
            if curves is not None and options.report:
                back_test.write(options.report, options.path, config.seed, report, curves, journal)
    except OSError as error:
        raise InputError(f"{options.output}: {error.strerror}. Choose a file that can be written.") from None
    finally:
        source.close()
        lane.close()
    return report


def open_source(config: configuration.Config, path: str) -> Source:
    """The source that reads `path`, by its suffix. Raises UsageError for one that is not known."""
    suffixes = [suffix for suffix in pathlib.PurePath(path.lower()).suffixes if suffix != ".gz"]
    suffix = suffixes[-1] if suffixes else ""
    if suffix not in LINES + TABLES:
        known = ", ".join(LINES + TABLES)
        raise UsageError(f"{path} must end in one of {known} (lines also with .gz). Rename or convert it.")
    kind = "table" if suffix in TABLES else "file"
    module, options = configuration.built("sources", {"kind": kind, "path": path})
    source: Source = module.build(options, config.fields)
    return source


def limited(source: Source, lane: Lane, rows_max: int | None) -> Iterator[Rows]:
    """Reads of `source`, at most `rows_max` rows in all."""
    left = rows_max
    while (left is None or left > 0) and (rows := source.poll(lane.schema.kinds)) is not None:
        if left is not None and rows.n > left:
            rows = taken(rows, np.arange(left))
        if left is not None:
            left -= rows.n
        yield rows


def parts(rows: Rows, passes: int) -> Iterator[Rows]:
    """`rows` `passes` times over, in reads of a usual size."""
    for _ in range(passes):
        for start in range(0, rows.n, 4096):
            yield taken(rows, np.arange(start, min(start + 4096, rows.n)))


def stepped(reads: Iterable[Rows], curves: back_test.Curves) -> Iterator[Rows]:
    """`reads` in pieces as fine as the curves; no result depends on where a read is cut."""
    for rows in reads:
        start = 0
        while start < rows.n:
            step = curves.step_rows
            piece = taken(rows, np.arange(start, min(start + step, rows.n))) if rows.n > step else rows
            if start == 0:
                piece.rejects = rows.rejects
            yield piece
            curves.add()
            start += piece.n
        if not rows.n:
            yield rows
    curves.finish()


def taken(rows: Rows, indices: Any) -> Rows:
    """The rows at `indices`, in that order."""

    def of(column: Column) -> Column:
        return column[indices] if isinstance(column, np.ndarray) else [column[i] for i in indices]

    return Rows(
        n=len(indices),
        columns={name: of(column) for name, column in rows.columns.items()},
        ids=[rows.ids[i] for i in indices],
        labels=[rows.labels[i] for i in indices],
        has_features=rows.has_features[indices],
        times=rows.times[indices],
        weights=rows.weights[indices],
        echo=None if rows.echo is None else [rows.echo[i] for i in indices],
        positions=None if rows.positions is None else rows.positions[indices],
    )


def joined(reads: list[Rows]) -> Rows:
    """All reads as one."""
    n = sum(rows.n for rows in reads)
    names = list(dict.fromkeys(name for rows in reads for name in rows.columns))

    def column(name: str) -> Column:
        columns = [rows.columns.get(name, np.full(rows.n, np.nan)) for rows in reads]
        if all(isinstance(part, np.ndarray) for part in columns):
            return np.concatenate(columns)
        return [
            None if isinstance(value, float) and value != value else value
            for part in columns
            for value in (part.tolist() if isinstance(part, np.ndarray) else part)
        ]

    return Rows(
        n=n,
        columns={name: column(name) for name in names},
        ids=[value for rows in reads for value in rows.ids],
        labels=[value for rows in reads for value in rows.labels],
        has_features=np.concatenate([rows.has_features for rows in reads]) if reads else np.zeros(0, bool),
        times=np.concatenate([rows.times for rows in reads]) if reads else np.zeros(0),
        weights=np.concatenate([rows.weights for rows in reads]) if reads else np.zeros(0),
        rejects=[reject for rows in reads for reject in rows.rejects],
    )


def summary(lane: Lane, seconds: float) -> dict[str, Any]:
    """What was measured, in the stable form of `--format json`."""
    names = lane.pool.names
    return {
        "rows": lane.rows,
        "task": lane.layout.task,
        **lane.scores.cumulative(len(names)),
        **({} if lane.coverage is None else {"coverage": lane.coverage.figures()}),
        **({} if lane.student is None else {"student": lane.student.scores.cumulative(0)}),
        "seconds": round(seconds, 3),
        "rows_per_second": round(lane.rows / seconds, 1) if seconds else None,
        # Who came to a place was not there for all rows, and is not to be compared.
        "learners": {
            slot.name: lane.scores.cumulative(index)
            for index, slot in enumerate(lane.pool.slots)
            if not slot.is_place
        },
        "drifts": lane.counts["drifts"],
        "switches": lane.counts["switches"],
        "warnings": lane.counts["warnings"],
        "covariate_shifts": lane.counts["covariate_shifts"],
        "unlabelled_drifts": lane.counts["unlabelled_drifts"],
        "expected_accuracy": lane.detector.expected_accuracy_overall(),
        "concepts": len(lane.strategy.memory.concepts),
        "recalls": lane.strategy.memory.recalls,
        "challengers": dict(lane.strategy.challengers.counts),
        "rejects": dict(lane.rejected),
        "champion": names[lane.champion] if lane.champion >= 0 else None,
        "weights": {
            slot.name: weight
            for slot, weight in zip(lane.pool.slots, lane.controller.weights().tolist(), strict=True)
            if not places.is_empty(slot)
        },
    }


def judged(lane: Lane, hold_out: Rows, take: Callable[[Rows], list[Answers]]) -> dict[str, Any]:
    """Scores on rows that are predicted and never learned; rows without features or label are left out."""
    hold_out = taken(hold_out, np.flatnonzero(hold_out.has_features))
    truth = lane.targets(hold_out)
    unlabelled = msgspec.structs.replace(hold_out, labels=[None] * hold_out.n, ids=[None] * hold_out.n)
    values = np.concatenate([part.values for part in take(unlabelled)] or [np.zeros((0, 1))])
    labelled = ~np.isnan(truth)
    n = int(labelled.sum())
    # As on the stream: no prediction is a wrong class, and no part of an error.
    predicted = labelled & ~np.isnan(values).any(axis=1) & (values.shape[1] > 0)
    values, truth = values[predicted], truth[predicted]
    if lane.layout.task == "classification":
        hits = int(np.count_nonzero(values.argmax(axis=1) == truth)) if len(values) else 0
        return {"rows": n, "accuracy": scores.ratio(hits, n)}
    error = values[:, 0] - truth
    mean_square = scores.ratio(float((error**2).sum()), len(error))
    spread = float(np.var(truth)) if len(truth) else 0.0
    return {
        "rows": n,
        "mae": scores.ratio(float(np.abs(error).sum()), len(error)),
        "rmse": None if mean_square is None else math.sqrt(mean_square),
        "r2": None if mean_square is None else scores.one_minus(scores.ratio(mean_square, spread)),
    }
