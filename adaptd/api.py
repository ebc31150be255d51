"""The API: what may be asked over HTTP, who may ask, and what comes back.

Handlers read the published snapshot, the journal and the history, and hand everything else to the loop as
requests (`requests.py`); none of them touches the lane. Faults come as `{"error": ...}`.

A call that brings an `Origin` of another site is refused, and without a token so is one that names another
host than this: a web page in a browser on the same machine shall not reach the daemon.
"""

import asyncio
import contextlib
import hmac
import ipaddress
import math
import pathlib
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from adaptd import openapi
from adaptd.commands import ACTIONS
from adaptd.config import Config, HttpConfig
from adaptd.contracts import Rows
from adaptd.errors import ConfigError
from adaptd.history import History
from adaptd.http import parse_listen
from adaptd.journal import Journal
from adaptd.lines import build_decoder
from adaptd.metrics import Metrics
from adaptd.requests import Queue, Reply, Request, Resolve, fault

BODY_SECONDS = 10.0
ANSWER_SECONDS = 20.0
JOURNAL_MAX = 1000
POINTS_MAX = 5000
SINCE_MAX = 2.0**53
TOKEN_BYTES_MIN = 8
# Requests that may come in a burst, as seconds of the rate.
BURST_SECONDS = 1.0

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")

ReadConfig = Callable[[Resolve], None]
Handler = Callable[[HttpRequest], Awaitable[Response]]


