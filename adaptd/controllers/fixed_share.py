"""Blends the learners by their shares, which follow the best sequence of learners.

How: with loss[n] the log loss of learner n (regression: its error in units of the running error, cut off)

    out  = sum_n s[n] p[n]
    s[n] = s[n] exp(-learning_rate loss[n]) / sum            the Bayesian update when learning_rate is 1
    s[n] = (1 - share_rate) s[n] + share_rate / n_learners   so that nobody's share dies out

Sleeping learners keep their shares while the others' add up to what they added up to before.

Use it when: the weights must be easy to explain, or one learner is best for long stretches.
Do not use it when: learners complement each other; `stack` then has a much smaller loss.
Cost: 0.4 us a row for 10 learners and 2 classes; 8 learners x 6 bytes.
Guarantee: log loss at most ln(n) + k ln(n / share_rate) + rows x share_rate, roughly, above the best sequence
of learners with k changes, at learning_rate 1.
Reference: Herbster and Warmuth, "Tracking the best expert" (Machine Learning 32, 1998).
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from adaptd.contracts import LEARN, PREDICT, Bytes, Floats, Habits, Layout, State
from adaptd.kernels.compile import kernel
from adaptd.kernels.explaining import NOT_ASKED, log_mean, two_greatest
from adaptd.kernels.mixing import (
    WEIGHT_MAX,
    Title,
    all_finite,
    enter_evenly,
    gather_evidence,
    half_brier,
    new_seen,
    normalised,
    note_losses,
    note_scale,
    note_target,
    reach,
    restore_shares,
    reward,
    share_out,
    sized,
)
from adaptd.numerics import adopt, enlarged, habits, pack, unpack

# Held by `tests/test_controller_contract.py`, which says what is summed.
REGRET_MAX = 10.0


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    share_rate: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.01
    """Part of the shares that is dealt out anew each row; about how often the best learner changes."""
    learning_rate: Annotated[float, msgspec.Meta(gt=0.0, le=10.0)] = 1.0
    """Factor on the losses; smaller blends more and switches later."""
    floor: Annotated[float, msgspec.Meta(ge=1e-9, le=0.1)] = 0.001
    """Probability spread evenly over all classes in what each learner says: bounds the loss of a row."""
    loss: Literal["absolute", "squared"] = "absolute"
    """Regression: which error decides."""
    threshold: Annotated[float, msgspec.Meta(ge=1.0, le=1e12)] = 1e4
    """Evidence, for each challenger there is, that changes the champion; about the rows between changes
    when all are equally good."""
    dwell_rows: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 500
    """Labelled rows from one change of champion to the next, at least."""


def build(config: Config, layout: Layout, n_learners: int) -> "FixedShare":
    return FixedShare(config, layout, n_learners)


class FixedShare:
    """Shares [n_learners] and the bookkeeping for the title of champion."""

    def __init__(self, config: Config, layout: Layout, n_learners: int) -> None:
        self.config = config
        self.task = layout.task
        self.title = Title(n_learners, config.threshold, config.dwell_rows)
        self.shares = np.full(n_learners, 1.0 / n_learners)
        self.seen = new_seen()
        self.set_aside = np.zeros(n_learners, np.bool_)
        self.rows = np.zeros(1, np.int64)

    _names = ("shares", "seen", "set_aside", "rows")

    def step(self, predictions: Floats, y: Floats, op: Bytes, weight: Floats, out: Floats) -> None:
        self.step_explained(predictions, y, op, weight, out, NOT_ASKED)

    def step_explained(
        self, predictions: Floats, y: Floats, op: Bytes, weight: Floats, out: Floats, parts: Floats
    ) -> None:
        config, title = self.config, self.title
        if self.task == "classification":
            _walk_classes(
                predictions, y, op, weight, out, parts, config.share_rate, config.learning_rate, config.floor,
                self.shares, title.means, title.counts, title.evidence, title.champion, self.rows,
            )  # fmt: skip
        else:
            _walk_numbers(
                predictions, y, op, weight, out, parts, config.share_rate, config.learning_rate,
                config.loss == "squared", self.shares, self.seen, title.means, title.counts,
                title.evidence, title.champion, self.rows,
            )  # fmt: skip

    def review(self, awake: npt.NDArray[np.bool_]) -> None:
        self.set_aside = ~awake
        self.title.review(awake, int(self.rows[0]))

    def weights(self) -> Floats:
        return normalised(self.shares, self.set_aside)

    def champion(self) -> int:
        return self.title.champion

    def speaker(self) -> int:
        return -1

    def grow(self, layout: Layout) -> None:
        pass

    def reset_learner(self, index: int) -> None:
        enter_evenly(self.shares, index)
        self.title.reset_learner(index)

    def challenge(self, index: int, of: int, part: float) -> None:
        if part > 0.0:
            both = self.shares[index] + self.shares[of]
            self.shares[index], self.shares[of] = part * both, (1.0 - part) * both

    def replace_learner(self, index: int, by: int) -> None:
        self.shares[index] += self.shares[by]
        self.title.replace_learner(index, by)

    def add_learner(self) -> None:
        n = len(self.shares) + 1
        self.shares = enlarged(self.shares, (n,))
        self.set_aside = enlarged(self.set_aside, (n,))
        self.title.add_learner()

    def trust(self, n: int) -> State:
        return {"shares": self.shares[:n].copy()}

    def restore_trust(self, n: int, trust: State) -> None:
        restore_shares(self.shares, n, trust["shares"])

    def habits(self, n: int) -> tuple[list[Habits], Habits]:
        return habits({"shares": self.shares}, n), {}

    def adopt(self, learners: Sequence[Habits | None], blend: Habits) -> None:
        self.lean(learners, blend, 1.0)

    def lean(self, learners: Sequence[Habits | None], blend: Habits, part: float) -> None:
        adopt({"shares": self.shares}, learners, part)
        self.shares = normalised(np.maximum(self.shares, 0.0), self.set_aside)

    def state(self) -> State:
        return {**pack(self, self._names), "title": self.title.state()}

    def load_state(self, state: State) -> None:
        unpack(self, self._names, state)
        self.title.load_state(state["title"])


@kernel(
    "void(f8[:,:,::1], f8[::1], u1[::1], f8[::1], f8[:,::1], f8[:,::1], f8, f8, f8,"
    "f8[::1], f8[::1], f8[::1], f8[:,::1], i8, i8[::1])",
    allocates=True,
)
def _walk_classes(
    p,
    y,
    op,
    weight,
    out,
    parts,
    share_rate,
    learning_rate,
    floor,
    shares,
    means,
    counts,
    evidence,
    champion,
    rows,
):
    n_learners, n_rows, n_classes = p.shape
    awake = np.zeros(n_learners, np.bool_)
    losses = np.zeros(n_learners)
    bounded = np.zeros(n_learners)
    for i in range(n_rows):
        mass = 0.0
        for n in range(n_learners):
            awake[n] = all_finite(p[n], i)
            if awake[n]:
                mass += shares[n]
        if op[i] & PREDICT:
            for c in range(n_classes):
                out[i, c] = 0.0 if mass > 0.0 else np.nan
                for n in range(n_learners):
                    if awake[n]:
                        out[i, c] += shares[n] / mass * ((1.0 - floor) * p[n, i, c] + floor / n_classes)
            if parts.shape[0] > 0 and mass > 0.0:
                for n in range(n_learners + 1):
                    parts[i, n] = 0.0
                if n_classes > 1:
                    first, second = two_greatest(out[i])
                    unit = log_mean(out[i, first], out[i, second])
                    for n in range(n_learners):
                        if awake[n]:
                            gap = (1.0 - floor) * (p[n, i, first] - p[n, i, second])
                            parts[i, n] = shares[n] / mass * gap / unit
        if not op[i] & LEARN:
            continue
        rows[0] += 1
        gain = min(weight[i], WEIGHT_MAX)
        target = int(y[i])
        if not (mass > 0.0 and gain > 0.0 and 0 <= target < n_classes):
            continue
        for n in range(n_learners):
            if awake[n]:
                losses[n] = -math.log((1.0 - floor) * max(p[n, i, target], 0.0) + floor / n_classes)
                bounded[n] = half_brier(p[n], i, target)
        reward(shares, awake, losses, learning_rate * gain)
        share_out(shares, share_rate)
        note_losses(means, counts, awake, bounded)
        gather_evidence(evidence, champion, awake, bounded)


@kernel(
    "void(f8[:,:,::1], f8[::1], u1[::1], f8[::1], f8[:,::1], f8[:,::1], f8, f8, b1,"
    "f8[::1], f8[::1], f8[::1], f8[::1], f8[:,::1], i8, i8[::1])",
    allocates=True,
)
def _walk_numbers(
    p,
    y,
    op,
    weight,
    out,
    parts,
    share_rate,
    learning_rate,
    squared,
    shares,
    seen,
    means,
    counts,
    evidence,
    champion,
    rows,
):
    n_learners, n_rows, _ = p.shape
    awake = np.zeros(n_learners, np.bool_)
    inputs = np.zeros(n_learners)
    losses = np.zeros(n_learners)
    bounded = np.zeros(n_learners)
    for i in range(n_rows):
        low, high = reach(seen)
        mass = 0.0
        blend = 0.0
        for n in range(n_learners):
            awake[n] = math.isfinite(p[n, i, 0])
            if awake[n]:
                inputs[n] = min(max(p[n, i, 0], low), high)
                mass += shares[n]
                blend += shares[n] * inputs[n]
        if op[i] & PREDICT:
            out[i, 0] = blend / mass if mass > 0.0 else np.nan
            if parts.shape[0] > 0 and mass > 0.0:
                parts[i, n_learners] = 0.0
                for n in range(n_learners):
                    parts[i, n] = shares[n] / mass * inputs[n] if awake[n] else 0.0
        if not op[i] & LEARN:
            continue
        rows[0] += 1
        gain = min(weight[i], WEIGHT_MAX)
        if not (gain > 0.0 and math.isfinite(y[i])):
            continue
        if mass > 0.0:
            scale = seen[0] if seen[0] > 0.0 else 1.0
            for n in range(n_learners):
                if awake[n]:
                    error = (y[i] - inputs[n]) / scale
                    losses[n] = sized(error, squared)
                    bounded[n] = min(abs(error) / 4.0, 1.0)
            reward(shares, awake, losses, learning_rate * gain)
            share_out(shares, share_rate)
            note_losses(means, counts, awake, bounded)
            gather_evidence(evidence, champion, awake, bounded)
            note_scale(seen, abs(y[i] - blend / mass))
        note_target(seen, y[i])
