"""The table of events: what each kind of record holds, how it is checked, written and counted.

A record is one line of JSON: `event` is the name of the method without `record_`, `time` the nanoseconds
since the epoch, the other keys are the method's arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from m31a_mp.kinds import json
from m31a_mp.kinds.checks import check_bool, check_cost, check_int, check_name
from m31a_mp.metrics.totals import LLMTotal, PhaseTotal, ToolTotal, Totals, plausible

Check = Callable[[str, object], Any]


@dataclass(frozen=True)
class Event:
    """One kind of record.

    Attributes:
        name: What stands under `event`.
        fields: Its keys, the one that names the entry first, and the check of each.
        fold: Adds a record of the given time and values to the totals.
    """

    name: str
    fields: Mapping[str, Check]
    fold: Callable[..., None]


def _fold_tool_call(totals: Totals, time: int, name: str, success: bool, duration_ms: int) -> None:
    tool = totals.tool(name, time)
    tool.calls += 1
    tool.successes += success
    tool.failures += not success
    tool.duration_ms += duration_ms


def _fold_llm_interaction(  # noqa: PLR0913, PLR0917  # one for each field
    totals: Totals, time: int, phase: str, prompt: int, completion: int, total: int, cost: float
) -> None:
    llm = totals.llm(phase, time)
    llm.prompt_tokens += prompt
    llm.completion_tokens += completion
    llm.total_tokens += total
    llm.interactions += 1
    llm.costs.add(cost)


def _fold_phase_transition(totals: Totals, time: int, phase: str) -> None:
    totals.phase(phase, time).transitions += 1


def _fold_phase_duration(totals: Totals, time: int, phase: str, duration_ms: int, success: bool) -> None:
    totals.phase(phase, time).saw_duration(time, duration_ms, success)


def _fold_heal_trigger(totals: Totals, time: int, phase: str) -> None:
    totals.phase(phase, time).heals += 1


def _fold_bisect_trigger(totals: Totals, time: int, phase: str) -> None:
    totals.phase(phase, time).bisects += 1


EVENTS: dict[str, Event] = {
    event.name: event
    for event in (
        Event(
            "tool_call",
            {"name": check_name, "success": check_bool, "duration_ms": check_int},
            _fold_tool_call,
        ),
        Event(
            "llm_interaction",
            {
                "phase": check_name,
                "prompt_tokens": check_int,
                "completion_tokens": check_int,
                "total_tokens": check_int,
                "cost": check_cost,
            },
            _fold_llm_interaction,
        ),
        Event("phase_transition", {"phase": check_name}, _fold_phase_transition),
        Event(
            "phase_duration",
            {"phase": check_name, "duration_ms": check_int, "success": check_bool},
            _fold_phase_duration,
        ),
        Event("heal_trigger", {"phase": check_name}, _fold_heal_trigger),
        Event("bisect_trigger", {"phase": check_name}, _fold_bisect_trigger),
    )
}


_PHASE_COUNTS = {"phase_transition": "transitions", "heal_trigger": "heals", "bisect_trigger": "bisects"}


def fold_plain(  # noqa: C901, PLR0912, PLR0915  # a call for each record would take as long as the rest
    totals: Totals, records: list[Any], latest: int
) -> list[int]:
    """Count those records that are plainly valid and whose names have an entry: nearly all there are.

    Does the same as `fold_checked`, for that would take most of the time of a compaction.

    Args:
        totals: What they are added to.
        records: Parsed lines.
        latest: The latest time that a record may have, in nanoseconds since the epoch.

    Returns:
        The positions of the others, which were left alone.
    """
    tools, llms, phases = totals.tools, totals.llms, totals.phases
    updated = totals.updated
    others = []
    for position, record in enumerate(records):
        try:
            event, time = record["event"], record["time"]
            if type(time) is not int or not 0 <= time <= latest:
                raise ValueError
            entry: ToolTotal | LLMTotal | PhaseTotal
            if event == "tool_call":
                success, duration_ms = record["success"], record["duration_ms"]
                if type(success) is not bool or type(duration_ms) is not int or duration_ms >> 63:
                    raise ValueError
                entry = tool = tools[record["name"]]
                tool.calls += 1
                if success:
                    tool.successes += 1
                else:
                    tool.failures += 1
                tool.duration_ms += duration_ms
            elif event == "llm_interaction":
                prompt, completion = record["prompt_tokens"], record["completion_tokens"]
                total, cost = record["total_tokens"], record["cost"]
                if not type(prompt) is type(completion) is type(total) is int or type(cost) is not float:
                    raise ValueError
                if (prompt | completion | total) >> 63 or cost < 0:
                    raise ValueError
                entry = llm = llms[record["phase"]]
                llm.prompt_tokens += prompt
                llm.completion_tokens += completion
                llm.total_tokens += total
                llm.interactions += 1
                llm.costs.add(cost)
            elif event == "phase_duration":
                success, duration_ms = record["success"], record["duration_ms"]
                if type(success) is not bool or type(duration_ms) is not int or duration_ms >> 63:
                    raise ValueError
                entry = phase = phases[record["phase"]]
                phase.saw_duration(time, duration_ms, success)
            else:
                entry = phase = phases[record["phase"]]
                count = _PHASE_COUNTS[event]
                setattr(phase, count, getattr(phase, count) + 1)
        except (KeyError, TypeError, ValueError):
            others.append(position)
            continue
        if time < entry.first:  # noqa: PLR1730  # min() takes five times as long
            entry.first = time
        if time > updated:  # noqa: PLR1730
            updated = time
    totals.updated = updated
    return others


def fold_checked(totals: Totals, text: bytes, now: int) -> None:
    """Count one line. Keys that its event does not have are passed over: a later version has more.

    Args:
        totals: What it is added to; left as it is if the line is no record.
        text: The line.
        now: The time of a line that has none, or one that cannot be (`plausible`), in nanoseconds since the
            epoch.

    Raises:
        ValueError: It is no record; says why.
    """
    try:
        record = json.parse(text)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    kind = record.get("event") if isinstance(record, dict) else None
    event = EVENTS.get(kind) if isinstance(kind, str) else None
    if event is None:
        given = repr(kind[:80]) if isinstance(kind, str) else f"a {type(kind).__name__}"
        raise ValueError(f"not a record: its event is {given}")
    try:
        time = plausible(check_int("time", record["time"]), now) if "time" in record else now
        values = [check(field, record[field]) for field, check in event.fields.items()]
    except KeyError as error:
        raise ValueError(f"{event.name} without {error.args[0]!r}") from None
    except TypeError as error:
        raise ValueError(str(error)) from None
    event.fold(totals, time, *values)
