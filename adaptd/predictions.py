"""Predictions to output lines: JSON, one object a line, or CSV.

A line is made of ready pieces of text (ids as they came, class spellings, learner names) and of numbers;
a kernel lays them out, since a call of a JSON encoder for each line would cost more than learning it.

Probabilities are rounded to six decimals. The predicted class is the argmax of the unrounded ones, the
lowest code among equals. A predicted number is the shortest text that reads back as the same float64.

>>> lines = JsonLines().classification([b"17", None], 1, np.array([[0.21, 0.79], [0.5, 0.5]]),
...                                    [b'"up"', b'"down"'], ["forest"], np.array([-1, 0]))
>>> print(lines.decode(), end="")
{"id":17,"prediction":"down","proba":{"up":0.21,"down":0.79},"learner":"blend","row":1}
{"prediction":"up","proba":{"up":0.5,"down":0.5},"learner":"forest","row":2}
"""

import functools
import itertools
import json
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec
import numpy as np

from adaptd.contracts import Bytes, Floats, Ints
from adaptd.kernels.compile import kernel, subkernel

BLEND = "blend"

# What the kernel writes of a row's probabilities.
NOTHING = 0
EVERY = 1
GREATEST = 2

# Tables of pieces that are the same in many calls.
SHELL = 0  # before and after the id: two pieces for a row without one, two for a row with one
CLASS = 1  # what is predicted: one a class and one for null
KEY = 2  # what stands before each class's probability
SPEAKER = 3  # one a learner, then the blend
TAIL = 4  # without echoed fields; before and after them
# And of a call's own rows.
ID = 0  # one a row
NUMBER = 1  # what is predicted, where that is a number: one a row
ECHO = 2  # one a row, or none at all

NUMBER_BYTES_MAX = 20  # the row number
PROBABILITY_BYTES = 8
# Frames that are kept: a handful of lanes, whose classes and speakers change now and then.
FRAMES_MAX = 64


class Lines(Protocol):
    """Turns predictions into lines. However the rows are cut into calls, the bytes are the same."""

    def header(self) -> bytes:
        """What stands before the first line of an output."""

    def classification(
        self,
        ids: Sequence[bytes | None],
        first_row: int,
        probabilities: Floats,
        spellings: Sequence[bytes],
        learners: Sequence[str],
        speakers: Ints | int,
        echo: Sequence[bytes] | None = None,
    ) -> bytes:
        """Lines for rows `first_row`, `first_row + 1`, ...

        ids: [n], raw JSON text or None. probabilities: [n, classes]; a row of NaN, or one without
        classes, predicts null. spellings: a class's raw JSON text. speakers: [n] or one for all, an
        index of `learners`, or -1 for the blend. echo: [n], the inside of a JSON object, may be empty.
        """

    def regression(
        self,
        ids: Sequence[bytes | None],
        first_row: int,
        predictions: Floats,
        learners: Sequence[str],
        speakers: Ints | int,
        echo: Sequence[bytes] | None = None,
    ) -> bytes:
        """As `classification`, for predicted numbers [n]; NaN and infinite ones become null."""


class JsonLines:
    """`{"id":17,"prediction":"down","proba":{"up":0.21,"down":0.79},"learner":"blend","row":18}`."""

    def header(self) -> bytes:
        return b""

    def classification(
        self,
        ids: Sequence[bytes | None],
        first_row: int,
        probabilities: Floats,
        spellings: Sequence[bytes],
        learners: Sequence[str],
        speakers: Ints | int,
        echo: Sequence[bytes] | None = None,
    ) -> bytes:
        frame = _json_frame(tuple(spellings), tuple(learners), True)
        return _lines(frame, [_texts(ids), [], echo or ()], probabilities, EVERY, speakers, first_row)

    def regression(
        self,
        ids: Sequence[bytes | None],
        first_row: int,
        predictions: Floats,
        learners: Sequence[str],
        speakers: Ints | int,
        echo: Sequence[bytes] | None = None,
    ) -> bytes:
        own = [_texts(ids), _numbers(predictions), echo or ()]
        none = np.empty((len(ids), 0))
        return _lines(_json_frame((), tuple(learners), False), own, none, NOTHING, speakers, first_row)


