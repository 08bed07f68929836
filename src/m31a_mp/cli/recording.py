"""Make the one record of `m31a-mp record`.

A script pays for each record with a start of this program, so that nothing here imports click.
"""

from __future__ import annotations

import os

from m31a_mp.cli._options import EVENTS
from m31a_mp.cli.naming import DEFAULT_SESSIONS, NAME, TroubleError, path_word, recordable
from m31a_mp.plan import PlanOutcome
from m31a_mp.recorder import DURABILITY_VARIABLE, PROCESS, SESSION_VARIABLE, Recorder, attach
from m31a_mp.session.paths import Session
from m31a_mp.system.log import DROPPED, listening, reason_of
from m31a_mp.usage import Usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# The record is safe in its segment, and counted by whoever looks. Somebody at a shell need not wait long
# for a process that holds the lock of the journal, and stands still.
_LOCK_SECONDS = 0.5
_PARTS_OF_TOKENS = ("cached_tokens", "cache_write_tokens", "reasoning_tokens")


def record(kind: str, directory: str | None, values: dict[str, Any]) -> None:
    """Make one record.

    Args:
        kind: The name of the command: `tool`, `llm` and so on.
        directory: The session's directory; None or empty if none was given.
        values: The values of the command's arguments and options.

    Raises:
        TroubleError: Nothing is recorded. The message says why.
    """
    _check_outcome(kind, values)
    try:
        session = recordable(directory, lambda: _how_to_name_one(kind))
    except OSError as error:  # a relative name, but the working directory does not exist any more
        raise TroubleError(f"not recorded: {error.strerror}", "name the session by its full path") from None
    heard = _Heard()
    durability = os.environ.get(DURABILITY_VARIABLE) or PROCESS
    try:
        with listening(heard):
            recorder = attach(session.id, session.sessions_dir, durability=durability)
            try:
                _make(recorder, kind, values)
            finally:
                recorder._stop_within(_LOCK_SECONDS)  # noqa: SLF001  # for this command alone
    except ValueError as error:
        raise _wrong_usage(kind, str(error)) from None
    if heard.dropped is not None:
        raise TroubleError(f"not recorded: {heard.dropped}", _how_to_mend(kind, session))


class _Heard:
    """Takes the warnings of the library. `dropped` is the reason if the record was dropped."""

    dropped: str | None = None

    def __call__(self, message: str, arguments: tuple[object, ...]) -> None:
        if self.dropped is not None:
            return  # later warnings are consequences of the drop
        if message == DROPPED:
            self.dropped = reason_of(arguments[-1])
        else:
            from m31a_mp.cli.program import tell

            tell(message % arguments)


def _check_outcome(kind: str, values: dict[str, Any]) -> None:
    if kind == "phase":
        if (values["success"] is None) != (values["duration_ms"] is None):
            reason = "the end of a phase needs both: --ok or --failed, and --duration-ms"
            raise _wrong_usage(kind, reason)
    elif values.get("success", True) is None:
        raise _wrong_usage(kind, "how did it end? Give --ok or --failed")


def _make(recorder: Recorder, kind: str, values: dict[str, Any]) -> None:
    match kind:
        case "llm":
            parts = {name: values.pop(name) for name in _PARTS_OF_TOKENS}
            prompt, completion = values.pop("prompt_tokens"), values.pop("completion_tokens")
            total = values.pop("total_tokens")
            usage = Usage(prompt, completion, prompt + completion if total is None else total, **parts)
            recorder.record_llm_interaction(usage=usage, **values)
        case "plan-outcome":
            recorder.record_plan_outcome(PlanOutcome(**values))
        case "phase" if values["success"] is None:
            recorder.record_phase_transition(values["phase"])
        case "phase":
            recorder.record_phase_duration(**values)
        case _:
            getattr(recorder, f"record_{EVENTS[kind]}")(**values)


def _wrong_usage(kind: str, reason: str) -> TroubleError:
    return TroubleError(reason, f"{NAME} record {kind} --help", status=2)


def _how_to_name_one(kind: str) -> str:
    return f"set {SESSION_VARIABLE}, or: {NAME} record --session {DEFAULT_SESSIONS}/NAME {kind} ..."


def _how_to_mend(kind: str, session: Session) -> str:
    if os.path.isdir(session.sessions_dir):
        return f"fix that, then look: {NAME} ls {path_word(session.sessions_dir)}"
    return f"fix that, or name another session: {_how_to_name_one(kind)}"
