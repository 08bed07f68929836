"""Every number of a session in Prometheus's formats, and sums over sessions that come and go."""

from __future__ import annotations

import os
import random
import shutil
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from damage import raising
from m31a_mp import Collector, LLMMetric, ModelMetric, SessionMetrics, ToolMetric, Usage, attach, load, save
from m31a_mp.exports import prometheus
from m31a_mp.exports import sessions as watching
from m31a_mp.exports.numbers import POWERS, Numbers, Shown
from m31a_mp.exports.prometheus import SessionsCollector, text, write_textfile
from m31a_mp.exports.sessions import Seen, Sessions
from m31a_mp.inspection.snapshot import Looks
from m31a_mp.inspection.status import Owner, State, Status, owner_of, status
from m31a_mp.kinds.histogram import Histogram
from m31a_mp.session.paths import Session
from m31a_mp.system import files
from prometheus import (
    PROMTOOL,
    Series,
    checked_by_promtool,
    collected,
    series,
    texts_of,
    value,
    values,
)
from workers import Forked

pytestmark = pytest.mark.usefixtures("segments_at_once")  # a process with few records is not seen otherwise

BUCKET = "tool_call_duration_seconds_bucket"


def found_of(metrics: SessionMetrics) -> Status:
    return Status("/sessions/s", State.FINISHED, None, [], 0, 0, metrics)


def read(metrics: SessionMetrics) -> Series:
    return series(parse_text(text(found_of(metrics)).decode()))


def record_everything(collector: Collector) -> None:
    for duration, success in ((0, True), (250, True), (251, False), (90_000, True)):
        collector.record_tool_call("grep", success, duration, None if success else "timeout")
    collector.record_llm_interaction("plan", Usage(900, 100, 1000), 0.25)
    collector.record_llm_interaction(
        "plan",
        Usage(1000, 50, 1050, cached_tokens=600, cache_write_tokens=100, reasoning_tokens=30),
        0.1,
        model="opus",
        duration_ms=1500,
    )
    collector.record_llm_interaction("verify", Usage(7, 5, 12), None, model="haiku")
    collector.record_phase_transition("plan")
    collector.record_heal_trigger("plan")
    collector.record_heal_outcome("plan", True)
    collector.record_heal_outcome("plan", False)
    collector.record_heal_duration("plan", 1250)
    collector.record_heal_loop("plan")
    collector.record_bisect_trigger("plan")
    collector.record_bisect_outcome("plan", False)


