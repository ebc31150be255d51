"""How soon the API answers beside a running stream, and what that costs the stream.

Measured: one daemon reads a generated file with the default pool; by itself, and with `--rate` requests a
second to /api/v1/predict on loopback, in turns. Given: percentiles of the time from when a request was due
(not from when it could be sent, which would hide a stall: the client is no closed loop like wrk) to its last
byte; rows a second of the stream; how much of the processors the daemon, the client and all others took.

Not measured: TLS, requests of many rows, a network, the output (it goes to a file).
Why to doubt it: the client shares the processors with the daemon, and what it takes is missing there; so it
works on plain sockets and costs little. Rows a second depend on how far the learners have grown, so the order
of the two is alternated. A stream alone is taken in larger pieces, some seconds after the last request; these
are waited for.

    python benchmarks/api.py --seconds 20 --rate 200
"""

import argparse
import collections
import itertools
import json
import os
import pathlib
import select
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

import numpy as np

from adaptd import demo
from adaptd.requests import QUIET_AFTER_SECONDS

CONNECTIONS = 20
# Rows of the stream before anything is measured: the learners have grown, and drifts have been met.
FIRST_ROWS = 10_000
# Then the stream begins again, with the same ids: no learner looks back so far.
ROWS_DRAWN = 600_000
# No stream here is faster than so many rows a second.
ROWS_A_SECOND = 30_000
# A scrape sees numbers at most so old.
PUBLISH_SECONDS = 0.6


def write_stream(path: pathlib.Path, rows: int) -> None:
    lines = [json.dumps(record) for record in itertools.islice(demo.records("drift"), min(rows, ROWS_DRAWN))]
    with open(path, "w") as file:
        for line in itertools.islice(itertools.cycle(lines), rows):
            file.write(line + "\n")


def status(listen: str) -> dict:
    with urllib.request.urlopen(f"http://{listen}/api/v1/status", timeout=30) as answer:
        return json.load(answer)


def listening(log: pathlib.Path) -> str:
    """The address that the daemon has told in its log."""
    while True:
        for line in log.read_text().splitlines(keepends=True):
            if line.endswith("\n") and (event := json.loads(line))["event"] == "http_started":
                return event["listen"]
        time.sleep(0.1)


def processor_seconds(pid: int) -> np.ndarray:
    """Used so far: by the daemon, by this process, by all others."""
    tick = os.sysconf("SC_CLK_TCK")
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    daemon = (int(fields[11]) + int(fields[12])) / tick
    # User, nice, system; idle and waiting; interrupts and time that other machines stole.
    whole = np.array(pathlib.Path("/proc/stat").read_text().split("\n")[0].split()[1:9], float) / tick
    own = time.process_time()
    return np.array([daemon, own, whole.sum() - whole[3:5].sum() - daemon - own])


class Connection:
    """One connection, one request at a time."""

    def __init__(self, listen: str) -> None:
        host, port = listen.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due = 0.0
        self.answer = b""

    def fileno(self) -> int:
        return self.socket.fileno()

    def ask(self, message: bytes, due: float) -> None:
        self.socket.sendall(message)
        self.due, self.answer = due, b""

    def code(self) -> int:
        """Take what has come; the answer's status once it is complete, else 0."""
        more = self.socket.recv(1 << 16)
        if not more:
            raise SystemExit("the daemon has closed a connection")
        self.answer += more
        head, found, body = self.answer.partition(b"\r\n\r\n")
        if not found or len(body) < int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]):
            return 0
        return int(head.split(b" ", 2)[1])


