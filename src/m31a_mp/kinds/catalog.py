"""Every kind of record, declared once.

A record is one line of JSON: `event` is the name of the method without `record_`, `time` the nanoseconds
since the epoch, the other keys are the method's arguments. `scripts/generate.py` writes the method
(`_recording`), the classes of entries (`kinds/_entries`) and the fold (`metrics/_folding`) from the
declarations. The checks of foreign lines, the states with their merge, checkpoint and fields,
`m31a-mp record`, and the tests' strategies and expectations use the declarations at run time.

To add a kind, declare it here and run `scripts/generate.py`. Add a new type of entries to `model`.
"""

from __future__ import annotations

from m31a_mp.kinds.declaration import (
    Always,
    Effect,
    Ended,
    Ends,
    If,
    Into,
    Kind,
    Unknown,
    Value,
    Values,
    When,
    Within,
)
from m31a_mp.kinds.fields import CALL, COUNT, FILES, FLAG, NAME, PRICE, SHORT_NAME, TEXT, optional
from m31a_mp.kinds.happenings import Happenings
from m31a_mp.kinds.latest import Single
from m31a_mp.kinds.parts import (
    Counts,
    Derived,
    Earliest,
    Ever,
    Exact,
    LastTime,
    Latest,
    Mean,
    Sum,
    Timed,
    TimedCalls,
)
from m31a_mp.kinds.running import Running
from m31a_mp.kinds.tables import Table
from m31a_mp.kinds.timeline import Steps

TOOLS = Table(
    "tools",
    "name",
    calls=TimedCalls(),
    avg_duration_ms=Mean("total_duration_ms", "call_count", without="interrupted_count"),
    errors=Counts(),
    interrupted_count=Sum(),
)
LLMS = Table(
    "llms",
    "phase",
    prompt_tokens=Sum(),
    completion_tokens=Sum(),
    total_tokens=Sum(),
    cost=Exact(keep="costs"),
    interaction_count=Sum(),
    unknown_cost_count=Sum(),
    prompt_hash=Earliest(keep="hashed"),
    truncated_input=Ever(),
)
PHASES = Table(
    "phases",
    "phase",
    ended=Latest({"duration_ms": 0, "success": False}, keep="latest"),
    entered_at=LastTime(keep="entered"),
    ended_at=LastTime(keep="ended"),
    transition_count=Sum(),
    heal_trigger_count=Sum(),
    bisect_trigger_count=Sum(),
    heal_success_count=Sum(),
    heal_fail_count=Sum(),
    bisect_success_count=Sum(),
    bisect_fail_count=Sum(),
    heal_duration_ms=Sum(),
    heal_loop_count=Sum(),
)
MODELS = Table(
    "models",
    "model",
    interaction_count=Sum(),
    prompt_tokens=Sum(),
    completion_tokens=Sum(),
    total_tokens=Sum(),
    cached_tokens=Sum(),
    cache_write_tokens=Sum(),
    reasoning_tokens=Sum(),
    cost=Exact(keep="costs"),
    unknown_cost_count=Sum(),
    durations=Timed(),
)
EDIT_STRATEGIES = Table("edit_strategies", "strategy", count=Sum())
_OUTCOME = {
    "task_id": NAME,
    "action": TEXT,
    "description": TEXT,
    "success": FLAG,
    "duration_ms": COUNT,
    "heals_used": COUNT,
    "tool_calls": COUNT,
    "files": optional(FILES, ()),
    "error_type": optional(TEXT, ""),
}
PLAN_OUTCOMES = Happenings("plan_outcomes", *_OUTCOME, count="plan_outcome_count")
_STARTUP = dict.fromkeys(("duration_ms", "config_load_ms", "provider_ms", "tui_ms"), COUNT)
STARTUP = Single("startup", *_STARTUP)
COMPLETIONS = Happenings(
    "completions",
    "phase",
    "success",
    "timeout",
    count="completion_count",
    failure=Derived(lambda shown: not (shown["success"] or shown["timeout"])),
)
CANCELLATIONS = Happenings("cancellations", "phase", "reason", count="cancellation_count")
RUNNING = Running("running", "name", "call")
TIMELINE = Steps("timeline")

TABLES = {
    table.name: table
    for table in (
        TOOLS,
        LLMS,
        PHASES,
        MODELS,
        EDIT_STRATEGIES,
        PLAN_OUTCOMES,
        STARTUP,
        COMPLETIONS,
        CANCELLATIONS,
        RUNNING,
        TIMELINE,
    )
}
"""The declared tables, lists and single values, in the order of `metrics.json`."""

