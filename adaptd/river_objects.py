"""River's objects by dotted name and options, and their pickles read back by an unpickler that allows little.

A table `{estimator = "river.tree.HoeffdingTreeClassifier", options = {...}}` names a class of River and its
constructor's arguments; an option may be such a table, or a list of them. `arguments = [...]` holds what a
constructor takes by position (`river.compose.Select`).

River's state can only be pickled. Whoever writes a pickle chooses what reading it calls, so `loads` resolves
River's own classes and the short lists below, and nothing else. That narrows what a forged checkpoint can
do; it does not make it harmless (it can fill the memory): checkpoints belong in a directory that only the
service can write.
"""

import difflib
import functools
import hashlib
import importlib
import inspect
import io
import pickle
import pkgutil
import random
import sys
import types
from importlib import metadata
from typing import Any

from river import base, proba

from adaptd.contracts import State
from adaptd.errors import CheckpointError

# Packages of River whose classes may be built and read back. Left out on purpose: `datasets` and `stream`
# (they download and open files), `evaluate`, `checks`, `compat` (it wraps foreign libraries), `api`.
PACKAGES = (
    "_river_rust",
    "active",
    "anomaly",
    "bandit",
    "base",
    "cluster",
    "compose",
    "conf",
    "covariance",
    "drift",
    "dummy",
    "ensemble",
    "facto",
    "feature_extraction",
    "feature_selection",
    "forest",
    "imblearn",
    "linear_model",
    "metrics",
    "misc",
    "model_selection",
    "multiclass",
    "multioutput",
    "naive_bayes",
    "neighbors",
    "optim",
    "preprocessing",
    "proba",
    "rules",
    "sketch",
    "stats",
    "time_series",
    "tree",
    "utils",
)

# Functions of River that its estimators keep, each read and found to do arithmetic only.
FUNCTIONS = {
    ("river._river_rust.vectordict", "euclidean_distance_dict"),
    ("river._river_rust.vectordict", "euclidean_distance_tuple"),
    ("river.forest.online_extra_trees", "ExtraTrees._detection_mode_all"),
    ("river.forest.online_extra_trees", "ExtraTrees._detection_mode_drop"),
    ("river.forest.online_extra_trees", "ExtraTrees._detection_mode_off"),
    ("river.naive_bayes.gaussian", "GaussianNB._make_gaussian"),
    ("river.tree.splitter.ebst_splitter", "EBSTNode._update_estimator_univariate"),
    ("river.tree.splitter.ebst_splitter", "EBSTNode._update_estimator_multivariate"),
    ("river.tree.splitter.nominal_splitter_reg", "NominalSplitterReg._update_estimator_univariate"),
    ("river.tree.splitter.nominal_splitter_reg", "NominalSplitterReg._update_estimator_multivariate"),
    ("river.utils.math", "minkowski_distance"),
}

# Methods that objects of River keep bound to themselves, by class, each read as above. A plain pickle would
# call `getattr` for them, which could fetch anything.
METHODS = {
    "river.bandit.thompson.ThompsonSampling": ("_clone_reward_obj_with_seed",),
    "river.drift.dummy.DummyDriftDetector": ("_fixed_trigger", "_random_trigger"),
    "river.drift.page_hinkley.PageHinkley": ("_test_increase", "_test_decrease", "_test_both"),
    "river.ensemble.bagging.LeveragingBaggingClassifier": (
        "_leveraging_bag", "_leveraging_bag_me", "_leveraging_bag_half", "_leveraging_bag_wt",
        "_leveraging_subag",
    ),
    "river.feature_extraction.kernel_approx.RBFSampler": ("_random_weights",),
    "river.linear_model.pa.PAClassifier": ("_calc_tau_0", "_calc_tau_1", "_calc_tau_2"),
    "river.linear_model.pa.PARegressor": ("_calc_tau_0", "_calc_tau_1", "_calc_tau_2"),
    "river.preprocessing.random_projection.GaussianRandomProjector": ("_rand_gauss",),
    "river.preprocessing.random_projection.SparseRandomProjector": ("_rand_weights_for_feature",),
    "river.preprocessing.scale_target.TargetMinMaxScaler": ("_scale", "_unscale"),
    "river.preprocessing.scale_target.TargetStandardScaler": ("_scale", "_unscale"),
    "river.stats.mean.Mean": ("clone",),
    "river.tree.splitter.qo_splitter.Slot": (
        "_update_estimator_univariate", "_update_estimator_multivariate",
    ),
}  # fmt: skip