class CsvLines:
    """`id,prediction,confidence,learner,row`; the confidence is the predicted class's probability.

    Nothing is echoed: the columns are the same whatever the input holds.
    """

    def header(self) -> bytes:
        return b"id,prediction,confidence,learner,row\n"

    def classification(
        self,
        ids: Sequence[bytes | None],
        first_row: int,
        probabilities: Floats,
        spellings: Sequence[bytes],
        learners: Sequence[str],
        speakers: Ints | int,
        echo: Sequence[bytes] | None = None,
    ) -> bytes:
        own: list[Sequence[bytes]] = [_csv_fields(ids), [], []]
        frame = _csv_frame(tuple(spellings), tuple(learners))
        return _lines(frame, own, probabilities, GREATEST, speakers, first_row)

    def regression(
        self,
        ids: Sequence[bytes | None],
        first_row: int,
        predictions: Floats,
        learners: Sequence[str],
        speakers: Ints | int,
        echo: Sequence[bytes] | None = None,
    ) -> bytes:
        numbers = [(b"" if raw == b"null" else raw) + b"," for raw in _numbers(predictions)]
        none = np.empty((len(ids), 0))
        own: list[Sequence[bytes]] = [_csv_fields(ids), numbers, []]
        return _lines(_csv_frame((), tuple(learners)), own, none, NOTHING, speakers, first_row)


FORMATS: dict[str, type[JsonLines] | type[CsvLines]] = {"csv": CsvLines, "json": JsonLines}


class Pieces(NamedTuple):
    """Tables of pieces of text, one behind the other."""

    text: Bytes
    ends: Ints
    """[pieces + 1]: piece `k` is `text[ends[k]:ends[k + 1]]`."""
    firsts: Ints
    """[tables + 1]: table `t` begins at piece `firsts[t]`."""

    def lengths(self, table: int) -> Ints:
        """[pieces of the table]: bytes."""
        ends = self.ends[self.firsts[table] : self.firsts[table + 1] + 1]
        return ends[1:] - ends[:-1]


def _joined(tables: Sequence[Sequence[bytes]]) -> Pieces:
    pieces = list(itertools.chain.from_iterable(tables))
    ends = np.fromiter(itertools.accumulate(map(len, pieces), initial=0), np.int64, len(pieces) + 1)
    firsts = np.fromiter(itertools.accumulate(map(len, tables), initial=0), np.int64, len(tables) + 1)
    # A copy, since the kernel is compiled for arrays that can be written.
    return Pieces(np.frombuffer(b"".join(pieces), np.uint8).copy(), ends, firsts)


class Frame(NamedTuple):
    """What is the same in many calls."""

    pieces: Pieces
    row_bytes: int
    """What a row takes at most, without what is its own."""


def _frame(tables: list[list[bytes]]) -> Frame:
    pieces = _joined(tables)
    most = [int(pieces.lengths(table).max(initial=0)) for table in range(len(tables))]
    keys = int(pieces.lengths(KEY).sum()) + PROBABILITY_BYTES * max(1, len(tables[KEY]))
    row_bytes = 2 * most[SHELL] + most[CLASS] + keys + most[SPEAKER] + 2 * most[TAIL] + NUMBER_BYTES_MAX
    return Frame(pieces, row_bytes)


@functools.lru_cache(FRAMES_MAX)
def _json_frame(spellings: tuple[bytes, ...], learners: tuple[str, ...], has_classes: bool) -> Frame:
    values = [raw + b',"proba":{' for raw in (*spellings, b"null")]
    # The keys of an object are strings: class 3.5 is "3.5" there.
    keys = [raw if raw.startswith(b'"') else b'"' + raw + b'"' for raw in spellings]
    keys = [(b"," if code else b"") + key + b":" for code, key in enumerate(keys)]
    before = b"}" if has_classes else b""
    names = [before + b',"learner":' + msgspec.json.encode(name) + b',"row":' for name in (*learners, BLEND)]
    shell = [b"{", b'"prediction":', b'{"id":', b',"prediction":']
    return _frame([shell, values, keys, names, [b"}\n", b",", b"}\n"]])


@functools.lru_cache(FRAMES_MAX)
def _csv_frame(spellings: tuple[bytes, ...], learners: tuple[str, ...]) -> Frame:
    values = [_csv_field(raw) + b"," for raw in spellings] + [b","]
    names = [b"," + _csv_field(msgspec.json.encode(name)) + b"," for name in (*learners, BLEND)]
    return _frame([[b"", b",", b"", b","], values, [], names, [b"\n", b"", b"\n"]])


def _texts(ids: Sequence[bytes | None]) -> list[bytes]:
    return [raw or b"" for raw in ids]


def _csv_fields(ids: Sequence[bytes | None]) -> list[bytes]:
    return [b"" if raw is None else _csv_field(raw) for raw in ids]


def _numbers(predictions: Floats) -> list[bytes]:
    """The shortest exact text of each; null where it is not finite."""
    return msgspec.json.encode(predictions.tolist())[1:-1].split(b",") if len(predictions) else []


def _csv_field(raw: bytes) -> bytes:
    """Raw JSON text as one CSV field, quoted where it has to be."""
    text = raw
    if raw.startswith(b'"'):
        # The lenient decoder: an id may have come with half of a surrogate pair.
        text = raw[1:-1] if b"\\" not in raw else json.loads(raw).encode("utf-8", "replace")
    if text and not any(sign in text for sign in (b",", b'"', b"\n", b"\r")):
        return text
    return b'"' + text.replace(b'"', b'""') + b'"'