class Api:
    """All of /api. Raises ConfigError when the token file cannot be used."""

    def __init__(
        self,
        config: Config,
        metrics: Metrics,
        journal: Journal,
        history: History,
        queue: Queue,
        read_config: ReadConfig,
        kinds: Callable[[], dict[str, int]],
    ) -> None:
        self.config = config
        self.metrics = metrics
        self.journal = journal
        self.history = history
        self.queue = queue
        self.read_config = read_config
        self.kinds = kinds
        self.decoder = build_decoder("json", ",", config.fields)
        self.document = msgspec.json.encode(openapi.document(config))
        self.host = parse_listen(config.http.listen)[0]
        self.is_local = is_loopback(self.host)
        self.token = read_token(config.http.token_file)
        self.limits = config.http
        self.running = 0
        self.allowance = config.http.requests_per_second * BURST_SECONDS
        self.asked = time.monotonic()

    @property
    def may_write(self) -> bool:
        """Whether calls that change state are served at all."""
        return bool(self.token) or self.is_local

    def limit(self, http: HttpConfig) -> None:
        """Other limits, from a reload."""
        self.limits = http

    def application(self) -> ASGIApp:
        def post(path: str, handler: Handler) -> Route:
            return Route(path, handler, methods=["POST"])

        routes = [
            Route("/api/v1/openapi.json", self.openapi),
            Route("/api/v1/status", self.status),
            Route("/api/v1/learners", self.learners),
            Route("/api/v1/journal", self.entries),
            Route("/api/v1/history", self.past),
            post("/api/v1/checkpoint", self.checkpoint),
            post("/api/v1/reload", self.reload),
            post("/api/v1/learners/{name}/{action}", self.command),
        ]
        inner = Starlette(routes=routes, exception_handlers={HTTPException: refused, Exception: failed})
        calls = {"predict": self.predict, "learn": self.learn, "label": self.label}
        handlers = {f"/api/v1/{name}": handler for name, handler in calls.items()}

        async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
            # Those that come by the hundred a second: routes and middleware would cost each a third more.
            handler = handlers.get(scope["path"])
            await (inner(scope, receive, send) if handler is None else post_to(handler, scope, receive, send))

        return Guard(self, dispatch)

    # Reading.

    async def openapi(self, request: HttpRequest) -> Response:
        return json(200, self.document)

    async def status(self, request: HttpRequest) -> Response:
        s = self.metrics.snapshot
        delays = sum(s.label_delay_rows.counts)
        champion = next((learner.name for learner in s.learners if learner.is_champion), None)
        age = time.time() - s.checkpoint_time
        return plain(
            {
                "version": s.version,
                "task": s.task,
                "ready": not s.stopped_by and s.uptime_seconds > 0,
                "uptime_seconds": s.uptime_seconds,
                "rows": s.rows,
                "predictions": s.predictions,
                "labels": s.labels,
                "rows_per_second": s.rows_per_second,
                "champion": champion,
                "speaker": s.speaker,
                "scores": s.blend_scores,
                "coverage": s.coverage or None,
                "student": s.student_scores or None,
                "loss": s.blend_loss,
                "drifts": s.drifts,
                "concepts": s.concepts,
                "recalls": s.recalls,
                "warnings": s.warnings,
                "covariate_shifts": s.covariate_shifts,
                "unlabelled_drifts": s.unlabelled_drifts,
                "expected_accuracy": s.expected_accuracy,
                "switches": s.switches,
                "rejects": s.rejects,
                "label_buffer": {"rows": s.label_buffer_rows, "bytes": s.label_buffer_bytes},
                "label_delay_rows": s.label_delay_rows.sum / delays if delays else None,
                "checkpoint": {
                    "age_seconds": max(0.0, age) if math.isfinite(age) else None,
                    "seconds": s.checkpoint_seconds,
                    "bytes": s.checkpoint_bytes,
                    "saved": s.checkpoints,
                    "failures": s.checkpoint_failures,
                },
                "source": {"kind": self.config.source["kind"], "lag_bytes": s.source_lag_bytes},
                "sink": {"kind": self.config.sink["kind"]},
                "stopped_by": s.stopped_by,
            }
        )

    async def learners(self, request: HttpRequest) -> Response:
        kinds = dict(self.metrics.snapshot.learner_kinds)
        learners = [
            {
                "name": learner.name,
                "kind": kinds.get(learner.name, ""),
                "is_champion": learner.is_champion,
                "frozen": learner.is_frozen,
                "set_aside": learner.set_aside,
                "weight": learner.weight,
                "loss": learner.loss,
                "scores": learner.scores,
                "learning_rate": learner.learning_rate,
                "rate_scale": learner.rate_scale,
                "gradient_norm": learner.gradient_norm,
                "step_norm": learner.step_norm,
                "state_bytes": learner.state_bytes,
                "about": learner.about,
            }
            for learner in self.metrics.snapshot.learners
        ]
        return plain({"learners": learners})

    async def entries(self, request: HttpRequest) -> Response:
        last = integer(request, "last", 100, 1, JOURNAL_MAX)
        since = integer(request, "since", 0, 0, 2**62)
        kind = request.query_params.get("kind")
        entries = await run_in_threadpool(self.journal.read, last, since, kind)
        return plain({"entries": [msgspec.structs.asdict(entry) for entry in entries]})

    async def past(self, request: HttpRequest) -> Response:
        since = number(request, "since", 0.0, SINCE_MAX)
        points = integer(request, "points", 600, 2, POINTS_MAX)
        return plain(await run_in_threadpool(self.history.read, since, points))

    # Rows.

    async def predict(self, request: HttpRequest) -> Response:
        body, rows = await self.records(request)
        if not rows.has_features.all():
            raise HTTPException(422, "a record to predict must have features; labels go to /api/v1/label")
        if any(label is not None for label in rows.labels):
            raise HTTPException(422, "a record with its label goes to /api/v1/learn")
        if all(identifier is None for identifier in rows.ids):
            return await self.ask(Request("preview", ignore, rows=rows))
        self.check_writing("predict with an id, which waits for its label,")
        return await self.ask(Request("rows", ignore, body=body, rows=rows))

    async def learn(self, request: HttpRequest) -> Response:
        self.check_writing("learn")
        body, rows = await self.records(request)
        if any(label is None for label in rows.labels):
            raise HTTPException(422, "a record to learn must have a label; without one it goes to predict")
        if not rows.has_features.all():
            raise HTTPException(422, "a record to learn must have features; labels go to /api/v1/label")
        return await self.ask(Request("rows", ignore, body=body, rows=rows))

    async def label(self, request: HttpRequest) -> Response:
        self.check_writing("label")
        body, rows = await self.records(request)
        if rows.has_features.any():
            raise HTTPException(422, "a label must have the id and the label only; with features use learn")
        return await self.ask(Request("rows", ignore, body=body, rows=rows))

    async def records(self, request: HttpRequest) -> tuple[bytes, Rows]:
        """The body as JSON lines, and decoded. Raises HTTPException unless every record is good."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise HTTPException(415, "the Content-Type must be application/json")
        text = await self.body(request)
        try:
            msgspec.json.decode(text)
            many = text.lstrip()[:1] == b"["
            raws = list(map(bytes, msgspec.json.decode(text, type=list[msgspec.Raw]))) if many else [text]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise HTTPException(400, f"the body must be JSON: {error}") from None
        if not raws:
            raise HTTPException(422, "there must be at least one record")
        # Within JSON a line break is only ever a blank.
        lines = b"".join(raw.replace(b"\n", b" ") + b"\n" for raw in raws)
        self.decoder.load_state({"records": 0})
        rows = self.decoder.decode(lines, self.kinds())
        if rows.rejects:
            reject = rows.rejects[0]
            raise HTTPException(
                422, f"record {reject.position - 1} ({reject.reason}): {reject.detail}; nothing was taken in"
            )
        return lines, rows

    async def body(self, request: HttpRequest) -> bytes:
        """Raises HTTPException when it is too long or too slow."""
        limit = self.limits.body_bytes_max
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for piece in request.stream():
                    body += piece
                    if len(body) > limit:
                        raise HTTPException(413, f"the body must have at most {limit} bytes")
        except TimeoutError:
            raise HTTPException(408, f"the body must come within {BODY_SECONDS:g} seconds") from None
        return bytes(body)

    # Commands.

    async def checkpoint(self, request: HttpRequest) -> Response:
        self.check_writing("checkpoint")
        return await self.ask(Request("checkpoint", ignore))

    async def reload(self, request: HttpRequest) -> Response:
        self.check_writing("reload")
        resolve, answer = self.answer()
        await run_in_threadpool(self.read_config, resolve)
        return await answer

    async def command(self, request: HttpRequest) -> Response:
        name, action = request.path_params["name"], request.path_params["action"]
        learners = {learner.name: learner for learner in self.metrics.snapshot.learners}
        if action not in ACTIONS:
            raise HTTPException(404, f"the action must be one of {', '.join(ACTIONS)}; got {action[:200]!r}")
        if name not in learners:
            raise HTTPException(404, f"the learner must be one of {', '.join(learners)}; got {name[:200]!r}")
        self.check_writing(action)
        awake = [other for other in learners.values() if not other.is_set_aside]
        if action == "disable" and awake == [learners[name]]:
            raise HTTPException(409, f"{name!r} is the only learner in use")
        body = msgspec.json.encode({"action": action, "learner": name})
        return await self.ask(Request("command", ignore, body=body))

    def check_writing(self, what: str) -> None:
        if not self.may_write:
            raise HTTPException(
                403, f"{what} needs http.token_file, since http.listen is not a loopback address"
            )

    # To the loop and back.

    async def ask(self, request: Request) -> Response:
        request.resolve, answer = self.answer()
        self.queue.put(request)
        return await answer

    def answer(self) -> tuple[Resolve, Awaitable[Response]]:
        """What another thread calls with the reply, and what waits for that."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Response] = loop.create_future()

        def settle(status: int, reply: Reply) -> None:
            if not future.done():
                future.set_result(json(status, reply() if callable(reply) else reply))

        def resolve(status: int, reply: Reply) -> None:
            # The server may have closed its loop meanwhile; then nobody waits.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(settle, status, reply)

        async def waited() -> Response:
            try:
                return await asyncio.wait_for(future, ANSWER_SECONDS)
            except TimeoutError:
                raise HTTPException(
                    504, f"no answer within {ANSWER_SECONDS:g} seconds; it may still be taken in"
                ) from None

        return resolve, waited()


