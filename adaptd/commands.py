"""What an operator tells a learner to do, carried out at a control point."""

from typing import TYPE_CHECKING

import numpy as np

from adaptd import events, overload
from adaptd.pool import DISABLED

if TYPE_CHECKING:
    from adaptd.engine import Lane

ACTIONS = {
    "enable": "Use a learner that was disabled, with what it knew; one that had failed starts anew.",
    "disable": "Neither ask nor teach it any more; it keeps what it knows.",
    "freeze": "Ask it and teach it no more.",
    "unfreeze": "Teach it again.",
    "reset": "Make it forget everything.",
    "pin": "Its predictions are the output, whatever the controller says.",
    "unpin": "Let the controller choose again.",
}


def obey(lane: "Lane", action: str, name: str) -> None:
    """Carry out one command; one that cannot be followed any more is journalled as refused."""
    if action in overload.ACTIONS:
        overload.obey(lane, action, name)
        return
    row, pool = lane.learned, lane.pool
    index = pool.names.index(name) if name in pool.names else -1
    if index >= 0 and pool.slots[index].is_place:
        # Who is in a place is decided here; a command would only last until the next decision.
        index = -1
    reason = refusal(lane, action, name, index)
    if reason:
        lane.log.emit(events.CommandRefused(row=row, learner=name, action=action, reason=reason))
        return
    slot = pool.slots[index]
    if action in ("freeze", "unfreeze"):
        slot.frozen = action == "freeze"
        lane.log.emit(events.LearnerFrozen(row=row, learner=name, frozen=slot.frozen))
    elif action in ("pin", "unpin"):
        lane.pin, lane.pinned = (name, index) if action == "pin" else ("", -1)
        lane.log.emit(events.ChampionPinned(row=row, champion=lane.pin or None))
    elif action == "disable":
        if not slot.set_aside and not slot.failed:
            slot.set_aside = DISABLED
            lane.log.emit(events.LearnerSetAside(row=row, learner=name, reason=DISABLED, detail="by command"))
    elif action == "enable" and slot.set_aside == DISABLED:
        slot.set_aside = ""
        lane.log.emit(events.LearnerEnabled(row=row, learner=name))
    elif action == "reset" or slot.set_aside or slot.failed:
        # What failed has nothing left to go on from.
        pool.rebuild(index)
        lane.controller.reset_learner(index)
        lane.boosts.reset_learner(index, name)
        lane.scores.reset_learner(index)
        lane.labels.predictions[:, index] = np.nan
        lane.log.emit(events.LearnerReset(row=row, learner=name, reason="by command"))


def refusal(lane: "Lane", action: str, name: str, index: int) -> str:
    """Why the command cannot be carried out; empty when it can."""
    if index < 0:
        return "unknown"
    if action == "unpin" and lane.pin != name:
        return "not_pinned"
    others = np.delete(lane.pool.awake(), index)
    return "last_one" if action == "disable" and not others.any() else ""
