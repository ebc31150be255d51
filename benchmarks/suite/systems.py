"""The systems that are compared, by name: whose they are, with which options, for which task.

Options are the libraries' own defaults but for the size of an ensemble (10) and the seed; River's linear
models stand behind its StandardScaler. adaptd is its default configuration on every stream.
"""

import dataclasses
from typing import Any

BOTH = ("classification", "regression")
CLASSES = ("classification",)
NUMBERS = ("regression",)


@dataclasses.dataclass(frozen=True)
class System:
    """One system."""

    name: str
    runner: str
    """The module of this folder that runs it."""
    options: dict[str, Any]
    tasks: tuple[str, ...] = BOTH


def adaptd(name: str, *assignments: str) -> System:
    """adaptd under its default configuration with `--set` assignments on top."""
    return System(name, "run_adaptd", {"set": list(assignments)})


SYSTEMS = {
    system.name: system
    for system in (
        adaptd("adaptd"),
        adaptd("adaptd-no-lags", "pool.lagged_labels=false"),
        System("no-change", "run_baselines", {"kind": "no_change"}),
        System("majority", "run_baselines", {"kind": "majority"}, CLASSES),
        System("mean", "run_baselines", {"kind": "mean"}, NUMBERS),
        System("river-linear", "run_river", {"kind": "linear"}),
        System("river-hat", "run_river", {"kind": "hat"}),
        System("river-arf10", "run_river", {"kind": "arf10"}),
        System("capymoa-hat", "run_capymoa", {"kind": "HoeffdingAdaptiveTree"}, CLASSES),
        System("capymoa-knn", "run_capymoa", {"kind": "KNN"}, CLASSES),
        System("capymoa-samknn", "run_capymoa", {"kind": "SAMkNN"}, CLASSES),
        System("capymoa-lb10", "run_capymoa", {"kind": "LeveragingBagging", "ensemble_size": 10}, CLASSES),
        System(
            "capymoa-arf10",
            "run_capymoa",
            {"kind": "AdaptiveRandomForestClassifier", "ensemble_size": 10},
            CLASSES,
        ),
        System(
            "capymoa-srp10", "run_capymoa", {"kind": "StreamingRandomPatches", "ensemble_size": 10}, CLASSES
        ),
        System("capymoa-knn-numbers", "run_capymoa", {"kind": "KNNRegressor"}, NUMBERS),
        System("capymoa-fimtdd", "run_capymoa", {"kind": "FIMTDD"}, NUMBERS),
        System("capymoa-soknl10", "run_capymoa", {"kind": "SOKNL", "ensemble_size": 10}, NUMBERS),
        System(
            "capymoa-arf10-numbers",
            "run_capymoa",
            {"kind": "AdaptiveRandomForestRegressor", "ensemble_size": 10},
            NUMBERS,
        ),
        System("vw-default", "run_vowpal", {"arguments": ""}),
        System("vw-quad", "run_vowpal", {"arguments": "-q ::"}),
        System("vw-coin", "run_vowpal", {"arguments": "--coin"}),
    )
}
QUICK = (
    "adaptd", "adaptd-no-lags", "no-change", "majority", "mean", "river-linear", "capymoa-samknn",
    "capymoa-arf10", "capymoa-knn-numbers", "capymoa-arf10-numbers", "vw-quad", "vw-coin",
)  # fmt: skip
# Without these a table says little.
ALWAYS = ("no-change", "majority", "mean")
