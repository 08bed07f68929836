"""Entries stand in the order of their first records, whichever arrives first; so does what is latest."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from m31a_mp import (
    Collector,
    PhaseMetric,
    Usage,
    attach,
    load,
)
from m31a_mp.segments import staging
from m31a_mp.session.paths import Session
from strategies import Record, expected, untimed

USAGE = Usage(10, 20, 35)


class TestOrder:
    def test_entries_stand_in_the_order_of_their_first_record(self, sessions: Path) -> None:
        with Collector("s", sessions) as collector:
            for name in ["zsh", "awk", "make", "awk", "bash", "zsh"]:
                collector.record_tool_call(name, True, 1)
                collector.record_heal_trigger(name)
                collector.record_llm_interaction(name, USAGE, 1)
                collector.flush()
            metrics = collector.snapshot()
        order = ["zsh", "awk", "make", "bash"]
        assert [tool.name for tool in metrics.tools] == order
        assert [llm.phase for llm in metrics.llms] == order
        assert [phase.phase for phase in metrics.phases] == order

    def test_order_is_that_of_the_first_record_over_all_processes(
        self, sessions: Path, new_process: Callable[[], None]
    ) -> None:
        with Collector("s", sessions) as collector:
            new_process()
            early = attach("s", sessions)
            early.record_tool_call("first", True, 1)
            new_process()
            late = attach("s", sessions)
            late.record_tool_call("second", True, 1)
            late.flush()  # the later one arrives, and is published, before the earlier one
            collector.record_tool_call("third", True, 1)
            assert [tool.name for tool in collector.snapshot().tools] == ["first", "second", "third"]

    def test_batch_that_arrives_after_a_flush_still_sorts_by_its_time(self, session: Session) -> None:
        with Collector("s", session.sessions_dir) as collector:
            collector.record_tool_call("new", True, 1)
            collector.flush()
            Path(session.journal).write_bytes(Record("tool_call", ("old", True, 1)).line(1))
            collector.flush()
            Path(session.journal).write_bytes(Record("tool_call", ("new", True, 1)).line(0))
            assert [tool.name for tool in collector.snapshot().tools] == ["new", "old"]

    @pytest.mark.parametrize("order", list(itertools.permutations([1, 2, 3])))
    def test_latest_phase_duration_wins_in_whatever_order_they_arrive(
        self, session: Session, order: list[int]
    ) -> None:
        with Collector("s", session.sessions_dir) as collector:
            for time in order:
                Path(session.journal).write_bytes(
                    Record("phase_duration", ("plan", time * 10, time == 3)).line(time)
                )
                collector.flush()
        metrics = load(session.sessions_dir, "s")
        assert metrics
        assert untimed(metrics.phases) == [PhaseMetric("plan", 30, success=True)]

    def test_costs_do_not_depend_on_the_order_in_which_they_arrive(self, session: Session) -> None:
        costs = [0.1] * 1500 + [0.2, 1e16, 1e-16, 3.3, 1e-300] * 100 + [1e15]
        lines = [Record("llm_interaction", ("plan", USAGE, c)).line(i) for i, c in enumerate(costs, 1)]
        seen = set()
        for run in range(4):
            name = f"run{run}"
            random.Random(run).shuffle(lines)
            with Collector(name, session.sessions_dir) as collector:
                for part in range(0, len(lines), 500):
                    with (Path(session.sessions_dir) / name / "journal.ndjson").open("ab") as stream:
                        stream.writelines(lines[part : part + 500])
                    if run % 2:
                        collector.flush()
                seen.add(collector.snapshot().llms[0].cost)
        wanted = expected((i, Record("llm_interaction", ("plan", USAGE, c))) for i, c in enumerate(costs))
        assert seen == {wanted["llms"][0]["cost"]}

    def test_clock_that_is_set_back_does_not_turn_the_order_around(
        self, sessions: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        times = iter([2_000, 1_000, 1_000])
        monkeypatch.setattr(staging, "time_ns", lambda: next(times))
        with Collector("s", sessions) as collector:
            collector.record_phase_duration("plan", 1, True)
            collector.record_phase_duration("plan", 2, True)
            collector.record_phase_duration("plan", 3, True)
            assert collector.snapshot().phases[0].duration_ms == 3
