"""Looks for drift: at the blend's losses where rows have labels, at inputs and predictions where they have
none.

Labelled rows: a detector (`[drift] kind`) on each of the blend's signals: its error and its log loss, scaled
and cut to [0, 1]; for regression its scaled absolute error. The first to say DRIFT ends the regime for all,
so one drift gives one alarm.

Rows without a label: `kernels/unlabelled.py`. What is found there is told and resets nothing: that the inputs
have moved says little about P(y given x), and that P(y given x) has moved cannot be seen without labels at
all.
"""

import math

import numpy as np
import numpy.typing as npt

from adaptd import config as configuration
from adaptd import events
from adaptd.contracts import (
    CATEGORY,
    DRIFT,
    LEARN,
    PREDICT,
    STABLE,
    WARNING,
    Bytes,
    Detector,
    Floats,
    Layout,
    State,
)
from adaptd.kernels import unlabelled
from adaptd.kernels.e_sr import E_SR_SIZE
from adaptd.kernels.signals import SCALE, SCALE_SIZE, class_signals, scaled_errors
from adaptd.kernels.unlabelled import watch_inputs, watch_predictions
from adaptd.numerics import enlarged, pack, unpack

SIGNALS = {
    "classification": ("blend_error", "blend_log_loss"),
    "regression": ("blend_absolute_error",),
}
COUNTED = {
    events.WarningRaised: "warnings",
    events.DriftDetected: "drifts",
    events.CovariateShiftDetected: "covariate_shifts",
    events.UnlabelledDriftSuspected: "unlabelled_drifts",
}
"""Which count of a lane an event moves."""

# Found: (place in the block, event), so that what several watchers find is told in the rows' order.
Found = list[tuple[int, events.Decision]]


