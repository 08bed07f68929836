"""`metrics.json` as programs save it, and as it is gone on from."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from m31a_mp import (
    Collector,
    LLMMetric,
    PhaseMetric,
    SessionMetrics,
    SessionOwnedError,
    ToolMetric,
    Usage,
    attach,
    compact,
    load,
    save,
    verify,
)
from m31a_mp.system import files
from strategies import bare, untimed


class TestSave:
    METRICS = SessionMetrics(
        "s",
        datetime(2026, 1, 2, tzinfo=UTC),
        datetime(2026, 1, 3, tzinfo=UTC),
        [ToolMetric("z", 2, 1, 1, 10, 5.0), ToolMetric("a", 1, 1, 0, 1, 1.0)],
        [LLMMetric("plan", 1, 2, 4, 0.1, 1)],
        [PhaseMetric("ship", 9, 1, 2, 3, True), PhaseMetric("plan", 7)],
    )

    def test_saved_metrics_are_loaded_as_they_were(self, sessions: Path) -> None:
        save(sessions, "s", self.METRICS)
        assert load(sessions, "s") == self.METRICS
        assert attach("s", sessions).snapshot() == self.METRICS
        assert verify(sessions, "s") == []

    def test_saved_metrics_are_gone_on_from(self, sessions: Path) -> None:
        save(sessions, "s", self.METRICS)
        with Collector("s", sessions) as collector:
            assert collector.snapshot() == self.METRICS
            collector.record_tool_call("a", True, 2)
            collector.record_llm_interaction("plan", Usage(0, 0, 0), 0.2)
            metrics = collector.snapshot()
        assert bare(metrics.tools) == [ToolMetric("z", 2, 1, 1, 10, 5.0), ToolMetric("a", 2, 2, 0, 3, 1.5)]
        assert metrics.llms[0].cost == 0.1 + 0.2
        assert metrics.phases == self.METRICS.phases
        assert metrics.started_at == self.METRICS.started_at

    def test_saved_duration_of_a_phase_that_had_none_stays(self, sessions: Path) -> None:
        with Collector("s", sessions) as collector:
            collector.record_phase_transition("plan")
        metrics = load(sessions, "s")
        assert metrics
        metrics.phases[0].duration_ms = 5
        save(sessions, "s", metrics)
        with Collector("s", sessions) as collector:
            assert untimed(collector.snapshot().phases) == [PhaseMetric("plan", 5, 1)]
            collector.record_phase_duration("plan", 4, True)
            assert untimed(collector.snapshot().phases) == [PhaseMetric("plan", 4, 1, success=True)]

    def test_saved_cost_wins_over_what_was_counted(self, sessions: Path) -> None:
        with Collector("s", sessions) as collector:
            collector.record_llm_interaction("plan", Usage(1, 1, 1), 0.1)
        metrics = load(sessions, "s")
        assert metrics
        metrics.llms[0].cost = 7.0
        save(sessions, "s", metrics)
        with Collector("s", sessions) as collector:
            collector.record_llm_interaction("plan", Usage(1, 1, 1), 0.5)
            assert collector.snapshot().llms[0].cost == 7.5

    def test_records_that_are_not_counted_yet_come_on_top(self, sessions: Path) -> None:
        attach("s", sessions).record_tool_call("z", True, 1)
        save(sessions, "s", self.METRICS)
        assert bare(compact(sessions, "s").metrics.tools)[0] == ToolMetric("z", 3, 2, 1, 11, 11 / 3)
        save(sessions, "s", self.METRICS)  # and are not counted again
        assert compact(sessions, "s").metrics.tools[0] == ToolMetric("z", 2, 1, 1, 10, 5.0)

    @pytest.mark.slow
    def test_save_while_an_owner_lives_raises_and_changes_nothing(self, sessions: Path) -> None:
        with Collector("s", sessions) as collector:
            before = collector.snapshot()
            with pytest.raises(SessionOwnedError):
                save(sessions, "s", self.METRICS)
            assert load(sessions, "s") == before

    @pytest.mark.parametrize(
        "wrong",
        [
            SessionMetrics("s", tools=[ToolMetric("bash", 2**63)]),
            SessionMetrics("s", tools=[ToolMetric("\ud800")]),
            SessionMetrics("s", llms=[LLMMetric("plan", cost=float("nan"))]),
            SessionMetrics("s", llms=[LLMMetric("plan", cost=10**400)]),
            SessionMetrics("s", datetime(2026, 1, 1)),  # noqa: DTZ001
            SessionMetrics("s", dropped={"\ud800": 1}),
        ],
    )
    def test_metrics_that_are_not_valid_are_a_value_error_and_the_old_file_stays(
        self, sessions: Path, wrong: SessionMetrics
    ) -> None:
        save(sessions, "s", self.METRICS)
        with pytest.raises(ValueError, match=r"."):
            save(sessions, "s", wrong)
        assert load(sessions, "s") == self.METRICS

    @pytest.mark.parametrize("call", ["write_all", "fsync", "replace"])
    def test_save_that_fails_leaves_the_old_file_whole_and_nothing_else(
        self, sessions: Path, monkeypatch: pytest.MonkeyPatch, call: str
    ) -> None:
        save(sessions, "s", self.METRICS)
        before = sorted((sessions / "s").iterdir())

        def fail(*_: object) -> None:
            raise OSError(28, "no space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(files if call == "write_all" else os, call, fail)
            with pytest.raises(OSError, match="no space"):
                save(sessions, "s", SessionMetrics("s"))
        assert load(sessions, "s") == self.METRICS
        assert sorted((sessions / "s").iterdir()) == before

    def test_file_can_be_replaced_by_metrics_with_another_order(self, sessions: Path) -> None:
        save(sessions, "s", self.METRICS)
        metrics = load(sessions, "s")
        assert metrics
        metrics.tools.reverse()
        metrics.started_at -= timedelta(days=1)
        save(sessions, "s", metrics)
        assert load(sessions, "s") == metrics == attach("s", sessions).snapshot()
