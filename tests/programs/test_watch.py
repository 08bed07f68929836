"""What people see on a terminal of 40 to 120 columns, and `watch`, on which they scroll."""

from __future__ import annotations

import codecs
import fcntl
import io
import itertools
import os
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.cells import cell_len
from rich.console import Console
from test_cli_run import ENVIRONMENT, PROGRAM, Terminal, await_signal, one, shell

from m31a_mp import Collector, SessionMetrics, Usage, save
from m31a_mp.cli import screen, watch
from m31a_mp.cli.screen import Keys, Screen
from m31a_mp.session.paths import Session

__all__ = ["one"]  # a fixture

_OTHER_SCREEN, _FIRST_SCREEN, _CURSOR = "\x1b[?1049h", "\x1b[?1049l", "\x1b[?25h"
_TOKEN = re.compile(r"\x1b\[(\?)?([0-9;]*)([A-Za-z])|(\r|\n)|([^\x1b\r\n]+)")
_BEGUN = re.compile(r"\x1b(\[\??[0-9;]*)?\Z")
_STYLE = re.compile(r"\x1b\[[0-9;]*m")


class Picture:
    """What stands on a terminal, as far as `watch` uses one: each line is written where it belongs."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._rest = ""
        self._y = 0
        self.lines: dict[int, str] = {}
        self.is_other_screen = False

    def await_that(self, is_so: Callable[[list[str]], bool]) -> list[str]:
        """Read until a frame is as wanted."""
        while True:
            if self.is_other_screen and is_so(lines := [line for _, line in sorted(self.lines.items())]):
                return lines
            self.feed(os.read(self.terminal.master, 65536))

    def await_footer(self, text: str) -> list[str]:
        return self.await_that(lambda lines: bool(lines) and text in lines[-1])

    def feed(self, data: bytes) -> None:
        text = self._rest + self._decode(data)
        begun = _BEGUN.search(text)
        self._rest = begun[0] if begun else ""
        for private, numbers, letter, _, plain in _TOKEN.findall(text.removesuffix(self._rest)):
            if letter in {"h", "l"} and private and numbers == "1049":
                self.is_other_screen = letter == "h"
                self.lines.clear()
            elif letter == "H":
                y, x = map(int, numbers.split(";")) if numbers else (1, 1)
                assert x == 1
                self._y = y
                self.lines[y] = ""
            elif plain and self.is_other_screen:
                self.lines[self._y] += plain


def resize(terminal: Terminal, columns: int, lines: int) -> None:
    fcntl.ioctl(terminal.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


def on_terminal(columns: int, lines: int, *arguments: str | Path) -> Terminal:
    """The program on a terminal of that size, which a program that runs there cannot miss."""
    script = f'stty cols {columns} rows {lines}; exec "$@"'
    sizes = {"COLUMNS": "", "LINES": ""}  # else these would say more than the terminal
    return Terminal("sh", "-c", script, "sh", *PROGRAM, *map(str, arguments), **sizes)


def printed(columns: int, *arguments: str | Path) -> list[str]:
    with on_terminal(columns, 40, *arguments) as terminal:
        status, output = terminal.end()
    assert status in {0, 1}, output
    return _STYLE.sub("", output).replace("\r", "").splitlines()


def cells_of(line: str) -> list[str]:
    return re.split(r"\s{2,}", line.strip())


def table_of(lines: list[str], first_title: str, rows: int) -> list[dict[str, str]]:
    """The rows of a table, by their titles."""
    (start,) = [i for i, line in enumerate(lines) if line.split("  ")[0] == first_title][:1]
    titles = cells_of(lines[start])
    return [dict(zip(titles, cells_of(line), strict=True)) for line in lines[start + 2 : start + 2 + rows]]


TOOLS = [
    "bash",
    "日本語のツール名がとても長い名前",
    "mcp__a_server_of_a_long_name__and_its_tool_of_another",
    "x" * 4096,
]


@contextmanager
def busy(session: Session) -> Iterator[Collector]:
    """A living session with names and numbers of every size."""
    with Collector(session.id, session.sessions_dir) as collector:
        for i, name in enumerate(TOOLS):
            for j in range(3 + i):
                collector.record_tool_call(name, j != 2, 10 ** (3 * i))
        for phase in ("plan", "execute"):
            collector.record_llm_interaction(phase, Usage(123_456_789, 98_765, 123_555_554), 1234.5)
            collector.record_phase_transition(phase)
        yield collector


# --- Tables at the usual widths -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("columns", [40, 60, 80, 120, 160])
def test_show_fits_the_terminal_and_cuts_nothing_but_names(one: Session, columns: int) -> None:
    with busy(one):
        whole = subprocess.run(
            [*PROGRAM, "show", one.root], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        lines = printed(columns, "show", one.root)
    assert all(cell_len(line) <= columns for line in lines)
    assert any(line.startswith("no room for: ") for line in lines) == (columns < 160)
    for row, expected in zip(table_of(lines, "tool", 4), table_of(whole, "tool", 4), strict=True):
        assert row.keys() >= {"tool", "calls", "failed"}
        first, _, last = row.pop("tool").partition("…")
        assert expected["tool"].startswith(first)
        assert expected["tool"].endswith(last)
        for title, cell in row.items():
            assert cell == expected["success rate" if title == "success" else title]


@pytest.mark.slow
@pytest.mark.parametrize("columns", [40, 60, 80, 120])
def test_ls_has_one_line_for_a_session_and_never_cuts_its_state(sessions: Path, columns: int) -> None:
    names = [
        "20261123-040316-12345",
        "an-id-of-a-length-that-is-more-than-a-screen-of-80-columns-" + "x" * 140,
    ]
    for name in names:
        with busy(Session.named(name, sessions)):
            pass
    (sessions / "newer").mkdir()
    (sessions / "newer" / "metrics.json").write_text('{"m31a_mp": {"version": 9}}')
    lines = printed(columns, "ls", sessions)
    assert all(cell_len(line) <= columns for line in lines)
    rows = table_of(lines, "session", 3)
    assert [row["state"] for row in rows] == ["finished", "finished", "newer version"]
    assert [row["calls"] for row in rows] == ["18", "18", "-"]
    assert columns == 40 or rows[0]["session"] == names[0] or columns == 60
    assert columns == 40 or [row["failed"] for row in rows] == ["4", "4", "-"]


# --- watch: scrolling ---------------------------------------------------------------------------------


def many(session: Session, count: int = 100) -> Session:
    with Collector(session.id, session.sessions_dir) as collector:
        for i in range(count):
            collector.record_tool_call(f"tool-{i:03}", True, 1)
    return session


def lines_seen(lines: list[str]) -> tuple[int, int, int]:
    found = re.search(r"lines (\d+)-(\d+) of (\d+)", lines[-1])
    assert found
    first, last, total = map(int, found.groups())
    return first, last, total


def test_watch_scrolls_by_keys_says_where_it_is_and_ends_by_q(one: Session) -> None:
    many(one)
    with on_terminal(80, 20, "watch", one.root) as terminal:
        picture = Picture(terminal)
        lines = picture.await_footer("lines 1-19 of 108")
        assert lines[-1].rstrip().endswith("; arrows, PgUp, PgDn, Home, End scroll; q ends")
        assert len(lines) == 20
        assert lines[0].startswith(one.root[:40])
        for key, footer, seen in [
            ("j", "lines 2-20 ", "tool-013"),
            ("\x1b[B", "lines 3-21 ", "tool-014"),
            ("\x1bOB", "lines 4-22 ", "tool-015"),
            ("k", "lines 3-21 ", "tool-014"),
            ("\x1b[A", "lines 2-20 ", "tool-013"),
            ("\x1b[6~", "lines 21-39 ", "tool-032"),
            ("\x1b[5~", "lines 2-20 ", "tool-013"),
            ("\x1b[F", "lines 90-108 ", "in all"),
            ("jjj\x1b[6~", "lines 90-108 ", "in all"),
            ("\x1b[H", "lines 1-19 ", "tool-012"),
            ("k\x1b[5~x\x1b[99~\x1b", "lines 1-19 ", "tool-012"),
        ]:
            terminal.type(key)
            lines = picture.await_footer(footer)
            assert lines[-2].startswith(seen)
        terminal.type("q")
        found, rest = terminal.end()
        assert found == 0
        assert _FIRST_SCREEN in rest
        assert _CURSOR in rest
        assert termios.tcgetattr(terminal.slave) == terminal.modes


def test_watch_shows_all_of_what_fits(one: Session) -> None:
    many(one, 2)
    with on_terminal(80, 20, "watch", one.root) as terminal:
        lines = Picture(terminal).await_footer("q ends")
        assert "lines" not in lines[-1]
        assert "tool-001" in lines[7]


def test_watch_draws_anew_when_the_terminal_has_another_size(one: Session) -> None:
    many(one)
    with on_terminal(120, 40, "watch", "--interval", "3600", one.root) as terminal:
        picture = Picture(terminal)
        picture.await_footer("lines 1-39 of 108")
        for columns, lines in [(40, 10), (60, 12), (80, 30), (20, 5)]:
            picture.lines.clear()
            resize(terminal, columns, lines)
            frame = picture.await_that(
                lambda frame, n=lines: len(frame) == n and "lines 1-" in frame[-1]  # type: ignore[misc]
            )
            assert all(cell_len(line) <= columns for line in frame)
        picture.lines.clear()
        resize(terminal, 120, 200)
        frame = picture.await_that(lambda frame: len(frame) == 200 and "q ends" in frame[-1])
        assert "tool-099" in frame[105]


def test_watch_stays_where_it_is_while_the_session_grows_and_shrinks(one: Session) -> None:
    many(one, 30)
    with on_terminal(80, 20, "watch", "--interval", "0.05", one.root) as terminal:
        picture = Picture(terminal)
        terminal.type("\x1b[F")
        first, _, total = lines_seen(picture.await_footer(" of 38"))
        picture.await_footer("lines 20-38 of 38")
        many(one, 50)
        lines = picture.await_footer("of 58")
        assert lines_seen(lines)[0] == 20
        save(one.sessions_dir, one.id, SessionMetrics(one.id))
        picture.await_that(lambda lines: any("nothing is recorded yet" in line for line in lines))
        assert (first, total) >= (1, 38)


def test_keys_are_known_however_their_bytes_come() -> None:
    data = b"\x1b[A\x1bOB\x1b[5~\x1b[6~\x1b[H\x1b[1~\x1b[F\x1b[4~jkxq\xc3\xa9\x1b[1;5C\x1bq"
    expected = ["up", "down", "page up", "page down", "home", "home", "end", "end", "down", "up", "q", "q"]
    assert list(Keys().feed(data)) == expected
    keys = Keys()
    assert [key for byte in data for key in keys.feed(bytes([byte]))] == expected
    assert list(Keys().feed(b"\x1b[" + b"0" * 100_000 + b"q")) == ["q"]


# --- watch: the terminal is left as it was ------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGINT])
def test_watch_that_is_ended_after_scrolling_leaves_the_terminal_as_it_was(
    one: Session, number: signal.Signals
) -> None:
    many(one)
    with on_terminal(80, 20, "watch", one.root) as terminal:
        picture = Picture(terminal)
        picture.await_footer("lines 1-19")
        terminal.type("\x1b[6~")
        picture.await_footer("lines 20-38")
        assert termios.tcgetattr(terminal.slave) != terminal.modes
        terminal.process.send_signal(number)
        found, rest = terminal.end()
        assert found == (0 if number == signal.SIGINT else 128 + number)
        assert _FIRST_SCREEN in rest
        assert _CURSOR in rest
        assert termios.tcgetattr(terminal.slave) == terminal.modes


def test_watch_that_fails_leaves_the_terminal_as_it_was(one: Session) -> None:
    many(one)
    code = (
        "import sys; from m31a_mp.cli import main, watch; look = watch.status; calls = []\n"
        "def fail(*given):\n"
        "    calls.append(1)\n"
        "    return look(*given) if len(calls) < 3 else 1 / 0\n"
        "watch.status = fail; sys.exit(main(sys.argv[1:]))"
    )
    with Terminal(PROGRAM[0], "-c", code, "watch", "--interval", "0.05", one.root) as terminal:
        found, rest = terminal.end()
        assert found == 3
        assert rest.index(_OTHER_SCREEN) < rest.index(_FIRST_SCREEN) < rest.index("ZeroDivisionError")
        assert termios.tcgetattr(terminal.slave) == terminal.modes


def scroll_in_the_foreground_and_quit(terminal: Terminal) -> None:
    """Bring the stopped program back. It takes keys again."""
    terminal.type("fg\n")
    terminal.read_until("lines 1-39 of 108")
    terminal.type("j")
    terminal.read_until("lines 2-40 of 108")
    terminal.type("q")
    terminal.read_until(_FIRST_SCREEN)


def test_watch_stopped_by_ctrl_z_gives_modes_and_keys_back_and_scrolls_on_afterwards(one: Session) -> None:
    many(one)
    with shell() as terminal:
        terminal.type(f"{' '.join(PROGRAM)} watch {one.root}\n")
        terminal.read_until("lines 1-39 of 108")
        terminal.type("\x1a")
        assert _FIRST_SCREEN in terminal.read_until("Stopped")
        terminal.read_until("prompt> ")
        terminal.type("stty -a | grep -c ' icanon.* echo '; stty -a | grep -o -- ' icanon'\n")
        terminal.read_until("\n icanon")
        scroll_in_the_foreground_and_quit(terminal)
        terminal.type("echo status=$?\n")
        terminal.read_until("status=0")


def test_watch_in_the_background_neither_draws_nor_stops_nor_takes_keys(one: Session) -> None:
    many(one)
    with shell() as terminal:
        terminal.type(f"{' '.join(PROGRAM)} watch --interval 0.05 {one.root} & pid=$!; echo pid=$pid.\n")
        terminal.read_until("pid=$pid.")
        pid = int(re.findall(r"pid=(\d+)\.", terminal.read_until(".\r\n"))[-1])
        await_signal(pid, "SigCgt", signal.SIGWINCH)  # it is at work
        terminal.type("echo typed-$((20 + 3)); jobs\n")
        seen = terminal.read_until("typed-23") + terminal.read_until("Running")
        assert _OTHER_SCREEN not in seen
        terminal.type("fg\n")
        seen = terminal.read_until("lines 1-39 of 108")
        assert _OTHER_SCREEN in seen
        terminal.type("j")
        terminal.read_until("lines 2-40 of 108")
        os.kill(pid, signal.SIGSTOP)  # of which it is not told
        terminal.read_until("prompt> ")
        terminal.type("bg\n")
        terminal.read_until("prompt> ")
        terminal.type("echo typed-$((20 + 4)); jobs\n")
        seen = terminal.read_until("typed-24") + terminal.read_until("Running")
        assert "lines 2-40" not in seen
        terminal.type("fg\n")
        terminal.read_until("lines 2-40 of 108")
        terminal.type("j")
        terminal.read_until("lines 3-41 of 108")
        terminal.type("q")
        terminal.read_until(_FIRST_SCREEN)
        terminal.read_until("prompt> ")
        terminal.type("stty -a\n")
        assert re.search(r"(?<!-)icanon", terminal.read_until("prompt> "))


_LATE = """
import os, sys
from m31a_mp.cli import main
from m31a_mp.cli.screen import Screen

