"""`m31a-mp export prometheus` and `m31a-mp serve`: real servers, real scrapers, and Prometheus itself."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from test_cli import Call, call
from test_cli_run import ENVIRONMENT, PROGRAM, without

from m31a_mp import Collector, Usage, attach
from prometheus import PROMETHEUS, PROMTOOL, Series, checked_by_promtool, series, value, values
from workers import Forked

__all__ = ["call"]  # a fixture

_PLAIN = "text/plain;version=0.0.4"
_OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"


class Server:
    """A `m31a-mp serve` that said where it is."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout
        self.said = process.stdout.readline()
        self.url = self.said.split()[-1]
        self.port = int(self.url.removesuffix("/metrics").rpartition(":")[2])

    def get(self, accept: str = _PLAIN, url: str | None = None) -> str:
        request = urllib.request.Request(url or self.url, headers={"Accept": accept})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return str(answer.read().decode())

    def scrape(self) -> Series:
        return series(parse_text(self.get()))

    def end(self, number: signal.Signals) -> tuple[int, str]:
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err


@contextmanager
def serving(directory: Path, *options: str) -> Iterator[Server]:
    command = [*PROGRAM, "serve", str(directory), "--port", "0", *options]
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Server(process)
        finally:
            process.kill()


@pytest.fixture
def made(sessions: Path) -> Path:
    """The directory of sessions, without one."""
    sessions.mkdir()
    return sessions


