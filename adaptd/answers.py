"""What a lane answers, on its way to output lines."""

import msgspec
import numpy as np

from adaptd import explain
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
    parts: Floats | None = None
    """[n, learners + 1]: what each learner brings to the whole, and the bias (`contracts.Explaining`)."""
    names: list[str] = []
    """The learners of `parts`."""


def formatted(lines: Lines, part: Answers, spellings: list[bytes]) -> bytes:
    """The output lines of `part`."""
    names, speaker = ([], -1) if part.learner is None else ([part.learner], 0)
    known, extras = spellings[: part.values.shape[1]], part.echo
    if part.parts is not None:
        extras = beside(extras, explained(part, known))
    if part.task == "regression":
        values = np.ascontiguousarray(part.values[:, 0])
        return lines.regression(part.ids, part.first_row, values, names, speaker, extras)
    return lines.classification(part.ids, part.first_row, part.values, known, names, speaker, extras)


def beside(echo: list[bytes] | None, more: list[bytes]) -> list[bytes]:
    """More keys for each line, before those that are echoed; all as the inside of a JSON object."""
    return more if echo is None else [b",".join(filter(None, pair)) for pair in zip(more, echo, strict=True)]


def explained(part: Answers, spellings: list[bytes]) -> list[bytes]:
    """`"contributions":{...},"bias":...,"against":...` for each line; null where nothing is predicted."""
    assert part.parts is not None
    keys = [b"%b:" % msgspec.json.encode(name) for name in part.names]
    against = [b""] * len(part.ids)
    if part.task == "classification":
        against = [b',"against":null'] * len(part.ids)
        if part.values.shape[1] > 1:
            _, second = explain.two_greatest(part.values)
            against = [b',"against":%b' % spellings[code] for code in second.tolist()]
    lines = []
    for numbers, other in zip(part.parts.tolist(), against, strict=True):
        if numbers[-1] != numbers[-1]:
            against_none = b',"against":null' if other else b""
            lines.append(b'"contributions":null,"bias":null' + against_none)
            continue
        *brought, bias = [msgspec.json.encode(float(f"{number:.7g}")) for number in numbers]
        inside = b",".join(key + number for key, number in zip(keys, brought, strict=True))
        lines.append(b'"contributions":{%b},"bias":%b%b' % (inside, bias, other))
    return lines


def merged(answers: list[Answers]) -> list[Answers]:
    """Neighbours of one form as one: fewer and larger pieces are cheaper to format."""
    groups: list[list[Answers]] = []
    for part in answers:
        if groups and form(groups[-1][-1]) == form(part):
            groups[-1].append(part)
        else:
            groups.append([part])
    return [group[0] if len(group) == 1 else joined(group) for group in groups]


def form(part: Answers) -> tuple[str, int, str | None, list[str]]:
    return part.task, part.values.shape[1], part.learner, part.names


def joined(group: list[Answers]) -> Answers:
    first = group[0]
    return Answers(
        [identifier for part in group for identifier in part.ids],
        first.first_row,
        np.concatenate([part.values for part in group]),
        first.task,
        first.learner,
        None if first.echo is None else [echo for part in group for echo in part.echo or []],
        None if first.parts is None else np.concatenate([part.parts for part in group]),
        first.names,
    )
