"""Every number, attribute and bucket that a receiver decodes; receivers that are gone, slow or refuse."""

from __future__ import annotations

import gc
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics

from m31a_mp import (
    Collector,
    LLMMetric,
    ModelMetric,
    PhaseMetric,
    SessionMetrics,
    ToolMetric,
    attach,
    load,
    verify,
)
from m31a_mp.errors import ExportError
from m31a_mp.exports import sender
from m31a_mp.exports.otlp import Exporter
from m31a_mp.exports.otlp_data import metrics_data
from m31a_mp.kinds.histogram import Histogram
from m31a_mp.kinds.times import to_ns
from m31a_mp.metrics.totals import Totals
from receiver import Receiver, dripping, number, points_of, receiving
from workers import Forked

NAME = "m31a_mp otlp"


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A receiver that the variables of OpenTelemetry name."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    with receiving() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        yield receiver


def senders() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == NAME]


def await_that(condition: Callable[[], object]) -> None:
    """Let others run until it is so; the test's time limit ends it."""
    while not condition():
        time.sleep(0.0005)


def encoded(metrics: SessionMetrics, *, older_names: bool = False) -> Receiver:
    """The metrics as any receiver decodes them."""
    receiver = Receiver()
    receiver.requests.append(encode_metrics(metrics_data(metrics, older_names=older_names)))
    return receiver


def everything() -> SessionMetrics:
    """A number of its own in every field."""
    at = datetime(2026, 11, 23, tzinfo=UTC)
    return SessionMetrics(
        "s",
        at,
        at + timedelta(seconds=90),
        tools=[
            ToolMetric(
                "grep",
                7,
                4,
                3,
                1500,
                min_duration_ms=0,
                max_duration_ms=900,
                durations=Histogram(2, -4, [3, 0, 1]),
                errors={"timeout": 2},
                interrupted_count=1,
            )
        ],
        llms=[LLMMetric("plan", 1000, 200, 1200, 0.5, 5, 1)],
        models=[
            ModelMetric(
                "opus",
                4,
                900,
                150,
                1050,
                400,
                100,
                60,
                0.25,
                2,
                8000,
                min_duration_ms=1000,
                max_duration_ms=5000,
                durations=Histogram(0, 0, [1, 2, 1]),
            )
        ],
        phases=[
            PhaseMetric(
                "plan",
                8300,
                11,
                12,
                13,
                False,
                14,
                15,
                16,
                17,
                1250,
                18,
                at + timedelta(seconds=1),
                at + timedelta(seconds=60),
            ),
            PhaseMetric("open", transition_count=1),
        ],
        dropped={"no_space": 19},
        rejected=20,
    )


