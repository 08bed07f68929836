"""The metrics of a session for OpenTelemetry, by OTLP over HTTP. This module needs the extra `otlp`."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.client import HTTPResponse
from io import BufferedReader, RawIOBase
from typing import Any
from urllib.parse import urlsplit

from m31a_mp.errors import ExportError
from m31a_mp.exports.report_names import cut
from m31a_mp.model import SessionMetrics
from m31a_mp.system.log import shown

try:
    # `requests` imports this late: if a process forks while the thread that sends is in the middle of the
    # import, the child waits for ever at its own import of the module.
    import netrc  # noqa: F401

    import requests
    import requests.adapters
    from opentelemetry.exporter.otlp.proto.http import metric_exporter
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
    from opentelemetry.sdk.metrics.export import MetricExportResult

    from m31a_mp.exports.otlp_data import metrics_data
except ImportError as error:
    raise ImportError(
        f"{error}; metrics for OpenTelemetry need its exporter: pip install 'm31a_mp[otlp]'", name=error.name
    ) from None

METRICS_PATH = "/v1/metrics"

OLDER_NAMES = "gen_ai/dup"
"""The word in the variable OTEL_SEMCONV_STABILITY_OPT_IN that asks for the older names, too."""

# The most points of a request. A session with 100,000 tools would make a request of 100 MB.
_BATCH = 10_000

_MOST_WORDS = 400  # characters of a reason
# The most bytes of an answer that are read: without a limit, an answer could fill the memory.
_MOST_ANSWER = 64 * 1024


class Exporter:
    """Sends the metrics of sessions to an endpoint. All variables OTEL_EXPORTER_OTLP_* hold.

    Attributes:
        endpoint: The URL, without a password.
    """

    def __init__(self, endpoint: str | None = None, *, older_names: bool | None = None) -> None:
        """Prepare to send. Nothing is sent yet.

        Args:
            endpoint: The URL, to which `/v1/metrics` is added if it has no path. None: as the variables
                OTEL_EXPORTER_OTLP_METRICS_ENDPOINT and OTEL_EXPORTER_OTLP_ENDPOINT say, else
                `http://localhost:4318`.
            older_names: Whether to send `gen_ai.client.token.usage` and `gen_ai.client.operation.duration`,
                too. None: if the variable OTEL_SEMCONV_STABILITY_OPT_IN has the word `gen_ai/dup`.

        Raises:
            ValueError: The endpoint is not a URL of HTTP.
        """
        if endpoint is not None:
            endpoint = _with_path(endpoint)
        if older_names is None:
            words = os.environ.get("OTEL_SEMCONV_STABILITY_OPT_IN", "").split(",")
            older_names = OLDER_NAMES in map(str.strip, words)
        self._older_names = older_names
        self._outcomes: list[Any] = []
        session: Any = requests.Session()
        self._limit = _Limit()
        for scheme in ("http://", "https://"):
            session.mount(scheme, _Adapter(self._limit))
        session.headers["Accept-Encoding"] = "identity"  # a few packed bytes could become too many
        session.request = self._noting(session.request)
        self._exporter = metric_exporter.OTLPMetricExporter(
            endpoint=endpoint, session=session, max_export_batch_size=_BATCH
        )
        self.endpoint = _shown(self._exporter._endpoint)  # noqa: SLF001  # it has no other name

    def export(self, metrics: SessionMetrics) -> int:
        """Send the state of a session. Sending it twice is harmless.

        The endpoint may take as long as OTEL_EXPORTER_OTLP_TIMEOUT says, by default 10 seconds, for the whole
        answer to a request. A request has at most 10,000 data points.

        Returns:
            The number of data points.

        Raises:
            ExportError: The endpoint could not be reached, or did not take everything.
        """
        data = metrics_data(metrics, older_names=self._older_names)
        self._outcomes.clear()
        with _quiet(metric_exporter.__name__):
            result = self._exporter.export(data)
        if result is not MetricExportResult.SUCCESS:
            raise self._error(f"did not take the metrics: {_reason(self._outcomes)}")
        for outcome in self._outcomes:
            if what := _left_out(outcome):
                raise self._error(f"did not take all metrics: {what}")
        return _count_points(data)

    def _error(self, what: str) -> ExportError:
        # The receiver chooses a part of these words, and the log may be shown in a terminal.
        return ExportError(f"{self.endpoint} {cut(shown(what), _MOST_WORDS)}", self.endpoint)

    def _noting(self, request: Callable[..., Any]) -> Callable[..., Any]:
        """Note the outcome of each request: the exporter says only that it failed."""

        def noting(*arguments: Any, **options: Any) -> Any:
            self._limit.start(options["timeout"])
            try:
                response = request(*arguments, **options, stream=True)
                response._content = response.raw.read(_MOST_ANSWER, decode_content=False)  # noqa: SLF001  # as .content
                response.close()
            except Exception as error:
                self._outcomes.append(error)
                raise
            self._outcomes.append(response)
            return response

        return noting


class _Limit:
    """The time that the receiver has for a whole answer."""

    def __init__(self) -> None:
        self._end = 0.0

    def start(self, seconds: float) -> None:
        """Begin a request."""
        self._end = time.monotonic() + seconds

    def check(self) -> None:
        """Raise TimeoutError if the answer takes too long."""
        if time.monotonic() > self._end:
            raise TimeoutError("timed out")


class _Adapter(requests.adapters.HTTPAdapter):
    """Limits whole answers. A socket's own timeout begins again with each byte that comes."""

    def __init__(self, limit: _Limit) -> None:
        super().__init__()
        self._answer = partial(_Answer, limit)

    def get_connection_with_tls_context(self, *arguments: Any, **options: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*arguments, **options)
        if not isinstance(pool.ConnectionCls, partial):
            pool.ConnectionCls = partial(self._connection, pool.ConnectionCls)
        return pool

    def _connection(self, made: Callable[..., Any], **options: Any) -> Any:
        connection = made(**options)
        connection.response_class = self._answer
        return connection