def load(
    listen: str, body: bytes, rate: float, seconds: float
) -> tuple[list[float], collections.Counter[int]]:
    """`rate` requests a second, each sent when it is due or as soon as a connection is free after that."""
    head = f"POST /api/v1/predict HTTP/1.1\r\nHost: {listen}\r\nContent-Type: application/json\r\n"
    message = head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body
    # In turns: the daemon closes a connection that says nothing for some seconds.
    free = collections.deque(Connection(listen) for _ in range(CONNECTIONS))
    busy: set[Connection] = set()
    times: list[float] = []
    codes: collections.Counter[int] = collections.Counter()
    begun, sent, number = time.perf_counter(), 0, int(rate * seconds)
    while len(times) < number:
        due = begun + sent / rate
        while free and sent < number and due <= time.perf_counter():
            connection = free.popleft()
            connection.ask(message, due)
            busy.add(connection)
            sent += 1
            due = begun + sent / rate
        patience = max(0.0, due - time.perf_counter()) if free and sent < number else None
        for connection in select.select(list(busy), [], [], patience)[0]:
            code = connection.code()
            if code:
                times.append(time.perf_counter() - connection.due)
                codes[code] += 1
                busy.discard(connection)
                free.append(connection)
    for connection in free:
        connection.socket.close()
    return times, codes


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rows", type=int, default=0, help="of the generated stream; 0: enough")
    options.add_argument("--seconds", type=float, default=10.0, help="of each phase beside the load")
    options.add_argument("--alone-seconds", type=float, default=10.0, help="of each phase alone")
    options.add_argument("--pairs", type=int, default=2, help="phases alone, and as many beside the load")
    options.add_argument("--rate", type=float, default=200.0, help="requests a second")
    chosen = options.parse_args()
    seconds = chosen.pairs * (chosen.seconds + chosen.alone_seconds + QUIET_AFTER_SECONDS)
    chosen.rows = chosen.rows or FIRST_ROWS + int(ROWS_A_SECOND * seconds)
    with tempfile.TemporaryDirectory() as folder:
        stream, log = pathlib.Path(folder) / "stream.jsonl", pathlib.Path(folder) / "log"
        write_stream(stream, chosen.rows)
        with open(stream) as file:
            record = json.loads(file.readline())
        body = json.dumps({key: value for key, value in record.items() if key not in ("id", "y")}).encode()
        with open(log, "wb") as file:
            # Not a pipe: once that is full, the daemon waits for its reader.
            daemon = subprocess.Popen(
                [sys.executable, "-m", "adaptd", "run", "--set", "source.kind=file",
                 "--set", f"source.path={stream}", "--set", "sink.kind=file",
                 "--set", f"sink.path={folder}/out.jsonl", "--set", f"checkpoint.directory={folder}/state",
                 "--set", "http.enabled=true", "--set", "http.listen=127.0.0.1:0"],
                stderr=file,
            )  # fmt: skip
        try:
            listen = listening(log)
            while status(listen)["rows"] < FIRST_ROWS:
                time.sleep(0.1)
            speeds: dict[bool, list[float]] = {False: [], True: []}
            used: dict[bool, list[np.ndarray]] = {False: [], True: []}
            times: list[float] = []
            codes: collections.Counter[int] = collections.Counter()
            for k in range(2 * chosen.pairs):
                loaded = k % 4 in (1, 2)
                if not loaded and k:
                    time.sleep(QUIET_AFTER_SECONDS)
                time.sleep(PUBLISH_SECONDS)
                rows, begun, before = (
                    status(listen)["rows"],
                    time.perf_counter(),
                    processor_seconds(daemon.pid),
                )
                if loaded:
                    more, found = load(listen, body, chosen.rate, chosen.seconds)
                    times += more
                    codes += found
                else:
                    time.sleep(chosen.alone_seconds)
                now, passed = status(listen), time.perf_counter() - begun
                speeds[loaded].append((now["rows"] - rows) / passed)
                used[loaded].append((processor_seconds(daemon.pid) - before) / passed)
            if daemon.poll() is not None or now["stopped_by"]:
                raise SystemExit("the stream has ended; give it more --rows")
        finally:
            daemon.kill()
            daemon.wait()
    times.sort()
    for share in (0.5, 0.9, 0.99, 0.999, 1.0):
        place = min(len(times) - 1, int(share * len(times)))
        print(f"p{share * 100:g}: {times[place] * 1000:.1f} ms")
    for key, name in ((False, "alone"), (True, "beside the load")):
        print(f"stream {name}, rows/s of each phase: {[round(speed) for speed in speeds[key]]}; processors "
              f"for daemon, client, others: {[part.round(2).tolist() for part in used[key]]}")  # fmt: skip
    alone, beside = (sum(speeds[key]) / chosen.pairs for key in (False, True))
    print(f"answers by status: {dict(codes)}")
    print(f"stream: {alone:,.0f} rows/s alone, {beside:,.0f} beside the load ({beside / alone:.0%})")


if __name__ == "__main__":
    main()
