"""`m31a-mp record`: the options and the help of its commands. `recording` makes the record.

Change an option, then run `scripts/generate.py`: `quick` reads the options in `_options.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import click

from m31a_mp.cli import recording
from m31a_mp.cli.arguments import GuessingGroup, session_option
from m31a_mp.cli.counts import WholeNumber
from m31a_mp.kinds.catalog import KINDS
from m31a_mp.kinds.declaration import Kind
from m31a_mp.kinds.fields import COUNT, FLAG, NAME, Field

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
# `recording` requires it: the message of click would name only --ok.
_outcome_option = click.option("--ok/--failed", "success", default=None, help="The outcome.  [required]")


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
    """Declare a command of the group, with its own --session. The function has only the options."""

    def decorate(function: Function) -> click.Command:
        @click.pass_obj
        @wraps(function)
        def record(outer: str | None, /, directory: str | None, **values: Any) -> None:
            recording.record(name, directory or outer, values)

        in_short = short or _in_short(function.__doc__)
        made = command.command(name, epilog=_epilog(*examples), short_help=in_short)
        # The group reads the variable: an option before the command is stronger, too.
        return made(session_option(record, variable=None))

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
def _llm(**_: Any) -> None:
    """Record one interaction with a language model in PHASE."""


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
def _plan_outcome(**_: Any) -> None:
    """Record the outcome of the task TASK_ID of a plan."""


@_recording(
    "phase",
    "phase plan",
    "phase plan --ok --duration-ms 8300",
    short="Record that PHASE was entered, or that it ended.",
)
@click.argument("phase")
@click.option("--ok/--failed", "success", default=None, help="The outcome, if the phase ended.")
@click.option("--duration-ms", type=_COUNT, help="The duration, in milliseconds, if the phase ended.")
def _phase(**_: Any) -> None:
    """Record that PHASE was entered; with an outcome and a duration, that it ended."""


def _declare(kind: Kind) -> None:
    """Make the command of a kind of record from its fields."""

    def call(**_: Any) -> None:
        pass

    call.__doc__ = kind.documentation
    for name, field in reversed([*kind.fields.items()]):  # click puts the last decorator's parameter first
        call = _parameter(name, field, kind.about.get(name))(call)
    _recording(kind.command, kind.example)(call)


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
