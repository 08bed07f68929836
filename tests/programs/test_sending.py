"""`m31a-mp export otlp`: what a receiver gets, and what is said where there is none."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest
from test_cli import Call, call
from test_cli_run import without

from m31a_mp import Collector, Usage, attach
from receiver import number, receiving

__all__ = ["call"]  # a fixture


@pytest.fixture(autouse=True)
def _no_variables_of_opentelemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def directory(sessions: Path) -> Path:
    """A session with a record that is merged, and one that is not."""
    with Collector("s", sessions) as collector:
        collector.record_tool_call("grep", True, 1)
        collector.record_llm_interaction("plan", Usage(9, 1, 10), None, model="opus")
    attach("s", sessions).record_tool_call("grep", True, 1)
    return sessions / "s"


def test_session_is_sent_to_the_endpoint_that_is_named(call: Call, directory: Path) -> None:
    with receiving() as receiver:
        result = call("export", "otlp", directory, "--endpoint", receiver.url)
        points = receiver.points()
        assert (result.status, result.err) == (0, "")
        where = f"{receiver.url}/v1/metrics"
        assert result.out == f"{directory}: {len(points)} data points sent to {where}\n"
        wanted = frozenset({("gen_ai.tool.name", "grep"), ("m31a.outcome", "success")})
        assert number(points["m31a.tool.calls", wanted]) == 2
        assert not any(name == "gen_ai.client.token.usage" for name, _ in points)
        assert call("export", "otlp", "--older-names", directory, "--endpoint", receiver.url).status == 0
        assert any(name == "gen_ai.client.token.usage" for name, _ in receiver.points())


def test_session_is_sent_where_the_environment_says(
    call: Call, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiving() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", f"{receiver.url}/here")
        assert call("export", "otlp", directory).status == 0
        assert receiver.headers[-1][":path"] == "/here"


def test_receiver_that_is_gone_is_one_line_and_a_hint(
    call: Call, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    with socket.create_server(("127.0.0.1", 0)) as unused:
        gone = f"http://127.0.0.1:{unused.getsockname()[1]}"
    result = call("export", "otlp", directory, "--endpoint", gone)
    assert (result.status, result.out) == (3, "")
    assert result.err.splitlines() == [
        f"m31a-mp: {gone}/v1/metrics did not take the metrics: Connection refused",
        "hint: see whether a receiver of OTLP over HTTP listens there, or name another: --endpoint URL",
    ]


def test_endpoint_that_is_no_url_is_refused(call: Call, directory: Path) -> None:
    result = call("export", "otlp", directory, "--endpoint", "localhost:4318")
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith("m31a-mp: 'localhost:4318' is not an endpoint: it has to be a URL")
    assert result.err.endswith("hint: m31a-mp export otlp --help\n")


def test_missing_package_is_named_with_what_helps(directory: Path, tmp_path: Path) -> None:
    done = without("opentelemetry.sdk", "export", "otlp", directory, modules=tmp_path)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.splitlines() == [
        "m31a-mp: opentelemetry is not installed",
        f"hint: {sys.executable} -m pip install 'opentelemetry-exporter-otlp-proto-http>=1.45'",
    ]
