"""Predictions that somebody asks for by themselves: what would be said now; nothing changes.

A call of a learner costs as much as several rows. So while there is a stream such rows go along at the head
of its next block: there they are asked before anything of it is learned. Where none comes they have a walk of
the pool to themselves.
"""

from typing import TYPE_CHECKING

import numpy as np

from adaptd.answers import Answers, Beside
from adaptd.contracts import PREDICT, Bytes, Floats, Rows

if TYPE_CHECKING:
    from adaptd.engine import Lane


class Asked:
    """Rows that are asked for, and what is said of them."""

    def __init__(self, lane: "Lane", reads: list[Rows]) -> None:
        self.ids = [identifier for rows in reads for identifier in rows.ids]
        # Columns and texts never met are missing.
        self.x = np.vstack([lane.schema.encode_known(rows) for rows in reads])
        self.lags = lane.lags.now(len(self.x))
        self.layout = lane.layout
        n = len(self.x)
        self.operations = np.full(n, np.nan), np.full(n, PREDICT, np.uint8), np.ones(n)
        self.answers: Answers | None = None

    def say(self, lane: "Lane", predictions: Floats | None) -> Answers:
        """predictions [n_learners, n, width]: the pool's; None when the student speaks."""
        blend, parts = None, None
        if lane.student is not None and predictions is None:
            blend = lane.student.now(self.x)
        else:
            assert predictions is not None
            blend, parts = lane.blended(predictions, *self.operations)
        given = None if lane.coverage is None else lane.coverage.now(blend)
        beside = Beside(tuple(lane.pool.names), parts, given)
        self.answers = Answers(self.ids, 1, blend, lane.layout.task, lane.speaker_name, None, beside)
        return self.answers


def may_go_along(lane: "Lane") -> bool:
    """Not where the student speaks, who is fast, nor beside a guest: what it raises would count."""
    return not lane.student_serves and lane.pool.has_no_guests


def preview(lane: "Lane", reads: list[Rows]) -> Answers:
    """By themselves."""
    asked = Asked(lane, reads)
    speaks = lane.student is not None and lane.student_serves
    return asked.say(lane, None if speaks else lane.pool.preview(asked.x, asked.lags))


def walk(lane: "Lane", x: Floats, lags: Floats, y: Floats, op: Bytes, weight: Floats) -> Floats:
    """The pool's walk of a block [n_learners, n, width], with those who go along."""
    asked, lane.asked = lane.asked, None
    if asked is None or asked.layout != lane.layout:
        return lane.pool.step(x, lags, y, op, weight)
    n = len(asked.x)
    no_y, ask, full_weight = asked.operations
    predictions = lane.pool.step(
        np.vstack([asked.x, x]),
        np.vstack([asked.lags, lags]),
        np.concatenate([no_y, y]),
        np.concatenate([ask, op]),
        np.concatenate([full_weight, weight]),
        n,
    )
    asked.say(lane, np.ascontiguousarray(predictions[:, :n]))
    return np.ascontiguousarray(predictions[:, n:])
