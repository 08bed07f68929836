"""What is read without click is what click reads; and what scripts write is read without click."""

from __future__ import annotations

import errno
import os
import shlex
from typing import Any, NoReturn

import click
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from m31a_mp.cli import main, quick, recording, running, showing, streams
from m31a_mp.cli import show as showing_by_click
from m31a_mp.cli._options import COMMANDS
from m31a_mp.cli.naming import TroubleError
from m31a_mp.cli.program import program
from m31a_mp.kinds.catalog import KINDS

Called = list[Any]


@pytest.fixture(scope="module", autouse=True)
def called() -> Any:
    """What was to be done, in place of doing it."""
    calls: Called = []

    def record(kind: str, directory: str | None, values: dict[str, Any]) -> None:
        calls.append((kind, directory, dict(values)))

    def run(command_line: list[str], **options: str | None) -> int:
        calls.append((command_line, options))
        return 7

    def show(directories: tuple[str, ...], choice: object, **options: object) -> None:
        calls.append(("show", directories, choice, options))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "record", record)
        patch.setattr(running, "run", run)
        patch.setattr(showing, "show", show)
        patch.setattr(showing_by_click, "show", show)
        patch.setattr(streams, "prepare", lambda: None)  # the streams of the tests are not the program's
        yield calls


def by_click(words: list[str], called: Called) -> object:
    """What click has a command do, and its status; None if it prints help, or refuses the words."""
    called.clear()
    try:
        status = program.main(words, prog_name="m31a-mp", standalone_mode=False)
    except (click.ClickException, TroubleError):
        assert not called
        return None
    return (*called, status or 0) if called else None


def quickly(words: list[str], called: Called) -> object:
    """What is done without click, and its status; None if click must read the words."""
    called.clear()
    call = quick.understood(words)
    assert not called
    return None if call is None else (call(), *called)[::-1]


SESSION = st.sampled_from([None, "", "sessions/of the variable"])
NAMES = sorted({word for command in COMMANDS for word in command.split()})
OPTIONS = sorted({option for _, options, _ in COMMANDS.values() for option in options})
NUMBERS = ["0", "5", "007", "-1", "+5", "1_0", " 5", "5.5", "1e3", "nan", "inf", "٣", "9" * 18, "9" * 19]
TEXTS = ["x", "a b", "true", "sessions/demo", "é", "\udcff", "=", ""]
DASHES = ["-", "--", "-h", "--help", "--dur", "--ok=", "--ok=1", "-x"]
VALUES = st.sampled_from(["5", "x"]) | st.sampled_from(NUMBERS + TEXTS) | st.sampled_from(DASHES)
WORDS = (
    st.sampled_from(NAMES + OPTIONS) | VALUES | st.builds("{}={}".format, st.sampled_from(OPTIONS), VALUES)
)
SHOWN = VALUES | st.sampled_from(["--json", "--json=", "--top", "--compare", "--sort=calls"])
OF_GROUP = st.sampled_from([[], [], ["--session", "outer"], ["--session="], ["--"], ["--ok"]])


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    """A command, its arguments and options in any order, mostly complete, and sometimes something else."""
    command = draw(st.sampled_from(sorted(COMMANDS)))
    arguments, options, defaults = COMMANDS[command]
    parts = [[draw(VALUES)] for name in arguments or () if name not in defaults or draw(st.booleans())]
    for option, (name, kind) in options.items():
        is_flag = kind in ("on", "off")
        if draw(st.booleans()) if is_flag or name in defaults else True:
            value = draw(VALUES)
            forms = [[option]] if is_flag else [[option, value], [f"{option}={value}"]]
            parts.append(draw(st.sampled_from(forms)))
    parts += [[word] for word in draw(st.lists(WORDS, max_size=2))]
    words = [word for part in draw(st.permutations(parts)) for word in part]
    if arguments is None:
        words += draw(st.sampled_from([[], ["--"]])) + draw(st.lists(WORDS, max_size=3))
    name, *kind_of_record = command.split()
    return [name, *(draw(OF_GROUP) if kind_of_record else []), *kind_of_record, *words]


@pytest.mark.slow
@settings(max_examples=500)
@given(lines() | st.lists(WORDS, max_size=8) | st.lists(SHOWN, max_size=4).map(["show"].__add__), SESSION)
@example(["run", "--", "--"], None)
@example(["record", "--session", "outer", "heal", "plan"], "sessions/of the variable")
@example(["record", "heal-outcome", "verify", "--ok="], None)
def test_what_is_read_without_click_is_what_click_reads(
    called: Called, words: list[str], session: str | None
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("M31A_MP_SESSION", raising=False)
        if session is not None:
            patch.setenv("M31A_MP_SESSION", session)
        read = quickly(words, called)
        if read is not None:
            assert read == by_click(words, called)


USUAL = [
    *(f"record {kind.example}" for kind in KINDS if kind.command),
    "record tool x --ok --duration-ms 5",
    "record --session sessions/demo tool make --failed --duration-ms=420 --error 'exit 2'",
    "record llm plan --prompt-tokens 900 --completion-tokens 100 --cost 0.0042 --truncated-input",
    "record plan-outcome T-7 edit 'rename the module' --ok --duration-ms 8300 --file a.py --file b.py",
    "record phase plan",
    "record phase plan --ok --duration-ms 8300 --session sessions/demo",
    "run -- true",
    "run --session sessions/demo -- pytest -q --maxfail=1",
    "run --session=sessions/demo --tool lint --phase verify -- ruff check .",
    "run sh -c 'exit 3'",
    "show",
    "show sessions/demo",
    "show sessions/a sessions/b --json",
]


@pytest.mark.parametrize("line", USUAL)
def test_usual_command_line_is_read_without_click(called: Called, line: str) -> None:
    words = shlex.split(line)
    read = quickly(words, called)
    assert read is not None
    assert read == by_click(words, called)


@pytest.mark.parametrize(
    "line",
    [
        *(
            "",
            "--help",
            "--version",
            "show --top 3",
            "show --compare sessions/a sessions/b",
            "show --help",
            "record",
            "run",
            "run --",
            "record --help",
            "record tool --help",
        ),
        *(
            "run --help",
            "run -h",
            "record tool make --ok",
            "record tool --ok --duration-ms 5",
            "record too x",
        ),
        *("record tool make --ok --duration-ms x", "record tool make more --ok --duration-ms 5"),
        *("run --sess x -- true", "record heal --session", "record heal plan --session ''"),
    ],
)
def test_help_and_what_is_wrong_are_left_to_click(line: str) -> None:
    assert quick.understood(shlex.split(line)) is None


def test_completion_is_left_to_click(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(quick.COMPLETION, "bash_complete")
    assert quick.understood(["run", "--", "true"]) is None
    assert os.environ[quick.COMPLETION]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(), 141),
        (OSError(errno.ENOSPC, "No space left on device"), 3),
        (TroubleError("trouble", "this helps", status=2), 2),
        (KeyError("x"), 3),
    ],
    ids=repr,
)
@pytest.mark.parametrize("command", ["record heal plan", "run --session x true", "show x"])
def test_error_is_told_as_it_is_behind_click(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    error: BaseException,
    status: int,
) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise error

    monkeypatch.setattr(recording, "record", fail)
    monkeypatch.setattr(running, "run", fail)
    monkeypatch.setattr(showing, "show", fail)
    monkeypatch.setattr(showing_by_click, "show", fail)
    words = command.split()
    assert quick.understood(words)
    expected = 125 if command.startswith("run") and status < 125 else status
    assert main(words) == expected
    told = capsys.readouterr()
    monkeypatch.setattr(quick, "understood", lambda _: None)
    assert main(words) == expected
    assert capsys.readouterr() == told
