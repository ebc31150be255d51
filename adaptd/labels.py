"""Late labels meet the predictions that were made.

A row that comes without its label waits here: its features, every learner's prediction, the blend's. When
the label comes, the row is scored against those and learned from those features. What waits is bounded in
rows, bytes and event time, all counted in the input's order, so that it does not matter how the input was
cut.
"""

import collections
import math
from typing import Any

import numpy as np

from adaptd.config import LabelsConfig
from adaptd.contracts import Floats, Ints, Reject, State
from adaptd.coverage import GIVEN
from adaptd.kernels.blocks import LAGS
from adaptd.numerics import enlarged

# One row cannot move the event-time clock further ahead than this: a single wrong time would expire all.
TIME_JUMP_SECONDS = 3600.0


class LabelBuffer:
    """Rows that wait for their label, and labels that wait for their row.

    A waiting row has a *slot*: an index into the arrays `x` [slots, n_features], `predictions` [slots,
    n_learners, width], `blend` [slots, width], `lags` [slots, LAGS], `given` [slots, GIVEN] (the bound that
    came with the prediction), `row` and `time` [slots].
    """

    def __init__(self, config: LabelsConfig, n_learners: int) -> None:
        self.config = config
        self.waiting: collections.OrderedDict[bytes, int] = collections.OrderedDict()
        self.early: collections.OrderedDict[bytes, tuple[bytes, int]] = collections.OrderedDict()
        self.now = -math.inf
        self.x = np.zeros((0, 0))
        self.predictions = np.zeros((0, n_learners, 0))
        self.blend = np.zeros((0, 0))
        self.lags = np.zeros((0, LAGS))
        self.given = np.full((0, GIVEN), math.nan)
        self.row = np.zeros(0, np.int64)
        self.time = np.zeros(0)
        self.weight = np.zeros(0)
        self.free: list[int] = []
        self.released: list[int] = []
        self.expired = {"rows": 0, "bytes": 0, "age": 0}
        self.duplicates = 0
        self.unknown = 0

    def grow(self, n_features: int, width: int) -> None:
        """Waiting rows get the new features as missing and the new classes as impossible."""
        slots, n_learners, old_width = self.predictions.shape
        self.x = enlarged(self.x, (slots, n_features), math.nan)
        # A row that was asked before any class was known has no prediction, rather than an impossible one.
        fill = math.nan if old_width == 0 else 0.0
        self.predictions = enlarged(self.predictions, (slots, n_learners, width), fill)
        self.blend = enlarged(self.blend, (slots, width), fill)

    def add_learner(self) -> None:
        """One more learner at the end: of the rows that wait it has said nothing."""
        slots, n_learners, width = self.predictions.shape
        self.predictions = enlarged(self.predictions, (slots, n_learners + 1, width), math.nan)

    def become_numbers(self, printed: Floats, n_learners: int) -> None:
        """The task has become regression: `printed` [slots] is the number that was answered then."""
        self.predictions = np.full((len(printed), n_learners, 1), math.nan)
        self.blend = np.ascontiguousarray(printed[:, None])
        self.given[:] = math.nan

    def advance(self, time: float) -> None:
        """The event-time clock follows the greatest time seen, and expires what has become too old."""
        if math.isnan(time) or time <= self.now:
            return
        self.now = time if self.now == -math.inf else min(time, self.now + TIME_JUMP_SECONDS)
        oldest = self.now - self.config.age_seconds_max
        while self.waiting and self.time[next(iter(self.waiting.values()))] < oldest:
            self.expire("age")

    def admit(self, identifier: bytes | None, row: int, time: float, weight: float) -> int:
        """A slot for a row that waits; what does not fit any more expires, the oldest first.

        identifier: None for a row whose label is at hand and only has to change the layout first.
        """
        if not self.free:
            self.enlarge()
        slot = self.free.pop()
        self.row[slot], self.time[slot], self.weight[slot] = row, time, weight
        self.given[slot] = math.nan
        if identifier is None:
            self.released.append(slot)
            return slot
        self.waiting[identifier] = slot
        rows_by_bytes = max(self.config.bytes_max // self.row_bytes(), 1)
        while len(self.waiting) > min(self.config.rows_max, rows_by_bytes):
            self.expire("rows" if len(self.waiting) > self.config.rows_max else "bytes")
        return slot

    def release(self, identifier: bytes) -> int:
        """End a row's wait; its slot stays as it is until `reclaim`."""
        slot = self.waiting.pop(identifier)
        self.released.append(slot)
        return slot

    def expire(self, reason: str) -> None:
        _, slot = self.waiting.popitem(last=False)
        self.released.append(slot)
        self.expired[reason] += 1

    def reclaim(self, keep: int) -> None:
        """Between blocks: slots that were released can be taken again, all but `keep`."""
        self.free.extend(slot for slot in self.released if slot != keep)
        self.released = [slot for slot in self.released if slot == keep]

    def hold(self, identifier: bytes, label: bytes, position: int) -> list[Reject]:
        """Keep a label whose row has not come; returns those that can wait no longer."""
        self.early.pop(identifier, None)
        self.early[identifier] = (label, position)
        return self.give_up(self.config.early_rows_max)

    def give_up(self, keep: int) -> list[Reject]:
        """Reject the oldest labels without a row, all but the newest `keep`."""
        rejects = []
        while len(self.early) > keep:
            identifier, (label, position) = self.early.popitem(last=False)
            self.unknown += 1
            detail = "no row with this id is waiting for a label"
            rejects.append(
                Reject("unknown_id", detail, position, b'{"id":%b,"label":%b}' % (identifier, label))
            )
        return rejects

    def enlarge(self) -> None:
        slots = len(self.row)
        more = max(64, 2 * slots)
        self.x = enlarged(self.x, (more, *self.x.shape[1:]))
        self.lags = enlarged(self.lags, (more, LAGS))
        self.predictions = enlarged(self.predictions, (more, *self.predictions.shape[1:]))
        self.blend = enlarged(self.blend, (more, *self.blend.shape[1:]))
        self.given = enlarged(self.given, (more, GIVEN), math.nan)
        self.row = enlarged(self.row, (more,))
        self.time = enlarged(self.time, (more,))
        self.weight = enlarged(self.weight, (more,))
        self.free.extend(range(more - 1, slots - 1, -1))

    def row_bytes(self) -> int:
        """Bytes that one waiting row takes, about."""
        return 8 * (self.x.shape[1] + (self.predictions.shape[1] + 1) * self.blend.shape[1]) + 200

    @property
    def slots(self) -> Ints:
        """Those in which rows wait, the oldest first."""
        return np.array(list(self.waiting.values()), np.int64)

    def state(self) -> State:
        slots = self.slots
        return {
            "ids": list(self.waiting),
            "early_ids": list(self.early),
            "early_labels": [label for label, _ in self.early.values()],
            "early_positions": [position for _, position in self.early.values()],
            "now": self.now,
            "x": self.x[slots],
            "lags": self.lags[slots],
            "predictions": self.predictions[slots],
            "blend": self.blend[slots],
            "given": self.given[slots],
            "row": self.row[slots],
            "time": self.time[slots],
            "weight": self.weight[slots],
            "expired": dict(self.expired),
            "duplicates": self.duplicates,
            "unknown": self.unknown,
        }

    def load_state(self, state: State, places: list[int] | None = None) -> None:
        """places: for each learner of a changed pool its place in the saved one, -1 for a new one."""
        self.waiting = collections.OrderedDict((name, slot) for slot, name in enumerate(state["ids"]))
        self.early = collections.OrderedDict(
            (name, (label, position))
            for name, label, position in zip(
                state["early_ids"], state["early_labels"], state["early_positions"], strict=True
            )
        )
        for name in ("x", "lags", "predictions", "blend", "given", "row", "time", "weight"):
            setattr(self, name, state[name].copy())
        if places is not None:
            self.predictions = self.predictions[:, places]
            self.predictions[:, [place < 0 for place in places]] = math.nan
        self.free, self.released = [], []
        self.now = state["now"]
        self.expired = dict(state["expired"])
        self.duplicates, self.unknown = state["duplicates"], state["unknown"]

    def counts(self) -> dict[str, Any]:
        """Numbers for the metrics."""
        return {
            "rows": len(self.waiting),
            "bytes": len(self.waiting) * self.row_bytes(),
            "early": len(self.early),
            "expired": dict(self.expired),
            "duplicates": self.duplicates,
            "unknown": self.unknown,
        }