class Watch:
    """All that looks for drift in a lane."""

    def __init__(self, config: configuration.Config, layout: Layout) -> None:
        self.config = config
        self.layout = layout
        self.is_enabled = bool(config.drift.get("enabled", True))
        self.names = SIGNALS[layout.task]
        self.detectors = self.built()
        self.scale = np.zeros(SCALE_SIZE) if layout.task == "regression" else None
        """Of the errors, see `kernels/signals.py`; None where they need none."""
        self.unlabelled = Unlabelled(layout) if config.drift.get("unlabelled", True) else None
        self.level = STABLE
        self.drifted = False
        """Whether there was a DRIFT since the last control point."""
        self.since_change = 0
        """Labelled rows since the estimated change point of the last WARNING or DRIFT; 0: unknown."""

    def built(self) -> list[Detector]:
        """The configured detector as new, one for each signal."""
        module, options = configuration.built("detectors", self.config.drift, configuration.DRIFT_KEYS)
        return [module.build(options) for _ in self.names]

    def change_rows(self) -> int:
        """Labelled rows since the estimated change point of the last WARNING or DRIFT; 0 when unknown."""
        return self.since_change

    def step(
        self, x: Floats, predictions: Floats, blend: Floats, y: Floats, op: Bytes, signal: Floats,
        labelled: npt.NDArray[np.intp], learned: int, names: list[str],
    ) -> list[events.Decision]:  # fmt: skip
        """Walk a block; what was found, in the rows' order.

        signal: [n], regression: the size of the blend's error, where `labelled` says. learned: labelled rows
        before the block. names: of the features.
        """
        if not self.is_enabled:
            return []
        found: Found = []
        if len(labelled):
            values = np.empty((len(self.names), len(labelled)))
            if self.layout.task == "classification":
                class_signals(blend, y, op, values)
            else:
                values[0] = signal[labelled]
            found += self.follow(values, labelled, learned)
        if self.unlabelled is not None:
            found += self.unlabelled.step(x, predictions, blend, y, op, learned, names)
        found.sort(key=lambda pair: pair[0])
        return [event for _, event in found]

    def follow(self, values: Floats, labelled: npt.NDArray[np.intp], learned: int) -> Found:
        """The detectors take `values` [signals, labelled rows]; each change of level is found."""
        found: Found = []
        at, n = 0, values.shape[1]
        while at < n:
            seen, is_rescaled = values[:, at:], False
            if self.scale is not None:
                seen, is_rescaled = self.scaled(seen, self.scale)
            part, rows, has_drifted = self.until_drift(seen, labelled[at:], learned + at)
            found += part
            at += rows
            if has_drifted and self.scale is not None:
                self.scale[:] = 0.0
            # A drift ends the regime for every signal; what is seen on another scale cannot be compared.
            if has_drifted or is_rescaled:
                self.detectors = self.built()
        return found

    def scaled(self, errors: Floats, scale: Floats) -> tuple[Floats, bool]:
        """`errors` [1, n] in units of `scale`, up to where that changes; whether it did."""
        seen, before = np.empty(errors.shape), scale[SCALE]
        taken = scaled_errors(errors[0], scale, seen[0])
        return seen[:, :taken], before > 0.0 and scale[SCALE] != before

    def until_drift(
        self, values: Floats, labelled: npt.NDArray[np.intp], learned: int
    ) -> tuple[Found, int, bool]:
        """What is found in `values` up to the first DRIFT; the rows up to there; whether there was one."""
        levels = np.zeros(values.shape, np.uint8)
        for k, detector in enumerate(self.detectors):
            detector.step(values[k], levels[k])
        drifts = np.flatnonzero((levels == DRIFT).any(axis=0))
        n = int(drifts[0]) + 1 if len(drifts) else values.shape[1]
        self.since_change += n if self.since_change else 0
        if self.level == STABLE and not levels.any():
            return [], n, False
        levels = levels[:, :n]
        highest = levels.max(axis=0)
        found: Found = []
        before = np.concatenate([[self.level], highest[:-1]])
        for i in np.flatnonzero(highest != before).tolist():
            level = int(highest[i])
            if level == STABLE:
                continue
            alarmed = int(levels[:, i].argmax())
            about = {
                "row": learned + i + 1,
                "detector": self.config.drift["kind"],
                "signal": self.names[alarmed],
            }
            change_rows = self.detectors[alarmed].change_rows()
            self.since_change = change_rows + n - 1 - i if change_rows else 0
            if level == WARNING:
                found.append((int(labelled[i]), events.WarningRaised(**about)))
            else:
                self.drifted = True
                event = events.DriftDetected(**about, change_rows=change_rows)
                found.append((int(labelled[i]), event))
        self.level = int(highest[-1])
        return found, n, len(drifts) > 0

    def expected_accuracy(self) -> dict[str, float]:
        """Fading means, NaN before there is one: of all predicted rows, and of those whose label has come."""
        sums = [0.0] * unlabelled.N_SUMS if self.unlabelled is None else self.unlabelled.sums.tolist()
        weight, paired = sums[unlabelled.EXPECTED_WEIGHT], sums[unlabelled.PAIRED_WEIGHT]
        return {
            "predicted": sums[unlabelled.EXPECTED] / weight if weight else math.nan,
            "labelled": sums[unlabelled.PAIRED] / paired if paired else math.nan,
        }

    def expected_accuracy_overall(self) -> float | None:
        """The mean over all predicted rows; None when there is none."""
        if self.unlabelled is None or not self.unlabelled.sums[unlabelled.EXPECTED_ROWS]:
            return None
        sums = self.unlabelled.sums
        return float(sums[unlabelled.EXPECTED_ALL] / sums[unlabelled.EXPECTED_ROWS])

    def grow(self, layout: Layout) -> None:
        self.layout = layout
        if self.unlabelled is not None:
            self.unlabelled.grow(layout)

    def state(self) -> State:
        return {
            "of": self.config.drift,
            "level": self.level,
            "drifted": self.drifted,
            "since_change": self.since_change,
            "detectors": [detector.state() for detector in self.detectors],
            "scale": None if self.scale is None else self.scale.copy(),
            "unlabelled": None if self.unlabelled is None else self.unlabelled.state(),
        }

    def load_state(self, state: State) -> bool:
        """Go on from `state`; False when it is of another configuration and all starts fresh."""
        if state["of"] != self.config.drift:
            return False
        self.level, self.drifted = state["level"], state["drifted"]
        self.since_change = state["since_change"]
        for detector, saved in zip(self.detectors, state["detectors"], strict=True):
            detector.load_state(saved)
        if self.scale is not None:
            self.scale = state["scale"].copy()
        if self.unlabelled is not None:
            self.unlabelled.load_state(state["unlabelled"])
        return True


