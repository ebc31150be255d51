"""The shared store: objects are whole, never change, and the one that is named is never deleted."""

import itertools
import os
import re
import subprocess
import sys
import threading
import time

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

from adaptd.checkpoint_objects import (
    NAME,
    PART_BYTES_MAX,
    CheckpointObjects,
    folder,
    number_of,
    without_secrets,
)
from adaptd.errors import CheckpointError
from tests.test_checkpoint import DAMAGES, STATE

LANE = "group/rows/3"
COUNTER = itertools.count()


class RenamingFileSystem(MemoryFileSystem):
    """As SFTP: what is being written can be seen half, and a rename is one step."""

    protocol = "sftp"

    def mv(self, path1, path2, **options):
        self.store[self._strip_protocol(path2)] = self.store.pop(self._strip_protocol(path1))


class PuttingFileSystem(MemoryFileSystem):
    """An object store: an object appears whole with one put, and nothing can be renamed."""

    protocol = "put"

    def mv(self, path1, path2, **options):
        raise AssertionError("an object store has no rename")


fsspec.register_implementation("renaming", RenamingFileSystem, clobber=True)
fsspec.register_implementation("put", PuttingFileSystem, clobber=True)


@pytest.fixture(params=["directory", "memory", "renaming", "put"])
def url(request, tmp_path):
    return str(tmp_path / "store") if request.param == "directory" else f"{request.param}://s{next(COUNTER)}"


@pytest.fixture
def store(url):
    return CheckpointObjects(url)


def put(store, name, content):
    """Do to an object what no adaptd does."""
    store._files.pipe_file(store._path(name), content)


def get(store, name):
    return store._files.cat_file(store._path(name))


def test_what_is_loaded_is_what_was_saved(store):
    saved = store.save(LANE, 12_345, STATE)
    assert NAME.fullmatch(saved.name)
    assert (saved.name.rpartition("/")[0], number_of(saved.name)) == (LANE, 12_345)
    assert len(get(store, saved.name)) == saved.bytes
    found = store.load(saved.name)
    assert found["rows"] == 7
    assert found["weights"].tobytes() == STATE["weights"].tobytes()
    assert found["pool"]["forest"]["nodes"].dtype == np.int32


def test_another_process_finds_it(tmp_path):
    name = CheckpointObjects(str(tmp_path)).save(LANE, 1, {"rows": 9}).name
    assert CheckpointObjects(f"file://{tmp_path}").load(name) == {"rows": 9}


def test_two_writers_of_one_number_overwrite_nothing(url):
    writers = [CheckpointObjects(url) for _ in range(4)]
    found = []

    def write(writer, k):
        found.extend((writer.save(LANE, 7, {"writer": k, "turn": i}).name, k, i) for i in range(20))

    threads = [threading.Thread(target=write, args=(writer, k)) for k, writer in enumerate(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reader = CheckpointObjects(url)
    assert reader.names(LANE) == sorted(name for name, _, _ in found)
    assert len(set(reader.names(LANE))) == 80
    for name, k, i in found:
        assert reader.load(name) == {"writer": k, "turn": i}


@pytest.mark.parametrize("message", DAMAGES)
def test_damaged_object_is_refused_and_named(store, message):
    name = store.save(LANE, 5, STATE).name
    put(store, name, DAMAGES[message](get(store, name)))
    with pytest.raises(CheckpointError, match="backup") as caught:
        store.load(name)
    assert f"{store.shown}/{name} {message}" in str(caught.value)


def test_missing_object_says_what_to_do(store):
    store.save(LANE, 1, {})
    with pytest.raises(CheckpointError, match=r"could not be read: there is none\. Put it back"):
        store.load(f"{LANE}/{6:020d}-{'a' * 16}.adaptd")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a note",
        f"../{1:020d}-{'a' * 16}.adaptd".replace("..", "a b"),
        f"{1:020d}-{'a' * 16}.adaptd",
        "x/y.adaptd",
    ],
)
def test_metadata_of_somebody_else_is_no_name(store, name):
    with pytest.raises(CheckpointError, match="a group of its own"):
        store.load(name)


