"""The fold of plain records of each kind.

Written by scripts/generate.py from the declarations in kinds/catalog.py: change those.
"""

from __future__ import annotations

from typing import Any

from m31a_mp.kinds.bounded import BoundedCounts
from m31a_mp.kinds.checks import is_call, is_files, is_name, is_short_name, is_text
from m31a_mp.metrics.totals import Totals


def fold_plain(totals: Totals, records: list[Any], latest: int) -> list[int]:
    """Count the plainly valid records whose names have an entry. These are most records.

    Args:
        totals: The totals to add to.
        records: Parsed lines.
        latest: The latest time that a record may have, in nanoseconds since the epoch.

    Returns:
        The positions of the other records, which are not counted.
    """
    tools: Any = totals.tables["tools"].by_name
    llms: Any = totals.tables["llms"].by_name
    phases: Any = totals.tables["phases"].by_name
    models: Any = totals.tables["models"].by_name
    edit_strategies: Any = totals.tables["edit_strategies"].by_name
    plan_outcomes: Any = totals.tables["plan_outcomes"]
    startup: Any = totals.tables["startup"]
    completions: Any = totals.tables["completions"]
    cancellations: Any = totals.tables["cancellations"]
    running: Any = totals.tables["running"]
    timeline: Any = totals.tables["timeline"]
    start = end = 0  # the bounds of the current step of the timeline
    step_tool_calls = step_failures = step_interactions = step_tokens = step_unknown_costs = 0
    step_cost: list[float] = []
    updated = totals.updated
    others = []
    entry: Any
    value: Any
    for position, record in enumerate(records):
        try:
            event, time = record["event"], record["time"]
            if type(time) is not int or not start <= time < end:
                if type(time) is not int or not 0 <= time <= latest:
                    raise ValueError
                timeline.add(
                    start,
                    step_tool_calls,
                    step_failures,
                    step_interactions,
                    step_tokens,
                    step_unknown_costs,
                    costs=step_cost,
                )
                step_tool_calls = step_failures = step_interactions = step_tokens = step_unknown_costs = 0
                step_cost.clear()
                start, end = timeline.bounds(time, latest)
            if event == "tool_call":
                if len(record) == 5:  # nothing that may be left out is there
                    success = record["success"]
                    duration_ms = record["duration_ms"]
                    if type(success) is not bool or type(duration_ms) is not int or duration_ms >> 63:
                        raise ValueError
                    entry = tools[record["name"]]
                    step_tool_calls += 1
                    if success:
                        entry.calls.append(duration_ms)
                    else:
                        entry.calls.append(~duration_ms)
                        step_failures += 1
                elif len(record) == 6 and "call" in record:
                    success = record["success"]
                    duration_ms = record["duration_ms"]
                    call = record["call"]
                    if (
                        type(success) is not bool
                        or not is_call(call)
                        or type(duration_ms) is not int
                        or duration_ms >> 63
                    ):
                        raise ValueError
                    entry = tools[record["name"]]
                    step_tool_calls += 1
                    if success:
                        entry.calls.append(duration_ms)
                    else:
                        entry.calls.append(~duration_ms)
                        step_failures += 1
                    running.end(call)
                else:
                    success = record["success"]
                    duration_ms = record["duration_ms"]
                    error = record.get("error")
                    call = record.get("call")
                    if (
                        type(success) is not bool
                        or (error is not None and not is_short_name(error))
                        or (call is not None and not is_call(call))
                        or type(duration_ms) is not int
                        or duration_ms >> 63
                    ):
                        raise ValueError
                    entry = tools[record["name"]]
                    step_tool_calls += 1
                    if success:
                        entry.calls.append(duration_ms)
                    else:
                        entry.calls.append(~duration_ms)
                        step_failures += 1
                    if error is not None:
                        if entry.errors is None:
                            entry.errors = BoundedCounts()
                        entry.errors.add(error)
                    if call is not None:
                        running.end(call)
            elif event == "tool_started":
                name = record["name"]
                call = record["call"]
                if not is_name(name) or not is_call(call):
                    raise ValueError
                entry = running
                entry.add(time, name, call)
            elif event == "llm_interaction":
                if len(record) == 7:  # nothing that may be left out is there
                    prompt_tokens = record["prompt_tokens"]
                    completion_tokens = record["completion_tokens"]
                    total_tokens = record["total_tokens"]
                    cost = record["cost"]
                    if (
                        (cost is not None and (type(cost) is not float or cost < 0))
                        or not type(prompt_tokens) is type(completion_tokens) is type(total_tokens) is int
                        or (prompt_tokens | completion_tokens | total_tokens) >> 63
                    ):
                        raise ValueError
                    entry = llms[record["phase"]]
                    entry.prompt_tokens += prompt_tokens
                    entry.completion_tokens += completion_tokens
                    entry.total_tokens += total_tokens
                    entry.interaction_count += 1
                    step_interactions += 1
                    step_tokens += total_tokens
                    if cost is None:
                        entry.unknown_cost_count += 1
                        step_unknown_costs += 1
                    else:
                        entry.cost.append(cost)
                        step_cost.append(cost)
                elif len(record) == 9 and "model" in record and "duration_ms" in record:
                    prompt_tokens = record["prompt_tokens"]
                    completion_tokens = record["completion_tokens"]
                    total_tokens = record["total_tokens"]
                    cost = record["cost"]
                    model = record["model"]
                    duration_ms = record["duration_ms"]
                    if (
                        (cost is not None and (type(cost) is not float or cost < 0))
                        or not type(prompt_tokens)
                        is type(completion_tokens)
                        is type(total_tokens)
                        is type(duration_ms)
                        is int
                        or (prompt_tokens | completion_tokens | total_tokens | duration_ms) >> 63
                    ):
                        raise ValueError
                    entry = llms[record["phase"]]
                    of_model = models[model]
                    entry.prompt_tokens += prompt_tokens
                    entry.completion_tokens += completion_tokens
                    entry.total_tokens += total_tokens
                    entry.interaction_count += 1
                    step_interactions += 1
                    step_tokens += total_tokens
                    if cost is None:
                        entry.unknown_cost_count += 1
                        step_unknown_costs += 1
                    else:
                        entry.cost.append(cost)
                        step_cost.append(cost)
                    of_model.interaction_count += 1
                    of_model.prompt_tokens += prompt_tokens
                    of_model.completion_tokens += completion_tokens
                    of_model.total_tokens += total_tokens
                    of_model.durations.append(duration_ms)
                    if cost is None:
                        of_model.unknown_cost_count += 1
                    else:
                        of_model.cost.append(cost)
                    if time < of_model.first:
                        of_model.first = time
                else:
                    prompt_tokens = record["prompt_tokens"]
                    completion_tokens = record["completion_tokens"]
                    total_tokens = record["total_tokens"]
                    cached_tokens = record.get("cached_tokens", 0)
                    cache_write_tokens = record.get("cache_write_tokens", 0)
                    reasoning_tokens = record.get("reasoning_tokens", 0)
                    cost = record["cost"]
                    model = record.get("model")
                    duration_ms = record.get("duration_ms")
                    prompt_hash = record.get("prompt_hash")
                    truncated_input = record.get("truncated_input", False)
                    if (
                        (cost is not None and (type(cost) is not float or cost < 0))
                        or (duration_ms is not None and (type(duration_ms) is not int or duration_ms >> 63))
                        or (prompt_hash is not None and not is_short_name(prompt_hash))
                        or type(truncated_input) is not bool
                        or not type(prompt_tokens)
                        is type(completion_tokens)
                        is type(total_tokens)
                        is type(cached_tokens)
                        is type(cache_write_tokens)
                        is type(reasoning_tokens)
                        is int
                        or (
                            prompt_tokens
                            | completion_tokens
                            | total_tokens
                            | cached_tokens
                            | cache_write_tokens
                            | reasoning_tokens
                        )
                        >> 63
                        or cached_tokens + cache_write_tokens > prompt_tokens
                        or reasoning_tokens > completion_tokens
                    ):
                        raise ValueError
                    entry = llms[record["phase"]]
                    of_model = None if model is None else models[model]
                    entry.prompt_tokens += prompt_tokens
                    entry.completion_tokens += completion_tokens
                    entry.total_tokens += total_tokens
                    entry.interaction_count += 1
                    step_interactions += 1
                    step_tokens += total_tokens
                    if cost is None:
                        entry.unknown_cost_count += 1
                        step_unknown_costs += 1
                    else:
                        entry.cost.append(cost)
                        step_cost.append(cost)
                    if prompt_hash is not None:
                        value = (time, prompt_hash)
                        if not entry.prompt_hash or value < entry.prompt_hash:
                            entry.prompt_hash = value
                    if truncated_input:
                        entry.truncated_input = True
                    if of_model is not None:
                        of_model.interaction_count += 1
                        of_model.prompt_tokens += prompt_tokens
                        of_model.completion_tokens += completion_tokens
                        of_model.total_tokens += total_tokens
                        of_model.cached_tokens += cached_tokens
                        of_model.cache_write_tokens += cache_write_tokens
                        of_model.reasoning_tokens += reasoning_tokens
                        if cost is None:
                            of_model.unknown_cost_count += 1
                        else:
                            of_model.cost.append(cost)
                        if duration_ms is not None:
                            of_model.durations.append(duration_ms)
                        if time < of_model.first:
                            of_model.first = time
            elif event == "phase_transition":
                entry = phases[record["phase"]]
                entry.transition_count += 1
                if time > entry.entered_at:
                    entry.entered_at = time
            elif event == "phase_duration":
                duration_ms = record["duration_ms"]
                success = record["success"]
                if type(success) is not bool or type(duration_ms) is not int or duration_ms >> 63:
                    raise ValueError
                entry = phases[record["phase"]]
                value = (time, duration_ms, success)
                if value > entry.ended:
                    entry.ended = value
                if time > entry.ended_at:
                    entry.ended_at = time
            elif event == "heal_trigger":
                entry = phases[record["phase"]]
                entry.heal_trigger_count += 1
            elif event == "bisect_trigger":
                entry = phases[record["phase"]]
                entry.bisect_trigger_count += 1
            elif event == "heal_outcome":
                success = record["success"]
                if type(success) is not bool:
                    raise ValueError
                entry = phases[record["phase"]]
                if success:
                    entry.heal_success_count += 1
                else:
                    entry.heal_fail_count += 1
            elif event == "heal_duration":
                duration_ms = record["duration_ms"]
                if type(duration_ms) is not int or duration_ms >> 63:
                    raise ValueError
                entry = phases[record["phase"]]
                entry.heal_duration_ms += duration_ms
            elif event == "heal_loop":
                entry = phases[record["phase"]]
                entry.heal_loop_count += 1
            elif event == "bisect_outcome":
                success = record["success"]
                if type(success) is not bool:
                    raise ValueError
                entry = phases[record["phase"]]
                if success:
                    entry.bisect_success_count += 1
                else:
                    entry.bisect_fail_count += 1
            elif event == "edit_strategy":
                entry = edit_strategies[record["strategy"]]
                entry.count += 1
            elif event == "plan_outcome":
                task_id = record["task_id"]
                action = record["action"]
                description = record["description"]
                success = record["success"]
                duration_ms = record["duration_ms"]
                heals_used = record["heals_used"]
                tool_calls = record["tool_calls"]
                files = record.get("files", ())
                error_type = record.get("error_type", "")
                if (
                    not is_name(task_id)
                    or not is_text(action)
                    or not is_text(description)
                    or type(success) is not bool
                    or (files != () and not is_files(files))
                    or (error_type != "" and not is_text(error_type))
                    or not type(duration_ms) is type(heals_used) is type(tool_calls) is int
                    or (duration_ms | heals_used | tool_calls) >> 63
                ):
                    raise ValueError
                entry = plan_outcomes
                entry.add(
                    time,
                    task_id,
                    action,
                    description,
                    success,
                    duration_ms,
                    heals_used,
                    tool_calls,
                    tuple(files),
                    error_type,
                )
            elif event == "startup":
                duration_ms = record["duration_ms"]
                config_load_ms = record["config_load_ms"]
                provider_ms = record["provider_ms"]
                tui_ms = record["tui_ms"]
                if (
                    not type(duration_ms) is type(config_load_ms) is type(provider_ms) is type(tui_ms) is int
                    or (duration_ms | config_load_ms | provider_ms | tui_ms) >> 63
                ):
                    raise ValueError
                entry = startup
                entry.add(time, duration_ms, config_load_ms, provider_ms, tui_ms)
            elif event == "completion":
                phase = record["phase"]
                success = record["success"]
                timeout = record["timeout"]
                if not is_name(phase) or type(success) is not bool or type(timeout) is not bool:
                    raise ValueError
                entry = completions
                entry.add(time, phase, success, timeout)
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
    timeline.add(
        start,
        step_tool_calls,
        step_failures,
        step_interactions,
        step_tokens,
        step_unknown_costs,
        costs=step_cost,
    )
    totals.updated = updated
    return others
