"""Finds components: the kind is the file's name. Imports only what was chosen."""

import difflib
import functools
import importlib
import pkgutil
from types import ModuleType


@functools.cache
def kinds(family: str) -> list[str]:
    """The kinds of a family (`learners`, `detectors`, `controllers`, ...), sorted, without importing any."""
    package = importlib.import_module(f"adaptd.{family}")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def load(family: str, kind: str) -> ModuleType:
    """The module of one component. Raises KeyError with a suggestion when there is none."""
    known = kinds(family)
    if kind not in known:
        raise KeyError(must_be_one_of(kind, known))
    return importlib.import_module(f"adaptd.{family}.{kind}")


def must_be_one_of(value: str, known: list[str]) -> str:
    """The rule and the help for a name that is not known."""
    close = difflib.get_close_matches(value, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"must be one of {', '.join(known)}; got {value!r}.{hint}"
