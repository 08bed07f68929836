"""`m31a-mp record`: one record from any script."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from m31a_mp.cli.counts import WholeNumber
from m31a_mp.cli.naming import DEFAULT_SESSIONS, GuessingGroup, TroubleError, named, path_word, session_option
from m31a_mp.kinds.catalog import KINDS
from m31a_mp.kinds.declaration import Kind
from m31a_mp.kinds.fields import COUNT, FLAG, NAME, Field
from m31a_mp.plan import PlanOutcome
from m31a_mp.recorder import DURABILITY_VARIABLE, PROCESS, SESSION_VARIABLE, Recorder, attach
from m31a_mp.session.paths import Session
from m31a_mp.usage import Usage

Function = TypeVar("Function", bound=Callable[..., Any])

_GROUP_EPILOG = """\
\b
Examples:
  export M31A_MP_SESSION=$PWD/sessions/demo
  m31a-mp record phase plan
  m31a-mp record llm plan --prompt-tokens 900 --completion-tokens 100 \\
      --cost 0.0042
  m31a-mp record plan-outcome T-7 edit --ok --duration-ms 8300 --file a.py
  m31a-mp record tool make --failed --duration-ms 420
  m31a-mp record phase plan --ok --duration-ms 8300

Show and watch count the record at once. The session's owner, or
`m31a-mp compact`, merges it into metrics.json. A session that does not exist
is made.
"""

_COUNT = WholeNumber()
_EPILOG_COLUMNS = 78  # click indents it by two
_COST_HELP = "The cost, not negative, in the currency of your choice; not known if it is not given."
_outcome_option = click.option("--ok/--failed", "success", default=None, help="The outcome.")


def _epilog(*examples: str) -> str:
    lines = [line for example in examples for line in _in_lines(f"  m31a-mp record {example}")]
    return "\n".join(["\b", "Example:" if len(examples) == 1 else "Examples:", *lines])


def _in_lines(example: str) -> list[str]:
    """Split an example for a shell into lines that fit a terminal of 80 columns."""
    first, *options = example.split(" --")
    lines = [first]
    for option in options:
        if len(f"{lines[-1]} --{option} \\") <= _EPILOG_COLUMNS:
            lines[-1] += f" --{option}"
        else:
            lines[-1] += " \\"
            lines.append(f"      --{option}")
    return lines


def _in_short(documentation: str | None) -> str:
    """Return the first statement of a docstring, for the list of commands."""
    return re.split(r"[;.](?:\s|$)", documentation or "", maxsplit=1)[0] + "."


@click.group("record", cls=GuessingGroup, epilog=_GROUP_EPILOG, no_args_is_help=False)
@session_option
@click.pass_context
def command(ctx: click.Context, directory: str | None) -> None:
    """Record one tool call, model use, phase, or anything else that has a command."""
    ctx.obj = directory


def _recording(name: str, *examples: str, short: str = "") -> Callable[[Function], click.Command]:
    """Declare a command of the group, with its own --session."""

    def decorate(function: Function) -> click.Command:
        in_short = short or _in_short(function.__doc__)
        made = command.command(name, epilog=_epilog(*examples), short_help=in_short)
        return made(session_option(click.pass_obj(function)))

    return decorate


@_recording("llm", "llm plan --prompt-tokens 900 --completion-tokens 100 --cost 0.0042 --model opus")
@click.argument("phase")
@click.option("--prompt-tokens", type=_COUNT, required=True, help="All tokens of the prompt.")
@click.option("--completion-tokens", type=_COUNT, required=True, help="All tokens of the completion.")
@click.option("--total-tokens", type=_COUNT, help="The provider's total; by default the sum of the two.")
@click.option("--cached-tokens", type=_COUNT, default=0, help="Prompt tokens that were read from a cache.")
@click.option("--cache-write-tokens", type=_COUNT, default=0, help="Prompt tokens written to a cache.")
@click.option("--reasoning-tokens", type=_COUNT, default=0, help="Completion tokens that were reasoning.")
@click.option("--cost", type=float, help=_COST_HELP)
@click.option("--model", help="The model's name.")
@click.option("--duration-ms", type=_COUNT, help="The duration, in milliseconds.")
@click.option("--prompt-hash", help="A hash of the prompt.")
@click.option("--truncated-input", is_flag=True, help="The input was cut.")
def _llm(outer: str | None, directory: str | None, phase: str, **given: Any) -> None:
    """Record one interaction with a language model in PHASE."""
    prompt, completion = given.pop("prompt_tokens"), given.pop("completion_tokens")
    total = given.pop("total_tokens")
    parts = {name: given.pop(name) for name in ("cached_tokens", "cache_write_tokens", "reasoning_tokens")}
    with _recorder(directory or outer) as recorder:
        usage = Usage(prompt, completion, prompt + completion if total is None else total, **parts)
        recorder.record_llm_interaction(phase, usage, **given)


@_recording("plan-outcome", "plan-outcome T-7 edit 'rename the module' --ok --duration-ms 8300 --file a.py")
@click.argument("task_id")
@click.argument("action")
@click.argument("description", default="")
@_outcome_option
@click.option("--duration-ms", type=_COUNT, required=True, help="The duration, in milliseconds.")
@click.option("--heals-used", type=_COUNT, default=0, help="The number of uses of self-healing.")
@click.option("--tool-calls", type=_COUNT, default=0, help="The number of tool calls.")
@click.option("--file", "files", multiple=True, help="A file of the task; may be given several times.")
@click.option("--error-type", default="", help="The kind of the failure.")
def _plan_outcome(outer: str | None, directory: str | None, success: bool | None, **given: Any) -> None:
    """Record the outcome of the task TASK_ID of a plan."""
    with _recorder(directory or outer) as recorder:
        recorder.record_plan_outcome(PlanOutcome(success=_ended(success), **given))


@_recording(
    "phase",
    "phase plan",
    "phase plan --ok --duration-ms 8300",
    short="Record that PHASE was entered, or that it ended.",
)
@click.argument("phase")
@_outcome_option
@click.option("--duration-ms", type=_COUNT, help="The duration, in milliseconds.")
def _phase(
    outer: str | None, directory: str | None, phase: str, success: bool | None, duration_ms: int | None
) -> None:
    """Record that PHASE was entered; with an outcome and a duration, that it ended."""
    if (success is None) != (duration_ms is None):
        raise click.UsageError("the end of a phase needs both: --ok or --failed, and --duration-ms")
    with _recorder(directory or outer) as recorder:
        if success is None or duration_ms is None:
            recorder.record_phase_transition(phase)
        else:
            recorder.record_phase_duration(phase, duration_ms, success)


def _declare(kind: Kind) -> None:
    """Make the command of a kind of record from its fields."""

    def call(outer: str | None, directory: str | None, **values: Any) -> None:
        if "success" in values:
            values["success"] = _ended(values["success"])
        with _recorder(directory or outer) as recorder:
            getattr(recorder, f"record_{kind.event}")(**values)

    call.__doc__ = kind.documentation
    for name, field in reversed([*kind.fields.items()]):  # click puts the last decorator's parameter first
        call = _parameter(name, field, kind.about.get(name))(call)
    _recording(kind.command, kind.example)(call)


def _ended(success: bool | None) -> bool:
    if success is None:
        raise click.UsageError("how did it end? Give --ok or --failed")
    return success


def _parameter(name: str, field: Field, about: str | None) -> Callable[[Function], Function]:
    option = f"--{name.replace('_', '-')}"
    if field.type == NAME.type:
        return click.argument(name)
    if name == "success":
        return _outcome_option
    if field.type == FLAG.type:
        return click.option(option, name, is_flag=True, help=about)
    kind = _COUNT if field.type == COUNT.type else str
    return click.option(option, name, type=kind, required=not field.is_optional, help=about)


for _kind in KINDS:
    if _kind.command:
        _declare(_kind)


class _Drops(logging.Filter):
    """Notices the library's warning that the record was dropped, and suppresses it."""

    reason: str | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        if self.reason is None and record.msg.startswith("records are being dropped"):
            self.reason = str(record.args[-1]) if isinstance(record.args, tuple) else ""
        return self.reason is None  # later warnings are consequences of the drop


