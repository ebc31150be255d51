"""What a system said of each row: enough for every score, and nothing that depends on whose it is."""

import pathlib

import numpy as np


class Said:
    """Arrays over the rows of a stream; -1 and NaN where nothing was said.

    Classification: `predicted` [rows] the class code; `of_true` [rows] the probability of the true class;
    `confidence` [rows] that of the predicted one. Regression: `predicted` [rows] the number.
    """

    def __init__(self, truth: np.ndarray, task: str) -> None:
        rows = len(truth)
        self.truth = truth
        self.is_classes = task == "classification"
        self.predicted = np.full(rows, -1.0 if self.is_classes else np.nan)
        self.of_true = np.full(rows, np.nan, np.float32)
        self.confidence = np.full(rows, np.nan, np.float32)

    def probabilities(self, start: int, values: np.ndarray, places: np.ndarray | None = None) -> None:
        """values [n, k]: probabilities, a row of NaN for nothing said; places [k]: their class codes."""
        width = values.shape[1]
        answered = np.flatnonzero(~np.isnan(values).any(axis=1)) if width else np.zeros(0, int)
        if not len(answered):
            return
        codes = np.arange(width) if places is None else places[:width]
        values, rows = values[answered], start + answered
        best = values.argmax(axis=1)
        self.predicted[rows] = codes[best]
        self.confidence[rows] = values[np.arange(len(rows)), best]
        place_of = np.full(int(max(codes.max(), self.truth[rows].max())) + 1, -1)
        place_of[codes] = np.arange(width)
        places_true = place_of[self.truth[rows].astype(int)]
        # A class that was not known yet has no probability.
        self.of_true[rows] = np.where(places_true >= 0, values[np.arange(len(rows)), places_true], 0.0)

    def numbers(self, start: int, values: np.ndarray) -> None:
        self.predicted[start : start + len(values)] = values

    def save(self, path: pathlib.Path) -> None:
        kind = np.int16 if self.is_classes else np.float64
        np.savez_compressed(
            path, predicted=self.predicted.astype(kind), of_true=self.of_true, confidence=self.confidence
        )


def load(path: pathlib.Path, truth: np.ndarray, task: str) -> Said:
    said = Said(truth, task)
    with np.load(path) as kept:
        said.predicted = kept["predicted"].astype(float)
        said.of_true, said.confidence = kept["of_true"], kept["confidence"]
    return said
