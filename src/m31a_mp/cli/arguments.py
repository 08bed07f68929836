"""What several commands have in common: the session, `--json`, completion, and mistyped names."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from m31a_mp.cli.naming import DEFAULT_SESSIONS, sessions_at
from m31a_mp.recorder import SESSION_VARIABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

Function = TypeVar("Function", bound=Callable[..., Any])


class GuessingGroup(click.Group):
    """A group of commands that suggests the nearest command for a mistyped name."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if ctx.resilient_parsing or args[0] in known or args[0].startswith("-"):
            return super().resolve_command(ctx, args)
        import difflib

        near = difflib.get_close_matches(args[0], known, n=1)
        guess = f"; did you mean {near[0]}?" if near else ""
        raise click.UsageError(f"there is no command {args[0]!r}{guess}", ctx)


def complete_session(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Complete a session from its beginning. Without a match, the shell completes files.

    Both at once are not possible: the shell's completion of files replaces the given items.
    """
    parent, start = os.path.split(incomplete)
    places = [parent] + (
        [os.path.join(parent, DEFAULT_SESSIONS)] if DEFAULT_SESSIONS.startswith(start) else []
    )
    names = [
        os.path.join(place, session.id)
        for place in places
        for session in sessions_at(os.path.expanduser(place) or os.curdir)
        if session.id.isprintable()  # the shell reads one item per line
    ]
    found = [_item(name) for name in names if name.startswith(incomplete)]
    return found or complete_file(_, __, incomplete)


def complete_file(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Let the shell complete files."""
    return [_item(incomplete, "file")]


def complete_directory(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Let the shell complete directories."""
    return [_item(incomplete, "dir")]


def _item(value: str, kind: str = "plain") -> CompletionItem[str]:
    from click.shell_completion import CompletionItem

    return CompletionItem(value, type=kind)


def session_argument(function: Function) -> Function:
    """Add the session as a positional argument, for commands that inspect."""
    return click.argument(
        "directory",
        metavar="[SESSION]",
        envvar=SESSION_VARIABLE,
        required=False,
        shell_complete=complete_session,
    )(function)


def sessions_argument(function: Function) -> Function:
    """Add any number of sessions as positional arguments."""
    return click.argument(
        "directories",
        metavar="[SESSION]...",
        nargs=-1,
        required=False,
        shell_complete=complete_session,
    )(function)


def session_option(
    function: Function, variable: str | None = SESSION_VARIABLE, otherwise: str = ""
) -> Function:
    """Add the session as an option, for commands that record.

    Args:
        function: The command.
        variable: The environment variable that names the session if the option does not.
        otherwise: What the session is without both, for the help.
    """
    return click.option(
        "--session",
        "directory",
        metavar="DIR",
        envvar=variable,
        shell_complete=complete_session,
        help="The session's directory; made if it does not exist. "
        f"By default ${SESSION_VARIABLE}{otherwise}.",
    )(function)


def interval_option(text: str) -> Callable[[Function], Function]:
    """Return the option for seconds between two looks or merges."""
    return click.option(
        "--interval",
        type=click.FloatRange(0.05, 86400),
        default=1.0,
        show_default=True,
        metavar="SECONDS",
        help=text,
    )


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