class TestOneSession:
    def test_every_number_is_there_under_its_name(self, sessions: Path) -> None:
        with Collector("s", sessions) as collector:
            record_everything(collector)
            with collector.tool_call("sleep"):
                found = collected(SessionsCollector(sessions))
        metrics = load(sessions, "s")
        assert metrics is not None
        expected: dict[str, dict[tuple[str, ...], float]] = {
            "tool_calls_total": {("failure", "grep"): 1, ("success", "grep"): 3},
            "tool_calls_interrupted_total": {("grep",): 0},
            "llm_interactions_total": {("plan",): 2, ("verify",): 1},
            "llm_tokens_total": {
                ("plan", "input"): 1900,
                ("plan", "output"): 150,
                ("verify", "input"): 7,
                ("verify", "output"): 5,
            },
            "llm_cost_total": {("plan",): 0.35},
            "llm_unpriced_interactions_total": {("plan",): 0, ("verify",): 1},
            "model_interactions_total": {("opus",): 1, ("haiku",): 1},
            "model_tokens_total": {
                ("opus", "input"): 300,
                ("opus", "cache_read"): 600,
                ("opus", "cache_write"): 100,
                ("opus", "output"): 50,
                ("haiku", "input"): 7,
                ("haiku", "cache_read"): 0,
                ("haiku", "cache_write"): 0,
                ("haiku", "output"): 5,
            },
            "model_reasoning_tokens_total": {("opus",): 30, ("haiku",): 0},
            "model_cost_total": {("opus",): 0.1},
            "model_unpriced_interactions_total": {("opus",): 0, ("haiku",): 1},
            "phase_transitions_total": {("plan",): 1},
            "heal_triggers_total": {("plan",): 1},
            "heal_outcomes_total": {("failure", "plan"): 1, ("success", "plan"): 1},
            "heal_loops_total": {("plan",): 1},
            "heal_duration_seconds_total": {("plan",): 1.25},
            "bisect_triggers_total": {("plan",): 1},
            "bisect_outcomes_total": {("failure", "plan"): 1, ("success", "plan"): 0},
            "records_dropped_total": {},
            "records_rejected_total": {(): 0},
            "tool_call_duration_seconds_count": {("grep",): 4},
            "tool_call_duration_seconds_sum": {("grep",): 90.501},
            "model_interaction_duration_seconds_count": {("opus",): 1},
            "model_interaction_duration_seconds_sum": {("opus",): 1.5},
            "tool_calls_running": {("sleep",): 1},
            "writers": {(): 1},
            "session_start_time_seconds": {(): metrics.started_at.timestamp()},
            "sessions": {("running",): 1, ("ended",): 0, ("missing",): 0, ("unreadable",): 0},
            "names_in_other": {("tool",): 0, ("phase",): 0, ("model",): 0},
        }
        last = values(found, "session_last_record_time_seconds").pop(())
        assert metrics.started_at.timestamp() <= last <= metrics.updated_at.timestamp()
        created = {name: at for (name, _), at in found.items() if name.endswith("_created")}
        assert set(created.values()) == {metrics.started_at.timestamp()}
        assert {name: values(found, name) for name in expected} == expected
        names = {name.removeprefix("m31a_") for name, _ in found.keys() - created}
        others = {BUCKET, "model_interaction_duration_seconds_bucket", "session_last_record_time_seconds"}
        assert {name for name in names if not name.endswith("_created")} <= expected.keys() | others

    @given(st.lists(st.one_of(st.integers(0, 2**63 - 1), st.sampled_from([125, 126, 250, 1000, 4096000]))))
    def test_each_bucket_counts_exactly_what_is_up_to_its_bound(self, durations: list[int]) -> None:
        histogram = Histogram()
        for duration in durations:
            histogram.add({duration: 1})
        tool = ToolMetric("t", len(durations), len(durations), 0, 7, durations=histogram)
        numbers = Numbers.of(SessionMetrics("s", tools=[tool]), lambda _, name: name)
        (row,) = numbers.durations["tool.call.duration"].values()
        # Compare whole numbers: 2**-8 s is no whole number of milliseconds.
        expected = [
            sum(duration * 2 ** max(0, -power) <= 1000 * 2 ** max(0, power) for duration in durations)
            for power in POWERS
        ]
        assert row == [*expected, len(durations), 7]

    def test_bounds_are_powers_of_two_and_the_last_one_has_all(self, sessions: Path) -> None:
        with Collector("s", sessions) as collector:
            collector.record_tool_call("t", True, 2**62)
            found = collected(SessionsCollector(sessions))
        bounds = {float(bound): count for (bound, _), count in values(found, BUCKET).items()}
        assert sorted(bounds) == [*(2.0**power for power in range(-8, 13)), float("inf")]
        assert bounds[float("inf")] == 1
        assert sum(bounds.values()) == 1

    @pytest.mark.slow
    @given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
    def test_a_name_of_any_characters_comes_back(self, name: str) -> None:
        metrics = SessionMetrics("s", tools=[ToolMetric(name, 1, 1)], llms=[LLMMetric(name, 2)])
        both = texts_of(prometheus._OneSession(found_of(metrics), by_session=False))
        for parse, output in zip((parse_text, parse_openmetrics), both, strict=True):
            found = series(parse(output))
            assert value(found, "tool_calls_total", tool=name, outcome="success") == 1
            assert value(found, "llm_tokens_total", phase=name, type="input") == 2

    def test_cost_that_nobody_knows_is_no_zero(self) -> None:
        metrics = SessionMetrics(
            "s",
            llms=[
                LLMMetric("a", interaction_count=2, unknown_cost_count=2),
                LLMMetric("b", interaction_count=1),
            ],
            models=[ModelMetric("m", 1, unknown_cost_count=1)],
        )
        found = read(metrics)
        assert values(found, "llm_cost_total") == {("b",): 0}
        assert values(found, "model_cost_total") == {}
        assert values(found, "llm_unpriced_interactions_total") == {("a",): 2, ("b",): 0}

    def test_sum_of_costs_that_no_float_can_hold_is_the_largest_one(self, sessions: Path) -> None:
        collector = SessionsCollector(sessions, ["a", "b"])
        for name in ("a", "b"):
            with Collector(name, sessions) as owner:
                owner.record_llm_interaction("plan", Usage(9, 1, 10), 1.7e308)
        assert value(collected(collector), "llm_cost_total", phase="plan") == sys.float_info.max

    def test_sum_over_more_calls_than_the_histogram_has_is_left_out(self) -> None:
        part = ToolMetric(
            "part", 3, 3, 0, 600, durations=Histogram(1)
        )  # two were recorded by an earlier version
        whole = ToolMetric("whole", 2, 1, 1, 600, durations=Histogram(1), interrupted_count=1)
        none = ToolMetric("none", 2, 2, 0, 5)
        found = read(SessionMetrics("s", tools=[part, whole, none]))
        assert values(found, "tool_call_duration_seconds_sum") == {("whole",): 0.6}
        assert values(found, "tool_call_duration_seconds_count") == {("whole",): 1}
        assert {tool for _, tool in values(found, BUCKET)} == {"part", "whole"}

    def test_session_without_records_has_no_last_record(self, sessions: Path) -> None:
        with Collector("s", sessions):
            found = collected(SessionsCollector(sessions))
        assert values(found, "session_last_record_time_seconds") == {}
        assert values(found, "session_start_time_seconds") != {}

    def test_session_is_a_label_only_on_request(self, sessions: Path) -> None:
        with Collector('a "session"', sessions) as collector:
            collector.record_tool_call("grep", True, 1)
            plain, labelled = (
                collected(SessionsCollector(sessions, by_session=by_session)) for by_session in (False, True)
            )
            found = status(Session.named('a "session"', sessions))
        assert values(plain, "tool_calls_total").keys() == {("failure", "grep"), ("success", "grep")}
        labels = {"session": 'a "session"', "tool": "grep", "outcome": "success"}
        assert value(labelled, "tool_calls_total", **labels) == 1
        assert value(labelled, "writers", session='a "session"') == 1
        assert b"session=" not in text(found)
        output = text(found, by_session=True).decode()
        assert value(series(parse_text(output)), "tool_calls_total", **labels) == 1

    def test_text_has_no_times_of_creation(self, sessions: Path) -> None:
        with Collector("s", sessions) as collector:
            record_everything(collector)
        output = text(status(Session.named("s", sessions)))
        assert b"m31a_tool_calls_total" in output
        assert b"_created" not in output

    @pytest.mark.skipif(not PROMTOOL, reason="promtool is not installed (Debian: prometheus)")
    def test_promtool_finds_nothing(self, sessions: Path) -> None:
        with Collector("s", sessions) as collector:
            record_everything(collector)
            collector.record_tool_call('a "\\\n\x00\x85 b', True, 1)
        assert checked_by_promtool(text(status(Session.named("s", sessions)))) == ""


