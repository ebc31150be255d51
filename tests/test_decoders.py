"""What becomes of a record's bytes, in JSON and in CSV."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from adaptd.contracts import CATEGORY, NUMBER, Fields, Rows
from adaptd.decoders import csv as csv_decoder
from adaptd.decoders import json as json_decoder
from adaptd.errors import InputError


def decode_json(lines: bytes, kinds: dict[str, int] | None = None, fields: Fields | None = None) -> Rows:
    decoder = json_decoder.build(json_decoder.Config(), fields or Fields())
    return decoder.decode(lines, kinds or {})


def decode_csv(lines: bytes, kinds: dict[str, int] | None = None, fields: Fields | None = None) -> Rows:
    decoder = csv_decoder.build(csv_decoder.Config(), fields or Fields())
    return decoder.decode(lines, kinds or {})


def values(column) -> list:
    """A column's values whatever its form; None for missing."""
    plain = column.tolist() if isinstance(column, np.ndarray) else column
    return [None if value is None or value != value else value for value in plain]


def records(rows: Rows) -> list[tuple]:
    """Rows one by one, in a form that does not depend on the form of columns."""
    columns = {name: values(column) for name, column in rows.columns.items()}
    assert all(len(column) == rows.n for column in columns.values())
    found = []
    for i in range(rows.n):
        row = {name: repr(column[i]) for name, column in columns.items() if column[i] is not None}
        row = {name: {"True": "1.0", "False": "0.0"}.get(text, text) for name, text in row.items()}
        found.append(
            (
                int(rows.positions[i]),
                tuple(sorted(row.items())),
                rows.ids[i],
                rows.labels[i],
                bool(rows.has_features[i]),
                repr(float(rows.times[i])),
                float(rows.weights[i]),
                None if rows.echo is None else rows.echo[i],
            )
        )
    return found


def rejects(rows: Rows) -> list[tuple[int, str]]:
    return [(reject.position, reject.reason) for reject in rows.rejects]


def in_pieces(decoder, lines: list[bytes], cuts: list[int], kinds: dict[str, int]) -> tuple[list, list]:
    found, bad = [], []
    edges = [0, *sorted(min(cut, len(lines)) for cut in cuts), len(lines)]
    for start, stop in itertools.pairwise(edges):
        rows = decoder.decode(b"".join(lines[start:stop]), kinds)
        found += records(rows)
        bad += rejects(rows)
    return found, bad


# --- JSON


