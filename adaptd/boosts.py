"""How large a boost of the learning rate after a drift should be, learned from how earlier drifts went.

How: the learners that have a learning rate take turns. After a DRIFT the state of the one whose turn it is
and the next `trial_rows` labelled rows are kept. Then, at the control points that follow, a copy of it
predicts and learns these rows for each arm of `ARMS` (a factor and a half-life; the first is no boost at
all), one arm after another and the rows between two control points at a time, so that the stream never waits
long for it. All arms see the same rows from the same start, so the difference of their losses is the arm's
doing and nothing else. An arm's gain is 1 - its loss / the loss without a boost; with

    S_arm = fading S_arm + gain         n = fading n + 1         fading = 0.8 a trial

the next drift is met with the arm of the greatest S / (n + 1): the 1 keeps one lucky trial from deciding much
against the arm in force, which is left for another only when that is better by `GAIN_MIN`. Until a learner's
first trial has ended its boost is the configured one. Trials begin at most every `TRIAL_GAP_ROWS` labelled
rows, and one at a time, which bounds their cost.

A copy is asked when the label comes, before it learns; late labels make no difference between the arms.
"""

import numpy as np

from adaptd import events
from adaptd.contracts import LEARN, PREDICT, Bytes, Floats, Learner, State
from adaptd.kernels.blocks import LAGS
from adaptd.kernels.trials import add_losses
from adaptd.pool import Pool, Slot
from adaptd.rates import Config, RateControl, faded

# (factor, labelled rows in which half of it wears off). The first is the comparison: no boost.
ARMS = ((1.0, 1.0), (2.0, 350.0), (4.0, 150.0), (4.0, 700.0), (8.0, 150.0))
FADING = 0.8
# A gain of less than a five-hundredth of the loss is no reason to change the arm.
GAIN_MIN = 0.002
TRIAL_GAP_ROWS = 4096
# A learner whose kept state and copy would take more keeps the boost that it has.
TRIAL_BYTES_MAX = 32_000_000


class Trial:
    """One learner and the rows after a drift: first these are kept, then one arm after another walks them."""

    def __init__(self, pool: Pool, index: int, rows: int, stretch_rows: int) -> None:
        """rows: how many to keep; `stretch_rows` of them, those between two control points, are one step."""
        slot = pool.slots[index]
        self.name, self.is_lagged = slot.name, slot.lagged
        self.saved = pool.remembered(slot)
        self.stretch_rows = stretch_rows
        self.x = np.zeros((rows, pool.layout.n_features + (LAGS if slot.lagged else 0)))
        self.y, self.weight = np.zeros(rows), np.zeros(rows)
        self.kept = 0
        self.losses = np.zeros((len(ARMS), 1))
        self.arm = self.at = 0
        """The arm at work, and how many rows it has walked."""
        self.copy: Learner | None = None

    @property
    def is_full(self) -> bool:
        return self.kept == len(self.y)

    @property
    def is_over(self) -> bool:
        return self.arm == len(ARMS)

    def keep(self, x: Floats, lags: Floats, y: Floats, weight: Floats) -> None:
        # A reload may have moved the control points: then the last block holds more rows than are wanted.
        n = min(len(y), len(self.y) - self.kept)
        part = slice(self.kept, self.kept + n)
        self.x[part] = (np.hstack([lags, x]) if self.is_lagged else x)[:n]
        self.y[part], self.weight[part] = y[:n], weight[:n]
        self.kept += n

    def walk(self, pool: Pool) -> None:
        """One stretch of one arm."""
        factor, half_life = ARMS[self.arm]
        if self.copy is None:
            self.copy = pool.revive(self.name, self.saved).learner
        self.copy.rate_scale = faded(factor, half_life, self.at)
        part = slice(self.at, self.at + self.stretch_rows)
        y = self.y[part]
        out = np.full((len(y), pool.layout.width), np.nan)
        self.copy.step(self.x[part], y, np.full(len(y), PREDICT | LEARN, np.uint8), self.weight[part], out)
        add_losses(out, y, pool.layout.task == "regression", self.losses[self.arm])
        self.at += len(y)
        if self.at == len(self.y):
            self.arm, self.at, self.copy = self.arm + 1, 0, None

    def gains(self) -> Floats:
        """[arms]: the share of the loss without a boost that each arm saves."""
        usual = float(self.losses[0, 0])
        found: Floats = 1.0 - self.losses[:, 0] / usual if usual > 0.0 else np.zeros(len(ARMS))
        return np.where(np.isfinite(found), found, 0.0)

    def state(self) -> State:
        return {
            "name": self.name,
            "saved": self.saved,
            "rows": len(self.y),
            "stretch_rows": self.stretch_rows,
            "x": self.x[: self.kept].copy(),
            "y": self.y[: self.kept].copy(),
            "weight": self.weight[: self.kept].copy(),
            "losses": self.losses.copy(),
            "arm": self.arm,
            "at": self.at,
            "copy": None if self.copy is None else self.copy.state(),
        }

    @classmethod
    def of_state(cls, state: State, pool: Pool) -> "Trial":
        trial = cls(pool, pool.names.index(state["name"]), state["rows"], state["stretch_rows"])
        trial.saved, trial.kept = state["saved"], len(state["y"])
        for name in ("x", "y", "weight"):
            getattr(trial, name)[: trial.kept] = state[name]
        trial.losses = state["losses"].copy()
        trial.arm, trial.at = state["arm"], state["at"]
        if state["copy"] is not None:
            trial.copy = pool.revive(trial.name, {**trial.saved, "learner": state["copy"]}).learner
        return trial