class TestTextfile:
    def test_file_is_replaced_and_others_may_read_it(self, sessions: Path, tmp_path: Path) -> None:
        with Collector("s", sessions) as collector:
            collector.record_tool_call("grep", True, 1)
        found = status(Session.named("s", sessions))
        file = tmp_path / "s.prom"
        file.write_text("old")
        with file.open() as reader:
            write_textfile(file, found)
            assert reader.read() == "old"  # it is another file now
        assert file.read_bytes() == text(found)
        assert stat.S_IMODE(file.stat().st_mode) & 0o044
        assert list(tmp_path.iterdir()) == [file]

    def test_link_leads_to_the_file_and_a_pipe_is_never_replaced(
        self, sessions: Path, tmp_path: Path
    ) -> None:
        with Collector("s", sessions):
            pass
        found = status(Session.named("s", sessions))
        link, file, pipe = tmp_path / "link.prom", tmp_path / "s.prom", tmp_path / "pipe"
        link.symlink_to(file)
        write_textfile(link, found)
        assert link.is_symlink()
        assert file.read_bytes() == text(found)
        os.mkfifo(pipe)
        with pytest.raises(OSError, match="not a regular file"):
            write_textfile(pipe, found)
        assert stat.S_ISFIFO(pipe.stat().st_mode)

    @pytest.mark.parametrize("small_disk", ["size=64k"], indirect=True)
    def test_full_disk_leaves_the_file_as_it_was_and_nothing_else(
        self, sessions: Path, small_disk: Path
    ) -> None:
        with Collector("s", sessions) as collector:
            for i in range(40):
                collector.record_tool_call(f"tool-{i}", True, 1)
        file = small_disk / "s.prom"
        file.write_text("old")
        with pytest.raises(OSError, match="No space left"):
            write_textfile(file, status(Session.named("s", sessions)))
        assert file.read_text() == "old"
        assert list(small_disk.iterdir()) == [file]


