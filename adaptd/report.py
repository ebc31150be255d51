"""What a person sees in a terminal: progress, tables of scores, documentation of components."""

import contextlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from adaptd import registry
from adaptd.config import documentation
from adaptd.meta import Knowledge

# Heads of columns that would be wider than what stands below them.
SHORT = {"calibration_error": "ece"}


@contextlib.contextmanager
def progress(path: str) -> Iterator[Callable[[int], None]]:
    """A bar on stderr with rows a second, when stderr is a terminal; gives the function that moves it."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda rows: None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} rows"),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(os.path.basename(path), total=None, speed="")

        def advance(rows: int) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, completed=rows, speed=f"{speed:,.0f} rows/s" if speed else "")

        yield advance


def table(result: dict[str, Any]) -> None:
    """Scores of the blend and of every learner, the best first."""
    regression = result["task"] == "regression"
    scores = (
        ("mae", "rmse", "r2")
        if regression
        else ("accuracy", "kappa", "log_loss", "calibration_error", "macro_f1")
    )
    console = Console()
    shown = Table(title=f"{result['rows']:,} rows, {result['task']}, prequential", title_justify="left")
    shown.add_column("learner")
    for score in scores:
        shown.add_column(SHORT.get(score, score), justify="right")
    shown.add_column("weight", justify="right")
    shown.add_row("blend", *(number(result.get(score)) for score in scores), "", style="bold")
    if "student" in result:
        values = result["student"]
        shown.add_row("student", *(number(values.get(score)) for score in scores), "", style="bold")
    learners = sorted(
        result["learners"].items(),
        key=lambda item: (item[1][scores[0]] is None, (item[1][scores[0]] or 0) * (1 if regression else -1)),
    )
    for name, values in learners:
        weight = result["weights"].get(name)
        shown.add_row(name, *(number(values.get(score)) for score in scores), number(weight))
    console.print(shown)
    console.print(
        f"{result['drifts']} drifts, {result['switches']} switches of the champion, "
        f"{result['rows_per_second']:,.0f} rows a second"
    )
    if "coverage" in result:
        covered = [
            f"{key.replace('_', ' ')} {number(value)}"
            for key, value in result["coverage"].items()
            if not key.startswith("recent")
        ]
        console.print(f"coverage: {', '.join(covered)}")
    if "holdout" in result:
        held = {key: number(value) for key, value in result["holdout"].items() if key != "rows"}
        words = ", ".join(f"{key} {value}" for key, value in held.items())
        console.print(f"hold-out of {result['holdout']['rows']:,} rows: {words}")
    if result["rejects"]:
        console.print(f"rejected: {', '.join(f'{n} {reason}' for reason, n in result['rejects'].items())}")


def number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.1f}"


def kinds(family: str) -> None:
    """A table of the kinds of a family, each with its sentence and its options."""
    shown = Table(title=f"{family} (adaptd learners KIND tells all of one)", title_justify="left")
    for column in ("kind", "tasks", "what it is", "options and defaults"):
        shown.add_column(column, overflow="fold")
    for name in registry.kinds(family):
        module = registry.load(family, name)
        options = "\n".join(f"{key} = {default!r}" for key, _, default, _ in documentation(module.Config))
        tasks = "\n".join(getattr(module, "TASKS", ("any",)))
        shown.add_row(name, tasks, sentence(module), options)
        shown.add_section()
    console().print(shown)


def kind(module: ModuleType, name: str) -> None:
    """All that a component says of itself, and its options."""
    out = console()
    out.print(inspect.getdoc(module) or "", markup=False, highlight=False)
    shown = Table(title=f"options of {name}", title_justify="left")
    for column in ("option", "type", "default", "what it does"):
        shown.add_column(column, overflow="fold")
    for key, words, default, text in documentation(module.Config):
        shown.add_row(key, words, repr(default), text)
    out.print(shown)


def sentence(module: ModuleType) -> str:
    """The first sentence of a component's documentation."""
    return " ".join((inspect.getdoc(module) or "").split("\n\n")[0].split())


def console() -> Console:
    """Wide enough to be read when it is piped."""
    return Console(width=None if sys.stdout.isatty() else 120)


def meta(knowledge: Knowledge) -> None:
    """What each action saved, which boosts helped, and whom controllers came to trust."""
    out = console()
    shown = Table(title="actions: share of the loss saved (outcomes)", title_justify="left")
    actions = knowledge.actions
    shown.add_column("learner kind")
    for action in actions:
        shown.add_column(action, justify="right")
    for name in dict.fromkeys(name for kinds in actions.values() for name in kinds):
        means = [kinds.get(name) for kinds in actions.values()]
        shown.add_row(name, *("" if m is None else f"{m.saved:+.3f} ({m.outcomes:.1f})" for m in means))
    out.print(shown)
    shown = Table(title="boosts: share of the loss saved", title_justify="left")
    shown.add_column("learner")
    for factor, rows in knowledge.boosts.arms:
        shown.add_column("none" if factor == 1.0 else f"x{factor:g} for {rows:g}", justify="right")
    for name, gains in knowledge.boosts.gains.items():
        shown.add_row(name, *(f"{gain:+.3f}" for gain in gains))
    out.print(shown)
    for task, trust in knowledge.trust.items():
        shares = [
            (arrays["shares"][0], name) for name, arrays in trust.learners.items() if "shares" in arrays
        ]
        words = ", ".join(f"{name} {share:.2f}" for share, name in sorted(shares, reverse=True))
        out.print(f"trust, {task}, {trust.streams:g} streams: {words or 'none'}", highlight=False)
    if knowledge.crises is not None:
        every = knowledge.crises.blend
        heard = {name: every[name] for name in ("blend", "newcomers") if every.get(name)}
        heard |= {name: of["w"] for name, of in knowledge.crises.learners.items() if of.get("w")}
        average = {name: sum(weights) / len(weights) for name, weights in heard.items()}
        ordered = sorted(((weight, name) for name, weight in average.items()), reverse=True)
        words = ", ".join(f"{name} {weight:+.2f}" for weight, name in ordered)
        out.print(f"weights in crises, {knowledge.crises.streams:g} streams: {words}", highlight=False)