# Containers and numbers. `functools.partial` and `copy.deepcopy` call only what this table let in.
# Never here: `getattr`, `eval`, `exec`, `open`, `__import__`, `type`, and what leads to them.
OTHERS = {
    *(("builtins", name) for name in ("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset")),
    *(("builtins", name) for name in ("int", "list", "object", "range", "set", "slice", "str", "tuple")),
    *(("collections", name) for name in ("Counter", "OrderedDict", "defaultdict", "deque")),
    *(("datetime", name) for name in ("date", "datetime", "timedelta")),
    ("adaptd.river_objects", "bound_method"),
    ("copy", "deepcopy"),
    ("functools", "partial"),
    ("random", "Random"),
    ("statistics", "NormalDist"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy.random._mt19937", "MT19937"),
    ("numpy.random._pcg64", "PCG64"),
    ("numpy.random._pickle", "__bit_generator_ctor"),
    ("numpy.random._pickle", "__generator_ctor"),
    ("numpy.random._pickle", "__randomstate_ctor"),
    ("numpy.random.bit_generator", "SeedSequence"),
}

VERSION = metadata.version("river")


class Category(str):
    """The text of a category's code ("c5"), with the code as its hash.

    Text hashes differ from process to process, and River's trees keep categories in sets: with plain text the
    order of a node's branches, and so a prediction, would depend on the process that learned it.
    """

    code: int

    def __new__(cls, code: int) -> "Category":
        self = super().__new__(cls, f"c{code}")
        self.code = code
        return self

    def __hash__(self) -> int:
        return self.code

    def __deepcopy__(self, memo: Any) -> "Category":
        return self


category = functools.cache(Category)


def bound_method(owner: Any, name: str) -> Any:
    """The method `name` of `owner`. Raises UnpicklingError for one that is not among METHODS."""
    cls = owner if inspect.isclass(owner) else type(owner)
    if name not in METHODS.get(f"{cls.__module__}.{cls.__qualname__}", ()):
        raise pickle.UnpicklingError(f"the method {name!r} of {cls.__name__} is not allowed")
    return getattr(owner, name)


class _Pickler(pickle.Pickler):
    """Writes what is equal with equal bytes, where a plain pickle does not.

    A text is written once and then referred to if it is the very same object: bytes would tell whether two
    equal names happen to be one object, which changes when a model is read back. And each distribution of
    `river.proba` holds a generator seeded by the clock, for `sample`, which no estimator calls on one that
    was not given a seed: all of them get one fixed generator here, which also saves 2.5 KiB apiece.
    """

    unused = random.Random(0)

    def persistent_id(self, obj: Any) -> Any:
        if type(obj) is str:
            return sys.intern(obj)
        return obj.code if type(obj) is Category else None

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, types.MethodType):
            return bound_method, (obj.__self__, obj.__func__.__name__)
        if not isinstance(obj, proba.base.Distribution) or getattr(obj, "seed", 0) is not None:
            return NotImplemented
        parts = list(obj.__reduce_ex__(5))
        if isinstance(parts[2], dict) and "_rng" in parts[2]:
            parts[2] = {**parts[2], "_rng": self.unused}
        return tuple(parts)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in OTHERS or (module, name) in FUNCTIONS:
            return super().find_class(module, name)
        package = module.split(".")[1] if module.startswith("river.") else ""
        if package in PACKAGES and "." not in name:
            found = super().find_class(module, name)
            # What a River module has imported from elsewhere can be reached through it: not allowed.
            if inspect.isclass(found) and str(found.__module__).split(".")[0] == "river":
                return found
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")

    def persistent_load(self, pid: Any) -> Any:
        if type(pid) is int and 0 <= pid < 2**53:
            return category(pid)
        if type(pid) is not str:
            raise pickle.UnpicklingError("a persistent id must be text or a category's code")
        return sys.intern(pid)


def dumps(thing: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=5).dump(thing)
    return buffer.getvalue()


def loads(data: bytes) -> Any:
    """Read back what `dumps` wrote. Raises CheckpointError for anything else."""
    try:
        return _Unpickler(io.BytesIO(data)).load()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # bytes that are no pickle raise anything; a Rust panic is no Exception
        raise CheckpointError(
            "a River object's pickle must hold only River's classes and plain values;"
            f" got {str(error)[:200]!r}."
            " Use an earlier checkpoint, or remove this learner's part to start it fresh."
        ) from None


def packed(thing: Any) -> State:
    """State that holds `thing`, with the version of River that can read it back."""
    return {"river": VERSION, "pickle": dumps(thing)}


def unpacked(state: State) -> Any:
    """What `packed` was given. Raises CheckpointError when another River wrote it."""
    if state["river"] != VERSION:
        raise CheckpointError(
            f"the River version of a checkpoint must be the installed one, {VERSION}; got {state['river']!r}."
            f" Install river=={state['river']}, or remove this learner's part to start it fresh."
        )
    return loads(state["pickle"])