def resume_late(screen, resume=Screen.resume):
    resume(screen)
    while not screen.is_mine:
        os.sched_yield()

Screen.resume = resume_late
sys.exit(main())
"""


def test_watch_given_the_terminal_while_it_awakes_in_the_background_takes_keys(
    one: Session, tmp_path: Path
) -> None:
    many(one)
    late = tmp_path / "late.py"
    late.write_text(_LATE)
    with shell() as terminal:
        terminal.type(f"{sys.executable} {late} watch --interval 0.05 {one.root}\n")
        terminal.read_until("lines 1-39 of 108")
        os.kill(os.tcgetpgrp(terminal.master), signal.SIGSTOP)
        terminal.read_until("prompt> ")
        terminal.type("bg\n")
        terminal.read_until("prompt> ")
        scroll_in_the_foreground_and_quit(terminal)


def test_watch_continued_after_sigstop_takes_keys_again(one: Session) -> None:
    many(one)
    with shell() as terminal:
        terminal.type(f"{' '.join(PROGRAM)} watch --interval 3600 {one.root} & pid=$!; echo pid=$pid.\n")
        terminal.read_until("pid=$pid.")
        pid = int(re.findall(r"pid=(\d+)\.", terminal.read_until(".\r\n"))[-1])
        terminal.type("fg\n")
        terminal.read_until("lines 1-39 of 108")
        os.kill(pid, signal.SIGSTOP)
        terminal.read_until("prompt> ")
        terminal.type("stty icanon echo; ")
        scroll_in_the_foreground_and_quit(terminal)
        terminal.type("echo status=$?\n")
        terminal.read_until("status=0")


def test_watch_whose_input_is_no_terminal_reads_no_keys_and_says_where_it_is(one: Session) -> None:
    many(one)
    command = f"exec {' '.join(PROGRAM)} watch {one.root} < /dev/null"
    with Terminal("sh", "-c", command) as terminal:
        picture = Picture(terminal)
        lines = picture.await_footer("lines 1-39 of 108")
        assert lines[-1].strip() == "lines 1-39 of 108"
        assert termios.tcgetattr(terminal.slave) == terminal.modes
        terminal.type("\x03")
        assert terminal.end()[0] == 0


def test_watch_whose_terminal_is_gone_ends_as_by_its_signal(one: Session) -> None:
    many(one)
    with on_terminal(80, 20, "watch", "--interval", "0.05", one.root) as terminal:
        Picture(terminal).await_footer("lines 1-19")
        os.close(terminal.slave)
        os.close(terminal.master)
        assert terminal.process.wait() == 128 + signal.SIGHUP
        terminal.master, terminal.slave = os.pipe()  # to be closed instead


def test_signals_that_are_ignored_stay_ignored(one: Session) -> None:
    many(one)
    command = [*PROGRAM, "watch", "--json", "--interval", "0.05", one.root]
    with subprocess.Popen(
        ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *command], stdout=subprocess.PIPE, env=ENVIRONMENT
    ) as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        for _ in range(3):
            assert process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode == 128 + signal.SIGTERM


def test_keys_that_came_before_the_program_lost_the_foreground_are_left_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reading_end, writing_end = os.pipe()
    monkeypatch.setattr(screen, "_input", lambda: reading_end)
    foreground = True
    monkeypatch.setattr(screen, "_is_foreground", lambda _: foreground)
    shown = Screen(Console(file=io.StringIO(), force_terminal=True))
    shown._modes, shown._is_shown = [0], True
    os.write(writing_end, b"j")
    assert shown.input == reading_end
    foreground = False
    assert shown.input is None
    assert list(shown.read()) == []
    foreground = True
    assert list(shown.read()) == ["down"]
    os.close(writing_end)
    assert list(shown.read()) == []
    assert shown.input is None  # to wait for an input that has ended would not be to wait
    os.close(reading_end)


# --- watch: the rate ----------------------------------------------------------------------------------


def test_watch_looks_at_a_steady_rate_and_does_not_catch_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0

    def wait(seconds: float, _: object) -> tuple[list[int], bool]:
        nonlocal now
        now += seconds
        return [], False

    monkeypatch.setattr(time, "monotonic", lambda: now)
    looks = []
    for _ in watch._events(SimpleNamespace(wait=wait), 1.0, 8):  # type: ignore[arg-type]
        looks.append(now)
        now += 3.5 if len(looks) == 3 else 0.25  # what a look takes
    assert looks == [101, 102, 103, 106.5, 107.5, 108.5, 109.5]


class SlowLooks:
    """A clock that goes on for longer than the interval while a look is made, and a pipe with a signal."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        self.now += 10.0
        return self.now

    def wait(self, _: float, __: object = None) -> tuple[list[int], bool]:
        return [signal.SIGTERM], False


def test_watch_is_told_to_end_also_when_each_look_takes_longer_than_the_interval(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = SlowLooks()
    monkeypatch.setattr(time, "monotonic", slow.monotonic)
    events = watch._events(slow, 1.0, None)  # type: ignore[arg-type]
    assert signal.SIGTERM in itertools.islice(events, 3)
