"""The benchmark suite: adaptd and its peers on the same rows in one run, each in a process of its own.

Measured: strict test-then-train over each stream's rows in order, labels at once, one default configuration
of every system. Scores, mean ranks, rows to recover after known changes, detection delay and false alarms,
rows per CPU second (of the loop of predicting and learning, and of the whole process) and the most resident
memory of the process. `no-change` (the last label again) and `majority` or `mean` are always among them.

Not measured: late labels, the daemon around the learners (`benchmarks/throughput.py`), tuned peers.

Why to doubt it: peers run row by row from Python, which costs CapyMOA time that MOA's own runner does not
have; ensembles have 10 members, and more are better and slower; streams of one generator resemble each other.
The streams that River bundles are short. adaptd's defaults were chosen with the usual public streams in view.

    python -m benchmarks.suite compare --quick
    python -m benchmarks.suite compare --data ~/streams --rows 20000 --seeds 3
    python -m benchmarks.suite recurring --seeds 10
    python -m benchmarks.suite abrupt --seeds 10
    python -m benchmarks.suite stationary --rows 1000000
    python -m benchmarks.suite ablations --rows 10000
    python -m benchmarks.suite meta --seeds 10

Results are kept below `--results`; a run that was stopped goes on where it was.
"""

import argparse
import json
import pathlib
import sys
import time

from benchmarks.suite import ablations, bars, collected, compare, tables, transfer
from benchmarks.suite.runs import Runner
from benchmarks.suite.systems import ALWAYS, QUICK, SYSTEMS

QUICK_ROWS = 6_000
# Of a concept, so that some change.
QUICK_STRETCH_ROWS = 1_500
BAR_SYSTEMS = ["adaptd", "adaptd-no-lags", "capymoa-arf10"]
ABLATION_STREAMS = ["phishing_small", "segments", "approval", "sea_abrupt", "agrawal_recurring", "rbf_abrupt"]


def words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def parser() -> argparse.ArgumentParser:
    summary, _, more = (__doc__ or "").partition("\n\n")
    options = argparse.ArgumentParser(
        "python -m benchmarks.suite", description=summary, epilog=more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    options.add_argument("what", nargs="?", default="compare",
                         choices=["compare", *bars.BARS, "ablations", "meta", "list"])  # fmt: skip
    options.add_argument("--rows", type=int, default=0, help="of each stream at most; 0: all")
    options.add_argument("--streams", type=words, default=[], help="names, with commas between (see `list`)")
    options.add_argument("--systems", type=words, default=[], help="names, with commas between (see `list`)")
    options.add_argument(
        "--data", type=pathlib.Path, help="a folder of .csv or .csv.gz files to measure on too"
    )
    options.add_argument("--seeds", type=int, default=0, help="of each generated stream")
    options.add_argument("--stretch-rows", type=int, default=5_000, help="of a concept of a generated stream")
    options.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                         help="for every adaptd of a bar, as for `adaptd run`")  # fmt: skip
    options.add_argument("--only", type=words, default=[], help="of the ablations, by name")
    options.add_argument("--quick", action="store_true", help=f"few streams, {QUICK_ROWS:,} rows, one seed")
    options.add_argument(
        "--together", action="store_true", help="one process a system, not a stream; --quick does so too"
    )
    options.add_argument("--results", type=pathlib.Path, default=pathlib.Path("run/bench"))
    options.add_argument(
        "--peers-python", help="interpreter that has the peers; else .venv-peers, else this one"
    )
    return options


def part_of(chosen: argparse.Namespace, runner: Runner) -> bars.Part:
    streams = chosen.results / "streams"
    if chosen.what == "compare":
        names = chosen.systems or (list(QUICK) if chosen.quick else list(SYSTEMS))
        systems = [SYSTEMS[name] for name in SYSTEMS if name in names or name in ALWAYS]
        listed = chosen.streams or (list(collected.QUICK) if chosen.quick else collected.names(chosen.data))
        rows = chosen.rows or (QUICK_ROWS if chosen.quick else 0)
        seeds = chosen.seeds or (1 if chosen.quick else 3)
        stretch = QUICK_STRETCH_ROWS if chosen.quick else chosen.stretch_rows
        together = chosen.quick or chosen.together
        return compare.compare(runner, listed, systems, seeds, rows, streams, chosen.data, stretch, together)
    seeds = chosen.seeds or (1 if chosen.what in ("stationary", "ablations") else 10)
    if chosen.what == "ablations":
        listed = chosen.streams or ABLATION_STREAMS
        rows = chosen.rows or 10_000
        return ablations.ablate(runner, listed, chosen.only, seeds, rows, streams, chosen.data)
    if chosen.what == "stationary":
        return bars.stationary(runner, chosen.set, seeds, chosen.rows or 1_000_000, streams)
    if chosen.what == "meta":
        listed = chosen.streams or list(transfer.FAMILIES)
        return transfer.transfer(runner, listed, chosen.set, seeds, chosen.stretch_rows, streams)
    systems = bars.systems_named(chosen.systems or BAR_SYSTEMS, chosen.set)
    families = chosen.streams or (
        ["sea", "agrawal", "rbf"] if chosen.what == "recurring" else list(bars.ABRUPT)
    )
    bar = bars.recurring if chosen.what == "recurring" else bars.abrupt
    return bar(runner, systems, families, seeds, chosen.stretch_rows, streams)


def main() -> None:
    chosen = parser().parse_args()
    if chosen.what == "list":
        print("streams:", *collected.names(chosen.data))
        print("systems:", *SYSTEMS)
        print("ablations:", *(repr(name) for name in ablations.ablations()))
        return
    unknown = [name for name in chosen.systems if name not in SYSTEMS]
    if unknown:
        raise SystemExit(f"--systems must be names of {', '.join(SYSTEMS)}; got {', '.join(unknown)}.")
    runner = Runner(chosen.results / "kept", chosen.peers_python)
    try:
        text, figures, charts = part_of(chosen, runner)
    except collected.UnknownStreamError as error:
        raise SystemExit(str(error)) from None
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None
    about = [
        f"# {chosen.what.capitalize()}\n",
        f"{time.strftime('%Y-%m-%d', time.gmtime())}; {tables.machine()}.",
        "Versions: " + ", ".join(
            f"{name.removeprefix('run_')} {version or 'not installed'}"
            for name, version in runner.versions.items() if name != "run_baselines"
        ) + ".",
    ]  # fmt: skip
    about += [f"Left out: {name} ({why})." for name, why in runner.left_out.items()]
    page = "\n".join(about) + "\n\n" + text
    (chosen.results / f"{chosen.what}.md").write_text(page)
    known = {"versions": runner.versions, "left_out": runner.left_out, "machine": tables.machine()}
    (chosen.results / f"{chosen.what}.json").write_text(json.dumps(known | figures, indent=1))
    for name, chart in charts.items():
        (chosen.results / name).write_text(chart)
    print(page)
    print(f"written to {chosen.results}: {chosen.what}.md, {chosen.what}.json", *charts, sep=", ")


if __name__ == "__main__":
    main()
