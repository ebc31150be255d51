"""Records become operations in arrival order: PREDICT, LEARN, or both, cut into blocks.

A row that comes labelled is both. One that comes without its label is a PREDICT now and, through the label
buffer, a LEARN when the label comes. A label that changes the layout (a class never met) ends the block: its
row is predicted under the old layout and learned at the start of the next block, under the new one, so that
no prediction knows a class before the class was learned.
"""

import math
from collections.abc import Callable

import msgspec
import numpy as np
import numpy.typing as npt

from adaptd.contracts import LEARN, PREDICT, Bytes, Floats, Ints, Reject, Rows
from adaptd.labels import TIME_JUMP_SECONDS, LabelBuffer

# Rows of a block, at most: bounds the memory of its predictions. It decides nothing.
BLOCK_ROWS_MAX = 1024
NONE = -1
# Stands for the class of a label that was never learned. No target of a regression has this value: they are
# finite, and -1.0, which was taken once, is one of them.
NEW_CLASS = -math.inf


class HeldLabel(msgspec.Struct):
    """A label that must change the layout before it can be learned."""

    slot: int
    """Where its row waits in the label buffer."""
    label: bytes
    position: int
    """Of the record that brought it."""


class Plan(msgspec.Struct):
    """The operations of one block, in order."""

    source: list[int] | Ints = []
    """Row of the read that brings the features, NONE for a late label."""
    slot: list[int] | Ints = []
    """Slot that the row will wait in, or in which a late label finds its row; NONE: neither."""
    op: list[int] | Bytes = []
    y: list[float] | Floats = []
    stop: int = 0
    """The next row of the read, not part of the block."""
    held: HeldLabel | None = None
    is_plain: bool = False
    """Consecutive rows of the read, each with features and a known label."""


class Late:
    """Which operations of a block are late labels, and where their rows are."""

    def __init__(self, is_late: npt.NDArray[np.bool_], slot: Ints, origin: Ints) -> None:
        self.is_late = is_late
        self.waited = is_late & (origin == NONE)
        """Rows that came in an earlier block."""
        self.slots = slot[self.waited]
        self.here = is_late & (origin != NONE)
        """Rows that came in this block."""
        self.origins = origin[self.here]


class Planner:
    """Makes plans; the only one who moves rows in and out of the label buffer."""

    def __init__(
        self,
        labels: LabelBuffer,
        target_of: Callable[[bytes], float],
        reject: Callable[[Reject], None],
    ) -> None:
        self.labels = labels
        self.target_of = target_of
        self.reject = reject

    def plan(
        self, rows: Rows, targets: Floats, at: int, stop: int, held: HeldLabel | None, row: int, quota: int
    ) -> Plan:
        """Operations of rows `at` up to at most `stop`, with at most `quota` labels learned.

        targets [n]: class code or number, NaN without a usable label, NEW_CLASS. held: a label to learn
        first. row: number of predictions made so far.
        """
        if held is None and not self.labels.waiting and not self.labels.early:
            plan = self.plan_labelled(rows, targets, at, min(stop, at + quota, at + BLOCK_ROWS_MAX))
            if plan is not None:
                return plan
        plan = Plan([], [], [], [], at)
        if held is not None:
            add(plan, NONE, held.slot, LEARN, self.target_of(held.label))
            quota -= 1
        while plan.stop < stop and quota > 0 and len(plan.op) < BLOCK_ROWS_MAX and plan.held is None:
            i = plan.stop
            plan.stop += 1
            self.labels.advance(float(rows.times[i]))
            if rows.has_features[i]:
                row += 1
                quota -= self.place_row(plan, rows, i, float(targets[i]), row)
            else:
                quota -= self.place_label(plan, rows, i, float(targets[i]))
        return plan

    def plan_labelled(self, rows: Rows, targets: Floats, at: int, stop: int) -> Plan | None:
        """The common case without a look at each row: features and a known label in every one."""
        simple = rows.has_features[at:stop] & (targets[at:stop] != NEW_CLASS) & ~np.isnan(targets[at:stop])
        n = stop - at if simple.all() else int(simple.argmin())
        if n == 0:
            return None
        latest = float(np.fmax.reduce(rows.times[at : at + n]))
        if latest <= self.labels.now + TIME_JUMP_SECONDS:
            # No step of the way is a jump, so the way does not matter.
            self.labels.advance(latest)
        elif not math.isnan(latest):
            for time in rows.times[at : at + n].tolist():
                self.labels.advance(time)
        return Plan(
            np.arange(at, at + n),
            np.full(n, NONE),
            np.full(n, PREDICT | LEARN, np.uint8),
            targets[at : at + n],
            at + n,
            is_plain=True,
        )

    def place_row(self, plan: Plan, rows: Rows, i: int, target: float, row: int) -> int:
        """Add the operations of a row with features; returns how many labels it learns."""
        identifier, label, position = join_key(rows.ids[i]), rows.labels[i], position_of(rows, i)
        if identifier is not None:
            if identifier in self.labels.waiting:
                self.labels.duplicates += 1
                self.labels.release(identifier)
            early = self.labels.early.pop(identifier, None)
            if label is None and early is not None:
                label, position = early
                target = self.target_of(label)
        if label is not None and math.isnan(target):
            self.reject(bad_label(label, position))
            label = None
        if label is not None and target != NEW_CLASS:
            add(plan, i, NONE, PREDICT | LEARN, target)
            return 1
        if label is None and identifier is None:
            slot = NONE
        else:
            kept_as = identifier if label is None else None
            slot = self.labels.admit(kept_as, row, float(rows.times[i]), float(rows.weights[i]))
        add(plan, i, slot, PREDICT, math.nan)
        if label is not None:
            plan.held = HeldLabel(slot, label, position)
        return 0

    def place_label(self, plan: Plan, rows: Rows, i: int, target: float) -> int:
        """Add the operation of a label that came alone; returns how many labels it learns."""
        identifier, label, position = join_key(rows.ids[i]), rows.labels[i], position_of(rows, i)
        if identifier is None or label is None:
            self.reject(Reject("no_features", "neither features, nor an id with a label", position, b""))
            return 0
        if math.isnan(target):
            self.reject(bad_label(label, position))
            return 0
        if identifier not in self.labels.waiting:
            for unknown in self.labels.hold(identifier, label, position):
                self.reject(unknown)
            return 0
        slot = self.labels.release(identifier)
        if target == NEW_CLASS:
            plan.held = HeldLabel(slot, label, position)
            return 0
        add(plan, NONE, slot, LEARN, target)
        return 1


def add(plan: Plan, source: int, slot: int, op: int, y: float) -> None:
    """Append one operation."""
    plan.source.append(source)  # type: ignore[union-attr]
    plan.slot.append(slot)  # type: ignore[union-attr]
    plan.op.append(op)  # type: ignore[union-attr]
    plan.y.append(y)  # type: ignore[union-attr]


def join_key(identifier: bytes | None) -> bytes | None:
    """An id as it is looked for: one program may escape a letter that another one writes as it is."""
    if identifier is None or b"\\" not in identifier:
        return identifier
    try:
        return msgspec.json.encode(msgspec.json.decode(identifier))
    except ValueError:  # half of a surrogate pair
        return identifier


def position_of(rows: Rows, i: int) -> int:
    return 0 if rows.positions is None else int(rows.positions[i])


def bad_label(label: bytes, position: int) -> Reject:
    return Reject("bad_label", "the label cannot be used for this task", position, label)
