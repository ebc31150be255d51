"""TOML to typed configuration; every fault at once, each with place, rule, value and what to do.

A section of a component (`[source]`, `[sink]`, `[controller]`, `[drift]`, `[pool.learners.NAME]`) holds
`kind` and the options of that component's own `Config`, which lives in the component's file. Everything
else is declared here.
"""

import ast
import copy
import inspect
import os
import pathlib
import textwrap
import tomllib
from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from adaptd import registry
from adaptd.contracts import Fields
from adaptd.errors import ConfigError, UsageError

Positive = Annotated[int, msgspec.Meta(ge=1)]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A section of the configuration: unknown keys are faults."""


class SchemaConfig(Section, frozen=True):
    """[schema]: types of columns and of the task, where they should not be found by themselves."""

    task: Literal["auto", "classification", "regression"] = "auto"
    """What is predicted; `auto` decides from the first labels."""
    types: dict[str, Literal["number", "category", "boolean", "ignore"]] = {}
    """Types of columns by name; the others are found from their first value."""
    categories_max: Annotated[int, msgspec.Meta(ge=4, le=65536)] = 1024
    """Categories of one column that get a code of their own; the rest are hashed."""
    features_max: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 1024
    """Features; columns that appear beyond are left out and counted."""
    classes_max: Annotated[int, msgspec.Meta(ge=2, le=10000)] = 1000
    """Classes of the target; a label beyond is rejected."""


class PoolConfig(Section, frozen=True):
    """[pool]: the learners."""

    learners: dict[str, Any] = {}
    """A table a learner: `kind`, `frozen` and its kind's options. Any entry replaces the default pool."""
    lagged_labels: bool = True
    """Whether the default pool holds learners that look at the last labels."""
    threads: Annotated[int, msgspec.Meta(ge=0, le=256)] = 0
    """Threads for the learners of a block; 0: one a processor."""
    learner_bytes_max: Positive = 256_000_000
    """A learner whose state outgrows this is set aside."""


class LabelsConfig(Section, frozen=True):
    """[labels]: rows that wait for their label."""

    rows_max: Positive = 100_000
    """Rows that may wait; the oldest expires."""
    bytes_max: Positive = 268_435_456
    """Bytes that waiting rows and their predictions may take."""
    age_seconds_max: Annotated[float, msgspec.Meta(gt=0)] = 604_800.0
    """Event-time age at which a waiting row expires; rows without a time do not age."""
    early_rows_max: Annotated[int, msgspec.Meta(ge=0)] = 10_000
    """Labels that may wait for their row; the oldest goes to the dead letters."""


class CheckpointConfig(Section, frozen=True):
    """[checkpoint]: state on disk."""

    directory: str = ""
    """Where checkpoints are kept; empty: none are saved."""
    interval_seconds: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    """Time between two checkpoints."""
    keep: Positive = 3
    """Checkpoints that are kept; with `url`, of each lane."""
    url: str = ""
    """With Kafka: a store that all replicas reach, as fsspec names it (`/mnt/shared/adaptd`, `s3://bucket/adaptd`)."""
    options: dict[str, Any] = {}
    """What the file system of `url` takes (an endpoint, a profile); see fsspec."""
    seconds_max: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    """Time limit of one call to the store of `url`."""


class JournalConfig(Section, frozen=True):
    """[journal]: every decision and why, in SQLite."""

    path: str = ""
    """The SQLite file; empty: `journal.sqlite` in the checkpoint directory, or in memory without one."""
    rows_max: Positive = 100_000
    """Entries kept; the oldest are deleted."""
    weights_rows: Positive = 5_000
    """Labelled rows between two entries with all weights, rates and losses."""


class DeadLettersConfig(Section, frozen=True):
    """[dead_letters]: records that could not be used."""

    path: str = ""
    """A JSONL file; empty: `dead_letters.jsonl` in the checkpoint directory, or counted only without one."""
    bytes_max: Positive = 100_000_000
    """Size at which the file is rotated."""
    files_keep: Positive = 3
    """Rotated files that are kept."""