def test_metadata_leads_nowhere_outside_of_the_store(tmp_path):
    outside = CheckpointObjects(str(tmp_path)).save("other", 1, {"secret": 1}).name
    store = CheckpointObjects(str(tmp_path / "store"))
    with pytest.raises(CheckpointError, match="must be the name"):
        store.load(f"../{outside}")


def test_lanes_are_apart(store):
    store.save("group/rows/1", 1, {"lane": 1})
    store.save("group/rows/11", 2, {"lane": 11})
    store.save("group/rows", 3, {"lane": "above"})
    assert [number_of(name) for name in store.names("group/rows/1")] == [1]
    assert [number_of(name) for name in store.names("group/rows")] == [3]
    assert store.names("never seen") == []


@given(lanes=st.lists(st.text(max_size=300), min_size=2, max_size=5, unique=True))
def test_no_two_lanes_share_a_folder(lanes):
    folders = [folder(lane) for lane in lanes]
    assert len(set(folders)) == len(folders)
    for path in folders:
        for part in path.split("/"):
            assert re.fullmatch(r"[\w.~-]+", part, re.ASCII)
            assert len(part) <= PART_BYTES_MAX
        assert not {".", ".."} & set(path.split("/"))


@pytest.mark.parametrize("lane", ["../up", "a//b", "", "/", "gr üppe/~2E", "x" * 3000, "a\0b"])
def test_any_text_is_a_lane(store, lane):
    name = store.save(lane, 2, {"lane": 1}).name
    assert store.names(lane) == [name]
    assert store.load(name) == {"lane": 1}


def test_the_last_few_up_to_the_named_one_are_kept_and_all_after_it(store):
    names = [store.save(LANE, number, {}).name for number in (0, 10, 20, 30, 40, 50)]
    other = store.save("group/rows/4", 1, {}).name
    assert store.drop_older(LANE, names[3], keep=3) == 1
    assert store.names(LANE) == names[1:]
    assert store.drop_older(LANE, names[3], keep=1) == 2
    assert store.names(LANE) == names[3:]
    assert store.drop_older(LANE, names[3], keep=0) == 0
    assert store.names("group/rows/4") == [other]


def test_one_of_the_same_number_as_the_named_one_stays(store):
    names = {store.save(LANE, 10, {"of": k}).name for k in range(4)}
    for name in names:
        store.drop_older(LANE, name, keep=1)
    assert set(store.names(LANE)) == names


def test_what_a_dead_writer_left_goes_when_the_lane_has_passed_it(store):
    first = store.save(LANE, 10, {}).name
    for number in (5, 15):
        put(store, f"{LANE}/{number:020d}-{'b' * 16}.adaptd.tmp", b"half")
    put(store, f"{LANE}/of somebody else", b"")
    assert store.names(LANE) == [first]
    assert store.drop_older(LANE, first, keep=3) == 1
    left = {path.rpartition("/")[2] for path in store._files.ls(store._path(LANE), detail=False)}
    assert {name[18:20] for name in left if name.endswith(".tmp")} == {"15"}
    assert "of somebody else" in left


def test_what_others_deleted_is_seen(url):
    one, other = CheckpointObjects(url), CheckpointObjects(url)
    names = [one.save(LANE, number, {}).name for number in (1, 2, 3)]
    assert one.names(LANE) == names
    other.drop_older(LANE, names[2], keep=1)
    assert one.names(LANE) == names[2:]
    assert one.drop_older(LANE, names[2], keep=1) == 0


def test_a_failed_put_leaves_no_object_and_says_so(monkeypatch):
    store = CheckpointObjects(f"memory://s{next(COUNTER)}")
    first = store.save(LANE, 1, {"rows": 1}).name

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store._files, "pipe_file", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*stays the valid one"):
        store.save(LANE, 2, {"rows": 2})
    assert store.names(LANE) == [first]


