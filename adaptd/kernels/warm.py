"""Compiles kernels into the cache before they are needed, in several processes at once.

A kernel is compiled when its module is imported. So each process is a worker that is told names of modules
and imports them; which ones a configuration can come to need is read from the sources, without importing
any: the task, and with it the half of the tree's kernels that is used, is known after the first labels
only. A module that is done leaves a mark in the cache directory, so a start finds out in milliseconds.

`python -m adaptd.kernels.warm` does it for every component there is.
"""

import concurrent.futures
import contextlib
import importlib
import os
import pathlib
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from adaptd import registry
from adaptd.kernels.compile import PACKAGE, cache_name, named_in, source_of

FAMILIES = ("controllers", "detectors", "learners")
# What every run needs, whatever its components.
ROOT = "adaptd.daemon"

# Called with (modules done, modules in all).
Progress = Callable[[int, int], None]


def needed(components: Iterable[str]) -> list[str]:
    """Modules with kernels that a run with these components can come to need, the longest source first."""
    sizes: dict[str, int] = {}
    seen: set[str] = set()
    pending = [ROOT, *components]
    while pending:
        module = pending.pop()
        path = source_of(module)
        if module in seen or path is None:
            continue
        seen.add(module)
        text = path.read_text(encoding="utf-8")
        # This module and `compile` speak of kernels and hold none.
        if re.search(r"^@kernel\(", text, re.M):
            sizes[module] = len(text)
        # Components are chosen by their kind; that another text names one chooses nothing.
        pending += [name for name in named_in(text) if name.split(".")[1] not in FAMILIES]
    return sorted(sizes, key=lambda module: (-sizes[module], module))


def sizes_called(module: str) -> dict[str, int]:
    """Files with kernels for others to call that a module names, itself included, and how long they are."""
    path = source_of(module)
    assert path is not None, f"{module} is no module of adaptd"
    text = path.read_text(encoding="utf-8")
    names = {module, *(name for name in named_in(text) if name.startswith("adaptd.kernels."))}
    texts = {name: file.read_text(encoding="utf-8") for name in names if (file := source_of(name))}
    return {name: len(text) for name, text in texts.items() if "\n@subkernel" in text}


def mark_of(module: str) -> pathlib.Path:
    """The file that says that all of a module's kernels are in the cache."""
    return pathlib.Path(os.environ["NUMBA_CACHE_DIR"]) / cache_name(module) / "compiled"


def is_compiled(module: str) -> bool:
    return mark_of(module).exists()


def compile_module(module: str) -> None:
    """Import a module and leave its mark."""
    importlib.import_module(module)
    mark = mark_of(module)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()


def compile_all(modules: list[str], processes: int, progress: Progress = lambda done, of: None) -> None:
    """Compile what is not yet in the cache, with at most so many processes beside this one.

    What a worker fails at is compiled here, and an error here is the caller's.
    """
    if os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
        return
    missing = [module for module in modules if not is_compiled(module)]
    if not missing:
        return
    total = len(missing)
    waiting, failed = list(missing), []
    called = {module: sizes_called(module) for module in missing}
    lock = threading.Lock()
    done = 0
    progress(0, total)

    def serve() -> None:
        """One worker until nothing waits."""
        nonlocal done
        known: set[str] = set()

        def news(module: str) -> tuple[int, int]:
            # A worker that has compiled what a module calls need not do it again.
            shared = sum(size for name, size in called[module].items() if name in known)
            return -shared, missing.index(module)

        with worker() as ask:
            while True:
                with lock:
                    if not waiting:
                        return
                    module = min(waiting, key=news)
                    waiting.remove(module)
                    known.update(called[module])
                good = ask(module)
                with lock:
                    if good:
                        done += 1
                        progress(done, total)
                    else:
                        failed.append(module)

    n = min(processes, total)
    with concurrent.futures.ThreadPoolExecutor(n, "compiling") as pool:
        for future in [pool.submit(serve) for _ in range(n)]:
            future.result()
    for module in failed:
        importlib.import_module(module)
        done += 1
        progress(done, total)


@contextlib.contextmanager
def worker() -> Iterator[Callable[[str], bool]]:
    """A process that compiles; gives the function that hands it a module and waits for how that went."""
    # What a worker complains about is met again, and shown, where this process compiles instead.
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", "from adaptd.kernels import warm; warm.work()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), *filter(None, sys.path)])},
    )  # fmt: skip

    def ask(module: str) -> bool:
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(OSError):
            process.stdin.write(module + "\n")
            process.stdin.flush()
            return process.stdout.readline() == module + "\n"
        return False

    try:
        yield ask
    finally:
        # Without input it ends; at an interrupt it may be in the middle of a module.
        with contextlib.suppress(OSError):
            process.communicate()


def work() -> None:
    """The worker's side: modules in, one a line; out again when they are done."""
    for line in sys.stdin:
        compile_module(line.strip())
        print(line.strip(), flush=True)


def main() -> None:
    """Compile the kernels of every component."""
    started = time.perf_counter()

    def show(done: int, of: int) -> None:
        print(f"{done} of {of} modules compiled, {time.perf_counter() - started:.1f} s", flush=True)

    components = [f"adaptd.{family}.{kind}" for family in FAMILIES for kind in registry.kinds(family)]
    compile_all(needed(components), len(os.sched_getaffinity(0)), show)


if __name__ == "__main__":
    main()
