"""`adaptd status`: what a running daemon does right now, in a terminal, from its HTTP API."""

import http.client
import json
import math
import pathlib
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from adaptd import report
from adaptd.errors import AdaptdError, UsageError

DEFAULT_URL = "http://127.0.0.1:9464"
TIMEOUT_SECONDS = 5.0
WATCH_SECONDS = 1.0
JOURNAL_ENTRIES = 8
TREND_SECONDS = 600
TREND_POINTS = 40
BARS = "▁▂▃▄▅▆▇█"


def run(
    url: str, watch: bool = False, form: str = "table", token_file: str = "", console: Console | None = None
) -> None:
    """Print it once, or until the person stops it. Raises UsageError, AdaptdError when nobody answers."""
    console = console or report.console()
    token = ""
    if token_file:
        try:
            token = pathlib.Path(token_file).read_text().strip()
        except (OSError, ValueError) as error:
            raise UsageError(f"--token-file must be a readable text file; {token_file}: {error}.") from None
    if form == "json":
        print(json.dumps(gathered(url, token), allow_nan=False))
        return
    if not watch:
        console.print(shown(gathered(url, token)))
        return
    # The first answer decides whether there is a daemon; later a restart is waited for.
    with Live(
        shown(gathered(url, token)), console=console, auto_refresh=False, screen=console.is_terminal
    ) as live:
        while True:
            time.sleep(WATCH_SECONDS)
            try:
                live.update(shown(gathered(url, token)), refresh=True)
            except AdaptdError as error:
                live.update(Panel(str(error), border_style="red"), refresh=True)


def gathered(url: str, token: str = "") -> dict[str, Any]:
    """Status, learners, the last journal entries and a short history, with the API's own keys."""
    since = time.time() - TREND_SECONDS
    return {
        "status": fetched(url, "status", token),
        "learners": fetched(url, "learners", token)["learners"],
        "journal": fetched(url, f"journal?last={JOURNAL_ENTRIES}", token)["entries"],
        "history": fetched(url, f"history?since={since:.0f}&points={TREND_POINTS}", token)["points"],
    }


def fetched(url: str, path: str, token: str = "") -> Any:
    """The answer to GET /api/v1/`path` at `url`."""
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise UsageError(
            f"--url must start with http:// or https://; got {url!r:.200}. For example {DEFAULT_URL}."
        )
    whole = f"{url.rstrip('/')}/api/v1/{path}"
    try:
        request = urllib.request.Request(whole, headers={"Authorization": f"Bearer {token}"} if token else {})
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        if error.code == 401:
            raise AdaptdError(
                f"{url} wants its token. Name the file that holds it with --token-file."
            ) from None
        raise AdaptdError(f"{whole} must answer 200; got {error.code}. Is this adaptd's address?") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise AdaptdError(
            f"{url} does not answer: {reason}. Is adaptd running with http.enabled = true? Name its "
            "address with --url."
        ) from None


def shown(now: dict[str, Any]) -> RenderableType:
    """What was `gathered`, for a person."""
    status = now["status"]
    return Group(
        headline(status),
        beside(figures(status, now["history"]), answers(status)),
        learners(now["learners"]),
        journal(now["journal"]),
    )


def headline(status: dict[str, Any]) -> Text:
    state, style = "learning", "bold green"
    if status.get("stopped_by"):
        state, style = f"stopping: {status['stopped_by']}", "bold yellow"
    elif not status.get("ready"):
        state, style = "starting", "bold yellow"
    elif not status.get("rows_per_second"):
        state = "waiting for rows"
    about = f"{status.get('task') or 'no task yet'}, up {duration(status.get('uptime_seconds'))}"
    return Text.assemble(("adaptd ", "bold"), f"{status.get('version', '')}  ", (state, style), f"  {about}")


def figures(status: dict[str, Any], history: list[dict[str, Any]]) -> Table:
    """Left: how good and how fast, each with its trend."""
    table = pairs()
    scores = dict(status.get("scores") or {})
    name, score = next(iter(scores.items()), ("score", None))
    table.add_row(
        name.replace("_", " "), Text(number(score), "bold"), trend([point.get("blend") for point in history])
    )
    for other, value in scores.items():
        if other != name:
            table.add_row(other.replace("_", " "), number(value), "")
    for other, value in (status.get("student") or {}).items():
        if other == name:
            table.add_row("student", number(value), f"beside the blend's {number(score)}")
    coverage = status.get("coverage") or {}
    if coverage:
        size = "set size" if "set_size" in coverage else "interval width"
        given = coverage.get(f"recent_{size.replace(' ', '_')}")
        words = f"of {number(coverage.get('asked'))}, {size} {number(given)}"
        table.add_row("coverage", number(coverage.get("recent")), words)
    table.add_row(
        "rows a second",
        Text(number(status.get("rows_per_second")), "bold"),
        trend([point.get("rows_per_second") for point in history]),
    )
    table.add_row("predicted", number(status.get("predictions")), f"{number(status.get('labels'))} learned")
    table.add_row(
        "champion", Text(status.get("champion") or "-"), f"{number(status.get('switches'))} switches"
    )
    expected = (status.get("expected_accuracy") or {}).get("predicted")
    if expected is not None:
        table.add_row("expected", number(expected), "accuracy, by its confidence")
    table.add_row("drifts", number(status.get("drifts")), f"{number(status.get('warnings'))} warnings")
    table.add_row("concepts", number(status.get("concepts")), f"{number(status.get('recalls'))} recalls")
    return table