class TestServe:
    def test_it_says_where_it_is_and_what_runs_is_there(self, made: Path) -> None:
        with serving(made) as server, Collector("s", made) as collector:
            assert server.said == f"serving {made} at http://127.0.0.1:{server.port}/metrics\n"
            for i in range(1, 4):
                collector.record_tool_call("grep", True, 1)
                calls = value(server.scrape(), "tool_calls_total", tool="grep", outcome="success")
                assert calls == i
            collector.stop()
            found = server.scrape()
            assert value(found, "tool_calls_total", tool="grep", outcome="success") == 3
            assert value(found, "sessions", condition="ended") == 1

    @pytest.mark.slow
    @pytest.mark.parametrize(("number", "status"), [("SIGTERM", 0), ("SIGINT", 0), ("SIGHUP", 129)])
    def test_signal_ends_it_without_a_word(self, made: Path, number: str, status: int) -> None:
        with serving(made) as server:
            server.scrape()
            assert server.end(signal.Signals[number]) == (status, "")
            with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", server.port)):
                pass

    @pytest.mark.slow
    def test_scrapers_that_take_or_ask_nothing_hold_up_nobody_and_not_the_end(self, made: Path) -> None:
        with Collector("s", made) as collector, serving(made) as server, ExitStack() as sockets:
            for i in range(100):
                collector.record_tool_call(f"tool-{i} {'x' * 4000}", True, 1)  # more than a socket buffers
            idle = []
            for _ in range(8):
                one = sockets.enter_context(socket.socket())
                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                one.connect(("127.0.0.1", server.port))
                idle.append(one)
            for one in idle[::2]:
                one.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                assert one.recv(1)  # the answer is under way, and its sender waits now
            assert "m31a_writers 1.0\n" in server.get()
            for one in idle[:4]:
                one.close()  # with a reset: the rest of the answer was not read
            assert "m31a_writers 1.0\n" in server.get()
            assert server.end(signal.SIGTERM) == (0, "")

    def test_openmetrics_has_the_times_of_creation(self, made: Path) -> None:
        with serving(made) as server, Collector("s", made) as collector:
            collector.record_tool_call("grep", True, 1)
            both = server.get(_PLAIN), server.get(_OPENMETRICS)
        assert "_created" not in both[0]
        found = series(parse_openmetrics(both[1]))
        assert value(found, "tool_calls_created", tool="grep", outcome="success") == value(
            found, "session_start_time_seconds"
        )

    @pytest.mark.slow
    @pytest.mark.parametrize("version", ["0.0.1", "new"])
    def test_version_that_is_not_known_gets_text_without_times_of_creation(
        self, made: Path, version: str
    ) -> None:
        with serving(made) as server, Collector("s", made) as collector:
            collector.record_tool_call("grep", True, 1)
            asked_for = f"application/openmetrics-text;version={version},{_PLAIN};q=0.5"
            assert server.get(asked_for) == server.get(_PLAIN)
            assert server.end(signal.SIGTERM) == (0, "")

    def test_options_choose_the_sessions_their_label_and_the_number_of_names(self, made: Path) -> None:
        for name in ("a", "b"):
            with Collector(name, made) as collector:
                collector.record_tool_call("grep", True, 1)
                collector.record_tool_call("make", True, 1)
        with serving(made, "--session", "b", "--label-session", "--max-names", "1") as server:
            found = server.scrape()
        assert {labels[1:] for labels in values(found, "tool_calls_total")} == {("b", "grep"), ("b", "other")}

    @pytest.mark.slow
    def test_named_session_that_is_not_there_yet_is_told_and_served_later(self, made: Path) -> None:
        with Collector("there", made):
            pass
        with serving(made, "--session", "there", "--session", "later") as server:
            assert value(server.scrape(), "sessions", condition="missing") == 1
            with Collector("later", made) as collector:
                collector.record_tool_call("grep", True, 1)
                assert value(server.scrape(), "tool_calls_total", tool="grep", outcome="success") == 1
            told = "m31a-mp: there is no session later yet; it is served as soon as it is there\n"
            assert server.end(signal.SIGTERM) == (0, told)

    @pytest.mark.slow
    @pytest.mark.usefixtures("segments_at_once")
    def test_damaged_session_costs_only_itself_and_stderr_says_so(self, made: Path) -> None:
        for name in ("bad", "good"):
            with Collector(name, made):
                pass
            attach(name, made).record_tool_call(name, True, 1)
        (made / "bad" / "metrics.json").write_text("{")
        with serving(made) as server:
            for _ in range(2):
                found = server.scrape()
                assert value(found, "sessions", condition="unreadable") == 1
                assert value(found, "tool_calls_total", tool="good", outcome="success") == 1
            status, err = server.end(signal.SIGTERM)
        assert status == 0
        [line] = err.splitlines()
        assert line.startswith("m31a-mp: session bad cannot be read: ")

    def test_killed_owner_and_a_new_one_of_the_same_session(self, made: Path) -> None:
        with serving(made) as server:
            for i in (1, 2, 3):
                with Forked(_die_owning, made) as owner:
                    assert owner.wait() == 0
                calls = value(server.scrape(), "tool_calls_total", tool="grep", outcome="success")
                assert calls == i

    def test_other_paths_and_methods_are_told_what_there_is(self, made: Path) -> None:
        with serving(made) as server:
            with pytest.raises(urllib.error.HTTPError, match="404") as refused:
                server.get(url=server.url.removesuffix("metrics"))
            assert refused.value.read() == b"the metrics are at /metrics\n"
            with pytest.raises(urllib.error.HTTPError, match="405"):
                urllib.request.urlopen(server.url, data=b"x", timeout=60)

    @pytest.mark.slow
    def test_directory_that_is_gone_fails_the_scrape(self, made: Path) -> None:
        with serving(made) as server:
            server.scrape()
            shutil.rmtree(made)
            with pytest.raises(urllib.error.HTTPError, match="503") as refused:
                server.scrape()
            assert str(made) in refused.value.read().decode()
            made.mkdir()
            assert value(server.scrape(), "sessions", condition="running") == 0
            assert server.end(signal.SIGTERM) == (0, "")

    def test_port_that_is_taken_and_directories_that_are_none(self, call: Call, made: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            result = call("serve", made, "--port", port)
        assert (result.status, result.out) == (3, "")
        assert result.err.startswith(
            f"m31a-mp: cannot listen at 127.0.0.1, port {port}: Address already in use\n"
            "hint: name another: --host"
        )
        result = call("serve", made, "--host", "256.1.1.1")
        assert result.status == 3
        assert result.err.startswith("m31a-mp: cannot listen at 256.1.1.1, port 9464: ")
        result = call("serve", made / "none")
        assert (result.status, result.err.splitlines()[0]) == (
            3,
            f"m31a-mp: there is no directory {made}/none",
        )
        with Collector("s", made):
            pass
        result = call("serve", made / "s")
        assert result.status == 3
        assert result.err.splitlines()[1] == f"hint: m31a-mp serve {made} --session s"

    @pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="there is no IPv6")
    def test_ipv6(self, made: Path) -> None:
        with serving(made, "--host", "::1") as server:
            assert server.url == f"http://[::1]:{server.port}/metrics"
            assert value(server.scrape(), "writers") == 0


def _die_owning(sessions: Path) -> None:
    Collector("s", sessions).record_tool_call("grep", True, 1)


