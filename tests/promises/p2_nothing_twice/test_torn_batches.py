"""A writer is killed while it appends, and its records come again: they count once."""

from __future__ import annotations

from pathlib import Path

import pytest

from damage import batch, line
from m31a_mp import Collector, compact, verify
from m31a_mp.session.paths import Session
from metrics_of import durations
from strategies import around_line_ends, killed_while_appending

pytestmark = pytest.mark.usefixtures("segments_at_once")


class TestKilledWhileAppending:
    """The process that drains is killed in its write; the segments still have everything."""

    @pytest.mark.slow
    @pytest.mark.parametrize("at", range(6))
    @pytest.mark.parametrize("shift", [-20, -1, 0, 1])
    def test_records_of_a_torn_batch_are_counted_once(self, session: Session, at: int, shift: int) -> None:
        with Collector("s", session.sessions_dir) as collector:
            for i in range(5):
                collector.record_tool_call(f"tool{i}", True, i)
            wanted = {f"tool{i}": i for i in range(5)}
            killed_while_appending(session, around_line_ends(at, shift))
            assert durations(collector.snapshot()) == wanted
            assert verify(session.sessions_dir, "s") == []
            collector.flush()
            assert durations(collector.snapshot()) == wanted
            assert verify(session.sessions_dir, "s") == []

    @pytest.mark.slow
    @pytest.mark.parametrize("at", range(6))
    @pytest.mark.parametrize("shift", [-20, -1, 0, 1])
    def test_foreign_line_after_a_torn_batch_costs_no_record(
        self, session: Session, at: int, shift: int
    ) -> None:
        with Collector("s", session.sessions_dir) as collector:
            for i in range(5):
                collector.record_tool_call(f"tool{i}", True, i)
            wanted = {**{f"tool{i}": i for i in range(5)}, "foreign": 9}
            killed_while_appending(session, around_line_ends(at, shift))
            with Path(session.journal).open("ab") as stream:
                stream.write(line("foreign", 9))
            assert durations(collector.snapshot()) == wanted
            collector.flush()
            assert durations(collector.snapshot()) == wanted
            assert verify(session.sessions_dir, "s") == []

    def test_torn_batch_after_a_torn_batch_counts_once(self, session: Session) -> None:
        with Collector("s", session.sessions_dir) as collector:
            for i in range(5):
                collector.record_tool_call(f"tool{i}", True, i)
                killed_while_appending(session, around_line_ends(i, -1))
                killed_while_appending(session, around_line_ends(i, -30))
                assert durations(collector.snapshot()) == {f"tool{k}": k for k in range(i + 1)}
            collector.flush()
            assert durations(collector.snapshot()) == {f"tool{i}": i for i in range(5)}
            assert verify(session.sessions_dir, "s") == []


@pytest.mark.parametrize("again", [0, 1])
def test_batch_that_comes_again_with_more_counts_once(session: Session, again: int) -> None:
    # As after a crash between an append and the note that it was done.
    versions = [batch(1, line("one")), batch(1, line("one"), line("two"))]
    Path(session.journal).write_bytes(versions[0] + versions[1] + versions[again])
    assert durations(compact(session.sessions_dir, "s").metrics) == {"one": 1, "two": 1}
