"""One system in a process of its own: `python -m benchmarks.suite.worker JOB.json`.

For each stream of the job it writes what was said and a JSON object with what was measured; it prints
`stream NAME` and `rows N` as it goes. A library that is
not there ends in status 3 and a line that says so.
"""

import importlib
import json
import os
import pathlib
import re
import resource
import sys
import time
from typing import Any

from benchmarks.suite import streams
from benchmarks.suite.said import Said

MISSING = 3
# Between two lines of progress.
PROGRESS_SECONDS = 1.0


def resident_bytes_max() -> int:
    """The most memory that this process had; what `getrusage` gives may be its parent's."""
    with open("/proc/self/status") as file:
        found = re.search(r"VmHWM:\s+(\d+) kB", file.read())
    return int(found[1]) * 1024 if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def keep(task: dict[str, Any], said: Said, result: dict[str, Any]) -> None:
    """What was said first: a result that is there is whole."""
    said.save(pathlib.Path(task["said"]))
    new = task["result"] + ".new"
    pathlib.Path(new).write_text(json.dumps(result))
    os.replace(new, task["result"])


def main() -> None:
    job = json.loads(pathlib.Path(sys.argv[1]).read_text())
    last = 0.0

    def progress(rows: int) -> None:
        nonlocal last
        if time.monotonic() - last > PROGRESS_SECONDS:
            last = time.monotonic()
            print(f"rows {rows}", flush=True)

    try:
        runner = importlib.import_module(f"benchmarks.suite.{job['runner']}")
        version = runner.version()
        if job.get("prepare"):
            getattr(runner, "prepare", lambda: None)()
            pathlib.Path(job["result"]).write_text(json.dumps({"version": version}))
            return
        for task in job["streams"]:
            stream = streams.load(pathlib.Path(task["folder"]), task["rows"])
            print(f"stream {stream.name}", flush=True)
            said, began = Said(stream.truth(), stream.task), time.process_time()
            result = runner.run(stream, job["options"], said, progress)
            # The start belongs to the first stream; a process that is measured has only one.
            seconds = time.process_time() - (began if task is not job["streams"][0] else 0.0)
            measured = {"process_seconds": seconds, "resident_bytes_max": resident_bytes_max()}
            keep(task, said, result | measured | {"version": version})
    except ImportError as error:
        # Also PackageNotFoundError of importlib.metadata.
        print(str(error), file=sys.stderr)
        raise SystemExit(MISSING) from None


if __name__ == "__main__":
    main()
