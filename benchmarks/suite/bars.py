"""What adaptd is held to on generated streams: concepts that come back, abrupt drift, no drift at all.

Each bar gives a part of a report in Markdown, its figures as data, and charts. All systems see the same rows.
"""

import math
import pathlib
from typing import Any

import numpy as np

from benchmarks.suite import changes, collected, plot, ranks, tables
from benchmarks.suite.runs import Run, Runner
from benchmarks.suite.scores import losses
from benchmarks.suite.switches import adaptation_off
from benchmarks.suite.systems import SYSTEMS, System, adaptd

# After a return: once a few labels had to tell which concept it is, and before it could be learned anew.
RETURN_ROWS = (200, 1000)
RETURN_GAP_MAX = 0.03
ABRUPT_SHARE_MAX = 0.5
STATIONARY_DRIFTS_MAX = 10
STATIONARY_COST_MAX = 0.002
BARS = ("recurring", "abrupt", "stationary")
ABRUPT = ("sea", "agrawal", "rbf", "led")
STATIONARY = ("sea", "agrawal", "rbf", "led", "hyperplane")

Part = tuple[str, dict[str, Any], dict[str, str]]
"""Markdown, figures, charts by file name."""


def verdict(met: bool) -> str:
    return "met" if met else "**not met**"


def systems_named(names: list[str], more: list[str]) -> list[System]:
    """Systems by name; `more` are assignments for each adaptd among them."""
    chosen = [SYSTEMS[name] for name in names]
    return [
        adaptd(system.name, *system.options["set"], *more) if system.runner == "run_adaptd" else system
        for system in chosen
    ]


def collect_runs(
    runner: Runner, systems: list[System], streams: list[str], seeds: int, rows: int, stretch_rows: int,
    folder: pathlib.Path,
) -> dict[str, dict[str, list[Run]]]:  # fmt: skip
    """stream -> system -> one run a seed."""
    runner.total += len(systems) * len(streams) * seeds
    found: dict[str, dict[str, list[Run]]] = {name: {} for name in streams}
    made = [
        collected.collect(name, folder, rows, seed, stretch_rows=stretch_rows)
        for seed in range(seeds)
        for name in streams
    ]
    for system in systems:
        for run in runner.run_all(system, made):
            found[run.stream.family].setdefault(system.name, []).append(run)
    return found


def recurring(
    runner: Runner, systems: list[System], families: list[str], seeds: int, stretch_rows: int,
    folder: pathlib.Path,
) -> Part:  # fmt: skip
    """A B A B A B: from the second return on, is the accuracy of a concept there again at once?"""
    streams = [f"{family}_recurring" for family in families]
    found = collect_runs(runner, systems, streams, seeds, 6 * stretch_rows, stretch_rows, folder)
    rows, figures, panels = [], [], {}
    gaps: dict[str, list[float]] = {}
    for stream, of in found.items():
        panels[stream] = {name: mean_curve(runs, stretch_rows, 1500) for name, runs in of.items()}
        for name, runs in of.items():
            first, back, end = (np.array(values) for values in zip(*map(visits, runs), strict=True))
            gap, error = ranks.mean_and_error((end - back).tolist())
            gaps.setdefault(name, []).append(gap)
            figures.append({
                "stream": stream, "system": name, "seeds": len(runs), "first_visit": float(first.mean()),
                "after_return": float(back.mean()), "steady": float(end.mean()), "gap": gap,
                "gap_error": error, "seeds_within": int(np.sum(end - back <= RETURN_GAP_MAX)),
            })  # fmt: skip
            rows.append([
                stream, name, tables.number(float(first.mean())), tables.number(float(back.mean())),
                tables.number(float(end.mean())), tables.number(gap, error=error),
                f"{int(np.sum(end - back <= RETURN_GAP_MAX))} of {len(runs)}",
            ])  # fmt: skip
    words = [
        "## Concepts that come back\n",
        f"A B A B A B, {stretch_rows:,} rows each, {seeds} seeds. Accuracy over rows {RETURN_ROWS[0]} to "
        f"{RETURN_ROWS[1]:,} of the first visits and of the second returns (stretches 5 and 6), and over the "
        f"last {changes.STEADY_SHARE:.0%} of those same stretches; the bar is a gap of {RETURN_GAP_MAX} "
        "between the last two, ± is the standard error over seeds.\n",
        tables.table(
            ["stream", "system", "first visit", "after return", "steady", "gap", "seeds within"], rows
        ),
    ]
    for name, of_streams in gaps.items():
        if name.startswith("adaptd"):
            worst = max(of_streams)
            words.append(
                f"{name}: largest gap of a family {worst:.4f}, {verdict(worst <= RETURN_GAP_MAX)}.\n"
            )
    chart = plot.curves("Accuracy after a second return", panels, "rows after the return")
    return "\n".join(words), {"recurring": figures}, {"recurring.svg": chart}


