"""The members of a line behind its event and time, of each kind of record.

Written by scripts/generate.py from the declarations in kinds/catalog.py: change those.
"""

from __future__ import annotations

from m31a_mp.kinds.checks import EncodedNames, check_bool, check_cost, check_int, check_name

_INFINITE = float("inf")
_PHASE = EncodedNames("phase")
_REASON = EncodedNames("reason")
_TOOL_CALL_TRUE = EncodedNames("name", ',"success":true,"duration_ms":')
_TOOL_CALL_FALSE = EncodedNames("name", ',"success":false,"duration_ms":')


def tool_call(name: str, success: bool, duration_ms: int) -> str:
    if type(name) is not str:
        name = check_name("name", name)
    if success is not True and success is not False:
        success = check_bool("success", success)
    if type(duration_ms) is not int or duration_ms >> 63:
        duration_ms = check_int("duration_ms", duration_ms)
    return f"{(_TOOL_CALL_TRUE if success else _TOOL_CALL_FALSE)[name]}{duration_ms}"


def usage(prompt_tokens: int, completion_tokens: int, total_tokens: int) -> str:
    return f',"prompt_tokens":{prompt_tokens},"completion_tokens":{completion_tokens},"total_tokens":{total_tokens}'


def llm_interaction(phase: str, usage: str, cost: float) -> str:
    if type(phase) is not str:
        phase = check_name("phase", phase)
    if type(cost) is not float or not 0.0 <= cost < _INFINITE:
        cost = check_cost("cost", cost)
    return f'{_PHASE[phase]}{usage},"cost":{cost!r}'


def phase_transition(phase: str) -> str:
    if type(phase) is not str:
        phase = check_name("phase", phase)
    return f"{_PHASE[phase]}"


def phase_duration(phase: str, duration_ms: int, success: bool) -> str:
    if type(phase) is not str:
        phase = check_name("phase", phase)
    if type(duration_ms) is not int or duration_ms >> 63:
        duration_ms = check_int("duration_ms", duration_ms)
    if success is not True and success is not False:
        success = check_bool("success", success)
    return f'{_PHASE[phase]},"duration_ms":{duration_ms},"success":{"true" if success else "false"}'


def heal_trigger(phase: str) -> str:
    if type(phase) is not str:
        phase = check_name("phase", phase)
    return f"{_PHASE[phase]}"


def bisect_trigger(phase: str) -> str:
    if type(phase) is not str:
        phase = check_name("phase", phase)
    return f"{_PHASE[phase]}"


def cancellation(phase: str, reason: str) -> str:
    if type(phase) is not str or type(reason) is not str:
        phase = check_name("phase", phase)
        reason = check_name("reason", reason)
    return f"{_PHASE[phase]}{_REASON[reason]}"