class TestExport:
    def test_file_has_what_stdout_has(self, call: Call, sessions: Path, tmp_path: Path) -> None:
        with Collector("s", sessions) as collector:
            collector.record_tool_call("gr\u00e8p", True, 1)
            printed = call("export", "prometheus", sessions / "s")
            assert (printed.status, printed.err) == (0, "")
            assert value(series(parse_text(printed.out)), "tool_calls_running") is None
            written = call("export", "prometheus", sessions / "s", "-o", tmp_path / "s.prom")
            assert (written.status, written.out, written.err) == (0, "", "")
            assert call("export", "prometheus", sessions / "s", "-o", "-").out == printed.out
            labelled = call("export", "prometheus", "--label-session", sessions / "s")
        assert (tmp_path / "s.prom").read_text() == printed.out
        found = series(parse_text(labelled.out))
        assert value(found, "tool_calls_total", session="s", tool="gr\u00e8p", outcome="success") == 1

    def test_file_that_cannot_be_written_is_one_line(
        self, call: Call, sessions: Path, tmp_path: Path
    ) -> None:
        with Collector("s", sessions):
            pass
        result = call("export", "prometheus", sessions / "s", "-o", tmp_path / "none" / "s.prom")
        assert (result.status, result.out) == (3, "")
        assert result.err == (
            f"m31a-mp: {tmp_path}/none/s.prom cannot be written: No such file or directory\n"
            f"hint: make the directory first: mkdir -p none\n"
        )

    def test_session_that_is_not_there_is_not_an_empty_one(self, call: Call, made: Path) -> None:
        result = call("export", "prometheus", made / "s")
        assert (result.status, result.out) == (3, "")

    @pytest.mark.parametrize("command", ["export prometheus", "serve"])
    def test_missing_package_is_named_with_what_helps(
        self, sessions: Path, tmp_path: Path, command: str
    ) -> None:
        with Collector("s", sessions):
            pass
        directory = sessions / ("s" if "export" in command else "")
        done = without("prometheus_client", *command.split(), directory, modules=tmp_path)
        assert (done.returncode, done.stdout) == (125, "")
        assert done.stderr.splitlines() == [
            "m31a-mp: prometheus_client is not installed",
            f"hint: {sys.executable} -m pip install 'prometheus_client>=0.23'",
        ]


# --- Prometheus itself --------------------------------------------------------------------------------


@contextmanager
def prometheus_at(url: str, directory: Path) -> Iterator[str]:
    """A Prometheus that scrapes there often; the address of its own API."""
    assert PROMETHEUS
    host = url.removeprefix("http://").removesuffix("/metrics")
    (directory / "prometheus.yml").write_text(
        "global: {scrape_interval: 5s, scrape_timeout: 5s}\n"
        f"scrape_configs: [{{job_name: m31a, static_configs: [{{targets: ['{host}']}}]}}]\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with (
        (directory / "log").open("w") as log,
        subprocess.Popen(
            [
                PROMETHEUS,
                f"--config.file={directory}/prometheus.yml",
                f"--storage.tsdb.path={directory}/data",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
        ) as process,
    ):
        try:
            yield f"http://{address}/api/v1"
        finally:
            process.terminate()


def asked(api: str, question: str) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(f"{api}/{question}", timeout=60) as answer:
            return dict(json.load(answer)["data"])
    except (urllib.error.URLError, ConnectionError):
        return {}  # it is not up yet


@pytest.mark.slow
@pytest.mark.skipif(not PROMETHEUS, reason="prometheus is not installed (Debian: prometheus)")
def test_prometheus_scrapes_every_series(made: Path, tmp_path: Path) -> None:
    names = ['a "b" \\ \n c', "nul\x00", "\r\x85\u2028", "\N{SNOWMAN}", "x" * 4096]
    with serving(made) as server, Collector("s", made) as collector:
        for i, name in enumerate(names):
            collector.record_tool_call(name, i % 2 == 0, 2**i)
            collector.record_llm_interaction(name, Usage(9, 1, 10), None, model=name[:100], duration_ms=i)
        with prometheus_at(server.url, tmp_path) as api:
            target: dict[str, Any] = {}
            while target.get("health", "unknown") == "unknown":
                time.sleep(0.005)
                targets = asked(api, "targets").get("activeTargets", [])
                target = targets[0] if targets else {}
            assert (target["health"], target["lastError"]) == ("up", "")
            while not (stored := asked(api, "query?query=%7B__name__%3D~%22m31a.*%22%7D").get("result")):
                time.sleep(0.005)  # what was scraped is not stored yet
        found = series(parse_openmetrics(server.get(_OPENMETRICS)))
    theirs: Series = {}
    for one in stored:
        labels = {k: v for k, v in one["metric"].items() if k not in {"__name__", "job", "instance"}}
        theirs[one["metric"]["__name__"], frozenset(labels.items())] = float(one["value"][1])
    assert theirs.keys() == found.keys()
    assert theirs == pytest.approx(found)


@pytest.mark.skipif(not PROMTOOL, reason="promtool is not installed (Debian: prometheus)")
def test_promtool_finds_nothing_in_what_is_served(made: Path) -> None:
    with serving(made, "--label-session") as server, Collector("s", made) as collector:
        collector.record_tool_call("grep", True, 1)
        collector.record_llm_interaction("plan", Usage(9, 1, 10), 0.5, model="opus", duration_ms=7)
        assert checked_by_promtool(server.get().encode()) == ""
