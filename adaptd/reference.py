"""Writes docs/config.md and docs/metrics.md from the code: `python -m adaptd.reference`.

`--check` writes nothing and exits 1 when a page is not what the code says.
"""

import inspect
import pathlib
import re
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, get_type_hints

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from adaptd import challengers, config, events, memory, metrics, rates, registry, schema, scores
from adaptd.clock import FakeClock
from adaptd.contracts import REJECT_REASONS, Layout, Task

# Sections that are typed where they are used.
OWN_SECTIONS = {"rates": rates.Config, "memory": memory.Config, "challengers": challengers.Config}
ROOT = pathlib.Path(__file__).parent.parent
MADE = "Made from the code by `python -m adaptd.reference`; change it there.\n"
TASKS: tuple[Task, ...] = ("classification", "regression")
# Sections that are tables of options of one component, and the family that has the components.
FAMILIES = {
    "source": "sources",
    "sink": "sinks",
    "pool.learners.NAME": "learners",
    "controller": "controllers",
    "drift": "detectors",
}


def pages() -> dict[str, str]:
    """The text of each page by its name."""
    return {"config.md": config_page(), "metrics.md": metrics_page()}


# The configuration.


def config_page() -> str:
    """Every key, its type, its default and what it does."""
    parts = [
        "# Configuration\n",
        MADE,
        "A TOML file, `adaptd run --config config.toml`; on top of it `--set section.key=value` on the "
        "command line. Every key is optional. `adaptd check --config config.toml` finds all faults at once; "
        "an unknown key is one. [config.toml](../config.toml) is a full example.\n",
        table(("key", "type", "default", "what it does"), top_rows()),
    ]
    for field in msgspec.structs.fields(config.Config):
        struct = section_of(field.name)
        if struct is not None:
            parts += [
                f"## [{field.name}]\n",
                *sentence_of(struct),
                options(struct, config_comments(field.name)),
            ]
    for section, family in FAMILIES.items():
        parts += [f"## [{section}]\n", family_words(section, family)]
        for kind in registry.kinds(family):
            module = registry.load(family, kind)
            parts += [
                f'### kind = "{kind}"\n',
                about(module),
                options(module.Config),
            ]
    return "\n".join(parts)


def top_rows() -> Iterator[tuple[str, ...]]:
    """Keys that stand above every section."""
    for name, words, default, text in config.documentation(config.Config):
        if section_of(name) is None and name not in FAMILIES:
            yield code(name), plain(words), shown(default), text


def section_of(name: str) -> Any:
    """The struct of a section with fixed keys; None for a plain key or a component's table."""
    if name in OWN_SECTIONS:
        return OWN_SECTIONS[name]
    kind = get_type_hints(config.Config)[name]
    return kind if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else None


def sentence_of(struct: type) -> list[str]:
    """What a section's class says of it, without the section's name."""
    # A struct without a docstring would give that of its library's base class.
    own = inspect.cleandoc(struct.__dict__.get("__doc__") or "")
    text = " ".join((own or first_sentence(sys.modules[struct.__module__])).split())
    text = re.sub(r"^\[\w+\]: ", "", text)
    return [text[0].upper() + text[1:] + "\n"] if text else []


def family_words(section: str, family: str) -> str:
    if family == "learners":
        return (
            "A table a learner, under a name of your choice. Beside its kind's options: `kind`, and `frozen` "
            "(true: it predicts and learns no more).\n"
        )
    default = default_table(section)["kind"]
    extra = {
        "sink": " Beside its options: `format`, json or csv.",
        "drift": " Beside its options: `enabled` (false: nothing is looked for, no drift changes anything) "
        "and `unlabelled` (false: rows without a label are not watched).",
    }.get(section, "")
    return f'`kind` and its options; without the section `kind = "{default}"`.{extra}\n'


def default_table(section: str) -> dict[str, Any]:
    default: dict[str, Any] = getattr(config.Config(), section)
    return default


def options(struct: type, comments: dict[str, str] | None = None) -> str:
    """A table of a struct's fields; where the code says nothing of one, what `comments` says."""
    found = config.documentation(struct)
    if not found:
        return "No options.\n"
    rows = (
        (code(name), plain(words), shown(default), text or (comments or {}).get(name, ""))
        for name, words, default, text in found
    )
    return table(("key", "type", "default", "what it does"), rows)


def config_comments(section: str) -> dict[str, str]:
    """The comment beside each key of a section of config.toml."""
    text = (ROOT / "config.toml").read_text()
    body = re.split(rf"^\[{section}\].*\n", text, maxsplit=1, flags=re.M)[-1]
    body = re.split(r"^\[", body, maxsplit=1, flags=re.M)[0]
    return dict(re.findall(r"^(\w+) = .*?#\s*(.+)$", body, flags=re.M))


