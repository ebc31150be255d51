"""The command line: run, replay, status, check, learners, demo."""

import argparse
import contextlib
import datetime
import gc
import importlib
import json
import os
import sys
import time
from typing import Any

import adaptd
from adaptd import allocator
from adaptd.errors import AdaptdError, ConfigError, UsageError

EXAMPLES = """examples:
  cat events.jsonl | adaptd run                     predict and learn a stream, no configuration needed
  zcat data.csv.gz | adaptd run --format csv        the same from CSV with a header; the target is column y
  adaptd run --config config.toml                   the service
  adaptd replay history.csv.gz --target price       back-test: scores of every learner and of their blend
  adaptd replay data.npy --holdout 0.2              the last column is the target; the last fifth is held out
  adaptd check --config config.toml                 every fault of a configuration at once
  adaptd meta export --checkpoint DIR --output F    what was learned of learning, to begin another lane with
  adaptd learners linear                            the options of one kind and their defaults
  adaptd demo drift --rows 20000 | adaptd run       a generated stream whose rule changes

exit codes: 0 done; 1 a fault; 2 wrong use of the command line; 78 wrong configuration"""

# Objects made between two looks for cycles among them.
GC_OBJECTS = 100_000


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code."""
    hold_standard_streams()
    allocator.return_large_blocks()
    options = parser().parse_args(arguments)
    try:
        code: int = options.command(options)
        return code
    except ConfigError as error:
        for fault in error.faults:
            print(f"adaptd: {fault}", file=sys.stderr)
        return error.exit_code
    except AdaptdError as error:
        if error.exit_code:
            print(f"adaptd: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def hold_standard_streams() -> None:
    """Occupy a standard stream that came closed: the next file opened would get its number.

    Predictions would then go into a checkpoint's lock or a journal. What was closed reads as empty, and
    writing to it fails, but for messages, which nobody wants to see.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # Gives the lowest number that is free, which is this one.
            os.open(os.devnull, os.O_WRONLY if descriptor == 2 else os.O_RDONLY)
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 (open until the end)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="adaptd",
        description="An online adaptive learning daemon: a stream in, predictions out, learning as it goes.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"adaptd {adaptd.__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(command=command)
        return sub

    def add_config(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--config", metavar="FILE", help="a TOML file; without it the defaults hold")
        sub.add_argument(
            "--set", metavar="KEY=VALUE", action="append", default=[],
            help="put section.key=value on top of the configuration; may be repeated",
        )  # fmt: skip
        sub.add_argument("--target", metavar="NAME", help="the field that is predicted (default y)")

    run = add("run", run_command, "predict and learn a stream; predictions go to the sink, logs to stderr")
    add_config(run)
    run.add_argument("--format", choices=("json", "csv"), help="what stdin brings (default json)")
    run.add_argument("--restore", metavar="N", type=int, help="go on from checkpoint N, not from the newest")

    replay = add("replay", replay_command, "back-test a file: every row is predicted before it is learned")
    replay.add_argument("file", help=".csv, .jsonl (both also .gz), .npy, .parquet or .arff")
    add_config(replay)
    replay.add_argument("--max-rows", metavar="N", type=positive, help="stop after N rows")
    replay.add_argument(
        "--learner", metavar="NAME", action="append", default=[],
        help="use only this learner: a name from the configuration, or a kind; may be repeated",
    )  # fmt: skip
    replay.add_argument(
        "--holdout", metavar="SHARE", type=share, default=0.0,
        help="predict the last share of the rows without learning them, and score that",
    )  # fmt: skip
    replay.add_argument(
        "--passes", metavar="N", type=positive, default=1, help="learn the rows N times over first"
    )
    replay.add_argument("--shuffle", action="store_true", help="put the rows into a random order first")
    replay.add_argument("--output", metavar="FILE", help="write the predictions to FILE")
    replay.add_argument("--report", metavar="FILE", help="write a report with curves, one HTML file, to FILE")
    replay.add_argument("--format", choices=("table", "json"), default="table", help="how to report")

    replay.add_argument("--meta", metavar="FILE", help="write what was learned of learning to FILE")

    meta = add("meta", meta_command, "what was learned of learning: export it, look at it, put it together")
    meta.add_argument("action", choices=("export", "show", "merge"),
                      help="of a checkpoint to a file; of a file; of several files")  # fmt: skip
    meta.add_argument("files", metavar="FILE", nargs="*", help="files of meta-knowledge")
    meta.add_argument("--checkpoint", metavar="DIR", help="export: the checkpoint directory of a lane")
    meta.add_argument("--output", metavar="FILE", help="export, merge: where to; without it stdout")

    status = add("status", status_command, "what a running daemon does right now; needs its http.enabled")
    status.add_argument("--watch", action="store_true", help="go on showing it, once a second")
    status.add_argument("--url", default="http://127.0.0.1:9464", help="its address (default %(default)s)")
    status.add_argument("--token-file", metavar="FILE", default="", help="holds the token, if it wants one")
    status.add_argument("--format", choices=("table", "json"), default="table", help="how to show it")

    check = add("check", check_command, "look for every fault of a configuration at once")
    add_config(check)

    demo = add("demo", demo_command, "write a stream to try things with, as JSON lines")
    demo.add_argument("stream", nargs="?", help="its name; without one, the streams are listed")
    demo.add_argument("--rows", metavar="N", type=positive, help="stop after N rows")

    learners = add("learners", learners_command, "list kinds of learners, their options and defaults")
    learners.add_argument("kind", nargs="?", help="one kind, with all of its documentation")
    learners.add_argument(
        "--family", choices=("learners", "controllers", "detectors", "sources", "sinks"), default="learners",
        help="list another family of components",
    )  # fmt: skip
    return top


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; got {text}")
    return value


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 0 and below 1; got {text}")
    return value


def loaded(options: argparse.Namespace, more: list[str] | None = None) -> Any:
    """The configuration that the options name."""
    from adaptd import config

    assignments = [*(more or []), *options.set]
    if options.target is not None:
        assignments.append(f"fields.target={json.dumps(options.target)}")
    return config.load(options.config, assignments)


def compile_kernels(options: argparse.Namespace, names: list[str] | None = None) -> None:
    """Have all kernels that the options can come to need in the cache; says so where that takes long.

    The configuration is only looked at: what is wrong with it is told when it is loaded, which imports
    its components and would compile them one after the other.
    """
    import pathlib
    import tomllib

    from adaptd import config, pool
    from adaptd.kernels import warm

    tree: dict[str, Any] = {}
    try:
        if options.config:
            tree = tomllib.loads(pathlib.Path(options.config).read_text(encoding="utf-8"))
        for assignment in options.set:
            config.assign(tree, assignment)
    except (OSError, ValueError, AdaptdError):
        return

    def table(parent: Any, key: str) -> dict[str, Any]:
        value = parent.get(key) if isinstance(parent, dict) else None
        return value if isinstance(value, dict) else {}

    learners = table(table(tree, "pool"), "learners") or pool.DEFAULT_LEARNERS | pool.FOR_MANY_CODES
    if names:
        learners = {name: learners.get(name, {"kind": name}) for name in names}
    kinds = {f"learners.{table(learners, name).get('kind')}" for name in learners}
    kinds.add(f"learners.{table(tree, 'student').get('kind')}")
    kinds.add(f"controllers.{table(tree, 'controller').get('kind', 'stack')}")
    # It answers for a pool of one, and how many learners serve the task is not known yet.
    kinds.add("controllers.champion")
    kinds.add(f"detectors.{table(tree, 'drift').get('kind', 'e_sr')}")
    show = Compiling(sys.stderr, table(tree, "log").get("level", "info") == "info")
    warm.compile_all(warm.needed(f"adaptd.{kind}" for kind in kinds), config.processors(), show)


class Compiling:
    """Tells of compiling: a line that counts on a terminal, else two log lines."""

    def __init__(self, stream: Any, shown: bool) -> None:
        self.stream, self.shown = stream, shown
        self.started = time.monotonic()

    def __call__(self, done: int, of: int) -> None:
        seconds = round(time.monotonic() - self.started, 1)
        if self.stream.isatty():
            text = f"\radaptd: compiling for this machine, only this once: {done} of {of}, {seconds:.0f} s"
            self.write(text + "\n" * (done == of))
        elif self.shown and done in (0, of):
            stamp = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
            line: dict[str, Any] = {"ts": stamp.replace("+00:00", "Z"), "level": "info"}
            if done == 0:
                line |= {"event": "compiling_started", "modules": of}
            else:
                line |= {"event": "compiling_finished", "modules": of, "seconds": seconds}
            self.write(json.dumps(line, separators=(",", ":")) + "\n")

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.stream.write(text)
            self.stream.flush()


def run_command(options: argparse.Namespace) -> int:
    from adaptd import notify

    more = [f'source.format="{options.format}"'] if options.format else []
    # Importing the engine and the components of the configuration compiles their kernels.
    with notify.starting(notify.Notifier()):
        compile_kernels(options)

        def reread() -> Any:
            return loaded(options, more)

        config = reread()
        daemon = daemon_of(config)(config, options.config, reread=reread if options.config else None)
    # What has been loaded stays, and a row leaves no cycles behind: looking for them as often as Python does
    # by itself took an eighth of the time of a Kafka replica with one learner.
    gc.freeze()
    gc.set_threshold(GC_OBJECTS)
    daemon.run(options.restore)
    return 0


def daemon_of(config: Any) -> Any:
    """Who runs a configuration."""
    if config.source["kind"] == "kafka":
        # Who reads stdin needs no Kafka client.
        from adaptd.replica import Replica

        return Replica
    from adaptd.daemon import Daemon

    return Daemon


def replay_command(options: argparse.Namespace) -> int:
    if not os.path.exists(options.file):
        raise UsageError(f"{options.file} must be a file; there is none. Check the path.")
    compile_kernels(options, options.learner)
    from adaptd import replay, report

    config = only(loaded(options), options.learner)
    asked = replay.Options(
        options.file, options.max_rows, options.holdout, options.passes, options.shuffle, options.output,
        options.report, options.meta,
    )  # fmt: skip
    with report.progress(options.file) as advance:
        result = replay.replay(config, asked, advance)
    if options.format == "json":
        print(json.dumps(result, allow_nan=False))
    else:
        report.table(result)
    return 0


def meta_command(options: argparse.Namespace) -> int:
    from adaptd import meta, report

    if options.action == "export":
        if not options.checkpoint or options.files:
            raise UsageError("meta export needs --checkpoint DIR and no FILE. Name checkpoint.directory.")
        found = meta.of_checkpoint(options.checkpoint)
    else:
        if not options.files:
            raise UsageError(f"meta {options.action} needs a FILE. Make one with `adaptd meta export`.")
        found = meta.merged([meta.read(path) for path in options.files])
    if options.action == "show":
        report.meta(found)
    else:
        meta.write(options.output, found)
    return 0


def only(config: Any, names: list[str]) -> Any:
    """`config` with no learners but `names`, which are names of its pool or kinds."""
    import msgspec

    from adaptd import pool, registry

    if not names:
        return config
    known = config.pool.learners or pool.DEFAULT_LEARNERS
    kinds = registry.kinds("learners")
    for name in names:
        if name not in known and name not in kinds:
            rule = registry.must_be_one_of(name, sorted({*known, *kinds}))
            raise UsageError(f"--learner {rule}")
    learners = {name: known.get(name, {"kind": name}) for name in names}
    replaced = msgspec.structs.replace(config.pool, learners=learners)
    return msgspec.structs.replace(config, pool=replaced)


def status_command(options: argparse.Namespace) -> int:
    from adaptd import status

    status.run(options.url, options.watch, options.format, options.token_file)
    return 0


def check_command(options: argparse.Namespace) -> int:
    from adaptd import config, meta, pool
    from adaptd.contracts import Layout

    checked = loaded(options)
    meta.given(checked.meta.path)
    task = "regression" if checked.schema.task == "regression" else "classification"
    learners = pool.Pool(checked, Layout(task))  # type: ignore[arg-type]
    learners.close()
    module, source_options = config.built("sources", checked.source)
    source = None
    if checked.source["kind"] != "stdin":
        source = module.build(source_options, checked.fields)
        source.close()
    if checked.sink["kind"] == "kafka":
        check_kafka(checked, source)
    print(f"{options.config or 'the defaults'}: good; learners {', '.join(learners.names)}")
    return 0


def check_kafka(checked: Any, source: Any) -> None:
    """Whether the sink's brokers and topics, and a shared store of checkpoints, can be reached."""
    from adaptd import config
    from adaptd.checkpoint_objects import CheckpointObjects

    module, sink = config.built("sinks", checked.sink, ("format",))
    of_source: tuple[Any, ...] = ()
    if checked.source["kind"] == "kafka":
        of_source = (source.config.servers, source.client_options)
        told = checked.checkpoint
        if told.url:
            CheckpointObjects(told.url, told.options, told.seconds_max).check()
        print(f"source: {source.config.topic}, {source.partitions} partitions, group {source.config.group}")
    _, partitions = module.reached(sink, *of_source)
    for topic, count in partitions.items():
        print(f"sink: {topic}, {count} partitions")


def demo_command(options: argparse.Namespace) -> int:
    import itertools

    from adaptd import demo, registry

    if options.stream is None:
        for name, text in demo.STREAMS.items():
            print(f"{name:10} {text}")
        return 0
    if options.stream not in demo.STREAMS:
        raise UsageError(f"STREAM {registry.must_be_one_of(options.stream, list(demo.STREAMS))}")
    with contextlib.suppress(BrokenPipeError):
        for record in itertools.islice(demo.records(options.stream), options.rows):
            print(json.dumps(record, separators=(",", ":")))
        sys.stdout.flush()
        return 0
    # The reader, say `head`, has seen enough; Python would complain when it flushes at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def learners_command(options: argparse.Namespace) -> int:
    from adaptd import registry, report

    if options.kind is None:
        report.kinds(options.family)
        return 0
    if options.kind not in registry.kinds(options.family):
        raise UsageError(f"KIND {registry.must_be_one_of(options.kind, registry.kinds(options.family))}")
    report.kind(importlib.import_module(f"adaptd.{options.family}.{options.kind}"), options.kind)
    return 0
