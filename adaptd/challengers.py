"""Challengers: learners that start in the background when the world may have changed.

How: at a control point after a WARNING or a DRIFT a challenger of one learner is raised, with the action that
is hoped to save most (`experience.py`):

    fresh     built anew, and learns the rows since the estimated change
    warm      goes on from the relative's state, and learns the rows since the change once more
    mutate    goes on from the relative's state with some of its options changed (those that its module names
              in MUTABLE: whatever their values, a state fits)

No more than a control interval's rows it learns at once. More of them it learns aside, with those that arrive
meanwhile, some at each row, and joins exactly one control interval later. Then it stands in a place of the
pool: it enters the blend with the part of its relative's weight that such newcomers had in the end, 0 while
nothing is known of them, and is compared with its relative on the same rows, by e-detectors

    E <- (E + 1)(1 + b (loss of the relative - loss of the challenger))          losses in [0, 1]

Within `trial_rows` rows E exceeds `evidence` x `trial_rows` with a probability of at most 1 / `evidence` when
the challenger is no better: the bound above which it is promoted, takes its relative's slot, and keeps the
trust that both had. One that is worse by the same bound, or not promoted after `trial_rows`, is retired.
What it saved or cost teaches the next choice.

Bounds: `places_max` challengers, `bytes_max` bytes of them together, and at most `rows_share` of all labelled
rows are walked by a challenger: there is no clock in this.

Measured: `docs/decisions/0012-challengers.md`.
Reference: Q. Wu et al., "ChaCha for online AutoML" (ICML 2021), for champions and live challengers; Shin,
Ramdas, Rinaldo, "E-detectors" (arXiv:2203.03532); H. M. Gomes et al., "Adaptive random forests" (2017), for
learners that start in the background on a warning.
"""

import hashlib
import math
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np

from adaptd import config as configuration
from adaptd import events, places, registry
from adaptd.contracts import LEARN, STABLE, Bytes, Floats, Layout, State
from adaptd.errors import ConfigError
from adaptd.lags import lagged
from adaptd.places import NONE
from adaptd.pool import Slot, build_slot
from adaptd.recent import Recent

if TYPE_CHECKING:
    from adaptd.engine import Lane

