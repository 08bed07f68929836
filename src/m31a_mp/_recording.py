"""The `record_*` methods.

Written by scripts/generate.py from the declarations in kinds/catalog.py: change those.
"""

from __future__ import annotations

from m31a_mp.kinds.checks import (
    MAX_SHORT_NAME_BYTES,
    EncodedNames,
    check_bool,
    check_call,
    check_int,
    check_name,
    check_price,
    check_short_name,
    is_call,
)
from m31a_mp.plan import PlanOutcome, check_outcome
from m31a_mp.usage import Usage, check_usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from m31a_mp.session.paths import Session
_INFINITE = float("inf")
_ERROR = EncodedNames("error", "", MAX_SHORT_NAME_BYTES)
_MODEL = EncodedNames("model", "", MAX_SHORT_NAME_BYTES)
_NAME = EncodedNames("name")
_PHASE = EncodedNames("phase")
_PROMPT_HASH = EncodedNames("prompt_hash", "", MAX_SHORT_NAME_BYTES)
_REASON = EncodedNames("reason")
_STRATEGY = EncodedNames("strategy")
_TOOL_CALL_TRUE = EncodedNames("name", ',"success":true,"duration_ms":')
_TOOL_CALL_FALSE = EncodedNames("name", ',"success":false,"duration_ms":')
_HEAL_OUTCOME_TRUE = EncodedNames("phase", ',"success":true')
_HEAL_OUTCOME_FALSE = EncodedNames("phase", ',"success":false')
_BISECT_OUTCOME_TRUE = EncodedNames("phase", ',"success":true')
_BISECT_OUTCOME_FALSE = EncodedNames("phase", ',"success":false')
_COMPLETION_TRUE = EncodedNames("phase", ',"success":true,"timeout":')
_COMPLETION_FALSE = EncodedNames("phase", ',"success":false,"timeout":')


