"""Bytes to rows: any cut of the input gives the same rows, and a position resumes at the very next one."""

import gzip
import itertools
import os
import pathlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from adaptd.contracts import Fields, Rows, Source
from adaptd.errors import InputError
from adaptd.lines import Lines
from adaptd.sources import file as file_source
from adaptd.sources import stdin as stdin_source
from adaptd.sources import table as table_source


def json_lines(first: int, last: int) -> bytes:
    return b"".join(b'{"id":%d,"a":%d,"y":1}\n' % (i, i) for i in range(first, last))


def drained(source: Source, polls_max: int = 1000) -> list[Rows]:
    """What a source gives until its end, or until nothing comes."""
    found = []
    for _ in range(polls_max):
        rows = source.poll({})
        if rows is None or (rows.n == 0 and not rows.rejects):
            return found
        found.append(rows)
    raise AssertionError("the source does not end")


def ids(polls: list[Rows]) -> list[int]:
    return [int(key) for rows in polls for key in rows.ids]


def reasons(polls: list[Rows]) -> list[tuple[int, str]]:
    return [(reject.position, reject.reason) for rows in polls for reject in rows.rejects]


def open_file(path: pathlib.Path, **options) -> file_source.FileSource:
    return file_source.build(file_source.Config(path=str(path), **options), Fields())


# --- cutting into lines


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=60).map(lambda raw: raw.replace(b"a", b"\n")),
    st.lists(st.integers(0, 60)),
    st.integers(1, 4),
)
def test_lines_do_not_depend_on_how_the_bytes_came(data: bytes, cuts: list[int], lines_max: int) -> None:
    found = []
    lines = Lines(line_bytes_max=8)
    edges = [0, *sorted(cuts), len(data)]
    given_out = 0
    for start, stop in itertools.pairwise(edges):
        pieces = [data[start:stop]] if start < stop else []
        for piece in [*pieces, None] if stop == edges[-1] else pieces:
            if piece is None:
                lines.finish()
            else:
                lines.feed(piece)
            while lines.ready:
                whole, cut = lines.take(lines_max)
                assert whole.count(b"\n") <= lines_max
                given_out += whole.count(b"\n")
                found += [(line, False) for line in whole.split(b"\n")[:-1]]
                if cut is not None:
                    found.append((cut, True))
    expected = [(line, len(line) > 8) for line in data.split(b"\n")]
    if expected[-1][0] == b"":
        expected.pop()
    assert found == expected
    assert lines.waiting_bytes == 0
    assert lines.unread() == b""


def test_an_endless_line_takes_bounded_memory() -> None:
    lines = Lines(line_bytes_max=1 << 20)
    for _ in range(64):
        lines.feed(b"x" * (1 << 20))
        assert len(lines.unread()) <= 2 << 20
    assert lines.waiting_bytes == 64 << 20
    lines.feed(b"end\nnext\n")
    whole, cut = lines.take(10)
    assert (whole, cut) == (b"", b"x" * (64 * 1024))
    assert lines.take(10) == (b"next\n", None)


# --- stdin


@pytest.fixture
def pipe():
    """A source on a pipe, and the pipe's other end."""
    read, write = os.pipe()
    yield (
        stdin_source.StdinSource(stdin_source.Config(line_bytes_max=1000, poll_rows_max=7), Fields(), read),
        write,
    )
    os.close(read)


def test_stdin_gives_whole_lines_and_at_the_end_the_half_one(pipe) -> None:
    source, write = pipe
    os.write(write, json_lines(0, 3) + b'{"id":3,"a"')
    assert ids([source.poll({})]) == [0, 1, 2]
    assert source.poll({}).n == 0
    os.write(write, b':1,"y":1}\n{"id":4,"a":1}')
    assert ids([source.poll({})]) == [3]
    os.close(write)
    assert ids([source.poll({})]) == [4]
    assert source.poll({}) is None
    assert source.poll({}) is None


def test_stdin_gives_out_no_more_rows_at_once_than_told(pipe) -> None:
    source, write = pipe
    os.write(write, json_lines(0, 20))
    os.close(write)
    assert [rows.n for rows in drained(source)] == [7, 7, 6]


