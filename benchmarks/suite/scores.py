"""Prequential scores of a whole stream, the same for every system.

A row on which nothing was said is wrong in accuracy and left out of log loss and error means. Kappa compares
with chance by the same class counts, kappa temporal with saying the last label again: below 0 a system is
worse than knowing nothing. The log loss is clipped at 1e-15; a system that says 0 of a class that then comes
pays 34.5 for it. The calibration error has 15 bins.
"""

import math

import numpy as np

from benchmarks.suite.said import Said

CLASS_SCORES = ("accuracy", "kappa", "kappa_temporal", "log_loss", "calibration_error")
NUMBER_SCORES = ("mae", "rmse")
# The first score of each task is the one that systems are ranked by.
LOWER_IS_BETTER = {"log_loss", "calibration_error", "mae", "rmse"}
BINS = 15


def losses(said: Said) -> np.ndarray:
    """[rows]: 1 where the class was wrong, or the absolute error."""
    if said.is_classes:
        return (said.predicted != said.truth).astype(float)
    return np.abs(said.predicted - said.truth)


def scores(said: Said) -> dict[str, float]:
    """All scores of the task by name; NaN for what cannot be told."""
    if not said.is_classes:
        error = losses(said)
        error = error[~np.isnan(error)]
        with np.errstate(over="ignore"):
            return {"mae": mean(error), "rmse": math.sqrt(mean(error**2))}
    hit = said.predicted == said.truth
    accuracy = float(hit.mean())
    n, k = len(hit), int(max(said.truth.max(), said.predicted.max())) + 1
    predicted = np.bincount(said.predicted[said.predicted >= 0].astype(int), minlength=k) / n
    actual = np.bincount(said.truth.astype(int), minlength=k) / n
    same_again = float((said.truth[1:] == said.truth[:-1]).sum()) / n
    known = ~np.isnan(said.of_true)
    return {
        "accuracy": accuracy,
        "kappa": beyond(accuracy, float((predicted * actual).sum())),
        "kappa_temporal": beyond(accuracy, same_again),
        "log_loss": mean(-np.log(np.maximum(said.of_true[known].astype(float), 1e-15))),
        "calibration_error": calibration_error(said.confidence, hit),
    }


def mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


def beyond(accuracy: float, by_chance: float) -> float:
    return (accuracy - by_chance) / (1 - by_chance) if by_chance < 1 else math.nan


def calibration_error(confidence: np.ndarray, hit: np.ndarray) -> float:
    """Mean distance between what was claimed and how often it came true."""
    known = ~np.isnan(confidence)
    if not known.any():
        return math.nan
    confidence, hit = confidence[known].astype(float), hit[known]
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gap = np.bincount(place, confidence, BINS) - np.bincount(place, hit, BINS)
    return float(np.abs(gap).sum()) / len(hit)
