"""The forest beside other people's: accuracy, and rows a second of processor time.

Measured: test-then-train over each file's rows in order, ten trees a forest, one seed, immediate labels.
Accuracy counts every row from the first on. Speed is rows over the processor time of the whole process during
the loop alone (Java's compiler and garbage collector included; reading the file, starting up and compiling
adaptd's kernels not). "no change" says the last label again, "majority" the most frequent so far.

Not measured: late labels, drift detection, memory, anything of the daemon around the learner. Text columns
become codes by first appearance: adaptd is told that they are categories, CapyMOA takes them for numbers.

Why to doubt it: one seed moves accuracy by about 0.002, by 0.01 on short files. CapyMOA and River are fed row
by row from Python, which costs them time that MOA's own runner does not have (about half on a small stream);
adaptd is fed blocks of 128 rows, as in the daemon. River sees the first rows only (`--river-rows`), when its
trees are small and it is fastest. adaptd's defaults were chosen with some of the usual public streams in
view.

    python benchmarks/forest.py elec2.csv.gz covtype20k.csv.gz --repeat 10

Each contender runs in a process of its own. What is not installed is named and left out; CapyMOA may live in
another environment: `--capymoa-python PATH` (and JAVA_HOME set).
"""

import argparse
import csv
import gzip
import json
import pathlib
import subprocess
import sys
import time

import numpy as np

BLOCK = 128
CONTENDERS = ("adaptd", "capymoa", "river", "no change", "majority")


def read(path, repeat):
    """Feature matrix, label codes and which columns are text; the last column is the label."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    table = list(csv.reader(text.splitlines()))[1:]
    columns, is_text = [], []
    for values in list(zip(*table, strict=True))[:-1]:
        try:
            columns.append([float(value) if value else np.nan for value in values])
            is_text.append(False)
        except ValueError:
            columns.append(codes(values))
            is_text.append(True)
    x = np.ascontiguousarray(np.array(columns, dtype=float).T)
    y = np.array(codes([row[-1] for row in table]))
    return np.tile(x, (repeat, 1)), np.tile(y, repeat), is_text


def codes(values):
    known = {}
    return [known.setdefault(value, len(known)) for value in values]


def run_adaptd(x, y, is_text):
    from adaptd.contracts import CATEGORY, LEARN, NUMBER, PREDICT, Layout
    from adaptd.learners import forest

    kinds = tuple(CATEGORY if text else NUMBER for text in is_text)
    capacities = tuple(
        max(4, 1 << int(x[:, j].max()).bit_length()) if text else 0 for j, text in enumerate(is_text)
    )
    layout = Layout("classification", kinds, capacities, int(y.max()) + 1)
    learner = forest.build(forest.Config(), layout, 0)
    labels = y.astype(float)
    weight = np.ones(len(y))
    op = np.full(len(y), PREDICT | LEARN, dtype=np.uint8)
    out = np.zeros((len(y), layout.width))
    start = time.process_time()
    for first in range(0, len(y), BLOCK):
        part = slice(first, first + BLOCK)
        learner.step(x[part], labels[part], op[part], weight[part], out[part])
    return int((out.argmax(axis=1) == y).sum()), time.process_time() - start


def run_capymoa(x, y, is_text):
    from capymoa.classifier import AdaptiveRandomForestClassifier
    from capymoa.stream import NumpyStream

    stream = NumpyStream(x, y, target_type="categorical")
    learner = AdaptiveRandomForestClassifier(schema=stream.get_schema(), ensemble_size=10)
    right = 0
    start = time.process_time()
    while stream.has_more_instances():
        row = stream.next_instance()
        right += learner.predict(row) == row.y_index
        learner.train(row)
    return right, time.process_time() - start


def run_river(x, y, is_text):
    from river import forest

    learner = forest.ARFClassifier(n_models=10, seed=0)
    right = 0
    rows = [dict(enumerate(values)) for values in x.tolist()]
    start = time.process_time()
    for row, label in zip(rows, y.tolist(), strict=True):
        right += learner.predict_one(row) == label
        learner.learn_one(row, label)
    return right, time.process_time() - start


def run_no_change(x, y, is_text):
    return int((y[1:] == y[:-1]).sum()), 0.0


def run_majority(x, y, is_text):
    counts = np.zeros(int(y.max()) + 1, dtype=int)
    right = 0
    for label in y.tolist():
        right += int(counts.argmax() == label)
        counts[label] += 1
    return right, 0.0


RUN = {
    "adaptd": run_adaptd,
    "capymoa": run_capymoa,
    "river": run_river,
    "no change": run_no_change,
    "majority": run_majority,
}


def run_one(contender, path, repeat, rows):
    """In the contender's own process: its result as one JSON line."""
    x, y, is_text = read(path, repeat)
    if rows:
        x, y = x[:rows], y[:rows]
    try:
        right, seconds = RUN[contender](x, y, is_text)
    except ImportError as error:
        print(json.dumps({"missing": str(error)}))
        return
    print(json.dumps({"rows": len(y), "right": int(right), "seconds": seconds}))


def measure(contender, path, repeat, rows, python):
    """Start a process for one contender; gives what it printed, or why it failed."""
    command = [python, __file__, str(path), "--one", contender, "--repeat", str(repeat), "--rows", str(rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return {"missing": (done.stderr.strip().splitlines() or ["failed"])[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=pathlib.Path, help="CSV, plain or .gz; the last column is y")
    parser.add_argument("--repeat", type=int, default=1, help="run over each file so many times in a row")
    parser.add_argument("--rows", type=int, default=0, help="only the first so many rows; 0: all")
    parser.add_argument("--river-rows", type=int, default=20_000, help="rows for River, the slow one; 0: all")
    parser.add_argument("--capymoa-python", default=sys.executable, help="interpreter that has CapyMOA")
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        run_one(options.one, options.files[0], options.repeat, options.rows)
        return
    for path in options.files:
        print(f"\n{path.name}, repeated {options.repeat} times" if options.repeat > 1 else f"\n{path.name}")
        print(f"{'':12}{'rows':>10}{'accuracy':>10}{'rows/CPU s':>12}{'adaptd is':>12}")
        speed = 0.0
        for contender in CONTENDERS:
            rows = options.rows
            if contender == "river" and options.river_rows:
                rows = min(rows or options.river_rows, options.river_rows)
            python = options.capymoa_python if contender == "capymoa" else sys.executable
            result = measure(contender, path, options.repeat, rows, python)
            if "missing" in result:
                print(f"{contender:12}not run: {result['missing'][:90]}", flush=True)
                continue
            line = f"{contender:12}{result['rows']:10}{result['right'] / result['rows']:10.4f}"
            if result["seconds"] > 0:
                own = result["rows"] / result["seconds"]
                speed = speed or own
                line += f"{own:12.0f}{speed / own:11.1f}x"
            print(line, flush=True)


if __name__ == "__main__":
    main()
