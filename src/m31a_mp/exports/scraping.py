"""The HTTP server that Prometheus scrapes. This module needs the extra `prometheus`."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterable
from errno import EINVAL
from socketserver import TCPServer, ThreadingMixIn
from threading import Thread
from typing import Any, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from m31a_mp.exports.prometheus import SessionsCollector, WithoutCreated

# After the message of its absence.
from prometheus_client import CollectorRegistry, make_wsgi_app  # isort: skip
from prometheus_client.exposition import choose_encoder  # isort: skip

PATH = "/metrics"

# A scraper that takes nothing, or asks nothing, for so long loses its connection and its thread.
_SECONDS = 30.0


class Scraping:
    """Serves the metrics of a collector, from `__enter__` to `__exit__`. Each request has its own thread.

    Attributes:
        url: Where the metrics are.
    """

    def __init__(self, collector: SessionsCollector, host: str, port: int) -> None:
        """Take the port.

        Args:
            collector: The metrics.
            host: The address to listen at, or a name of it.
            port: The port; 0: any free one.

        Raises:
            OSError: The address or the port cannot be had; the error names both.
        """
        try:
            (family, *_, address), *_ = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            self._server = _Server(family, (str(address[0]), port), _application(collector))
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            number = getattr(error, "errno", None) or EINVAL
            raise OSError(number, f"cannot listen at {host}, port {port}: {reason}") from None
        shown = f"[{address[0]}]" if family == socket.AF_INET6 else address[0]
        self.url = f"http://{shown}:{self._server.server_port}{PATH}"
        self._thread = Thread(target=self._server.serve_forever, name="m31a_mp scraping", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the server. Requests under way end with their scrapers, or with the program."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, family: socket.AddressFamily, address: tuple[str, int], application: Any) -> None:
        self.address_family = family
        super().__init__(address, _Handler)
        self.set_app(application)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)
        # Take the address as the name: `HTTPServer` would ask for a name in the DNS, which may take long.
        self.server_name, self.server_port = self.socket.getsockname()[:2]
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a scraper that went away."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(WSGIRequestHandler):
    timeout = _SECONDS

    def log_message(self, *_: object) -> None:
        """Say nothing of requests."""


def _application(collector: SessionsCollector) -> Callable[..., Iterable[bytes]]:
    openmetrics, plain = (_registered(c) for c in (collector, WithoutCreated(collector)))

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] != PATH:
            return _say(start_response, "404 Not Found", f"the metrics are at {PATH}")
        try:
            _, content_type = choose_encoder(environ.get("HTTP_ACCEPT", ""))
        except TypeError:  # a version that is no number
            environ["HTTP_ACCEPT"] = content_type = ""
        is_openmetrics = content_type.startswith("application/openmetrics-text")
        try:
            answer: Iterable[bytes] = (openmetrics if is_openmetrics else plain)(environ, start_response)
        except OSError as error:
            # Without a list of the sessions, an answer would say that there are none.
            return _say(start_response, "503 Service Unavailable", str(error))
        return answer

    return application


def _registered(collector: SessionsCollector | WithoutCreated) -> Callable[..., Iterable[bytes]]:
    registry = CollectorRegistry()
    registry.register(collector)
    application: Callable[..., Iterable[bytes]] = make_wsgi_app(registry)
    return application


def _say(start_response: Callable[..., Any], status: str, message: str) -> list[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{message}\n".encode()]
