"""Mean ranks over streams with the tests of Demšar (JMLR 2006): Friedman's, then Nemenyi's distance.

Seeds of one generated stream are averaged first: they are no streams of their own. Streams of one generator
resemble each other too, so the test says more than it knows.
"""

import dataclasses
import math

import numpy as np
from scipy import stats


@dataclasses.dataclass
class Ranks:
    """Mean ranks, 1 the best."""

    systems: list[str]
    streams: list[str]
    means: list[float]
    p_value: float
    """Friedman: how likely such ranks are when all are alike; NaN for fewer than three systems or streams."""
    distance: float
    """Nemenyi's critical distance at 0.05: mean ranks nearer than this may be chance."""


def ranks(scores: dict[str, dict[str, float]], lower_is_better: bool) -> Ranks:
    """scores: system -> stream -> score. A system that lacks a stream which another has is left out."""
    streams = sorted({stream for of in scores.values() for stream in of})
    systems = [
        name for name, of in scores.items() if all(math.isfinite(of.get(s, math.nan)) for s in streams)
    ]
    if not systems or not streams:
        return Ranks(systems, streams, [], math.nan, math.nan)
    sign = 1 if lower_is_better else -1
    table = np.array([[sign * round(scores[name][stream], 6) for name in systems] for stream in streams])
    placed = stats.rankdata(table, axis=1)
    n, k = placed.shape
    p_value = math.nan
    if k > 2 and n > 2:
        p_value = float(stats.friedmanchisquare(*table.T).pvalue)
    distance = math.nan
    if k > 1 and n > 1:
        q = stats.studentized_range.ppf(0.95, k, np.inf) / math.sqrt(2)
        distance = float(q * math.sqrt(k * (k + 1) / (6 * n)))
    order = np.argsort(placed.mean(axis=0), kind="stable")
    means = placed.mean(axis=0)
    return Ranks([systems[i] for i in order], streams, [float(means[i]) for i in order], p_value, distance)


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean and standard error over seeds; NaN for the error of one."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.nan
    return mean, float(np.std(values, ddof=1) / math.sqrt(len(values)))
