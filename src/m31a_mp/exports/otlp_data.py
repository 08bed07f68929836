"""The metrics of a session as OpenTelemetry's `MetricsData`.

Names and attributes follow the semantic conventions for generative AI
(github.com/open-telemetry/semantic-conventions-genai), which are in development. What has no convention is
`m31a.*`. All numbers are cumulative since the start of the session, so that an export that is lost or late
does no harm.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from opentelemetry.sdk.metrics import export as sdk
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from m31a_mp import __version__
from m31a_mp.exports.counters import COUNTERS
from m31a_mp.kinds.checks import INT64_MAX
from m31a_mp.kinds.histogram import SCALE, Histogram
from m31a_mp.kinds.times import to_ns
from m31a_mp.model import LLMMetric, ModelMetric, SessionMetrics, has_records

_ATTRIBUTES = {
    "tool": "gen_ai.tool.name",
    "model": "gen_ai.request.model",
    "type": "gen_ai.token.type",
    "phase": "m31a.phase",
    "outcome": "m31a.outcome",
    "reason": "m31a.reason",
}

# The conventions have names of their own for these.
_CONVENTIONAL = {"model.tokens", "model.reasoning_tokens"}

# A phase knows only whether it failed. The conventions have this value for errors without a name.
_SOME_ERROR = "_OTHER"

Attributes = dict[str, str]


def metrics_data(metrics: SessionMetrics, now: int | None = None, *, older_names: bool = False) -> Any:
    """Return the metrics of a session as OpenTelemetry's `MetricsData`.

    Args:
        metrics: The session's metrics.
        now: The time of the numbers, in ns since the epoch; None: now.
        older_names: Whether to add the metrics of older conventions.
    """
    start = max(0, to_ns(metrics.started_at))
    span = _Span(start, max(start, time.time_ns() if now is None else now))
    made = [*_conventional(metrics, span), *_ours(metrics, span)]
    if older_names:
        made += _older(metrics, span)
    scope = sdk.ScopeMetrics(
        scope=InstrumentationScope("m31a_mp", __version__),
        metrics=[metric for metric in made if metric.data.data_points],
        schema_url="",
    )
    resource = sdk.ResourceMetrics(
        resource=_resource(metrics.session_id), scope_metrics=[scope], schema_url=""
    )
    return sdk.MetricsData(resource_metrics=[resource])


# --- Metrics ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Span:
    """The time that numbers are about, in ns since the epoch."""

    start: int
    now: int


@dataclass(frozen=True, slots=True)
class _Durations:
    """One point of a histogram of durations. Times are in ms, and None if they are not known."""

    attributes: Attributes
    histogram: Histogram
    total: int | None
    least: int | None
    greatest: int | None
    start: int | None = None


def _conventional(metrics: SessionMetrics, span: _Span) -> Iterator[Any]:
    """Yield the metrics that have names by the conventions."""
    yield _durations(
        "gen_ai.execute_tool.duration",
        "Durations of tool calls. Interrupted calls have none.",
        (
            _Durations(
                {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": tool.name},
                tool.durations,
                # A file of an earlier version may have a sum of more calls than its histogram.
                tool.total_duration_ms
                if tool.durations.count + tool.interrupted_count == tool.call_count
                else None,
                tool.min_duration_ms,
                tool.max_duration_ms,
            )
            for tool in metrics.tools
            if tool.durations
        ),
        span,
    )
    yield _model_durations("gen_ai.client.inference.duration", metrics, span)
    usage = "gen_ai.client.inference.usage."
    for name, rows in (
        ("input_tokens", _by_model(metrics, lambda use: use.prompt_tokens)),
        ("output_tokens", _by_model(metrics, lambda use: use.completion_tokens)),
        ("cache_read.input_tokens", [(_model(m.model), m.cached_tokens) for m in metrics.models]),
        ("cache_write.input_tokens", [(_model(m.model), m.cache_write_tokens) for m in metrics.models]),
        ("reasoning.output_tokens", [(_model(m.model), m.reasoning_tokens) for m in metrics.models]),
    ):
        yield _sum(usage + name, "Tokens of interactions with language models.", "{token}", rows, span)
    yield _durations(
        "gen_ai.invoke_workflow.duration",
        "The latest run of each phase.",
        _latest_runs(metrics),
        span,
    )


def _latest_runs(metrics: SessionMetrics) -> Iterator[_Durations]:
    """Yield the latest run of each phase that ended.

    A count begins with each run: former runs are not known. Receivers add up counts that begin anew.
    """
    for phase in metrics.phases:
        if phase.ended_at is None:
            continue
        histogram = Histogram()
        histogram.add({phase.duration_ms: 1})
        attributes = {"gen_ai.operation.name": "invoke_workflow", "gen_ai.workflow.name": phase.phase}
        if not phase.success:
            attributes["error.type"] = _SOME_ERROR
        begun = max(0, to_ns(phase.ended_at) - phase.duration_ms * 10**6)
        yield _Durations(
            attributes, histogram, phase.duration_ms, phase.duration_ms, phase.duration_ms, begun
        )


def _ours(metrics: SessionMetrics, span: _Span) -> Iterator[Any]:
    """Yield the metrics that have no name by the conventions."""
    for counter in COUNTERS:
        if counter.name not in _CONVENTIONAL:
            names = [_ATTRIBUTES[label] for label in counter.labels]
            rows = [(dict(zip(names, labels, strict=True)), count) for labels, count in counter.rows(metrics)]
            yield _sum(f"m31a.{counter.name}", counter.help, counter.unit, rows, span)
    errors = [
        ({"gen_ai.tool.name": tool.name, "error.type": name}, count)
        for tool in metrics.tools
        for name, count in tool.errors.items()
    ]
    yield _sum("m31a.tool.errors", "Failures of tool calls whose error has a name.", "{call}", errors, span)
    running = Counter(call.name for call in metrics.running)
    yield _sum(
        "m31a.tool.calls.running",
        "Calls of a tool that are under way.",
        "{call}",
        [({"gen_ai.tool.name": tool}, count) for tool, count in running.items()],
        span,
        is_monotonic=False,
    )
    if has_records(metrics):
        point = _number({}, metrics.updated_at.timestamp(), span)
        yield sdk.Metric(
            name="m31a.session.last_record.time",
            description="The time of the last record, since the epoch.",
            unit="s",
            data=sdk.Gauge(data_points=[point]),
        )


def _older(metrics: SessionMetrics, span: _Span) -> Iterator[Any]:
    """Yield the metrics of older conventions. The tokens of single interactions are not known: no buckets."""
    uses = [count for _, count in _by_model(metrics, lambda use: use.interaction_count)]
    points = [
        sdk.HistogramDataPoint(
            attributes=attributes | {"gen_ai.token.type": kind},
            start_time_unix_nano=span.start,
            time_unix_nano=span.now,
            count=count,
            sum=total,
            bucket_counts=[count],
            explicit_bounds=[],
            min=None,
            max=None,
        )
        for kind, tokens in (
            ("input", _by_model(metrics, lambda use: use.prompt_tokens)),
            ("output", _by_model(metrics, lambda use: use.completion_tokens)),
        )
        for (attributes, total), count in zip(tokens, uses, strict=True)
    ]
    yield sdk.Metric(
        name="gen_ai.client.token.usage",
        description="Tokens of interactions with language models.",
        unit="{token}",
        data=sdk.Histogram(data_points=points, aggregation_temporality=_CUMULATIVE),
    )
    yield _model_durations("gen_ai.client.operation.duration", metrics, span)


def _model_durations(name: str, metrics: SessionMetrics, span: _Span) -> Any:
    return _durations(
        name,
        "Recorded durations of interactions with language models.",
        (
            _Durations(
                _model(model.model),
                model.durations,
                model.total_duration_ms,
                model.min_duration_ms,
                model.max_duration_ms,
            )
            for model in metrics.models
            if model.durations
        ),
        span,
    )


def _by_model(
    metrics: SessionMetrics, number: Callable[[LLMMetric | ModelMetric], int]
) -> list[tuple[Attributes, int]]:
    """Return a number by model, and without a model the rest: interactions whose model was not named."""
    named = [(_model(model.model), number(model)) for model in metrics.models]
    rest = sum(map(number, metrics.llms)) - sum(count for _, count in named)
    is_any = sum(llm.interaction_count for llm in metrics.llms) > sum(
        model.interaction_count for model in metrics.models
    )
    return [*named, ({}, max(0, rest))] if is_any else named


def _model(name: str) -> Attributes:
    return {"gen_ai.request.model": name}


# --- Points -------------------------------------------------------------------------------------------

_CUMULATIVE = sdk.AggregationTemporality.CUMULATIVE


def _sum(  # noqa: PLR0913  # the parts of a metric
    name: str,
    description: str,
    unit: str,
    rows: Iterable[tuple[Attributes, float]],
    span: _Span,
    *,
    is_monotonic: bool = True,
) -> Any:
    points = [_number(attributes, count, span) for attributes, count in rows]
    data = sdk.Sum(data_points=points, aggregation_temporality=_CUMULATIVE, is_monotonic=is_monotonic)
    return sdk.Metric(name=name, description=description, unit=unit, data=data)


def _number(attributes: Attributes, value: float, span: _Span) -> Any:
    return sdk.NumberDataPoint(
        attributes=attributes,
        start_time_unix_nano=span.start,
        time_unix_nano=span.now,
        value=min(value, INT64_MAX) if type(value) is int else value,
    )


def _durations(name: str, description: str, rows: Iterable[_Durations], span: _Span) -> Any:
    points = [
        sdk.ExponentialHistogramDataPoint(
            attributes=row.attributes,
            start_time_unix_nano=span.start if row.start is None else min(row.start, span.now),
            time_unix_nano=span.now,
            count=row.histogram.count,
            sum=_seconds(row.total),
            scale=SCALE,
            zero_count=row.histogram.zero_count,
            positive=sdk.Buckets(row.histogram.offset, row.histogram.counts),
            negative=sdk.Buckets(0, []),
            flags=0,
            min=_seconds(row.least),
            max=_seconds(row.greatest),
        )
        for row in rows
    ]
    data = sdk.ExponentialHistogram(data_points=points, aggregation_temporality=_CUMULATIVE)
    return sdk.Metric(name=name, description=description, unit="s", data=data)


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _resource(session_id: str) -> Any:
    """Return what the numbers are about. The session is a part of it: each session counts for itself."""
    usual = Resource({"service.name": "m31a_mp", "host.name": socket.gethostname()})
    return usual.merge(OTELResourceDetector().detect()).merge(Resource({"session.id": session_id}))


def _metrics_in(data: Any) -> list[Any]:
    return [
        metric for part in data.resource_metrics for scope in part.scope_metrics for metric in scope.metrics
    ]
