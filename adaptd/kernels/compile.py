"""How kernels are compiled: nogil, cached, with explicit signatures, bits before speed.

Numba's cache notices a change of a kernel's own file, but not of a *called* kernel in another file; it would
go on giving the old result. So each file's kernels are cached in a directory of their own, whose name ends in
a hash of that file, of the files of this folder that it calls, however indirectly (`tests/test_tidy.py`: it
calls no others), and of the versions. Where the files lie does not matter: two installations of the same
code share what was compiled.

`fastmath` stays off: it reorders sums, and then the same rows cut otherwise give other bits.
"""

import functools
import hashlib
import importlib.util
import os
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

import adaptd

PACKAGE = pathlib.Path(__file__).resolve().parent.parent


def named_in(text: str) -> set[str]:
    """Modules that a source names, in an import or in a text: `adaptd.kernels.tree`."""
    found = set(re.findall(r"adaptd(?:\.\w+)+", text))
    for package, names in re.findall(r"from (adaptd(?:\.\w+)*) import \(?([\w ,]+|[\w\s,]+\))", text):
        found |= {f"{package}.{name.split()[0]}" for name in names.strip(")").split(",") if name.strip()}
    return found


def source_of(module: str) -> pathlib.Path | None:
    """The file of a module of adaptd; None when there is none."""
    path = PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")
    return path if path.is_file() else None


@functools.cache
def versions() -> bytes:
    """adaptd's version and the compiler's."""
    digest = hashlib.sha256(adaptd.__version__.encode())
    # The files that state the versions: asking for a package's metadata searches the whole path first.
    for package, file in (("numba", "_version.py"), ("numpy", "version.py"), ("llvmlite", "_version.py")):
        spec = importlib.util.find_spec(package)
        assert spec is not None, f"{package} is not installed"
        assert spec.origin is not None
        digest.update(pathlib.Path(spec.origin).with_name(file).read_bytes())
    return digest.digest()


@functools.cache
def cache_name(module: str) -> str:
    """The directory of a module's kernels: its name and sixteen hex digits over all that they are made of."""
    sources: dict[str, bytes] = {}
    pending = [module]
    while pending:
        name = pending.pop()
        path = source_of(name)
        if path is None or name in sources:
            continue
        sources[name] = path.read_bytes()
        called = named_in(sources[name].decode())
        pending += [other for other in called if other.startswith("adaptd.kernels.")]
    digest = hashlib.sha256(versions())
    for name in sorted(sources):
        digest.update(name.encode() + sources[name])
    return f"{module.removeprefix('adaptd.')}-{digest.hexdigest()[:16]}"


def cache_directory() -> pathlib.Path:
    """Where compiled kernels are kept: under systemd its CACHE_DIRECTORY, else the user's cache."""
    base = os.environ.get("CACHE_DIRECTORY", "").split(":")[0]
    if not base:
        cache_home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        base = os.path.join(cache_home, "adaptd")
    return pathlib.Path(base) / "kernels"


os.environ.setdefault("NUMBA_CACHE_DIR", str(cache_directory()))
os.environ.setdefault(
    "NUMBA_CACHE_LOCATOR_CLASSES", "adaptd.kernels.compile.Locator,UserProvidedCacheLocator"
)

import numba  # noqa: E402  (reads these when it is imported)
from numba.core.caching import UserProvidedCacheLocator  # noqa: E402


class Locator(UserProvidedCacheLocator):
    """Tells Numba the directory of a file's kernels. It names its sources, so it has no other stamp."""

    def __init__(self, function: Callable[..., Any], file: str) -> None:
        super().__init__(function, file)
        self._cache_path = os.path.join(os.environ["NUMBA_CACHE_DIR"], cache_name(function.__module__))

    @classmethod
    def from_function(cls, function: Callable[..., Any], file: str) -> "Locator | None":
        ours = function.__module__.startswith("adaptd.")
        located: Locator | None = super().from_function(function, file) if ours else None
        return located

    def get_source_stamp(self) -> str:
        return os.path.basename(self._cache_path)


def load_without_scipy() -> None:
    """Have Numba look for matrix products now, and find none.

    It would import `scipy.linalg` for them, a fifth of a start; no kernel uses them (the order of their
    sums is not ours).
    """
    name = "scipy.linalg"
    if name in sys.modules:
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        importlib.import_module("numba.np.arraymath")
    finally:
        del sys.modules[name]


load_without_scipy()

# Nobody calls kernels from C. References to arrays are not counted: the caller holds them all, and each row
# of an array that is handed to a subkernel would cost two atomic operations, a third of some kernels' time.
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True, "_nrt": False}


def kernel(signature: str, allocates: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile when the module is imported, for exactly `signature`; callable from Python.

    `signature` is Numba's text form, for example `"void(f8[:,::1], f8[::1], u1[::1])"`. Only with `allocates`
    may the kernel make arrays; references to arrays are then counted in it.
    """
    compiled: Callable[[Callable[..., Any]], Callable[..., Any]] = numba.njit(
        signature, cache=True, **{**OPTIONS, "_nrt": allocates}
    )
    return compiled


def subkernel(function: Any = None, *, inline: bool = False) -> Any:
    """Compile as a part of the kernels that call it; never called from Python by adaptd itself.

    It is cached as a part of these kernels and not by itself: two processes that compile it for different
    arguments at the same time could give one another's code back from Numba's cache.

    A call hands over some ten words for each array, which is more work than many a subkernel's own. With
    `inline` there is no call; without, the compiler decides, and is sooner done where a large one has several
    callers.
    """
    if function is None:
        return functools.partial(subkernel, inline=inline)
    return numba.njit(**OPTIONS, forceinline=inline)(function)