class TestData:
    def test_every_sum_is_there_with_its_attributes(self) -> None:
        received = encoded(everything())
        found = {
            (name, *sorted(attributes)): number(point)
            for (name, attributes), point in received.points().items()
            if hasattr(point, "as_int")
        }
        grep, opus, plan = (
            ("gen_ai.tool.name", "grep"),
            ("gen_ai.request.model", "opus"),
            ("m31a.phase", "plan"),
        )
        success, failure = ("m31a.outcome", "success"), ("m31a.outcome", "failure")
        usage = "gen_ai.client.inference.usage"
        opened = ("m31a.phase", "open")
        unheard = {
            ("m31a.heal.triggers", opened): 0,
            ("m31a.heal.outcomes", success, opened): 0,
            ("m31a.heal.outcomes", failure, opened): 0,
            ("m31a.heal.loops", opened): 0,
            ("m31a.heal.duration", opened): 0,
            ("m31a.bisect.triggers", opened): 0,
            ("m31a.bisect.outcomes", success, opened): 0,
            ("m31a.bisect.outcomes", failure, opened): 0,
        }
        assert found == unheard | {
            (f"{usage}.input_tokens", opus): 900,
            (f"{usage}.input_tokens",): 100,  # of interactions whose model was not named
            (f"{usage}.output_tokens", opus): 150,
            (f"{usage}.output_tokens",): 50,
            (f"{usage}.cache_read.input_tokens", opus): 400,
            (f"{usage}.cache_write.input_tokens", opus): 100,
            (f"{usage}.reasoning.output_tokens", opus): 60,
            ("m31a.tool.calls", grep, success): 4,
            ("m31a.tool.calls", grep, failure): 3,
            ("m31a.tool.calls.interrupted", grep): 1,
            ("m31a.tool.errors", ("error.type", "timeout"), grep): 2,
            ("m31a.llm.interactions", plan): 5,
            ("m31a.llm.tokens", ("gen_ai.token.type", "input"), plan): 1000,
            ("m31a.llm.tokens", ("gen_ai.token.type", "output"), plan): 200,
            ("m31a.llm.cost", plan): 0.5,
            ("m31a.llm.unpriced_interactions", plan): 1,
            ("m31a.model.interactions", opus): 4,
            ("m31a.model.cost", opus): 0.25,
            ("m31a.model.unpriced_interactions", opus): 2,
            ("m31a.phase.transitions", plan): 11,
            ("m31a.phase.transitions", opened): 1,
            ("m31a.heal.triggers", plan): 12,
            ("m31a.bisect.triggers", plan): 13,
            ("m31a.heal.outcomes", success, plan): 14,
            ("m31a.heal.outcomes", failure, plan): 15,
            ("m31a.bisect.outcomes", success, plan): 16,
            ("m31a.bisect.outcomes", failure, plan): 17,
            ("m31a.heal.duration", plan): 1.25,
            ("m31a.heal.loops", plan): 18,
            ("m31a.records.dropped", ("m31a.reason", "no_space")): 19,
            ("m31a.records.rejected",): 20,
            ("m31a.session.last_record.time",): everything().updated_at.timestamp(),
        }

    def test_histograms_are_there_bucket_by_bucket(self) -> None:
        metrics = everything()
        found = encoded(metrics).points()
        grep = frozenset({("gen_ai.operation.name", "execute_tool"), ("gen_ai.tool.name", "grep")})
        calls = found["gen_ai.execute_tool.duration", grep]
        assert (calls.count, calls.sum, calls.min, calls.max) == (6, 1.5, 0, 0.9)
        assert (calls.scale, calls.zero_count) == (4, 2)
        assert (calls.positive.offset, list(calls.positive.bucket_counts)) == (-4, [3, 0, 1])
        assert not calls.HasField("negative")
        opus = frozenset({("gen_ai.request.model", "opus")})
        uses = found["gen_ai.client.inference.duration", opus]
        assert (uses.count, uses.sum, uses.min, uses.max) == (4, 8, 1, 5)
        assert (uses.positive.offset, list(uses.positive.bucket_counts)) == (0, [1, 2, 1])

    def test_everything_is_cumulative_since_the_start_of_the_session(self) -> None:
        metrics = everything()
        before = time.time_ns()
        received = encoded(metrics)
        for metric in received.metrics():
            data = getattr(metric, metric.WhichOneof("data"))
            if metric.WhichOneof("data") != "gauge":
                assert data.aggregation_temporality == 2  # cumulative
            if metric.WhichOneof("data") == "sum":
                assert data.is_monotonic
            for point in data.data_points:
                assert before <= point.time_unix_nano <= time.time_ns()
                if metric.WhichOneof("data") != "gauge" and "workflow" not in metric.name:
                    assert point.start_time_unix_nano == to_ns(metrics.started_at)
        units = {metric.name: metric.unit for metric in received.metrics()}
        assert units["gen_ai.execute_tool.duration"] == units["m31a.heal.duration"] == "s"
        assert units["gen_ai.client.inference.usage.input_tokens"] == "{token}"
        assert all(metric.unit and metric.description for metric in received.metrics())

    def test_latest_run_of_a_phase_is_one_of_its_own(self) -> None:
        metrics = everything()
        found = encoded(metrics).points()
        [(attributes, run)] = [
            (of, point) for (name, of), point in found.items() if name == "gen_ai.invoke_workflow.duration"
        ]
        assert attributes == {
            ("gen_ai.operation.name", "invoke_workflow"),
            ("gen_ai.workflow.name", "plan"),
            ("error.type", "_OTHER"),
        }
        assert (run.count, run.sum, run.min, run.max) == (1, 8.3, 8.3, 8.3)
        # 2**(48/16) s < 8.3 s <= 2**(49/16) s
        assert (run.positive.offset, list(run.positive.bucket_counts)) == (48, [1])
        assert run.start_time_unix_nano == to_ns(metrics.started_at) + (60_000 - 8300) * 10**6

    @given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=50))
    def test_histogram_of_any_durations_is_the_session_s_own(self, durations: list[int]) -> None:
        histogram = Histogram()
        for duration in durations:
            histogram.add({duration: 1})
        tool = ToolMetric("t", len(durations), durations=histogram, total_duration_ms=5)
        [point] = [
            point
            for (name, _), point in encoded(SessionMetrics("s", tools=[tool])).points().items()
            if name == "gen_ai.execute_tool.duration"
        ]
        assert point.count == len(durations) == point.zero_count + sum(point.positive.bucket_counts)
        decoded = Histogram(point.zero_count, point.positive.offset, list(point.positive.bucket_counts))
        assert decoded == histogram

    def test_what_is_not_known_is_left_out(self) -> None:
        metrics = SessionMetrics(
            "s",
            tools=[
                ToolMetric("part", 3, 3, total_duration_ms=600, durations=Histogram(1)),
                ToolMetric("none", 2, 2, total_duration_ms=5),
            ],
            llms=[LLMMetric("plan", interaction_count=1, unknown_cost_count=1)],
            phases=[PhaseMetric("old", 70, success=True)],  # an earlier version did not say when it ended
        )
        found = encoded(metrics).points()
        [part] = [point for (name, _), point in found.items() if name == "gen_ai.execute_tool.duration"]
        assert (part.count, part.HasField("sum"), part.HasField("min"), part.HasField("max")) == (
            1,
            *[False] * 3,
        )
        names = {name for name, _ in found}
        assert not names & {"m31a.llm.cost", "gen_ai.invoke_workflow.duration", "m31a.model.cost"}
        assert "m31a.session.last_record.time" in names
        empty = {name for name, _ in encoded(SessionMetrics("s")).points()}
        assert empty == {"m31a.records.rejected"}

    def test_older_names_are_there_on_request(self) -> None:
        new = encoded(everything()).points()
        both = encoded(everything(), older_names=True).points()
        older = {key: point for key, point in both.items() if key not in new}
        tokens = {
            tuple(value for _, value in sorted(of)): (point.count, point.sum, list(point.bucket_counts))
            for (name, of), point in older.items()
            if name == "gen_ai.client.token.usage"
        }
        assert tokens == {
            ("opus", "input"): (4, 900, [4]),
            ("opus", "output"): (4, 150, [4]),
            ("input",): (1, 100, [1]),
            ("output",): (1, 50, [1]),
        }
        opus = frozenset({("gen_ai.request.model", "opus")})
        same = both["gen_ai.client.operation.duration", opus]
        assert same.positive == both["gen_ai.client.inference.duration", opus].positive
        assert {name for name, _ in older} == {
            "gen_ai.client.token.usage",
            "gen_ai.client.operation.duration",
        }

    def test_running_calls_are_counted_and_may_decrease(self, sessions: Path) -> None:
        with Collector("s", sessions) as collector, collector.tool_call("a"), collector.tool_call("a"):
            received = encoded(collector.snapshot())
        [metric] = [metric for metric in received.metrics() if metric.name == "m31a.tool.calls.running"]
        assert not metric.sum.is_monotonic
        of_a = frozenset({("gen_ai.tool.name", "a")})
        assert number(received.points()["m31a.tool.calls.running", of_a]) == 2


