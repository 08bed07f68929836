"""A scrollable view on a terminal's alternate screen. The terminal is restored at the end."""

from __future__ import annotations

import os
import re
import signal
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Self, TypeGuard

from rich.console import Console, RenderableType
from rich.segment import Segment

from m31a_mp.cli.layout import cut
from m31a_mp.cli.program import forget_output

QUIT = "q"

_KEYS = {
    "\x1b[A": "up",
    "\x1b[B": "down",
    "\x1b[5~": "page up",
    "\x1b[6~": "page down",
    "\x1b[H": "home",
    "\x1b[1~": "home",
    "\x1b[7~": "home",
    "\x1b[F": "end",
    "\x1b[4~": "end",
    "\x1b[8~": "end",
    "k": "up",
    "j": "down",
    "q": QUIT,
    "Q": QUIT,
}
# A key is a character, or a sequence after an escape. The rest of a sequence at the end may follow later.
_TOKEN = re.compile(r"\x1b(?:\[[0-9;]{0,8}[A-Za-z~]|O[A-Za-z])|\x1b(?:\[[0-9;]{0,8}|O)?\Z|.", re.DOTALL)

_CHUNK = 1024
_LOCAL_MODES = 3  # an index in the result of tcgetattr
_CONTROL_CHARACTERS = 6

_LONG_HELP = "arrows, PgUp, PgDn, Home, End scroll"
_SHORT_HELP = "q ends"


class Keys:
    """Parses the bytes of a terminal into keys."""

    def __init__(self) -> None:
        self._rest = ""

    def feed(self, data: bytes) -> Iterator[str]:
        """Yield the known keys, and ignore others."""
        tokens = _TOKEN.findall(self._rest + data.decode("latin-1"))
        self._rest = tokens.pop() if tokens and _is_begun(tokens[-1]) else ""
        for token in tokens:
            # Some terminals send `O` instead of `[`.
            if key := _KEYS.get(token.replace("\x1bO", "\x1b[")):
                yield key


def _is_begun(token: str) -> bool:
    return token.startswith("\x1b") and not re.match(r"\x1b[\[O].*[A-Za-z~]", token)