class Boosts:
    """The rates after a drift: what is in force (`rates`), and what is tried."""

    def __init__(self, config: Config, pool: Pool) -> None:
        self.config = config
        self.rates = RateControl(config, len(pool.slots))
        self.trial: Trial | None = None
        self.tried_at = 0
        """Labelled rows when the last trial began; 0: never."""
        self.turns = 0
        """Trials that have begun."""
        self.boosted_at = 0
        self.gains: dict[str, Floats] = {}
        """By learner: fading sums of the gains [arms], then the fading number of trials."""
        self.arms: dict[str, int] = {}
        """By learner: the arm that the next drift is met with; without an entry the configured boost."""

    # Rows.

    def step(self, x: Floats, lags: Floats, y: Floats, op: Bytes, weight: Floats) -> None:
        """A running trial keeps the labelled rows of a block, until it has enough."""
        if self.trial is None or self.trial.is_full:
            return
        learns = np.flatnonzero(op & LEARN)
        if len(learns):
            self.trial.keep(x[learns], lags[learns], y[learns], weight[learns])

    # Control points.

    def review(self, pool: Pool, drifted: bool, row: int, control_rows: int) -> list[events.Decision]:
        """A control point at labelled row `row`; what is decided, in order."""
        found = self.go_on(pool, row)
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
            is_rested = not self.tried_at or row - self.tried_at >= TRIAL_GAP_ROWS
            if self.config.learned and self.trial is None and is_rested:
                self.begin(pool, row, control_rows)
        elif was_boosted and not self.rates.is_boosted():
            found.append(events.RatesRestored(row=row, boosted_row=self.boosted_at))
        return found

    def go_on(self, pool: Pool, row: int) -> list[events.Decision]:
        """The running trial, once it has its rows: one stretch of one arm, and after the last its end."""
        if self.trial is None or not self.trial.is_full:
            return []
        try:
            self.trial.walk(pool)
        except Exception:  # a guest may raise anything; the pool reports its own failure of the kind
            self.trial = None
        return self.conclude(row) if self.trial is not None and self.trial.is_over else []

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

    def begin(self, pool: Pool, row: int, control_rows: int) -> None:
        """Start a trial of the next learner in turn, of those that a boost concerns."""
        concerned = [
            index
            for index, slot in enumerate(pool.slots)
            if has_rate(slot) and 2 * slot.learner.vitals().state_bytes <= TRIAL_BYTES_MAX
        ]
        if not concerned:
            return
        self.tried_at = row
        rows = -(-self.config.trial_rows // control_rows) * control_rows
        self.trial = Trial(pool, concerned[self.turns % len(concerned)], rows, control_rows)
        self.turns += 1

    def conclude(self, row: int) -> list[events.Decision]:
        """The trial ends: its gains are taken down, and the learner gets the arm that did best so far."""
        assert self.trial is not None
        trial, self.trial = self.trial, None
        won, name = trial.gains(), trial.name
        kept = self.gains.get(name, np.zeros(len(ARMS) + 1))
        self.gains[name] = kept = FADING * kept + np.append(won, 1.0)
        means = kept[:-1] / (kept[-1] + 1.0)
        best, now = int(means.argmax()), self.arms.get(name, 0)
        if name not in self.arms or means[best] > means[now] + GAIN_MIN:
            # Where nothing helps by enough, no boost is the arm.
            self.arms[name] = best if means[best] > GAIN_MIN else 0
        elif means[now] < -GAIN_MIN:
            self.arms[name] = 0
        gains = {named(arm): float(gain) for arm, gain in zip(ARMS, won, strict=True)}
        chosen = named(ARMS[self.arms[name]])
        return [events.BoostsCompared(row=row, rows=len(trial.y), gains={name: gains}, chosen={name: chosen})]

    def reset_learner(self, index: int, name: str) -> None:
        """The learner at `index` was built anew."""
        self.rates.reset_learner(index)
        if self.trial is not None and self.trial.name == name:
            self.trial = None

    def grow(self) -> None:
        """The rows that a trial has kept are of another layout: it ends without a result."""
        self.trial = None

    # State.

    def state(self) -> State:
        return {
            "rates": self.rates.state(),
            "tried_at": self.tried_at,
            "boosted_at": self.boosted_at,
            "arms": dict(self.arms),
            "gains": {name: sums.copy() for name, sums in self.gains.items()},
            "turns": self.turns,
            "trial": None if self.trial is None else self.trial.state(),
        }

    def load_state(self, state: State, pool: Pool, same_pool: bool) -> None:
        """same_pool: False keeps what was learned of boosts, and neither rates in force nor a trial."""
        self.arms = dict(state["arms"])
        self.gains = {name: sums.copy() for name, sums in state["gains"].items()}
        self.tried_at, self.boosted_at, self.turns = state["tried_at"], state["boosted_at"], state["turns"]
        if not same_pool:
            return
        self.rates.load_state(state["rates"])
        if state["trial"] is not None:
            self.trial = Trial.of_state(state["trial"], pool)


def named(arm: tuple[float, float]) -> str:
    """An arm as text: `x4 for 150`."""
    return "none" if arm[0] == 1.0 else f"x{arm[0]:g} for {arm[1]:g}"


def has_rate(slot: Slot) -> bool:
    """Whether a boost concerns the learner at all."""
    if slot.frozen or slot.set_aside or slot.failed or slot.is_place:
        return False
    rate = slot.learner.vitals().learning_rate
    return rate == rate
