"""Sinks and dead letters: nothing twice, nothing lost, also when the disk says no."""

import contextlib
import errno
import fcntl
import json
import os
import resource
import signal
import threading

import pytest

from adaptd import registry
from adaptd.contracts import Reject
from adaptd.dead_letters import DeadLetters
from adaptd.errors import AdaptdError, ConfigError
from adaptd.sinks import file as file_sink
from adaptd.sinks.file import FileSink
from adaptd.sinks.stdout import OutputClosed, StdoutSink


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    yield reader, writer
    for descriptor in (reader, writer):
        with contextlib.suppress(OSError):
            os.close(descriptor)


@pytest.fixture
def full_disk():
    """No file can grow beyond 4096 bytes until `release` is called."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))

    def release():
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    yield release
    release()
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("kind", registry.kinds("sinks"))
def test_every_sink_has_a_config_whose_fields_have_defaults(kind):
    module = registry.load("sinks", kind)
    assert module.Config() == module.Config()
    assert module.Config.__struct_config__.forbid_unknown_fields
    assert callable(module.build)


def test_stdout_gets_every_byte_through_a_small_non_blocking_pipe(pipe):
    reader, writer = pipe
    os.set_blocking(writer, False)
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    lines = b"".join(b'{"row":%d}\n' % k for k in range(200_000))
    received = []

    def read():
        while data := os.read(reader, 65536):
            received.append(data)

    thread = threading.Thread(target=read)
    thread.start()
    sink = StdoutSink(writer)
    for start in range(0, len(lines), 100_000):
        sink.write(lines[start : start + 100_000])
    sink.close()
    os.close(writer)
    thread.join()
    assert b"".join(received) == lines


def test_stdout_shows_nothing_before_flush_and_all_after(pipe):
    reader, writer = pipe
    os.set_blocking(reader, False)
    sink = StdoutSink(writer)
    sink.write(b"a line\n")
    with pytest.raises(BlockingIOError):
        os.read(reader, 100)
    sink.flush()
    assert os.read(reader, 100) == b"a line\n"


def test_stdout_waits_for_nobody_and_keeps_what_was_not_taken(pipe):
    reader, writer = pipe
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 8192)
    lines = b"".join(b"%d\n" % k for k in range(20_000))
    sink = StdoutSink(writer)
    sink.write(lines)
    sink.push()
    taken = len(lines) - sink.waiting_bytes()
    assert 4096 <= taken <= 8192
    received = os.read(reader, 8192)
    sink.push()
    assert sink.waiting_bytes() < len(lines) - taken
    while sink.waiting_bytes():
        received += os.read(reader, 8192)
        sink.push()
    os.close(writer)
    while more := os.read(reader, 8192):
        received += more
    assert received == lines


def test_reader_that_went_away_is_no_fault(pipe):
    reader, writer = pipe
    os.close(reader)
    sink = StdoutSink(writer)
    sink.write(b"a line\n")
    with pytest.raises(OutputClosed) as caught:
        sink.flush()
    assert caught.value.exit_code == 0
    sink.close()


def test_stdout_that_cannot_be_written_keeps_the_lines(tmp_path, full_disk):
    descriptor = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    sink = StdoutSink(descriptor)
    sink.write(b"x" * 5000)
    with pytest.raises(AdaptdError, match="904 bytes wait"):
        sink.flush()
    full_disk()
    sink.flush()
    os.close(descriptor)
    assert (tmp_path / "out").read_bytes() == b"x" * 5000


def test_file_holds_what_was_flushed(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_bytes(b"before\n")
    sink = file_sink.build(file_sink.Config(path=str(path)))
    sink.write(b"one\n")
    assert path.read_bytes() == b"before\n"
    sink.flush()
    assert path.read_bytes() == b"before\none\n"
    assert sink.position() == {"bytes": 11}
    sink.write(b"two\n")
    sink.close()
    sink.close()
    assert path.read_bytes() == b"before\none\ntwo\n"


def test_pushed_lines_can_be_read_and_are_not_safe_yet(tmp_path):
    path = tmp_path / "out"
    sink = FileSink(path)
    for line in (b"one\n", b"two\n"):
        sink.write(line)
        sink.push()
    assert path.read_bytes() == b"one\ntwo\n"
    assert sink.position() == {"bytes": 0}
    sink.flush()
    assert sink.position() == {"bytes": 8}
    sink.write(b"three\n")
    sink.push()
    sink.seek({"bytes": 4})
    sink.write(b"2\n")
    sink.close()
    assert path.read_bytes() == b"one\n2\n"


def test_large_output_does_not_wait_for_flush(tmp_path):
    sink = FileSink(tmp_path / "out")
    for _ in range(5):
        sink.write(b"x" * (1 << 20))
    assert (tmp_path / "out").stat().st_size >= file_sink.BUFFER_BYTES
    sink.close()
    assert (tmp_path / "out").stat().st_size == 5 << 20


def test_replay_after_a_crash_gives_the_file_without_the_crash(tmp_path):
    path = tmp_path / "out"
    sink = FileSink(path)
    sink.write(b"one\n")
    sink.flush()
    position = sink.position()
    sink.write(b"two\nthr")
    sink.flush()
    sink.write(b"never flushed")
    os.close(sink._descriptor)  # a crash flushes nothing
    again = FileSink(path)
    again.seek(position)
    again.write(b"two\nthree\n")
    again.close()
    assert path.read_bytes() == b"one\ntwo\nthree\n"


def test_seek_forgets_what_waits(tmp_path):
    sink = FileSink(tmp_path / "out")
    sink.write(b"waiting")
    sink.seek({"bytes": 0})
    sink.close()
    assert (tmp_path / "out").read_bytes() == b""


def test_file_shorter_than_the_checkpoint_is_refused_and_left_alone(tmp_path):
    (tmp_path / "out").write_bytes(b"short")
    sink = FileSink(tmp_path / "out")
    with pytest.raises(
        AdaptdError, match="must have at least the 100 bytes that the checkpoint names; it has 5"
    ):
        sink.seek({"bytes": 100})
    sink.close()
    assert (tmp_path / "out").read_bytes() == b"short"


def test_failed_flush_keeps_the_buffer(tmp_path, full_disk):
    path = tmp_path / "out"
    sink = FileSink(path)
    lines = b"".join(b"%d\n" % k for k in range(2000))
    sink.write(lines)
    for _ in range(2):
        with pytest.raises(AdaptdError, match=f"{len(lines)} bytes wait"):
            sink.flush()
        assert sink.position() == {"bytes": 0}
    full_disk()
    sink.write(b"more\n")
    sink.flush()
    assert path.read_bytes() == lines + b"more\n"
    assert sink.position() == {"bytes": len(lines) + 5}
    sink.close()


def test_pages_that_a_failed_sync_dropped_are_written_again(tmp_path, monkeypatch):
    path = tmp_path / "out"
    sink = FileSink(path)
    sink.write(b"one\n")

    def failing(descriptor):
        os.pwrite(descriptor, b"\0\0\0\0", 0)
        raise OSError(errno.EIO, "Input/output error")

    # No disk here fails when it is told to.
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(AdaptdError, match="4 bytes wait"):
            sink.flush()
    sink.flush()
    assert path.read_bytes() == b"one\n"
    sink.close()


@pytest.mark.parametrize("path", ["/dev/null", "/proc/nowhere/out", "/"])
def test_path_that_is_no_plain_file_is_a_fault_of_the_configuration(path):
    with pytest.raises(ConfigError, match=path):
        FileSink(path)


def test_two_daemons_cannot_write_one_file(tmp_path):
    sink = FileSink(tmp_path / "out")
    with pytest.raises(ConfigError, match="written by another adaptd"):
        FileSink(tmp_path / "out")
    sink.close()


class Shown(list):
    emit = list.append


def reject(position, raw=b'{"a":', reason="not_json"):
    return Reject(reason=reason, detail="ends too early", position=position, raw=raw)


def letters(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_dead_letter_says_what_where_and_why(tmp_path):
    dead = DeadLetters(tmp_path / "dead.jsonl", Shown())
    dead.write(reject(7))
    dead.write(reject(9, b"\xff\xfe", "bad_encoding"))
    dead.flush()
    assert letters(tmp_path / "dead.jsonl") == [
        {"reason": "not_json", "detail": "ends too early", "position": 7, "raw": '{"a":'},
        {"reason": "bad_encoding", "detail": "ends too early", "position": 9, "raw_base64": "//4="},
    ]
    assert dead.counts == {"not_json": 1, "bad_encoding": 1}
    dead.close()


def test_without_a_file_the_first_ten_are_shown_and_all_are_counted():
    shown = Shown()
    dead = DeadLetters(None, shown)
    for position in range(1, 100):
        dead.write(reject(position, b"\xff" * 1000))
    dead.flush()
    assert [event.position for event in shown] == list(range(1, 11))
    assert max(len(event.raw) for event in shown) <= 800
    assert dead.counts == {"not_json": 99}
    again = DeadLetters(None, shown)
    again.seek(dead.position())
    again.write(reject(100))
    assert (len(shown), again.counts) == (10, {"not_json": 100})
    dead.close()


def write_all(dead, start, stop):
    for position in range(start, stop):
        dead.write(reject(position))
    dead.flush()


def contents(tmp_path):
    return {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_full_files_rotate_and_the_oldest_go(tmp_path):
    dead = DeadLetters(tmp_path / "dead.jsonl", Shown(), bytes_max=1000, files_keep=2)
    write_all(dead, 0, 100)
    dead.close()
    files = contents(tmp_path)
    assert len(files) == 3
    assert all(len(data) < 1100 for data in files.values())
    *full, newest = sorted(
        files, key=lambda name: int(name.split(".")[2]) if name.count(".") == 2 else 1 << 30
    )
    kept = [letter["position"] for name in [*full, newest] for letter in letters(tmp_path / name)]
    assert kept == list(range(kept[0], 100))


@pytest.mark.parametrize("crash_after", [0, 5, 20, 60])
@pytest.mark.parametrize("checkpoint_at", [0, 3, 13, 31])
def test_dead_letters_after_a_replay_are_those_without_the_crash(tmp_path, checkpoint_at, crash_after):
    options = {"bytes_max": 1000, "files_keep": 20}
    (tmp_path / "calm").mkdir()
    (tmp_path / "crashed").mkdir()
    calm = DeadLetters(tmp_path / "calm" / "dead.jsonl", Shown(), **options)
    write_all(calm, 0, 100)
    calm.close()
    crashed = DeadLetters(tmp_path / "crashed" / "dead.jsonl", Shown(), **options)
    write_all(crashed, 0, checkpoint_at)
    position = crashed.position()
    write_all(crashed, checkpoint_at, checkpoint_at + crash_after)
    crashed.close()
    again = DeadLetters(tmp_path / "crashed" / "dead.jsonl", Shown(), **options)
    again.seek(position)
    write_all(again, checkpoint_at, 100)
    again.close()
    assert contents(tmp_path / "crashed") == contents(tmp_path / "calm")
    assert again.counts == {"not_json": 100}


def test_dead_letters_that_were_taken_away_stop_nothing(tmp_path):
    path = tmp_path / "dead.jsonl"
    dead = DeadLetters(path, Shown(), bytes_max=1000)
    write_all(dead, 0, 30)
    position = dead.position()
    dead.close()
    for left in tmp_path.iterdir():
        left.unlink()
    again = DeadLetters(path, Shown(), bytes_max=1000)
    again.seek(position)
    write_all(again, 30, 31)
    again.close()
    assert [letter["position"] for letter in letters(path)] == [30]


def test_dead_letter_is_kept_when_the_disk_is_full(tmp_path, full_disk):
    dead = DeadLetters(tmp_path / "dead.jsonl", Shown())
    with pytest.raises(AdaptdError, match="wait in memory"):
        write_all(dead, 0, 100)
    full_disk()
    dead.close()
    assert [letter["position"] for letter in letters(tmp_path / "dead.jsonl")] == list(range(100))
