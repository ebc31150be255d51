"""Markdown tables of the suite."""

import math
import os
import platform
from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells as they are; the first column to the left, the others to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def number(value: float | None, digits: int = 4, error: float = math.nan) -> str:
    """A score with its standard error; empty for what is not there."""
    if value is None or not math.isfinite(value):
        return ""
    shown = f"{value:.4g}" if abs(value) >= 1e4 else f"{value:.{digits}f}"
    return shown if not math.isfinite(error) else f"{shown} ± {error:.{digits}f}"


def count(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:,.0f}"


def score_table(
    cells: dict[str, dict[str, tuple[float, float]]], systems: Sequence[str], lower_is_better: bool
) -> str:
    """cells: stream -> system -> (mean, standard error); the best of each stream is bold."""
    rows = []
    for stream, of in cells.items():
        known = [value for value, _ in of.values() if math.isfinite(value)]
        best = (min if lower_is_better else max)(known) if known else math.nan
        row = [stream]
        for system in systems:
            value, error = of.get(system, (math.nan, math.nan))
            text = number(value, error=error)
            row.append(f"**{text}**" if text and value == best else text)
        rows.append(row)
    return table(["stream", *systems], rows)


def machine() -> str:
    """What the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            cpu = next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    processors = len(os.sched_getaffinity(0))
    return f"{cpu}, {processors} processors; Python {platform.python_version()}; load when written {load}"
