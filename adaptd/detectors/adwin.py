"""ADWIN on one signal: an adaptive window for DRIFT, a more nervous one beside it for WARNING.

How: `kernels/adwin.py`. Two windows see each value, one cut at `delta`, one at `warning_delta`. A cut after
which the mean is *higher* raises the level; a fall is an improvement and only shortens the window. Both
start anew after DRIFT. For `cooldown` values after the start and after each DRIFT all is STABLE: one drift
gives one alarm.

Use it when the size of a change and the place where it happened are wanted: what is left of the window after
a cut is `change_rows()`. Do not use it when a drift must be seen within some tens of values: it checks every
32, and small changes take hundreds.

Cost: about 50 ns a value; 7 KiB.

Reference: A. Bifet, R. Gavalda, "Learning from time-changing data with adaptive windowing", SDM 2007.
"""

from typing import Annotated

import msgspec
import numpy as np

from adaptd.contracts import DRIFT, STABLE, WARNING, Bytes, Floats, State
from adaptd.kernels.adwin import ADWIN_SIZE, WIDTH, adwin_add, adwin_clear
from adaptd.kernels.compile import kernel
from adaptd.numerics import pack, unpack

# What `tests/test_detector_contract.py` holds it to; a step of the error rate from 0.2 to 0.4.
FALSE_ALARMS_PER_MILLION = 10.0
DELAY_ROWS = 300


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    delta: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.002
    """Confidence of a DRIFT; smaller: fewer false alarms, later."""
    warning_delta: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.05
    """Confidence of a WARNING."""
    cooldown: Annotated[int, msgspec.Meta(ge=0)] = 500
    """Values after the start and after each DRIFT in which no alarm is given."""


def build(config: Config) -> "Adwin":
    return Adwin(config)


class Adwin:
    def __init__(self, config: Config) -> None:
        self.config = config
        self.windows = np.zeros((2, ADWIN_SIZE))
        # Values since the start or the last DRIFT, and the surviving width of the last alarm.
        self.counts = np.zeros(2, dtype=np.int64)

    def step(self, values: Floats, levels: Bytes) -> None:
        c = self.config
        watch(values, levels, self.windows, self.counts, c.delta, c.warning_delta, c.cooldown)

    def change_rows(self) -> int:
        return int(self.counts[1])

    def state(self) -> State:
        return pack(self, ("windows", "counts"))

    def load_state(self, state: State) -> None:
        unpack(self, ("windows", "counts"), state)


@kernel("void(f8[::1], u1[::1], f8[:,::1], i8[::1], f8, f8, i8)")
def watch(values, levels, windows, counts, delta, warning_delta, cooldown):
    for i in range(values.shape[0]):
        levels[i] = STABLE
        # A value that is no number would stay in the window's sums for ever.
        if not np.isfinite(values[i]):
            continue
        drift = adwin_add(windows[0], values[i], delta)
        warning = adwin_add(windows[1], values[i], warning_delta)
        counts[0] += 1
        if counts[0] <= cooldown:
            continue
        if drift > 0:
            levels[i] = DRIFT
            counts[0] = 0
            counts[1] = int(windows[0, WIDTH])
            adwin_clear(windows[0])
            adwin_clear(windows[1])
        elif warning > 0:
            levels[i] = WARNING
            counts[1] = int(windows[1, WIDTH])
