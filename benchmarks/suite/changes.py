"""What a system does after known changes: rows to recover, detection delay, false alarms.

*Rows to recover*: the losses of all changes (of all seeds) are laid over each other, row r after the change;
their mean, smoothed over the last rows before r, has recovered at the first r at which it is no more than a
tolerance above a level. The level is the mean loss in the last part of the same stretches: the system's own
(did it come back to what it can do?), or a given one (when did it reach what another ends with?). The
tolerance is 0.03 in accuracy; of an absolute error a tenth of the level. A gradual change is counted from
its middle. What has not recovered within the stretch counts as the stretch.

*Detection delay*: rows from a change to the first alarm after it, within a quarter of the stretch and 2,000
rows. *False alarms*: all other alarms, per million rows outside of these spans; repeated ones within are not
counted.
"""

import dataclasses
import math

import numpy as np

TOLERANCE = 0.03
TOLERANCE_OF_ERROR = 0.1
STEADY_SHARE = 0.3
# The smoothing is as long as it takes to average about this many losses, within bounds.
SMOOTHED_LOSSES = 1000
SMOOTHED_ROWS = (50, 300)
# Sooner nothing is said to have recovered: the mean of fewer rows is chance.
ROWS_MIN = 20
DELAY_ROWS_MAX = 2000


def stretches(points: list[int], rows: int) -> list[tuple[int, int]]:
    """First and last row (exclusive) of each stretch that begins with a change."""
    return list(zip(points, [*points, rows][1:], strict=True))


def laid_over(losses: np.ndarray, points: list[int]) -> np.ndarray:
    """[changes, rows]: the losses after each change, as long as the shortest whole stretch.

    A last stretch that the end of the stream cut to less than half of the others is left out.
    """
    spans = stretches(points, len(losses))
    if not spans:
        return np.zeros((0, 0))
    longest = max(stop - start for start, stop in spans)
    spans = [(start, stop) for start, stop in spans if stop - start >= longest / 2]
    length = min(stop - start for start, stop in spans)
    return np.array([losses[start : start + length] for start, _ in spans])


def steady(losses: np.ndarray) -> float:
    """The mean loss in the last part of stretches [changes, rows]."""
    return float(np.nanmean(losses[:, int(losses.shape[1] * (1 - STEADY_SHARE)) :]))


def smoothed(losses: np.ndarray) -> np.ndarray:
    """[rows]: the mean over the changes and over the last rows before each, none before the change."""
    width = int(np.clip(SMOOTHED_LOSSES // max(1, len(losses)), *SMOOTHED_ROWS))
    sums = np.concatenate([[0.0], np.cumsum(np.nan_to_num(losses.mean(axis=0)))])
    ends = np.arange(1, losses.shape[1] + 1)
    begins = np.maximum(0, ends - width)
    return (sums[ends] - sums[begins]) / (ends - begins)


def rows_to_recover(losses: np.ndarray, level: float, is_error: bool = False) -> int:
    """losses [changes, rows] after each change; `level`: the mean loss to come back to."""
    bound = level * (1 + TOLERANCE_OF_ERROR) if is_error else level + TOLERANCE
    found = np.flatnonzero(smoothed(losses)[ROWS_MIN - 1 :] <= bound)
    return int(found[0]) + ROWS_MIN if len(found) else losses.shape[1]


def with_error(groups: list[np.ndarray], level: float | None, is_error: bool = False) -> tuple[float, float]:
    """Rows to recover over all changes of several seeds, and the jackknife's standard error over seeds.

    groups: [changes, rows] a seed; level None: the system's own.
    """

    def of(chosen: list[np.ndarray]) -> float:
        together = np.concatenate(chosen)
        return rows_to_recover(together, steady(together) if level is None else level, is_error)

    n = len(groups)
    if n < 2:
        return of(groups), math.nan
    left_out = np.array([of(groups[:k] + groups[k + 1 :]) for k in range(n)])
    spread = float(((left_out - left_out.mean()) ** 2).sum())
    return of(groups), math.sqrt((n - 1) / n * spread)


@dataclasses.dataclass
class Alarms:
    """How the alarms of one stream, or of several, meet its changes."""

    changes: int = 0
    found: int = 0
    delay_rows: int = 0
    """Sum over those found."""
    false: int = 0
    quiet_rows: int = 0
    """Rows where an alarm is a false one."""

    def __add__(self, other: "Alarms") -> "Alarms":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Alarms(*(mine + others for mine, others in pairs))

    @property
    def delay(self) -> float:
        return self.delay_rows / self.found if self.found else math.nan

    @property
    def false_per_million(self) -> float:
        return 1e6 * self.false / self.quiet_rows if self.quiet_rows else math.nan


def alarms(found: list[int], points: list[int], rows: int) -> Alarms:
    """found: rows (from 0) of the alarms, in order."""
    result = Alarms(changes=len(points), quiet_rows=rows)
    within: set[int] = set()
    for start, stop in stretches(points, rows):
        end = min(stop, start + min(DELAY_ROWS_MAX, (stop - start) // 4))
        hits = [row for row in found if start <= row < end]
        within.update(hits)
        result.quiet_rows -= end - start
        if hits:
            result.found += 1
            result.delay_rows += hits[0] - start
    result.false = sum(row not in within for row in found)
    return result


def adwin(losses: np.ndarray) -> list[int]:
    """Rows at which River's ADWIN (delta 0.002) sees a loss in [0, 1] go up: a yardstick for alarms."""
    from river import drift

    detector, found = drift.ADWIN(), []
    for row, loss in enumerate(losses.tolist()):
        before = detector.estimation
        detector.update(loss)
        if detector.drift_detected and detector.estimation > before:
            found.append(row)
    return found