_TOKENS = ("prompt_tokens", "completion_tokens", "total_tokens")
_PARTS_OF_TOKENS = ("cached_tokens", "cache_write_tokens", "reasoning_tokens")
_COST: dict[str, Effect] = {"cost": Value("cost"), "unknown_cost_count": Unknown("cost")}
_DURATION = {"duration_ms": "The duration, in milliseconds."}
_PHASE = {"phase": "The phase."}

KINDS = (
    Kind(
        "tool_call",
        {
            "name": NAME,
            "success": FLAG,
            "duration_ms": COUNT,
            "error": optional(SHORT_NAME),
            "call": optional(CALL),
        },
        (
            Into(TOOLS, "name", {"calls": Ended("success", "duration_ms"), "errors": Value("error")}),
            Into(TIMELINE, "", {"tool_calls": Always(), "failures": If("success", wanted=False)}),
            Ends(RUNNING, "call"),
        ),
        "Record a completed tool call.",
        {
            "name": "The tool.",
            "success": "Whether the call succeeded.",
            **_DURATION,
            "error": "A short name of the failure: `timeout`, `exit 1`, the class of an exception.",
            "call": "The id that the call began with, if its beginning was recorded.",
        },
        usual=("call",),
        only_failed=("error",),
        command="tool",
        example="tool make --failed --duration-ms 420 --error 'exit 2'",
    ),
    Kind(
        "tool_started",
        {"name": NAME, "call": CALL},
        (RUNNING,),
        "Record that a tool call begins. Measured calls and `m31a-mp run` do this themselves.\n\n"
        "The call is running until the record of its end has the same id.",
        {
            "name": "The tool.",
            "call": "An id that no other call ever has: at most 256 printable ASCII characters, without\n"
            "        double quotes and backslashes.",
        },
        command="started",
        example="started make --call 8f2e77",
    ),
    Kind(
        "llm_interaction",
        {
            "phase": NAME,
            **dict.fromkeys(_TOKENS, COUNT),
            **dict.fromkeys(_PARTS_OF_TOKENS, optional(COUNT, 0)),
            "cost": PRICE,
            "model": optional(SHORT_NAME),
            "duration_ms": optional(COUNT),
            "prompt_hash": optional(SHORT_NAME),
            "truncated_input": optional(FLAG, False),
        },
        (
            Into(
                LLMS,
                "phase",
                {
                    **{name: Value(name) for name in _TOKENS},
                    **_COST,
                    "interaction_count": Always(),
                    "prompt_hash": Value("prompt_hash"),
                    "truncated_input": If("truncated_input"),
                },
            ),
            Into(
                MODELS,
                "model",
                {
                    "interaction_count": Always(),
                    **{name: Value(name) for name in (*_TOKENS, *_PARTS_OF_TOKENS)},
                    **_COST,
                    "durations": Value("duration_ms"),
                },
            ),
            Into(
                TIMELINE,
                "",
                {
                    "interactions": Always(),
                    "tokens": Value("total_tokens"),
                    "cost": Value("cost"),
                    "unknown_costs": Unknown("cost"),
                },
            ),
        ),
        "Record an interaction with a language model.",
        {
            "phase": "The workflow phase of the interaction.",
            "usage": "The tokens, counted unchanged; None makes the call a no-op.",
            "cost": "The cost: finite and not negative, in the currency of your choice; None: not known.",
            "model": "The model.",
            **_DURATION,
            "prompt_hash": "A hash of the prompt, such as from `hash_prompt`; the first of a phase stays.",
            "truncated_input": "Whether the input was cut.",
        },
        grouped={"usage": (*_TOKENS, *_PARTS_OF_TOKENS)},
        rules=(
            Within(("cached_tokens", "cache_write_tokens"), "prompt_tokens"),
            Within(("reasoning_tokens",), "completion_tokens"),
        ),
        usual=("model", "duration_ms"),
    ),
    Kind(
        "phase_transition",
        {"phase": NAME},
        (Into(PHASES, "phase", {"transition_count": Always(), "entered_at": When()}),),
        "Record that the workflow entered a phase.",
    ),
    Kind(
        "phase_duration",
        {"phase": NAME, "duration_ms": COUNT, "success": FLAG},
        (Into(PHASES, "phase", {"ended": Values(("duration_ms", "success")), "ended_at": When()}),),
        "Record how long a phase took, and its outcome. The latest call wins; durations do not add up.\n\n"
        "A record that is more than a day ahead of the clock at its merge gets the time of the merge.",
        {**_PHASE, **_DURATION, "success": "Whether the phase succeeded."},
    ),
    Kind(
        "heal_trigger",
        {"phase": NAME},
        (Into(PHASES, "phase", {"heal_trigger_count": Always()}),),
        "Record that self-healing was triggered in a phase.",
        command="heal",
        example="heal verify",
    ),
    Kind(
        "bisect_trigger",
        {"phase": NAME},
        (Into(PHASES, "phase", {"bisect_trigger_count": Always()}),),
        "Record that a bisection was triggered in a phase.",
        command="bisect",
        example="bisect verify",
    ),
    Kind(
        "heal_outcome",
        {"phase": NAME, "success": FLAG},
        (
            Into(
                PHASES,
                "phase",
                {"heal_success_count": If("success"), "heal_fail_count": If("success", wanted=False)},
            ),
        ),
        "Record how self-healing ended in a phase.",
        {**_PHASE, "success": "Whether self-healing succeeded."},
        command="heal-outcome",
        example="heal-outcome verify --ok",
    ),
    Kind(
        "heal_duration",
        {"phase": NAME, "duration_ms": COUNT},
        (Into(PHASES, "phase", {"heal_duration_ms": Value("duration_ms")}),),
        "Record how long self-healing took in a phase. Durations add up.",
        {**_PHASE, **_DURATION},
        command="heal-duration",
        example="heal-duration verify --duration-ms 1800",
    ),
    Kind(
        "heal_loop",
        {"phase": NAME},
        (Into(PHASES, "phase", {"heal_loop_count": Always()}),),
        "Record that self-healing ran in a loop in a phase.",
        command="heal-loop",
        example="heal-loop verify",
    ),
    Kind(
        "bisect_outcome",
        {"phase": NAME, "success": FLAG},
        (
            Into(
                PHASES,
                "phase",
                {"bisect_success_count": If("success"), "bisect_fail_count": If("success", wanted=False)},
            ),
        ),
        "Record how a bisection ended in a phase.",
        {**_PHASE, "success": "Whether the bisection succeeded."},
        command="bisect-outcome",
        example="bisect-outcome verify --failed",
    ),
    Kind(
        "edit_strategy",
        {"strategy": NAME},
        (Into(EDIT_STRATEGIES, "strategy", {"count": Always()}),),
        "Record that an edit strategy was used.",
        {"strategy": "The name of the strategy."},
        command="edit-strategy",
        example="edit-strategy search_replace",
    ),
    Kind(
        "plan_outcome",
        _OUTCOME,
        (PLAN_OUTCOMES,),
        "Record the outcome of one task of a plan. The latest 1,000 stay, and the total number.",
        {"outcome": "The outcome; its timestamp is the time of the record."},
        grouped={"outcome": tuple(_OUTCOME)},
    ),
    Kind(
        "startup",
        _STARTUP,
        (STARTUP,),
        "Record how long the program took to start. The latest call wins.",
        {
            "duration_ms": "The total duration, in milliseconds.",
            "config_load_ms": "The time to load the configuration, in milliseconds.",
            "provider_ms": "The time to prepare the provider of language models, in milliseconds.",
            "tui_ms": "The time to prepare the user interface, in milliseconds.",
        },
        command="startup",
        example="startup --duration-ms 900 --config-load-ms 40 --provider-ms 300 --tui-ms 60",
    ),
    Kind(
        "completion",
        {"phase": NAME, "success": FLAG, "timeout": FLAG},
        (COMPLETIONS,),
        "Record that a phase was completed. A phase that neither succeeded nor timed out has failed.\n\n"
        "The latest 1,000 stay, and the total number.",
        {**_PHASE, "success": "Whether the phase succeeded.", "timeout": "Whether the phase timed out."},
        command="completion",
        example="completion execute --failed --timeout",
    ),
    Kind(
        "cancellation",
        {"phase": NAME, "reason": NAME},
        (CANCELLATIONS,),
        "Record that a phase was cancelled. The latest 1,000 stay, and the total number.",
        {**_PHASE, "reason": "The reason: text of 1 to 4096 bytes of UTF-8."},
        command="cancellation",
        example="cancellation execute timeout",
    ),
)

EVENTS = {kind.event: kind for kind in KINDS}
"""Each kind by its name."""