class HttpConfig(Section, frozen=True):
    """[http]: metrics, health, the API and the live page."""

    enabled: bool = False
    """Whether to serve."""
    listen: str = "127.0.0.1:9464"
    """Address and port; port 0 picks a free one."""
    token_file: str = ""
    """A file with a secret that every call of the API must bring as bearer token. Without one, calls that
    write are refused on addresses that are not loopback."""
    tls_certificate: str = ""
    """A PEM file with the certificate chain; with it the server speaks TLS only."""
    tls_key: str = ""
    """A PEM file with the certificate's private key; empty: it is in the certificate's file."""
    body_bytes_max: Annotated[int, msgspec.Meta(ge=1024, le=1 << 30)] = 1_048_576
    """Bytes of a request's body."""
    requests_per_second: Annotated[float, msgspec.Meta(ge=1.0, le=1e6)] = 2000.0
    """Calls of the API that are served, on the average of a second."""
    concurrency_max: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100
    """Calls of the API at the same time."""


class LogConfig(Section, frozen=True):
    """[log]: events on stderr."""

    level: Literal["info", "warning", "error"] = "info"
    """The lowest level that is shown."""


class ControlConfig(Section, frozen=True):
    """[control]: what holds for every controller."""

    rows: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 128
    """Labelled rows between two control points, where slow decisions take effect."""
    pin: str = ""
    """A learner whose predictions are the output, whatever the controller says."""


class OutputConfig(Section, frozen=True):
    """[output]: what a prediction tells beside itself."""

    explain: bool = False
    """Whether JSON lines and the API's replies say what each learner contributed to the prediction."""
    coverage: Annotated[float, msgspec.Meta(ge=0.0, le=0.999)] = 0.0
    """How often the truth shall lie in the interval, or the set of classes, that JSON lines and the API's
    replies then have; for example 0.9. 0: neither."""
    serve: Literal["blend", "student", "auto"] = "blend"
    """Who answers: the pool, or the student alone; the pool goes on learning and teaching it either way.
    auto: the pool, and in an overload the student, while the dearest learners rest."""
    latency_budget_seconds: Annotated[float, msgspec.Meta(gt=0.0, le=3600.0)] = 0.2
    """With `serve = "auto"`: longer than this the rows of a read must not take to be answered."""


class StudentConfig(Section, frozen=True):
    """[student]: a small learner beside the pool that learns from the labels and from the blend."""

    kind: Literal["none", "linear", "mlp"] = "none"
    """What kind of learner it is."""
    options: dict[str, Any] = {}
    """Options of its kind."""
    label_share: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.5
    """Of a labelled row, how much is learned from the label; the rest from what the blend said."""
    unlabelled_weight: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.5
    """How much a row counts whose label has not come: it is learned from the blend alone."""
    confidence_min: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.0
    """Below this probability of the predicted class the blend does not teach such a row."""


class MetaConfig(Section, frozen=True):
    """[meta]: what was learned of learning on other streams."""

    path: str = ""
    """A file that `adaptd meta export` wrote: lanes that start fresh begin with it. Empty: none."""


class Config(Section, frozen=True):
    """The whole configuration."""

    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**62)] = 0
    """Where all randomness comes from."""
    source: dict[str, Any] = msgspec.field(default_factory=lambda: {"kind": "stdin"})
    """[source]: `kind` and its options."""
    sink: dict[str, Any] = msgspec.field(default_factory=lambda: {"kind": "stdout"})
    """[sink]: `kind`, `format` (json or csv) and its options."""
    output: OutputConfig = OutputConfig()
    student: StudentConfig = StudentConfig()
    fields: Fields = Fields()
    """[fields]: which names of a record mean what."""
    schema: SchemaConfig = SchemaConfig()
    pool: PoolConfig = PoolConfig()
    controller: dict[str, Any] = msgspec.field(default_factory=lambda: {"kind": "stack"})
    """[controller]: `kind` and its options."""
    drift: dict[str, Any] = msgspec.field(default_factory=lambda: {"kind": "e_sr"})
    """[drift]: the detector on the blend's losses, `kind` and its options."""
    rates: dict[str, Any] = {}
    """[rates]: learning rates after a drift."""
    memory: dict[str, Any] = {}
    """[memory]: concepts that may come back."""
    challengers: dict[str, Any] = {}
    """[challengers]: learners that start in the background when the world may have changed."""
    meta: MetaConfig = MetaConfig()
    control: ControlConfig = ControlConfig()
    labels: LabelsConfig = LabelsConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    journal: JournalConfig = JournalConfig()
    dead_letters: DeadLettersConfig = DeadLettersConfig()
    http: HttpConfig = HttpConfig()
    log: LogConfig = LogConfig()


