"""What is not known is not zero, and a zero that was recorded is one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from m31a_mp import SessionMetrics, ToolMetric, Usage, attach
from m31a_mp.kinds.histogram import Histogram
from metrics_of import SESSION, recovered_by_a_new_owner, recovered_by_compact, shown, snapshot, tools_of

USAGE = Usage(1, 2, 3)
each_way_to_see_it = pytest.mark.parametrize(
    "seen", [snapshot, shown, recovered_by_a_new_owner, recovered_by_compact]
)


def test_quantile_without_a_call_is_not_known() -> None:
    assert ToolMetric("bash").quantile(0.5) is None
    assert Histogram().quantile(1) is None


@each_way_to_see_it
def test_cost_that_is_not_known_is_counted_as_such_and_is_not_a_cost_of_zero(
    seen: Callable[[Path], SessionMetrics], tmp_path: Path
) -> None:
    recorder = attach(SESSION, tmp_path)
    recorder.record_llm_interaction("plan", USAGE, None, model="opus")
    recorder.record_llm_interaction("plan", USAGE, 0.25, model="opus")
    recorder.record_llm_interaction("verify", USAGE, 0.0)
    metrics = seen(tmp_path)
    assert [(llm.cost, llm.unknown_cost_count) for llm in metrics.llms] == [(0.25, 1), (0.0, 0)]
    assert [(model.cost, model.unknown_cost_count) for model in metrics.models] == [(0.25, 1)]
    assert (metrics.totals.cost, metrics.totals.unknown_cost_count) == (0.25, 1)


@each_way_to_see_it
def test_duration_of_zero_is_known_and_that_of_no_call_is_not(
    seen: Callable[[Path], SessionMetrics], tmp_path: Path
) -> None:
    recorder = attach(SESSION, tmp_path)
    recorder.record_tool_call("bash", True, 0)
    recorder.record_llm_interaction("plan", USAGE, 0.25, model="opus")
    metrics = seen(tmp_path)
    bash = tools_of(metrics)["bash"]
    assert (bash.min_duration_ms, bash.max_duration_ms, bash.quantile(0.5)) == (0, 0, 0)
    [opus] = metrics.models
    assert opus.quantile(0.5) is None
    assert metrics.tool("make") is None
