"""Imported by a process of `test_process.py`: any attempt to compile a kernel is an error there."""

from numba.core import compiler

import adaptd.kernels.compile  # noqa: F401  (Numba must be told of the cache before it is imported)


def refuse(*arguments, **options):
    raise RuntimeError("a kernel was compiled, and the cache is warm")


compiler.compile_extra = refuse
