"""Sums stop at the largest number that the Go program can read."""

from __future__ import annotations

from pathlib import Path

from m31a_mp import (
    Collector,
    LLMMetric,
    Usage,
    load,
)
from strategies import INT64_MAX

USAGE = Usage(10, 20, 35)


class TestSaturation:
    def test_sums_stop_at_the_largest_int64(self, sessions: Path) -> None:
        with Collector("s", sessions) as collector:
            for _ in range(3):
                collector.record_tool_call("bash", True, INT64_MAX)
                collector.record_llm_interaction("plan", Usage(INT64_MAX, INT64_MAX, INT64_MAX), 1)
            staged = collector.snapshot()
            collector.flush()
            for metrics in (staged, load(sessions, "s")):
                assert metrics
                assert metrics.tools[0].total_duration_ms == INT64_MAX
                assert metrics.llms == [LLMMetric("plan", INT64_MAX, INT64_MAX, INT64_MAX, 3.0, 3)]

    def test_average_of_a_sum_that_stopped_is_that_of_the_published_sum(self, sessions: Path) -> None:
        with Collector("s", sessions) as collector:
            collector.record_tool_call("bash", True, INT64_MAX)
            collector.record_tool_call("bash", True, INT64_MAX)
            before = collector.snapshot().tools
            collector.flush()
            published = load(sessions, "s")
            assert published
            assert before == published.tools == collector.snapshot().tools
            assert published.tools[0].avg_duration_ms == INT64_MAX / 2

    def test_costs_stop_at_the_largest_float(self, sessions: Path) -> None:
        with Collector("s", sessions) as collector:
            for _ in range(3):
                collector.record_llm_interaction("plan", USAGE, 1.7e308)
            collector.flush()
            collector.record_llm_interaction("plan", USAGE, 1.0)
        metrics = load(sessions, "s")
        assert metrics
        assert metrics.llms[0].cost == 1.7976931348623157e308

    def test_sums_go_on_where_a_resumed_session_stopped(self, sessions: Path) -> None:
        for _ in range(3):
            with Collector("s", sessions) as collector:
                collector.record_tool_call("bash", False, INT64_MAX - 1)
                collector.record_llm_interaction("plan", Usage(2**62, 0, 0), 0.1)
        metrics = load(sessions, "s")
        assert metrics
        tool = metrics.tools[0]
        assert (tool.call_count, tool.fail_count, tool.total_duration_ms) == (3, 3, INT64_MAX)
        assert (metrics.llms[0].prompt_tokens, metrics.llms[0].cost) == (INT64_MAX, 0.1 + 0.1 + 0.1)
