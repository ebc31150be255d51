"""A whole daemon in a thread, with its API, for tests."""

import io
import json
import threading
from typing import Any

import httpx

from adaptd import config as configuration
from adaptd.daemon import Daemon

POOL = {"linear": {"kind": "linear"}, "prior": {"kind": "prior"}}


class Running:
    """A daemon that runs until the end of the `with`. `tree` goes on top of an API without a stream."""

    def __init__(self, tree: dict[str, Any] | None = None, reread: Any = None) -> None:
        self.tree = {
            "source": {"kind": "none"},
            "sink": {"kind": "stdout"},
            "pool": {"learners": POOL},
            "control": {"rows": 16},
            **(tree or {}),
        }
        self.tree["http"] = {"enabled": True, "listen": "127.0.0.1:0", **self.tree.get("http", {})}
        self.stderr = io.StringIO()
        config = configuration.read(self.tree, "test")
        self.daemon = Daemon(config, "test.toml", self.stderr, reread=reread)
        self.sink = Collected()
        self.daemon.sink = self.sink
        self.failure: BaseException | None = None
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.daemon.run()
        except BaseException as error:
            self.failure = error

    def __enter__(self) -> "Running":
        self.thread.start()
        while not (started := self.events("http_started")):
            assert self.thread.is_alive(), self.failure
        scheme = "https" if self.tree["http"].get("tls_certificate") else "http"
        self.url = f"{scheme}://{started[0]['listen']}"
        self.client = httpx.Client(base_url=f"{self.url}/api/v1/", timeout=60, verify=False)
        return self

    def __exit__(self, *error: object) -> None:
        self.client.close()
        self.daemon.stopped_by = "test"
        self.daemon.desk.queue.wake()
        self.thread.join()
        if self.failure is not None:
            raise self.failure

    def events(self, name: str) -> list[dict[str, Any]]:
        """Log events of one kind so far; a line that is being written is left out."""
        whole = self.stderr.getvalue().rpartition("\n")[0]
        return [event for event in map(json.loads, whole.splitlines()) if event["event"] == name]

    def post(self, path: str, body: Any = None, code: int = 200, **more: Any) -> Any:
        answer = self.client.post(path, **({"json": body} if body is not None else {}), **more)
        assert answer.status_code == code, answer.text
        return answer.json()

    def get(self, path: str, code: int = 200, **more: Any) -> Any:
        answer = self.client.get(path, **more)
        assert answer.status_code == code, answer.text
        return answer.json()

    def learn(self, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return self.post("learn", records)["predictions"]


class Collected:
    """A sink that keeps the lines."""

    def __init__(self) -> None:
        self.lines = b""

    def write(self, lines: bytes) -> None:
        self.lines += lines

    def push(self, wait: bool = False) -> None:
        return

    def waiting_bytes(self) -> int:
        return 0

    def flush(self) -> None:
        return

    def position(self) -> dict[str, Any]:
        return {"bytes": len(self.lines)}

    def seek(self, position: dict[str, Any]) -> None:
        self.lines = self.lines[: position["bytes"]]

    def close(self) -> None:
        return