class TestExporter:
    def test_receiver_gets_the_session_and_where_it_is_from(
        self, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sent = Exporter().export(everything())
        assert sent == len(receiver.points()) == len(encoded(everything()).points())
        [resource] = receiver.requests[-1].resource_metrics
        attributes = {a.key: a.value.string_value for a in resource.resource.attributes}
        assert attributes == {
            "service.name": "m31a_mp",
            "host.name": socket.gethostname(),
            "session.id": "s",
        }
        assert resource.scope_metrics[0].scope.name == "m31a_mp"
        monkeypatch.setenv("OTEL_SERVICE_NAME", "agents")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "host.name=h,team=x,session.id=no")
        Exporter().export(everything())
        [resource] = receiver.requests[-1].resource_metrics
        attributes = {a.key: a.value.string_value for a in resource.resource.attributes}
        assert attributes == {"service.name": "agents", "host.name": "h", "team": "x", "session.id": "s"}

    def test_variables_of_opentelemetry_hold(
        self, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=secret")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "http, gen_ai/dup")
        Exporter().export(everything())
        headers = receiver.headers[-1]
        assert headers["api-key"] == "secret"
        assert headers["Content-Encoding"] == "gzip"
        assert headers[":path"] == "/v1/metrics"
        assert any(name == "gen_ai.client.token.usage" for name, _ in receiver.points())
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", f"{receiver.url}/elsewhere")
        Exporter(older_names=False).export(everything())
        assert receiver.headers[-1][":path"] == "/elsewhere"
        assert not any(name == "gen_ai.client.token.usage" for name, _ in receiver.points())

    @pytest.mark.parametrize(("given", "path"), [("", "/v1/metrics"), ("/", "/v1/metrics"), ("/a/b", "/a/b")])
    def test_path_is_added_to_an_endpoint_without_one(
        self, receiver: Receiver, given: str, path: str
    ) -> None:
        exporter = Exporter(receiver.url.replace("//", "//user:secret@") + given)
        exporter.export(everything())
        assert receiver.headers[-1][":path"] == path
        assert exporter.endpoint == receiver.url + path

    @pytest.mark.parametrize("endpoint", ["", "localhost:4318", "ftp://x", "http://", "/v1/metrics"])
    def test_endpoint_that_is_no_url_is_refused(self, endpoint: str) -> None:
        with pytest.raises(ValueError, match="is not an endpoint"):
            Exporter(endpoint)

    @pytest.mark.slow
    def test_each_failure_is_told_with_its_reason(
        self, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.5")

        def failure(url: str | None = None) -> str:
            with pytest.raises(ExportError) as failed:
                Exporter(url).export(everything())
            assert failed.value.path == (url or receiver.url) + "/v1/metrics"
            return str(failed.value)

        place = f"{receiver.url}/v1/metrics did not take "
        receiver.status = 400
        assert failure() == f"{place}the metrics: it answered 400 Bad Request"
        receiver.status = 503
        assert failure() == f"{place}the metrics: it answered 503 Service Unavailable"
        receiver.status, receiver.location = 308, "https://elsewhere/"
        assert failure() == f"{place}all metrics: it answered 308 Permanent Redirect, and points elsewhere"
        receiver.status, receiver.location = 304, ""
        assert failure() == f"{place}all metrics: it answered 304 Not Modified"
        receiver.status = 200
        receiver.reject(1, "\x1b[31m\n" + "x" * 10_000)
        assert failure().startswith(f"{place}all metrics: it rejected 1 data points: \\x1b[31m\\nxxx")
        assert len(failure()) < 500
        receiver.reject(1234, "too old")
        assert failure() == f"{place}all metrics: it rejected 1,234 data points: too old"
        receiver.answer = b"ok"
        Exporter().export(everything())  # that is no protobuf, and no complaint
        receiver.is_open.clear()
        assert failure() == f"{place}the metrics: it did not answer in time"
        receiver.is_open.set()
        with socket.create_server(("127.0.0.1", 0)) as unused:
            gone = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert failure(gone) == f"{gone}/v1/metrics did not take the metrics: Connection refused"
        assert caplog.records == []  # each was told by its error

    def test_answer_of_any_length_is_read_in_part(self, receiver: Receiver) -> None:
        receiver.answer = bytes(64 * 1024 * 1024)
        Exporter().export(everything())
        assert receiver.refused.wait(60)
        receiver.answer = b""
        Exporter().export(everything())  # the next one is as usual

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("start", "drop"),
        [
            (b"", b"H"),
            (b"HTTP/1.1 ", b"2"),
            (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
            (b"HTTP/1.1 200 OK\r\nX: ", b"x"),
            (b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b"x"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
            (b"HTTP/1.1 503 No\r\nContent-Length: 9999\r\n\r\n", b"x"),
        ],
    )
    def test_answer_that_drips_does_not_outlast_the_timeout(
        self, monkeypatch: pytest.MonkeyPatch, start: bytes, drop: bytes
    ) -> None:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.3")
        with dripping(start, drop) as url, pytest.raises(ExportError, match="it did not answer in time"):
            Exporter(url).export(everything())

    def test_logs_of_other_threads_are_left_alone(
        self, receiver: Receiver, caplog: pytest.LogCaptureFixture
    ) -> None:
        log = logging.getLogger("opentelemetry.exporter.otlp.proto.http.metric_exporter")
        receiver.is_open.clear()
        thread = threading.Thread(target=Exporter().export, args=(everything(),))
        thread.start()
        receiver.busy.wait()
        log.warning("of the host")
        receiver.is_open.set()
        thread.join()
        log.warning("afterwards")
        assert [record.message for record in caplog.records] == ["of the host", "afterwards"]
        assert log.filters == []

    @pytest.mark.slow
    def test_many_tools_come_in_parts_that_are_a_whole(self, receiver: Receiver) -> None:
        tools = [
            ToolMetric(f"tool-{i}", 1, 1, 0, 5, durations=Histogram(0, -123, [1])) for i in range(10_000)
        ]
        sent = Exporter().export(SessionMetrics("s", tools=tools))
        assert len(receiver.requests) > 1
        parts = [
            metric
            for request in receiver.requests
            for resource in request.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        ]
        assert len(points_of(parts)) == sent == 10_000 * 4 + 2


class TestCollector:
    @pytest.fixture(autouse=True)
    def _no_thread_is_left(self) -> Iterator[None]:
        yield
        await_that(lambda: not senders())

    def calls(self, receiver: Receiver) -> float:
        found = receiver.points() if receiver.requests else {}
        wanted = {("gen_ai.tool.name", "grep"), ("m31a.outcome", "success")}
        return sum(
            number(point) for (name, of), point in found.items() if name == "m31a.tool.calls" and of == wanted
        )

    def await_calls(self, receiver: Receiver, wanted: int) -> None:
        await_that(lambda: self.calls(receiver) == wanted)

    def test_each_flush_is_sent_and_the_last_state_with_stop(
        self, sessions: Path, receiver: Receiver
    ) -> None:
        with Collector("s", sessions, otlp=True) as collector:
            for i in range(1, 4):
                collector.record_tool_call("grep", True, 1)
                collector.flush()
                self.await_calls(receiver, i)
            collector.record_tool_call("grep", True, 1)
            attach("s", sessions).record_tool_call("grep", True, 1)
        assert self.calls(receiver) == 5
        assert not senders()

    def test_flush_without_news_copies_nothing_and_sends_the_last_state_again(
        self, sessions: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        copies: list[str] = []
        copied = Totals.to_metrics

        def noting(totals: Totals, session_id: str) -> SessionMetrics:
            copies.append(session_id)
            return copied(totals, session_id)

        with Collector("s", sessions, otlp=True) as collector:
            collector.record_tool_call("grep", True, 1)
            collector.flush()
            self.await_calls(receiver, 1)
            with monkeypatch.context() as patched:
                patched.setattr(Totals, "to_metrics", noting)
                sent = len(receiver.requests)
                collector.flush()
                await_that(lambda: len(receiver.requests) > sent)
                assert copies == []
                assert self.calls(receiver) == 1
                collector.record_tool_call("grep", True, 1)
                collector.flush()
                assert copies == ["s"]
        sent = len(receiver.requests)
        with Collector("s", sessions, otlp=True) as collector:  # with nothing new, and nothing sent
            collector.flush()
            await_that(lambda: len(receiver.requests) > sent)
            assert self.calls(receiver) == 2

    def test_refreshing_thread_sends_by_itself(self, sessions: Path, receiver: Receiver) -> None:
        with Collector("s", sessions, otlp=True, flush_interval=0.001):
            attach("s", sessions).record_tool_call("grep", True, 1)
            self.await_calls(receiver, 1)

    def test_receiver_that_does_not_answer_holds_up_nothing(
        self, sessions: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sender, "_JOIN_SECONDS", 0.01)
        receiver.is_open.clear()
        with Collector("s", sessions, otlp=True) as collector:
            for i in range(1, 101):
                collector.record_tool_call("grep", True, 1)
                collector.flush()
                metrics = load(sessions, "s")
                assert metrics is not None
                assert metrics.tools[0].call_count == i
                if i == 1:
                    receiver.busy.wait()
        assert [thread.daemon for thread in senders()] == [True]
        Collector("s", sessions).stop()  # the session is free
        receiver.is_open.set()
        await_that(lambda: not senders())
        assert self.calls(receiver) == 100
        assert len(receiver.requests) <= 3  # what nobody took in between was passed over
        assert verify(sessions, "s") == []

    def test_end_that_is_not_taken_in_time_is_told_once(
        self,
        sessions: Path,
        receiver: Receiver,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr(sender, "_JOIN_SECONDS", 0.01)
        receiver.is_open.clear()
        collector = Collector("s", sessions, otlp=True)
        collector.record_tool_call("grep", True, 1)
        collector.stop()
        collector.stop()
        receiver.is_open.set()
        [told] = [record.message for record in caplog.records if record.levelno == logging.WARNING]
        assert told == (
            f"the end of session {sessions}/s may not be exported: {receiver.url}/v1/metrics did not take it "
            f"in time. To export it: m31a-mp export otlp {sessions}/s"
        )

    def test_receiver_that_is_gone_is_told_once_until_it_is_back(
        self, sessions: Path, receiver: Receiver, caplog: pytest.LogCaptureFixture
    ) -> None:
        def flushed(collector: Collector) -> None:
            before = len(receiver.requests)
            collector.flush()
            await_that(lambda: len(receiver.requests) > before)

        receiver.status = 400
        with Collector("s", sessions, otlp=True) as collector:
            for _ in range(3):
                flushed(collector)
            await_that(lambda: len(caplog.records) == 1)
            receiver.status = 200
            flushed(collector)
            receiver.status = 400
            flushed(collector)
        [first, second] = [record.message for record in caplog.records if record.levelno == logging.WARNING]
        assert first == second
        assert first.startswith(f"metrics were not exported: {receiver.url}/v1/metrics did not take")

    def test_program_without_logging_sees_nothing_on_stderr(self, sessions: Path) -> None:
        program = (
            "import sys; from m31a_mp import Collector\n"
            "with Collector('s', sys.argv[1], otlp=True) as collector:\n"
            "    collector.record_tool_call('grep', True, 1); collector.flush()\n"
        )
        with socket.create_server(("127.0.0.1", 0)) as unused:
            gone = f"http://127.0.0.1:{unused.getsockname()[1]}"
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": gone, "OTEL_EXPORTER_OTLP_TIMEOUT": "0.2"}
        done = subprocess.run(
            [sys.executable, "-c", program, str(sessions)],
            env=os.environ | variables,
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")

    def test_disabled_collector_and_one_that_does_not_ask_have_no_thread(self, sessions: Path) -> None:
        with Collector("s", sessions, enabled=False, otlp=True), Collector("t", sessions):
            assert not senders()
        assert not (sessions / "s").exists()

    @pytest.mark.usefixtures("receiver")
    def test_collector_that_nobody_has_any_more_takes_its_thread_along(self, sessions: Path) -> None:
        collector = Collector("s", sessions, otlp=True)
        assert len(senders()) == 1
        del collector
        gc.collect()
        await_that(lambda: not senders())

    @pytest.mark.slow
    @pytest.mark.usefixtures("receiver")
    def test_collector_that_cannot_be_made_leaves_no_thread(self, sessions: Path) -> None:
        with Collector("s", sessions), pytest.raises(RuntimeError):
            Collector("s", sessions, otlp=True)
        gc.collect()
        await_that(lambda: not senders())

    def test_missing_extra_is_told_at_once_and_the_disk_is_untouched(self, tmp_path: Path) -> None:
        (tmp_path / "opentelemetry.py").write_text("raise ModuleNotFoundError('no', name='opentelemetry')")
        program = (
            "import sys; from m31a_mp import Collector\n"
            "try: Collector('s', sys.argv[1], otlp=True)\n"
            "except ImportError as error: print(error)\n"
        )
        path = os.pathsep.join([str(tmp_path), *sys.path])
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "sessions")],
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.endswith("pip install 'm31a_mp[otlp]'\n")
        assert not (tmp_path / "sessions").exists()

    @pytest.mark.slow
    def test_children_that_are_forked_while_it_sends_record_own_and_send(
        self, sessions: Path, receiver: Receiver
    ) -> None:
        with Collector("s", sessions, otlp=True, flush_interval=0.001) as collector:
            for i in range(30):
                receiver.busy.clear()
                receiver.busy.wait()  # a request is under way
                with Forked(record_own_and_send, collector, sessions, i) as child:
                    assert child.wait() == 0
        metrics = load(sessions, "s")
        assert metrics is not None
        assert metrics.tools[0].call_count == 30
        sent = {
            attribute.value.string_value
            for request in receiver.requests
            for resource in request.resource_metrics
            for attribute in resource.resource.attributes
            if attribute.key == "session.id"
        }
        assert sent == {"s", *(f"child-{i}" for i in range(30))}


def record_own_and_send(collector: Collector, sessions: Path, i: int) -> None:
    collector.record_tool_call("grep", True, 1)
    collector.flush()
    collector.stop()
    with Collector(f"child-{i}", sessions, otlp=True) as own:
        own.record_tool_call("grep", True, 1)
    assert not senders()  # the last state was sent


IMPORTS_NOTHING_LATE = """
import socket, sys
from m31a_mp.errors import ExportError
from m31a_mp.exports.otlp import Exporter
from m31a_mp.model import SessionMetrics, ToolMetric
import m31a_mp.exports.sender
exporters = [Exporter(url) for url in sys.argv[1:]]
before = set(sys.modules)
for exporter in exporters:
    try:
        exporter.export(SessionMetrics("s", tools=[ToolMetric("t", 1, 1)]))
    except ExportError:
        pass
print(*(set(sys.modules) - before))
"""


def test_sending_imports_nothing_late(receiver: Receiver, tmp_path: Path) -> None:
    """A fork in the middle of an import of another thread would stop the child at the same import."""
    (tmp_path / ".netrc").write_text("machine example.com login a password b\n")
    (tmp_path / ".netrc").chmod(0o600)
    with socket.create_server(("127.0.0.1", 0)) as unused:
        gone = f"http://localhost:{unused.getsockname()[1]}"
    variables = {"OTEL_EXPORTER_OTLP_TIMEOUT": "0.2", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS_NOTHING_LATE, receiver.url, gone],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == []
