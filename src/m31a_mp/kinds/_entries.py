"""The entries of each table: the values that records add up to.

Written by scripts/generate.py from the declarations in kinds/catalog.py: change those.
"""

from __future__ import annotations

from typing import Any

from m31a_mp.kinds.bounded import BoundedCounts
from m31a_mp.kinds.durations import Calls, Durations
from m31a_mp.kinds.exact import ExactSum


class Entry:
    """All records of one name, added up.

    Attributes:
        first: The time of the first record, in ns. Entries are sorted by this time.
    """

    __slots__ = ("first",)
    first: int


class ToolsEntry(Entry):
    """An entry of `tools`."""

    __slots__ = ("calls", "errors", "interrupted_count")
    calls: Calls
    errors: BoundedCounts | None
    interrupted_count: int


class LlmsEntry(Entry):
    """An entry of `llms`."""

    __slots__ = (
        "completion_tokens",
        "cost",
        "interaction_count",
        "prompt_hash",
        "prompt_tokens",
        "total_tokens",
        "truncated_input",
        "unknown_cost_count",
    )
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cost: ExactSum
    interaction_count: int
    unknown_cost_count: int
    prompt_hash: tuple[Any, ...]
    truncated_input: bool


class PhasesEntry(Entry):
    """An entry of `phases`."""

    __slots__ = (
        "bisect_fail_count",
        "bisect_success_count",
        "bisect_trigger_count",
        "ended",
        "ended_at",
        "entered_at",
        "heal_duration_ms",
        "heal_fail_count",
        "heal_loop_count",
        "heal_success_count",
        "heal_trigger_count",
        "transition_count",
    )
    ended: tuple[Any, ...]
    entered_at: int
    ended_at: int
    transition_count: int
    heal_trigger_count: int
    bisect_trigger_count: int
    heal_success_count: int
    heal_fail_count: int
    bisect_success_count: int
    bisect_fail_count: int
    heal_duration_ms: int
    heal_loop_count: int


class ModelsEntry(Entry):
    """An entry of `models`."""

    __slots__ = (
        "cache_write_tokens",
        "cached_tokens",
        "completion_tokens",
        "cost",
        "durations",
        "interaction_count",
        "prompt_tokens",
        "reasoning_tokens",
        "total_tokens",
        "unknown_cost_count",
    )
    interaction_count: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    cost: ExactSum
    unknown_cost_count: int
    durations: Durations


class EditStrategiesEntry(Entry):
    """An entry of `edit_strategies`."""

    __slots__ = ("count",)
    count: int


ENTRIES: dict[str, type[Entry]] = {
    "tools": ToolsEntry,
    "llms": LlmsEntry,
    "phases": PhasesEntry,
    "models": ModelsEntry,
    "edit_strategies": EditStrategiesEntry,
}
"""The class of the entries of each table, by the name of the table."""
