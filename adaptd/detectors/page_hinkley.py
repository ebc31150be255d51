"""Sums up how far values lie above their mean, and alarms when the sum has risen enough.

How: with mean and sd of all values since the start or the last DRIFT, sd at least `sd_min`,

    sum += (value - mean) / sd - delta
    WARNING when sum - min(sum) > warning_threshold, DRIFT when it is > threshold

In the first `grace` values every level is STABLE. The change point is where the sum was least. Dividing by
the sd makes one setting fit error rates and scaled absolute errors alike.

Use it when: changes of any speed must be found at next to no cost and false alarms are dear.
Do not use it when: changes too small for `delta` matter, or the level creeps upwards all the time (`adwin`).
Cost: 30 ns a value; 64 bytes.
Reference: Page, "Continuous inspection schemes" (Biometrika 41, 1954); Hinkley (Biometrika 58, 1971).
"""

import math
from typing import Annotated

import msgspec
import numpy as np

from adaptd.contracts import DRIFT, STABLE, WARNING, Bytes, Floats, State
from adaptd.kernels.compile import kernel
from adaptd.numerics import pack, unpack

# What the defaults keep to, where 20 of 100 values are 1: held by `tests/test_detector_contract.py`.
FALSE_ALARMS_PER_MILLION = 10.0
DELAY_ROWS = 300

Positive = Annotated[float, msgspec.Meta(gt=0.0)]


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    delta: Annotated[float, msgspec.Meta(ge=0.0, le=10.0)] = 0.125
    """Rise of the mean that is ignored, in standard deviations."""
    threshold: Positive = 50.0
    """Sum that means DRIFT, in standard deviations."""
    warning_threshold: Positive = 25.0
    """Sum that means WARNING."""
    grace: Annotated[int, msgspec.Meta(ge=2, le=1_000_000)] = 100
    """Values after the start, and after a DRIFT, in which nothing is said: a mean must be known first."""
    sd_min: Positive = 0.2
    """Least standard deviation to divide by: in a row of zeros a single 1 must not alarm."""


def build(config: Config) -> "PageHinkley":
    return PageHinkley(config)


class PageHinkley:
    """Scalars of the running sum, in one array."""

    def __init__(self, config: Config) -> None:
        self.config = config
        # Number of values, mean, sum of squared deviations, running sum, its least value, values since
        # that, and what `change_rows` answers.
        self.sums = np.zeros(7)

    def step(self, values: Floats, levels: Bytes) -> None:
        config = self.config
        _walk(
            values, levels, self.sums, config.delta, config.threshold, config.warning_threshold,
            config.grace, config.sd_min,
        )  # fmt: skip

    def change_rows(self) -> int:
        return int(self.sums[6])

    def state(self) -> State:
        return pack(self, ("sums",))

    def load_state(self, state: State) -> None:
        unpack(self, ("sums",), state)


@kernel("void(f8[::1], u1[::1], f8[::1], f8, f8, f8, i8, f8)")
def _walk(values, levels, sums, delta, threshold, warning_threshold, grace, sd_min):
    count, mean, squares, total, least, since_least, since_change = sums
    for i in range(values.shape[0]):
        levels[i] = STABLE
        value = values[i]
        if not math.isfinite(value):
            continue
        count += 1.0
        gap = value - mean
        mean += gap / count
        squares += gap * (value - mean)
        if count <= grace:
            continue
        sd = max(math.sqrt(squares / count), sd_min)
        total += (value - mean) / sd - delta
        since_least += 1.0
        if total <= least:
            least = total
            since_least = 0.0
        if total - least > threshold:
            levels[i] = DRIFT
        elif total - least > warning_threshold:
            levels[i] = WARNING
        if levels[i] != STABLE:
            since_change = since_least
        if levels[i] == DRIFT:
            count = 0.0
            mean = 0.0
            squares = 0.0
            total = 0.0
            least = 0.0
            since_least = 0.0
    sums[0] = count
    sums[1] = mean
    sums[2] = squares
    sums[3] = total
    sums[4] = least
    sums[5] = since_least
    sums[6] = since_change
