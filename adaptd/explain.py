"""Why a prediction is what it is: what each learner brings to it, where somebody wants to know."""

import numpy as np
import numpy.typing as npt

from adaptd.contracts import Bytes, Controller, Floats
from adaptd.kernels.explaining import LEAST_PROBABILITY


def blend(
    controller: Controller,
    wanted: bool,
    predictions: Floats,
    y: Floats,
    op: Bytes,
    weight: Floats,
    out: Floats,
) -> Floats | None:
    """The controller's step; gives `parts` of `contracts.Explaining`, None when nobody wants them."""
    if not wanted or not hasattr(controller, "step_explained"):
        controller.step(predictions, y, op, weight, out)
        return None
    parts = np.full((len(op), len(predictions) + 1), np.nan)
    controller.step_explained(predictions, y, op, weight, out, parts)
    return parts


def credit(parts: Floats | None, rows: npt.NDArray[np.bool_], learner: int, said: Floats, task: str) -> None:
    """All of the `rows` of `parts` is owed to one learner, who said `said` [rows, width] by itself."""
    if parts is None:
        return
    whole = said[:, 0] if task == "regression" else log_odds(said)
    parts[rows] = 0.0
    parts[rows, learner] = whole


def log_odds(said: Floats) -> Floats:
    """[n]: of the predicted class against the next one; 0 as long as there is only one."""
    if said.shape[1] < 2:
        return np.zeros(len(said))
    first, second = two_greatest(said)
    logs = np.log(np.maximum(said, LEAST_PROBABILITY))
    rows = np.arange(len(said))
    result: Floats = logs[rows, first] - logs[rows, second]
    return result


def two_greatest(said: Floats) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """[n] each: the predicted class and the next one, of at least two; the lower code among equals."""
    first = said.argmax(axis=1)
    others = said.copy()
    others[np.arange(len(said)), first] = -1.0
    return first, others.argmax(axis=1)
