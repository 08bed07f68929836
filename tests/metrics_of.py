"""What a session, its files and its metrics say, in the form in which tests compare it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import orjson

from m31a_mp import Collector, Recorder, SessionMetrics, ToolMetric, attach, compact, load
from m31a_mp.inspection.status import status
from m31a_mp.metrics.events import fold_checked
from m31a_mp.metrics.totals import Totals
from m31a_mp.model import read
from m31a_mp.session.paths import Session
from strategies import Record

SESSION = "s"
"""The session of most tests, as the fixtures `session` and `collector` have it."""


# --- Ways to see the metrics of a session -------------------------------------------------------------


def loaded(sessions_dir: str | Path, session_id: str = SESSION) -> SessionMetrics:
    """What `metrics.json` says, and records that are not in it yet."""
    metrics = load(sessions_dir, session_id)
    assert metrics is not None
    return metrics


def flushed(collector: Collector, sessions_dir: Path) -> SessionMetrics:
    collector.flush()
    return loaded(sessions_dir)


def looked(collector: Collector, _: Path) -> SessionMetrics:
    return collector.snapshot()


def looked_from_outside(_: Collector, sessions_dir: Path) -> SessionMetrics:
    return snapshot(sessions_dir)


Look = Callable[[Collector, Path], SessionMetrics]


def snapshot(sessions_dir: Path) -> SessionMetrics:
    return attach(SESSION, sessions_dir).snapshot()


def shown(sessions_dir: Path) -> SessionMetrics:
    return status(Session.named(SESSION, sessions_dir)).metrics


def recovered_by_a_new_owner(sessions_dir: Path) -> SessionMetrics:
    with Collector(SESSION, sessions_dir) as collector:
        assert collector.snapshot() == loaded(sessions_dir)
    return loaded(sessions_dir)


def recovered_by_compact(sessions_dir: Path) -> SessionMetrics:
    assert compact(sessions_dir, SESSION).metrics == loaded(sessions_dir)
    return loaded(sessions_dir)


def folded(records: Iterable[tuple[int, Record] | bytes], into: Totals | None = None) -> Totals:
    """Totals of these lines, or records of these times, which are merged at time 0."""
    result = Totals(0) if into is None else into
    for record in records:
        line = record if isinstance(record, bytes) else record[1].line(record[0])
        fold_checked(result, line, 0)
    return result


def stored(before: Totals) -> Totals:
    """As the next process reads it."""
    metrics = orjson.loads(orjson.dumps(before.to_metrics(SESSION).to_json()))
    checkpoint = orjson.loads(orjson.dumps(before.to_checkpoint()))
    return Totals.restore(read(metrics), checkpoint)


def metrics_of(
    records: Iterable[tuple[int, Record]], started: int = 0, now: int = 4 * 10**18
) -> SessionMetrics:
    """What records of these times add up to for an owner who started then, and merges them now."""
    totals = Totals(started)
    for time, record in records:
        fold_checked(totals, record.line(time), now)
    return totals.to_metrics(SESSION)


# --- What they say ------------------------------------------------------------------------------------


def tools_of(metrics: SessionMetrics | None) -> dict[str, ToolMetric]:
    assert metrics is not None
    return {tool.name: tool for tool in metrics.tools}


def calls(metrics: SessionMetrics | None) -> dict[str, int]:
    """How many calls of each tool were counted."""
    return {name: tool.call_count for name, tool in tools_of(metrics).items()}


def calls_of(metrics: SessionMetrics, tool: str) -> int:
    """How many calls of a tool were counted."""
    return calls(metrics).get(tool, 0)


def count(metrics: SessionMetrics | None) -> int:
    """How many calls were counted of all tools together."""
    return sum(tool.call_count for tool in metrics.tools) if metrics else 0


def all_calls(metrics: SessionMetrics | None) -> dict[str, int]:
    """The calls of each tool, of which none were dropped or rejected."""
    assert metrics is not None
    assert (metrics.dropped, metrics.rejected) == ({}, 0)
    return calls(metrics)


def counted(sessions_dir: Path) -> dict[str, int]:
    """The calls of each tool in the session, of which none were dropped or rejected."""
    return all_calls(loaded(sessions_dir))


def count_of(sessions_dir: Path) -> int:
    """How many calls the session has, of which none were dropped or rejected."""
    return sum(counted(sessions_dir).values())


def outcomes(metrics: SessionMetrics) -> dict[str, tuple[int, int]]:
    """Of each tool the calls that succeeded, and those that failed."""
    return {tool.name: (tool.success_count, tool.fail_count) for tool in metrics.tools}


def durations(metrics: SessionMetrics | None) -> dict[str, int]:
    """The milliseconds of tools, each of which was called once."""
    assert metrics is not None
    assert all(tool.call_count == 1 for tool in metrics.tools), "counted twice"
    return {tool.name: tool.total_duration_ms for tool in metrics.tools}


def measured(recorder: Recorder) -> dict[str, tuple[int, int, int]]:
    """Of each tool the successes, the failures and the milliseconds."""
    tools = recorder.snapshot().tools
    return {tool.name: (tool.success_count, tool.fail_count, tool.total_duration_ms) for tool in tools}


# --- What is in its files -----------------------------------------------------------------------------


def published(sessions_dir: Path) -> dict[str, object]:
    """What `metrics.json` contains besides times of its own."""
    document = orjson.loads((sessions_dir / SESSION / "metrics.json").read_bytes())
    for key in ("started_at", "updated_at", "m31a_mp", "timeline"):
        document.pop(key, None)
    for phase in document["phases"]:
        for key in ("entered_at", "ended_at"):
            phase.pop(key, None)
    return dict(document)


def checkpoint_writers(sessions_dir: Path) -> set[str]:
    document = orjson.loads((sessions_dir / SESSION / "metrics.json").read_bytes())
    return set(document["m31a_mp"]["writers"])


def segments(sessions_dir: Path) -> list[Path]:
    return sorted((sessions_dir / SESSION / "segments").glob("*.seg"))


def files_under(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}
