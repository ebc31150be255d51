"""The metrics page and the health pages, on loopback unless told otherwise.

`/metrics` for Prometheus; `/healthz` says that the process lives; `/readyz` is 503 until the daemon reads
its input.
"""

import socket
import socketserver
import threading
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app
from prometheus_client.registry import CollectorRegistry

from adaptd.errors import AdaptdError, ConfigError

# A client that connects and says nothing holds one thread no longer than this.
REQUEST_TIMEOUT_SECONDS = 10.0


class HttpServer:
    """Serves `registry` on `listen`, `host:port`, in a thread of its own. Port 0: `port` tells which.

    Raises ConfigError when `listen` is not of this form, AdaptdError when the address cannot be had.
    """

    def __init__(
        self, listen: str, registry: CollectorRegistry, is_ready: Callable[[], bool] = lambda: True
    ) -> None:
        host, port = parse_listen(listen)
        server_class = _ServerV6 if ":" in host else _Server
        try:
            self._server = make_server(
                host, port, _application(registry, is_ready), server_class, handler_class=_Handler
            )
        except OSError as error:
            raise AdaptdError(
                f"http.listen: {listen!r} could not be opened: {error.strerror or error}. Is another adaptd "
                "running? Choose another port, or 0 for any that is free."
            ) from error
        self.host = host
        self.port = int(self._server.server_port)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="http", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop serving and free the port. Safe to call twice."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def parse_listen(listen: str) -> tuple[str, int]:
    """Host and port of `127.0.0.1:9464` or `[::1]:9464`. Raises ConfigError."""
    host, colon, port = listen.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ConfigError(
            [f"http.listen must be host:port with a port from 0 to 65535; got {listen!r:.200}."]
        )
    return host.removeprefix("[").removesuffix("]"), int(port)


def _application(registry: CollectorRegistry, is_ready: Callable[[], bool]) -> Any:
    metrics = make_wsgi_app(registry)

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            status, body = "405 Method Not Allowed", b"only GET\n"
        elif path == "/metrics":
            page: Iterable[bytes] = metrics(environ, start_response)
            return page
        elif path == "/healthz":
            status, body = "200 OK", b"ok\n"
        elif path == "/readyz":
            ready = is_ready()
            status, body = ("200 OK", b"ready\n") if ready else ("503 Service Unavailable", b"not ready\n")
        else:
            status, body = "404 Not Found", b"there are /metrics, /healthz, /readyz\n"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    return application


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    # Closing waits for nobody.
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no event."""

    def server_bind(self) -> None:
        # The parent looks up its own host name, which can block for seconds without a name server.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()


class _ServerV6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_TIMEOUT_SECONDS

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged."""

    def address_string(self) -> str:
        """Without a look-up of the client's name."""
        return str(self.client_address[0])
