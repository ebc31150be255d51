"""How large a boost of the learning rate after a drift should be, learned from how earlier drifts went.

How: at the control point after a DRIFT every learner that has a learning rate gets a trial: copies of it as
it is now, one for each arm of `ARMS` (a factor and a half-life; the first is no boost at all), predict and
then learn the next `trial_rows` labelled rows beside it. All see the same rows from the same start, so the
difference of their losses is the arm's doing and nothing else. An arm's gain is 1 - its loss / the loss
without a boost; with

    S_arm = fading S_arm + gain         n = fading n + 1         fading = 0.8 a trial

the next drift is met with the arm of the greatest S / (n + 1): the 1 keeps one lucky trial from deciding much
against the arm in force, which is left for another only when that is better by `GAIN_MIN`. Until the first
trial has ended a boost is the configured one. Trials begin at most every `TRIAL_GAP_ROWS` labelled rows,
which bounds their cost; between trials there is none.

A copy is asked when the label comes, before it learns; late labels make no difference between the arms.
"""

from typing import Any

import numpy as np

from adaptd import events
from adaptd.contracts import LEARN, PREDICT, Bytes, Floats, Layout, Learner, State
from adaptd.kernels.trials import add_losses
from adaptd.lags import lagged
from adaptd.pool import Pool, Slot, build_slot
from adaptd.rates import Config, RateControl, faded

# (factor, labelled rows in which half of it wears off). The first is the comparison: no boost.
ARMS = ((1.0, 1.0), (2.0, 350.0), (4.0, 150.0), (4.0, 700.0), (8.0, 150.0))
FADING = 0.8
# A gain of less than a five-hundredth of the loss is no reason to change the arm.
GAIN_MIN = 0.002
TRIAL_GAP_ROWS = 4096
# A learner whose copies would take more keeps the boost that it has.
TRIAL_BYTES_MAX = 32_000_000


class Trial:
    """Copies of one learner, an arm each."""

    def __init__(self, slot: Slot, copies: list[Learner]) -> None:
        self.name = slot.name
        self.is_lagged = slot.lagged
        self.copies = copies
        self.losses = np.zeros((len(ARMS), 1))

    def step(self, x: Floats, y: Floats, weight: Floats, layout: Layout) -> None:
        op = np.full(len(y), PREDICT | LEARN, np.uint8)
        for copy, total in zip(self.copies, self.losses, strict=True):
            out = np.full((len(y), layout.width), np.nan)
            copy.step(x, y, op, weight, out)
            add_losses(out, y, layout.task == "regression", total)

    def gains(self) -> Floats:
        """[arms]: the share of the loss without a boost that each arm saves."""
        usual = float(self.losses[0, 0])
        found: Floats = 1.0 - self.losses[:, 0] / usual if usual > 0.0 else np.zeros(len(ARMS))
        return np.where(np.isfinite(found), found, 0.0)


