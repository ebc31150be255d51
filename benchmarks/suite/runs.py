"""Runs systems on streams, each in a process of its own, and keeps what came out.

A result is kept by stream, system, options, version and rows: a run that was interrupted goes on where it
stopped, and what has changed is measured anew.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

from benchmarks.suite import said as saids
from benchmarks.suite.said import Said
from benchmarks.suite.streams import Stream
from benchmarks.suite.systems import System
from benchmarks.suite.worker import MISSING

ROOT = pathlib.Path(__file__).resolve().parents[2]
PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"


@dataclasses.dataclass
class Run:
    """One system on one stream."""

    system: str
    stream: Stream
    said: Said
    measured: dict[str, Any]
    """`loop_seconds`, `process_seconds` of CPU, `resident_bytes_max`, `version`; of adaptd also `drifts`
    (labelled-row numbers), `warnings` and the `learners`' scores."""


class Runner:
    """Starts the processes, one at a time."""

    def __init__(self, folder: pathlib.Path, peers_python: str | None = None) -> None:
        self.folder = folder
        chosen = peers_python or (str(PEERS_PYTHON) if PEERS_PYTHON.exists() else sys.executable)
        self.pythons = {"run_capymoa": chosen, "run_vowpal": chosen}
        self.versions: dict[str, str | None] = {}
        self.left_out: dict[str, str] = {}
        """Systems that could not run, and why."""
        self.done = 0
        self.total = 0
        self.started = time.monotonic()

    def version(self, system: System) -> str | None:
        """The version of the library behind `system`; None when it is not installed, with a word about it."""
        if system.runner not in self.versions:
            result = self.folder / f"{system.runner}.json"
            status, error = self.spawn(
                {"runner": system.runner, "prepare": True, "result": str(result)}, system.runner, ""
            )
            known = json.loads(result.read_text())["version"] if status == 0 else None
            self.versions[system.runner] = known
            if known is None:
                self.left_out[system.runner] = error
                self.say(f"{system.runner.removeprefix('run_')} is left out: {error}")
        return self.versions[system.runner]

    def run(self, system: System, stream: Stream) -> Run | None:
        """What `system` did on `stream`, measured now or before; None when it could not run."""
        found = self.run_all(system, [stream], together=False)
        return found[0] if found else None

    def run_all(self, system: System, streams: list[Stream], together: bool = True) -> list[Run]:
        """What `system` did on each of `streams`, without those on which it failed.

        together: one process goes through them all, which saves its start; memory and CPU seconds of such a
        run tell nothing about a single stream, and are kept apart from those that do.
        """
        self.done += len(streams)
        streams = [stream for stream in streams if stream.task in system.tasks]
        if not streams or (version := self.version(system)) is None:
            return []
        about = [system.runner, system.options, version, together, digest(f"{system.runner}.py", "said.py")]
        places = []
        for stream in streams:
            key = hashlib.sha256(json.dumps([*about, stream.folder, stream.rows]).encode()).hexdigest()[:12]
            places.append(str(self.folder / f"{stream.name}-{stream.rows}-{system.name}-{key}"))
        wanted = [
            {"folder": stream.folder, "rows": stream.rows, "said": f"{place}.npz", "result": f"{place}.json"}
            for stream, place in zip(streams, places, strict=True)
            if not os.path.exists(f"{place}.json")
        ]
        if wanted:
            rows = sum(task["rows"] for task in wanted)
            what = streams[0].name if len(wanted) == 1 else f"{len(wanted)} streams"
            label = f"{system.name}, {what}, {rows:,} rows"
            job = {"runner": system.runner, "options": system.options, "streams": wanted}
            status, error = self.spawn(job, system.runner, label)
            if status:
                self.left_out[label] = error
                self.say(f"{label}: failed, {error}")
        runs = []
        for stream, place in zip(streams, places, strict=True):
            result = pathlib.Path(f"{place}.json")
            if result.exists():
                said = saids.load(pathlib.Path(f"{place}.npz"), stream.truth(), stream.task)
                runs.append(Run(system.name, stream, said, json.loads(result.read_text())))
        return runs

    def spawn(self, job: dict[str, Any], runner: str, label: str) -> tuple[int, str]:
        """Run a worker to its end; its status and the last line of its complaint."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"job-{os.getpid()}.json"
        path.write_text(json.dumps(job))
        command = [self.pythons.get(runner, sys.executable), "-m", "benchmarks.suite.worker", str(path)]
        began = time.monotonic()
        with open(self.folder / f"worker-{os.getpid()}.log", "w+") as log:
            worker = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
            assert worker.stdout is not None
            try:
                for line in worker.stdout:
                    if label:
                        self.say(f"{label}: {line.strip()}", lasting=False)
                status = worker.wait()
            except BaseException:
                worker.kill()
                worker.wait()
                raise
            log.seek(0)
            complaint = [line for line in log.read().splitlines() if line.strip()]
        if label and not status:
            self.say(f"{label}: {time.monotonic() - began:.1f} s")
        error = complaint[-1] if complaint else f"status {status}"
        return status, error if status == MISSING else f"status {status}: {error}"

    def say(self, text: str, lasting: bool = True) -> None:
        """A line of progress on stderr; on a terminal one that does not last is written over."""
        minutes = (time.monotonic() - self.started) / 60
        line = f"[{self.done}/{self.total}, {minutes:.1f} min] {text}"
        if sys.stderr.isatty():
            print(f"\r\x1b[K{line}", end="\n" if lasting else "", file=sys.stderr, flush=True)
        elif lasting:
            print(line, file=sys.stderr, flush=True)


def digest(*files: str) -> str:
    """Of what measures: an edit measures anew."""
    folder = pathlib.Path(__file__).parent
    return hashlib.sha256(b"".join((folder / file).read_bytes() for file in files)).hexdigest()[:8]
