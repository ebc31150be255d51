"""The real process: pipes, exit codes, signals, crashes, the metrics page."""

import contextlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import urllib.request

import pytest

from tests import streams

ADAPTD = [sys.executable, "-m", "adaptd"]
# Few learners: what is tested here is the process.
POOL = ["--set", "pool.learners.linear.kind=linear", "--set", "pool.learners.prior.kind=prior"]
TIMEOUT_SECONDS = 180


def run(*arguments: str, data: bytes = b"", code: int = 0) -> subprocess.CompletedProcess:
    done = subprocess.run([*ADAPTD, *arguments], input=data, capture_output=True, timeout=TIMEOUT_SECONDS)
    assert done.returncode == code, done.stderr.decode()
    return done


def answers(output: bytes) -> list[dict]:
    return [json.loads(line) for line in output.splitlines()]


def logged(errors: bytes) -> list[dict]:
    return [json.loads(line) for line in errors.splitlines()]


def csv_of(records: list[dict]) -> bytes:
    names = list(records[0])
    lines = [",".join(names)] + [",".join(str(record[name]) for name in names) for record in records]
    return ("\n".join(lines) + "\n").encode()


@pytest.mark.parametrize("form", ["json", "csv"])
def test_every_row_is_answered_in_order_and_replay_agrees(form, tmp_path):
    records = streams.classes(2000, drift_at=1000)
    data = streams.lines(records) if form == "json" else csv_of(records)
    file = tmp_path / f"stream.{'jsonl' if form == 'json' else 'csv'}"
    file.write_bytes(data)
    printed = answers(run("run", "--format", form, *POOL, data=data).stdout)
    assert [answer["id"] for answer in printed] == [record["id"] for record in records]
    assert [answer["row"] for answer in printed] == list(range(1, 2001))
    hits = sum(answer["prediction"] == record["y"] for answer, record in zip(printed, records, strict=True))
    report = json.loads(run("replay", str(file), *POOL, "--format", "json").stdout)
    assert report["accuracy"] == hits / 2000
    assert report["rows"] == 2000
    assert isinstance(report["drifts"], int)
    assert set(report["learners"]) == {"linear", "prior"}


def test_no_configuration_is_needed_for_numbers():
    records = streams.numbers(300)
    printed = answers(run("run", data=streams.lines(records)).stdout)
    assert printed[0]["prediction"] is None
    errors = [abs(a["prediction"] - r["y"]) for a, r in zip(printed[100:], records[100:], strict=True)]
    assert sum(errors) / len(errors) < 1.0


def test_a_bad_record_costs_no_good_one(tmp_path):
    good = streams.classes(200)
    lines = streams.lines(good).splitlines(keepends=True)
    bad = [
        b"{broken\n",
        b"[1,2]\n",
        b'{"id": 1, "a": "\xff"}\n',
        b"\n",
        b"{}\n",
        b'{"a": ' + b"[" * 3000 + b"\n",
    ]
    rng = random.Random(1)
    for line in bad:
        lines.insert(rng.randrange(len(lines)), line)
    letters = tmp_path / "dead.jsonl"
    done = run("run", *POOL, "--set", f"dead_letters.path={letters}", data=b"".join(lines))
    assert [answer["id"] for answer in answers(done.stdout)] == [record["id"] for record in good]
    buried = answers(letters.read_bytes())
    assert len(buried) == 5
    assert {letter["reason"] for letter in buried} >= {"not_json", "not_an_object"}
    assert all(letter["position"] > 0 for letter in buried)


def test_half_a_line_at_the_end_is_a_record():
    data = streams.lines(streams.classes(10)) + b'{"id": 99, "a": 0.5}'
    assert answers(run("run", *POOL, data=data).stdout)[-1]["id"] == 99


def test_an_empty_input_ends_well():
    assert run("run", *POOL).stdout == b""


def test_output_that_nobody_reads_ends_quietly():
    data = streams.lines(streams.classes(20_000))
    command = " ".join([*ADAPTD, "run", *POOL, "| head -n 2; exit ${PIPESTATUS[0]}"])
    done = subprocess.run(["bash", "-c", command], input=data, capture_output=True, timeout=TIMEOUT_SECONDS)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 2
    assert b"Traceback" not in done.stderr