def counters(found: Series) -> Series:
    """What must never decrease."""
    ends = ("_total", "_bucket", "_count", "_sum")
    return {key: number for key, number in found.items() if key[0].endswith(ends)}


def assert_monotone(looks: list[Series]) -> None:
    for before, after in pairwise(map(counters, looks)):
        assert [key for key, number in before.items() if after.get(key, -1) < number] == []


class TestSessionsThatComeAndGo:
    def calls(self, collector: SessionsCollector) -> float:
        return sum(values(collected(collector), "tool_calls_total").values())

    def test_sum_keeps_a_session_that_ended_and_one_that_was_deleted(self, sessions: Path) -> None:
        collector = SessionsCollector(sessions)
        with Collector("a", sessions) as a, Collector("b", sessions) as b:
            a.record_tool_call("grep", True, 1)
            b.record_tool_call("grep", False, 1)
            assert self.calls(collector) == 2
            a.record_tool_call("grep", True, 1)
            a.stop()
            assert self.calls(collector) == 3  # also the last one, which was recorded between two looks
            shutil.rmtree(sessions / "a")
            assert self.calls(collector) == 3
            b.record_tool_call("grep", False, 1)
            assert self.calls(collector) == 4

    def test_session_of_the_same_name_begun_anew_is_another_one(self, sessions: Path) -> None:
        collector = SessionsCollector(sessions)
        for i in range(1, 4):
            with Collector("s", sessions) as s:
                for _ in range(10 - i):  # less than before
                    s.record_tool_call("grep", True, 1)
                self.calls(collector)
            shutil.rmtree(sessions / "s")
        assert self.calls(collector) == 9 + 8 + 7

    def test_session_that_is_restored_from_a_copy_is_not_counted_again(self, sessions: Path) -> None:
        sessions.mkdir()
        collector = SessionsCollector(sessions)
        looks = [collected(collector)]

        def look(calls: int) -> None:
            looks.append(collected(collector))
            assert value(looks[-1], "tool_calls_total", tool="grep", outcome="success") == calls

        with Collector("s", sessions) as owner:
            owner.record_tool_call("grep", True, 1)
            owner.flush()
            copy = (sessions / "s" / "metrics.json").read_bytes()
            for duration in (0, 100, 10_000):
                owner.record_tool_call("grep", True, duration)
                owner.record_llm_interaction("plan", Usage(9, 1, 10), 0.1, model="opus", duration_ms=duration)
        look(4)
        (sessions / "s" / "metrics.json").write_bytes(copy)
        look(4)
        for calls in (5, 6):
            with Collector("s", sessions) as owner:
                owner.record_tool_call("grep", True, 1000)
                look(calls)
        assert_monotone(looks)
        assert value(looks[-1], "tool_call_duration_seconds_count", tool="grep") == 6

    def test_session_that_lived_between_two_looks_counts(self, sessions: Path) -> None:
        collector = SessionsCollector(sessions)
        sessions.mkdir()
        assert self.calls(collector) == 0
        with Collector("s", sessions) as s:
            s.record_tool_call("grep", True, 1)
        assert self.calls(collector) == 1

    def test_session_that_had_ended_before_counts_when_it_runs_again(self, sessions: Path) -> None:
        with Collector("s", sessions) as s:
            s.record_tool_call("grep", True, 1)
        collector = SessionsCollector(sessions)
        assert [self.calls(collector), self.calls(collector)] == [0, 0]
        with Collector("s", sessions) as s:
            s.record_tool_call("grep", True, 1)
            assert self.calls(collector) == 2
        assert self.calls(collector) == 2

    def test_session_without_an_owner_runs_while_a_worker_records(self, sessions: Path) -> None:
        collector = SessionsCollector(sessions)
        sessions.mkdir()
        attach("s", sessions).record_tool_call("grep", True, 1)
        found = collected(collector)
        assert value(found, "sessions", condition="running") == 1
        assert value(found, "tool_calls_total", tool="grep", outcome="success") == 1

    def test_sessions_that_are_asked_for_are_there_whether_they_run_or_not(self, sessions: Path) -> None:
        with Collector("ended", sessions) as s:
            s.record_tool_call("grep", True, 1)
        with Collector("other", sessions) as other:
            other.record_tool_call("grep", True, 1)
            found = collected(SessionsCollector(sessions, ["ended", "not there"]))
        assert value(found, "tool_calls_total", tool="grep", outcome="success") == 1
        conditions = {"ended": 1.0, "missing": 1.0, "running": 0.0, "unreadable": 0.0}
        assert values(found, "sessions") == {(name,): number for name, number in conditions.items()}
        assert value(found, "session_start_time_seconds") is not None

    def test_labelled_session_stays_some_minutes_after_its_end(
        self, sessions: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: now)
        collector = SessionsCollector(sessions, by_session=True)

        def shown() -> set[str]:
            return {name for _, name, _ in values(collected(collector), "tool_calls_total")}

        with Collector("a", sessions) as a:
            a.record_tool_call("grep", True, 1)
            assert shown() == {"a"}
        assert shown() == {"a"}
        now += watching.KEPT_SECONDS - 1
        assert shown() == {"a"}
        now += 1
        assert shown() == set()
        with Collector("a", sessions):
            assert shown() == {"a"}
        assert shown() == {"a"}

    @pytest.mark.slow
    def test_no_counter_ever_decreases(self, sessions: Path) -> None:
        """Sessions are made, resumed, ended, killed, compacted and deleted in a random order."""
        chance = random.Random(15)
        sessions.mkdir()
        collector = SessionsCollector(sessions, max_names=3)
        owned: dict[str, Collector] = {}
        recorded = 0
        looks = [collected(collector)]
        for _ in range(150):
            name = chance.choice("abcd")
            what = chance.choice(["record", "record", "end", "delete", "die"])
            if what == "record":
                owner = (
                    owned.setdefault(name, Collector(name, sessions)) if name not in owned else owned[name]
                )
                for _ in range(chance.randrange(4)):
                    owner.record_tool_call(chance.choice(["grep", "make", "x", "y", "z"]), True, 100)
                    owner.record_llm_interaction("plan", Usage(9, 1, 10), chance.random())
                    recorded += 1
            elif what == "end" and name in owned:
                owned.pop(name).stop()
            elif what == "delete" and name not in owned:
                shutil.rmtree(sessions / name, ignore_errors=True)
            elif what == "die" and name not in owned:
                recorded += 1
                with Forked(die_owning, sessions, name) as child:
                    assert child.wait() == 0
            looks.append(collected(collector))
        for owner in owned.values():
            owner.stop()
        looks.append(collected(collector))
        assert_monotone(looks)
        assert sum(values(looks[-1], "tool_calls_total").values()) == recorded
        assert values(looks[-1], "names_in_other")[("tool",)] > 0

    @pytest.mark.slow
    def test_looks_of_many_threads_agree(self, sessions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        collector = SessionsCollector(sessions)
        looks: dict[int, list[Series]] = {}
        inside: list[None] = []
        together: list[int] = []

        real = Sessions._read

        def watched(sessions: Sessions, session: Session, looks: Looks, seen: Seen | None) -> Seen:
            inside.append(None)
            for _ in range(100):  # others may come in
                os.sched_yield()
            found = real(sessions, session, looks, seen)
            together.append(len(inside))
            inside.pop()
            return found

        def look(i: int) -> None:
            looks[i] = [series(collector.collect()) for _ in range(20)]

        monkeypatch.setattr(Sessions, "_read", watched)
        with Collector("s", sessions) as s:
            threads = [threading.Thread(target=look, args=(i,)) for i in range(4)]
            for thread in threads:
                thread.start()
            for _ in range(10_000):
                s.record_tool_call("grep", True, 1)
            for thread in threads:
                thread.join()
        assert sorted(looks) == [0, 1, 2, 3]
        assert together == [1] * 80
        for found in looks.values():
            assert_monotone(found)


def die_owning(sessions: Path, name: str) -> None:
    Collector(name, sessions).record_tool_call("grep", True, 1)


def own_and_stop(sessions: Path) -> None:
    owner = Collector("s", sessions)
    os.kill(os.getpid(), signal.SIGSTOP)
    owner.stop()


def close(directory: Path, patch: pytest.MonkeyPatch) -> None:
    """Let no call enter a directory, as its permissions would for everybody but root."""
    listdir = os.listdir

    def closed(real: Callable[..., object], path: object, *rest: object) -> object:
        is_within = isinstance(path, str) and f"{path}/".startswith(f"{directory}/")
        if is_within and (path != str(directory) or real is listdir):
            raise PermissionError(13, "Permission denied", path)
        return real(path, *rest)

    for name in ("listdir", "stat", "lstat", "open"):
        patch.setattr(os, name, partial(closed, getattr(os, name)))


class TestDamage:
    @pytest.fixture
    def two(self, sessions: Path) -> Path:
        """Two running sessions, of which the first one's metrics.json is damaged."""
        for name in ("bad", "good"):
            with Collector(name, sessions) as s:
                s.record_tool_call(name, True, 1)
            attach(name, sessions).record_tool_call(name, True, 1)
        return sessions

    def test_damaged_session_costs_only_itself_and_is_told_once(
        self, two: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (two / "bad" / "metrics.json").write_text("{")
        collector = SessionsCollector(two)
        for _ in range(3):
            found = collected(collector)
            assert value(found, "sessions", condition="unreadable") == 1
            assert values(found, "tool_calls_total") == {("failure", "good"): 0, ("success", "good"): 2}
        assert [record.message.partition(":")[0] for record in caplog.records] == [
            "session bad cannot be read"
        ]

    def test_session_that_is_damaged_later_keeps_its_numbers_in_the_sum(self, two: Path) -> None:
        plain, labelled = SessionsCollector(two), SessionsCollector(two, by_session=True)
        looks = [collected(plain)]
        assert value(collected(labelled), "writers", session="bad") is not None
        file = two / "bad" / "metrics.json"
        healthy = file.read_bytes()
        file.write_text("{")
        looks.append(collected(plain))
        assert value(looks[-1], "sessions", condition="unreadable") == 1
        assert value(collected(labelled), "writers", session="bad") is None
        file.write_bytes(healthy)
        attach("bad", two).record_tool_call("bad", True, 1)
        looks.append(collected(plain))
        assert_monotone(looks)
        assert value(looks[-1], "tool_calls_total", tool="bad", outcome="success") == 3

    def test_session_that_may_not_be_read_is_neither_gone_nor_counted_twice(
        self, two: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        collector = SessionsCollector(two)
        looks = [collected(collector)]
        with monkeypatch.context() as patch:
            close(two / "bad", patch)
            looks.append(collected(collector))
        assert value(looks[-1], "sessions", condition="unreadable") == 1
        assert [record.message for record in caplog.records] == [
            f"session bad cannot be read: [Errno 13] Permission denied: '{two}/bad'"
        ]
        looks.append(collected(collector))
        assert_monotone(looks)
        assert value(looks[-1], "tool_calls_total", tool="bad", outcome="success") == 2

    def test_session_of_before_that_may_not_be_read_meanwhile_is_still_of_before(
        self, sessions: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Collector("old", sessions) as s:
            s.record_tool_call("grep", True, 1)
        collector = SessionsCollector(sessions)
        for is_closed in (True, True, False, True, False):
            with monkeypatch.context() as patch:
                if is_closed:
                    close(sessions / "old", patch)
                found = collected(collector)
            assert value(found, "sessions", condition="unreadable") == is_closed
            assert values(found, "tool_calls_total") == {}

    def test_directory_that_cannot_be_listed_is_not_an_empty_one(
        self, two: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        collector = SessionsCollector(two)
        monkeypatch.setattr(os, "listdir", raising(PermissionError(13, "Permission denied", str(two))))
        with pytest.raises(PermissionError):
            collector.collect()


class TestCost:
    def test_session_at_rest_is_read_once(self, sessions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        read = noted_reads(monkeypatch)
        with Collector("old", sessions) as s:
            s.record_tool_call("grep", True, 1)
        collector = SessionsCollector(sessions)
        collector.collect()
        assert read == []  # it ended before
        with Collector("new", sessions) as s:
            s.record_tool_call("grep", True, 1)
        age(sessions / "new")
        for _ in range(5):
            collector.collect()
        assert read == ["new"]
        attach("new", sessions).record_tool_call("grep", True, 1)
        found = collected(collector)
        assert value(found, "tool_calls_total", tool="grep", outcome="success") == 2

    def test_running_session_without_writers_is_read_once_and_its_end_is_seen(
        self, sessions: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Collector("s", sessions) as s:
            s.record_tool_call("grep", True, 1)
        read = noted_reads(monkeypatch)
        collector = SessionsCollector(sessions)
        with Forked(own_and_stop, sessions) as owner:
            os.waitpid(owner.pid, os.WUNTRACED)
            age(sessions / "s")
            for _ in range(3):
                assert value(collected(collector), "sessions", condition="running") == 1
            assert read == ["s"]
        found = collected(collector)
        assert value(found, "sessions", condition="ended") == 1
        assert value(found, "tool_calls_total", tool="grep", outcome="success") == 1

    @pytest.mark.parametrize("by_session", [False, True])
    def test_numbers_are_made_anew_only_for_what_is_new(
        self, sessions: Path, monkeypatch: pytest.MonkeyPatch, *, by_session: bool
    ) -> None:
        made: list[str] = []
        numbers_of = Numbers.of

        def noting(metrics: SessionMetrics, shown: Shown) -> Numbers:
            made.append(metrics.session_id)
            return numbers_of(metrics, shown)

        collector = SessionsCollector(sessions, by_session=by_session)
        with Collector("idle", sessions) as idle, Collector("busy", sessions) as busy:
            for s in (idle, busy):
                s.record_tool_call("grep", True, 1)
            monkeypatch.setattr(Numbers, "of", noting)
            for i in range(1, 4):
                calls = values(collected(collector), "tool_calls_total")
                assert sum(calls.values()) == 1 + i
                busy.record_tool_call("grep", True, 1)
        assert sorted(made) == ["busy", "busy", "busy", "idle"]

    def test_locks_of_the_system_are_read_once_for_all_sessions(
        self, sessions: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reads: list[str] = []
        read = files.read

        def noting(path: str) -> bytes:
            reads.append(path)
            return read(path)

        with ExitStack() as owned:
            for name in "abcde":
                owned.enter_context(Collector(name, sessions))
            collector = SessionsCollector(sessions)
            monkeypatch.setattr(files, "read", noting)
            assert value(collected(collector), "sessions", condition="running") == 5
            assert reads.count("/proc/locks") == 1

    def test_session_that_had_ended_before_is_asked_once_who_owns_it(
        self, sessions: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[str] = []

        def noting(session: Session, locks: dict[str, list[int]]) -> Owner | None:
            asked.append(session.id)
            return owner_of(session, locks)

        monkeypatch.setattr(watching, "owner_of", noting)
        with Collector("s", sessions) as s:
            s.record_tool_call("grep", True, 1)
        age(sessions / "s")
        collector = SessionsCollector(sessions)
        for _ in range(3):
            assert values(collected(collector), "tool_calls_total") == {}
        assert asked == ["s"]
        with Collector("s", sessions):
            assert sum(values(collected(collector), "tool_calls_total").values()) == 1

    def test_session_that_changed_just_now_is_read_again(
        self, sessions: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The next change may have the same time."""
        read = noted_reads(monkeypatch)
        with Collector("s", sessions):
            pass
        collector = SessionsCollector(sessions, ["s"])
        age(sessions / "s", seconds=-3600)  # just now, also on a slow machine
        for _ in range(3):
            collector.collect()
        assert read == ["s"] * 3

    def test_change_right_after_a_look_is_not_missed(self, sessions: Path) -> None:
        collector = SessionsCollector(sessions)
        sessions.mkdir()
        collector.collect()
        for i in range(1, 30):
            with Collector("s", sessions) as s:
                s.record_tool_call("grep", True, 1)
            found = collected(collector)
            assert value(found, "tool_calls_total", tool="grep", outcome="success") == i


def noted_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sessions that are read from now on."""
    read: list[str] = []

    real = Sessions._read

    def noting(sessions: Sessions, session: Session, looks: Looks, seen: Seen | None) -> Seen:
        read.append(session.id)
        return real(sessions, session, looks, seen)

    monkeypatch.setattr(Sessions, "_read", noting)
    return read


def age(directory: Path, seconds: float = 60) -> None:
    """Let the files of a session look as if they had changed so long ago."""
    then = time.time() - seconds
    for path in [*directory.rglob("*"), directory]:
        os.utime(path, (then, then))


class TestManyNames:
    def test_names_beyond_the_limit_count_together_and_are_told(self, sessions: Path) -> None:
        collector = SessionsCollector(sessions, max_names=3)
        with Collector("s", sessions) as s:
            looks = []
            for i in (5, 4, 3, 2, 1, 0):  # later names come first in the alphabet
                for _ in range(i + 1):
                    s.record_tool_call(f"tool-{i}", True, 1000)
                looks.append(collected(collector))
            with s.tool_call("another"):
                looks.append(collected(collector))
        assert_monotone(looks)
        calls = {
            tool: number
            for (outcome, tool), number in values(looks[-1], "tool_calls_total").items()
            if outcome == "success"
        }
        assert calls == {"tool-5": 6, "tool-4": 5, "tool-3": 4, "other": 3 + 2 + 1}
        assert values(looks[-1], "tool_call_duration_seconds_sum")[("other",)] == 6
        assert values(looks[-1], "tool_calls_running") == {("other",): 1}
        assert values(looks[-1], "names_in_other")[("tool",)] == 4

    @pytest.mark.slow
    def test_twenty_thousand_tools_make_a_bounded_answer(self, sessions: Path) -> None:
        tools = [
            ToolMetric(f"tool-{i}", 1, 1, 0, 5, durations=Histogram(0, -123, [1])) for i in range(20_000)
        ]
        save(sessions, "s", SessionMetrics("s", tools=tools))
        found = collected(SessionsCollector(sessions, ["s"]))
        calls = values(found, "tool_calls_total")
        assert len(calls) == 2 * (prometheus.MAX_NAMES + 1)
        assert sum(calls.values()) == 20_000
        assert values(found, "names_in_other")[("tool",)] == 20_000 - prometheus.MAX_NAMES

    @pytest.mark.parametrize("limit", [0, -1])
    def test_limit_below_one_is_refused(self, sessions: Path, limit: int) -> None:
        with pytest.raises(ValueError, match=f"max_names must be at least 1, not {limit}"):
            SessionsCollector(sessions, max_names=limit)


def test_names_of_sessions_are_checked_at_once(sessions: Path) -> None:
    with pytest.raises(ValueError, match="session_id"):
        SessionsCollector(sessions, [".."])


def test_two_collectors_in_one_registry_are_refused(sessions: Path) -> None:
    registry = CollectorRegistry()
    registry.register(SessionsCollector(sessions))
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(SessionsCollector(sessions))