def test_a_put_that_loses_bytes_is_noticed(monkeypatch):
    store = CheckpointObjects(f"put://s{next(COUNTER)}")
    whole = store._files.pipe_file
    monkeypatch.setattr(store._files, "pipe_file", lambda path, content: whole(path, content[:-1]))
    with pytest.raises(CheckpointError, match="bytes"):
        store.save(LANE, 2, {"rows": 2})


@pytest.mark.parametrize("call", ["save", "load", "names", "drop_older"])
def test_a_store_that_hangs_is_given_up_in_time(monkeypatch, call):
    store = CheckpointObjects(f"memory://s{next(COUNTER)}", seconds_max=0.05)
    name = store.save(LANE, 1, {}).name
    released = threading.Event()
    for method in ("pipe_file", "cat_file", "ls"):
        monkeypatch.setattr(store._files, method, lambda *a, **k: released.wait(30))
    calls = {
        "save": lambda: store.save(LANE, 2, {}),
        "load": lambda: store.load(name),
        "names": lambda: store.names(LANE),
        "drop_older": lambda: store.drop_older(LANE, name, 1),
    }
    with pytest.raises(CheckpointError, match=r"must answer within 0\.05 seconds"):
        calls[call]()
    released.set()


def test_saving_can_go_on_beside_the_caller(monkeypatch):
    store = CheckpointObjects(f"memory://s{next(COUNTER)}")
    goes_on = threading.Event()
    whole = store._files.pipe_file

    def slow(path, content):
        assert goes_on.wait(30)
        whole(path, content)

    monkeypatch.setattr(store._files, "pipe_file", slow)
    pending = store.start(LANE, 1, {"rows": 1})
    assert not pending.is_done()
    assert store.names(LANE) == [], "nothing can be named before it is whole"
    goes_on.set()
    saved = pending.result()
    assert store.load(saved.name) == {"rows": 1}


def test_a_process_with_a_hanging_store_can_end(tmp_path):
    script = (
        "import sys, time\n"
        "from adaptd.checkpoint_objects import CheckpointObjects\n"
        "store = CheckpointObjects('memory://s')\n"
        "store._files.pipe_file = lambda *a: time.sleep(1000)\n"
        "store.start('lane', 1, {})\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    begun = time.monotonic()
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, timeout=120)
    assert time.monotonic() - begun < 120


def test_what_is_not_plain_is_refused_before_anything_is_written(store):
    with pytest.raises(CheckpointError, match=r"state\.pool must"):
        store.save(LANE, 1, {"pool": object()})
    assert store.names(LANE) == []


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"file/store/.* could not be written: .*Not a directory"):
        CheckpointObjects(str(tmp_path / "file" / "store")).save(LANE, 1, {})


def test_the_check_writes_reads_and_deletes(store, monkeypatch):
    store.check()
    assert store.names("adaptd-check") == []

    def forbidden(path):
        raise PermissionError(f"Access Denied: {path}")

    monkeypatch.setattr(store._files, "rm_file", forbidden)
    with pytest.raises(CheckpointError, match=r"could not be deleted: Access Denied.* Grant deleting too"):
        store.check()


@pytest.mark.parametrize("url", ["nonsense://x", "abfs://container/x"])
def test_a_url_that_cannot_be_opened_says_what_to_do(url):
    with pytest.raises(CheckpointError, match="must be a URL that fsspec can open"):
        CheckpointObjects(url)


def test_secrets_are_never_shown():
    assert without_secrets("sftp://user:geheim@host/adaptd?key=geheim") == "sftp://host/adaptd"
    assert without_secrets("/srv/a@b") == "/srv/a@b"
    assert without_secrets("s3://bucket/p") == "s3://bucket/p"
    with pytest.raises(CheckpointError) as caught:
        CheckpointObjects("nonsense://user:geheim@host/x", {"secret": "verschwiegen"})
    assert "geheim" not in str(caught.value)
    store = CheckpointObjects("memory://s", {"client": {"secret": "verschwiegen"}})

    def talkative(path, content):
        raise ValueError("403 for key verschwiegen")

    store._files.pipe_file = talkative
    with pytest.raises(CheckpointError, match=r"403 for key \(hidden\)"):
        store.save(LANE, 1, {})