@pytest.mark.parametrize(
    "template", ['{"id":%d,"a":%s,"b":%s,"y":"u"}', '{"id":%d,"x":{"a":%s,"b":%s},"y":"u"}']
)
def test_flat_and_nested_records_give_the_same_columns(template: str) -> None:
    lines = "".join(template % (i, i / 4, json.dumps("m" if i % 2 else "n")) + "\n" for i in range(5))
    rows = decode_json(lines.encode())
    assert values(rows.columns["a"]) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert rows.columns["b"] == ["n", "m", "n", "m", "n"]
    assert rows.ids == [b"0", b"1", b"2", b"3", b"4"]
    assert rows.labels == [b'"u"'] * 5
    assert rows.positions.tolist() == [1, 2, 3, 4, 5]
    assert rows.has_features.all()
    assert isinstance(rows.columns["a"], np.ndarray)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3.0),
        ("-0.5e1", -5.0),
        ("true", 1.0),
        ("false", 0.0),
        ("null", None),
        ("NaN", None),
        ("Infinity", math.inf),
        ("-Infinity", -math.inf),
        ("1e999", math.inf),
        ("9" * 400, math.inf),
        ("-" + "9" * 5000, -math.inf),
        ("123456789012345678901234567890", 123456789012345678901234567890.0),
        ('"text"', "text"),
        ('"NaN"', "NaN"),
        ('"\\u00fc \\"NaN\\""', 'ü "NaN"'),
    ],
)
@pytest.mark.parametrize("kinds", [{}, {"a": NUMBER, "b": NUMBER}, {"a": CATEGORY, "b": NUMBER}])
def test_each_json_value_has_one_meaning_whatever_was_expected(text: str, value, kinds) -> None:
    lines = b'{"b":1,"a":%s,"y":1}\n{"b":2,"x":null,"y":NaN}\n{"x":{"b":3,"a":%s},"y":1}\n' % (
        (text.encode(),) * 2
    )
    rows = decode_json(lines, kinds)
    assert rows.rejects == []
    assert values(rows.columns["b"]) == [1.0, 2.0, 3.0]
    assert values(rows.columns.get("a", [None] * 3)) == [value, None, value]
    assert rows.labels == [b"1", None, b"1"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"broken", "not_json"),
        (b'{"a":1', "not_json"),
        (b'{"a":1}{"a":2}', "not_json"),
        (b'{"a":01,"y":1}', "not_json"),
        (b'{"a":"\\ud800","y":1}', "not_json"),
        (b'{"a":' * 100_000, "not_json"),
        (b'{"id":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not_json"),
        (b"[1,2]", "not_an_object"),
        (b"17", "not_an_object"),
        (b'"text"', "not_an_object"),
        (b"null", "not_an_object"),
        (b'{"a":"\xff","y":1}', "bad_encoding"),
        (b'{"a":1,"y":"\xff"}', "bad_encoding"),
        (b'{"id":"\xc3","a":1}', "bad_encoding"),
        (b'{"a":[1],"y":1}', "bad_feature"),
        (b'{"x":{"a":{"b":1}},"y":1}', "bad_feature"),
        (b'{"x":[1,2],"y":1}', "bad_feature"),
        (b'{"id":[1],"a":1}', "bad_id"),
        (b'{"id":"' + b"i" * 2000 + b'","a":1}', "bad_id"),
        (b'{"a":1,"y":{}}', "bad_label"),
        (b"{}", "no_features"),
        (b'{"id":1}', "no_features"),
        (b'{"id":1,"ts":3}', "no_features"),
        (b'{"y":1}', "label_without_id"),
        (b'{"id":null,"y":1}', "label_without_id"),
        (b'{"a":1,"w":-1}', "bad_weight"),
        (b'{"a":1,"w":"1"}', "bad_weight"),
        (b'{"a":1,"w":1e999}', "bad_weight"),
    ],
)
def test_a_bad_json_record_is_rejected_with_its_reason_and_costs_no_other(line: bytes, reason: str) -> None:
    good = b'{"id":1,"a":1,"y":2}\n'
    decoder = json_decoder.build(json_decoder.Config(), Fields(weight="w"))
    decoder.decode(good * 3, {})
    rows = decoder.decode(good * 2 + line + b"\n" + good, {"a": NUMBER})
    assert rejects(rows) == [(6, reason)]
    assert rows.rejects[0].raw == line[: 64 * 1024]
    assert rows.rejects[0].detail
    assert rows.positions.tolist() == [4, 5, 7]
    assert values(rows.columns["a"]) == [1.0] * 3


def test_labels_alone_and_rows_without_features_are_told_apart() -> None:
    lines = b'{"id":1,"a":2}\n{"id":1,"y":"u"}\n{"id":2,"x":{}}\n{"id":3,"a":null,"y":"u"}\n'
    lines += b'{"id":4,"x":{},"y":"u"}\n'
    for kinds in ({}, {"a": NUMBER}, {"a": CATEGORY}):
        rows = decode_json(lines * 2, kinds)
        assert rows.has_features.tolist() == [True, False, True, True, True] * 2
        assert rows.rejects == []