def first_sentence(module: ModuleType) -> str:
    return " ".join((inspect.getdoc(module) or "").split("\n\n")[0].split())


def about(module: ModuleType) -> str:
    """A component's first sentence, and what it is for."""
    served = getattr(module, "TASKS", ())
    return first_sentence(module) + (f" For {' and '.join(served)}." if served else "") + "\n"


def plain(words: str) -> str:
    """Python's words for containers in a reader's."""
    words = re.sub(r"^tuple\[.*\]", "list of text", words)
    return re.sub(r"^dict\[.*\]", "table", words)


def shown(value: Any) -> str:
    """A default as TOML writes it."""
    if isinstance(value, bool):
        return code(str(value).lower())
    if isinstance(value, str):
        return code(f'"{value}"')
    if isinstance(value, list | tuple):
        return code(
            "[" + ", ".join(f'"{entry}"' if isinstance(entry, str) else str(entry) for entry in value) + "]"
        )
    return code(str(value)) if value is not None else ""


# The metrics.


def metrics_page() -> str:
    """Every metric with its type, labels and meaning; every log event."""
    families = list(collected())
    rows = ((code(exposed(f)), f.type, ", ".join(labels(f)), f.documentation) for f in families)
    event_rows = (
        (code(events.event_name(cls)), cls.level, "yes" if cls.decided else "", event_fields(cls))
        for cls in sorted(event_classes(), key=events.event_name)
    )
    values = {
        "reason of `adaptd_rejects_total`": REJECT_REASONS,
        "reason of `adaptd_values_missing_total`": tuple(schema.Schema(schema.Config()).counts),
        "reason of `adaptd_labels_expired_total`": metrics.EXPIRY_REASONS,
        "score": tuple(score for task in TASKS for score in scores.Scores(Layout(task), 1).fading(0)),
        "stage": metrics.STAGES,
        "event": events.NAMES,
    }
    return "\n".join([
        "# Metrics and log events\n",
        MADE,
        "`http.enabled = true` serves them on `/metrics`, with those of the process "
        "(`process_cpu_seconds_total`, `process_resident_memory_bytes`, ...). A scrape sees numbers of one "
        "moment, half a second old at most. Every series exists from the start. `learner` is a name from the "
        "configuration; nothing from the data becomes a label. NaN: there is no such thing, or not yet. "
        "What to do when one looks wrong: [operations.md](operations.md).\n",
        table(("metric", "type", "labels", "what it says"), rows),
        "## Values of labels\n",
        table(("label", "values"), ((label, ", ".join(map(code, known))) for label, known in values.items())),
        "## Log events\n",
        "One JSON line each on stderr, and a count in `adaptd_events_total`. Decisions go to the "
        "journal too.\n",
        table(("event", "level", "journal", "fields"), event_rows),
    ])  # fmt: skip


def event_classes() -> list[type[events.Event]]:
    classes = [
        cls for cls in vars(events).values() if isinstance(cls, type) and issubclass(cls, events.Event)
    ]
    return [cls for cls in classes if events.event_name(cls) in events.NAMES]


def collected() -> Iterator[Metric]:
    """The families of a snapshot in which every mapping has a key, so that labels are seen."""
    snapshot = metrics.Snapshot(
        rejects=dict.fromkeys(REJECT_REASONS, 0),
        values_missing={"null": 0},
        events=dict.fromkeys(events.NAMES, 0),
        learners=[metrics.LearnerFigures(name="linear", scores={"accuracy": 0.0})],
        blend_scores={"accuracy": 0.0},
        student_scores={"accuracy": 0.0},
    )
    yield from metrics.Metrics(CollectorRegistry(), FakeClock(), snapshot).collect()


def exposed(family: Metric) -> str:
    """The name on the page: counters end in `_total` there."""
    return family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")


def labels(family: Metric) -> list[str]:
    found = {name for sample in family.samples for name in sample.labels}
    return sorted(found - {"le"})


def event_fields(cls: type) -> str:
    return ", ".join(code(field.name) for field in msgspec.structs.fields(cls))


# Markdown.


def code(text: str) -> str:
    return f"`{text}`"


def table(head: tuple[str, ...], rows: Any) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def stale(folder: pathlib.Path) -> list[str]:
    """Names of pages in `folder` that are not what the code says."""
    return [
        name
        for name, text in pages().items()
        if not (folder / name).exists() or (folder / name).read_text() != text
    ]


def main(arguments: list[str]) -> int:
    folder = ROOT / "docs"
    if arguments == ["--check"]:
        for name in stale(folder):
            print(f"docs/{name} is not what the code says; run python -m adaptd.reference", file=sys.stderr)
        return 1 if stale(folder) else 0
    for name, text in pages().items():
        (folder / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
