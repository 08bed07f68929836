"""The fold of plain records of each kind.

Written by scripts/generate.py from the declarations in kinds/catalog.py: change those.
"""

from __future__ import annotations

from typing import Any

from m31a_mp.kinds.checks import is_name
from m31a_mp.metrics.totals import Totals


def fold_plain(totals: Totals, records: list[Any], latest: int) -> list[int]:
    """Count the records that are plainly valid and whose names have an entry: most.

    Args:
        totals: What they are added to.
        records: Parsed lines.
        latest: The latest time that a record may have, in nanoseconds since the epoch.

    Returns:
        The positions of the others, which were left alone.
    """
    tools: Any = totals.tables["tools"].by_name
    llms: Any = totals.tables["llms"].by_name
    phases: Any = totals.tables["phases"].by_name
    cancellations: Any = totals.tables["cancellations"]
    updated = totals.updated
    others = []
    entry: Any
    for position, record in enumerate(records):
        try:
            event, time = record["event"], record["time"]
            if type(time) is not int or not 0 <= time <= latest:
                raise ValueError
            if event == "tool_call":
                success = record["success"]
                duration_ms = record["duration_ms"]
                if type(success) is not bool or type(duration_ms) is not int or duration_ms >> 63:
                    raise ValueError
                entry = tools[record["name"]]
                entry.call_count += 1
                entry.total_duration_ms += duration_ms
                if success:
                    entry.success_count += 1
                else:
                    entry.fail_count += 1
            elif event == "llm_interaction":
                prompt_tokens = record["prompt_tokens"]
                completion_tokens = record["completion_tokens"]
                total_tokens = record["total_tokens"]
                cost = record["cost"]
                if (
                    type(cost) is not float
                    or cost < 0
                    or not type(prompt_tokens) is type(completion_tokens) is type(total_tokens) is int
                    or (prompt_tokens | completion_tokens | total_tokens) >> 63
                ):
                    raise ValueError
                entry = llms[record["phase"]]
                entry.prompt_tokens += prompt_tokens
                entry.completion_tokens += completion_tokens
                entry.total_tokens += total_tokens
                entry.cost.add(cost)
                entry.interaction_count += 1
            elif event == "phase_transition":
                entry = phases[record["phase"]]
                entry.transition_count += 1
            elif event == "phase_duration":
                duration_ms = record["duration_ms"]
                success = record["success"]
                if type(success) is not bool or type(duration_ms) is not int or duration_ms >> 63:
                    raise ValueError
                entry = phases[record["phase"]]
                value = (time, duration_ms, success)
                if value > entry.ended:
                    entry.ended = value
            elif event == "heal_trigger":
                entry = phases[record["phase"]]
                entry.heal_trigger_count += 1
            elif event == "bisect_trigger":
                entry = phases[record["phase"]]
                entry.bisect_trigger_count += 1
            elif event == "cancellation":
                phase = record["phase"]
                reason = record["reason"]
                if not is_name(phase) or not is_name(reason):
                    raise ValueError
                entry = cancellations
                entry.add(time, phase, reason)
            else:
                raise ValueError
        except (KeyError, TypeError, ValueError):
            others.append(position)
            continue
        if time < entry.first:
            entry.first = time
        if time > updated:
            updated = time
    totals.updated = updated
    return others
