"""Places behind the configured learners, where concepts and challengers come and go at control points.

A place is there once it was needed, and then stays, empty or not, so that no index ever moves. An empty one
costs nothing: it is asleep. Whoever comes to a place enters the blend with weight 0, or with a part of its
relative's where experience says so. Learners that the default pool needs for some streams only come to places
too, when the stream asks for them, and stay.
"""

from typing import TYPE_CHECKING

import numpy as np

from adaptd import events
from adaptd.contracts import Bytes, Floats, Ints, State
from adaptd.kernels.compare import LOSSES, N_SUMS, ROWS, SUM, compare
from adaptd.kernels.mixing import BETS
from adaptd.numerics import enlarged, pack, unpack
from adaptd.pool import EMPTY, Pool, Slot, build_slot, joining

if TYPE_CHECKING:
    from adaptd.engine import Lane

NONE = -1


class Comparison:
    """Losses in [0, 1] of every learner and of the blend, and of each place against its relative.

    How it is counted: `kernels/compare.py`. `recent` follows about 100 rows, `steady` about 500.
    """

    STATE = ("recent", "steady", "scale", "relatives", "sums", "evidence")

    def __init__(self, n_learners: int, is_number: bool) -> None:
        self.is_number = is_number
        self.recent = np.zeros((n_learners + 1, 2))
        self.steady = np.zeros((n_learners + 1, 2))
        self.scale = np.zeros(1)
        self.relatives: Ints = np.zeros(0, np.int64)
        self.sums = np.zeros((0, N_SUMS))
        self.evidence = np.zeros((0, 2, len(BETS)))

    def step(self, predictions: Floats, blend: Floats, y: Floats, op: Bytes, weight: Floats) -> None:
        compare(
            predictions, blend, y, op, weight, self.is_number, self.recent, self.steady, self.scale,
            self.relatives, self.sums, self.evidence,
        )  # fmt: skip

    @property
    def unit(self) -> float:
        """What a loss of 1 is in numbers of the target, which moves; 1 where there are classes."""
        return 4.0 * float(self.scale[0]) if self.is_number else 1.0

    def add_place(self) -> None:
        n = len(self.relatives) + 1
        for name in ("recent", "steady"):
            old = getattr(self, name)
            setattr(self, name, np.insert(old, len(old) - 1, 0.0, axis=0))
        self.relatives = np.append(self.relatives, NONE)
        self.sums = enlarged(self.sums, (n, N_SUMS))
        self.evidence = enlarged(self.evidence, (n, 2, len(BETS)))

    def start(self, index: int, relative: int) -> None:
        """From now on the learner at the place `index` is compared with `relative`; NONE: with nobody."""
        place = self.place(index)
        self.relatives[place] = relative
        self.recent[index], self.steady[index] = 0.0, 0.0
        self.again(index)

    def again(self, index: int) -> None:
        """Compare the place at `index` anew, from no evidence."""
        place = self.place(index)
        self.sums[place], self.evidence[place] = 0.0, 0.0

    def place(self, index: int) -> int:
        return index - (len(self.recent) - 1 - len(self.relatives))

    def rows(self, index: int) -> float:
        """Rows on which the place at `index` and its relative were both awake."""
        return float(self.sums[self.place(index), ROWS])

    def gain(self, index: int) -> float:
        """By how much the place's loss was lower than its relative's, on the mean row; 0 before the first."""
        rows, total = self.sums[self.place(index)][[ROWS, SUM]].tolist()
        return total / rows if rows else 0.0

    def share_saved(self, index: int) -> float:
        """The share of its relative's loss that the place at `index` would have saved; below 0: added."""
        total, losses = self.sums[self.place(index)][[SUM, LOSSES]].tolist()
        return total / losses if losses else 0.0

    def replace(self, index: int, by: int) -> None:
        """The learner in the place `by` has become the one at `index`."""
        self.recent[index], self.steady[index] = self.recent[by], self.steady[by]

    def is_better(self, index: int) -> float:
        """Evidence that the place is better than its relative; 1 / this bounds the chance of an error."""
        return float(self.evidence[self.place(index), 0].mean())

    def is_worse(self, index: int) -> float:
        return float(self.evidence[self.place(index), 1].mean())

    def state(self) -> State:
        return pack(self, self.STATE)

    def load_state(self, state: State) -> None:
        unpack(self, self.STATE, state)


def indices(pool: Pool, family: str) -> list[int]:
    """Places of a family (`concept`, `challenger`), empty ones too."""
    return [k for k, slot in enumerate(pool.slots) if slot.is_place and slot.name.startswith(family + "_")]


def is_empty(slot: Slot) -> bool:
    return slot.is_place and slot.set_aside == EMPTY


def vacant(lane: "Lane", family: str, places_max: int) -> int:
    """An empty place of the family, made if need be; NONE when all are taken."""
    taken = indices(lane.pool, family)
    for index in taken:
        if is_empty(lane.pool.slots[index]):
            return index
    if len(taken) >= places_max:
        return NONE
    add(lane, f"{family}_{len(taken) + 1}")
    return len(lane.pool.slots) - 1


def add(lane: "Lane", name: str) -> None:
    """One more empty place."""
    lane.pool.add_place(name)
    lane.controller.add_learner()
    lane.scores.add_learner()
    lane.labels.add_learner()
    lane.rates.add_learner()
    lane.strategy.comparison.add_place()


def admit(lane: "Lane") -> None:
    """Learners that the stream asks for now come to places of their own."""
    for name, options in joining(lane.config, lane.layout, lane.learned).items():
        if name not in lane.pool.names:
            add(lane, name)
            index = len(lane.pool.slots) - 1
            enter(lane, index, build_slot(name, options, lane.layout, lane.config.seed), NONE)
            lane.log.emit(events.LearnerJoined(row=lane.learned, learner=name))


def enter(
    lane: "Lane", index: int, slot: Slot, relative: int, stride: int = 1, part: float | None = None
) -> None:
    """The learner in `slot` comes to the place at `index`; it is compared with the learner `relative`.

    part: of a challenger, what it begins with of the weight of its relative; of others None.
    """
    lane.pool.fill(index, slot, stride)
    begin(lane, index)
    if part is not None:
        lane.controller.challenge(index, relative, part)
    lane.strategy.comparison.start(index, relative)


def leave(lane: "Lane", index: int) -> None:
    """The place at `index` is empty again."""
    lane.pool.vacate(index)
    begin(lane, index)
    lane.strategy.comparison.start(index, NONE)


def begin(lane: "Lane", index: int) -> None:
    """Nothing that was found out about who was in a place holds for who is there now."""
    lane.controller.reset_learner(index)
    lane.rates.reset_learner(index)
    lane.scores.reset_learner(index)
    lane.labels.predictions[:, index] = np.nan
