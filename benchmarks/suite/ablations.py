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
    seeds_of = {name: range(seeds if collected.is_seeded(name) else 1) for name in streams}
    runner.total += len(variants) * sum(map(len, seeds_of.values()))
    cells: dict[str, dict[str, float]] = {name: {} for name in variants}
    seconds: dict[str, float] = dict.fromkeys(variants, 0.0)
    learned = 0
    is_error: dict[str, bool] = {}
    for stream_name in streams:
        made = [collected.collect(stream_name, folder, rows, seed, data) for seed in seeds_of[stream_name]]
        is_error[stream_name] = made[0].task == "regression"
        score = "mae" if is_error[stream_name] else "accuracy"
        learned += sum(stream.rows for stream in made)
        for variant, parts in variants.items():
            runs = runner.run_all(adaptd(variant, *parts), made)
            if len(runs) == len(made):
                cells[variant][stream_name], _ = ranks.mean_and_error(
                    [scores(run.said)[score] for run in runs]
                )
                seconds[variant] += sum(run.measured["loop_seconds"] for run in runs)
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
        f"First {rows:,} rows of each stream; seeds of the generated ones: {seeds}. Accuracy, or mean "
        "absolute error. `brings`: mean over the streams of what the mechanism adds, in points of "
        "accuracy or per cent of the error; below 0 it harms. `CPU`: seconds against the default's.\n\n"
        + tables.table(["", "brings", *streams, "CPU"], lines)
    )
    return words, {"ablations": {"scores": cells, "loop_seconds": seconds, "rows": learned}}, {}
