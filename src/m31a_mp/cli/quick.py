"""Understand `record`, `run` and `show` without click, which takes as long to import as Python to start.

This reads only what is plain: options of the command in full, each with its value in the next word or after
`=`; for `show` only sessions and `--json`. Everything else, for instance help, wrong arguments and
completion, is left to click. A plain command line means here what it means to click: the options are those of
the click commands (`_options.py` is written from them), and `tests/unit/cli/test_quick.py` compares the two
over many command lines.
"""

from __future__ import annotations

import os

from m31a_mp.cli._options import COMMANDS
from m31a_mp.recorder import SESSION_VARIABLE
from m31a_mp.system.log import listening

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

COMPLETION = "_M31A_MP_COMPLETE"
"""The environment variable by which a shell asks for completions."""

_JSON = "--json"
_FLAGS = {"on": True, "off": False}
# Longer numbers may be too large, and the message is click's.
_DIGITS = 18


def understood(words: list[str]) -> Callable[[], int] | None:
    """Return a function that does what the words say, and returns the exit status; None: ask click.

    Args:
        words: The arguments after the program's name.
    """
    if os.environ.get(COMPLETION):
        return None
    match words:
        case ["run", *words]:
            return _run(words)
        case ["record", *words]:
            return _record(words)
        case ["show", *words]:
            return _show(words)
    return None


def _run(words: list[str]) -> Callable[[], int] | None:
    read = _read("run", words)
    if read is None:
        return None
    values, command_line = read
    if not command_line:
        return None
    values["directory"] = _session(values["directory"])
    from m31a_mp.cli import running

    return lambda: running.run(command_line, **values)


def _record(words: list[str]) -> Callable[[], int] | None:
    outer = _read("record", words)
    if outer is None or not outer[1]:
        return None
    kind, *words = outer[1]
    inner = _read(f"record {kind}", words)
    if inner is None:
        return None
    values = inner[0]
    directory = _session(values.pop("directory") or outer[0]["directory"])
    from m31a_mp.cli import recording

    def record() -> int:
        recording.record(kind, directory, values)
        return 0

    return record


def _show(words: list[str]) -> Callable[[], int] | None:
    directories = tuple(word for word in words if word != _JSON)
    if any(not directory or directory.startswith("-") for directory in directories):
        return None

    def show() -> int:
        from m31a_mp.cli import showing, streams, tables

        streams.prepare()
        with listening(_tell):
            as_json = len(directories) < len(words)
            showing.show(directories, tables.ALL, url=None, compare=False, as_json=as_json)
        return 0

    return show


def _tell(message: str, arguments: tuple[object, ...]) -> None:
    from m31a_mp.cli.program import tell

    tell(message % arguments)


def _session(given: str | None) -> str | None:
    return given or os.environ.get(SESSION_VARIABLE) or None


def _read(command: str, words: list[str]) -> tuple[dict[str, Any], list[str]] | None:
    """Read the options and arguments of a command.

    Returns:
        The values, and the words that belong to the command that follows; None if click must read the words.
    """
    if command not in COMMANDS:
        return None
    arguments, options, defaults = COMMANDS[command]
    given: dict[str, Any] = {}
    missing, rest = [*(arguments or ())], [*words]
    while rest:
        if arguments is None and not rest[0].startswith("-"):
            break
        word = rest.pop(0)
        if arguments is None and word == "--":
            break
        if word.startswith("-"):
            option, has_value, text = word.partition("=")
            name, kind = options.get(option, ("", ""))
            if kind in _FLAGS:
                text = has_value  # a flag takes none
            elif not has_value and rest:
                text = rest.pop(0)
        else:
            name, kind, text = missing.pop(0) if missing else "", "text", word
        value = _value(kind, text)
        if not name or value is None:
            return None
        given[name] = (*given.get(name, ()), value) if kind == "texts" else value
    values = defaults | given
    wanted = {*(arguments or ()), *(name for name, _ in options.values())}
    return (values, rest) if values.keys() == wanted else None


def _value(kind: str, text: str) -> Any:
    """Return the value that click makes of a text; None if only click knows it."""
    if kind in _FLAGS:
        return None if text else _FLAGS[kind]
    if kind == "count":
        return int(text) if text.isascii() and text.isdigit() and len(text) <= _DIGITS else None
    if not text or text.startswith("-"):
        return None  # a forgotten value, perhaps
    if kind == "number":
        try:
            return float(text)
        except ValueError:
            return None
    return text