def test_ids_labels_and_echo_come_through_as_they_were_written() -> None:
    line = b'{"id": 1.50 , "y":"\\u00fc","a":1,"note":{"k": [1, 2]},"big":12345678901234567890123}\n'
    fields = Fields(echo=("note", "big", "none"), ignore=("big",))
    for lines in (line, line * 3, line + b'{"a":NaN}\n' + line):
        rows = decode_json(lines, {"a": NUMBER}, fields)
        assert (rows.ids[0], rows.labels[0]) == (b"1.50", b'"\\u00fc"')
        assert rows.echo[0] == b'"note":{"k": [1, 2]},"big":12345678901234567890123'
        assert rows.echo[1:2] in ([], [b""], [rows.echo[0]])
        assert list(rows.columns) == ["a"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ('"2026-11-22T20:54:00Z"', 1795380840.0),
        ('"2026-11-22T21:54:00.25+01:00"', 1795380840.25),
        ('"2026-11-22 20:54:00"', 1795380840.0),
        ("1795380840.5", 1795380840.5),
        ('"soon"', math.nan),
        ("true", math.nan),
        ("[1]", math.nan),
        ("1e999", math.nan),
        ("null", math.nan),
    ],
)
def test_time_is_seconds_and_a_bad_time_is_missing(text: str, seconds: float) -> None:
    rows = decode_json(b'{"a":1,"ts":%s}\n' % text.encode() * 2)
    np.testing.assert_array_equal(rows.times, [seconds, seconds])
    cell = text.strip('"')
    rows = decode_csv(b"a,ts,y\n1,%s,1\n" % cell.encode())
    np.testing.assert_array_equal(rows.times, [seconds])


def test_the_last_of_two_equal_keys_counts() -> None:
    for kinds in ({}, {"a": NUMBER}):
        assert values(decode_json(b'{"a":1,"a":2,"y":1}\n' * 2, kinds).columns["a"]) == [2.0, 2.0]


def test_empty_lines_and_line_ends_of_windows_are_no_records() -> None:
    rows = decode_json(b'\xef\xbb\xbf{"a":1,"y":1}\r\n\r\n  \n{"a":2,"y":1}\r\n')
    assert values(rows.columns["a"]) == [1.0, 2.0]
    assert rows.positions.tolist() == [1, 2]
    assert rows.rejects == []


def test_ignored_fields_are_left_out_whatever_they_hold() -> None:
    fields = Fields(ignore=("skip",))
    flat = b'{"a":1,"skip":[1,{"b":2}],"y":1}\n'
    nested = b'{"x":{"a":1,"skip":[1]},"skip":2,"y":1}\n'
    for lines in (flat * 3, nested * 3, flat + nested + flat):
        rows = decode_json(lines, {"a": NUMBER}, fields)
        assert (rows.n, list(rows.columns), rows.rejects) == (3, ["a"], [])


json_values = st.one_of(
    st.integers(),
    st.floats(),
    st.booleans(),
    st.none(),
    st.text(max_size=3),
    st.sampled_from(["a", "NaN", 1, 1.0, True, [1], {}]),
)
json_records = st.one_of(
    st.dictionaries(
        st.sampled_from(["a", "b", "c", "id", "y", "ts", "w", "x", 'q"', "e"]), json_values, max_size=6
    ),
    st.fixed_dictionaries(
        {"x": st.dictionaries(st.sampled_from(["a", "b", "y", "skip"]), json_values, max_size=3)},
        optional={"id": json_values, "y": json_values, "extra": json_values, "e": json_values},
    ),
).map(lambda record: json.dumps(record).encode())
json_lines = st.lists(
    st.one_of(json_records, st.binary(max_size=12).map(lambda raw: raw.replace(b"\n", b"")), json_records),
    max_size=12,
)
some_kinds = st.dictionaries(st.sampled_from(["a", "b", "c", "x"]), st.sampled_from([NUMBER, CATEGORY]))