def visits(run: Run) -> tuple[float, float, float]:
    """Accuracy early in the first visits, early after the second returns, and late after them."""
    hit = 1 - losses(run.said)
    # Both concepts: those of the first and of the last visits.
    points = [0, *run.stream.change_points]
    length = points[1]

    def mean(starts: list[int], begin: int, end: int) -> float:
        return float(np.mean([hit[start + begin : start + end].mean() for start in starts]))

    late = int(length * (1 - changes.STEADY_SHARE))
    return (
        mean(points[:2], *RETURN_ROWS),
        mean(points[4:], *RETURN_ROWS),
        mean(points[4:], late, length),
    )


def mean_curve(runs: list[Run], stretch_rows: int, rows: int) -> list[float]:
    """Accuracy after the changes to the last two stretches, over seeds."""
    over = [changes.laid_over(losses(run.said), run.stream.change_points)[-2:, :rows] for run in runs]
    return (1 - changes.smoothed(np.concatenate(over))).tolist()


def abrupt(
    runner: Runner, systems: list[System], families: list[str], seeds: int, stretch_rows: int,
    folder: pathlib.Path, reference: str = "capymoa-arf10",
) -> Part:  # fmt: skip
    """Four concepts one after the other: how many rows until the accuracy is there again?"""
    streams = [f"{family}_abrupt" for family in families]
    found = collect_runs(runner, systems, streams, seeds, 4 * stretch_rows, stretch_rows, folder)
    rows, figures, panels = [], [], {}
    own: dict[str, list[float]] = {}
    given: dict[str, list[float]] = {}
    for stream, of in found.items():
        groups = {
            name: [changes.laid_over(losses(run.said), run.stream.change_points) for run in runs]
            for name, runs in of.items()
        }
        panels[stream] = {
            name: (1 - changes.smoothed(np.concatenate(group)[:, :1500])).tolist()
            for name, group in groups.items()
        }
        level = changes.steady(np.concatenate(groups[reference])) if reference in groups else math.nan
        for name, group in groups.items():
            to_own, own_error = changes.with_error(group, None)
            to_given, given_error = changes.with_error(group, level)
            together = np.concatenate(group)
            lost = float((together.mean(axis=0) - changes.steady(together))[:2000].sum())
            own.setdefault(name, []).append(to_own)
            given.setdefault(name, []).append(to_given)
            figures.append({
                "stream": stream, "system": name, "rows_to_own_level": to_own, "own_error": own_error,
                "rows_to_reference_level": to_given, "reference_error": given_error,
                "steady": 1 - changes.steady(together), "errors_above_steady": lost,
            })  # fmt: skip
            rows.append([
                stream, name, tables.number(1 - changes.steady(together)),
                tables.number(to_own, 0, own_error), tables.number(to_given, 0, given_error),
                tables.number(lost, 0), *alarms_of(of[name]),
            ])  # fmt: skip
    words = [
        "## Abrupt drift\n",
        f"Four concepts, {stretch_rows:,} rows each, {seeds} seeds, three changes each. Rows until the "
        f"accuracy is within {changes.TOLERANCE} of its own steady level, and of the level of {reference} "
        f"(`steady`: the last {changes.STEADY_SHARE:.0%} of a stretch; ±: jackknife over seeds). `lost`: "
        "errors in the 2,000 rows after a change beyond those at the steady level. Delay and false alarms "
        "(per million rows) of the drifts that the system itself reports.\n",
        tables.table(
            ["stream", "system", "steady", "rows to own level", f"rows to level of {reference}", "lost",
             "found", "delay", "false alarms"],
            rows,
        ),
    ]  # fmt: skip
    for name in own:
        if name.startswith("adaptd") and reference in own:
            for kind, of_kind in (("its own", own), (f"{reference}'s", given)):
                mean, peer = np.mean(of_kind[name]), np.mean(of_kind[reference])
                ratios = np.array(of_kind[name]) / np.array(of_kind[reference])
                words.append(
                    f"{name}, to {kind} level: {mean:.0f} rows on the average of the families, "
                    f"against {peer:.0f}: {mean / peer:.2f} of it (mean of the ratios {ratios.mean():.2f}), "
                    f"{verdict(mean <= ABRUPT_SHARE_MAX * peer)} (at most {ABRUPT_SHARE_MAX}).\n"
                )
    chart = plot.curves("Accuracy after an abrupt drift", panels, "rows after the change")
    return "\n".join(words), {"abrupt": figures}, {"abrupt.svg": chart}


