"""Names to columns, texts to codes, labels to classes."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptd.contracts import CATEGORY, NUMBER, Fields, Rows
from adaptd.decoders import json as json_decoder
from adaptd.schema import Classes, Config, Schema, label_form, label_number


def rows_of(records: list[dict], **decoder_kinds: int) -> Rows:
    """Rows as the JSON decoder makes them of feature records."""
    lines = "".join(json.dumps({"x": record, "y": 1}) + "\n" for record in records).encode()
    rows = json_decoder.build(json_decoder.Config(), Fields()).decode(lines, decoder_kinds)
    assert rows.rejects == []
    return rows


def encoded(schema: Schema, records: list[dict], cuts: list[int] = ()) -> list[tuple]:
    """For each record its kinds, capacities and values, with the records cut into batches at `cuts`."""
    found = []
    edges = [0, *sorted(min(cut, len(records)) for cut in cuts), len(records)]
    for start, stop in itertools.pairwise(edges):
        segments = schema.encode(rows_of(records[start:stop], **schema.kinds))
        assert [segment.start for segment in segments] == [0, *(one.stop for one in segments)][
            : len(segments)
        ]
        assert sum(segment.stop - segment.start for segment in segments) == stop - start
        for segment in segments:
            assert segment.x.flags.c_contiguous
            assert segment.x.shape == (segment.stop - segment.start, len(segment.kinds))
            for row in segment.x:
                found.append((segment.kinds, segment.capacities, [repr(value) for value in row.tolist()]))
    return found


def column(schema: Schema, records: list[dict], name: str) -> list:
    """One column of the encoded records, None for missing or not there yet."""
    place = None
    found = []
    for segment in schema.encode(rows_of(records)):
        place = schema.names.index(name) if name in schema.names else None
        for row in segment.x.tolist():
            value = row[place] if place is not None and place < len(row) else math.nan
            found.append(None if value != value else value)
    return found


def test_columns_stand_in_the_order_of_their_first_value_then_of_their_name() -> None:
    schema = Schema(Config())
    schema.encode(rows_of([{"late": None, "b": 1, "a": 2}, {"c": "red"}, {"late": 3, "d": True}]))
    assert schema.names == ["a", "b", "c", "d", "late"]
    assert [schema.kinds[name] for name in schema.names] == [NUMBER, NUMBER, CATEGORY, NUMBER, NUMBER]


def test_growth_cuts_a_batch_at_the_row_that_brings_it() -> None:
    schema = Schema(Config())
    records = [{"c": text} for text in "abcdde"] + [{"c": "a", "n": 1}, {"n": 2}]
    segments = schema.encode(rows_of(records))
    assert [(one.start, one.stop, one.kinds, one.capacities) for one in segments] == [
        (0, 5, (CATEGORY,), (4,)),
        (5, 6, (CATEGORY,), (8,)),
        (6, 8, (CATEGORY, NUMBER), (8, 0)),
    ]
    np.testing.assert_array_equal(segments[0].x[:, 0], [0, 1, 2, 3, 3])
    np.testing.assert_array_equal(segments[2].x, [[0, 1], [np.nan, 2]])


def test_rows_without_features_have_no_columns_and_are_kept() -> None:
    segments = Schema(Config()).encode(rows_of([{}, {}]))
    assert [(one.start, one.stop, one.x.shape) for one in segments] == [(0, 2, (2, 0))]


def test_text_in_a_column_of_numbers_is_missing_and_counted() -> None:
    schema = Schema(Config())
    assert column(schema, [{"a": 1}, {"a": "text"}, {"a": True}, {"a": "2"}], "a") == [1.0, None, 1.0, None]
    assert schema.counts["text_in_number"] == 2


def test_a_number_in_a_category_column_becomes_its_text() -> None:
    schema = Schema(Config())
    records = [
        {"a": "3"},
        {"a": 3},
        {"a": 3.0},
        {"a": True},
        {"a": "true"},
        {"a": 0.5},
        {"a": "0.5"},
        {"a": None},
    ]
    assert column(schema, records, "a") == [0.0, 0.0, 0.0, 1.0, 1.0, 2.0, 2.0, None]
    assert schema.categories("a") == ["3", "true", "0.5"]
    # An all-number batch comes as an array.
    assert column(schema, [{"a": 0.5}, {"a": 3}, {"a": 7}], "a") == [2.0, 0.0, 3.0]


def test_infinite_values_are_missing_and_huge_ones_are_clipped() -> None:
    schema = Schema(Config())
    records = [{"a": math.inf}, {"a": 1e305}, {"a": -math.inf}, {"a": -1.7e308}, {"a": 10**400}, {"a": 1e300}]
    assert column(schema, records, "a") == [None, 1e300, None, -1e300, None, 1e300]
    assert (schema.counts["not_finite"], schema.counts["clipped"]) == (3, 2)


def test_told_types_win_over_the_first_value() -> None:
    schema = Schema(Config(types={"zip": "category", "price": "number", "ok": "boolean", "secret": "ignore"}))
    records = [
        {"zip": 123, "price": "2.5", "ok": "True", "secret": 1},
        {"zip": "A1", "price": "cheap", "ok": "false", "secret": 2},
    ]
    assert schema.kinds == {"zip": CATEGORY, "price": NUMBER, "ok": NUMBER}
    (segment,) = schema.encode(rows_of(records))
    assert schema.names == ["ok", "price", "zip"]
    np.testing.assert_array_equal(segment.x, [[1, 2.5, 0], [0, np.nan, 1]])
    assert schema.counts["text_in_number"] == 1


def test_texts_beyond_the_limit_share_hashed_codes_and_take_no_memory() -> None:
    schema = Schema(Config(categories_max=10))
    records = [{"a": f"text {i}"} for i in range(500)]
    codes = column(schema, records, "a")
    assert codes[:10] == [float(i) for i in range(10)]
    assert all(10 <= code < 74 for code in codes[10:])
    assert len(set(codes[10:])) > 40
    assert schema.counts["category_hashed"] == 490
    assert len(schema.categories("a")) == 10
    assert column(schema, records[::-1], "a") == codes[::-1]


def test_long_texts_are_told_apart_and_kept_short() -> None:
    schema = Schema(Config())
    long = "x" * 100_000
    assert column(schema, [{"a": long + "1"}, {"a": long + "2"}, {"a": long + "1"}], "a") == [0.0, 1.0, 0.0]
    assert max(map(len, schema.categories("a"))) <= 200


def test_columns_beyond_the_limit_are_left_out_and_counted() -> None:
    schema = Schema(Config(features_max=2))
    for segment in schema.encode(rows_of([{"a": 1, "b": 2, "c": 3}, {"d": "text", "c": None}])):
        assert segment.x.shape[1] == 2
    assert schema.names == ["a", "b"]
    assert schema.counts["feature_left_out"] == 2


def test_limits_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="categories_max must be from 1"):
        Config(categories_max=0)


values = st.one_of(
    st.sampled_from(["a", "b", "1", 1, 1.0, True, None, "true", math.nan, math.inf, 1e305, 10**400]),
    st.integers(0, 12).map(lambda i: f"text {i}"),
    st.floats(),
)
some_records = st.lists(st.dictionaries(st.sampled_from("abcdef"), values, max_size=4), max_size=14)


@settings(max_examples=120, deadline=None)
@given(some_records, st.lists(st.integers(0, 14), max_size=4), st.sampled_from([2, 4, 1024]), st.booleans())
def test_layouts_codes_and_counts_do_not_depend_on_cuts(records, cuts, limit, told) -> None:
    types = {"a": "number", "b": "category", "c": "ignore"} if told else {}
    config = Config(types=types, categories_max=limit, features_max=limit)
    at_once, in_parts, singly = Schema(config), Schema(config), Schema(config)
    expected = encoded(at_once, records)
    assert encoded(in_parts, records, cuts) == expected
    assert encoded(singly, records, list(range(14))) == expected
    assert at_once.state() == in_parts.state() == singly.state()


@settings(max_examples=60, deadline=None)
@given(some_records, some_records)
def test_state_goes_on_where_it_was_taken(before, after) -> None:
    first = Schema(Config(categories_max=4))
    encoded(first, before)
    second = Schema(Config(categories_max=4))
    second.load_state(first.state())
    assert second.kinds == first.kinds
    assert encoded(second, after) == encoded(first, after)
    assert second.state() == first.state()


def test_spellings_of_one_class_share_its_code_and_the_first_is_echoed() -> None:
    classes = Classes()
    spellings = [b"1.0", b"1", b'"1"', b"1e0", b'"up"', b'"\\u0075p"', b"true", b'"true"']
    assert [classes.add(raw) for raw in spellings] == [0, 0, 0, 0, 1, 1, 2, 2]
    assert classes.spellings == [b"1.0", b'"up"', b"true"]
    assert [classes.code(raw) for raw in (b'"1.00"', b'"01"', b"1.5", b"-0", b"false")] == [0, -1, -1, -1, -1]
    assert len(classes) == 3
    restored = Classes()
    restored.load_state(classes.state())
    assert [restored.code(raw) for raw in (b"1", b'"up"', b'"true"', b"2")] == [0, 1, 2, -1]


def test_classes_stop_at_their_limit() -> None:
    classes = Classes(classes_max=2)
    assert [classes.add(raw) for raw in (b"1", b"2", b"3", b"2.0")] == [0, 1, -1, 1]
    assert classes.code(b"3") == -1


@pytest.mark.parametrize(
    ("raw", "form", "number"),
    [
        (b"3", "integer", 3.0),
        (b"3.0", "integer", 3.0),
        (b'"3"', "integer", 3.0),
        (b"3.5", "fraction", 3.5),
        (b'"-2.5e1"', "integer", -25.0),
        (b"true", "boolean", math.nan),
        (b'"up"', "text", math.nan),
        (b'"007"', "text", math.nan),
        (b"12345678901234567890", "integer", 12345678901234567890.0),
        (b"1e999", "fraction", math.nan),
    ],
)
def test_a_label_says_what_it_looks_like(raw: bytes, form: str, number: float) -> None:
    assert label_form(raw) == form
    np.testing.assert_equal(label_number(raw), number)