@contextmanager
def _recorder(directory: str | None) -> Iterator[Recorder]:
    """Yield a recorder. At the end, raise an error if its record is not in the session."""
    try:
        session = named(directory, _how_to_name_one)
    except OSError as error:  # a relative name, but the working directory does not exist any more
        raise TroubleError(f"not recorded: {error.strerror}", "name the session by its full path") from None
    drops, log = _Drops(), logging.getLogger("m31a_mp")
    log.addFilter(drops)
    try:
        durability = os.environ.get(DURABILITY_VARIABLE) or PROCESS
        with attach(session.id, session.sessions_dir, durability=durability) as recorder:
            yield recorder
    except ValueError as error:
        raise TroubleError(
            str(error), f"{click.get_current_context().command_path} --help", status=2
        ) from None
    finally:
        log.removeFilter(drops)
    if drops.reason is not None:
        raise TroubleError(f"not recorded: {drops.reason}", _how_to_mend(session))


def _how_to_name_one() -> str:
    kind = click.get_current_context().info_name
    return f"set {SESSION_VARIABLE}, or: m31a-mp record --session {DEFAULT_SESSIONS}/NAME {kind} ..."


def _how_to_mend(session: Session) -> str:
    if os.path.isdir(session.sessions_dir):
        return f"fix that, then look: m31a-mp ls {path_word(session.sessions_dir)}"
    return f"fix that, or name another session: {_how_to_name_one()}"
