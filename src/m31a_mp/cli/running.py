"""Run the command of `m31a-mp run`.

The command waits for the start of this program, so that nothing here imports click.
"""

from __future__ import annotations

from m31a_mp.cli.keeper import end_as
from m31a_mp.cli.naming import DEFAULT_SESSIONS, NAME, TroubleError, fresh, recordable
from m31a_mp.cli.wrapped import run_in_session, tell
from m31a_mp.kinds.checks import check_name
from m31a_mp.recorder import Recorder

_NAMED = f"{NAME} run --session {DEFAULT_SESSIONS}/NAME -- COMMAND"


def run(command_line: list[str], *, directory: str | None, tool: str | None, phase: str | None) -> int:
    """Run a command inside a session, and record the call.

    Args:
        command_line: The command and its arguments.
        directory: The session's directory; None: a new session.
        tool: The name of the recorded call; None: the command's name.
        phase: The phase that the command carries out; None without one.

    Returns:
        The exit status of this program.

    Raises:
        TroubleError: A name is not valid. Nothing was run.
        OSError: The system refuses another process. Nothing was run.
    """
    _check(command_line[0], tool, phase)
    status = run_in_session(
        command_line,
        lambda: fresh() if directory is None else recordable(directory, lambda: _NAMED),
        say=_say,
        opened=_say_where if directory is None else None,
        tool=tool,
        phase=phase,
    )
    return end_as(status)


def _check(command: str, tool: str | None, phase: str | None) -> None:
    try:
        for option, name in {"--tool": tool, "--phase": phase}.items():
            if name is not None:
                check_name(option, name)
        if not command:
            raise ValueError("the COMMAND is empty")
    except ValueError as error:
        raise TroubleError(str(error), f"{NAME} run --help", status=2) from None


def _say(message: str) -> None:
    tell(NAME, message)


def _say_where(recorder: Recorder) -> None:
    _say(f"recording into {DEFAULT_SESSIONS}/{recorder.session_id}")
