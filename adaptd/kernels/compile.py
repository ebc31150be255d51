"""How kernels are compiled: nogil, cached, with explicit signatures, bits before speed.

Numba's cache notices a change of a kernel's own file, but not of a *called* kernel in another file; it would
go on giving the old result. Only files of this folder are called from other files (`tests/test_tidy.py`), so
the cache directory's name ends in a hash of these, of adaptd's version and of the compiler's.

`fastmath` stays off: it reorders sums, and then the same rows cut otherwise give other bits.
"""

import hashlib
import importlib.util
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import adaptd


def source_hash() -> str:
    """Sixteen hex digits over the sources that other files' kernels call, and all versions."""
    digest = hashlib.sha256(adaptd.__version__.encode())
    for path in sorted(pathlib.Path(__file__).resolve().parent.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    # The files that state the versions: asking for a package's metadata searches the whole path first.
    for package, file in (("numba", "_version.py"), ("numpy", "version.py"), ("llvmlite", "_version.py")):
        spec = importlib.util.find_spec(package)
        assert spec is not None, f"{package} is not installed"
        assert spec.origin is not None
        digest.update(pathlib.Path(spec.origin).with_name(file).read_bytes())
    return digest.hexdigest()[:16]


def cache_directory() -> pathlib.Path:
    """Where compiled kernels are kept: under systemd its CACHE_DIRECTORY, else the user's cache."""
    base = os.environ.get("CACHE_DIRECTORY", "").split(":")[0]
    if not base:
        cache_home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        base = os.path.join(cache_home, "adaptd")
    return pathlib.Path(base) / f"kernels-{source_hash()}"


os.environ.setdefault("NUMBA_CACHE_DIR", str(cache_directory()))

import numba  # noqa: E402  (reads NUMBA_CACHE_DIR when it is imported)


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

# Nobody calls kernels from C.
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}


def kernel(signature: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile when the module is imported, for exactly `signature`; callable from Python.

    `signature` is Numba's text form, for example `"void(f8[:,::1], f8[::1], u1[::1])"`.
    """
    compiled: Callable[[Callable[..., Any]], Callable[..., Any]] = numba.njit(
        signature, cache=True, **OPTIONS
    )
    return compiled


def subkernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile as a part of the kernels that call it; never called from Python by adaptd itself.

    It is cached as a part of these kernels and not by itself: two processes that compile it for different
    arguments at the same time could give one another's code back from Numba's cache.
    """
    compiled: Callable[..., Any] = numba.njit(**OPTIONS)(function)
    return compiled
