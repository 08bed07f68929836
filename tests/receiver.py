"""A receiver of OTLP over HTTP: it decodes what it gets, and answers as the test says."""

from __future__ import annotations

import gzip
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)

Point = tuple[str, frozenset[tuple[str, str]]]
"""The name of a metric, and the attributes of a point."""


class Receiver:
    """What was received, and how to answer.

    Attributes:
        requests: The decoded requests.
        headers: The headers of each request, with the path as `:path`.
        status: The status to answer with.
        answer: The body of the answer.
        location: Where an answer points; empty for nowhere.
        is_open: While it is not set, requests are taken and not answered.
        busy: Set when a request has come.
        refused: Set when the sender did not wait for the whole answer.
    """

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.status = 200
        self.answer = b""
        self.location = ""
        self.is_open = threading.Event()
        self.is_open.set()
        self.busy = threading.Event()
        self.refused = threading.Event()
        self.url = ""

    def reject(self, points: int, message: str) -> None:
        """Take requests, and say that some points were not wanted."""
        answer = ExportMetricsServiceResponse()
        answer.partial_success.rejected_data_points = points
        answer.partial_success.error_message = message
        self.answer = answer.SerializeToString()

    def metrics(self) -> list[Any]:
        """The metrics of the last request."""
        [resource] = self.requests[-1].resource_metrics
        [scope] = resource.scope_metrics
        return list(scope.metrics)

    def points(self) -> dict[Point, Any]:
        """The points of the last request."""
        return points_of(self.metrics())


def number(point: Any) -> float:
    return float(getattr(point, point.WhichOneof("value")))


def points_of(metrics: list[Any]) -> dict[Point, Any]:
    found: dict[Point, Any] = {}
    for metric in metrics:
        for point in getattr(metric, metric.WhichOneof("data")).data_points:
            key = metric.name, frozenset((a.key, a.value.string_value) for a in point.attributes)
            assert key not in found, f"{key} is there twice"
            found[key] = point
    return found


@contextmanager
def dripping(start: bytes, drop: bytes) -> Iterator[str]:
    """A receiver that never ends: the start of an answer, and then a drop again and again. Its URL."""
    ended = threading.Event()

    def answer(listener: socket.socket) -> None:
        with suppress(OSError):  # the listener is closed
            while True:
                connection = listener.accept()[0]
                with connection, suppress(OSError):  # the sender gave up
                    connection.recv(1024)
                    connection.sendall(start)
                    while not ended.wait(0.01):
                        connection.sendall(drop)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=(listener,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            ended.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Receive on a port of this machine."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.busy.set()
            receiver.is_open.wait()
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            request = ExportMetricsServiceRequest()
            request.ParseFromString(body)
            receiver.headers.append({**dict(self.headers.items()), ":path": self.path})
            receiver.requests.append(request)
            try:
                self.send_response(receiver.status)
                if receiver.location:
                    self.send_header("Location", receiver.location)
                self.send_header("Content-Length", str(len(receiver.answer)))
                self.end_headers()
                self.wfile.write(receiver.answer)
            except OSError:
                receiver.refused.set()

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        receiver.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield receiver
        finally:
            receiver.is_open.set()
            server.shutdown()
            thread.join()
