"""The sums of the records folded so far, and how far the fold is.

The result must not depend on the order in which batches arrive: sums of integers do not, costs are
summed without rounding, and the rest is decided by the times in the records.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from time import time_ns
from typing import Any, TypeVar

import orjson

from m31a_mp.kinds.checks import INT64_MAX
from m31a_mp.model import LLMMetric, PhaseMetric, SessionMetrics, ToolMetric

CHECKPOINT_VERSION = 1
# A hostile journal must not take the memory.
MAX_ENTRIES = 100_000
MAX_NAMES_BYTES = 64 * 1024 * 1024  # of all of them, as JSON
MAX_WRITERS = 1_000_000

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_COSTS_KEPT = 1024
_MAX_FLOAT = math.nextafter(math.inf, 0)
_SCALE = 2.0**-64  # sums of as many addends as there can be do not overflow on the way


# A record of a later time than this after the moment of merging, in nanoseconds, is of a clock that is wrong.
MAX_AHEAD = 24 * 60 * 60 * 10**9


def plausible(time: int, now: int) -> int:
    """The time of a record that is merged now: that moment, if its clock is more than a day ahead.

    It is counted like any other. With its own time it would stay the session's last record, and its duration
    that of its phase, for ever.
    """
    return time if time <= now + MAX_AHEAD else now


class TooManyEntriesError(ValueError):
    """One more distinct name than a session may have; the message is the reason."""


class ExactSum:
    """A sum of non-negative floats that is exact, so that their order does not show in it."""

    __slots__ = ("_addends",)

    def __init__(self, addends: list[float] | None = None) -> None:
        self._addends = addends or []

    def add(self, value: float) -> None:
        self._addends.append(value)
        if len(self._addends) > _COSTS_KEPT:
            self._addends = self.parts()

    def parts(self) -> list[float]:
        """The sum as a few floats: its rounded value, the rounded rest, and so on until nothing rests."""
        parts: list[float] = []
        try:
            while rest := math.fsum([*self._addends, *(-part for part in parts)]):
                parts.append(rest)
        except OverflowError:
            # JSON has no infinity: the sum stops at the largest float, or at the least one.
            scaled = math.fsum(addend * _SCALE for addend in self._addends)
            return [max(-_MAX_FLOAT, min(scaled / _SCALE, _MAX_FLOAT))]
        return parts

    def value(self) -> float:
        """The sum, rounded once."""
        parts = self.parts()
        return parts[0] if parts else 0.0


@dataclass(slots=True)
class ToolTotal:
    first: int
    calls: int = 0
    successes: int = 0
    failures: int = 0
    duration_ms: int = 0

    def add(self, tool: ToolMetric) -> None:
        """Add what `metrics.json` says; the average follows from the rest."""
        self.calls += tool.call_count
        self.successes += tool.success_count
        self.failures += tool.fail_count
        self.duration_ms += tool.total_duration_ms


@dataclass(slots=True)
class LLMTotal:
    first: int
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    interactions: int = 0
    costs: ExactSum = field(default_factory=ExactSum)

    def add(self, llm: LLMMetric, costs: list[float]) -> None:
        """Add what `metrics.json` says, `costs` in place of its rounded cost."""
        self.prompt_tokens += llm.prompt_tokens
        self.completion_tokens += llm.completion_tokens
        self.total_tokens += llm.total_tokens
        self.interactions += llm.interaction_count
        for cost in costs:
            self.costs.add(cost)


@dataclass(slots=True)
class PhaseTotal:
    """`latest` is the duration recorded last: its time, the duration in ms, the success."""

    first: int
    transitions: int = 0
    heals: int = 0
    bisects: int = 0
    latest: tuple[int, int, bool] | None = None

    def saw_duration(self, time: int, duration_ms: int, success: bool) -> None:
        """Keep it if it is the latest; of several at the same time, the greatest."""
        duration = (time, duration_ms, success)
        if self.latest is None or duration > self.latest:
            self.latest = duration

    def add(self, phase: PhaseMetric, time: int | None) -> None:
        """Add what `metrics.json` says; `time` is that of its duration, None if it has none."""
        self.transitions += phase.transition_count
        self.heals += phase.heal_trigger_count
        self.bisects += phase.bisect_trigger_count
        if time is not None:
            self.saw_duration(time, phase.duration_ms, phase.success)


Entry = TypeVar("Entry", ToolTotal, LLMTotal, PhaseTotal)


@dataclass(slots=True)
class WriterMark:
    """How far a writer's records are counted: the number of the last one, and what it dropped so far.

    Ours count from 1; others may count from 0.
    """

    last: int = -1
    dropped: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Totals:
    """The state that a fold changes. Times are nanoseconds since the epoch.

    Attributes:
        started: When the first owner opened the session, or what `metrics.json` says; None if nobody did.
        updated: The time of the latest record; 0 if there is none.
        tools, llms, phases: What was recorded, by name.
        writers: How far each writer is counted whose records may come again.
        journal: The number of the last sealed journal that is counted.
        dropped: Records that writers had to drop, by reason.
        rejected: Pieces of input that were set aside.
        names_bytes: What all the names take, as JSON.
        set_aside: Files that are counted as rejected, and were to be put out of the way then.
    """

    started: int | None = None
    updated: int = 0
    tools: dict[str, ToolTotal] = field(default_factory=dict)
    llms: dict[str, LLMTotal] = field(default_factory=dict)
    phases: dict[str, PhaseTotal] = field(default_factory=dict)
    writers: dict[str, WriterMark] = field(default_factory=dict)
    journal: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    rejected: int = 0
    names_bytes: int = 0
    set_aside: set[str] = field(default_factory=set)

    def tool(self, name: str, time: int) -> ToolTotal:
        """The tool's entry, to add a record of that time to."""
        return self._entry(self.tools, ToolTotal, name, time)

    def llm(self, phase: str, time: int) -> LLMTotal:
        """The entry of the phase's language-model use, to add a record of that time to."""
        return self._entry(self.llms, LLMTotal, phase, time)

    def phase(self, phase: str, time: int) -> PhaseTotal:
        """The phase's entry, to add a record of that time to."""
        return self._entry(self.phases, PhaseTotal, phase, time)

    def _entry(self, entries: dict[str, Entry], make: Callable[[int], Entry], name: str, time: int) -> Entry:
        entry = entries.get(name)
        if entry is None:
            size = len(orjson.dumps(name))
            if len(entries) >= MAX_ENTRIES or self.names_bytes + size > MAX_NAMES_BYTES:
                raise TooManyEntriesError(
                    f"{name!r:.80} would be one of more than {MAX_ENTRIES} distinct names, "
                    f"or make them longer than {MAX_NAMES_BYTES} bytes in all"
                )
            self.names_bytes += size
            entry = entries[name] = make(time)
        entry.first = min(entry.first, time)
        self.updated = max(self.updated, time)
        return entry

    def writer(self, writer: str) -> WriterMark:
        """How far that writer is counted; a new mark if it was not heard of."""
        mark = self.writers.get(writer)
        if mark is None:
            if len(self.writers) >= MAX_WRITERS:
                raise TooManyEntriesError(f"writer {writer!r:.80} is one of more than {MAX_WRITERS}")
            mark = self.writers[writer] = WriterMark()
        return mark

    def keep_writers(self, writers: set[str]) -> None:
        """Forget how far all other writers are: they are gone, and nothing of them can come again."""
        self.writers = {writer: mark for writer, mark in self.writers.items() if writer in writers}

    def saw_dropped(self, mark: WriterMark, dropped: dict[str, int]) -> None:
        """Count what a writer dropped; it says how many so far, so hearing it twice does no harm."""
        for reason, so_far in dropped.items():
            new = so_far - mark.dropped.get(reason, 0)
            if new > 0:
                mark.dropped[reason] = so_far
                self.dropped[reason] = self.dropped.get(reason, 0) + new

    def to_metrics(self, session_id: str) -> SessionMetrics:
        """Return what users see. A session with neither an owner nor a record starts now."""
        tables: list[dict[str, Any]] = [self.tools, self.llms, self.phases]
        starts = [total.first for table in tables for total in table.values()]
        if self.started is not None:
            starts.append(self.started)
        started = min(starts) if starts else time_ns()
        return SessionMetrics(
            session_id,
            _from_ns(started),
            _from_ns(max(started, self.updated)),
            [_tool_metric(name, t) for name, t in _in_order(self.tools)],
            [_llm_metric(phase, t) for phase, t in _in_order(self.llms)],
            [_phase_metric(phase, t) for phase, t in _in_order(self.phases)],
            {reason: _saturated(n) for reason, n in sorted(self.dropped.items())},
            _saturated(self.rejected),
        )

    def to_checkpoint(self) -> dict[str, Any]:
        """Return as JSON what `to_metrics` does not tell."""
        return {
            "version": CHECKPOINT_VERSION,
            "journal": self.journal,
            "set_aside": sorted(self.set_aside),
            "writers": {w: {"last": m.last, "dropped": m.dropped} for w, m in self.writers.items()},
            "tools": {name: {"first": t.first} for name, t in self.tools.items()},
            "llms": {p: {"first": t.first, "costs": t.costs.parts()} for p, t in self.llms.items()},
            "phases": {
                p: {"first": t.first, "latest": t.latest and t.latest[0]} for p, t in self.phases.items()
            },
        }

    @classmethod
    def restore(cls, metrics: SessionMetrics, checkpoint: dict[str, Any]) -> Totals:
        """Go on from what `metrics.json` says; `checkpoint` is empty when another program wrote it.

        Raises:
            KeyError, TypeError, ValueError: The checkpoint is not one.
        """
        now = time_ns()
        started = plausible(_to_ns(metrics.started_at), now)
        totals = cls(started, journal=_number(checkpoint.get("journal", 0)))
        if metrics.tools or metrics.llms or metrics.phases or not checkpoint:
            # Else it is no record's, but when the session started.
            totals.updated = plausible(_to_ns(metrics.updated_at), now)
        for writer, mark in checkpoint.get("writers", {}).items():
            totals.writers[writer] = WriterMark(
                _number(mark["last"]), {r: _number(n) for r, n in mark["dropped"].items()}
            )
        # Entries of one name, as another program or `save()` may have left them, add up.
        for i, tool in enumerate(metrics.tools):
            first = plausible(_first(checkpoint, "tools", tool.name, started + i), now)
            totals.tools.setdefault(tool.name, ToolTotal(first)).add(tool)
        for i, llm in enumerate(metrics.llms):
            first = plausible(_first(checkpoint, "llms", llm.phase, started + i), now)
            known = checkpoint.get("llms", {}).get(llm.phase, {})
            costs = ExactSum([_finite(part) for part in known.get("costs", [])])
            exact = costs.parts() if costs.value() == llm.cost else [llm.cost]
            totals.llms.setdefault(llm.phase, LLMTotal(first)).add(llm, exact)
        for i, phase in enumerate(metrics.phases):
            first = plausible(_first(checkpoint, "phases", phase.phase, started + i), now)
            known = checkpoint.get("phases", {}).get(phase.phase, {})
            time = known.get("latest")
            if time is None and (phase.duration_ms or phase.success):
                time = totals.updated  # it came with `save()`, or from another program
            entry = totals.phases.setdefault(phase.phase, PhaseTotal(first))
            entry.add(phase, None if time is None else plausible(_number(time), now))
        totals.set_aside = set(map(str, checkpoint.get("set_aside", [])))
        totals.dropped = dict(metrics.dropped)
        totals.rejected = metrics.rejected
        names = [*totals.tools, *totals.llms, *totals.phases]
        totals.names_bytes = sum(len(orjson.dumps(name)) for name in names)
        return totals


