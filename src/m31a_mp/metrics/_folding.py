"""The fold of plain records of each kind.

Written by scripts/generate.py from the declarations in kinds/catalog.py: change those.
"""

from __future__ import annotations

from typing import Any

import orjson

from m31a_mp.kinds._entries import EditStrategiesEntry, LlmsEntry, ModelsEntry, PhasesEntry, ToolsEntry
from m31a_mp.kinds.bounded import BoundedCounts
from m31a_mp.kinds.checks import is_call, is_files, is_name, is_short_name, is_text
from m31a_mp.kinds.running import CallsUnderWay
from m31a_mp.metrics.totals import Totals

# The strings that the parser uses as keys. A look-up by the same string compares no characters.
_KEYS: list[str] = list(
    orjson.loads(
        '{"event":0,"time":0,"name":0,"success":0,"duration_ms":0,"error":0,"call":0,"phase":0,"prompt_tokens":0,"completion_tokens":0,"total_tokens":0,"cached_tokens":0,"cache_write_tokens":0,"reasoning_tokens":0,"cost":0,"model":0,"prompt_hash":0,"truncated_input":0,"strategy":0,"task_id":0,"action":0,"description":0,"heals_used":0,"tool_calls":0,"files":0,"error_type":0,"config_load_ms":0,"provider_ms":0,"tui_ms":0,"timeout":0,"reason":0}'
    )
)


