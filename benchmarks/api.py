"""How soon the API answers beside a running stream, and what that costs the stream.

Measured: one daemon reads a generated file with the default pool; first by itself, then with `--rate`
requests a second to /api/v1/predict on loopback. Given: percentiles of the time from when a request was due
(not from when it could be sent, which would hide a stall) to its last byte, and rows a second of the stream.

Not measured: TLS, requests of many rows, a network, the output (it goes to a file).
Why to doubt it: the client runs in Python on the same processors, and takes from both. Rows a second
depend on how far the learners have grown, so the order of the two is alternated.

    python benchmarks/api.py --seconds 20 --rate 200
"""

import argparse
import asyncio
import json
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.request

from adaptd import demo

CONNECTIONS = 20


def write_stream(path: pathlib.Path, rows: int) -> None:
    with open(path, "w") as file:
        for _, record in zip(range(rows), demo.records("drift"), strict=False):
            file.write(json.dumps(record) + "\n")


def status(listen: str) -> dict:
    with urllib.request.urlopen(f"http://{listen}/api/v1/status", timeout=30) as answer:
        return json.load(answer)


async def connection(listen: str, body: bytes, due: asyncio.Queue, times: list[float], codes: dict) -> None:
    host, port = listen.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /api/v1/predict HTTP/1.1\r\nHost: {listen}\r\nContent-Type: application/json\r\n"
    message = head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body
    while (moment := await due.get()) is not None:
        writer.write(message)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        times.append(time.perf_counter() - moment)
        code = int(answer.split()[1])
        codes[code] = codes.get(code, 0) + 1
    writer.close()


async def load(listen: str, body: bytes, rate: float, seconds: float) -> tuple[list[float], dict]:
    times: list[float] = []
    codes: dict[int, int] = {}
    due: asyncio.Queue = asyncio.Queue()
    clients = [asyncio.create_task(connection(listen, body, due, times, codes)) for _ in range(CONNECTIONS)]
    begun = time.perf_counter()
    for k in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, begun + k / rate - time.perf_counter()))
        due.put_nowait(begun + k / rate)
    for _ in clients:
        due.put_nowait(None)
    await asyncio.gather(*clients)
    return times, codes


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rows", type=int, default=400_000, help="rows of the generated stream")
    options.add_argument("--seconds", type=float, default=10.0, help="of each of the four phases")
    options.add_argument("--rate", type=float, default=200.0, help="requests a second")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        stream = pathlib.Path(folder) / "stream.jsonl"
        write_stream(stream, chosen.rows)
        record = json.loads(stream.read_text().partition("\n")[0])
        body = json.dumps({key: value for key, value in record.items() if key not in ("id", "y")}).encode()
        daemon = subprocess.Popen(
            [sys.executable, "-m", "adaptd", "run", "--set", "source.kind=file",
             "--set", f"source.path={stream}", "--set", "sink.kind=file",
             "--set", f"sink.path={folder}/out.jsonl", "--set", f"checkpoint.directory={folder}/state",
             "--set", "http.enabled=true", "--set", "http.listen=127.0.0.1:0"],
            stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            events = map(json.loads, daemon.stderr)
            listen = next(event["listen"] for event in events if event["event"] == "http_started")
            while status(listen)["rows"] < 5_000:
                time.sleep(0.1)
            speeds: dict[bool, list[float]] = {False: [], True: []}
            times: list[float] = []
            codes: dict[int, int] = {}
            for loaded in (False, True, True, False):
                rows, begun = status(listen)["rows"], time.perf_counter()
                if loaded:
                    more, codes = asyncio.run(load(listen, body, chosen.rate, chosen.seconds))
                    times += more
                else:
                    time.sleep(chosen.seconds)
                time.sleep(0.6)
                now = status(listen)
                speeds[loaded].append((now["rows"] - rows) / (time.perf_counter() - begun))
        finally:
            daemon.kill()
            daemon.wait()
    times.sort()
    for share in (0.5, 0.9, 0.99, 0.999, 1.0):
        place = min(len(times) - 1, int(share * len(times)))
        print(f"p{share * 100:g}: {times[place] * 1000:.1f} ms")
    for key, name in ((False, "alone"), (True, "beside the load")):
        print(f"stream {name}, rows/s of each phase: {[round(speed) for speed in speeds[key]]}")
    alone, beside = (sum(speeds[key]) / 2 for key in (False, True))
    print(f"answers by status: {codes}")
    print(f"stream: {alone:,.0f} rows/s alone, {beside:,.0f} beside the load ({beside / alone:.0%})")


if __name__ == "__main__":
    main()