@settings(max_examples=300, deadline=None)
@given(json_lines, st.lists(st.integers(0, 12), max_size=3), some_kinds, some_kinds)
@example([b'{"y":', b"1}", b'{"a":1}{"a":2}'], [], {}, {})
@example([b'{"x":{"a":1}}', b'{"id":1,"extra":3,"y":1}'] * 2, [2], {}, {})
def test_json_rows_do_not_depend_on_cuts_or_on_what_is_expected(lines, cuts, kinds, other) -> None:
    fields = Fields(weight="w", echo=("e",), ignore=("skip",))
    lines = [line + b"\n" for line in lines]
    at_once = in_pieces(json_decoder.build(json_decoder.Config(), fields), lines, [], kinds)
    in_parts = in_pieces(json_decoder.build(json_decoder.Config(), fields), lines, cuts, other)
    singly = in_pieces(json_decoder.build(json_decoder.Config(), fields), lines, list(range(12)), {})
    assert at_once == in_parts == singly


@settings(max_examples=150, deadline=None)
@given(st.lists(st.binary(max_size=30).map(lambda raw: raw.replace(b"\n", b"")), max_size=6))
def test_no_bytes_cost_a_good_json_record(noise: list[bytes]) -> None:
    good = [b'{"id":%d,"a":%d,"y":1}' % (i, i) for i in range(len(noise))]
    lines = [line for pair in zip(noise, good, strict=True) for line in pair]
    rows = decode_json(b"".join(line + b"\n" for line in lines))
    kept = [
        int(key)
        for key, label in zip(rows.ids, rows.labels, strict=True)
        if key is not None and label == b"1"
    ]
    assert kept == list(range(len(good)))
    blank = sum(not line.strip(b" \t\r") for line in noise)
    assert rows.n + len(rows.rejects) == len(lines) - blank


def test_json_state_carries_the_record_count_on() -> None:
    first = json_decoder.build(json_decoder.Config(), Fields())
    first.decode(b'{"a":1,"y":1}\nbroken\n', {})
    second = json_decoder.build(json_decoder.Config(), Fields())
    second.load_state(first.state())
    assert second.decode(b'{"a":1,"y":1}\n', {}).positions.tolist() == [3]


# --- CSV


def test_csv_cells_mean_what_their_text_says() -> None:
    lines = (
        b"\xef\xbb\xbfid,n,t,f,y\r\n"
        b"007,1,red,true,UP\r\n"
        b'17,2.5,"a, ""b""",FALSE,3.5\r\n'
        b"x,NA,,1,\r\n"
        b"\r\n"
        b"9,inf,7,0,true\r\n"
        b"10,1_000,007,null,1\r\n"
    )
    for kinds in ({}, {"n": NUMBER, "t": CATEGORY, "f": NUMBER}, {"n": CATEGORY}):
        rows = decode_csv(lines, kinds)
        assert rows.rejects == []
        assert values(rows.columns["n"]) == [1.0, 2.5, None, math.inf, "1_000"]
        assert values(rows.columns["t"]) == ["red", 'a, "b"', None, 7.0, 7.0]
        assert values(rows.columns["f"]) == [1.0, 0.0, 1.0, 0.0, None]
        assert rows.ids == [b'"007"', b"17", b'"x"', b"9", b"10"]
        assert rows.labels == [b'"UP"', b"3.5", None, b"true", b"1"]
        assert rows.positions.tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"1,2", "wrong_field_count"),
        (b"1,2,3,4,5,6", "wrong_field_count"),
        (b"1,\xff,1,1,1", "bad_encoding"),
        (b'1,"a,1,1,1', "bad_quoting"),
        (b'1,"a"b,1,1,1', "bad_quoting"),
        (b"1,2,3,-1,1", "bad_weight"),
        (b"1,2,3,much,1", "bad_weight"),
        (b"i" * 2000 + b",2,3,1,1", "bad_id"),
        (b"1,2,3,1," + b"y" * 2000, "bad_label"),
    ],
)
def test_a_bad_csv_record_is_rejected_with_its_reason_and_costs_no_other(line: bytes, reason: str) -> None:
    good = b"1,2,3,1,0\n"
    rows = decode_csv(b"id,a,b,w,y\n" + good + line + b"\n" + good, fields=Fields(weight="w"))
    assert rejects(rows) == [(2, reason)]
    assert rows.rejects[0].raw == line
    assert rows.positions.tolist() == [1, 3]
    assert values(rows.columns["a"]) == [2.0, 2.0]