# Keys of [drift] that `drift.py` reads: whether to look at all, and also at rows without a label.
DRIFT_KEYS: dict[str, type] = {"enabled": bool, "unlabelled": bool}
# One component a section, beside its family and the keys that the engine itself reads there.
COMPONENTS: dict[str, tuple[str, dict[str, type]]] = {
    "source": ("sources", {}),
    "sink": ("sinks", {"format": Literal["json", "csv"]}),  # type: ignore[dict-item]
    "controller": ("controllers", {}),
    "drift": ("detectors", DRIFT_KEYS),
}


# What an output line has of its own, and what it has when it is asked for.
OUTPUT_KEYS = ("id", "prediction", "proba", "learner", "row")
COVERAGE_KEYS = ("interval", "classes")
EXPLAIN_KEYS = ("contributions", "bias", "against")
# Keys of [pool.learners.NAME] that the pool reads: predicts and learns no more; sees the last labels.
LEARNER_KEYS: dict[str, type] = {"frozen": bool, "lagged": bool}


def load(path: str | None, assignments: list[str] | tuple[str, ...] = ()) -> Config:
    """The configuration in the file at `path` (None: the defaults) with `section.key=value` on top.

    Raises ConfigError with every fault, UsageError for an assignment that is none.
    """
    tree: dict[str, Any] = {}
    name = path or "command line"
    if path is not None:
        try:
            tree = tomllib.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(
                [f"{path} must be a readable file; {error.strerror}. Name an existing file."]
            ) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError([f"{path} must be TOML; {error}. Correct that line."]) from None
    for assignment in assignments:
        assign(tree, assignment)
    return read(tree, name)


