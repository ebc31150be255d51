"""Predictions that somebody asks for by themselves: what would be said now; nothing changes.

A call of a learner costs as much as several rows. So while there is a stream such rows go along at the head
of its next block: there they are asked before anything of it is learned. Where none comes they have a walk of
the pool to themselves.
"""

import functools
from typing import TYPE_CHECKING

import numpy as np

from adaptd.answers import Answers, Beside
from adaptd.contracts import PREDICT, Bytes, Floats, Rows

if TYPE_CHECKING:
    from adaptd.engine import Lane


@functools.lru_cache
def only_asking(n: int) -> tuple[Floats, Bytes, Floats]:
    """Labels, operations and weights of rows that are only asked for; nobody writes to them."""
    return np.full(n, np.nan), np.full(n, PREDICT, np.uint8), np.ones(n)


class Asked:
    """Rows that are asked for, and what is said of them."""

    def __init__(self, lane: "Lane", reads: list[Rows]) -> None:
        self.ids = [identifier for rows in reads for identifier in rows.ids]
        # Columns and texts never met are missing.
        self.x = np.concatenate([lane.schema.encode_known(rows) for rows in reads])
        self.lags = lane.lags.now(len(self.x))
        self.layout = lane.layout
        self.operations = only_asking(len(self.x))
        self.block: tuple[Floats, Bytes, Floats] | None = None
        """Their operations and then those of the block that they go along with."""
        self.predictions: Floats = np.empty((0, 0, 0))
        """[n_learners, n + rows of the block, width]: what the pool says of all."""
        self.answers: Answers | None = None

    def say(self, lane: "Lane", blend: Floats, parts: Floats | None) -> Answers:
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
    if lane.student is not None and lane.student_serves:
        return asked.say(lane, lane.student.now(asked.x), None)
    return asked.say(lane, *lane.blended(lane.pool.preview(asked.x, asked.lags), *asked.operations))


def walk(lane: "Lane", x: Floats, lags: Floats, y: Floats, op: Bytes, weight: Floats) -> Floats:
    """The pool's walk of a block, and of those who go along.

    Gives what is said of the block [n_learners, n, width]: a view, so what is changed there is blended too.
    """
    asked = lane.asked
    if asked is None or asked.layout != lane.layout:
        lane.asked = None
        return lane.pool.step(x, lags, y, op, weight)
    n, (no_y, ask, full_weight) = len(asked.x), asked.operations
    asked.block = np.concatenate([no_y, y]), np.concatenate([ask, op]), np.concatenate([full_weight, weight])
    asked.predictions = lane.pool.step(
        np.concatenate([asked.x, x]), np.concatenate([asked.lags, lags]), *asked.block, n
    )
    return asked.predictions[:, n:]


def blended(
    lane: "Lane", predictions: Floats, y: Floats, op: Bytes, weight: Floats
) -> tuple[Floats, Floats | None]:
    """The block's blend and parts, as `Lane.blended`; those who went along are answered."""
    asked, lane.asked = lane.asked, None
    if asked is None or asked.block is None:
        return lane.blended(predictions, y, op, weight)
    n = len(asked.x)
    blend, parts = lane.blended(asked.predictions, *asked.block)
    asked.say(lane, blend[:n], None if parts is None else parts[:n])
    return blend[n:], None if parts is None else parts[n:]
