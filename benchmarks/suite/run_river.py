"""River, row by row on dicts. A missing value is a missing key; a category is its text, behind one-hot
columns for the linear model."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.suite.said import Said
from benchmarks.suite.streams import Stream


def version() -> str:
    import river

    return river.__version__


def build(kind: str, stream: Stream) -> Any:
    from river import compose, forest, linear_model, preprocessing, tree

    if kind == "linear":
        scaled = compose.SelectType(float) | preprocessing.StandardScaler()
        inputs: Any = scaled
        if stream.categories:
            inputs = scaled + (compose.SelectType(str) | preprocessing.OneHotEncoder())
        if stream.task == "regression":
            return inputs | linear_model.LinearRegression()
        binary = len(stream.classes) == 2
        return inputs | (linear_model.LogisticRegression() if binary else linear_model.SoftmaxRegression())
    if stream.task == "regression":
        models = {
            "hat": lambda: tree.HoeffdingAdaptiveTreeRegressor(seed=0),
            "arf10": lambda: forest.ARFRegressor(n_models=10, seed=0),
        }
    else:
        models = {
            "hat": lambda: tree.HoeffdingAdaptiveTreeClassifier(seed=0),
            "arf10": lambda: forest.ARFClassifier(n_models=10, seed=0),
        }
    return models[kind]()


def run(
    stream: Stream, options: dict[str, Any], said: Said, progress: Callable[[int], None]
) -> dict[str, Any]:
    model = build(options["kind"], stream)
    binary = len(stream.classes) == 2
    texts = [stream.categories.get(name) for name in stream.features]
    row = 0
    seconds = 0.0
    for x, y in stream.blocks():
        started = time.process_time()
        out = np.full((len(y), max(1, len(stream.classes))), np.nan)
        for i, (values, label) in enumerate(zip(x.tolist(), y.tolist(), strict=True)):
            features = {
                name: value if known is None else known[int(value)]
                for name, value, known in zip(stream.features, values, texts, strict=True)
                if value == value
            }
            if stream.task == "regression":
                out[i, 0] = model.predict_one(features)
                model.learn_one(features, label)
                continue
            # River's models for two classes take truth values, the others any label.
            target: Any = bool(label) if binary else int(label)
            chances = model.predict_proba_one(features)
            if chances:
                out[i] = 0.0
                for code, chance in chances.items():
                    out[i, int(code)] = chance
            model.learn_one(features, target)
        seconds += time.process_time() - started
        if stream.task == "regression":
            said.numbers(row, out[:, 0])
        else:
            said.probabilities(row, out)
        row += len(y)
        progress(row)
    return {"loop_seconds": seconds}
