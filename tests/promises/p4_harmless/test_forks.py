"""Forks at any moment: parent, child and grandchild record on, and nothing is lost or locked."""

from __future__ import annotations

from pathlib import Path

from m31a_mp import Recorder, attach, compact
from metrics_of import SESSION, loaded, tools_of
from workers import Forked


def test_recorder_made_before_the_fork_records_in_parent_child_and_grandchild(tmp_path: Path) -> None:
    recorder: Recorder = attach(SESSION, tmp_path)
    recorder.record_tool_call("tool", True, 1)

    def have_a_child() -> None:
        recorder.record_tool_call("tool", True, 10)
        with Forked(recorder.record_tool_call, "tool", True, 100) as grandchild:
            assert grandchild.wait() == 0
        recorder.record_tool_call("tool", True, 1000)

    with Forked(have_a_child) as child:
        assert child.wait() == 0
    recorder.record_tool_call("tool", True, 10_000)

    compact(tmp_path, SESSION)
    tool = tools_of(loaded(tmp_path))["tool"]
    assert (tool.call_count, tool.total_duration_ms) == (5, 11_111)
    recorder.stop()