class Recording:
    """A method for each kind of record.

    Attributes:
        _session: The session to record into; None makes each method a no-op.
        _put: Stages a record; takes the event, the members, perhaps the last value, and a time.
    """

    _session: Session | None
    _put: Callable[..., None]

    def record_tool_call(
        self, name: str, success: bool, duration_ms: int, error: str | None = None, call: str | None = None
    ) -> None:
        """Record a completed tool call.

        Args:
            name: The tool.
            success: Whether the call succeeded.
            duration_ms: The duration, in milliseconds.
            error: A short name of the failure: `timeout`, `exit 1`, the class of an exception.
            call: The id that the call began with, if its beginning was recorded.
        """
        if self._session is None:
            return
        if type(name) is not str:
            name = check_name("name", name)
        if success is not True and success is not False:
            success = check_bool("success", success)
        if type(duration_ms) is not int or duration_ms >> 63:
            duration_ms = check_int("duration_ms", duration_ms)
        if error is None and call is None:
            self._put("tool_call", (_TOOL_CALL_TRUE if success else _TOOL_CALL_FALSE)[name], duration_ms)
            return
        members = f"{(_TOOL_CALL_TRUE if success else _TOOL_CALL_FALSE)[name]}{duration_ms}"
        if error is not None:
            if type(error) is not str:
                error = check_short_name("error", error)
            if success:
                raise ValueError("error is of a call that failed, but success is true")
            members += _ERROR[error]
        if call is not None:
            if not is_call(call):
                call = check_call("call", call)
            members += f',"call":"{call}"'
        self._put("tool_call", members)

    def record_tool_started(self, name: str, call: str) -> None:
        """Record that a tool call begins. Measured calls and `m31a-mp run` do this themselves.

        The call is running until the record of its end has the same id.

        Args:
            name: The tool.
            call: An id that no other call ever has: at most 256 printable ASCII characters, without
                double quotes and backslashes.
        """
        if self._session is None:
            return
        if type(name) is not str:
            name = check_name("name", name)
        if not is_call(call):
            call = check_call("call", call)
        self._put("tool_started", f'{_NAME[name]},"call":"{call}"')

    def record_llm_interaction(
        self,
        phase: str,
        usage: Usage | None,
        cost: float | None,
        *,
        model: str | None = None,
        duration_ms: int | None = None,
        prompt_hash: str | None = None,
        truncated_input: bool = False,
    ) -> None:
        """Record an interaction with a language model.

        Args:
            phase: The workflow phase of the interaction.
            usage: The tokens, counted unchanged; None makes the call a no-op.
            cost: The cost: finite and not negative, in the currency of your choice; None: not known.
            model: The model.
            duration_ms: The duration, in milliseconds.
            prompt_hash: A hash of the prompt, such as from `hash_prompt`; the first of a phase stays.
            truncated_input: Whether the input was cut.
        """
        if self._session is None or usage is None:
            return
        if type(phase) is not str:
            phase = check_name("phase", phase)
        if type(usage) is not Usage:
            check_usage(usage)
        if cost is not None and (type(cost) is not float or not 0.0 <= cost < _INFINITE):
            cost = check_price("cost", cost)
        members = f'{_PHASE[phase]}{usage.members},"cost":{"null" if cost is None else repr(cost)}'
        if model is not None:
            if type(model) is not str:
                model = check_short_name("model", model)
            members += _MODEL[model]
        if duration_ms is not None:
            if type(duration_ms) is not int or duration_ms >> 63:
                duration_ms = check_int("duration_ms", duration_ms)
            members += f',"duration_ms":{duration_ms}'
        if prompt_hash is not None:
            if type(prompt_hash) is not str:
                prompt_hash = check_short_name("prompt_hash", prompt_hash)
            members += _PROMPT_HASH[prompt_hash]
        if truncated_input is not False:
            if truncated_input is not True and truncated_input is not False:
                truncated_input = check_bool("truncated_input", truncated_input)
            members += f',"truncated_input":{"true" if truncated_input else "false"}'
        self._put("llm_interaction", members)

    def record_phase_transition(self, phase: str) -> None:
        """Record that the workflow entered a phase."""
        if self._session is None:
            return
        if type(phase) is not str:
            phase = check_name("phase", phase)
        self._put("phase_transition", _PHASE[phase])

    def record_phase_duration(self, phase: str, duration_ms: int, success: bool) -> None:
        """Record how long a phase took, and its outcome. The latest call wins; durations do not add up.

        A record that is more than a day ahead of the clock at its merge gets the time of the merge.

        Args:
            phase: The phase.
            duration_ms: The duration, in milliseconds.
            success: Whether the phase succeeded.
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

    def record_heal_outcome(self, phase: str, success: bool) -> None:
        """Record how self-healing ended in a phase.

        Args:
            phase: The phase.
            success: Whether self-healing succeeded.
        """
        if self._session is None:
            return
        if type(phase) is not str:
            phase = check_name("phase", phase)
        if success is not True and success is not False:
            success = check_bool("success", success)
        self._put("heal_outcome", (_HEAL_OUTCOME_TRUE if success else _HEAL_OUTCOME_FALSE)[phase])

    def record_heal_duration(self, phase: str, duration_ms: int) -> None:
        """Record how long self-healing took in a phase. Durations add up.

        Args:
            phase: The phase.
            duration_ms: The duration, in milliseconds.
        """
        if self._session is None:
            return
        if type(phase) is not str:
            phase = check_name("phase", phase)
        if type(duration_ms) is not int or duration_ms >> 63:
            duration_ms = check_int("duration_ms", duration_ms)
        self._put("heal_duration", f'{_PHASE[phase]},"duration_ms":', duration_ms)

    def record_heal_loop(self, phase: str) -> None:
        """Record that self-healing ran in a loop in a phase."""
        if self._session is None:
            return
        if type(phase) is not str:
            phase = check_name("phase", phase)
        self._put("heal_loop", _PHASE[phase])

    def record_bisect_outcome(self, phase: str, success: bool) -> None:
        """Record how a bisection ended in a phase.

        Args:
            phase: The phase.
            success: Whether the bisection succeeded.
        """
        if self._session is None:
            return
        if type(phase) is not str:
            phase = check_name("phase", phase)
        if success is not True and success is not False:
            success = check_bool("success", success)
        self._put("bisect_outcome", (_BISECT_OUTCOME_TRUE if success else _BISECT_OUTCOME_FALSE)[phase])

    def record_edit_strategy(self, strategy: str) -> None:
        """Record that an edit strategy was used.

        Args:
            strategy: The name of the strategy.
        """
        if self._session is None:
            return
        if type(strategy) is not str:
            strategy = check_name("strategy", strategy)
        self._put("edit_strategy", _STRATEGY[strategy])

    def record_plan_outcome(self, outcome: PlanOutcome) -> None:
        """Record the outcome of one task of a plan. The latest 1,000 stay, and the total number.

        Args:
            outcome: The outcome; its timestamp is the time of the record.
        """
        if self._session is None:
            return
        if type(outcome) is not PlanOutcome:
            check_outcome(outcome)
        self._put("plan_outcome", outcome.members(), "", outcome.time())

    def record_startup(self, duration_ms: int, config_load_ms: int, provider_ms: int, tui_ms: int) -> None:
        """Record how long the program took to start. The latest call wins.

        Args:
            duration_ms: The total duration, in milliseconds.
            config_load_ms: The time to load the configuration, in milliseconds.
            provider_ms: The time to prepare the provider of language models, in milliseconds.
            tui_ms: The time to prepare the user interface, in milliseconds.
        """
        if self._session is None:
            return
        if (
            not type(duration_ms) is type(config_load_ms) is type(provider_ms) is type(tui_ms) is int
            or (duration_ms | config_load_ms | provider_ms | tui_ms) >> 63
        ):
            duration_ms = check_int("duration_ms", duration_ms)
            config_load_ms = check_int("config_load_ms", config_load_ms)
            provider_ms = check_int("provider_ms", provider_ms)
            tui_ms = check_int("tui_ms", tui_ms)
        self._put(
            "startup",
            f',"duration_ms":{duration_ms},"config_load_ms":{config_load_ms},"provider_ms":{provider_ms},"tui_ms":',
            tui_ms,
        )

    def record_completion(self, phase: str, success: bool, timeout: bool) -> None:
        """Record that a phase was completed. A phase that neither succeeded nor timed out has failed.

        The latest 1,000 stay, and the total number.

        Args:
            phase: The phase.
            success: Whether the phase succeeded.
            timeout: Whether the phase timed out.
        """
        if self._session is None:
            return
        if type(phase) is not str:
            phase = check_name("phase", phase)
        if (success is not True and success is not False) or (timeout is not True and timeout is not False):
            success = check_bool("success", success)
            timeout = check_bool("timeout", timeout)
        self._put(
            "completion",
            f"{(_COMPLETION_TRUE if success else _COMPLETION_FALSE)[phase]}{'true' if timeout else 'false'}",
        )

    def record_cancellation(self, phase: str, reason: str) -> None:
        """Record that a phase was cancelled. The latest 1,000 stay, and the total number.

        Args:
            phase: The phase.
            reason: The reason: text of 1 to 4096 bytes of UTF-8.
        """
        if self._session is None:
            return
        if (type(phase) is not str) or (type(reason) is not str):
            phase = check_name("phase", phase)
            reason = check_name("reason", reason)
        self._put("cancellation", f"{_PHASE[phase]}{_REASON[reason]}")

    def _put_tool_call(
        self, name: str, success: bool, duration_ms: int, error: str | None, call: str
    ) -> None:
        self._put(
            "tool_call",
            f'{(_TOOL_CALL_TRUE if success else _TOOL_CALL_FALSE)[name]}{duration_ms}{"" if error is None else _ERROR[error]},"call":"{call}"',
        )

    def _put_tool_started(self, name: str, call: str) -> None:
        self._put("tool_started", f'{_NAME[name]},"call":"{call}"')