def fold_plain(totals: Totals, records: list[Any], latest: int) -> list[int]:
    """Count the plainly valid records whose names have an entry. These are most records.

    Args:
        totals: The totals to add to.
        records: Parsed lines.
        latest: The latest time that a record may have, in nanoseconds since the epoch.

    Returns:
        The positions of the other records, which are not counted.
    """
    (
        event_key,
        time_key,
        name_key,
        success_key,
        duration_ms_key,
        error_key,
        call_key,
        phase_key,
        prompt_tokens_key,
        completion_tokens_key,
        total_tokens_key,
        cached_tokens_key,
        cache_write_tokens_key,
        reasoning_tokens_key,
        cost_key,
        model_key,
        prompt_hash_key,
        truncated_input_key,
        strategy_key,
        task_id_key,
        action_key,
        description_key,
        heals_used_key,
        tool_calls_key,
        files_key,
        error_type_key,
        config_load_ms_key,
        provider_ms_key,
        tui_ms_key,
        timeout_key,
        reason_key,
    ) = _KEYS
    tools: dict[str, ToolsEntry] = totals.tables["tools"].by_name
    tools_entry: ToolsEntry
    llms: dict[str, LlmsEntry] = totals.tables["llms"].by_name
    llms_entry: LlmsEntry
    phases: dict[str, PhasesEntry] = totals.tables["phases"].by_name
    phases_entry: PhasesEntry
    models: dict[str, ModelsEntry] = totals.tables["models"].by_name
    models_entry: ModelsEntry | None
    edit_strategies: dict[str, EditStrategiesEntry] = totals.tables["edit_strategies"].by_name
    edit_strategies_entry: EditStrategiesEntry
    plan_outcomes: Any = totals.tables["plan_outcomes"]
    startup: Any = totals.tables["startup"]
    completions: Any = totals.tables["completions"]
    cancellations: Any = totals.tables["cancellations"]
    running: CallsUnderWay = totals.tables["running"]
    running_calls = running.calls
    timeline: Any = totals.tables["timeline"]
    start = end = 0  # the bounds of the current step of the timeline
    step_tool_calls = step_failures = step_interactions = step_tokens = step_unknown_costs = 0
    step_cost: list[float] = []
    updated = totals.updated
    others = []
    record: dict[str, Any]
    event: str
    value: Any
    for position, parsed in enumerate(records):
        try:
            record = parsed
            event = record[event_key]
            time = record[time_key]
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
                    success = record[success_key]
                    duration_ms = record[duration_ms_key]
                    if type(success) is not bool or type(duration_ms) is not int or duration_ms >> 63:
                        raise ValueError
                    tools_entry = tools[record[name_key]]
                    step_tool_calls += 1
                    if success:
                        tools_entry.calls.waiting.append(duration_ms)
                    else:
                        tools_entry.calls.waiting.append(~duration_ms)
                        step_failures += 1
                    if time < tools_entry.first:
                        tools_entry.first = time
                elif len(record) == 6 and call_key in record:
                    success = record[success_key]
                    duration_ms = record[duration_ms_key]
                    call = record[call_key]
                    if (
                        type(success) is not bool
                        or (call not in running_calls and not is_call(call))
                        or type(duration_ms) is not int
                        or duration_ms >> 63
                    ):
                        raise ValueError
                    tools_entry = tools[record[name_key]]
                    step_tool_calls += 1
                    if success:
                        tools_entry.calls.waiting.append(duration_ms)
                    else:
                        tools_entry.calls.waiting.append(~duration_ms)
                        step_failures += 1
                    if time < tools_entry.first:
                        tools_entry.first = time
                    running.end(call)
                else:
                    success = record[success_key]
                    duration_ms = record[duration_ms_key]
                    error = record.get(error_key)
                    call = record.get(call_key)
                    if (
                        type(success) is not bool
                        or (error is not None and not is_short_name(error))
                        or (call is not None and call not in running_calls and not is_call(call))
                        or type(duration_ms) is not int
                        or duration_ms >> 63
                    ):
                        raise ValueError
                    tools_entry = tools[record[name_key]]
                    step_tool_calls += 1
                    if success:
                        tools_entry.calls.waiting.append(duration_ms)
                    else:
                        tools_entry.calls.waiting.append(~duration_ms)
                        step_failures += 1
                    if error is not None:
                        if tools_entry.errors is None:
                            tools_entry.errors = BoundedCounts()
                        tools_entry.errors.add(error)
                    if time < tools_entry.first:
                        tools_entry.first = time
                    if call is not None:
                        running.end(call)
            elif event == "tool_started":
                name = record[name_key]
                call = record[call_key]
                if (not is_name(name)) or (not is_call(call)):
                    raise ValueError
                running.add(time, name, call)
                if time < running.first:
                    running.first = time
            elif event == "llm_interaction":
                if len(record) == 7:  # nothing that may be left out is there
                    prompt_tokens = record[prompt_tokens_key]
                    completion_tokens = record[completion_tokens_key]
                    total_tokens = record[total_tokens_key]
                    cost = record[cost_key]
                    if (
                        (cost is not None and (type(cost) is not float or cost < 0))
                        or type(prompt_tokens) is not int
                        or type(completion_tokens) is not int
                        or type(total_tokens) is not int
                        or (prompt_tokens | completion_tokens | total_tokens) >> 63
                    ):
                        raise ValueError
                    llms_entry = llms[record[phase_key]]
                    llms_entry.prompt_tokens += prompt_tokens
                    llms_entry.completion_tokens += completion_tokens
                    llms_entry.total_tokens += total_tokens
                    llms_entry.interaction_count += 1
                    step_interactions += 1
                    step_tokens += total_tokens
                    if cost is None:
                        llms_entry.unknown_cost_count += 1
                        step_unknown_costs += 1
                    else:
                        llms_entry.cost.waiting.append(cost)
                        step_cost.append(cost)
                    if time < llms_entry.first:
                        llms_entry.first = time
                elif len(record) == 9 and model_key in record and duration_ms_key in record:
                    prompt_tokens = record[prompt_tokens_key]
                    completion_tokens = record[completion_tokens_key]
                    total_tokens = record[total_tokens_key]
                    cost = record[cost_key]
                    model = record[model_key]
                    duration_ms = record[duration_ms_key]
                    if (
                        (cost is not None and (type(cost) is not float or cost < 0))
                        or type(prompt_tokens) is not int
                        or type(completion_tokens) is not int
                        or type(total_tokens) is not int
                        or type(duration_ms) is not int
                        or (prompt_tokens | completion_tokens | total_tokens | duration_ms) >> 63
                    ):
                        raise ValueError
                    llms_entry = llms[record[phase_key]]
                    models_entry = models[model]
                    llms_entry.prompt_tokens += prompt_tokens
                    llms_entry.completion_tokens += completion_tokens
                    llms_entry.total_tokens += total_tokens
                    llms_entry.interaction_count += 1
                    models_entry.interaction_count += 1
                    models_entry.prompt_tokens += prompt_tokens
                    models_entry.completion_tokens += completion_tokens
                    models_entry.total_tokens += total_tokens
                    models_entry.durations.waiting.append(duration_ms)
                    step_interactions += 1
                    step_tokens += total_tokens
                    if cost is None:
                        llms_entry.unknown_cost_count += 1
                        models_entry.unknown_cost_count += 1
                        step_unknown_costs += 1
                    else:
                        llms_entry.cost.waiting.append(cost)
                        models_entry.cost.waiting.append(cost)
                        step_cost.append(cost)
                    if time < llms_entry.first:
                        llms_entry.first = time
                    if time < models_entry.first:
                        models_entry.first = time
                else:
                    prompt_tokens = record[prompt_tokens_key]
                    completion_tokens = record[completion_tokens_key]
                    total_tokens = record[total_tokens_key]
                    cached_tokens = record.get(cached_tokens_key, 0)
                    cache_write_tokens = record.get(cache_write_tokens_key, 0)
                    reasoning_tokens = record.get(reasoning_tokens_key, 0)
                    cost = record[cost_key]
                    model = record.get(model_key)
                    duration_ms = record.get(duration_ms_key)
                    prompt_hash = record.get(prompt_hash_key)
                    truncated_input = record.get(truncated_input_key, False)
                    if (
                        (cost is not None and (type(cost) is not float or cost < 0))
                        or (duration_ms is not None and (type(duration_ms) is not int or duration_ms >> 63))
                        or (prompt_hash is not None and not is_short_name(prompt_hash))
                        or type(truncated_input) is not bool
                        or type(prompt_tokens) is not int
                        or type(completion_tokens) is not int
                        or type(total_tokens) is not int
                        or type(cached_tokens) is not int
                        or type(cache_write_tokens) is not int
                        or type(reasoning_tokens) is not int
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
                    llms_entry = llms[record[phase_key]]
                    models_entry = None if model is None else models[model]
                    llms_entry.prompt_tokens += prompt_tokens
                    llms_entry.completion_tokens += completion_tokens
                    llms_entry.total_tokens += total_tokens
                    llms_entry.interaction_count += 1
                    step_interactions += 1
                    step_tokens += total_tokens
                    if cost is None:
                        llms_entry.unknown_cost_count += 1
                        step_unknown_costs += 1
                    else:
                        llms_entry.cost.waiting.append(cost)
                        step_cost.append(cost)
                    if prompt_hash is not None:
                        value = (time, prompt_hash)
                        if not llms_entry.prompt_hash or value < llms_entry.prompt_hash:
                            llms_entry.prompt_hash = value
                    if truncated_input:
                        llms_entry.truncated_input = True
                    if time < llms_entry.first:
                        llms_entry.first = time
                    if models_entry is not None:
                        models_entry.interaction_count += 1
                        models_entry.prompt_tokens += prompt_tokens
                        models_entry.completion_tokens += completion_tokens
                        models_entry.total_tokens += total_tokens
                        models_entry.cached_tokens += cached_tokens
                        models_entry.cache_write_tokens += cache_write_tokens
                        models_entry.reasoning_tokens += reasoning_tokens
                        if cost is None:
                            models_entry.unknown_cost_count += 1
                        else:
                            models_entry.cost.waiting.append(cost)
                        if duration_ms is not None:
                            models_entry.durations.waiting.append(duration_ms)
                        if time < models_entry.first:
                            models_entry.first = time
            elif event == "phase_transition":
                phases_entry = phases[record[phase_key]]
                phases_entry.transition_count += 1
                if time > phases_entry.entered_at:
                    phases_entry.entered_at = time
                if time < phases_entry.first:
                    phases_entry.first = time
            elif event == "phase_duration":
                duration_ms = record[duration_ms_key]
                success = record[success_key]
                if type(success) is not bool or type(duration_ms) is not int or duration_ms >> 63:
                    raise ValueError
                phases_entry = phases[record[phase_key]]
                value = (time, duration_ms, success)
                if value > phases_entry.ended:
                    phases_entry.ended = value
                if time > phases_entry.ended_at:
                    phases_entry.ended_at = time
                if time < phases_entry.first:
                    phases_entry.first = time
            elif event == "heal_trigger":
                phases_entry = phases[record[phase_key]]
                phases_entry.heal_trigger_count += 1
                if time < phases_entry.first:
                    phases_entry.first = time
            elif event == "bisect_trigger":
                phases_entry = phases[record[phase_key]]
                phases_entry.bisect_trigger_count += 1
                if time < phases_entry.first:
                    phases_entry.first = time
            elif event == "heal_outcome":
                success = record[success_key]
                if type(success) is not bool:
                    raise ValueError
                phases_entry = phases[record[phase_key]]
                if success:
                    phases_entry.heal_success_count += 1
                else:
                    phases_entry.heal_fail_count += 1
                if time < phases_entry.first:
                    phases_entry.first = time
            elif event == "heal_duration":
                duration_ms = record[duration_ms_key]
                if type(duration_ms) is not int or duration_ms >> 63:
                    raise ValueError
                phases_entry = phases[record[phase_key]]
                phases_entry.heal_duration_ms += duration_ms
                if time < phases_entry.first:
                    phases_entry.first = time
            elif event == "heal_loop":
                phases_entry = phases[record[phase_key]]
                phases_entry.heal_loop_count += 1
                if time < phases_entry.first:
                    phases_entry.first = time
            elif event == "bisect_outcome":
                success = record[success_key]
                if type(success) is not bool:
                    raise ValueError
                phases_entry = phases[record[phase_key]]
                if success:
                    phases_entry.bisect_success_count += 1
                else:
                    phases_entry.bisect_fail_count += 1
                if time < phases_entry.first:
                    phases_entry.first = time
            elif event == "edit_strategy":
                edit_strategies_entry = edit_strategies[record[strategy_key]]
                edit_strategies_entry.count += 1
                if time < edit_strategies_entry.first:
                    edit_strategies_entry.first = time
            elif event == "plan_outcome":
                task_id = record[task_id_key]
                action = record[action_key]
                description = record[description_key]
                success = record[success_key]
                duration_ms = record[duration_ms_key]
                heals_used = record[heals_used_key]
                tool_calls = record[tool_calls_key]
                files = record.get(files_key, ())
                error_type = record.get(error_type_key, "")
                if (
                    (not is_name(task_id))
                    or (not is_text(action))
                    or (not is_text(description))
                    or type(success) is not bool
                    or (files != () and not is_files(files))
                    or (error_type != "" and not is_text(error_type))
                    or type(duration_ms) is not int
                    or type(heals_used) is not int
                    or type(tool_calls) is not int
                    or (duration_ms | heals_used | tool_calls) >> 63
                ):
                    raise ValueError
                plan_outcomes.add(
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
                if time < plan_outcomes.first:
                    plan_outcomes.first = time
            elif event == "startup":
                duration_ms = record[duration_ms_key]
                config_load_ms = record[config_load_ms_key]
                provider_ms = record[provider_ms_key]
                tui_ms = record[tui_ms_key]
                if (
                    type(duration_ms) is not int
                    or type(config_load_ms) is not int
                    or type(provider_ms) is not int
                    or type(tui_ms) is not int
                    or (duration_ms | config_load_ms | provider_ms | tui_ms) >> 63
                ):
                    raise ValueError
                startup.add(time, duration_ms, config_load_ms, provider_ms, tui_ms)
                if time < startup.first:
                    startup.first = time
            elif event == "completion":
                phase = record[phase_key]
                success = record[success_key]
                timeout = record[timeout_key]
                if (not is_name(phase)) or type(success) is not bool or type(timeout) is not bool:
                    raise ValueError
                completions.add(time, phase, success, timeout)
                if time < completions.first:
                    completions.first = time
            elif event == "cancellation":
                phase = record[phase_key]
                reason = record[reason_key]
                if (not is_name(phase)) or (not is_name(reason)):
                    raise ValueError
                cancellations.add(time, phase, reason)
                if time < cancellations.first:
                    cancellations.first = time
            else:
                raise ValueError
        except (KeyError, TypeError, ValueError):
            others.append(position)
            continue
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