FAMILY = "challenger"
ACTIONS = ("fresh", "warm", "mutate")
OUTCOMES = ("raised", "promoted", "retired")
# Kinds that a challenger would be too slow with, or that cut their own past by themselves.
NOT_CHALLENGED = ("knn", "sam_knn", "river", "prior", "last_value")
# Fewer rows are no start: the challenger begins cold.
REPLAY_ROWS_MIN = 30
# Part of the rows since the change that is left out at the old end: the estimate may be too early.
OLD_END = 0.1
# Before this many labelled rows there is nothing to be better than.
ROWS_MIN = 1000
# Rows that challengers may walk beside their share, so that the first change finds some.
ROWS_AT_FIRST = 4096
# Of an option that is mutated: the deviation of its logarithm.
SIGMA = 0.3


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[challengers]: learners that start in the background when the world may have changed."""

    enabled: bool = True
    """Whether challengers are raised."""
    places_max: Annotated[int, msgspec.Meta(ge=1, le=8)] = 2
    """Challengers at a time."""
    replay_rows_max: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = 1000
    """Rows that a new challenger learns again, at most."""
    evidence: Annotated[float, msgspec.Meta(ge=2.0, le=1e9)] = 20.0
    """One in so many challengers that are no better is promoted, at most."""
    trial_rows: Annotated[int, msgspec.Meta(ge=128, le=1_000_000)] = 2048
    """Labelled rows after which a challenger that has not shown more is retired."""
    bytes_max: Annotated[int, msgspec.Meta(ge=100_000)] = 30_000_000
    """Bytes of all challengers, and of the rows that are kept for them."""
    rows_share: Annotated[float, msgspec.Meta(gt=0.0, le=8.0)] = 0.5
    """Challengers walk so many rows for each labelled row, at most."""


class Challenger(msgspec.Struct):
    """One challenger, by the index of its place."""

    action: str
    relative: str
    kind: str
    raised_row: int
    first: int
    """Of the recent rows, the first that it learns."""
    done: int
    """Of the recent rows, the first that it has not learned yet."""
    replay_rows: int
    """Rows before it was raised that it learns."""
    recalls: int
    """Recalls of concepts so far: with another one its relative is not the same any more."""
    slot: Slot | None
    """The learner while it learns aside; None once it stands in its place."""


class Challengers:
    """All challengers of a lane."""

    def __init__(self, config: Config, layout: Layout, control_rows: int) -> None:
        self.config = config
        self.control_rows = control_rows
        self.recent = Recent(config.replay_rows_max + control_rows, config.bytes_max // 2, layout)
        self.challengers: dict[int, Challenger] = {}
        self.level = STABLE
        """At the last control point."""
        self.walked = 0
        """Rows that challengers were given time for."""
        self.counts = {f"{action}_{outcome}": 0 for action in ACTIONS for outcome in OUTCOMES}

    # Rows.

    def observe(self, layout: Layout, x: Floats, lags: Floats, y: Floats, op: Bytes, weight: Floats) -> None:
        """Keep the labelled rows of a block, and let those who learn aside learn some."""
        self.recent.add(x, lags, y, op, weight)
        for challenger in self.challengers.values():
            if challenger.slot is not None and not challenger.slot.failed:
                self.teach(challenger, challenger.slot, self.due(challenger), layout)

    def due(self, challenger: Challenger) -> int:
        """Up to which row it learns by now: all by the control point, evenly, and none that is to come."""
        elapsed = self.recent.rows - challenger.first - challenger.replay_rows
        rows = (challenger.replay_rows + self.control_rows) * elapsed // self.control_rows
        return challenger.first + rows

    def teach(self, challenger: Challenger, slot: Slot, due: int, layout: Layout) -> None:
        """Have it learn the recent rows up to `due`."""
        if due == challenger.done:
            return
        x, y, weight = self.recent.taken(challenger.done, due, slot.lagged)
        challenger.done = due
        op, out = np.full(len(y), LEARN, np.uint8), np.full((len(y), layout.width), np.nan)
        try:
            slot.learner.step(x, y, op, weight, out)
        except Exception as error:  # a guest may raise anything
            slot.failed = f"{type(error).__name__}: {error}"

    # Control points.

    def review(self, lane: "Lane") -> None:
        """Those who have caught up join, those who have shown what they are go, and new ones are raised."""
        for index in list(self.challengers):
            self.judge(lane, index)
        level, before = lane.level, self.level
        self.level = level
        is_new = lane.drifted or (level > STABLE and before == STABLE)
        if is_new and lane.learned >= ROWS_MIN:
            self.raise_one(lane)

    def judge(self, lane: "Lane", index: int) -> None:
        challenger, comparison = self.challengers[index], lane.strategy.comparison
        slot, names = lane.pool.slots[index], lane.pool.names
        relative = names.index(challenger.relative)
        if lane.pool.slots[relative].set_aside or lane.pool.slots[relative].frozen:
            self.retire(lane, index, "relative_gone")
        elif challenger.slot is not None:
            if challenger.slot.failed:
                self.retire(lane, index, "failed")
            else:
                challenger.slot.has_learned = True
                part = lane.strategy.experience.part(challenger.action, challenger.kind)
                places.enter(lane, index, challenger.slot, relative, part=part)
                challenger.slot = None
        elif slot.set_aside or slot.failed:
            self.retire(lane, index, "failed")
        elif challenger.recalls != lane.strategy.memory.recalls:
            self.retire(lane, index, "concept_recalled")
        else:
            bound = self.config.evidence * self.config.trial_rows
            if comparison.is_better(index) >= bound:
                self.promote(lane, index, relative)
            elif comparison.is_worse(index) >= bound:
                self.retire(lane, index, "worse")
            elif lane.learned - challenger.raised_row >= self.config.trial_rows + self.control_rows:
                self.retire(lane, index, "no_better")
            elif self.bytes(lane) > self.config.bytes_max:
                self.retire(lane, index, "too_big")

    def promote(self, lane: "Lane", index: int, relative: int) -> None:
        """The challenger takes its relative's slot."""
        pool = lane.pool
        evidence, saved = self.concluded(lane, index, "promoted")
        challenger = self.challengers.pop(index)
        newcomer, slot = pool.slots[index], pool.slots[relative]
        slot.learner, slot.options = newcomer.learner, newcomer.options
        slot.has_learned, slot.asleep_rows, slot.predicted_rows = True, 0, 0
        lane.controller.replace_learner(relative, index)
        lane.boosts.reset_learner(relative, slot.name)
        slot.learner.rate_scale = 1.0
        lane.labels.predictions[:, relative] = lane.labels.predictions[:, index]
        lane.strategy.comparison.replace(relative, index)
        places.leave(lane, index)
        lane.log.emit(
            events.ChallengerPromoted(
                row=lane.learned,
                challenger=pool.names[index],
                learner=challenger.relative,
                action=challenger.action,
                evidence=evidence,
                loss_saved=saved,
                options=slot.options,
            )
        )

    def retire(self, lane: "Lane", index: int, reason: str) -> None:
        """The challenger's place is empty again."""
        evidence, saved = self.concluded(lane, index, "retired")
        challenger = self.challengers.pop(index)
        if challenger.slot is None:
            places.leave(lane, index)
        lane.log.emit(
            events.ChallengerRetired(
                row=lane.learned,
                challenger=lane.pool.names[index],
                learner=challenger.relative,
                action=challenger.action,
                reason=reason,
                evidence=evidence,
                loss_saved=saved,
            )
        )

    def concluded(self, lane: "Lane", index: int, outcome: str) -> tuple[float, float | None]:
        """Take down how a trial went: the evidence that the challenger is better, and what it saved."""
        challenger = self.challengers[index]
        self.counts[f"{challenger.action}_{outcome}"] += 1
        comparison = lane.strategy.comparison
        if challenger.slot is not None or not comparison.rows(index):
            return 0.0, None
        saved = comparison.share_saved(index)
        lane.strategy.experience.note(challenger.action, challenger.kind, saved, self.part(lane, index))
        return comparison.is_better(index), saved

    def part(self, lane: "Lane", index: int) -> float:
        """Of the weight that a challenger and its relative have together, the challenger's."""
        weights = lane.controller.weights()
        own = float(weights[index])
        both = own + float(weights[lane.pool.names.index(self.challengers[index].relative)])
        return own / both if both > 0.0 else 0.0

    # Raising.

    def raise_one(self, lane: "Lane") -> None:
        """Start the challenger that promises most, where there is room for one."""
        budget = ROWS_AT_FIRST + self.config.rows_share * lane.learned
        if self.walked + self.config.trial_rows > budget or len(self.challengers) >= self.config.places_max:
            return
        found = self.choice(lane)
        index = NONE if found is None else self.place(lane)
        if found is None or index == NONE:
            return
        relative, action = found
        slot = lane.pool.slots[relative]
        rows = 0 if action == "mutate" else self.replay_rows(lane)
        newcomer = self.newcomer(lane, slot, action)
        self.walked += self.config.trial_rows
        self.counts[f"{action}_raised"] += 1
        first = self.recent.rows - rows
        self.challengers[index] = challenger = Challenger(
            action, slot.name, slot.kind, lane.learned, first, first, rows, lane.strategy.memory.recalls,
            newcomer,
        )  # fmt: skip
        lane.log.emit(
            events.ChallengerRaised(
                row=lane.learned,
                challenger=lane.pool.names[index],
                learner=slot.name,
                action=action,
                reason="drift" if lane.drifted else "warning",
                replay_rows=rows,
                options=newcomer.options,
            )
        )
        if rows <= self.control_rows:
            # Most drifts are found so soon that all there is to learn again takes a moment.
            self.teach(challenger, newcomer, self.recent.rows, lane.layout)
            self.judge(lane, index)

    def place(self, lane: "Lane") -> int:
        """A place that nobody is in or learns for; NONE when there is none."""
        for index in places.indices(lane.pool, FAMILY):
            if index not in self.challengers:
                return index
        return places.vacant(lane, FAMILY, self.config.places_max)

    def choice(self, lane: "Lane") -> tuple[int, str] | None:
        """The learner whose challenger would save most, and how it is to be made.

        What an action may save of a learner's loss counts as much as the blend listens to the learner, and
        as it does worse now than it did.
        """
        comparison, weights = lane.strategy.comparison, lane.controller.weights()
        challenged = {challenger.relative for challenger in self.challengers.values()}
        bytes_left = self.config.bytes_max - self.bytes(lane)
        found: tuple[int, str] | None = None
        most = 0.0
        for index in range(lane.strategy.n_learners):
            slot = lane.pool.slots[index]
            if slot.set_aside or slot.failed or slot.frozen or slot.kind in NOT_CHALLENGED:
                continue
            if slot.name in challenged or slot.learner.vitals().state_bytes > bytes_left:
                continue
            now, usual = float(comparison.recent[index, 0]), float(comparison.steady[index, 0])
            matters = float(weights[index]) * (1.0 + max(now - usual, 0.0) / max(usual, 0.01))
            for action in ACTIONS:
                if action == "mutate" and not mutable(slot.kind):
                    continue
                value = matters * lane.strategy.experience.value(action, slot.kind)
                if value > most:
                    found, most = (index, action), value
        return found

    def replay_rows(self, lane: "Lane") -> int:
        """Rows since the estimated change that a challenger begins with."""
        since = int((1.0 - OLD_END) * lane.detector.change_rows())
        rows = min(since, self.config.replay_rows_max, self.recent.size - self.control_rows, self.recent.rows)
        return rows if rows >= REPLAY_ROWS_MIN else 0

    def newcomer(self, lane: "Lane", slot: Slot, action: str) -> Slot:
        """The challenger's learner before it has learned anything of its own."""
        pool = lane.pool
        if action == "fresh":
            # A name of its own gives it random numbers of its own.
            name = f"{slot.name}/{lane.learned}"
            return build_slot(name, {"kind": slot.kind, **slot.options}, pool.layout, pool.config.seed)
        saved = pool.remembered(slot)
        if action == "mutate":
            saved["options"] = mutated(slot, pool.config.seed, lane.learned)
        return pool.revive(slot.name, saved)

    def bytes(self, lane: "Lane") -> int:
        """Bytes of all challengers and of the rows that are kept."""
        slots = [challenger.slot or lane.pool.slots[index] for index, challenger in self.challengers.items()]
        return self.recent.bytes + sum(slot.learner.vitals().state_bytes for slot in slots)

    def grow(self, layout: Layout) -> None:
        self.recent.grow(layout)
        for challenger in self.challengers.values():
            if challenger.slot is not None and not challenger.slot.failed:
                challenger.slot.learner.grow(lagged(layout) if challenger.slot.lagged else layout)

    # State.

    def state(self, lane: "Lane") -> State:
        return {
            "recent": self.recent.state(),
            "level": self.level,
            "walked": self.walked,
            "counts": dict(self.counts),
            "challengers": {
                str(index): {
                    **msgspec.structs.asdict(challenger),
                    "slot": None if challenger.slot is None else lane.pool.remembered(challenger.slot),
                    "failed": "" if challenger.slot is None else challenger.slot.failed,
                }
                for index, challenger in self.challengers.items()
            },
        }

    def load_state(self, lane: "Lane", state: State, same_pool: bool) -> None:
        """Go on from `state`. With another pool no comparison holds any more: all challengers go."""
        self.recent.load_state(state["recent"])
        self.level, self.walked = state["level"], state["walked"]
        self.counts |= state["counts"]
        if not same_pool:
            for index in places.indices(lane.pool, FAMILY):
                places.leave(lane, index)
            return
        for index, saved in state["challengers"].items():
            learner, failed = saved["slot"], saved["failed"]
            known = {key: value for key, value in saved.items() if key not in ("slot", "failed")}
            slot = None if learner is None else lane.pool.revive(saved["relative"], learner)
            if slot is not None:
                slot.failed = failed
            self.challengers[int(index)] = Challenger(**known, slot=slot)


