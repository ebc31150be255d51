"""Starting: what is compiled ahead, by whom, and what is not even imported."""

import importlib
import json
import os
import pathlib
import subprocess
import sys

import pytest

from adaptd.kernels import compile, warm
from adaptd.kernels.compile import cache_name
from tests import streams

# Few kernels; the controller is the one of a pool of one.
SMALL = ["--set", "pool.learners.prior.kind=prior", "--set", "controller.kind=champion"]
MODULE = "adaptd.kernels.blocks"
TIMEOUT_SECONDS = 180


def run(*arguments: str, data: bytes = b"", **environment: str) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, *arguments],
        input=data,
        capture_output=True,
        env={**os.environ, **environment},
        timeout=TIMEOUT_SECONDS,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done


def events(errors: bytes) -> list[str]:
    return [json.loads(line)["event"] for line in errors.splitlines()]


@pytest.fixture
def cache(tmp_path, monkeypatch) -> pathlib.Path:
    """A cache directory without a kernel."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    return tmp_path


def calls(modules: list[str]) -> list[tuple[int, int]]:
    """Compile, and give what was reported."""
    reported: list[tuple[int, int]] = []
    warm.compile_all(modules, 2, lambda done, of: reported.append((done, of)))
    return reported


def test_a_first_start_compiles_in_other_processes_and_the_second_does_not(tmp_path):
    data = streams.lines(streams.classes(20))
    first = run("-m", "adaptd", "run", *SMALL, data=data, NUMBA_CACHE_DIR=str(tmp_path))
    assert events(first.stderr)[:3] == ["compiling_started", "compiling_finished", "daemon_started"]
    second = run("-m", "adaptd", "run", *SMALL, data=data, NUMBA_CACHE_DIR=str(tmp_path))
    assert events(second.stderr)[0] == "daemon_started"
    assert second.stdout == first.stdout


def test_a_worker_fills_the_cache_and_leaves_a_mark(cache):
    assert not warm.is_compiled(MODULE)
    assert calls([MODULE]) == [(0, 1), (1, 1)]
    assert warm.is_compiled(MODULE)
    assert list(cache.rglob("blocks.silence*.nbc"))
    assert calls([MODULE]) == []


def test_what_a_worker_fails_at_is_left_to_this_process(cache, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert calls([MODULE, "adaptd.detectors.page_hinkley"]) == [(0, 2), (1, 2), (2, 2)]
    assert not warm.is_compiled(MODULE)


def test_a_changed_source_is_compiled_again(cache, monkeypatch):
    calls([MODULE])
    assert warm.is_compiled(MODULE)
    cache_name.cache_clear()
    monkeypatch.setattr(compile, "named_in", lambda text: {"adaptd.kernels.random"})
    assert not warm.is_compiled(MODULE)
    cache_name.cache_clear()


def test_the_trees_of_both_tasks_are_compiled_ahead():
    """The task is known after the first labels, and then nothing may compile any more."""
    for kind in ("forest", "hoeffding_tree"):
        modules = warm.needed([f"adaptd.learners.{kind}"])
        assert {"adaptd.kernels.tree_classify", "adaptd.kernels.tree_regress"} <= set(modules)
        assert "adaptd.learners.knn" not in modules


def test_every_module_with_kernels_is_needed_by_some_component():
    components = [
        f"adaptd.{family}.{kind}" for family in warm.FAMILIES for kind in warm.registry.kinds(family)
    ]
    modules = set(warm.needed(components))
    for path in warm.PACKAGE.rglob("*.py"):
        if "\n@kernel(" in path.read_text():
            assert "adaptd." + ".".join(path.relative_to(warm.PACKAGE).with_suffix("").parts) in modules


def test_nothing_is_compiled_for_a_stream_that_turns_out_to_be_regression():
    """With the compiler broken, after a start that has seen classes only."""
    pool = ["--set", "pool.learners.tree.kind=hoeffding_tree", *SMALL]
    run("-m", "adaptd", "run", *pool, data=streams.lines(streams.classes(50)))
    records = streams.numbers(120)
    # The first labels are whole numbers: it starts as classification and turns.
    for record in records[:40]:
        record["y"] = round(record["y"])
    first = "import adaptd.kernels.compile, tests_without_compiler"
    script = f"{first}; from adaptd.cli import main; main(['run', *{pool}])"
    done = run("-c", script, data=streams.lines(records), PYTHONPATH=str(pathlib.Path(__file__).parent))
    assert "task_decided" in events(done.stderr)
    assert b"learner_set_aside" not in done.stderr
    assert len(done.stdout.splitlines()) == 120


def test_a_start_imports_nothing_that_it_does_not_use():
    script = f"import sys; from adaptd.cli import main; main(['run', *{SMALL}]); print(*sys.modules)"
    loaded = set(run("-c", script).stdout.decode().split())
    assert loaded & {"river", "pyarrow", "rich", "pandas", "sklearn", "scipy.linalg", "arff"} == set()


def test_scipy_can_be_imported_after_the_compiler():
    importlib.import_module("adaptd.kernels.compile")
    assert importlib.import_module("scipy.linalg").norm([3.0, 4.0]) == 5.0
