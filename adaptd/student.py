"""The student: one small fast learner that learns from the labels and from what the blend says.

How (distillation): a labelled row is learned towards

    label_share * label + (1 - label_share) * what the blend said of it

and a row whose label has not come towards what the blend says alone, at `unlabelled_weight` of the usual
weight, when the blend gives its class at least `confidence_min` (0 by default: to learn from sure rows only
makes it too sure of itself; `docs/decisions/0011-student.md` has what was measured). The probabilities of
all classes tell more of a row than its label does, and they come at once and for every row. It walks a block
after the controller's kernel, whose blend of the very row it may then learn from; it is no member of the
blend, so nothing of it comes back to its teacher. Its predictions are made before it learns, and late labels
are scored against those that were made, like everybody's.

Use it when: one prediction must take microseconds (`output.serve = "student"`), or labels are late or rare
and one small model is to be carried elsewhere.
Cost: that of its kind, about 1 us a row; and what the pool costs, since the teacher goes on.
Reference: G. Hinton, O. Vinyals, J. Dean, "Distilling the knowledge in a neural network" (2015).
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from adaptd import config as configuration
from adaptd.contracts import LEARN, PREDICT, Bytes, Floats, Ints, Layout, State
from adaptd.kernels.blocks import silence
from adaptd.numerics import enlarged
from adaptd.pool import build_slot
from adaptd.scores import Scores

if TYPE_CHECKING:
    from adaptd.labels import LabelBuffer
    from adaptd.operations import Late

NAME = "student"


class Student:
    """The learner, its scores, and what it said of rows that wait for their label."""

    def __init__(self, config: configuration.StudentConfig, layout: Layout, seed: int) -> None:
        self.config = config
        self.layout = layout
        options = {"kind": config.kind, **config.options}
        self.learner: Any = build_slot(NAME, options, layout, seed).learner
        self.scores = Scores(layout, 1)
        self.waiting = np.zeros((0, layout.width))
        """[slots of the label buffer, width]"""

    def step(
        self,
        x: Floats,
        y: Floats,
        op: Bytes,
        weight: Floats,
        blend: Floats,
        slot: Ints,
        late: "Late | None",
        labels: "LabelBuffer",
    ) -> Floats:
        """Predict, be scored and learn; gives what it said [n, width], for late labels what it said then."""
        said = np.full((len(op), self.layout.width), np.nan)
        soft, told, weight = self.lessons(y, op, weight, blend)
        numbers = soft[:, 0] if self.layout.task == "regression" else y
        self.learner.teach(x, np.ascontiguousarray(numbers), told, weight, said, soft)
        silence(said, op, 0)
        if late is not None:
            if len(self.waiting) < len(labels.row):
                self.waiting = enlarged(self.waiting, (len(labels.row), self.layout.width), np.nan)
            said[late.waited], said[late.here] = self.waiting[late.slots], said[late.origins]
            waits = ~late.is_late & (slot >= 0)
            self.waiting[slot[waits]] = said[waits]
        self.scores.step(np.zeros((0, *said.shape)), said, y, op, np.zeros(len(op)))
        return said

    def lessons(self, y: Floats, op: Bytes, weight: Floats, blend: Floats) -> tuple[Floats, Bytes, Floats]:
        """What each row is learned towards [n, width], the operations, and the weights."""
        config, soft = self.config, blend.copy()
        labelled = (op & LEARN) != 0
        known = ~np.isnan(blend).any(axis=1)
        truth = np.zeros_like(soft)
        if self.layout.task == "classification":
            truth[labelled, y[labelled].astype(np.int64)] = 1.0
            sure = blend.max(axis=1, initial=0.0) >= config.confidence_min
        else:
            truth[:, 0], sure = y, known
        share = np.where(known, config.label_share, 1.0)[labelled, None]
        soft[~known] = 0.0
        soft[labelled] = share * truth[labelled] + (1.0 - share) * soft[labelled]
        alone = ((op & PREDICT) != 0) & ~labelled & known & sure & (config.unlabelled_weight > 0.0)
        told = np.where(alone, op | np.uint8(LEARN), op).astype(np.uint8)
        return soft, told, np.where(alone, config.unlabelled_weight * weight, weight)

    def now(self, x: Floats) -> Floats:
        """What it says of rows that would come now; changes nothing."""
        n = len(x)
        said, op = np.full((n, self.layout.width), np.nan), np.full(n, PREDICT, np.uint8)
        self.learner.step(x, np.full(n, np.nan), op, np.ones(n), said)
        silence(said, op, 0)
        return said

    def grow(self, layout: Layout) -> None:
        fill = np.nan if self.layout.width == 0 else 0.0
        self.learner.grow(layout)
        self.scores.grow(layout)
        self.waiting = enlarged(self.waiting, (len(self.waiting), layout.width), fill)
        self.layout = layout

    def state(self, slots: Ints) -> State:
        """slots: those in which rows wait; they are the first ones when this is loaded."""
        waiting = enlarged(self.waiting, (max(len(self.waiting), *slots + 1, 1), self.layout.width), np.nan)
        return {
            "kind": self.config.kind,
            "options": dict(self.config.options),
            "learner": self.learner.state(),
            "scores": self.scores.state(),
            "waiting": waiting[slots],
        }

    def load_state(self, state: State) -> bool:
        """False when it was another kind or had other options: this one starts fresh."""
        if (state["kind"], state["options"]) != (self.config.kind, dict(self.config.options)):
            return False
        self.learner.load_state(state["learner"])
        self.scores.load_state(state["scores"])
        self.waiting = state["waiting"].copy()
        return True


def build(config: configuration.Config, layout: Layout) -> Student | None:
    """None when there is none."""
    return Student(config.student, layout, config.seed) if config.student.kind != "none" else None