def mutable(kind: str) -> dict[str, Any]:
    """The options of a kind that a mutation may change, and their types with their bounds."""
    module = registry.load("learners", kind)
    named: tuple[str, ...] = getattr(module, "MUTABLE", ())
    described: Any = msgspec.inspect.type_info(module.Config)
    return {field.name: field.type for field in described.fields if field.name in named}


def mutated(slot: Slot, seed: int, row: int) -> dict[str, Any]:
    """The options of the learner in `slot` with those that may change moved, each by its own chance.

    A number is multiplied by exp(0.3 z), z normal; one that fades the past moves in its distance from 1; a
    small whole number moves by one.
    """
    digest = hashlib.sha256(f"{seed}/{slot.name}/{row}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    module = registry.load("learners", slot.kind)
    options, plain = dict(slot.options), module.Config()
    for name, kind in mutable(slot.kind).items():
        value = options.get(name, getattr(plain, name))
        factor, sign = math.exp(SIGMA * rng.normal()), 1 if rng.random() < 0.5 else -1
        if isinstance(kind, msgspec.inspect.IntType):
            moved = value + sign if value <= 10 else round(value * factor)
        elif 0.5 < value < 1.0:
            moved = 1.0 - (1.0 - value) * factor
        else:
            moved = value * factor
        low, high = bounds(kind)
        options[name] = min(max(moved, low), high)
    try:
        configuration.built("learners", {"kind": slot.kind, **options}, configuration.LEARNER_KEYS)
    except ConfigError:
        return dict(slot.options)
    return options


def bounds(kind: Any) -> tuple[float, float]:
    """Least and greatest value of an option's type."""
    low, high = -math.inf, math.inf
    if kind.ge is not None:
        low = kind.ge
    if kind.gt is not None:
        low = kind.gt + 1e-9
    if kind.le is not None:
        high = kind.le
    if kind.lt is not None:
        high = kind.lt - 1e-9
    return low, high