class Boosts:
    """The rates after a drift: what is in force (`rates`), and what is tried."""

    def __init__(self, config: Config, pool: Pool) -> None:
        self.config = config
        self.rates = RateControl(config, len(pool.slots))
        self.trials: list[Trial] = []
        self.tried_at = 0
        """Labelled rows when the last trials began; 0: never."""
        self.boosted_at = 0
        self.gains: dict[str, Floats] = {}
        """By learner: fading sums of the gains [arms], then the fading number of trials."""
        self.arms: dict[str, int] = {}
        """By learner: the arm that the next drift is met with; without an entry the configured boost."""

    # Rows.

    def step(self, pool: Pool, x: Floats, lags: Floats, y: Floats, op: Bytes, weight: Floats) -> None:
        """The copies of running trials walk the labelled rows of a block."""
        if not self.trials:
            return
        learns = np.flatnonzero(op & LEARN)
        if not len(learns):
            return
        x, y, weight = np.ascontiguousarray(x[learns]), y[learns], weight[learns]
        after_lags = np.hstack([lags[learns], x])
        for trial in list(self.trials):
            try:
                trial.step(after_lags if trial.is_lagged else x, y, weight, pool.layout)
            except Exception:  # a guest may raise anything; the pool reports its own failure of the kind
                self.trials.remove(trial)

    # Control points.

    def review(self, pool: Pool, drifted: bool, row: int, control_rows: int) -> list[events.Decision]:
        """A control point at labelled row `row`; what is decided, in order."""
        found: list[events.Decision] = []
        if self.trials:
            since = row - self.tried_at
            for trial in self.trials:
                for copy, (factor, half_life) in zip(trial.copies, ARMS, strict=True):
                    copy.rate_scale = faded(factor, half_life, since)
            if since >= self.config.trial_rows:
                found += self.conclude(row)
        was_boosted = self.rates.is_boosted()
        if not was_boosted and not drifted:
            return found
        if drifted:
            for index, slot in enumerate(pool.slots):
                self.rates.factors[index], self.rates.half_lives[index] = self.boost_of(slot.name)
        self.rates.review(drifted, control_rows)
        pool.scale_rates(self.rates.scales)
        if drifted and self.config.enabled:
            found += self.boosted(pool, row)
            if self.config.learned and (not self.tried_at or row - self.tried_at >= TRIAL_GAP_ROWS):
                self.begin(pool, row)
        elif was_boosted and not self.rates.is_boosted():
            found.append(events.RatesRestored(row=row, boosted_row=self.boosted_at))
        return found

    def boost_of(self, name: str) -> tuple[float, float]:
        """Factor and half-life that the learner meets a drift with."""
        if self.config.learned and name in self.arms:
            return ARMS[self.arms[name]]
        return self.config.boost, self.config.half_life_rows

    def boosted(self, pool: Pool, row: int) -> list[events.Decision]:
        rates = self.rates
        if not rates.is_boosted():
            return []
        self.boosted_at = row
        strongest = int(rates.scales.argmax())
        return [
            events.RatesBoosted(
                row=row,
                factor=float(rates.scales[strongest]),
                half_life_rows=float(rates.half_lives[strongest]),
                factors={
                    slot.name: float(rates.factors[k]) for k, slot in enumerate(pool.slots) if has_rate(slot)
                },
            )
        ]

    def begin(self, pool: Pool, row: int) -> None:
        """Start a trial of every learner that a boost concerns."""
        self.tried_at = row
        self.trials = [
            Trial(slot, copies_of(pool, slot))
            for slot in pool.slots
            if has_rate(slot) and len(ARMS) * slot.learner.vitals().state_bytes <= TRIAL_BYTES_MAX
        ]
        for trial in self.trials:
            for copy, (factor, _) in zip(trial.copies, ARMS, strict=True):
                copy.rate_scale = factor

    def conclude(self, row: int) -> list[events.Decision]:
        """The trials end: their gains are taken down, and each learner gets the arm that did best so far."""
        gains: dict[str, dict[str, float]] = {}
        for trial in self.trials:
            won = trial.gains()
            kept = self.gains.get(trial.name, np.zeros(len(ARMS) + 1))
            self.gains[trial.name] = kept = FADING * kept + np.append(won, 1.0)
            means = kept[:-1] / (kept[-1] + 1.0)
            best, now = int(means.argmax()), self.arms.get(trial.name, 0)
            if trial.name not in self.arms or means[best] > means[now] + GAIN_MIN:
                # Where nothing helps by enough, no boost is the arm.
                self.arms[trial.name] = best if means[best] > GAIN_MIN else 0
            elif means[now] < -GAIN_MIN:
                self.arms[trial.name] = 0
            gains[trial.name] = {named(arm): float(gain) for arm, gain in zip(ARMS, won, strict=True)}
        chosen = {trial.name: named(ARMS[self.arms[trial.name]]) for trial in self.trials}
        self.trials = []
        return [events.BoostsCompared(row=row, rows=row - self.tried_at, gains=gains, chosen=chosen)]

    def reset_learner(self, index: int, name: str) -> None:
        """The learner at `index` was built anew."""
        self.rates.reset_learner(index)
        self.trials = [trial for trial in self.trials if trial.name != name]

    def grow(self, layout: Layout) -> None:
        for trial in self.trials:
            for copy in trial.copies:
                copy.grow(lagged(layout) if trial.is_lagged else layout)

    # State.

    def state(self) -> State:
        return {
            "rates": self.rates.state(),
            "tried_at": self.tried_at,
            "boosted_at": self.boosted_at,
            "arms": dict(self.arms),
            "gains": {name: sums.copy() for name, sums in self.gains.items()},
            "trials": {
                trial.name: {
                    "losses": trial.losses.copy(),
                    "scales": [copy.rate_scale for copy in trial.copies],
                    "copies": [copy.state() for copy in trial.copies],
                }
                for trial in self.trials
            },
        }

    def load_state(self, state: State, pool: Pool, same_pool: bool) -> None:
        """same_pool: False keeps what was learned of boosts, and neither rates in force nor trials."""
        self.arms = dict(state["arms"])
        self.gains = {name: sums.copy() for name, sums in state["gains"].items()}
        self.tried_at, self.boosted_at = state["tried_at"], state["boosted_at"]
        if not same_pool:
            return
        self.rates.load_state(state["rates"])
        for slot in pool.slots:
            saved: dict[str, Any] | None = state["trials"].get(slot.name)
            if saved is None:
                continue
            trial = Trial(slot, copies_of(pool, slot))
            trial.losses = saved["losses"].copy()
            for copy, scale, learner in zip(trial.copies, saved["scales"], saved["copies"], strict=True):
                copy.load_state(learner)
                copy.rate_scale = scale
            self.trials.append(trial)


def named(arm: tuple[float, float]) -> str:
    """An arm as text: `x4 for 150`."""
    return "none" if arm[0] == 1.0 else f"x{arm[0]:g} for {arm[1]:g}"


def has_rate(slot: Slot) -> bool:
    """Whether a boost concerns the learner at all."""
    if slot.frozen or slot.set_aside or slot.failed or slot.is_place:
        return False
    rate = slot.learner.vitals().learning_rate
    return rate == rate


def copies_of(pool: Pool, slot: Slot) -> list[Learner]:
    """A copy of the learner as it is now, for each arm."""
    state = slot.learner.state()
    copies = []
    for _ in ARMS:
        options = {"kind": slot.kind, **slot.options}
        copy = build_slot(slot.name, options, pool.layout, pool.config.seed).learner
        copy.load_state(state)
        copies.append(copy)
    return copies