def test_a_csv_row_with_id_and_target_only_is_a_label() -> None:
    rows = decode_csv(b"id,a,b,y\n1,2,,\n1,,,UP\n2,,,\n,,,UP\n")
    assert rows.has_features.tolist() == [True, False, True, True]
    assert decode_csv(b"id,y\n1,UP\n").has_features.tolist() == [False]
    assert rejects(decode_csv(b"id,y\n,UP\n1,\n")) == [(1, "label_without_id"), (2, "no_features")]


def test_a_csv_header_without_the_target_says_what_there_is() -> None:
    with pytest.raises(InputError, match=r"a, b, c.*--target"):
        decode_csv(b"a,b,c\n")
    with pytest.raises(InputError, match="once; got a"):
        decode_csv(b"a,a,y\n")
    assert decode_csv(b"a,b,c\n1,2,3\n", fields=Fields(target="b")).labels == [b"2"]


def test_csv_header_and_count_are_state() -> None:
    first = csv_decoder.build(csv_decoder.Config(delimiter=";"), Fields())
    first.decode(b"a;y\n1;2\n", {})
    second = csv_decoder.build(csv_decoder.Config(delimiter=";"), Fields())
    second.load_state(first.state())
    rows = second.decode(b"3;4\n", {})
    assert (values(rows.columns["a"]), rows.labels, rows.positions.tolist()) == ([3.0], [b"4"], [2])


def test_csv_that_goes_on_in_another_pipe_may_have_its_header_again() -> None:
    first = csv_decoder.build(csv_decoder.Config(), Fields())
    first.decode(b"a,b,y\n1,2,3\n", {})
    for again in (b"a,b,y\n4,5,6\n", b"\n\xef\xbb\xbfb,y,a\r\n5,6,4\n"):
        second = csv_decoder.build(csv_decoder.Config(), Fields())
        second.load_state(first.state())
        rows = second.decode(again, {})
        assert (values(rows.columns["a"]), values(rows.columns["b"])) == ([4.0], [5.0])
        assert (rows.labels, rows.positions.tolist()) == ([b"6"], [2])
        # Only the first line can be one.
        assert second.decode(b"a,b,y\n", {}).n == 1


csv_cells = st.sampled_from(
    ["", "1", "2.5", "x", "true", "NaN", "inf", "1_0", '"a,b"', '"', "007", " 3 ", "ü", "\r"]
)
csv_lines = st.lists(
    st.one_of(
        st.lists(csv_cells, min_size=4, max_size=5).map(lambda cells: ",".join(cells).encode()),
        st.binary(max_size=8).map(lambda raw: raw.replace(b"\n", b"")),
    ),
    max_size=10,
)


@settings(max_examples=300, deadline=None)
# The mark of UTF-8 before a line that a read begins with.
@example([b",,,", b",,,,", b"\xef\xbb\xbf"], [], {}, {})
@example([b"1,2,3,1,a", b"\xef\xbb\xbf2,2,3,1,a"], [2], {}, {})
@given(csv_lines, st.lists(st.integers(0, 11), max_size=3), some_kinds, some_kinds)
def test_csv_rows_do_not_depend_on_cuts_or_on_what_is_expected(lines, cuts, kinds, other) -> None:
    fields = Fields(weight="w", echo=("c",))
    whole = [b"id,a,b,w,y\n", *(line + b"\n" for line in lines)]
    at_once = in_pieces(csv_decoder.build(csv_decoder.Config(), fields), whole, [], kinds)
    in_parts = in_pieces(csv_decoder.build(csv_decoder.Config(), fields), whole, cuts, other)
    singly = in_pieces(csv_decoder.build(csv_decoder.Config(), fields), whole, list(range(12)), {})
    assert at_once == in_parts == singly
