"""How soon the live page is there, and whether a browser that shows it for long grows.

Measured: a daemon reads a generated file of `--rows` rows and then goes on reading what is appended to it,
`TRICKLE_ROWS` a second. Headless Chromium opens the page `LOADS` times, each in a new context (no cache):
time to the first contentful paint, and until the figures of the daemon stand on it. Then one page stays open
for `--minutes`; after garbage collection each time, the bytes that its scripts hold and its number of nodes.

Not measured: a network, a screen. The pool is small (`--default-pool` for the real one), since the page sees
figures and not rows; ten learners draw ten curves, though. The page's window is ten minutes long and fills at
first; with `--before 10` it is full when the page is opened.
Why to doubt it: the browser runs on the same processors as the daemon.

    python benchmarks/page.py --before 10 --minutes 10
"""

import argparse
import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

from playwright.sync_api import CDPSession, sync_playwright

from adaptd import demo

LOADS = 5
TRICKLE_ROWS = 50
SMALL_POOL = ("linear", "naive_bayes", "prior")
BROWSERS = ("chromium-headless-shell", "chromium")


def write_stream(path: pathlib.Path, rows: int) -> list[str]:
    """`rows` lines; the first of them are returned, to be appended again."""
    lines = [
        json.dumps({key: value for key, value in record.items() if key != "id"}) + "\n"
        for _, record in zip(range(min(rows, 20_000)), demo.records("drift"), strict=False)
    ]
    with open(path, "w") as file:
        for start in range(0, rows, len(lines)):
            file.writelines(lines[: rows - start])
    return lines


def labels(url: str) -> int:
    with urllib.request.urlopen(f"{url}/api/v1/status", timeout=60) as answer:
        return int(json.load(answer)["labels"])


def used(devtools: CDPSession) -> tuple[float, float]:
    """Bytes that scripts hold, and nodes."""
    devtools.send("HeapProfiler.collectGarbage")
    figures = {one["name"]: one["value"] for one in devtools.send("Performance.getMetrics")["metrics"]}
    return figures["JSHeapUsedSize"], figures["Nodes"]


def show(url: str, minutes: float) -> None:
    program = next(found for name in BROWSERS if (found := shutil.which(name)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        paints, wholes = [], []
        for _ in range(LOADS):
            context = browser.new_context(viewport={"width": 1400, "height": 900})
            page = context.new_page()
            begun = time.perf_counter()
            page.goto(url)
            page.wait_for_selector("#state.good")
            wholes.append(time.perf_counter() - begun)
            paints.append(
                page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1e3
            )
            context.close()
        print(f"first paint: median {statistics.median(paints):.2f} s, most {max(paints):.2f} s")
        print(
            f"figures shown: median {statistics.median(wholes):.2f} s, most {max(wholes):.2f} s", flush=True
        )
        page = browser.new_context(viewport={"width": 1400, "height": 900}).new_page()
        page.goto(url)
        page.wait_for_selector("#state.good")
        devtools = page.context.new_cdp_session(page)
        devtools.send("Performance.enable")
        end = time.monotonic() + minutes * 60
        while True:
            heap, nodes = used(devtools)
            print(f"{labels(url):,} rows: {heap / 1e6:.2f} MB, {nodes:.0f} nodes", flush=True)
            if time.monotonic() >= end:
                break
            page.wait_for_timeout(min(60.0, max(1.0, end - time.monotonic())) * 1000)
        browser.close()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--minutes", type=float, default=10.0)
    options.add_argument("--before", type=float, default=0.0, help="minutes before the page is opened")
    options.add_argument(
        "--default-pool", action="store_true", help="all learners; takes minutes to get there"
    )
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        stream = pathlib.Path(folder) / "stream.jsonl"
        lines = write_stream(stream, chosen.rows)
        settings = [
            "source.kind=file", f"source.path={stream}", "source.follow=true", "sink.kind=file",
            f"sink.path={folder}/out.jsonl", f"checkpoint.directory={folder}/state", "http.enabled=true",
            "http.listen=127.0.0.1:0",
            *([] if chosen.default_pool else [f"pool.learners.{kind}.kind={kind}" for kind in SMALL_POOL]),
        ]  # fmt: skip
        command = [sys.executable, "-m", "adaptd", "run"]
        for setting in settings:
            command += ["--set", setting]
        daemon = subprocess.Popen(command, stderr=subprocess.PIPE)
        over = threading.Event()

        def trickle() -> None:
            with open(stream, "a") as file:
                while not over.wait(1.0):
                    file.writelines(lines[:TRICKLE_ROWS])
                    file.flush()

        feeding = threading.Thread(target=trickle)
        try:
            events = map(json.loads, daemon.stderr)
            listen = next(event["listen"] for event in events if event["event"] == "http_started")
            # Nobody reads the log from here on, and it must not fill its pipe.
            threading.Thread(target=daemon.stderr.read, daemon=True).start()
            while labels(f"http://{listen}") < chosen.rows:
                time.sleep(0.5)
            feeding.start()
            time.sleep(chosen.before * 60)
            show(f"http://{listen}", chosen.minutes)
        finally:
            over.set()
            daemon.kill()
            daemon.wait()
            if feeding.is_alive():
                feeding.join()


if __name__ == "__main__":
    main()