def _lines(
    frame: Frame,
    own: list[Sequence[bytes]],
    probabilities: Floats,
    share: int,
    speakers: Ints | int,
    first_row: int,
) -> bytes:
    """Lay out the lines of all rows; enough room is reserved for the longest that each could be."""
    n, rows = len(own[ID]), _joined(own)
    out = np.empty(len(rows.text) + n * frame.row_bytes, dtype=np.uint8)
    size = _write_lines(
        *frame.pieces,
        *rows,
        # Copies, since the kernel is compiled for arrays that can be written.
        np.array(probabilities, dtype=np.float64, order="C"),
        share,
        np.full(n, speakers, dtype=np.int64),
        first_row,
        out,
    )
    return out[:size].tobytes()


@subkernel
def _put(text: Bytes, ends: Ints, piece: int, out: Bytes, at: int) -> int:
    """Copy one piece to `out` at `at`; where it ends."""
    for k in range(ends[piece], ends[piece + 1]):
        out[at] = text[k]
        at += 1
    return at


@subkernel
def _put_integer(value: int, out: Bytes, at: int) -> int:
    """Decimal digits of a number that is at least 0; where they end."""
    size = 1
    rest = value // 10
    while rest > 0:
        size += 1
        rest //= 10
    for k in range(at + size - 1, at - 1, -1):
        out[k] = 48 + value % 10
        value //= 10
    return at + size


@subkernel
def _put_probability(p: float, out: Bytes, at: int) -> int:
    """Up to six decimals, at least one: 0.0, 0.21, 0.333333, 1.0; where they end."""
    millionths = min(max(int(np.rint(p * 1e6)), 0), 1_000_000)
    out[at] = 48 + millionths // 1_000_000
    out[at + 1] = 46
    fraction = millionths % 1_000_000
    for k in range(at + 7, at + 1, -1):
        out[k] = 48 + fraction % 10
        fraction //= 10
    at += 8
    while out[at - 1] == 48 and out[at - 2] != 46:
        at -= 1
    return at


@kernel("i8(u1[::1], i8[::1], i8[::1], u1[::1], i8[::1], i8[::1], f8[:,::1], i8, i8[::1], i8, u1[::1])")
def _write_lines(
    text: Bytes,
    ends: Ints,
    firsts: Ints,
    own_text: Bytes,
    own_ends: Ints,
    own_firsts: Ints,
    probabilities: Floats,
    share: int,
    speakers: Ints,
    first_row: int,
    out: Bytes,
) -> int:
    """Write the lines of all rows to `out`; how many bytes. The first six: `Pieces` of frame and rows."""
    n, n_classes = probabilities.shape
    n_speakers = firsts[SPEAKER + 1] - firsts[SPEAKER]
    has_echo = own_firsts[ECHO + 1] > own_firsts[ECHO]
    at = 0
    for i in range(n):
        raw_id = own_firsts[ID] + i
        shell = firsts[SHELL] + (2 if own_ends[raw_id + 1] > own_ends[raw_id] else 0)
        at = _put(text, ends, shell, out, at)
        at = _put(own_text, own_ends, raw_id, out, at)
        at = _put(text, ends, shell + 1, out, at)
        if share == NOTHING:
            at = _put(own_text, own_ends, own_firsts[NUMBER] + i, out, at)
        else:
            best = 0
            asleep = n_classes == 0
            for c in range(n_classes):
                if np.isnan(probabilities[i, c]):
                    asleep = True
                elif probabilities[i, c] > probabilities[i, best]:
                    best = c
            at = _put(text, ends, firsts[CLASS] + (n_classes if asleep else best), out, at)
            if not asleep and share == GREATEST:
                at = _put_probability(probabilities[i, best], out, at)
            elif not asleep:
                for c in range(n_classes):
                    at = _put(text, ends, firsts[KEY] + c, out, at)
                    at = _put_probability(probabilities[i, c], out, at)
        speaker = speakers[i] if speakers[i] >= 0 else n_speakers - 1
        at = _put(text, ends, firsts[SPEAKER] + speaker, out, at)
        at = _put_integer(first_row + i, out, at)
        echoed = own_firsts[ECHO] + i
        if has_echo and own_ends[echoed + 1] > own_ends[echoed]:
            at = _put(text, ends, firsts[TAIL] + 1, out, at)
            at = _put(own_text, own_ends, echoed, out, at)
            at = _put(text, ends, firsts[TAIL] + 2, out, at)
        else:
            at = _put(text, ends, firsts[TAIL], out, at)
    return at