def answers(status: dict[str, Any]) -> Table:
    """Right: what a person on call looks at."""
    table = pairs()
    source, checkpoint = status.get("source") or {}, status.get("checkpoint") or {}
    buffer, rejects = status.get("label_buffer") or {}, status.get("rejects") or {}
    lag = source.get("lag_bytes")
    waiting = "" if lag is None or lag < 0 else f"{size(lag)} waiting"
    table.add_row("source", str(source.get("kind", "-")), waiting)
    table.add_row(
        "label delay", number(status.get("label_delay_rows")), f"{number(buffer.get('rows'))} rows wait"
    )
    age = checkpoint.get("age_seconds")
    failures = checkpoint.get("failures") or 0
    table.add_row(
        "checkpoint",
        "none" if age is None else f"{duration(age)} ago",
        Text(f"{failures} failed", "red") if failures else size(checkpoint.get("bytes")),
    )
    reasons = sorted(((n, reason) for reason, n in rejects.items() if n), reverse=True)
    table.add_row(
        "rejects", number(sum(rejects.values())), ", ".join(f"{n} {reason}" for n, reason in reasons[:2])
    )
    return table


def beside(left: Table, right: Table) -> Table:
    table = Table.grid(expand=True, padding=(0, 3))
    table.add_column()
    table.add_column(ratio=1)
    table.add_row(left, right)
    return table


def pairs() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    table.add_column(style="dim")
    return table


def learners(found: list[dict[str, Any]]) -> Table:
    """All learners, the heaviest first."""
    scores = next((list(learner["scores"]) for learner in found if learner.get("scores")), ["score"])
    table = Table(box=box.SIMPLE_HEAD, expand=True, padding=(0, 1))
    table.add_column("learner", no_wrap=True)
    table.add_column("role", no_wrap=True)
    for column in ("weight", "", *(score.replace("_", " ") for score in scores), "rate", "state"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for learner in sorted(found, key=lambda one: -(one.get("weight") or 0)):
        role, style = "", ""
        if learner.get("set_aside"):
            role, style = f"set aside: {learner['set_aside']}", "red"
        elif learner.get("is_champion"):
            role, style = "champion", "green"
        elif learner.get("about"):
            role, style = learner["about"], "cyan"
        elif learner.get("frozen"):
            role, style = "frozen", "yellow"
        weight = learner.get("weight")
        values = learner.get("scores") or {}
        table.add_row(
            Text(learner["name"]),
            role,
            number(weight),
            Text("█" * round(12 * (weight or 0))),
            *(number(values.get(score)) for score in scores),
            number(learner.get("learning_rate")),
            size(learner.get("state_bytes")),
            style=style,
        )
    return table


def journal(entries: list[dict[str, Any]]) -> Table:
    """The last decisions, the newest first."""
    table = Table(box=box.SIMPLE_HEAD, expand=True, padding=(0, 1))
    table.add_column("time", min_width=8)
    table.add_column("row", min_width=9, justify="right")
    table.add_column("decision", min_width=17)
    table.add_column("why", ratio=1, no_wrap=True, overflow="ellipsis")
    for entry in reversed(entries):
        details = ", ".join(
            f"{key.replace('_', ' ')} {detail(value)}"
            for key, value in entry["payload"].items()
            if value not in (None, "", [])
        )
        style = "red" if entry["kind"] in ("drift_detected", "learner_set_aside") else ""
        table.add_row(
            time.strftime("%H:%M:%S", time.localtime(entry["wall"])),
            f"{entry['row']:,}",
            Text(entry["kind"].replace("_", " "), style),
            Text(details),
        )
    return table


def detail(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key} {detail(part)}" for key, part in value.items())
    if isinstance(value, list):
        return ", ".join(detail(part) for part in value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return number(value) if isinstance(value, int | float) else str(value)


def trend(values: list[float | None]) -> str:
    """A line of bars, the newest right.

    >>> trend([0.0, None, 1.0, 2.0])
    '▁ ▅█'
    """
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, spread = min(known), (max(known) - min(known)) or 1.0
    top = len(BARS) - 1
    return "".join(
        " " if value is None else BARS[round(top * (value - low) / spread)]
        for value in values[-TREND_POINTS:]
    )


def number(value: float | None) -> str:
    """
    >>> number(0.93712), number(1234567), number(0.000123456), number(None)
    ('0.9371', '1,234,567', '0.000123', '-')
    """
    if value is None or not math.isfinite(value):
        return "-"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4f}" if value == 0 or abs(value) >= 0.01 else f"{value:.3g}"


def size(value: float | None) -> str:
    """
    >>> size(512), size(1536), size(None)
    ('512 B', '1.5 KiB', '-')
    """
    if value is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.{0 if unit == 'B' else 1}f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def duration(seconds: float | None) -> str:
    """
    >>> duration(59), duration(3600), duration(200_000)
    ('59 s', '60 min', '55 h')
    """
    if seconds is None:
        return "-"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{int(seconds // 3600)} h"
