"""Output lines: what they say, and that however they are cut they say the same."""

import csv
import io
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptd.predictions import FORMATS, CsvLines, JsonLines

SPELLINGS = [b'"up"', b"3.5", b"true"]
LEARNERS = ["forest", 'the "linear" one']


def stream(n, seed=0, classes=3):
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet(np.full(classes, 0.3), size=n)
    probabilities[::7] = np.nan
    ids = [None if k % 5 == 0 else b'"row, \\"%d\\""' % k if k % 3 else b"%d" % k for k in range(n)]
    echo = [b"" if k % 4 == 0 else b'"price":%d' % k for k in range(n)]
    return ids, probabilities, generator.integers(-1, 2, n), echo


def classified(form, start=0, stop=500, first=0):
    ids, probabilities, speakers, echo = stream(500)
    cut = slice(start, stop)
    return form.classification(
        ids[cut], start + 1, probabilities[cut], SPELLINGS, LEARNERS, speakers[cut], echo[cut]
    )


def test_json_line_says_what_was_predicted_by_whom():
    lines = JsonLines().classification(
        [b"17"], 18, np.array([[0.21, 0.79]]), [b'"up"', b'"down"'], ["forest"], -1
    )
    assert lines == (
        b'{"id":17,"prediction":"down","proba":{"up":0.21,"down":0.79},"learner":"blend","row":18}\n'
    )


def test_every_json_line_reads_back():
    ids, probabilities, speakers, echo = stream(500)
    for k, line in enumerate(classified(JsonLines()).splitlines()):
        row = json.loads(line)
        assert row["row"] == k + 1
        assert row["learner"] == [*LEARNERS, "blend"][speakers[k]]
        assert ("id" in row) == (ids[k] is not None)
        assert ids[k] is None or row["id"] == json.loads(ids[k])
        assert row.get("price") == (k if echo[k] else None)
        if math.isnan(probabilities[k, 0]):
            assert (row["prediction"], row["proba"]) == (None, {})
        else:
            assert row["prediction"] == ["up", 3.5, True][np.argmax(probabilities[k])]
            assert list(row["proba"]) == ["up", "3.5", "true"]
            assert np.allclose(list(row["proba"].values()), probabilities[k], rtol=0, atol=5.000001e-7)


@pytest.mark.parametrize("form", FORMATS.values())
@pytest.mark.parametrize("size", [1, 7, 499])
def test_any_cut_gives_the_same_bytes(form, size):
    pieces = [classified(form(), start, min(start + size, 500)) for start in range(0, 500, size)]
    assert b"".join(pieces) == classified(form())


def test_csv_line_has_five_fields_whatever_the_id_holds():
    ids, probabilities, speakers, _ = stream(500)
    text = (CsvLines().header() + classified(CsvLines())).decode()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert len(rows) == 500
    for k, row in enumerate(rows):
        assert list(row) == ["id", "prediction", "confidence", "learner", "row"]
        assert row["id"] == ("" if ids[k] is None else str(json.loads(ids[k])))
        assert (row["learner"], row["row"]) == ([*LEARNERS, "blend"][speakers[k]], str(k + 1))
        if math.isnan(probabilities[k, 0]):
            assert (row["prediction"], row["confidence"]) == ("", "")
        else:
            assert row["prediction"] == ["up", "3.5", "true"][np.argmax(probabilities[k])]
            assert math.isclose(float(row["confidence"]), probabilities[k].max(), abs_tol=5.000001e-7)


def test_rounding_changes_no_prediction_and_a_tie_goes_to_the_lowest_code():
    probabilities = np.array([[0.49999999, 0.50000001], [0.5, 0.5]])
    lines = JsonLines().classification([None] * 2, 1, probabilities, [b"0", b"1"], [], -1).splitlines()
    assert lines[0] == b'{"prediction":1,"proba":{"0":0.5,"1":0.5},"learner":"blend","row":1}'
    assert lines[1] == b'{"prediction":0,"proba":{"0":0.5,"1":0.5},"learner":"blend","row":2}'


@given(st.floats(min_value=0.0, max_value=1.0))
def test_a_probability_is_written_to_six_decimals(p):
    line = JsonLines().classification([None], 1, np.array([[p]]), [b'"a"'], [], -1)
    text = line.split(b'{"a":')[1].split(b"}")[0].decode()
    # Multiplied by a million first, then rounded half to even.
    assert text == repr(float(f"{np.rint(p * 1e6) / 1e6:.6f}")) or "e-" in repr(float(text))
    assert float(text) == np.rint(p * 1e6) / 1e6


@given(st.lists(st.floats(), max_size=20))
def test_a_number_reads_back_as_the_same_float(numbers):
    predictions = np.array(numbers, dtype=np.float64)
    lines = JsonLines().regression([b"1"] * len(numbers), 1, predictions, ["linear"], 0).splitlines()
    assert len(lines) == len(numbers)
    for line, number in zip(lines, numbers, strict=True):
        found = json.loads(line)["prediction"]
        if math.isfinite(number):
            assert np.float64(found).tobytes() == np.float64(number).tobytes()
        else:
            assert found is None


def test_before_any_class_is_known_the_prediction_is_null():
    args = ([b"1"], 1, np.empty((1, 0)), [], ["forest"], -1)
    assert JsonLines().classification(*args) == (
        b'{"id":1,"prediction":null,"proba":{},"learner":"blend","row":1}\n'
    )
    assert CsvLines().classification(*args) == b"1,,,blend,1\n"


@pytest.mark.parametrize("form", FORMATS.values())
def test_no_rows_give_no_lines(form):
    assert form().classification([], 1, np.empty((0, 3)), SPELLINGS, LEARNERS, -1) == b""
    assert form().regression([], 1, np.empty(0), LEARNERS, -1) == b""


def test_csv_number_has_no_confidence():
    lines = CsvLines().regression([b"1", None], 9, np.array([0.1 + 0.2, np.nan]), ["linear"], 0)
    assert lines == b"1,0.30000000000000004,,linear,9\n,,,linear,10\n"


@pytest.mark.parametrize(
    ("raw_id", "field"),
    [(b'"\\ud800"', b"?"), (b'[1,"a"]', b'"[1,""a""]"'), (b'""', b'""'), (b"null", b"null")],
)
def test_odd_ids_are_one_csv_field(raw_id, field):
    assert CsvLines().regression([raw_id], 1, np.ones(1), [], -1) == field + b",1.0,,blend,1\n"


@given(
    st.lists(st.text(max_size=6), min_size=1, max_size=4, unique=True),
    st.text(max_size=6),
    st.integers(1, 2**62),
    st.floats(0.0, 1.0),
)
def test_room_suffices_for_any_text(names, id_text, row, p):
    spellings = [json.dumps(name).encode() for name in names]
    shares = np.full((1, len(names)), p)
    raw_id = json.dumps(id_text, ensure_ascii=False).encode()
    line = JsonLines().classification([raw_id], row, shares, spellings, [], -1)
    found = json.loads(line)
    assert (found["id"], found["row"], list(found["proba"])) == (id_text, row, names)
    text = CsvLines().classification([raw_id], row, shares, spellings, [], -1).decode()
    ((field, prediction, *_),) = csv.reader(io.StringIO(text, newline=""))
    assert (field, prediction) == (id_text, names[0])
