"""Any classifier, regressor or pipeline of River, by its dotted name and options.

How: row by row, as River does it: a dict `{"f0": 0.3, "f2": "c5"}` of the values that are not missing goes to
`predict_proba_one` (or `predict_one`) and `learn_one`. Labels are class codes.

    kind = "river"
    pipeline = [
        {estimator = "river.preprocessing.StandardScaler"},
        {estimator = "river.linear_model.LogisticRegression", options = {l2 = 0.001}},
    ]

Use it when: River has a method that adaptd has not, or a model tuned in River is to go on in service.
Do not use it when: a compiled kind does the same: one row costs a hundred to a thousand times more.
Cost: Python's: about 30,000 rows a second for a linear model, 500 for a forest of 10. State is a pickle, read
back only by the same version of River (see `river_objects`); its size is measured now and then.
Reference: Montiel et al., "River: machine learning for streaming data in Python", JMLR 22 (2021).
"""

import inspect
import math
from typing import Any, Literal

import msgspec
import numpy as np
from river import base, compose, optim

from adaptd import river_objects
from adaptd.contracts import CATEGORY, LEARN, PREDICT, Bytes, Floats, Layout, State, Vitals
from adaptd.errors import ConfigError

TASKS = ("classification", "regression")
# Tests with very many rows take fewer.
COMPILED = False

DEFAULTS: dict[str, dict[str, Any]] = {
    "classification": {"estimator": "river.tree.HoeffdingAdaptiveTreeClassifier"},
    # River's own default, linear models in the leaves, takes no text and diverges on unscaled features; and
    # it splits only after many hundred rows.
    "regression": {
        "estimator": "river.tree.HoeffdingAdaptiveTreeRegressor",
        "options": {
            "leaf_prediction": "mean",
            "grace_period": 50,
            "delta": 0.05,
            "bootstrap_sampling": False,
        },
    },
}


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    estimator: str = ""
    """Dotted name; empty (and no pipeline): River's Hoeffding adaptive tree for the task."""
    options: dict[str, Any] = {}
    """The constructor's arguments. A value may be a table {estimator = ..., options = {...}} itself."""
    pipeline: list[dict[str, Any]] = []
    """Steps, each a table {estimator = ..., options = {...}}, instead of `estimator`."""
    categories: Literal["text", "one_hot"] = "text"
    """A category goes in as the text "c5", which trees understand; or as one number 1.0 named "f2=5", for
    models that calculate with every value."""


def tasks(config: Config) -> tuple[str, ...]:
    """A classifier serves classification only, a regressor regression."""
    table = {"estimator": config.estimator, "options": config.options}
    if config.pipeline:
        table = config.pipeline[-1]
    elif not config.estimator:
        return TASKS
    model = river_objects.build(table, "", 0, [])
    served = [
        task
        for task, kind in (("classification", base.Classifier), ("regression", base.Regressor))
        if isinstance(model, kind)
    ]
    # What is neither, or cannot be built, gets its fault from `build`.
    return tuple(served) or TASKS


def build(config: Config, layout: Layout, seed: int) -> "RiverLearner":
    """Raises ConfigError with all faults of the name and the options."""
    faults: list[str] = []
    if config.pipeline and (config.estimator or config.options):
        faults.append(
            "pipeline must be given alone; got estimator or options beside it."
            " Make the estimator the pipeline's last step."
        )
    model = None
    if config.pipeline:
        parts = [
            river_objects.build(step, f"pipeline[{i}].", seed, faults)
            for i, step in enumerate(config.pipeline)
        ]
        if not faults:
            model = compose.Pipeline(*parts)
        last, place = parts[-1], f"pipeline[{len(parts) - 1}].estimator"
    else:
        table = DEFAULTS[layout.task]
        if config.estimator or config.options:
            table = {"estimator": config.estimator or table["estimator"], "options": config.options}
        model = river_objects.build(table, "", seed, faults)
        last, place = model, "estimator"
    wanted = base.Classifier if layout.task == "classification" else base.Regressor
    if last is not None and not isinstance(last, wanted | compose.Pipeline):
        faults.append(
            f"{place} must be a {wanted.__name__.lower()} for the task {layout.task};"
            f" got {type(last).__name__!r}. Choose one, or set the task."
        )
    if faults or model is None:
        raise ConfigError(faults)
    return RiverLearner(config, layout, model)


