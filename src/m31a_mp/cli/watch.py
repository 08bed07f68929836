"""`m31a-mp watch`: a session live."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import click
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from m31a_mp.child import SIGNAL_BASE
from m31a_mp.cli import tables
from m31a_mp.cli.naming import existing, json_option, session_argument, shown
from m31a_mp.errors import MetricsError
from m31a_mp.session import Session
from m31a_mp.status import Status, status

_EPILOG = """\
\b
Examples:
  m31a-mp watch sessions/demo
  m31a-mp watch --interval 5 --count 12 --json sessions/demo

On a terminal it draws in place; Ctrl-C ends it, and the terminal is as it was.
Elsewhere it prints one snapshot after the other, with --json one a line. Who
records is never stopped or slowed.
"""

_ENDS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
_AWAITED = _ENDS | {signal.SIGTSTP, signal.SIGWINCH}


@click.command("watch", epilog=_EPILOG)
@session_argument
@click.option(
    "--interval",
    type=click.FloatRange(0.05, 86400),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How often to look.",
)
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after so many looks.")
@json_option
def command(directory: str | None, interval: float, count: int | None, as_json: bool) -> int:
    """Show a session live, at a steady rate, until Ctrl-C."""
    session = existing(directory, "m31a-mp watch")
    found = status(session)  # what is wrong from the start is an error
    # Held back, signals come between two drawings: there is nothing half done to clean up.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    try:
        screen = tables.console()
        ticks = _ticks(interval, count)
        if as_json or not screen.is_terminal or screen.is_dumb_terminal:
            return _print(session, found, ticks, screen, as_json=as_json)
        return _draw(session, found, ticks, screen)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ticks(interval: float, count: int | None) -> Iterator[int]:
    """Yields the signal that came, or 0 when it is time to look again; ends after `count` looks."""
    due = time.monotonic()
    looks = 1
    while count is None or looks < count:
        due = max(due + interval, time.monotonic())  # a slow look does not have others catch up
        while (left := due - time.monotonic()) > 0:
            if received := signal.sigtimedwait(_AWAITED, left):
                yield received.si_signo
        looks += 1
        yield 0


def _print(session: Session, found: Status, ticks: Iterator[int], screen: Console, *, as_json: bool) -> int:
    """One snapshot after the other."""
    _print_one(found, screen, as_json=as_json)
    for signal_number in ticks:
        if signal_number in _ENDS:
            return _status_of(signal_number)
        if signal_number == signal.SIGTSTP:
            _stop()
        if not signal_number:
            _print_one(status(session), screen, as_json=as_json)
    return 0


def _print_one(found: Status, screen: Console, *, as_json: bool) -> None:
    if as_json:
        tables.print_json(tables.status_json(found), in_one_line=True)
    else:
        screen.print(tables.status_view(found))
        screen.print()
        screen.file.flush()


def _draw(session: Session, found: Status, ticks: Iterator[int], screen: Console) -> int:
    """In place, on the terminal's other screen."""
    with Live(tables.status_view(found), console=screen, screen=True, auto_refresh=False) as live:
        for signal_number in ticks:
            if signal_number in _ENDS:
                return _status_of(signal_number)
            if signal_number == signal.SIGTSTP:
                live.stop()
                _stop()
                live.start()
            try:
                found = status(session)
            except (MetricsError, OSError) as error:
                # It may pass, and what was seen last is better than nothing.
                note = Text(f"not to be read now: {shown(str(error))}", "red")
                live.update(Group(note, tables.status_view(found)), refresh=True)
            else:
                live.update(tables.status_view(found), refresh=True)
    return 0


def _stop() -> None:
    """Stop as Ctrl-Z does, until somebody continues this process."""
    signal.raise_signal(signal.SIGTSTP)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTSTP})  # here it stops
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTSTP})


def _status_of(signal_number: int) -> int:
    """Ctrl-C is how one ends it; the others are not."""
    return 0 if signal_number == signal.SIGINT else SIGNAL_BASE + signal_number
