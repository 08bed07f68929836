"""Every kind of record, declared once.

A record is one line of JSON: `event` is the name of the method without `record_`, `time` the nanoseconds
since the epoch, the other keys are the method's arguments. From a declaration follow the method
(`_recording`) and the fold (`metrics/_folding`; `scripts/generate.py` writes both), the checks of foreign
lines, the states with their merge, checkpoint and entries, `m31a-mp record`, and the tests' strategies and
expectations.

To add a kind, declare it here and run `scripts/generate.py`. `model` needs the type of its entries if that is
new.
"""

from __future__ import annotations

from m31a_mp.kinds.declaration import Always, If, Into, Kind, Value, Values
from m31a_mp.kinds.fields import COST, COUNT, FLAG, NAME
from m31a_mp.kinds.happenings import Happenings
from m31a_mp.kinds.parts import Exact, Latest, Mean, Sum
from m31a_mp.kinds.tables import Table

TOOLS = Table(
    "tools",
    "name",
    call_count=Sum(),
    success_count=Sum(),
    fail_count=Sum(),
    total_duration_ms=Sum(),
    avg_duration_ms=Mean("total_duration_ms", "call_count"),
)
LLMS = Table(
    "llms",
    "phase",
    prompt_tokens=Sum(),
    completion_tokens=Sum(),
    total_tokens=Sum(),
    cost=Exact(keep="costs"),
    interaction_count=Sum(),
)
PHASES = Table(
    "phases",
    "phase",
    ended=Latest({"duration_ms": 0, "success": False}, keep="latest"),
    transition_count=Sum(),
    heal_trigger_count=Sum(),
    bisect_trigger_count=Sum(),
)
CANCELLATIONS = Happenings("cancellations", "phase", "reason", count="cancellation_count")

_TOKENS = ("prompt_tokens", "completion_tokens", "total_tokens")

KINDS = (
    Kind(
        "tool_call",
        {"name": NAME, "success": FLAG, "duration_ms": COUNT},
        Into(
            TOOLS,
            "name",
            {
                "call_count": Always(),
                "success_count": If("success"),
                "fail_count": If("success", wanted=False),
                "total_duration_ms": Value("duration_ms"),
            },
        ),
        "Record a completed tool call.",
        {
            "name": "The tool.",
            "success": "Whether it did what it should.",
            "duration_ms": "How long it took, in milliseconds.",
        },
        command="tool",
        example="tool make --failed --duration-ms 420",
    ),
    Kind(
        "llm_interaction",
        {"phase": NAME, **dict.fromkeys(_TOKENS, COUNT), "cost": COST},
        Into(
            LLMS,
            "phase",
            {
                **{name: Value(name) for name in _TOKENS},
                "cost": Value("cost"),
                "interaction_count": Always(),
            },
        ),
        "Record an interaction with a language model.",
        {
            "phase": "The workflow phase that it belongs to.",
            "usage": "Its tokens, taken as they are; None makes the call a no-op.",
            "cost": "What it cost: finite and not negative, in the currency of your choice.",
        },
        grouped={"usage": _TOKENS},
    ),
    Kind(
        "phase_transition",
        {"phase": NAME},
        Into(PHASES, "phase", {"transition_count": Always()}),
        "Record that the workflow entered a phase.",
    ),
    Kind(
        "phase_duration",
        {"phase": NAME, "duration_ms": COUNT, "success": FLAG},
        Into(PHASES, "phase", {"ended": Values(("duration_ms", "success"))}),
        "Record how long a phase took, and its outcome. The latest call wins; durations do not add up.\n\n"
        "A call whose clock is more than a day ahead when it is merged counts as made at that moment.",
        {
            "phase": "The phase.",
            "duration_ms": "How long it took, in milliseconds.",
            "success": "Whether it succeeded.",
        },
    ),
    Kind(
        "heal_trigger",
        {"phase": NAME},
        Into(PHASES, "phase", {"heal_trigger_count": Always()}),
        "Record that self-healing was triggered in a phase.",
        command="heal",
        example="heal verify",
    ),
    Kind(
        "bisect_trigger",
        {"phase": NAME},
        Into(PHASES, "phase", {"bisect_trigger_count": Always()}),
        "Record that a bisection was triggered in a phase.",
        command="bisect",
        example="bisect verify",
    ),
    Kind(
        "cancellation",
        {"phase": NAME, "reason": NAME},
        CANCELLATIONS,
        "Record that a phase was cancelled. Of more than 1,000 the latest stay, and how many there were.",
        {"phase": "The phase.", "reason": "Why: text of 1 to 4096 bytes of UTF-8."},
        command="cancellation",
        example="cancellation execute timeout",
    ),
)

EVENTS = {kind.event: kind for kind in KINDS}
"""Each kind by its name."""

TABLES = {table.name: table for table in dict.fromkeys(kind.table for kind in KINDS)}
"""What there is to add to, in the order of `metrics.json`."""