class Guard:
    """Who may call, how often, and how many at once; before any handler runs."""

    def __init__(self, api: Api, inner: ASGIApp) -> None:
        self.api = api
        self.inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        api = self.api
        headers = dict(scope["headers"])
        reply = self.refusal(headers)
        if reply is not None:
            await reply(scope, receive, send)
            return
        api.running += 1
        try:
            await self.inner(scope, receive, send)
        finally:
            api.running -= 1

    def refusal(self, headers: MutableMapping[bytes, bytes]) -> Response | None:
        api = self.api
        host = headers.get(b"host", b"").decode("latin-1")
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and (urlsplit(origin).netloc if "//" in origin else origin) != host:
            return error(403, "calls from pages of another origin are refused")
        if api.token:
            scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(token.strip(), api.token):
                reply = error(401, "the call must bring the token: Authorization: Bearer ...")
                reply.headers["WWW-Authenticate"] = "Bearer"
                return reply
        elif api.is_local and hostname(host) not in (*LOOPBACK_NAMES, api.host):
            return error(403, "the Host must name the loopback address; or set http.token_file")
        now = time.monotonic()
        rate = api.limits.requests_per_second
        api.allowance = min(rate * BURST_SECONDS, api.allowance + rate * (now - api.asked))
        api.asked = now
        if api.allowance < 1.0:
            reply = error(429, f"more than http.requests_per_second = {rate:g} calls")
            reply.headers["Retry-After"] = "1"
            return reply
        api.allowance -= 1.0
        if api.running >= api.limits.concurrency_max:
            reply = error(503, f"more than http.concurrency_max = {api.limits.concurrency_max} calls at once")
            reply.headers["Retry-After"] = "1"
            return reply
        return None