class _Answer(HTTPResponse):
    def __init__(self, limit: _Limit, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.fp = BufferedReader(_Bytes(self.fp.detach(), limit))


class _Bytes(RawIOBase):
    """The bytes of a socket, as long as there is time."""

    def __init__(self, inner: RawIOBase, limit: _Limit) -> None:
        self._inner = inner
        self._limit = limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._limit.check()
        return self._inner.readinto(buffer)

    def close(self) -> None:
        self._inner.close()
        super().close()


def _count_points(data: Any) -> int:
    scopes = [scope for part in data.resource_metrics for scope in part.scope_metrics]
    return sum(len(metric.data.data_points) for scope in scopes for metric in scope.metrics)


# --- Outcomes of requests -----------------------------------------------------------------------------


def _reason(outcomes: list[Any]) -> str:
    """Return why the last request failed, in few words."""
    if not outcomes:
        return "no request could be made"
    outcome = outcomes[-1]
    if not isinstance(outcome, Exception):
        return f"it answered {outcome.status_code} {outcome.reason}"
    deepest: BaseException = outcome
    while inner := deepest.__cause__ or deepest.__context__:
        deepest = inner
    if isinstance(outcome, requests.Timeout) or isinstance(deepest, TimeoutError):
        return "it did not answer in time"
    return getattr(deepest, "strerror", None) or str(deepest)


def _left_out(outcome: Any) -> str:
    """Return what a receiver says that it left out of a request that succeeded; empty if it took all."""
    if isinstance(outcome, Exception):
        return ""  # the exporter tried again
    if outcome.is_redirect:  # the exporter does not follow, and takes it for a success
        return f"it answered {outcome.status_code} {outcome.reason}, and points elsewhere"
    if outcome.status_code >= HTTPStatus.MULTIPLE_CHOICES:  # the exporter takes all below 400 for a success
        return f"it answered {outcome.status_code} {outcome.reason}"
    answer = ExportMetricsServiceResponse()
    try:
        answer.ParseFromString(outcome.content)
    except Exception:
        return ""  # some receivers answer in another format
    rejected = answer.partial_success.rejected_data_points
    reason = answer.partial_success.error_message or "no reason is given"
    return f"it rejected {rejected:,} data points: {reason}" if rejected else ""


def _with_path(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"{endpoint!r} is not an endpoint: it has to be a URL, as http://localhost:4318")
    return parts._replace(path=METRICS_PATH).geturl() if parts.path in {"", "/"} else endpoint


def _shown(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep the exporter from logging each attempt in this thread. The caller tells the outcome."""
    thread = threading.get_ident()

    def is_of_others(record: logging.LogRecord) -> bool:
        return record.thread != thread

    log = logging.getLogger(name)
    log.addFilter(is_of_others)
    try:
        yield
    finally:
        log.removeFilter(is_of_others)