def assign(tree: dict[str, Any], assignment: str) -> None:
    """Put `section.key=value` into `tree`; the value as TOML, else as text."""
    path, equals, text = assignment.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise UsageError(
            f"--set must be section.key=value; got {assignment!r}. For example --set control.rows=256."
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise UsageError(
                f"--set must name a section before the last dot; {key!r} in {assignment!r} is a value."
            )
    tree[keys[-1]] = value


def read(tree: dict[str, Any], name: str) -> Config:
    """Check `tree` and make it a Config; `name` stands for the file in the faults."""
    faults: list[str] = []
    tree = copy.deepcopy(tree)
    for field in msgspec.structs.fields(Config):
        if field.name in COMPONENTS and isinstance(tree.get(field.name), dict):
            tree[field.name] = default_of(field) | tree[field.name]
    values = checked(Config, tree, f"{name}: ", faults)
    config = Config(**values)
    for section, (family, extra) in COMPONENTS.items():
        component(family, getattr(config, section), f"{name}: {section}.", faults, extra)
    for learner, options in config.pool.learners.items():
        place = f"{name}: pool.learners.{learner}."
        if not isinstance(options, dict):
            faults.append(f"{place[:-1]} must be a table; got {options!r}. Write [pool.learners.{learner}].")
        else:
            component("learners", options, place, faults, LEARNER_KEYS)
    if config.source.get("kind") == "none" and not config.http.enabled:
        faults.append(
            f"{name}: http.enabled must be true when source.kind is 'none'; got False. "
            "Set http.enabled = true, since nothing else brings rows, or choose another source.kind."
        )
    faults += [f"{name}: {fault}" for fault in between_keys(config)]
    from adaptd import challengers, memory, rates

    checked(rates.Config, config.rates, f"{name}: rates.", faults)
    checked(memory.Config, config.memory, f"{name}: memory.", faults)
    checked(challengers.Config, config.challengers, f"{name}: challengers.", faults)
    if faults:
        raise ConfigError(faults)
    return config


def between_keys(config: Config) -> list[str]:
    """Faults of keys that are good by themselves."""
    faults = []
    pin, learners = config.control.pin, config.pool.learners
    if pin and not learners:
        from adaptd.pool import DEFAULT_LEARNERS

        learners = DEFAULT_LEARNERS
    if pin and pin not in learners:
        rule = registry.must_be_one_of(pin, list(learners))
        faults.append(f"control.pin {rule} Name a learner of [pool.learners].")
    if config.checkpoint.url and config.source.get("kind") != "kafka":
        faults.append(
            "checkpoint.url must be empty unless source.kind is 'kafka', whose committed offsets name the "
            "checkpoint; it is set. Use checkpoint.directory."
        )
    fields = msgspec.structs.asdict(config.fields)
    if not config.fields.target:
        faults.append("fields.target must be a name; got ''. Say which field is predicted.")
    roles: dict[str, str] = {}
    for role in ("target", "id", "time", "weight", "features"):
        other = roles.setdefault(fields[role], role)
        if fields[role] and other != role:
            faults.append(
                f"fields.{role} must be another name than fields.{other}; got {fields[role]!r} for both. "
                "Rename one, or set the one that you do not have to ''."
            )
    own_keys = (*OUTPUT_KEYS, *(EXPLAIN_KEYS if config.output.explain else ()))
    own_keys += COVERAGE_KEYS if config.output.coverage else ()
    for name in config.fields.echo:
        if name in own_keys:
            faults.append(
                f"fields.echo must be without {', '.join(own_keys)}; got {name!r}. "
                "Rename the field: the output has one of this name."
            )
    if config.output.explain and config.sink.get("format") == "csv":
        faults.append(
            "output.explain must be false when sink.format is 'csv'; got True. A CSV line has the same "
            "columns whatever is asked for; choose json."
        )
    student = config.student
    serve = config.output.serve
    if serve != "blend" and student.kind == "none":
        faults.append(
            f"student.kind must be one of linear, mlp when output.serve is {serve!r}; got 'none'. "
            "Choose one, or let the blend serve."
        )
    if serve != "blend" and config.output.explain:
        faults.append(
            f"output.explain must be false when output.serve is {serve!r}; got True. "
            "What learners contribute is told of the blend; choose one of the two."
        )
    if serve == "auto" and config.source.get("kind") == "kafka":
        faults.append(
            "output.serve must be blend or student when source.kind is 'kafka'; got 'auto'. Only the topics "
            "say what comes after what, and a switch has no place there; add replicas for more load."
        )
    if student.kind != "none":
        component("learners", {"kind": student.kind, **student.options}, "student.options.", faults, {})
    if "student" in config.pool.learners and student.kind != "none":
        faults.append(
            "pool.learners.student must have another name; got 'student'. The student of all is called so."
        )
    if "blend" in config.pool.learners:
        faults.append(
            "pool.learners.blend must have another name; got 'blend'. The blend of all is called so."
        )
    if config.http.enabled:
        from adaptd.http import parse_listen

        try:
            parse_listen(config.http.listen)
        except ConfigError as error:
            faults += error.faults
    return faults + kafka_faults(config)


def kafka_faults(config: Config) -> list[str]:
    """Which sources and sinks go together, and what a promise needs."""
    source, sink = config.source.get("kind"), config.sink.get("kind")
    faults = []
    exactly_once = config.sink.get("delivery", "exactly_once") == "exactly_once"
    if source == "kafka":
        if sink != "kafka":
            faults.append(
                f"sink.kind must be 'kafka' when source.kind is 'kafka'; got {sink!r}. Predictions and "
                "positions are committed together: let another program copy the topic of predictions."
            )
        if not (config.checkpoint.directory or config.checkpoint.url):
            faults.append(
                "checkpoint.directory or checkpoint.url must be given when source.kind is 'kafka'; got "
                "neither. Say where checkpoints are kept; replicas need a url that they share."
            )
        theirs = config.source.get("servers", "127.0.0.1:9092")
        if sink == "kafka" and exactly_once and config.sink.get("servers", "") not in ("", theirs):
            faults.append(
                "sink.servers must be those of the source with sink.delivery 'exactly_once'; got "
                f"{shown(config.sink['servers'])}. A transaction belongs to one cluster: leave the key out, "
                "or choose 'at_least_once'."
            )
    elif sink == "kafka":
        if exactly_once:
            faults.append(
                f"sink.delivery must be 'at_least_once' when source.kind is {source!r}; got 'exactly_once'. "
                "Only a Kafka source has its positions in the same transaction."
            )
        if not config.sink.get("servers"):
            faults.append(
                f"sink.servers must be given when source.kind is {source!r}; got ''. Name the brokers."
            )
    if "kafka" in (source, sink) and config.sink.get("format", "json") != "json":
        faults.append(
            "sink.format must be json with Kafka; got 'csv'. A record has no header: leave the key out."
        )
    return faults


def component(
    family: str, options: dict[str, Any], place: str, faults: list[str], extra: dict[str, type]
) -> tuple[Any, Any]:
    """The module and the Config of one component; (None, None) when there are faults."""
    if "kind" not in options:
        faults.append(f"{place}kind must be given. Choose one of {', '.join(registry.kinds(family))}.")
        return None, None
    try:
        module = registry.load(family, str(options["kind"]))
    except KeyError as error:
        faults.append(f"{place}kind {error.args[0]} `adaptd learners --family {family}` lists what there is.")
        return None, None
    own = {key: value for key, value in options.items() if key != "kind" and key not in extra}
    before = len(faults)
    for key, kind in extra.items():
        if key in options:
            converted(kind, options[key], place + key, None, faults)
    values = checked(module.Config, own, place, faults)
    return (module, module.Config(**values)) if len(faults) == before else (None, None)


def built(family: str, options: dict[str, Any], extra: Iterable[str] = ()) -> tuple[Any, Any]:
    """The module and Config of a component section that `read` has found good."""
    faults: list[str] = []
    module, config = component(family, options, "", faults, dict.fromkeys(extra, object))
    if faults:
        raise ConfigError(faults)
    return module, config


def checked(struct: type, tree: Any, place: str, faults: list[str]) -> dict[str, Any]:
    """The values of `tree` that fit the fields of `struct`, by name; a fault for each that does not."""
    if not isinstance(tree, dict):
        faults.append(
            f"{place.rstrip('. :')} must be a table; got {shown(tree)}. Write its keys below a [section]."
        )
        return {}
    types = get_type_hints(struct, include_extras=True)
    fields = {field.name: field for field in msgspec.structs.fields(struct)}
    values: dict[str, Any] = {}
    for key, value in tree.items():
        if key not in fields:
            known = registry.must_be_one_of(key, sorted(fields)) if fields else "is not known here."
            faults.append(f"{place}{key} {known} Remove or correct the key.")
            continue
        kind = types[key]
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            nested = checked(kind, value, f"{place}{key}.", faults)
            values[key] = kind(**nested)
        elif (
            result := converted(kind, value, place + key, default_of(fields[key]), faults)
        ) is not msgspec.UNSET:
            values[key] = result
    return values


def converted(kind: Any, value: Any, place: str, default: Any, faults: list[str]) -> Any:
    """`value` as `kind`, or UNSET and a fault. A NaN is out of every range."""
    try:
        if isinstance(value, float) and value != value:
            raise msgspec.ValidationError("Expected a number")
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        advice = (
            f"Correct it, or leave the key out for {default!r}." if default is not None else "Correct it."
        )
        faults.append(f"{place} must be {rule(kind, str(error))}; got {shown(value)}. {advice}")
        return msgspec.UNSET


def rule(kind: Any, message: str) -> str:
    """What a value must be, in words."""
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if get_origin(kind) is dict:
        _, inner = get_args(kind)
        return "a table" if inner is Any else f"a table of {type_words(inner)}"
    expected = message.partition("Expected ")[2] or message
    return expected.partition(", got")[0].partition(" - at")[0].replace("`", "")


def shown(value: Any) -> str:
    """A value in an error message, cut at 200 characters."""
    text = repr(value)
    return text if len(text) <= 200 else text[:197] + "..."


def documentation(struct: type) -> list[tuple[str, str, Any, str]]:
    """(name, type, default, help) for each field of a Config, from its source."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(struct)))
    helps: dict[str, str] = {}
    body = tree.body[0].body  # type: ignore[attr-defined]
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            text = ""
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                text = inspect.cleandoc(str(after.value.value)).replace("\n", " ")
            helps[node.target.id] = text
    types = get_type_hints(struct, include_extras=True)
    return [
        (field.name, type_words(types[field.name]), default_of(field), helps.get(field.name, ""))
        for field in msgspec.structs.fields(struct)
    ]


def default_of(field: Any) -> Any:
    """A field's default value."""
    return field.default_factory() if field.default is msgspec.NODEFAULT else field.default


def type_words(kind: Any) -> str:
    """A field's type in a few words: `number at least 0`, `one of a, b`."""
    words = ""
    while get_origin(kind) is Annotated:
        kind, *metas = get_args(kind)
        for meta in metas:
            for attribute, word in (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below")):
                limit = getattr(meta, attribute, None)
                if limit is not None:
                    words += f" {word} {limit}"
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    plain = {int: "integer", float: "number", str: "text", bool: "true or false"}.get(kind)
    return (plain or str(kind).replace("typing.", "")) + words


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))