def _in_order(entries: dict[str, Any]) -> list[tuple[str, Any]]:
    return sorted(entries.items(), key=lambda item: (item[1].first, item[0]))


def _tool_metric(name: str, total: ToolTotal) -> ToolMetric:
    return ToolMetric(
        name,
        _saturated(total.calls),
        _saturated(total.successes),
        _saturated(total.failures),
        _saturated(total.duration_ms),
        _saturated(total.duration_ms) / _saturated(total.calls) if total.calls else 0.0,
    )


def _llm_metric(phase: str, total: LLMTotal) -> LLMMetric:
    return LLMMetric(
        phase,
        _saturated(total.prompt_tokens),
        _saturated(total.completion_tokens),
        _saturated(total.total_tokens),
        total.costs.value(),
        _saturated(total.interactions),
    )


def _phase_metric(phase: str, total: PhaseTotal) -> PhaseMetric:
    _, duration_ms, success = total.latest or (0, 0, False)
    return PhaseMetric(
        phase,
        duration_ms,
        _saturated(total.transitions),
        _saturated(total.heals),
        _saturated(total.bisects),
        success,
    )


def _saturated(number: int) -> int:
    return max(-INT64_MAX - 1, min(number, INT64_MAX))


def _first(checkpoint: dict[str, Any], table: str, name: str, default: int) -> int:
    return _number(checkpoint.get(table, {}).get(name, {}).get("first", default))


def _number(value: object) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r} is not an integer")
    return value


def _finite(value: object) -> float:
    if not isinstance(value, float) or not math.isfinite(value):
        raise TypeError(f"{value!r} is not a finite number")
    return value


def _from_ns(time: int) -> datetime:
    return _EPOCH + timedelta(microseconds=time // 1000)


def _to_ns(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(microseconds=1) * 1000
