"""The whole process on a pipe: rows per CPU second and resident memory, JSON lines in, JSON lines out.

Measured: `adaptd run` as a user starts it, CPU time of the child process (user and system) over all rows,
start included, and the start apart (a run of one row); the largest resident set, at a tenth of the rows and
at all of them, to see that memory is flat. Not measured: the generator, the disk. Why to doubt it: the rows
are easy (10 numbers, two classes), and a machine under load gives fewer rows for the same second.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile

import numpy as np


def write_rows(path: str, n: int) -> None:
    rng = np.random.default_rng(0)
    with open(path, "w", encoding="ascii") as file:
        for start in range(0, n, 10_000):
            x = rng.normal(size=(min(10_000, n - start), 10)).round(5)
            for i, row in enumerate(x.tolist(), start):
                features = ",".join(f'"f{j}":{value}' for j, value in enumerate(row))
                label = "up" if row[0] + row[1] > 0 else "down"
                file.write(f'{{"id":{i},{features},"y":"{label}"}}\n')


def measured(path: str, rows: int, arguments: list[str]) -> tuple[float, float]:
    """CPU seconds and megabytes of one run over the first `rows` rows."""
    command = [sys.executable, "-m", "adaptd", "run", "--set", "log.level=error", *arguments]
    with subprocess.Popen(["head", "-n", str(rows), path], stdout=subprocess.PIPE) as head:
        process = subprocess.Popen(command, stdin=head.stdout, stdout=subprocess.PIPE)
        lines = sum(chunk.count(b"\n") for chunk in iter(lambda: process.stdout.read(1 << 20), b""))
        _, status, used = os.wait4(process.pid, 0)
    if status or lines != rows:
        raise SystemExit(f"{lines} lines for {rows} rows, status {status}")
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument(
        "--default-pool", action="store_true", help="the default pool, not one linear learner"
    )
    options = parser.parse_args()
    arguments = [] if options.default_pool else ["--set", "pool.learners.linear.kind=linear"]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "rows.jsonl")
        write_rows(path, options.rows)
        measured(path, 1, arguments)  # compiles, if there is anything to compile
        start, _ = measured(path, 1, arguments)
        _, early = measured(path, options.rows // 10, arguments)
        seconds, late = measured(path, options.rows, arguments)
    print(f"{options.rows:,} rows: {options.rows / seconds:,.0f} rows per CPU second, start included")
    print(f"{(options.rows - 1) / (seconds - start):,.0f} without the start of {start:.2f} CPU s")
    print(f"resident: {early:.0f} MB after a tenth of the rows, {late:.0f} MB after all")


if __name__ == "__main__":
    main()