class RiverLearner:
    def __init__(self, config: Config, layout: Layout, model: Any) -> None:
        self.rate_scale = 1.0
        self._config = config
        self._model = model
        self._learned = 0
        self._state_bytes = 0
        self._measure_at = 0
        self.grow(layout)

    def step(self, x: Floats, y: Floats, op: Bytes, weight: Floats, out: Floats) -> None:
        done = 0
        try:
            for i in range(len(op)):
                done = i
                row = self._row(x[i])
                if op[i] & PREDICT:
                    self._predict(row, out[i])
                if op[i] & LEARN and weight[i] > 0:
                    self._learn(row, float(y[i]), float(weight[i]))
        except Exception:
            # Whoever sets this learner aside finds it asleep from the failing row on.
            failed = op[done:] & PREDICT != 0
            out[done:][failed] = np.nan
            raise

    def grow(self, layout: Layout) -> None:
        self._layout = layout
        self._names = [f"f{j}" for j in range(layout.n_features)]
        self._is_category = [kind == CATEGORY for kind in layout.kinds]

    def state(self) -> State:
        packed = river_objects.packed(self._model)
        return {"rate_scale": self.rate_scale, "learned": self._learned, **packed}

    def load_state(self, state: State) -> None:
        self._model = river_objects.unpacked(state)
        self.rate_scale = state["rate_scale"]
        self._learned = state["learned"]
        self._measure_at = 0

    def vitals(self) -> Vitals:
        # Pickling a forest takes longer than hundreds of rows: only when the model may have grown by a fifth.
        if self._learned >= self._measure_at:
            self._state_bytes = len(river_objects.dumps(self._model))
            self._measure_at = self._learned + max(256, self._learned // 5)
        rates = self._schedulers()
        if not rates:
            return Vitals(state_bytes=self._state_bytes)
        owner, name = rates[0]
        rate = float(getattr(owner, name).get(owner.n_iterations)) * self.rate_scale
        return Vitals(learning_rate=rate, state_bytes=self._state_bytes)

    def _row(self, values: Floats) -> dict[str, Any]:
        row: dict[str, Any] = {}
        one_hot = self._config.categories == "one_hot"
        for name, is_category, value in zip(self._names, self._is_category, values.tolist(), strict=True):
            if value != value:
                continue
            if not is_category:
                row[name] = value
            elif one_hot:
                row[f"{name}={int(value)}"] = 1.0
            else:
                row[name] = river_objects.category(int(value))
        return row

    def _predict(self, row: dict[str, Any], out: Floats) -> None:
        out[:] = np.nan
        if self._learned == 0:
            return
        if self._layout.task == "regression":
            value = self._model.predict_one(row)
            out[0] = value if value is not None and math.isfinite(value) else np.nan
            return
        try:
            shares = self._model.predict_proba_one(row)
        except NotImplementedError:
            label = self._model.predict_one(row)
            shares = {} if label is None else {label: 1.0}
        # A binary model speaks of False and True, which are the codes 0 and 1 as keys.
        known = [float(shares.get(c, 0.0) or 0.0) for c in range(out.size)]
        total = sum(known)
        if total > 0 and math.isfinite(total) and min(known) >= 0:
            out[:] = known
            out /= total

    def _learn(self, row: dict[str, Any], target: float, weight: float) -> None:
        last = self._last()
        label: float | int = target
        if self._layout.task == "classification":
            label = int(target)
            if label > 1 and not last._multiclass:
                raise ValueError(
                    f"{type(last).__name__} knows two classes and got the third."
                    " Put it into river.multiclass.OneVsRestClassifier."
                )
        rates = self._schedulers()
        if rates and self.rate_scale == 0.0:
            return
        extra = {"w": weight} if weight != 1.0 and "w" in inspect.signature(last.learn_one).parameters else {}
        if self.rate_scale == 1.0 or not rates:
            self._model.learn_one(row, label, **extra)
        else:
            own = [getattr(owner, name) for owner, name in rates]
            try:
                for (owner, name), scheduler in zip(rates, own, strict=True):
                    rate = scheduler.get(rates[0][0].n_iterations) * self.rate_scale
                    setattr(owner, name, optim.schedulers.Constant(rate))
                self._model.learn_one(row, label, **extra)
            finally:
                for (owner, name), scheduler in zip(rates, own, strict=True):
                    setattr(owner, name, scheduler)
        self._learned += 1

    def _last(self) -> Any:
        """The model, or the last step of a pipeline."""
        model = self._model
        while isinstance(model, compose.Pipeline):
            model = list(model.steps.values())[-1]
        return model

    def _schedulers(self) -> list[tuple[Any, str]]:
        """Where the last step keeps its learning rates: its optimizer's first, then its intercept's."""
        last = self._last()
        optimizer = getattr(last, "optimizer", None)
        if not isinstance(getattr(optimizer, "lr", None), optim.base.Scheduler):
            return []
        places = [(optimizer, "lr")]
        if isinstance(getattr(last, "intercept_lr", None), optim.base.Scheduler):
            places.append((last, "intercept_lr"))
        return places