class Screen:
    """A view that is drawn in place, and shows as many lines as the terminal has.

    While the program is in the background, it does not draw, read keys, or set the terminal's modes: the
    terminal then belongs to another program.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._keys = Keys()
        self._input = _input()
        self._modes: list[Any] | None = None  # the original modes
        self._is_shown = False
        self._top = 0
        self._lines: list[list[Segment]] = []
        self._lines_width = 0
        self._view: RenderableType = ""
        self._note = ""
        self._before: Any = None

    def __enter__(self) -> Self:
        # Without this, a read would stop the program if it was put into the background just before.
        self._before = signal.signal(signal.SIGTTIN, signal.SIG_IGN)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.leave()
        finally:
            signal.signal(signal.SIGTTIN, self._before)

    @property
    def is_mine(self) -> bool:
        """Whether the program may draw: it is in the foreground, or the terminal has no foreground group."""
        try:
            return os.tcgetpgrp(self._console.file.fileno()) == os.getpgrp()
        except OSError:
            return True

    @property
    def is_given_back(self) -> bool:
        """Whether the program returned to the foreground, and has not drawn since."""
        return not self._is_shown and self.is_mine

    @property
    def input(self) -> int | None:
        """The descriptor for keys; None if keys must not be read now."""
        is_listening = self._modes and self._is_shown
        return self._input if is_listening and _is_foreground(self._input) else None

    def show(self, view: RenderableType, note: str = "") -> None:
        """Draw a view, and a note in the last line."""
        self._view, self._note = view, note
        self._lines = []
        self.draw()

    def draw(self) -> None:
        """Draw the view again, for instance because the terminal was resized or given back."""
        if not self.is_mine:
            self._is_shown = False  # the program in the foreground has taken the screen
            return
        self._enter()
        width, height = self._console.size
        if not self._lines or self._lines_width != width:
            self._lines = self._console.render_lines(self._view, pad=False)
            self._lines_width = width
        room = self._room(height)
        self._top = max(0, min(self._top, len(self._lines) - room))
        seen = self._lines[self._top : self._top + room]
        if room < height:
            blank: list[list[Segment]] = [[] for _ in range(room - len(seen))]
            seen = [*seen, *blank, [self._footer(width, room)]]
        self._console.update_screen_lines(Segment.set_shape(seen, width, height))

    def press(self, key: str) -> None:
        """Scroll by a key. Call `draw` to show the result."""
        height = self._console.size.height
        room = self._room(height)
        end = len(self._lines)
        steps = {"up": -1, "down": 1, "page up": -room, "page down": room, "home": -end, "end": end}
        self._top = max(0, min(self._top + steps.get(key, 0), end - room))

    def read(self) -> Iterator[str]:
        """Yield the pressed keys, without waiting."""
        descriptor = self.input
        if descriptor is None:
            return  # the terminal was taken during the wait: the keys belong to another program
        try:
            data = os.read(descriptor, _CHUNK)
        except OSError:
            data = b""
        if not data and _is_foreground(descriptor):
            self._input = None  # the input is gone: every wait for it would return at once
        yield from self._keys.feed(data)

    def leave(self) -> None:
        """Restore the terminal. `draw` takes it again."""
        if not self.is_mine:
            self._is_shown = False  # the terminal was taken already: do not set its modes
            return
        if self._modes and self._input is not None and _is_foreground(self._input):
            with suppress(termios.error):
                termios.tcsetattr(self._input, termios.TCSANOW, self._modes)
        self._modes = None
        if self._is_shown:
            self._is_shown = False
            try:
                self._console.set_alt_screen(False)
                self._console.show_cursor(True)
            except OSError:
                forget_output()  # the terminal is gone, and need not be restored

    def resume(self) -> None:
        """Note that the program was stopped. The next `draw` takes the terminal again, with its modes.

        The program in the foreground may have drawn, and may have set other modes. A SIGSTOP comes untold.
        """
        self._is_shown = False

    def _listen(self) -> None:
        """Set modes in which keys arrive one by one, without echo. Ctrl-C and Ctrl-Z still send signals."""
        if not _is_foreground(self._input):
            return
        with suppress(termios.error):
            # Keep the first modes: after a SIGSTOP, the current modes may be our own.
            self._modes = self._modes or termios.tcgetattr(self._input)
            modes = [*self._modes]
            modes[_LOCAL_MODES] &= ~(termios.ICANON | termios.ECHO)
            modes[_CONTROL_CHARACTERS] = [*modes[_CONTROL_CHARACTERS]]
            modes[_CONTROL_CHARACTERS][termios.VMIN] = 1
            modes[_CONTROL_CHARACTERS][termios.VTIME] = 0
            termios.tcsetattr(self._input, termios.TCSANOW, modes)

    def _enter(self) -> None:
        if self._is_shown:
            return
        self._is_shown = True
        self._console.set_alt_screen(True)
        self._console.show_cursor(False)
        self._listen()

    def _room(self, height: int) -> int:
        """Return how many lines of the view fit."""
        has_footer = self._note or self._modes or len(self._lines) > height
        return max(1, height - 1) if has_footer else height

    def _footer(self, width: int, room: int) -> Segment:
        """Return the last line: the note, or otherwise the position and the keys, as far as they fit."""
        lines = len(self._lines)
        place = f"lines {self._top + 1}-{min(self._top + room, lines)} of {lines}" if lines > room else ""
        if self._note:
            return Segment(cut(self._note, width), self._console.get_style("red"))
        helps = [_LONG_HELP, _SHORT_HELP] if place else [_SHORT_HELP]
        parts = [part for part in (place, *(helps if self._modes else [])) if part]
        while len("; ".join(parts)) > width and len(parts) > 1:
            parts.pop(1 if len(parts) == 3 else -1)  # noqa: PLR2004  # the long help is the least important
        return Segment(cut("; ".join(parts), width), self._console.get_style("reverse"))


def _input() -> int | None:
    """Return the descriptor of standard input, if it is a terminal."""
    try:
        descriptor = sys.stdin.fileno()
        return descriptor if os.isatty(descriptor) else None
    except (AttributeError, OSError, ValueError):
        return None  # standard input is closed


def _is_foreground(descriptor: int | None) -> TypeGuard[int]:
    """Whether keys are for this program. False for a terminal that does not control this process."""
    if descriptor is None:
        return False
    try:
        return os.tcgetpgrp(descriptor) == os.getpgrp()
    except OSError:
        return False