def alarms_of(runs: list[Run]) -> list[str]:
    """Changes found, mean delay, false alarms per million rows; empty for a system that reports none."""
    if "drifts" not in runs[0].measured:
        return ["", "", ""]
    total = changes.Alarms()
    for run in runs:
        found = [row - 1 for row in run.measured["drifts"]]
        total += changes.alarms(found, run.stream.change_points, run.stream.rows)
    return [
        f"{total.found} of {total.changes}",
        tables.count(total.delay),
        tables.count(total.false_per_million),
    ]


def stationary(runner: Runner, more: list[str], seeds: int, rows: int, folder: pathlib.Path) -> Part:
    """Concepts that never change: how often is a drift called, and what does readiness for one cost?"""
    off = adaptation_off()
    systems = [adaptd("on", *more), adaptd("off", *more, *off)]
    streams = [f"{family}_stationary" for family in STATIONARY]
    found = collect_runs(runner, systems, streams, seeds, rows, rows, folder)
    lines, figures, costs, drifts = [], [], [], 0
    for stream, of in found.items():
        accuracy = {name: ranks.mean_and_error([1 - float(losses(run.said).mean()) for run in runs])
                    for name, runs in of.items()}  # fmt: skip
        called = sum(len(run.measured["drifts"]) for run in of["on"])
        seconds = {name: sum(run.measured["loop_seconds"] for run in runs) for name, runs in of.items()}
        cost = accuracy["off"][0] - accuracy["on"][0]
        costs.append(cost)
        drifts += called
        speed = {name: len(of[name]) * rows / seconds[name] for name in of}
        figures.append({
            "stream": stream, "rows": rows, "seeds": len(of["on"]), "drifts": called, "cost": cost,
            "accuracy": accuracy, "rows_per_cpu_second": speed,
        })  # fmt: skip
        lines.append([
            stream, tables.number(accuracy["on"][0], 5), tables.number(accuracy["off"][0], 5),
            tables.number(cost, 5), str(called), tables.count(speed["on"]), tables.count(speed["off"]),
        ])  # fmt: skip
    words = [
        "## No drift at all\n",
        f"{rows:,} rows of each stream, {seeds} seeds"
        + (f", with {', '.join(f'`{text}`' for text in more)}" if more else "")
        + f". Off: {', '.join(f'`{text}`' for text in off)}.\n",
        tables.table(
            ["stream", "accuracy on", "accuracy off", "cost", "drifts called", "rows/CPU s on", "off"], lines
        ),
        f"Drifts in all: {drifts}, {verdict(drifts <= STATIONARY_DRIFTS_MAX)} (at most "
        f"{STATIONARY_DRIFTS_MAX} on five million rows). Largest cost: {max(costs):.5f}, "
        f"{verdict(max(costs) <= STATIONARY_COST_MAX)} (at most {STATIONARY_COST_MAX}).\n",
    ]
    return "\n".join(words), {"stationary": figures}, {}
