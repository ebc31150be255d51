"""Prequential scores: every learner and the blend, judged on each labelled row before it is learned.

Cumulative (the whole stream) and fading (factor 0.999 a row; Gama, Sebastião, Rodrigues 2013), in one
compiled walk over a block's labelled rows.
"""

import math
from typing import Any

import numpy as np

from adaptd.contracts import Bytes, Floats, Layout, State
from adaptd.kernels.scoring import (
    ABSOLUTE,
    AUC_BINS,
    CORRECT,
    ECE_BINS,
    FADE_HIT,
    FADE_LOSS,
    FADE_SCORED,
    FADE_WEIGHT,
    GROWTH,
    LOSS,
    N_SUMS,
    ROWS,
    SCORED,
    SQUARE,
    score_classes,
    score_numbers,
)
from adaptd.numerics import enlarged, pack, unpack


class Scores:
    """Scores of n learners and, last, of the blend."""

    EACH = ("sums", "hits", "predicted", "actual", "auc", "ece", "gaps")
    """Arrays with one entry a learner, and the blend's."""
    STATE = (*EACH, "target")

    def __init__(self, layout: Layout, n_scored: int) -> None:
        self.layout = layout
        self.sums = np.zeros((n_scored, N_SUMS))
        width = layout.width
        self.hits = np.zeros((n_scored, width))
        self.predicted = np.zeros((n_scored, width))
        self.actual = np.zeros((n_scored, width))
        # Two-class streams only: how often each probability of class 1 met each class.
        self.auc = np.zeros((n_scored, 2, AUC_BINS))
        # Per bin of the top probability: rows, sum of probabilities, hits.
        self.ece = np.zeros((n_scored, ECE_BINS, 3))
        # The same of the recent rows, the sum of probabilities less hits only.
        self.gaps = np.zeros((n_scored, ECE_BINS))
        # Rows, mean and sum of squared differences of the target.
        self.target = np.zeros(3)

    def step(self, predictions: Floats, blend: Floats, y: Floats, op: Bytes, signal: Floats) -> None:
        """Score the labelled rows; `signal` [n] gets the error of the blend: 1 if wrong, or its size."""
        if self.layout.task == "classification":
            score_classes(
                predictions, blend, y, op, self.sums, self.hits, self.predicted, self.actual, self.auc,
                self.ece, self.gaps, signal,
            )  # fmt: skip
        else:
            score_numbers(predictions, blend, y, op, self.sums, self.target, signal)

    def grow(self, layout: Layout) -> None:
        self.layout = layout
        shape = (len(self.sums), layout.width)
        for name in ("hits", "predicted", "actual"):
            setattr(self, name, enlarged(getattr(self, name), shape))

    def reset_learner(self, index: int) -> None:
        """The learner at `index` was built anew: it is judged anew."""
        for name in self.EACH:
            getattr(self, name)[index] = 0.0

    def add_learner(self) -> None:
        """One more learner, before the blend."""
        for name in self.EACH:
            old = getattr(self, name)
            setattr(self, name, np.insert(old, len(old) - 1, 0.0, axis=0))

    def fading(self, index: int) -> dict[str, float]:
        """Scores of the recent past: accuracy, log_loss and calibration_error, or mae and rmse."""
        sums = self.sums[index].tolist()
        weight, scored = sums[FADE_WEIGHT] or math.nan, sums[FADE_SCORED] or math.nan
        if self.layout.task == "classification":
            gap = float(np.abs(self.gaps[index]).sum()) / (sums[GROWTH] or math.nan)
            return {
                "accuracy": sums[FADE_HIT] / weight,
                "log_loss": sums[FADE_LOSS] / scored,
                "calibration_error": gap / scored,
            }
        return {"mae": sums[FADE_LOSS] / scored, "rmse": math.sqrt(sums[FADE_HIT] / scored)}

    def cumulative(self, index: int) -> dict[str, Any]:
        """Scores of the whole stream; None for what cannot be told."""
        sums = self.sums[index].tolist()
        rows, scored = sums[ROWS], sums[SCORED]
        if self.layout.task == "regression":
            spread = float(self.target[2] / self.target[0]) if self.target[0] else 0.0
            mean_square = ratio(sums[SQUARE], scored)
            return {
                "mae": ratio(sums[ABSOLUTE], scored),
                "rmse": None if mean_square is None else math.sqrt(mean_square),
                "r2": None if mean_square is None else one_minus(ratio(mean_square, spread)),
            }
        accuracy = ratio(sums[CORRECT], rows)
        by_chance = float((self.predicted[index] * self.actual[index]).sum()) / rows**2 if rows else 0.0
        present = self.actual[index] + self.predicted[index] > 0
        f1 = 2 * self.hits[index][present] / (self.actual[index] + self.predicted[index])[present]
        bins = self.ece[index]
        used = bins[:, 0] > 0
        gap = np.abs(bins[used, 1] - bins[used, 2]).sum()
        result = {
            "accuracy": accuracy,
            "kappa": None if accuracy is None or by_chance >= 1 else (accuracy - by_chance) / (1 - by_chance),
            "log_loss": ratio(sums[LOSS], scored),
            "macro_f1": float(f1.mean()) if len(f1) else None,
            "calibration_error": ratio(float(gap), float(bins[:, 0].sum())),
        }
        if self.layout.n_classes == 2:
            negative, positive = self.auc[index]
            pairs = negative.sum() * positive.sum()
            below = np.concatenate([[0.0], np.cumsum(negative)[:-1]])
            wins = float((positive * (below + 0.5 * negative)).sum())
            result["auc"] = ratio(wins, float(pairs))
        return result

    def state(self) -> State:
        return pack(self, self.STATE)

    def load_state(self, state: State, places: list[int] | None = None) -> None:
        """places: for each learner of a changed pool its place in the saved one, -1 for a new one."""
        unpack(self, self.STATE, state)
        if places is not None:
            for name in self.EACH:
                chosen = getattr(self, name)[[*places, -1]]
                chosen[:-1][[place < 0 for place in places]] = 0.0
                setattr(self, name, np.ascontiguousarray(chosen))


def ratio(part: float, whole: float) -> float | None:
    """part / whole as a float, None when there is no whole or the numbers left the range of float64."""
    result = float(part / whole) if whole else math.nan
    return result if math.isfinite(result) else None


def one_minus(share: float | None) -> float | None:
    return None if share is None else 1.0 - share