def test_exit_codes_tell_what_is_wrong(tmp_path):
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(
        '[pool.learners.fast]\nkind = "linaer"\n[control]\nrows = 0\nrow = 1\n'
        '[source]\nkind = "stdin"\nx = 1\n'
    )
    done = run("check", "--config", str(wrong), code=78)
    faults = done.stderr.decode()
    for words in (
        "pool.learners.fast.kind must be one of",
        "Did you mean 'linear'?",
        "control.rows must be int >= 1",
        "control.row must be one of",
        "source.x must be one of",
    ):
        assert words in faults
    run("run", "--config", str(tmp_path / "none.toml"), code=78)
    run("run", "--set", "nonsense", code=2)
    run("run", "--no-such-option", code=2)
    run("replay", str(tmp_path / "none.csv"), code=2)
    run("run", "--set", "source.kind=file", "--set", f"source.path={tmp_path}/none.jsonl", code=1)


def test_the_example_configuration_is_good_and_complete():
    root = pathlib.Path(__file__).parent.parent
    assert b"good" in run("check", "--config", str(root / "config.toml")).stdout


def test_learners_are_listed_with_their_defaults():
    listed = run("learners").stdout.decode()
    assert "forest" in listed
    assert "grace" in run("learners", "hoeffding_tree").stdout.decode()


class Files:
    """A file to file daemon with checkpoints in `folder`."""

    def __init__(self, folder: pathlib.Path, interval: float = 0.05) -> None:
        folder.mkdir(exist_ok=True)
        self.source, self.sink, self.state = folder / "in.jsonl", folder / "out.jsonl", folder / "state"
        self.arguments = [
            "run", *POOL, "--set", "source.kind=file", "--set", f"source.path={self.source}",
            "--set", "source.poll_rows_max=50", "--set", "sink.kind=file", "--set", f"sink.path={self.sink}",
            "--set", f"checkpoint.directory={self.state}", "--set", f"checkpoint.interval_seconds={interval}",
        ]  # fmt: skip

    def start(self) -> subprocess.Popen:
        return subprocess.Popen([*ADAPTD, *self.arguments], stderr=subprocess.PIPE)

    def finish(self) -> bytes:
        return run(*self.arguments).stderr

    def result(self) -> tuple[bytes, bytes, bytes]:
        """Output, dead letters, and the end state without its wall times."""
        from adaptd.checkpoint import CheckpointStore

        store = CheckpointStore(self.state)
        loaded = store.load_latest()
        store.close()
        lane = repr(sorted(loaded.state["lane"]["pool"].items())).encode()
        return self.sink.read_bytes(), (self.state / "dead_letters.jsonl").read_bytes(), lane


