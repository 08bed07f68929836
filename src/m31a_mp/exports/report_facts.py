"""What a report says in a few words: the sums of a session, and what its numbers lack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

from m31a_mp.exports.report_cells import Value, change_of, milliseconds, number, time_text
from m31a_mp.exports.report_names import in_text
from m31a_mp.exports.report_tables import money, sum_of, sum_of_tools
from m31a_mp.model import LLMMetric, SessionMetrics, has_records
from m31a_mp.wording import FAILED, count, duration, outcome, part, quantile

_MAX_REASON = 40  # characters of the reason of a drop: another program may have written it


@dataclass(frozen=True, slots=True)
class Fact:
    """A sum.

    Attributes:
        label: What it is.
        values: Its value in each session.
        details: More on the value, for each session.
        change: How the second value differs from the first.
    """

    label: str
    values: list[Value]
    details: list[str]
    change: str


def facts(sessions: Sequence[SessionMetrics]) -> list[Fact]:
    """Return the sums of sessions, side by side."""
    of_each = [_facts_of_one(metrics) for metrics in sessions]
    found = []
    for label in of_each[0]:
        values = [one[label][0] for one in of_each]
        if any(value.text != "-" for value in values):
            found.append(Fact(label, values, [one[label][1] for one in of_each], change_of(values)))
    return found


def _facts_of_one(metrics: SessionMetrics) -> dict[str, tuple[Value, str]]:
    """Return each sum, and more on it. Without anything to add up it is `-`."""
    sums, tools = metrics.totals, sum_of_tools(metrics)
    use: LLMMetric = sum_of(LLMMetric, metrics.llms)
    nothing = Value("-")
    lasted = max(0.0, (metrics.updated_at - metrics.started_at) / timedelta(milliseconds=1))
    failed = f"{sums.tool_failures:,} failed, {part(sums.tool_failures, sums.tool_calls)}"
    quantiles = [f"{name} {quantile(tools, q)}" for name, q in (("p50", 0.5), ("p95", 0.95))]
    timed = tools.call_count > tools.interrupted_count
    tokens = f"{sums.prompt_tokens:,} prompt, {sums.completion_tokens:,} completion"
    models = count(len(metrics.models), "model") if metrics.models else "no model is named"
    return {
        "Lasted": (milliseconds(lasted) if has_records(metrics) else nothing, ""),
        "Tool calls": (number(sums.tool_calls), failed) if metrics.tools else (nothing, ""),
        "Time in tools": (
            (
                milliseconds(tools.total_duration_ms),
                ", ".join([*quantiles, f"max {duration(tools.max_duration_ms)}"]),
            )
            if timed
            else (nothing, "")
        ),
        "Interactions": (number(sums.llm_interactions), models) if metrics.llms else (nothing, ""),
        "Tokens": (number(sums.total_tokens), tokens) if metrics.llms else (nothing, ""),
        "Cost": (money(use), _of_unknown(use)) if metrics.llms else (nothing, ""),
        "Phases": (number(len(metrics.phases)), _of_phases(metrics)) if metrics.phases else (nothing, ""),
    }


def _of_unknown(use: LLMMetric) -> str:
    unknown = use.unknown_cost_count
    return f"not known of {count(unknown, 'interaction')}" if unknown else "known of all interactions"


def _of_phases(metrics: SessionMetrics) -> str:
    parts = {
        "failed": sum(outcome(phase) == FAILED for phase in metrics.phases),
        "healed": sum(phase.heal_success_count for phase in metrics.phases),
        "bisected": sum(phase.bisect_success_count for phase in metrics.phases),
    }
    return ", ".join(f"{number:,} {word}" for word, number in parts.items() if number or word == "failed")


@dataclass(frozen=True, slots=True)
class Note:
    """A sentence on what the numbers lack; `is_bad` if something was lost or broken."""

    text: str
    is_bad: bool = False


def notes(metrics: SessionMetrics, state: str) -> Iterator[Note]:
    """Yield what a reader must know of the numbers: what is missing, and what is not over yet."""
    sums = metrics.totals
    if not has_records(metrics):
        yield Note("Nothing is recorded in this session yet.")
    if sums.dropped:
        reasons = sorted(metrics.dropped.items(), key=lambda item: (-item[1], item[0]))
        named = ", ".join(
            f"{in_text(reason.replace('_', ' '), _MAX_REASON)}: {n:,}" for reason, n in reasons[:10]
        )
        yield Note(
            f"Dropped: {count(sums.dropped, 'record')} ({named}). All numbers are lower bounds.", is_bad=True
        )
    if metrics.rejected:
        pieces = count(metrics.rejected, "damaged or invalid piece")
        yield Note(f"Set aside: {pieces} of input, which the numbers do not have.", is_bad=True)
    if sums.interrupted:
        yield Note(
            f"Interrupted: {count(sums.interrupted, 'call')} whose process died in the middle. "
            "They count as failed and have no duration.",
            is_bad=True,
        )
    if troubled := [site for site in getattr(metrics, "sites", []) if getattr(site, "problem", "")]:
        yield Note(f"Gathered with a problem: {count(len(troubled), 'site')}, see below.", is_bad=True)
    if metrics.running:
        yield Note(f"Under way: {count(len(metrics.running), 'call')}, which no other number here has.")
    if sums.unknown_cost_count:
        unknown = count(sums.unknown_cost_count, "interaction")
        yield Note(f"The cost of {unknown} is not known: a cost is the least that it can be.")
    if state in {"running", "not closed"}:
        last = time_text(metrics.updated_at)
        yield Note(f"The session is {state}: there may be more after {last} UTC.")
    if not (sums.dropped or metrics.rejected or sums.interrupted):
        yield Note("Nothing was dropped, set aside or interrupted.")
