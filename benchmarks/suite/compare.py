"""adaptd beside its peers on the same rows: scores, ranks, changes, cost."""

import math
import pathlib
from typing import Any

from benchmarks.suite import changes, collected, plot, ranks, tables
from benchmarks.suite.bars import Part, verdict
from benchmarks.suite.runs import Run, Runner
from benchmarks.suite.scores import CLASS_SCORES, LOWER_IS_BETTER, NUMBER_SCORES, losses, scores
from benchmarks.suite.systems import System

BEST_LEARNER_MARGIN = 0.005
MEMORY_MB_MAX = 400
# Less CPU time than this is not told apart from none.
MEASURABLE_SECONDS = 0.1
COST_PEERS = ("capymoa-arf10", "capymoa-arf10-numbers")
# Coloured in the chart: adaptd, and what people would take today.
MARKED = (
    "adaptd",
    "capymoa-arf10",
    "capymoa-srp10",
    "capymoa-samknn",
    "river-linear",
    "vw-quad",
    "no-change",
)

Found = dict[str, dict[str, list[Run]]]
"""Stream (without seed) -> system -> one run a seed."""


def compare(
    runner: Runner, streams: list[str], systems: list[System], seeds: int, rows: int, folder: pathlib.Path,
    data: pathlib.Path | None, stretch_rows: int = 5000, together: bool = False,
) -> Part:  # fmt: skip
    """Every system on every stream, and the report. together: one process a system, not one a stream too."""
    seeds_of = {name: seeds if collected.is_seeded(name) else 1 for name in streams}
    runner.total += len(systems) * sum(seeds_of.values())
    found: Found = {}
    if together:
        made = [
            collected.collect(name, folder, rows, seed, data, stretch_rows)
            for name in streams
            for seed in range(seeds_of[name])
        ]
        for system in systems:
            for run in runner.run_all(system, made):
                found.setdefault(run.stream.family, {}).setdefault(system.name, []).append(run)
        return report(
            {name: found[name] for name in streams if name in found}, [system.name for system in systems]
        )
    for name in streams:
        for seed in range(seeds_of[name]):
            stream = collected.collect(name, folder, rows, seed, data, stretch_rows)
            for system in systems:
                if (run := runner.run(system, stream)) is not None:
                    found.setdefault(name, {}).setdefault(system.name, []).append(run)
    return report(found, [system.name for system in systems])


def report(found: Found, order: list[str]) -> Part:
    words, figures, charts = [], {"runs": [figures_of(run) for run in each(found)]}, {}
    for task, names, title in (
        ("classification", CLASS_SCORES, "Classification"),
        ("regression", NUMBER_SCORES, "Regression"),
    ):
        part = {stream: of for stream, of in found.items() if task_of(of) == task}
        if not part:
            continue
        systems = [name for name in order if any(name in of for of in part.values())]
        words.append(f"## {title}\n")
        words.append(streams_table(part))
        for score in names:
            words.append(f"### {score.replace('_', ' ').capitalize()}\n")
            words.append(tables.score_table(cells(part, score), systems, score in LOWER_IS_BETTER))
        words.append(ranking(part, names[0]))
        words.append(costs(part, systems))
        loss = {
            stream: {
                name: (1 - value if task == "classification" else value) for name, (value, _) in of.items()
            }
            for stream, of in cells(part, names[0]).items()
        }
        marked = [name for name in MARKED if name in systems] if task == "classification" else systems[:7]
        others = [name for name in systems if name not in marked]
        charts[f"{task}.svg"] = plot.dots(
            f"{title}: every system against the best one of each stream",
            loss,
            [*marked, *others],
            len(marked),
        )
    words += [after_changes(found, order), own_learners(found)]
    return "\n".join(word for word in words if word), figures, charts


def each(found: Found) -> list[Run]:
    return [run for of in found.values() for runs in of.values() for run in runs]


