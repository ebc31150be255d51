"""Overload: rows come faster than the pool can answer them. The student answers, and dear learners rest.

How: the loop measures how long the rows of a read take to be answered. `OVER_READS` reads in a row above
`output.latency_budget_seconds` are an overload; it is over when no read took more than half of the budget for
`CALM_SECONDS`. In an overload the student answers, and the learners that cost most for their weight work on
one operation in `SHED_STRIDE` only, so many of them that the others cost `KEPT_SHARE` of what all did.

What a clock says is no part of the input, so a repetition would not decide alike. The decision, with the
names in it, is therefore a command in the durable input log, like an operator's: it stands at its place among
the rows, takes effect at the next control point, and a repetition finds it there.

Use it when: live rows come in bursts (`output.serve = "auto"`, with a student). No row is ever passed over.
Do not use it when: the input is a history to catch up with, which always comes faster than it is answered.
"""

import math
from typing import TYPE_CHECKING

import msgspec

from adaptd import events
from adaptd.pool import Pool

if TYPE_CHECKING:
    from adaptd.engine import Lane

SHED, RESTORE = "shed", "restore"
ACTIONS = (SHED, RESTORE)
OVER_READS = 3
CALM_SECONDS = 10.0
SHED_STRIDE = 8
KEPT_SHARE = 0.25


class Watch:
    """The daemon's part: it looks at the clock, and at nothing else."""

    def __init__(self) -> None:
        self.over = 0
        """Reads in a row above the budget."""
        self.strained = -math.inf
        """When a read last took more than half of it."""

    def review(self, now: float, seconds: float, budget_seconds: float, is_overloaded: bool) -> str:
        """A read took `seconds` up to `now`: SHED, RESTORE, or empty when all stays as it is."""
        self.over = self.over + 1 if seconds > budget_seconds else 0
        if seconds > 0.5 * budget_seconds:
            self.strained = now
        if not is_overloaded:
            return SHED if self.over >= OVER_READS else ""
        return RESTORE if now - self.strained >= CALM_SECONDS else ""


def is_told(lane: "Lane") -> bool:
    """Whether there is an overload, as far as the lane was told; it may not have come to it yet."""
    told = [action for action, _ in lane.commands if action in ACTIONS]
    return told[-1] == SHED if told else lane.is_overloaded


def dearest(pool: Pool, weights: list[float]) -> list[str]:
    """Learners that shall rest: the dearest for their weight, until the others cost `KEPT_SHARE`."""
    worth = {
        slot.name: (slot.seconds, slot.seconds / (weight + 0.01))
        for slot, weight in zip(pool.slots, weights, strict=True)
        if not slot.set_aside and not slot.is_place
    }
    left = sum(seconds for seconds, _ in worth.values())
    wanted, resting = KEPT_SHARE * left, []
    # The last one stays: a row that everybody sleeps through has no prediction.
    for name in sorted(worth, key=lambda name: -worth[name][1])[:-1]:
        if left <= wanted:
            break
        left -= worth[name][0]
        resting.append(name)
    return resting


def command(lane: "Lane", action: str) -> bytes:
    """The input log's entry for a decision of `Watch`."""
    names = dearest(lane.pool, lane.controller.weights().tolist()) if action == SHED else []
    return msgspec.json.encode({"action": action, "learner": msgspec.json.encode(names).decode()})


def obey(lane: "Lane", action: str, names: str) -> None:
    """A control point: what `command` wrote takes effect."""
    resting = msgspec.json.decode(names, type=list[str])
    lane.is_overloaded = action == SHED
    lane.pool.rest(resting, SHED_STRIDE)
    # Bounds that went with another speaker's words say nothing of the next one's.
    lane.labels.given[:] = math.nan
    if lane.is_overloaded:
        lane.log.emit(events.OverloadDetected(row=lane.learned, learners=resting, stride=SHED_STRIDE))
    else:
        lane.log.emit(events.OverloadEnded(row=lane.learned))
