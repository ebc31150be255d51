"""Bets against the mean staying where it was (e-SR), confirmed by an ADWIN, with another one for WARNING.

How: evidence for a rise as in `kernels/e_sr.py`; beside it two windows see each value (`kernels/adwin.py`).
DRIFT when the evidence passes `threshold` and the window at `delta` was cut upwards within the last 500
values: two tests that err on different stretches. A cut at `warning_delta` after which the mean is higher is
a WARNING. The change is placed where the sum of (value - mean - margin) was least (Page 1954); what is left
of a window after a cut reaches four to seven times too far back (measured). All starts anew after DRIFT, and
for `cooldown` values after the start and after each DRIFT all is STABLE: one drift gives one alarm.

Use it when: false alarms are dear and a drift must still be seen soon. Do not use it when: rises of less than
`margin` matter; `adwin` finds them in the end.

Cost: about 150 ns a value; 7 KiB.

Reference: Shin, Ramdas, Rinaldo, "E-detectors" (arXiv:2203.03532); Page, "Continuous inspection schemes"
(Biometrika 41, 1954). Why two tests, and what was measured: docs/decisions/0005-drift-detection.md.
"""

from typing import Annotated

import msgspec
import numpy as np

from adaptd.contracts import DRIFT, STABLE, WARNING, Bytes, Floats, State
from adaptd.kernels.adwin import ADWIN_SIZE, adwin_add, adwin_clear
from adaptd.kernels.compile import kernel
from adaptd.kernels.e_sr import E_SR_SIZE, MEAN, e_sr_add
from adaptd.numerics import pack, unpack

# What `tests/test_detector_contract.py` holds it to; a step of the error rate from 0.2 to 0.4.
FALSE_ALARMS_PER_MILLION = 10.0
DELAY_ROWS = 300
# A cut confirms evidence for so many values.
CONFIRMING = 500.0


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    threshold: Annotated[float, msgspec.Meta(gt=1, le=1e12)] = 1e4
    """Evidence that means DRIFT; without drift about the values between two alarms, or more."""
    margin: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.02
    """Rise of the mean that is ignored."""
    grace: Annotated[int, msgspec.Meta(ge=2, le=1_000_000)] = 200
    """Values after the start, and after a DRIFT, that only go into the mean."""
    delta: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.02
    """Confidence of the window that must confirm a DRIFT; smaller: fewer false alarms, later."""
    warning_delta: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.05
    """Confidence of a WARNING; smaller: fewer, later."""
    cooldown: Annotated[int, msgspec.Meta(ge=0)] = 500
    """Values after the start and after each DRIFT in which no alarm is given."""


def build(config: Config) -> "ESr":
    return ESr(config)


class ESr:
    """`evidence`: of `kernels/e_sr.py`. `windows`: that confirms a DRIFT, that gives a WARNING."""

    _STATE = ("evidence", "windows", "counts")

    def __init__(self, config: Config) -> None:
        self.config = config
        self.evidence = np.zeros(E_SR_SIZE)
        self.windows = np.zeros((2, ADWIN_SIZE))
        self.counts = np.zeros(COUNTS)

    def step(self, values: Floats, levels: Bytes) -> None:
        c = self.config
        watch(
            values, levels, self.evidence, self.windows, self.counts, c.threshold, c.margin, c.grace,
            c.delta, c.warning_delta, c.cooldown,
        )  # fmt: skip

    def change_rows(self) -> int:
        return int(self.counts[CHANGE_ROWS])

    def state(self) -> State:
        return pack(self, self._STATE)

    def load_state(self, state: State) -> None:
        unpack(self, self._STATE, state)


# Values since the start or the last DRIFT, since the first window was last cut upwards; the sum of what lies
# above the bound, its least value, values since that; what `change_rows` answers.
SEEN, SINCE_CUT, SUM, LEAST, SINCE_LEAST, CHANGE_ROWS, COUNTS = range(7)


@kernel("void(f8[::1], u1[::1], f8[::1], f8[:,::1], f8[::1], f8, f8, i8, f8, f8, i8)")
def watch(
    values, levels, evidence, windows, counts, threshold, margin, grace, delta, warning_delta, cooldown
):
    for i in range(values.shape[0]):
        levels[i] = STABLE
        # A value that is no number would stay in all sums for ever.
        if not np.isfinite(values[i]):
            continue
        above = values[i] - evidence[MEAN] - margin
        found = e_sr_add(evidence, values[i], margin, grace)
        counts[SINCE_CUT] = 0.0 if adwin_add(windows[0], values[i], delta) > 0 else counts[SINCE_CUT] + 1.0
        warning = adwin_add(windows[1], values[i], warning_delta)
        counts[SEEN] += 1.0
        counts[SUM] += above
        counts[SINCE_LEAST] += 1.0
        if counts[SUM] <= counts[LEAST]:
            counts[LEAST] = counts[SUM]
            counts[SINCE_LEAST] = 0.0
        if counts[SEEN] <= cooldown:
            continue
        if found > threshold and counts[SINCE_CUT] < min(CONFIRMING, counts[SEEN]):
            levels[i] = DRIFT
            change_rows = counts[SINCE_LEAST]
            evidence[:] = 0.0
            counts[:] = 0.0
            adwin_clear(windows[0])
            adwin_clear(windows[1])
            counts[CHANGE_ROWS] = change_rows
        elif warning > 0:
            levels[i] = WARNING
            counts[CHANGE_ROWS] = counts[SINCE_LEAST]