def task_of(of: dict[str, list[Run]]) -> str:
    return next(iter(of.values()))[0].stream.task


def figures_of(run: Run) -> dict[str, Any]:
    return {
        "stream": run.stream.name, "task": run.stream.task, "rows": run.stream.rows, "system": run.system,
        **scores(run.said), **run.measured,
    }  # fmt: skip


def cells(part: Found, score: str) -> dict[str, dict[str, tuple[float, float]]]:
    return {
        stream: {
            name: ranks.mean_and_error([scores(run.said)[score] for run in runs]) for name, runs in of.items()
        }
        for stream, of in part.items()
    }


def streams_table(part: Found) -> str:
    rows = []
    for name, of in part.items():
        runs = next(iter(of.values()))
        stream = runs[0].stream
        points = f"{len(stream.change_points)}" if stream.changes_known else ""
        rows.append([name, stream.source, f"{stream.rows:,}", str(len(stream.features)),
                     str(len(stream.classes) or ""), points, str(len(runs))])  # fmt: skip
    return tables.table(["stream", "source", "rows", "features", "classes", "known changes", "seeds"], rows)


def ranking(part: Found, score: str) -> str:
    """Mean ranks, each adaptd by itself among the peers: two of one kind would share the good ranks."""
    by_system: dict[str, dict[str, float]] = {}
    for stream, of in cells(part, score).items():
        for name, (value, _) in of.items():
            by_system.setdefault(name, {})[stream] = value
    own = [name for name in by_system if is_own(name)]
    results = [
        ranks.ranks(
            {name: by_system[name] for name in by_system if name == chosen or not is_own(name)},
            score in LOWER_IS_BETTER,
        )
        for chosen in own or [""]
    ]
    words = f"### Mean rank by {score.replace('_', ' ')} over {len(results[0].streams)} streams\n\n"
    for result in results:
        listed = [f"{name} {mean:.2f}" for name, mean in zip(result.systems, result.means, strict=True)]
        words += f"- {', '.join(listed)}."
        if math.isfinite(result.distance):
            words += f" Less than {result.distance:.2f} apart may be chance (Nemenyi, 0.05)"
            words += f"; Friedman's p = {result.p_value:.2g}." if math.isfinite(result.p_value) else "."
        words += "\n"
    ranked = {name for result in results for name in result.systems}
    if missing := [name for name in by_system if name not in ranked]:
        words += f"\nWithout a rank, since not run on every stream: {', '.join(missing)}.\n"
    return words


def is_own(system: str) -> bool:
    return system.startswith("adaptd")


def costs(part: Found, systems: list[str]) -> str:
    """Rows per CPU second and resident memory, over all streams that a system ran on."""
    rows = []
    for name in systems:
        runs = [run for of in part.values() for run in of.get(name, [])]
        # In a process that goes through several streams the start counts with the first of them.
        learned = sum(run.stream.rows for run in runs)
        loop = sum(run.measured["loop_seconds"] for run in runs)
        whole = sum(run.measured["process_seconds"] for run in runs)
        memory = max(run.measured["resident_bytes_max"] for run in runs) / 1e6
        speed = tables.count(learned / loop if loop > MEASURABLE_SECONDS else None)
        rows.append([name, speed, tables.count(learned / whole), tables.count(memory)])
    words = "### Cost\n\n"
    words += tables.table(["system", "rows/CPU s, loop", "rows/CPU s, process", "MB resident at most"], rows)
    peer = next((name for name in COST_PEERS if name in systems), None)
    for name in systems:
        if peer is None or not is_own(name):
            continue
        lines, dearer, memory = [], 0, 0.0
        for stream, of in part.items():
            if name in of and peer in of:
                own, theirs = (
                    sum(run.measured["loop_seconds"] for run in of[which]) for which in (name, peer)
                )
                memory = max(memory, *(run.measured["resident_bytes_max"] / 1e6 for run in of[name]))
                dearer += own > theirs
                lines.append(f"{stream} {own:.1f} / {theirs:.1f}")
        words += f"\n{name}, CPU seconds of the loop against {peer}: {', '.join(lines)}; more on {dearer} of "
        words += f"{len(lines)} streams, {verdict(not dearer)}. Memory {memory:.0f} MB, "
        words += f"{verdict(memory < MEMORY_MB_MAX)} (below {MEMORY_MB_MAX}).\n"
    return words