def read_token(path: str) -> bytes:
    """The secret in the file, blanks around it left out; empty when no file is named."""
    if not path:
        return b""
    try:
        token = pathlib.Path(path).read_bytes().strip()
    except OSError as error:
        raise ConfigError(
            [f"http.token_file must be a readable file; {path}: {error.strerror}. Correct the path."]
        ) from None
    if len(token) < TOKEN_BYTES_MIN:
        raise ConfigError(
            [f"http.token_file must hold at least {TOKEN_BYTES_MIN} bytes; {path} has {len(token)}. "
             "Write a long random text into it."]
        )  # fmt: skip
    return token


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def hostname(host: str) -> str:
    """Without the port: `[::1]:80` is `::1`."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def integer(request: HttpRequest, name: str, default: int, low: int, high: int) -> int:
    """A parameter of the query. Raises HTTPException."""
    text = request.query_params.get(name)
    if text is None:
        return default
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20 and low <= int(text) <= high):
        raise HTTPException(422, f"{name} must be an integer from {low} to {high}; got {text[:200]!r}")
    return int(text)


def number(request: HttpRequest, name: str, default: float, high: float) -> float:
    text = request.query_params.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= high:
        raise HTTPException(422, f"{name} must be a number from 0 to {high:g}; got {text[:200]!r}")
    return value


async def post_to(handler: Handler, scope: Scope, receive: Receive, send: Send) -> None:
    """One call of a path that takes only POST."""
    request = HttpRequest(scope, receive, send)
    try:
        if request.method != "POST":
            raise HTTPException(405, headers={"Allow": "POST"})
        reply = await handler(request)
    except HTTPException as problem:
        reply = await refused(request, problem)
    except Exception as problem:
        await (await failed(request, problem))(scope, receive, send)
        # The server writes down where it came from.
        raise
    await reply(scope, receive, send)


async def refused(request: HttpRequest, problem: Exception) -> Response:
    assert isinstance(problem, HTTPException)
    reply = error(problem.status_code, problem.detail)
    reply.headers.update(problem.headers or {})
    return reply


async def failed(request: HttpRequest, problem: Exception) -> Response:
    return error(500, f"a fault in adaptd: {type(problem).__name__}: {problem}")


def ignore(status: int, reply: Reply) -> None:
    """Until it is known who waits."""


def json(status: int, body: bytes) -> Response:
    return Response(body, status, media_type="application/json", headers={"Cache-Control": "no-store"})


def plain(value: Any) -> Response:
    """NaN and infinite become null."""
    return json(200, msgspec.json.encode(value))


def error(status: int, words: str) -> Response:
    return json(status, fault(words))
