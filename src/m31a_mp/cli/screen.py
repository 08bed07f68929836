"""A terminal's other screen, on which one scrolls, and which is left as it was found."""

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
# A key is a character, or a sequence behind an escape; of one at the end the rest may be still to come.
_TOKEN = re.compile(r"\x1b(?:\[[0-9;]{0,8}[A-Za-z~]|O[A-Za-z])|\x1b(?:\[[0-9;]{0,8}|O)?\Z|.", re.DOTALL)

_CHUNK = 1024
_LOCAL_MODES = 3  # in what tcgetattr returns
_CONTROL_CHARACTERS = 6

_LONG_HELP = "arrows, PgUp, PgDn, Home, End scroll"
_SHORT_HELP = "q ends"


class Keys:
    """The keys that are pressed, made of the bytes that a terminal sends."""

    def __init__(self) -> None:
        self._rest = ""

    def feed(self, data: bytes) -> Iterator[str]:
        """Yield the keys that are known; the others mean nothing."""
        tokens = _TOKEN.findall(self._rest + data.decode("latin-1"))
        self._rest = tokens.pop() if tokens and _is_begun(tokens[-1]) else ""
        for token in tokens:
            # Some terminals write `O` where others write `[`.
            if key := _KEYS.get(token.replace("\x1bO", "\x1b[")):
                yield key


def _is_begun(token: str) -> bool:
    return token.startswith("\x1b") and not re.match(r"\x1b[\[O].*[A-Za-z~]", token)


class Screen:
    """A view that is drawn in place, and of which as much is seen as there are lines.

    While the program is in the background it neither draws, nor reads keys, nor touches the terminal's modes:
    all of that belongs to somebody else then.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._keys = Keys()
        self._input = _input()
        self._modes: list[Any] | None = None  # as they were found
        self._is_shown = False
        self._top = 0
        self._lines: list[list[Segment]] = []
        self._lines_width = 0
        self._view: RenderableType = ""
        self._note = ""
        self._before: Any = None

    def __enter__(self) -> Self:
        # Put into the background between two steps, the program would be stopped by its next read.
        self._before = signal.signal(signal.SIGTTIN, signal.SIG_IGN)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.leave()
        finally:
            signal.signal(signal.SIGTTIN, self._before)

    @property
    def is_mine(self) -> bool:
        """Whether the program may draw: it is in the foreground, or the terminal knows of no such thing."""
        try:
            return os.tcgetpgrp(self._console.file.fileno()) == os.getpgrp()
        except OSError:
            return True

    @property
    def is_given_back(self) -> bool:
        """Whether the program came to the foreground, and has not drawn since."""
        return not self._is_shown and self.is_mine

    @property
    def input(self) -> int | None:
        """The descriptor that keys come from, if any may be read now."""
        is_listening = self._modes and self._is_shown
        return self._input if is_listening and _is_foreground(self._input) else None

    def show(self, view: RenderableType, note: str = "") -> None:
        """Draw a view, and a note in its last line."""
        self._view, self._note = view, note
        self._lines = []
        self.draw()

    def draw(self) -> None:
        """Draw what is there once more: the terminal has another size, or is given back."""
        if not self.is_mine:
            self._is_shown = False  # who stopped the program took the screen, too
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
        """Scroll as a key says; `draw` shows it."""
        height = self._console.size.height
        room = self._room(height)
        end = len(self._lines)
        steps = {"up": -1, "down": 1, "page up": -room, "page down": room, "home": -end, "end": end}
        self._top = max(0, min(self._top + steps.get(key, 0), end - room))

    def read(self) -> Iterator[str]:
        """Yield the keys that were pressed; none is waited for."""
        descriptor = self.input
        if descriptor is None:
            return  # taken while it was waited for: the keys are somebody else's
        try:
            data = os.read(descriptor, _CHUNK)
        except OSError:
            data = b""
        if not data and _is_foreground(descriptor):
            self._input = None  # it is gone: to wait for it would return at once, for ever
        yield from self._keys.feed(data)

    def leave(self) -> None:
        """Give the terminal back as it was found; `draw` takes it again."""
        if not self.is_mine:
            self._is_shown = False  # it was taken already, and modes are not ours to set
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
                forget_output()  # a terminal that is gone needs nothing back

    def listen(self) -> None:
        """Have keys come one by one and unseen; Ctrl-C and Ctrl-Z stay signals."""
        if not self._is_shown or not _is_foreground(self._input):
            return
        with suppress(termios.error):
            # What is found after a SIGSTOP may be our own modes: the first ones count.
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
        self.listen()

    def _room(self, height: int) -> int:
        """How many lines of the view are seen."""
        has_footer = self._note or self._modes or len(self._lines) > height
        return max(1, height - 1) if has_footer else height

    def _footer(self, width: int, room: int) -> Segment:
        """The last line: a note; else where one is and which keys there are, as far as there is room."""
        lines = len(self._lines)
        place = f"lines {self._top + 1}-{min(self._top + room, lines)} of {lines}" if lines > room else ""
        if self._note:
            return Segment(cut(self._note, width), self._console.get_style("red"))
        helps = [_LONG_HELP, _SHORT_HELP] if place else [_SHORT_HELP]
        parts = [part for part in (place, *(helps if self._modes else [])) if part]
        while len("; ".join(parts)) > width and len(parts) > 1:
            parts.pop(1 if len(parts) == 3 else -1)  # noqa: PLR2004  # the long help is what one misses least
        return Segment(cut("; ".join(parts), width), self._console.get_style("reverse"))


def _input() -> int | None:
    """The terminal's descriptor for keys, if standard input is one."""
    try:
        descriptor = sys.stdin.fileno()
        return descriptor if os.isatty(descriptor) else None
    except (AttributeError, OSError, ValueError):
        return None  # it is closed


def _is_foreground(descriptor: int | None) -> TypeGuard[int]:
    """Whether keys are for this program. Those of a terminal that is not the process's own are not."""
    if descriptor is None:
        return False
    try:
        return os.tcgetpgrp(descriptor) == os.getpgrp()
    except OSError:
        return False