def build(table: dict[str, Any], place: str, seed: int, faults: list[str]) -> Any:
    """The object that `table` describes, every seed left open set from `seed`; None when there are faults.

    `place` is where the table stands, with its dot (`pipeline[0].`), and starts each fault.
    """
    before = len(faults)
    for key in table.keys() - {"estimator", "options", "arguments"}:
        faults.append(
            f"{place}{key} must be one of arguments, estimator, options; got {key!r}."
            " Remove or correct the key."
        )
    options, arguments = table.get("options", {}), table.get("arguments", [])
    if not isinstance(options, dict):
        faults.append(f"{place}options must be a table; got {_shown(options)}. Write it as {{key = value}}.")
    if not isinstance(arguments, list | tuple):
        faults.append(f"{place}arguments must be a list; got {_shown(arguments)}. Write it in [ ].")
    found = _find(table.get("estimator"), f"{place}estimator", faults)
    if len(faults) > before:
        return None
    parameters = inspect.signature(found).parameters
    named = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    values = {}
    for key, value in options.items():
        if key not in named and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            known = f"one of {', '.join(named)}" if named else "left out: there are no options"
            faults.append(
                f"{place}options.{key} must be {known}; got {key!r}.{_hint(key, named)}"
                " Correct or remove the key."
            )
        else:
            values[key] = _value(value, f"{place}options.{key}", seed, faults)
    positional = [_value(a, f"{place}arguments[{i}]", seed, faults) for i, a in enumerate(arguments)]
    if "seed" in named and values.get("seed") is None:
        values["seed"] = _derived(seed, place)
    if len(faults) > before:
        return None
    try:
        return _seeded(found(*positional, **values), seed, place)
    except Exception as error:  # a constructor may raise anything
        detail = f"{type(error).__name__}: {error}"[:200]
        faults.append(
            f"{place}options must be what {table['estimator']} accepts; got {_shown(options)} ({detail})."
            " See River's documentation of that class."
        )
        return None


def _value(value: Any, place: str, seed: int, faults: list[str]) -> Any:
    if isinstance(value, dict) and "estimator" in value:
        return build(value, f"{place}.", seed, faults)
    if isinstance(value, dict):
        return {key: _value(each, f"{place}.{key}", seed, faults) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_value(each, f"{place}[{i}]", seed, faults) for i, each in enumerate(value)]
    return value


def _find(name: Any, place: str, faults: list[str]) -> Any:
    """The class of River with this dotted name, or None and a fault."""
    rule = f"{place} must be the dotted name of a class of River, such as river.tree.HoeffdingTreeClassifier"
    help_ = "River's documentation lists them."
    parts = name.split(".") if isinstance(name, str) else []
    if len(parts) < 3 or parts[0] != "river" or not all(p.isidentifier() and p[0] != "_" for p in parts):
        faults.append(f"{rule}; got {_shown(name)}. {help_}")
        return None
    known = sorted(package for package in PACKAGES if not package.startswith("_"))
    if parts[1] not in known:
        hint = _hint(".".join(parts[:2]), [f"river.{package}" for package in known])
        faults.append(f"{rule}; got {_shown(name)}.{hint} {help_}")
        return None
    owner: Any = importlib.import_module(f"river.{parts[1]}")
    for part in parts[2:-1]:
        is_package = hasattr(owner, "__path__") and part in {
            m.name for m in pkgutil.iter_modules(owner.__path__)
        }
        owner = importlib.import_module(f"{owner.__name__}.{part}") if is_package else None
        if owner is None:
            break
    found: Any = getattr(owner, parts[-1], None)
    is_class = inspect.isclass(found) and not inspect.isabstract(found)
    if is_class and found.__module__.startswith("river.") and issubclass(found, base.Base):
        return found
    prefix = ".".join(parts[:-1])
    classes = [f"{prefix}.{n}" for n, thing in vars(owner).items() if inspect.isclass(thing)] if owner else []
    faults.append(f"{rule}; got {_shown(name)}.{_hint(name, classes)} {help_}")
    return None


def _seeded(thing: Any, seed: int, place: str) -> Any:
    """`thing`, or a clone of it in which parameters that River itself has put in have a seed too."""
    changes: dict[str, Any] = {}
    for name in inspect.signature(type(thing)).parameters:
        part = getattr(thing, name, None)
        if name == "seed" and part is None and hasattr(thing, "seed"):
            changes[name] = _derived(seed, place)
        elif isinstance(part, base.Base):
            with_seed = _seeded(part, seed, f"{place}{name}.")
            if with_seed is not part:
                changes[name] = with_seed
    return thing.clone(changes) if changes else thing


def _derived(seed: int, place: str) -> int:
    """A seed for the parameter at `place`: below 2**31, what NumPy's older generators take."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{place}".encode()).digest()[:4], "big") >> 1


def _hint(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _shown(value: Any) -> str:
    return repr(value)[:200]