# Evidence, for each thing that is watched, that is told; its margin; rows that only go into the means; rows
# from the start and from one alarm to the next; predicted rows between two looks at the inputs.
THRESHOLD = 1e4
MARGIN = 0.02
GRACE = 200
COOLDOWN = 500
INPUT_GRACE = 250
INPUT_COOLDOWN = 2_000
CHECK_ROWS = 64
FEATURES_NAMED_MAX = 10
UNLABELLED_SIGNALS = ("uncertainty", "disagreement")


class Unlabelled:
    """Watches what needs no label: inputs, the blend's confidence, the learners' disagreement."""

    _STATE = ("detectors", "bins", "sums", "inputs", "counts", "moved", "clock")

    def __init__(self, layout: Layout) -> None:
        self.detectors = np.zeros((2, E_SR_SIZE))
        self.bins = np.zeros((unlabelled.CONFIDENCE_BINS, 2))
        self.sums = np.zeros(unlabelled.N_SUMS)
        # Until rows come without a label, they are taken to come with one.
        self.sums[unlabelled.LABELLED_SHARE] = 1.0
        self.inputs = np.zeros((0, unlabelled.INPUT_SIZE))
        self.counts = np.zeros((0, 2, unlabelled.BUCKETS))
        self.moved = np.zeros(0, np.uint8)
        self.clock = np.array([0, 0, INPUT_COOLDOWN])
        self.grow(layout)

    def grow(self, layout: Layout) -> None:
        self.is_regression = layout.task == "regression"
        n = min(layout.n_features, unlabelled.FEATURES_MAX)
        self.capacities = np.array(
            [
                cap if kind == CATEGORY else 0
                for kind, cap in zip(layout.kinds, layout.capacities, strict=True)
            ],
            np.int64,
        )[:n]
        self.inputs = enlarged(self.inputs, (n, unlabelled.INPUT_SIZE))
        self.counts = enlarged(self.counts, (n, 2, unlabelled.BUCKETS))
        self.moved = enlarged(self.moved, (n,))

    def step(
        self,
        x: Floats,
        predictions: Floats,
        blend: Floats,
        y: Floats,
        op: Bytes,
        learned: int,
        names: list[str],
    ) -> Found:
        """As `Watch.step`."""
        n, before = len(self.inputs), int(self.clock[0])
        moved = np.zeros((len(op) // CHECK_ROWS + 1, n), np.uint8)
        has_moved = watch_inputs(
            x, op, self.capacities, self.inputs, self.counts, self.moved, self.clock,
            2.0 * max(n, 1) * THRESHOLD, MARGIN, INPUT_GRACE, INPUT_COOLDOWN, CHECK_ROWS, moved,
        )  # fmt: skip
        alarms = np.zeros((len(op), 3))
        has_alarmed = blend.shape[1] > 0 and watch_predictions(
            predictions, blend, y, op, self.is_regression, self.detectors, self.bins, self.sums,
            THRESHOLD, MARGIN, GRACE, COOLDOWN, alarms,
        )  # fmt: skip
        if not has_moved and not has_alarmed:
            return []
        asked = np.flatnonzero(op & PREDICT)
        learned_at = learned + np.cumsum((op & LEARN) != 0)
        found: Found = []
        for check in np.flatnonzero(moved.any(axis=1)).tolist():
            at = int(asked[(check + 1) * CHECK_ROWS - before % CHECK_ROWS - 1])
            features = [names[j] for j in np.flatnonzero(moved[check]).tolist()]
            event = events.CovariateShiftDetected(
                row=int(learned_at[at]),
                predicted_rows=before + int(np.searchsorted(asked, at)) + 1,
                features=features[:FEATURES_NAMED_MAX],
            )
            found.append((at, event))
        for at in np.flatnonzero(alarms[:, :2].any(axis=1)).tolist():
            possible = events.UnlabelledDriftSuspected(
                row=int(learned_at[at]),
                predicted_rows=before + int(np.searchsorted(asked, at)) + 1,
                signals=[
                    name for name, is_one in zip(UNLABELLED_SIGNALS, alarms[at], strict=False) if is_one
                ],
                expected_accuracy=float(alarms[at, 2]),
            )
            found.append((at, possible))
        return found

    def state(self) -> State:
        return pack(self, self._STATE)

    def load_state(self, state: State) -> None:
        unpack(self, self._STATE, state)
