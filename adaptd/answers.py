"""What a lane answers, on its way to output lines."""

import msgspec
import numpy as np
import numpy.typing as npt

from adaptd import coverage, explain
from adaptd.contracts import Floats
from adaptd.predictions import Lines


class Beside(msgspec.Struct, frozen=True):
    """What stands beside predictions where it is asked for (`[output]`)."""

    names: tuple[str, ...] = ()
    """The learners, by the names they had then."""
    parts: Floats | None = None
    """[n, learners + 1]: what each learner brings to the whole, and the bias (`contracts.Explaining`)."""
    given: Floats | None = None
    """[n, GIVEN]: the bound of the interval, or of the set of classes (`coverage.py`)."""

    def taken(self, rows: npt.NDArray[np.bool_] | slice) -> "Beside":
        """The same of some rows only."""
        of = [None if array is None else array[rows] for array in (self.parts, self.given)]
        return Beside(self.names, *of)


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
    beside: Beside = Beside()

    def between(self, start: int, stop: int) -> "Answers":
        """Some of them."""
        if start == 0 and stop == len(self.ids):
            return self
        rows = slice(start, stop)
        return Answers(
            self.ids[rows],
            self.first_row + start,
            self.values[rows],
            self.task,
            self.learner,
            self.echo and self.echo[rows],
            self.beside.taken(rows),
        )


def formatted(lines: Lines, part: Answers, spellings: list[bytes]) -> bytes:
    """The output lines of `part`."""
    names, speaker = ([], -1) if part.learner is None else ([part.learner], 0)
    known, extras = spellings[: part.values.shape[1]], part.echo
    if part.beside.parts is not None:
        extras = with_more(extras, explained(part, part.beside.parts, known))
    if part.beside.given is not None:
        extras = with_more(extras, bounded(part, part.beside.given, known))
    if part.task == "regression":
        values = np.ascontiguousarray(part.values[:, 0])
        return lines.regression(part.ids, part.first_row, values, names, speaker, extras)
    return lines.classification(part.ids, part.first_row, part.values, known, names, speaker, extras)


def with_more(echo: list[bytes] | None, more: list[bytes]) -> list[bytes]:
    """More keys for each line, before those that are echoed; all as the inside of a JSON object."""
    return more if echo is None else [b",".join(filter(None, pair)) for pair in zip(more, echo, strict=True)]


def explained(part: Answers, parts: Floats, spellings: list[bytes]) -> list[bytes]:
    """`"contributions":{...},"bias":...,"against":...` for each line; null where nothing is predicted."""
    keys = [b"%b:" % msgspec.json.encode(name) for name in part.beside.names]
    against = [b""] * len(part.ids)
    if part.task == "classification":
        against = [b',"against":null'] * len(part.ids)
        if part.values.shape[1] > 1:
            _, second = explain.two_greatest(part.values)
            against = [b',"against":%b' % spellings[code] for code in second.tolist()]
    lines = []
    for numbers, other in zip(parts.tolist(), against, strict=True):
        if numbers[-1] != numbers[-1]:
            against_none = b',"against":null' if other else b""
            lines.append(b'"contributions":null,"bias":null' + against_none)
            continue
        *brought, bias = [msgspec.json.encode(float(f"{number:.7g}")) for number in numbers]
        inside = b",".join(key + number for key, number in zip(keys, brought, strict=True))
        lines.append(b'"contributions":{%b},"bias":%b%b' % (inside, bias, other))
    return lines


def bounded(part: Answers, given: Floats, spellings: list[bytes]) -> list[bytes]:
    """`"interval":[lower,upper]`, null where nobody can say yet; or `"classes":[...]`."""
    if part.task == "regression":
        low, high = (
            msgspec.json.encode(ends.tolist())[1:-1] for ends in coverage.interval(part.values, given)
        )
        ends = zip(low.split(b","), high.split(b","), strict=True)
        return [b'"interval":null' if b"null" in pair else b'"interval":[%b,%b]' % pair for pair in ends]
    inside = coverage.members(part.values, given).tolist()
    return [
        b'"classes":[%b]' % b",".join(name for name, member in zip(spellings, row, strict=True) if member)
        for row in inside
    ]


def merged(answers: list[Answers]) -> list[Answers]:
    """Neighbours of one form as one: fewer and larger pieces are cheaper to format."""
    groups: list[list[Answers]] = []
    for part in answers:
        if groups and form(groups[-1][-1]) == form(part):
            groups[-1].append(part)
        else:
            groups.append([part])
    return [group[0] if len(group) == 1 else joined(group) for group in groups]


def form(part: Answers) -> tuple[str, int, str | None, tuple[str, ...]]:
    return part.task, part.values.shape[1], part.learner, part.beside.names


def joined(group: list[Answers]) -> Answers:
    first = group[0]
    besides = [part.beside for part in group]
    return Answers(
        [identifier for part in group for identifier in part.ids],
        first.first_row,
        np.concatenate([part.values for part in group]),
        first.task,
        first.learner,
        None if first.echo is None else [echo for part in group for echo in part.echo or []],
        Beside(
            first.beside.names,
            stacked([beside.parts for beside in besides]),
            stacked([beside.given for beside in besides]),
        ),
    )


def stacked(arrays: list[Floats | None]) -> Floats | None:
    """One array of all; None when there are none."""
    known = [array for array in arrays if array is not None]
    return np.concatenate(known) if known else None
