"""Each mechanism of adaptd switched off, one at a time: what does it bring?"""

import pathlib

from benchmarks.suite import collected, ranks, tables
from benchmarks.suite.bars import Part
from benchmarks.suite.runs import Runner
from benchmarks.suite.scores import scores
from benchmarks.suite.switches import ablations
from benchmarks.suite.systems import adaptd


def ablate(
    runner: Runner, streams: list[str], chosen: list[str], seeds: int, rows: int, folder: pathlib.Path,
    data: pathlib.Path | None,
) -> Part:  # fmt: skip
    """Scores of the default and of each ablation on the first `rows` rows of each stream."""
    variants = {"default": []} | {
        name: parts for name, parts in ablations().items() if not chosen or name in chosen
    }
    # Short as they are, the generated streams are to have changes.
    stretch_rows = rows // 4
    made = [
        collected.collect(name, folder, rows, seed, data, stretch_rows)
        for name in streams
        for seed in range(seeds if collected.is_seeded(name) else 1)
    ]
    runner.total += len(variants) * len(made)
    cells: dict[str, dict[str, float]] = {}
    seconds: dict[str, float] = {}
    is_error = {stream.family: stream.task == "regression" for stream in made}
    for variant, parts in variants.items():
        found: dict[str, list[float]] = {}
        runs = runner.run_all(adaptd(variant, *parts), made)
        for run in runs:
            score = "mae" if is_error[run.stream.family] else "accuracy"
            found.setdefault(run.stream.family, []).append(scores(run.said)[score])
        cells[variant] = {stream: ranks.mean_and_error(values)[0] for stream, values in found.items()}
        seconds[variant] = sum(run.measured["loop_seconds"] for run in runs)
    lines = []
    for variant, of in cells.items():
        gains = [
            (cells["default"][stream] - of[stream]) if not is_error[stream]
            else (of[stream] - cells["default"][stream]) / cells["default"][stream]
            for stream in streams if stream in of and stream in cells["default"]
        ]  # fmt: skip
        lines.append([
            variant,
            tables.number(100 * sum(gains) / len(gains), 2) if variant != "default" and gains else "",
            *(tables.number(of.get(stream)) for stream in streams),
            tables.number(seconds[variant] / seconds["default"], 2) if seconds["default"] else "",
        ])  # fmt: skip
    words = (
        "## Ablations\n\n"
        f"First {rows:,} rows of each stream; generated ones change every {stretch_rows:,} rows; seeds: "
        f"{seeds}. Accuracy, or mean absolute error. `brings`: mean over the streams of what the mechanism "
        "adds, in points of accuracy or per cent of the error; below 0 it harms. `CPU`: seconds against the "
        "default's.\n\n" + tables.table(["", "brings", *streams, "CPU"], lines)
    )
    return words, {"ablations": {"scores": cells, "loop_seconds": seconds}}, {}