def test_stdin_position_holds_what_was_read_and_not_given_out(pipe) -> None:
    source, write = pipe
    os.write(write, json_lines(0, 10) + b"y" * 2500)
    source.poll({})
    position = source.position()
    assert position["records"] == 7
    second = stdin_source.StdinSource(source.config, Fields(), source.descriptor)
    second.seek(position)
    assert second.lag_bytes() == source.lag_bytes() > 2500
    os.write(write, b"y\n" + json_lines(10, 12))
    os.close(write)
    polls = drained(second)
    assert ids(polls) == [7, 8, 9, 10, 11]
    assert reasons(polls) == [(11, "too_long")]
    assert polls[-1].positions.tolist()[-1] == 13


def test_overlong_lines_are_rejected_in_place_and_cost_no_other(pipe) -> None:
    source, write = pipe
    os.write(
        write,
        json_lines(0, 2) + b"x" * 1001 + b"\n" + json_lines(2, 3) + b"z" * 5000 + b"\n" + json_lines(3, 4),
    )
    os.close(write)
    polls = drained(source)
    assert ids(polls) == [0, 1, 2, 3]
    assert reasons(polls) == [(3, "too_long"), (5, "too_long")]
    assert [position for rows in polls if rows.n for position in rows.positions.tolist()] == [1, 2, 4, 6]


def test_a_closed_stdin_is_an_input_error() -> None:
    read, write = os.pipe()
    source = stdin_source.StdinSource(stdin_source.Config(), Fields(), read)
    os.close(read)
    os.close(write)
    with pytest.raises(InputError, match="cannot be read"):
        source.poll({})


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 400), max_size=4), st.integers(1, 9))
def test_any_cut_into_reads_gives_the_same_rows(cuts: list[int], rows_max: int) -> None:
    data = json_lines(0, 5) + b"broken\n\n" + b"x" * 150 + b"\n" + json_lines(5, 9) + b'{"id":9,"a":9}'
    read, write = os.pipe()
    config = stdin_source.Config(line_bytes_max=100, poll_rows_max=rows_max)
    source = stdin_source.StdinSource(config, Fields(), read)
    polls, edges = [], [0, *sorted({min(cut, len(data)) for cut in cuts}), len(data)]
    for start, stop in itertools.pairwise(edges):
        os.write(write, data[start:stop])
        if start < stop:
            polls.append(source.poll({}))
    os.close(write)
    polls.extend(iter(lambda: source.poll({}), None))
    os.close(read)
    assert ids(polls) == list(range(10))
    assert reasons(polls) == [(6, "not_json"), (7, "too_long")]


# --- file


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_a_file_resumes_at_the_very_next_row(tmp_path: pathlib.Path, name: str) -> None:
    path = tmp_path / name
    data = json_lines(0, 50) + b'{"id":50,"a":1}'
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    for polls in range(9):
        source = open_file(path, poll_rows_max=7)
        before = [source.poll({}) for _ in range(polls)]
        position = source.position()
        source.close()
        again = open_file(path, poll_rows_max=3)
        again.seek(position)
        assert ids([rows for rows in before if rows] + drained(again)) == list(range(51))
        again.close()


def test_a_csv_file_resumes_with_its_header(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"id,a,y\n" + b"".join(b"%d,1,up\n" % i for i in range(20)))
    source = open_file(path, poll_rows_max=7)
    assert ids([source.poll({})]) == [0, 1, 2, 3, 4, 5]
    again = open_file(path)
    again.seek(source.position())
    polls = drained(again)
    assert ids(polls) == list(range(6, 20))
    assert polls[0].positions.tolist()[0] == 7
    assert again.lag_bytes() == 0


