"""Imported by a process of `test_process.py`: any attempt to compile a kernel is an error there."""

from numba.core import compiler


def refuse(*arguments, **options):
    raise RuntimeError("a kernel was compiled, and the cache is warm")


compiler.compile_extra = refuse