def after_changes(found: Found, order: list[str]) -> str:
    """Rows to recover for all, drifts of those that report any, and ADWIN on the errors as a yardstick."""
    recovered, detected = [], []
    for stream, of in found.items():
        points = next(iter(of.values()))[0].stream.change_points
        is_error = task_of(of) == "regression"
        row = [stream]
        for name in order:
            groups = [
                changes.laid_over(losses(run.said), run.stream.change_points) for run in of.get(name, [])
            ]
            if not points or not groups:
                row.append("")
                continue
            rows, error = changes.with_error(groups, None, is_error)
            row.append(tables.number(rows, 0, error))
        if points:
            recovered.append(row)
        if next(iter(of.values()))[0].stream.changes_known:
            for name, runs in of.items():
                if "drifts" in runs[0].measured:
                    reported = [[at - 1 for at in run.measured["drifts"]] for run in runs]
                    detected.append([stream, name, *alarm_cells(runs, reported)])
                elif name == "capymoa-arf10":
                    on_errors = [changes.adwin(losses(run.said)) for run in runs]
                    detected.append([stream, f"ADWIN on the errors of {name}", *alarm_cells(runs, on_errors)])
    words = ""
    if recovered:
        words += (
            "## Rows to recover after known changes\n\nWithin 0.03 of a system's own steady accuracy, or a "
        )
        words += "tenth above its steady error; a system with a low level is back at it soon.\n\n"
        words += tables.table(["stream", *order], recovered)
    if detected:
        words += "\n## Drifts\n\n"
        header = ["stream", "who", "changes found", "mean delay, rows", "false per million rows"]
        words += tables.table(header, detected)
    return words


def alarm_cells(runs: list[Run], found: list[list[int]]) -> list[str]:
    total = changes.Alarms()
    for run, rows in zip(runs, found, strict=True):
        total += changes.alarms(rows, run.stream.change_points, run.stream.rows)
    return [f"{total.found} of {total.changes}" if total.changes else "", tables.count(total.delay),
            tables.count(total.false_per_million)]  # fmt: skip


def own_learners(found: Found) -> str:
    """adaptd's blend against the best of its own learners, known only in hindsight."""
    rows, worst = [], -math.inf
    for stream, of in found.items():
        if "adaptd" not in of:
            continue
        is_error = task_of(of) == "regression"
        blend, best, names = [], [], []
        for run in of["adaptd"]:
            known = {name: value for name, value in run.measured["learners"].items() if value is not None}
            name = (min if is_error else max)(known, key=lambda key: known[key])
            names.append(name)
            best.append(known[name])
            blend.append(scores(run.said)["mae" if is_error else "accuracy"])
        (own, _), (learner, _) = ranks.mean_and_error(blend), ranks.mean_and_error(best)
        # An error has a unit: its loss is told as a share of the learner's.
        behind = (own - learner) / learner if is_error else learner - own
        worst = max(worst, behind)
        rows.append([stream, tables.number(own), tables.number(learner), max(set(names), key=names.count),
                     tables.number(behind)])  # fmt: skip
    if not rows:
        return ""
    words = "## The blend against its own best learner\n\n"
    words += tables.table(["stream", "blend", "best learner", "which", "behind"], rows)
    words += (
        f"\nLargest lag {worst:.4f} (of an error: as a share of it), {verdict(worst <= BEST_LEARNER_MARGIN)} "
    )
    return words + f"(at most {BEST_LEARNER_MARGIN}).\n"
