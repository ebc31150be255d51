"""Any drift detector of River, by its dotted name and options.

How: each value goes to `update`; detectors of yes-or-no signals (`river.drift.binary`) get "value above
`threshold`". River's detectors also see falls: an alarm counts only when the fading mean of the last values
is above the mean since the last alarm. After DRIFT the detector is built anew.
Use it when: a method is wanted that adaptd has not (KSWIN, HDDM, FHDDM, DDM, EDDM).
Do not use it when: the signal has many thousand values a second: Python is called for each.
Cost: 1 to 50 microseconds a value; the state is a pickle, read back only by the same version of River.
Reference: River's documentation of each detector; the default is Frías-Blanco et al., "Online and
non-parametric drift detection methods based on Hoeffding's bounds" (2015).
"""

from typing import Annotated, Any

import msgspec
from river import base

from adaptd import river_objects
from adaptd.contracts import DRIFT, STABLE, WARNING, Bytes, Floats, State
from adaptd.errors import ConfigError

# Of the default, HDDMA, on a signal that is 1 in 20 of 100 rows: most false alarms in a million rows, and the
# rows within which a step to 40 of 100 is found (measured: 20 alarms; half of the steps in 103, all in 327).
FALSE_ALARMS_PER_MILLION = 40
DELAY_ROWS = 500


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    detector: str = "river.drift.binary.HDDMA"
    """Dotted name."""
    options: dict[str, Any] = {}
    """The constructor's arguments."""
    threshold: float = 0.5
    """A detector of yes-or-no signals takes values above this as "wrong"."""
    recent_rows: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 50
    """Rows over which the fading mean runs that tells a rise from a fall."""


def build(config: Config) -> "RiverDetector":
    """Raises ConfigError with all faults of the name and the options."""
    faults: list[str] = []
    detector = river_objects.build({"estimator": config.detector, "options": config.options}, "", 0, faults)
    if not faults and not isinstance(detector, base.DriftDetector | base.BinaryDriftDetector):
        faults.append(
            f"detector must be a drift detector; got {config.detector!r}. Choose one of river.drift or"
            " river.drift.binary."
        )
    if faults:
        raise ConfigError([fault.replace("estimator must", "detector must", 1) for fault in faults])
    return RiverDetector(config, detector)


class RiverDetector:
    def __init__(self, config: Config, detector: Any) -> None:
        self._config = config
        self._fresh = detector
        self._detector = detector.clone()
        # Values since the last alarm, their mean, and the fading mean of the last ones.
        self._count = 0
        self._mean = 0.0
        self._recent = 0.0
        self._change_rows = 0

    def step(self, values: Floats, levels: Bytes) -> None:
        for i, value in enumerate(values.tolist()):
            levels[i] = self._update(value)

    def change_rows(self) -> int:
        return self._change_rows

    def state(self) -> State:
        counts = [self._count, self._mean, self._recent, self._change_rows]
        return {"counts": counts, **river_objects.packed(self._detector)}

    def load_state(self, state: State) -> None:
        self._detector = river_objects.unpacked(state)
        self._count, self._mean, self._recent, self._change_rows = state["counts"]

    def _update(self, value: float) -> int:
        # One value that is no number would stay in a detector's sums for ever.
        if value != value:
            return STABLE
        if isinstance(self._detector, base.BinaryDriftDetector):
            self._detector.update(value > self._config.threshold)
        else:
            self._detector.update(value)
        self._count += 1
        self._mean += (value - self._mean) / self._count
        self._recent += (value - self._recent) / min(self._count, self._config.recent_rows)
        rises = self._recent > self._mean
        if self._detector.drift_detected:
            # Detectors with an adaptive window know how many of their values came after the change.
            width = int(getattr(self._detector, "width", 0))
            self._count = 0
            self._mean = self._recent = 0.0
            if not rises:
                return STABLE
            self._change_rows = width
            self._detector = self._fresh.clone()
            return DRIFT
        if rises and getattr(self._detector, "warning_detected", False):
            self._change_rows = 0
            return WARNING
        return STABLE
