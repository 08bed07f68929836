"""The `record_*` methods.

Written by scripts/generate.py from the declarations in kinds/catalog.py: change those.
"""

from __future__ import annotations

from m31a_mp.kinds.checks import EncodedNames, check_bool, check_cost, check_int, check_name
from m31a_mp.usage import Usage, check_usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from m31a_mp.session.paths import Session
_INFINITE = float("inf")
_PHASE = EncodedNames("phase")
_REASON = EncodedNames("reason")
_TOOL_CALL_TRUE = EncodedNames("name", ',"success":true,"duration_ms":')
_TOOL_CALL_FALSE = EncodedNames("name", ',"success":false,"duration_ms":')


class Recording:
    """A method for each kind of record.

    Attributes:
        _session: Where to record; None: nowhere, and each method is a no-op.
        _put: Stages a record: takes its event, its members, and perhaps the last value.
    """

    _session: Session | None
    _put: Callable[..., None]

    def record_tool_call(self, name: str, success: bool, duration_ms: int) -> None:
        """Record a completed tool call.

        Args:
            name: The tool.
            success: Whether it did what it should.
            duration_ms: How long it took, in milliseconds.
        """
        if self._session is None:
            return
        if type(name) is not str:
            name = check_name("name", name)
        if success is not True and success is not False:
            success = check_bool("success", success)
        if type(duration_ms) is not int or duration_ms >> 63:
            duration_ms = check_int("duration_ms", duration_ms)
        self._put("tool_call", (_TOOL_CALL_TRUE if success else _TOOL_CALL_FALSE)[name], duration_ms)

    def record_llm_interaction(self, phase: str, usage: Usage | None, cost: float) -> None:
        """Record an interaction with a language model.

        Args:
            phase: The workflow phase that it belongs to.
            usage: Its tokens, taken as they are; None makes the call a no-op.
            cost: What it cost: finite and not negative, in the currency of your choice.
        """
        if self._session is None or usage is None:
            return
        if type(phase) is not str:
            phase = check_name("phase", phase)
        if type(usage) is not Usage:
            check_usage(usage)
        if type(cost) is not float or not 0.0 <= cost < _INFINITE:
            cost = check_cost("cost", cost)
        self._put("llm_interaction", f'{_PHASE[phase]}{usage.members},"cost":{cost!r}')

    def record_phase_transition(self, phase: str) -> None:
        """Record that the workflow entered a phase."""
        if self._session is None:
            return
        if type(phase) is not str:
            phase = check_name("phase", phase)
        self._put("phase_transition", _PHASE[phase])

    def record_phase_duration(self, phase: str, duration_ms: int, success: bool) -> None:
        """Record how long a phase took, and its outcome. The latest call wins; durations do not add up.

        A call whose clock is more than a day ahead when it is merged counts as made at that moment.

        Args:
            phase: The phase.
            duration_ms: How long it took, in milliseconds.
            success: Whether it succeeded.
        """
        if self._session is None:
            return
        if type(phase) is not str:
            phase = check_name("phase", phase)
        if type(duration_ms) is not int or duration_ms >> 63:
            duration_ms = check_int("duration_ms", duration_ms)
        if success is not True and success is not False:
            success = check_bool("success", success)
        self._put(
            "phase_duration",
            f'{_PHASE[phase]},"duration_ms":{duration_ms},"success":{"true" if success else "false"}',
        )

    def record_heal_trigger(self, phase: str) -> None:
        """Record that self-healing was triggered in a phase."""
        if self._session is None:
            return
        if type(phase) is not str:
            phase = check_name("phase", phase)
        self._put("heal_trigger", _PHASE[phase])

    def record_bisect_trigger(self, phase: str) -> None:
        """Record that a bisection was triggered in a phase."""
        if self._session is None:
            return
        if type(phase) is not str:
            phase = check_name("phase", phase)
        self._put("bisect_trigger", _PHASE[phase])

    def record_cancellation(self, phase: str, reason: str) -> None:
        """Record that a phase was cancelled. Of more than 1,000 the latest stay, and how many there were.

        Args:
            phase: The phase.
            reason: Why: text of 1 to 4096 bytes of UTF-8.
        """
        if self._session is None:
            return
        if type(phase) is not str or type(reason) is not str:
            phase = check_name("phase", phase)
            reason = check_name("reason", reason)
        self._put("cancellation", f"{_PHASE[phase]}{_REASON[reason]}")
