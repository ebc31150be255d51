"""Checkpoints: what comes back is what was saved, and what is damaged is never taken for whole."""

import math
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptd.checkpoint import FORMAT_VERSION, PREFIX, CheckpointStore, read_checkpoint, write_checkpoint
from adaptd.errors import CheckpointError

STATE = {"rows": 7, "weights": np.arange(100.0), "pool": {"forest": {"nodes": np.ones((3, 4), np.int32)}}}
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters())
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters()), inner, max_size=4),
    max_leaves=20,
)


@pytest.fixture
def store(tmp_path):
    store = CheckpointStore(tmp_path / "state", keep=3)
    yield store
    store.close()


def there_and_back(tmp_path, state):
    path = tmp_path / "one.adaptd"
    write_checkpoint(path, state)
    return read_checkpoint(path)[0]


def same(one, other):
    """Equal in value, and in type where Python would not mind."""
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", other)
    return type(one) is type(other) and one == other


@given(state=st.dictionaries(st.text(st.characters()) | st.just("$array"), PLAIN, max_size=5))
def test_any_plain_state_comes_back_the_same(tmp_path_factory, state):
    assert same(state, there_and_back(tmp_path_factory.getbasetemp(), state))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3).T,
        np.array([math.nan, math.inf, -0.0, 5e-324]),
        np.array(5, dtype=">i4"),
        np.arange(10, dtype=np.uint64)[::-2],
        np.empty((0, 3), dtype=np.float32),
        np.array([], dtype="U"),
        np.array(["ab", "c"]),
        np.array([b"ab", b"c"]),
        np.array([True, False]),
        np.array([1 + 2j]),
        np.array(["2026-01-01"], dtype="M8[ns]"),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_arrays_keep_type_shape_and_bits(tmp_path, array):
    found = there_and_back(tmp_path, {"a": array, "b": [array]})
    for other in (found["a"], found["b"][0]):
        assert (other.dtype, other.shape, other.tobytes()) == (array.dtype, array.shape, array.tobytes())
        assert other.flags.writeable


def test_nan_keeps_its_bits_and_long_bytes_come_back(tmp_path):
    odd = struct.unpack(">d", bytes.fromhex("7ff8000000000123"))[0]
    found = there_and_back(tmp_path, {"odd": odd, "minus": -math.inf, "long": bytes(range(256)) * 40})
    assert struct.pack(">d", found["odd"]).hex() == "7ff8000000000123"
    assert found["minus"] == -math.inf
    assert found["long"] == bytes(range(256)) * 40


@pytest.mark.parametrize("value", [object(), {1: 2}, {1, 2}, np.array([None]), np.zeros(1, dtype="i4,f8")])
def test_what_is_not_plain_is_refused_by_its_place(tmp_path, value):
    with pytest.raises(CheckpointError, match=r"state\.pool\[1\] must"):
        write_checkpoint(tmp_path / "one.adaptd", {"pool": [0, value]})
    assert list(tmp_path.iterdir()) == []


def test_newest_is_loaded_and_the_newest_few_are_kept(store):
    for number in (0, 128, 256, 384, 12_345_678_901):
        info = store.save({"rows": number}, number)
        assert info.bytes == info.path.stat().st_size
    assert store.list() == [256, 384, 12_345_678_901]
    state, info, damaged = store.load_latest()
    assert (state, info.number, damaged) == ({"rows": 12_345_678_901}, 12_345_678_901, [])


def test_saving_a_number_again_replaces_it(store):
    store.save({"rows": 1}, 5)
    store.save({"rows": 2}, 5)
    assert store.load(5).state == {"rows": 2}


def test_empty_directory_has_no_latest(store):
    assert store.load_latest() is None


def torn(data):
    return data[: len(data) // 2]


def flipped(data):
    return data[:1000] + bytes([data[1000] ^ 4]) + data[1001:]


def future(data):
    _, _, *rest = PREFIX.unpack_from(data)
    return PREFIX.pack(data[:8], FORMAT_VERSION + 1, *rest) + data[PREFIX.size :]


DAMAGES = {
    "is torn": torn,
    "is damaged: array 0": flipped,
    "is damaged: it does not": lambda data: data + b"\0",
    "is empty": lambda data: b"",
    "is not a checkpoint": lambda data: b"SQLite format 3\0" + data,
    f"must have format version {FORMAT_VERSION}": future,
    "is torn: it ends after": lambda data: data[:10],
}


@pytest.mark.parametrize("message", DAMAGES)
def test_damaged_checkpoint_falls_back_to_the_one_before(store, message):
    store.save({"rows": 1}, 1)
    path = store.save(STATE, 2).path
    path.write_bytes(DAMAGES[message](path.read_bytes()))
    state, info, damaged = store.load_latest()
    assert (state, info.number) == ({"rows": 1}, 1)
    assert [entry.path for entry in damaged] == [path]
    assert f"{path} {message}" in damaged[0].reason
    assert "--restore" in damaged[0].reason


def test_every_single_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "one.adaptd"
    write_checkpoint(path, {"rows": 7, "weights": np.arange(3.0)})
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 << place % 8)]) + data[place + 1 :])
        with pytest.raises(CheckpointError):
            read_checkpoint(path)


def test_every_torn_length_is_noticed(tmp_path):
    path = tmp_path / "one.adaptd"
    write_checkpoint(path, {"rows": 7, "weights": np.arange(3.0)})
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError):
            read_checkpoint(path)


def test_with_no_whole_checkpoint_there_is_no_fresh_start(store):
    for number in (1, 2):
        store.save(STATE, number).path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="no checkpoint that is whole") as caught:
        store.load_latest()
    assert str(caught.value).count("is empty") == 2


def test_unknown_number_names_the_known_ones(store):
    store.save(STATE, 128)
    with pytest.raises(CheckpointError, match="must hold checkpoint 5; it has 128"):
        store.load(5)


def test_after_a_restore_the_given_up_run_is_not_the_latest(store):
    for number in (1, 2, 3):
        store.save({"rows": number}, number)
    store.load(1)
    store.cut_after(1)
    assert store.load_latest().state == {"rows": 1}
    store.save({"rows": 4}, 2)
    assert store.load_latest().state == {"rows": 4}
    assert len(list(store.directory.glob("*.abandoned"))) == 2
    store.cut_after(1)
    assert len(list(store.directory.glob("*.abandoned"))) == 1


def test_second_daemon_cannot_use_the_directory(store):
    with pytest.raises(CheckpointError, match="in use by another adaptd"):
        CheckpointStore(store.directory)
    store.close()
    CheckpointStore(store.directory).close()


def test_left_over_temporary_files_are_removed(tmp_path):
    (tmp_path / "checkpoint-0000000007.adaptd.tmp").write_bytes(b"half")
    (tmp_path / "journal.sqlite").write_bytes(b"not ours")
    store = CheckpointStore(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["journal.sqlite", "lock"]
    store.close()


def test_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"file.* must be a directory"):
        CheckpointStore(tmp_path / "file" / "state")


def test_full_disk_leaves_the_old_checkpoint(store):
    store.save({"rows": 1}, 1)
    # A limit on the size of files is the full disk that any user can have.
    script = (
        "import resource, signal, sys, pathlib, numpy as np\n"
        "from adaptd.checkpoint import write_checkpoint\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "write_checkpoint(pathlib.Path(sys.argv[1]), {'big': np.zeros(10_000)})\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, store.path(1)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert run.returncode == 1
    assert "CheckpointError" in run.stderr
    assert "could not be written" in run.stderr
    assert store.load_latest().state == {"rows": 1}
    assert list(store.directory.glob("*.tmp")) == []
