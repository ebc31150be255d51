"""The HTTP server: metrics and health, the API and the live page, on loopback unless told otherwise.

`/metrics` for Prometheus; `/healthz` says that the process lives; `/readyz` is 503 until the daemon reads
its input; `/api/v1/...` and `/` when there is an API. The server runs in a thread of its own.
"""

import asyncio
import pathlib
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import uvicorn
import uvloop
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import CollectorRegistry
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from adaptd.config import HttpConfig
from adaptd.errors import AdaptdError, ConfigError

if TYPE_CHECKING:
    from adaptd.api import Api

PAGE = pathlib.Path(__file__).parent / "page"
# A connection that says nothing is closed after this.
KEEP_ALIVE_SECONDS = 10
# Connections at once, those of slow clients included.
CONNECTIONS_MAX = 1000
# How long closing waits for answers on their way.
CLOSE_SECONDS = 2
PAGE_HEADERS = {
    # Nothing from elsewhere, and nobody shows the page in a frame of theirs.
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


class HttpServer:
    """Serves `registry`, and `api` when there is one, on `listen`, `host:port`. Port 0: `port` tells which.

    Raises ConfigError when `listen` is not of this form or the TLS files cannot be used, AdaptdError when
    the address cannot be had.
    """

    def __init__(
        self,
        listen: str,
        registry: CollectorRegistry,
        is_ready: Callable[[], bool] = lambda: True,
        api: "Api | None" = None,
        config: HttpConfig | None = None,
    ) -> None:
        config = config or HttpConfig()
        host, port = parse_listen(listen)
        settings = uvicorn.Config(
            application(registry, is_ready, api),
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            # Nothing here asks who the client is, so nobody has to be believed about it.
            proxy_headers=False,
            ws="none",
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=CLOSE_SECONDS,
            limit_concurrency=CONNECTIONS_MAX,
            ssl_certfile=config.tls_certificate or None,
            ssl_keyfile=config.tls_key or None,
        )
        try:
            settings.load()
        except OSError as error:
            raise ConfigError(
                [
                    "http.tls_certificate and http.tls_key must name PEM files of a certificate and a key; "
                    f"{error.strerror or error}. Correct the paths or leave them out for plain HTTP."
                ]
            ) from error
        self._socket = bound(listen, host, port)
        self.host, self.port = host, int(self._socket.getsockname()[1])
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._server.serve(sockets=[self._socket]))

    def close(self) -> None:
        """Stop serving and free the port. Safe to call twice."""
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()


def bound(listen: str, host: str, port: int) -> socket.socket:
    """A listening socket, so that what is wrong with the address is said before anything runs."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol told: asyncio switches Nagle's algorithm off for such sockets only, and with it an
    # answer of two segments waits some 40 milliseconds for the reader's acknowledgement.
    server = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((host, port))
        server.listen(1024)
    except OSError as error:
        server.close()
        raise AdaptdError(
            f"http.listen: {listen!r} could not be opened: {error.strerror or error}. Is another adaptd "
            "running? Choose another port, or 0 for any that is free."
        ) from error
    return server


def parse_listen(listen: str) -> tuple[str, int]:
    """Host and port of `127.0.0.1:9464` or `[::1]:9464`. Raises ConfigError."""
    host, colon, port = listen.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ConfigError(
            [f"http.listen must be host:port with a port from 0 to 65535; got {listen!r:.200}."]
        )
    return host.removeprefix("[").removesuffix("]"), int(port)


def application(registry: CollectorRegistry, is_ready: Callable[[], bool], api: "Api | None") -> ASGIApp:
    """All routes."""
    pages = starlette(registry, is_ready, api is not None)
    if api is None:
        return pages
    calls = api.application()

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        # One application in another would cost each call half as much again.
        await (calls if scope["path"].startswith("/api/") else pages)(scope, receive, send)

    return dispatch


def starlette(registry: CollectorRegistry, is_ready: Callable[[], bool], has_page: bool) -> Starlette:
    """Everything but the API."""

    async def metrics(request: Request) -> Response:
        encoder, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encoder(registry), headers={"Content-Type": content_type})

    async def healthz(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(request: Request) -> Response:
        ready = is_ready()
        return PlainTextResponse("ready\n" if ready else "not ready\n", 200 if ready else 503)

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        words = "there are /metrics, /healthz, /readyz\n" if error.status_code == 404 else error.detail + "\n"
        return PlainTextResponse(words, error.status_code, headers=error.headers)

    routes: list[Route | Mount] = [
        Route("/metrics", metrics),
        Route("/healthz", healthz),
        Route("/readyz", readyz),
    ]
    if has_page:
        routes += [
            Route("/", page),
            Mount("/page", app=Files(directory=PAGE, check_dir=False)),
        ]
    return Starlette(routes=routes, exception_handlers={HTTPException: refused})


async def page(request: Request) -> Response:
    return FileResponse(PAGE / "index.html", headers=PAGE_HEADERS)


class Files(StaticFiles):
    """The page's parts."""

    def file_response(self, *args: object, **kwargs: object) -> Response:
        response: Response = super().file_response(*args, **kwargs)  # type: ignore[arg-type]
        response.headers.update(PAGE_HEADERS)
        return response