def test_another_file_than_the_positions_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json_lines(0, 10))
    source = open_file(path)
    source.poll({})
    position = source.position()
    path.write_bytes(json_lines(1, 11))
    with pytest.raises(InputError, match="not the file that the checkpoint was made from"):
        open_file(path).seek(position)
    path.write_bytes(json_lines(0, 9))
    with pytest.raises(InputError, match="at least"):
        open_file(path).seek(position)
    path.write_bytes(json_lines(0, 12))
    longer = open_file(path)
    longer.seek(position)
    assert ids(drained(longer)) == [10, 11]
    with pytest.raises(InputError, match="another kind of source"):
        longer.seek({"records": 3, "tail": b""})


def test_a_followed_file_waits_for_the_other_half_of_a_line(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "rows.jsonl"
    source = open_file(path, follow=True)
    assert source.poll({}).n == 0
    with open(path, "ab", buffering=0) as stream:
        stream.write(json_lines(0, 2) + b'{"id":2,')
        assert ids(drained(source)) == [0, 1]
        position = source.position()
        stream.write(b'"a":1}\n')
        assert ids(drained(source)) == [2]
    again = open_file(path, follow=True)
    again.seek(position)
    assert ids(drained(again)) == [2]


@pytest.mark.parametrize("ended", [True, False])
def test_a_rotated_file_is_read_to_its_end_and_then_the_new_one(tmp_path: pathlib.Path, ended: bool) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"id,a,y\n0,1,u\n")
    source = open_file(path, follow=True)
    assert ids(drained(source)) == [0]
    position = source.position()
    with open(path, "ab") as stream:
        stream.write(b"1,1,u\n2,1,u" + b"\n" * ended)
    path.rename(tmp_path / "rows.csv.1")
    assert ids(drained(source)) == ([1, 2] if ended else [1])
    path.write_bytes(b"a,id,y\n7,3,u\n")
    polls = drained(source)
    assert ids(polls) == ([3] if ended else [2, 3])
    assert polls[-1].positions.tolist() == [4]
    # The same after a restart: the old file is found under its new name.
    again = open_file(path, follow=True)
    again.seek(position)
    assert ids(drained(again)) == [1, 2, 3]


def test_a_truncated_file_is_read_from_its_start(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json_lines(0, 5))
    source = open_file(path, follow=True)
    assert ids(drained(source)) == [0, 1, 2, 3, 4]
    os.truncate(path, 0)
    with open(path, "ab") as stream:
        stream.write(json_lines(5, 7))
    assert ids(drained(source)) == [5, 6]


def test_a_damaged_gz_gives_what_comes_before_the_damage(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(json_lines(0, 20_000))[:-2000])
    source = open_file(path)
    polls: list[Rows] = []
    with pytest.raises(InputError, match="Is the file whole"):
        polls.extend(iter(lambda: source.poll({}), None))
    found = ids(polls)
    assert found == list(range(len(found)))
    assert len(found) > 10_000


