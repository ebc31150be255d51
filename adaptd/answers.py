"""What a lane answers, on its way to output lines."""

import msgspec
import numpy as np

from adaptd.contracts import Floats
from adaptd.predictions import Lines


class Answers(msgspec.Struct):
    """Predictions of consecutive rows under one layout, to be formatted and written."""

    ids: list[bytes | None]
    first_row: int
    """Number of the first of them, from 1."""
    values: Floats
    """[n, width]: probabilities, or the predicted number; NaN: no prediction."""
    task: str
    learner: str | None
    """Whose prediction this is, by the name it had then; None for the blend."""
    echo: list[bytes] | None


def formatted(lines: Lines, part: Answers, spellings: list[bytes]) -> bytes:
    """The output lines of `part`."""
    names, speaker = ([], -1) if part.learner is None else ([part.learner], 0)
    if part.task == "regression":
        values = np.ascontiguousarray(part.values[:, 0])
        return lines.regression(part.ids, part.first_row, values, names, speaker, part.echo)
    known = spellings[: part.values.shape[1]]
    return lines.classification(part.ids, part.first_row, part.values, known, names, speaker, part.echo)


def merged(answers: list[Answers]) -> list[Answers]:
    """Neighbours of one form as one: fewer and larger pieces are cheaper to format."""
    groups: list[list[Answers]] = []
    for part in answers:
        if groups and form(groups[-1][-1]) == form(part):
            groups[-1].append(part)
        else:
            groups.append([part])
    return [group[0] if len(group) == 1 else joined(group) for group in groups]


def form(part: Answers) -> tuple[str, int, str | None]:
    return part.task, part.values.shape[1], part.learner


def joined(group: list[Answers]) -> Answers:
    first = group[0]
    return Answers(
        [identifier for part in group for identifier in part.ids],
        first.first_row,
        np.concatenate([part.values for part in group]),
        first.task,
        first.learner,
        None if first.echo is None else [echo for part in group for echo in part.echo or []],
    )
