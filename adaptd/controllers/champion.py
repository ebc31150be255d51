"""Lets one learner speak, and replaces it only on evidence that another is better.

How: with d[n] = loss of the champion - loss of challenger n, both in [0, 1] (1 for a wrong class, or half
the Brier score; regression: the absolute error in units of four running errors, cut off), for bets b of
0.05, 0.25, 0.5

    E[n,b] = (E[n,b] + 1)(1 + b d[n])       a Shiryaev-Roberts e-detector

At a control point the challenger with the greatest mean E takes over when that is above `threshold` times
the number of challengers and `dwell_rows` have passed. While the champion is the best of all, such a change
comes once in `threshold` rows on average, or less often, however the losses depend on each other; equal
learners do not flap. In the first `dwell_rows` rows the least loss decides. On rows where the champion is
asleep the learner with the least fading loss among those awake speaks for it.

Use it when: the output must be one learner's own words, or only one learner can be afforded downstream.
Do not use it when: a blend will do; `stack` then has less loss.
Cost: 0.3 us a row for 10 learners and 2 classes; 8 learners x 5 bytes.
Reference: Shin, Ramdas, Rinaldo, "E-detectors" (arXiv:2203.03532).
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from adaptd.contracts import LEARN, PREDICT, Bytes, Floats, Habits, Layout, State
from adaptd.kernels.compile import kernel, subkernel
from adaptd.kernels.explaining import NOT_ASKED, credit_alone
from adaptd.kernels.mixing import (
    Title,
    all_finite,
    gather_evidence,
    half_brier,
    is_wrong,
    new_seen,
    note_losses,
    note_scale,
    note_target,
)
from adaptd.numerics import pack, unpack

# Held by `tests/test_controller_contract.py`, which says what is summed.
REGRET_MAX = 90.0


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    loss: Literal["error", "brier"] = "error"
    """Classification: count wrong classes, or judge the probabilities."""
    threshold: Annotated[float, msgspec.Meta(ge=1.0, le=1e12)] = 1e4
    """Evidence, for each challenger there is, that changes the champion; about the rows between changes
    when all are equally good."""
    dwell_rows: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 500
    """Labelled rows from one change of champion to the next, at least."""


def build(config: Config, layout: Layout, n_learners: int) -> "Champion":
    return Champion(config, layout, n_learners)


class Champion:
    """The title of champion and what speaks for each challenger."""

    def __init__(self, config: Config, layout: Layout, n_learners: int) -> None:
        self.classes = layout.task == "classification"
        self.brier = config.loss == "brier"
        self.title = Title(n_learners, config.threshold, config.dwell_rows)
        self.seen = new_seen()
        self.rows = np.zeros(1, np.int64)

    _names = ("seen", "rows")

    def step(self, predictions: Floats, y: Floats, op: Bytes, weight: Floats, out: Floats) -> None:
        self.step_explained(predictions, y, op, weight, out, NOT_ASKED)

    def step_explained(
        self, predictions: Floats, y: Floats, op: Bytes, weight: Floats, out: Floats, parts: Floats
    ) -> None:
        title = self.title
        _walk(
            predictions, y, op, weight, out, parts, self.classes, self.brier, title.means, title.counts,
            title.evidence, title.champion, self.seen, self.rows,
        )  # fmt: skip

    def review(self, awake: npt.NDArray[np.bool_]) -> None:
        self.title.review(awake, int(self.rows[0]))

    def weights(self) -> Floats:
        weights = np.zeros(len(self.title.means))
        weights[self.title.champion] = 1.0
        return weights

    def champion(self) -> int:
        return self.title.champion

    def speaker(self) -> int:
        return self.title.champion

    def grow(self, layout: Layout) -> None:
        pass

    def reset_learner(self, index: int) -> None:
        self.title.reset_learner(index)

    def challenge(self, index: int, of: int, part: float) -> None:
        pass

    def replace_learner(self, index: int, by: int) -> None:
        self.title.replace_learner(index, by)

    def add_learner(self) -> None:
        self.title.add_learner()

    def trust(self, n: int) -> State:
        return {}

    def restore_trust(self, n: int, trust: State) -> None:
        pass

    def habits(self, n: int) -> tuple[list[Habits], Habits]:
        return [{} for _ in range(n)], {}

    def adopt(self, learners: Sequence[Habits | None], blend: Habits) -> None:
        pass

    def lean(self, learners: Sequence[Habits | None], blend: Habits, part: float) -> None:
        pass

    def state(self) -> State:
        return {**pack(self, self._names), "title": self.title.state()}

    def load_state(self, state: State) -> None:
        unpack(self, self._names, state)
        self.title.load_state(state["title"])


@subkernel
def _speaks(champion, awake, means, counts):
    """The champion, or who stands in for it; -1 when all are asleep."""
    if awake[champion]:
        return champion
    best = -1
    for n in range(awake.shape[0]):
        if awake[n] and (best < 0 or (counts[n] > 0.0 and (counts[best] == 0.0 or means[n] < means[best]))):
            best = n
    return best


@kernel(
    "void(f8[:,:,::1], f8[::1], u1[::1], f8[::1], f8[:,::1], f8[:,::1], b1, b1,"
    "f8[::1], f8[::1], f8[:,::1], i8, f8[::1], i8[::1])",
    allocates=True,
)
def _walk(p, y, op, weight, out, parts, classes, brier, means, counts, evidence, champion, seen, rows):
    n_learners, n_rows, width = p.shape
    awake = np.zeros(n_learners, np.bool_)
    losses = np.zeros(n_learners)
    for i in range(n_rows):
        for n in range(n_learners):
            awake[n] = all_finite(p[n], i)
        speaker = _speaks(champion, awake, means, counts)
        if op[i] & PREDICT:
            for c in range(width):
                out[i, c] = p[speaker, i, c] if speaker >= 0 else np.nan
            if parts.shape[0] > 0 and speaker >= 0:
                credit_alone(p[speaker, i], speaker, parts[i])
                if not classes:
                    parts[i, speaker] = p[speaker, i, 0]
        if not op[i] & LEARN:
            continue
        rows[0] += 1
        # A weight scales how much a row counts; a bet must stay below all that is owned, so only 0 does.
        if not (speaker >= 0 and weight[i] > 0.0 and math.isfinite(y[i])):
            continue
        for n in range(n_learners):
            if awake[n] and classes:
                losses[n] = half_brier(p[n], i, int(y[i])) if brier else is_wrong(p[n], i, int(y[i]))
            elif awake[n]:
                scale = seen[0] if seen[0] > 0.0 else 1.0
                losses[n] = min(abs(y[i] - p[n, i, 0]) / (4.0 * scale), 1.0)
        note_losses(means, counts, awake, losses)
        gather_evidence(evidence, champion, awake, losses)
        if not classes:
            note_scale(seen, abs(y[i] - p[speaker, i, 0]))
            note_target(seen, y[i])