def crowded(n: int) -> bytes:
    records = streams.with_late_labels(streams.classes(n, drift_at=n // 2), delay=40, share=0.3)
    lines = streams.lines(records).splitlines(keepends=True)
    for at in range(100, len(lines), 500):
        lines[at] = b"{no record\n"
    return b"".join(lines)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    files = Files(tmp_path_factory.mktemp("whole"), interval=3600)
    files.source.write_bytes(crowded(20_000))
    files.finish()
    return files.result()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_a_stop_at_any_moment_leaves_no_trace(number, uninterrupted, tmp_path):
    files = Files(tmp_path / "run")
    files.source.write_bytes(crowded(20_000))
    rng = random.Random(int(number))
    stops = 0
    for _ in range(8):
        process = files.start()
        # Wait for some more output, then stop in the middle of whatever it does.
        reached = files.sink.stat().st_size if files.sink.exists() else 0
        goal = reached + rng.randrange(1, 200_000)
        while process.poll() is None and (not files.sink.exists() or files.sink.stat().st_size < goal):
            pass
        stops += process.poll() is None
        process.send_signal(number)
        process.communicate(timeout=TIMEOUT_SECONDS)
    assert stops >= 3
    assert b"checkpoint_loaded" in files.finish()
    assert files.result() == uninterrupted


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(uninterrupted, tmp_path):
    files = Files(tmp_path / "run")
    files.source.write_bytes(crowded(20_000))
    files.finish()
    newest = sorted(files.state.glob("checkpoint-*.adaptd"))[-1]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    errors = logged(files.finish())
    assert [event["path"] for event in errors if event["event"] == "checkpoint_damaged"] == [str(newest)]
    assert files.result() == uninterrupted


def test_another_input_than_the_checkpoints_is_refused(tmp_path):
    files = Files(tmp_path / "run")
    files.source.write_bytes(streams.lines(streams.classes(100)))
    files.finish()
    files.source.write_bytes(streams.lines(streams.classes(100, seed=5)))
    assert files.source.name in run(*files.arguments, code=1).stderr.decode()


def test_sigterm_on_a_pipe_answers_what_was_read_and_resumes_after_it(tmp_path):
    lines = streams.lines(streams.classes(400)).splitlines(keepends=True)
    arguments = [*ADAPTD, "run", *POOL, "--set", f"checkpoint.directory={tmp_path / 'state'}"]
    process = subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    half = lines[200][:9]
    process.stdin.write(b"".join(lines[:200]) + half)
    process.stdin.flush()
    first = b"".join(process.stdout.readline() for _ in range(200))
    process.send_signal(signal.SIGTERM)
    process.wait(TIMEOUT_SECONDS)
    assert process.returncode == 0
    rest = subprocess.run(arguments, input=lines[200][9:] + b"".join(lines[201:]), capture_output=True)
    whole = run("run", *POOL, data=b"".join(lines)).stdout
    assert first + rest.stdout == whole


def test_a_followed_file_is_answered_as_it_grows_and_is_rotated(tmp_path):
    source, sink = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = streams.lines(streams.classes(90)).splitlines(keepends=True)
    source.write_bytes(b"".join(lines[:30]))
    process = subprocess.Popen(
        [*ADAPTD, "run", *POOL, "--set", "source.kind=file", "--set", f"source.path={source}",
         "--set", "source.follow=true", "--set", "sink.kind=file", "--set", f"sink.path={sink}"],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for start, rotate in ((0, False), (30, False), (60, True)):
            if rotate:
                source.rename(tmp_path / "in.jsonl.1")
            if start:
                with open(source, "ab") as file:
                    file.write(b"".join(lines[start : start + 30]))
            while not sink.exists() or sink.read_bytes().count(b"\n") < start + 30:
                assert process.poll() is None
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(TIMEOUT_SECONDS)
    assert [answer["id"] for answer in answers(sink.read_bytes())] == list(range(90))


@contextlib.contextmanager
def serving(*arguments):
    """A daemon on a pipe, and a function that waits for a text on its metrics page."""
    process = subprocess.Popen(
        [*ADAPTD, "run", *POOL, "--set", "http.enabled=true", "--set", "http.listen=127.0.0.1:0", *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    threading.Thread(target=process.stdout.read, daemon=True).start()
    try:
        listen = next(e["listen"] for e in map(json.loads, process.stderr) if e["event"] == "http_started")

        def page_with(text):
            page = ""
            while text not in page:
                assert process.poll() is None
                page = urllib.request.urlopen(f"http://{listen}/metrics", timeout=10).read().decode()
            return page

        yield process, listen, page_with
    finally:
        process.stdin.close()
        assert process.wait(TIMEOUT_SECONDS) == 0


def test_metrics_are_served_while_it_runs():
    with serving() as (process, listen, page_with):
        process.stdin.write(streams.lines(streams.classes(2000)))
        process.stdin.flush()
        page = page_with("adaptd_predictions_total 2000")
        assert 'adaptd_learner_score{learner="linear",score="accuracy"}' in page
        assert urllib.request.urlopen(f"http://{listen}/healthz", timeout=10).status == 200


def test_counters_of_a_resumed_daemon_begin_at_zero(tmp_path):
    """Or Prometheus would see the whole past as an increase of one moment."""
    for rows in (300, 200):
        with serving("--set", f"checkpoint.directory={tmp_path}") as (process, _, page_with):
            process.stdin.write(streams.lines(streams.classes(rows)))
            process.stdin.flush()
            assert f"adaptd_labels_total {rows}.0" in page_with(f"adaptd_predictions_total {rows}.0")


def test_holdout_passes_and_one_learner(tmp_path):
    file = tmp_path / "data.csv"
    file.write_bytes(csv_of([{k: v for k, v in r.items() if k != "id"} for r in streams.classes(1500)]))
    report = json.loads(
        run(
            "replay",
            str(file),
            "--learner",
            "linear",
            "--holdout",
            "0.2",
            "--passes",
            "2",
            "--format",
            "json",
        ).stdout
    )
    assert list(report["learners"]) == ["linear"]
    assert report["holdout"]["rows"] == 300
    assert report["holdout"]["accuracy"] > 0.9


def test_a_table_for_people(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_bytes(streams.lines(streams.numbers(400)))
    shown = run("replay", str(file), *POOL).stdout.decode()
    assert "blend" in shown
    assert "mae" in shown


def test_nothing_is_compiled_once_it_is_ready():
    """With the compiler broken, a warm cache still serves a whole run."""
    data = streams.lines(streams.classes(300))
    run("run", data=data)
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parent)}
    script = "import tests_without_compiler, sys; from adaptd.cli import main; sys.exit(main(['run']))"
    module = pathlib.Path(__file__).parent / "tests_without_compiler.py"
    assert module.exists()
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=data,
        capture_output=True,
        env=environment,
        timeout=TIMEOUT_SECONDS,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert len(answers(done.stdout)) == 300