def test_files_that_cannot_be_read_say_what_to_do(tmp_path: pathlib.Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        open_file(tmp_path / "none.csv")
    with pytest.raises(InputError, match="Set format"):
        open_file(tmp_path / "rows.txt")
    with pytest.raises(InputError, match="cannot be followed"):
        open_file(tmp_path / "rows.csv.gz", follow=True)
    with pytest.raises(InputError, match="cannot be opened"):
        open_file(tmp_path, format="csv")


# --- tables


def write_npy(path: pathlib.Path) -> None:
    np.save(path, np.array([[i, i / 2, i % 3] for i in range(9000)]))


def write_parquet(path: pathlib.Path) -> None:
    x2 = [None if i == 5 else i / 2 for i in range(9000)]
    table = pa.table({"y": [i % 3 for i in range(9000)], "x1": list(range(9000)), "x2": x2})
    parquet.write_table(table, path, row_group_size=1000)


def write_arff(path: pathlib.Path) -> None:
    lines = [f"{i},{'?' if i == 5 else i / 2},{i % 3}" for i in range(9000)]
    head = (
        "@relation r\n% comment\n@attribute x1 numeric\n@attribute x2 REAL\n@attribute class {0,1,2}\n@data\n"
    )
    path.write_text(head + "\n".join(lines) + "\n")


@pytest.mark.parametrize("write", [write_npy, write_parquet, write_arff])
def test_a_table_gives_its_rows_and_resumes_at_the_very_next(tmp_path: pathlib.Path, write) -> None:
    path = tmp_path / write.__name__.replace("write_", "table.")
    write(path)
    source = table_source.build(table_source.Config(path=str(path)), Fields())
    first = source.poll({})
    assert set(first.columns) == {"x1", "x2"}
    assert [key.strip(b'"') for key in first.labels[:4]] == [b"0", b"1", b"2", b"0"]
    assert first.columns["x2"][7] == 3.5
    if write is not write_npy:
        assert np.isnan(first.columns["x2"][5])
    assert first.positions.tolist()[:2] == [1, 2]
    again = table_source.build(table_source.Config(path=str(path)), Fields())
    again.seek(source.position())
    rest = drained(again)
    x1 = np.concatenate([first.columns["x1"], *(rows.columns["x1"] for rows in rest)])
    np.testing.assert_array_equal(x1, np.arange(9000))
    assert rest[-1].positions.tolist()[-1] == 9000
    assert again.poll({}) is None
    if write is not write_parquet:  # which is read from its end
        path.write_bytes(path.read_bytes() + b" ")
        with pytest.raises(InputError, match="not the table"):
            table_source.build(table_source.Config(path=str(path)), Fields()).seek(source.position())


def test_bad_arff_rows_are_rejected_with_their_reason(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "table.arff"
    path.write_bytes(
        b"@relation r\n@attribute 'my n' numeric\n@attribute c {'a b',c}\n@attribute last {u,v}\n@data\n"
        b"1,'a b',u\n1,2\n{0 1}\n2,c,v\n3,\xff,v\n4,'c,v\nx, c, ?\n"
    )
    source = table_source.build(table_source.Config(path=str(path)), Fields())
    rows = source.poll({})
    assert rows.columns == {"my n": [1.0, 2.0, "x"], "c": ["a b", "c", "c"]}
    assert rows.labels == [b'"u"', b'"v"', None]
    assert reasons([rows]) == [
        (2, "wrong_field_count"),
        (3, "sparse_row"),
        (5, "bad_encoding"),
        (6, "bad_quoting"),
    ]
    assert rows.positions.tolist() == [1, 4, 7]


def test_parquet_types_become_features(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "table.parquet"
    moments = pa.array([1_000_000, None], pa.timestamp("ms"))
    columns = {
        "id": [2**60 + 1, 2],
        "b": [True, None],
        "t": ["a", "b"],
        "ts": moments,
        "list": [[1], [2]],
        "up": [1.5, 2],
    }
    parquet.write_table(pa.table(columns), path)
    with pytest.raises(InputError, match="'list'"):
        table_source.build(table_source.Config(path=str(path)), Fields())
    source = table_source.build(table_source.Config(path=str(path)), Fields(ignore=("list",)))
    rows = source.poll({})
    assert rows.columns == {"b": [True, None], "t": ["a", "b"]}
    assert rows.ids == [b"1152921504606846977", b"2"]
    assert rows.labels == [b"1.5", b"2"]
    np.testing.assert_array_equal(rows.times, [1000.0, np.nan])


def test_tables_that_cannot_be_used_say_what_to_do(tmp_path: pathlib.Path) -> None:
    np.save(tmp_path / "cube.npy", np.zeros((2, 2, 2)))
    (tmp_path / "no.parquet").write_bytes(b"no table")
    (tmp_path / "no.arff").write_text("@relation r\n@attribute a real\n")
    for name, message in (
        ("cube.npy", "2-D"),
        ("no.parquet", "readable"),
        ("no.arff", "@data"),
        ("none.npy", "does not exist"),
        ("table.xls", "must end in"),
    ):
        with pytest.raises(InputError, match=message):
            table_source.build(table_source.Config(path=str(tmp_path / name)), Fields())
    write_arff(tmp_path / "table.arff")
    with pytest.raises(InputError, match="--target"):
        table_source.build(table_source.Config(path=str(tmp_path / "table.arff")), Fields(target="price"))
