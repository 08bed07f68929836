"""The counters of a session, declared once for all exports.

A counter never decreases while its session lives. The rows of one counter are disjoint: their sum counts
nothing twice. The metrics have model use by phase and by model, but not by both: these are counters of
their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from m31a_mp.model import LLMMetric, ModelMetric, SessionMetrics

Row = tuple[tuple[str, ...], float]
"""The values of the labels, and the count."""


@dataclass(frozen=True, slots=True)
class Counter:
    """A declared counter.

    Attributes:
        name: Words with dots between them, without prefix and unit.
        help: What is counted.
        unit: The unit by UCUM: `{call}`, `s`.
        labels: The names of the labels. The first one has the names that people chose: tools, phases, models.
        rows: Returns the rows of a session.
    """

    name: str
    help: str
    unit: str
    labels: tuple[str, ...]
    rows: Callable[[SessionMetrics], Iterator[Row]]


def _tool_calls(metrics: SessionMetrics) -> Iterator[Row]:
    for tool in metrics.tools:
        yield (tool.name, "success"), tool.success_count
        yield (tool.name, "failure"), tool.fail_count


def _phase_tokens(metrics: SessionMetrics) -> Iterator[Row]:
    for llm in metrics.llms:
        yield (llm.phase, "input"), llm.prompt_tokens
        yield (llm.phase, "output"), llm.completion_tokens


def _model_tokens(metrics: SessionMetrics) -> Iterator[Row]:
    for model in metrics.models:
        cached = model.cached_tokens + model.cache_write_tokens
        yield (model.model, "input"), max(0, model.prompt_tokens - cached)
        yield (model.model, "cache_read"), model.cached_tokens
        yield (model.model, "cache_write"), model.cache_write_tokens
        yield (model.model, "output"), model.completion_tokens


def _is_priced(use: LLMMetric | ModelMetric) -> bool:
    # Without this, a cost that nobody knows would be shown as a cost of 0.
    return use.interaction_count > use.unknown_cost_count


def _outcomes(phase: str, successes: int, failures: int) -> Iterator[Row]:
    yield (phase, "success"), successes
    yield (phase, "failure"), failures


COUNTERS = (
    Counter(
        "tool.calls",
        "Calls of a tool that ended, or whose process died in them, which is a failure.",
        "{call}",
        ("tool", "outcome"),
        _tool_calls,
    ),
    Counter(
        "tool.calls.interrupted",
        "Calls of a tool whose process died in them. They are also in the failures of tool calls.",
        "{call}",
        ("tool",),
        lambda metrics: (((tool.name,), tool.interrupted_count) for tool in metrics.tools),
    ),
    Counter(
        "llm.interactions",
        "Interactions with language models, by phase.",
        "{interaction}",
        ("phase",),
        lambda metrics: (((llm.phase,), llm.interaction_count) for llm in metrics.llms),
    ),
    Counter(
        "llm.tokens",
        "Tokens by phase: input (cached ones included) and output (reasoning included).",
        "{token}",
        ("phase", "type"),
        _phase_tokens,
    ),
    Counter(
        "llm.cost",
        "Known costs of interactions, by phase. A lower bound if there are unpriced interactions.",
        "{cost}",
        ("phase",),
        lambda metrics: (((llm.phase,), llm.cost) for llm in metrics.llms if _is_priced(llm)),
    ),
    Counter(
        "llm.unpriced_interactions",
        "Interactions whose cost is not known, by phase.",
        "{interaction}",
        ("phase",),
        lambda metrics: (((llm.phase,), llm.unknown_cost_count) for llm in metrics.llms),
    ),
    Counter(
        "model.interactions",
        "Interactions with a language model that was named.",
        "{interaction}",
        ("model",),
        lambda metrics: (((model.model,), model.interaction_count) for model in metrics.models),
    ),
    Counter(
        "model.tokens",
        "Tokens by model: input without cached ones, cache_read, cache_write, output (reasoning included).",
        "{token}",
        ("model", "type"),
        _model_tokens,
    ),
    Counter(
        "model.reasoning_tokens",
        "Output tokens that were reasoning, by model. They are also in the output of model tokens.",
        "{token}",
        ("model",),
        lambda metrics: (((model.model,), model.reasoning_tokens) for model in metrics.models),
    ),
    Counter(
        "model.cost",
        "Known costs of interactions, by model. A lower bound if there are unpriced interactions.",
        "{cost}",
        ("model",),
        lambda metrics: (((model.model,), model.cost) for model in metrics.models if _is_priced(model)),
    ),
    Counter(
        "model.unpriced_interactions",
        "Interactions whose cost is not known, by model.",
        "{interaction}",
        ("model",),
        lambda metrics: (((model.model,), model.unknown_cost_count) for model in metrics.models),
    ),
    Counter(
        "phase.transitions",
        "Times that a phase was entered.",
        "{transition}",
        ("phase",),
        lambda metrics: (((phase.phase,), phase.transition_count) for phase in metrics.phases),
    ),
    Counter(
        "heal.triggers",
        "Times that self-healing was triggered.",
        "{trigger}",
        ("phase",),
        lambda metrics: (((phase.phase,), phase.heal_trigger_count) for phase in metrics.phases),
    ),
    Counter(
        "heal.outcomes",
        "Outcomes of self-healing.",
        "{outcome}",
        ("phase", "outcome"),
        lambda metrics: (
            row
            for phase in metrics.phases
            for row in _outcomes(phase.phase, phase.heal_success_count, phase.heal_fail_count)
        ),
    ),
    Counter(
        "heal.loops",
        "Times that self-healing ran in a loop.",
        "{loop}",
        ("phase",),
        lambda metrics: (((phase.phase,), phase.heal_loop_count) for phase in metrics.phases),
    ),
    Counter(
        "heal.duration",
        "Time that self-healing took.",
        "s",
        ("phase",),
        lambda metrics: (((phase.phase,), phase.heal_duration_ms / 1000) for phase in metrics.phases),
    ),
    Counter(
        "bisect.triggers",
        "Times that a bisection was triggered.",
        "{trigger}",
        ("phase",),
        lambda metrics: (((phase.phase,), phase.bisect_trigger_count) for phase in metrics.phases),
    ),
    Counter(
        "bisect.outcomes",
        "Outcomes of bisections.",
        "{outcome}",
        ("phase", "outcome"),
        lambda metrics: (
            row
            for phase in metrics.phases
            for row in _outcomes(phase.phase, phase.bisect_success_count, phase.bisect_fail_count)
        ),
    ),
    Counter(
        "records.dropped",
        "Records that found no room, by reason.",
        "{record}",
        ("reason",),
        lambda metrics: (((reason,), count) for reason, count in metrics.dropped.items()),
    ),
    Counter(
        "records.rejected",
        "Pieces of damaged or invalid input that were set aside.",
        "{piece}",
        (),
        lambda metrics: iter([((), metrics.rejected)]),
    ),
)
