"""`m31a-mp watch`: show a session live."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from errno import EIO
from functools import partial

import click
from rich.console import Console

from m31a_mp.cli import SIGNAL_BASE, tables
from m31a_mp.cli.arguments import interval_option, json_option, session_argument
from m31a_mp.cli.counts import WholeNumber
from m31a_mp.cli.entries import Choice
from m31a_mp.cli.found import Found
from m31a_mp.cli.naming import existing_or_latest
from m31a_mp.cli.options import choice_options
from m31a_mp.cli.program import forget_output
from m31a_mp.cli.screen import QUIT, Screen
from m31a_mp.cli.stores import from_option, gathered_in, telling_what_is_shared
from m31a_mp.cli.waiting import SignalPipe, stop_until_continued
from m31a_mp.errors import MetricsError
from m31a_mp.inspection.snapshot import Looks
from m31a_mp.inspection.status import status
from m31a_mp.system.log import shown

_EPILOG = """\
\b
Examples:
  m31a-mp watch sessions/demo
  m31a-mp watch --sort total --top 10 sessions/demo
  m31a-mp watch --interval 5 --count 12 --json sessions/demo
  m31a-mp watch demo --from redis://cache

On a terminal, watch draws in place: arrow keys, PgUp, PgDn, Home, End, j and k
scroll, q or Ctrl-C ends it and restores the terminal. In the background it
waits for the terminal. Elsewhere it prints one snapshot after the other, with
--json one per line. Recording processes are never stopped or slowed.
"""

Look = Callable[[], Found]

_ENDS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
_AWAITED = _ENDS | {signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH}

# The interval of checks for the foreground while in the background: no signal announces the change.
_BACKGROUND_SECONDS = 0.2

# The events besides signals.
_LOOK = 0
_INPUT = -1
_GIVEN_BACK = -2


@click.command("watch", epilog=_EPILOG)
@session_argument
@from_option
@interval_option("Time between snapshots.")
@click.option("--count", type=WholeNumber(1), metavar="N", help="End after N snapshots.")
@choice_options
@json_option
def command(  # noqa: PLR0913  # most of them by name
    directory: str | None,
    interval: float,
    count: int | None,
    choice: Choice,
    *,
    url: str | None,
    as_json: bool,
) -> int:
    """Show a session live, at a steady rate, until q or Ctrl-C."""
    look = _look_from(directory, url) if url else _look_at(directory)
    found = look()  # an error in the first snapshot ends the program
    with SignalPipe(_AWAITED) as pipe:
        console = tables.console()
        if as_json or not console.is_terminal or console.is_dumb_terminal:
            emit = partial(_print_one, console=console, choice=choice, as_json=as_json)
            return _print(look, found, _events(pipe, interval, count), emit)
        try:
            with Screen(console) as screen:
                return _draw(look, found, _events(pipe, interval, count, screen), screen, choice)
        except OSError as error:
            if error.errno != EIO:
                raise
            forget_output()
            return _status_of(signal.SIGHUP)  # the terminal is gone; SIGHUP will follow


def _look_at(directory: str | None) -> Look:
    session = existing_or_latest(directory, "m31a-mp watch")
    looks = Looks(session)

    def look() -> Found:
        found = status(session, looks)
        return Found(found.directory, found.metrics, found)

    return look


def _look_from(named: str | None, url: str) -> Look:
    session_id, gathering = gathered_in(named, url)

    def look() -> Found:
        with telling_what_is_shared(url):
            return Found(session_id, gathering.look(), store=gathering.url)

    return look


def _events(
    pipe: SignalPipe, interval: float, count: int | None, screen: Screen | None = None
) -> Iterator[int]:
    """Yield signals and other events. End after `count` snapshots."""
    due = time.monotonic()
    looks = 1
    while count is None or looks < count:
        due = max(due + interval, time.monotonic())  # after a slow snapshot, do not catch up
        is_first = True
        while (left := due - time.monotonic()) > 0 or is_first:  # at least once, for q and Ctrl-C
            is_first = False
            if screen and not screen.is_mine:
                left = min(left, _BACKGROUND_SECONDS)
            numbers, has_input = pipe.wait(left, screen.input if screen else None)
            yield from sorted(numbers)  # signals that end the program come before those that draw
            # With a signal, the input may be that of a shell that had the terminal meanwhile: look again.
            if has_input and not numbers:
                yield _INPUT
            if screen and screen.is_given_back:
                yield _GIVEN_BACK
        looks += 1
        yield _LOOK


def _print(look: Look, found: Found, events: Iterator[int], emit: Callable[[Found], None]) -> int:
    """Print one snapshot after the other."""
    emit(found)
    for event in events:
        if event in _ENDS:
            return _status_of(event)
        if event == signal.SIGTSTP:
            stop_until_continued()
        if event == _LOOK:
            emit(look())
    return 0


def _print_one(found: Found, *, console: Console, choice: Choice, as_json: bool) -> None:
    if as_json:
        tables.print_json(found.json(), in_one_line=True)
    else:
        console.print(found.view(choice))
        console.print()
        console.file.flush()


def _draw(look: Look, found: Found, events: Iterator[int], screen: Screen, choice: Choice) -> int:
    """Draw snapshots in place, on the terminal's alternate screen."""
    screen.show(found.view(choice))
    for event in events:
        if event in _ENDS:
            return _status_of(event)
        if event == _LOOK:
            note = ""
            try:
                found = look()
            except (MetricsError, OSError) as error:
                # Keep the last snapshot: the error may be temporary.
                note = f"not to be read now: {shown(str(error))}"
            screen.show(found.view(choice), note)
            continue
        if event == _INPUT:
            for key in screen.read():
                if key == QUIT:
                    return 0
                screen.press(key)
        if event == signal.SIGTSTP:
            screen.leave()
            stop_until_continued()
        if event == signal.SIGCONT:
            screen.resume()
        screen.draw()
    return 0


def _status_of(signal_number: int) -> int:
    """Return the exit status for a signal: 0 for Ctrl-C, the regular end; otherwise 128+N."""
    return 0 if signal_number == signal.SIGINT else SIGNAL_BASE + signal_number
