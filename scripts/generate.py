#!/usr/bin/env python3
"""Write the modules that follow from the declarations in `m31a_mp/kinds/catalog.py`.

    scripts/generate.py

`kinds/_lines.py` makes the lines of a process, `metrics/_folding.py` adds what is read. Both are what one
would write by hand for each kind, and as fast: a loop over the fields would double the time of a record, and
checking the columns of a batch takes a third more than checking each record where it is added. Both are
checked in, and a test compares them with what this would write.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path

import m31a_mp
from m31a_mp.kinds.catalog import KINDS, TABLES
from m31a_mp.kinds.declaration import Always, If, Into, Kind, Value, Values
from m31a_mp.kinds.fields import COST, COUNT, FLAG, NAME, Field
from m31a_mp.kinds.tables import Table

PACKAGE = Path(m31a_mp.__file__).parent
_NOTE = "Written by scripts/generate.py from the declarations in kinds/catalog.py: change those."


def modules() -> dict[Path, str]:
    """The modules, and what should stand in them."""
    return {
        PACKAGE / "kinds/_lines.py": _format(_lines()),
        PACKAGE / "metrics/_folding.py": _format(_folding()),
    }


def _format(lines: Iterable[str]) -> str:
    ruff, settings = Path(sys.executable).with_name("ruff"), PACKAGE.parents[1] / "pyproject.toml"
    command = [str(ruff), "format", "--config", str(settings), "-"]
    text = "\n".join(lines)
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    return str(done.stdout)


# --- Lines --------------------------------------------------------------------------------------------


def _lines() -> Iterable[str]:
    yield f'"""The members of a line behind its event and time, of each kind of record.\n\n{_NOTE}\n"""'
    yield "\nfrom __future__ import annotations\n"
    yield "from m31a_mp.kinds.checks import EncodedNames, check_bool, check_cost, check_int, check_name"
    yield "_INFINITE = float('inf')"
    functions = [line for kind in KINDS for line in _line(kind)]
    names = {name for kind in KINDS for name, field in kind.fields.items() if field is NAME}
    for name in sorted(names):
        if any(f"{{_{name.upper()}[" in line for line in functions):
            yield f'_{name.upper()} = EncodedNames("{name}")'
    yield from functions


def _line(kind: Kind) -> Iterable[str]:
    for group, names in kind.grouped.items():
        given = ", ".join(f"{name}: {kind.fields[name].annotation}" for name in names)
        yield f"def {group}({given}) -> str:"
        yield f"    return f'{''.join(_member(name, kind.fields[name]) for name in names)}'"
    start, rest = _start(kind)
    yield from start
    arguments = _arguments(kind)
    typed = (f"{name}: {field.annotation if field else 'str'}" for name, field in arguments.items())
    yield f"def {kind.event}({', '.join(typed)}) -> str:"
    for field, alike in groupby(arguments, lambda name: arguments[name]):
        if field:
            run = list(alike)
            yield f"    if {_is_odd(field, run)}:"
            for name in run:
                yield f'        {name} = {field.check.__name__}("{name}", {name})'
    yield f"    return f'{rest}'"


def _arguments(kind: Kind) -> dict[str, Field | None]:
    """The arguments of a line; None of one that stands for a group of fields, and has spelled them."""
    group_of = {name: group for group, names in kind.grouped.items() for name in names}
    return {
        group_of.get(name, name): None if name in group_of else field for name, field in kind.fields.items()
    }


def _is_odd(field: Field, names: list[str]) -> str:
    """Whether one of these values is not plainly right; of several counts in a row at once."""
    if field is COUNT:
        return " or ".join(_guards(dict.fromkeys(names, COUNT)))
    return " or ".join(_IS_ODD[field].format(name) for name in names)


def _start(kind: Kind) -> tuple[list[str], str]:
    """The lines before the function, and the text that it returns.

    A flag right behind a name is looked up with the name, and so is the key behind it: of most records,
    which are tool calls, only the duration is left to be spelled.
    """
    members = [_member(name, field) if field else f"{{{name}}}" for name, field in _arguments(kind).items()]
    if list(kind.fields.values())[:2] != [NAME, FLAG]:
        return [], "".join(members)
    name, flag = list(kind.fields)[:2]
    key, brace, value = "".join(members[2:]).partition("{")
    known = f"_{kind.event.upper()}"
    start = [
        f"""{known}_{truth.upper()} = EncodedNames("{name}", ',"{flag}":{truth}{key}')"""
        for truth in ("true", "false")
    ]
    return start, f"{{({known}_TRUE if {flag} else {known}_FALSE)[{name}]}}{brace}{value}"


_IS_ODD = {
    NAME: "type({0}) is not str",
    FLAG: "{0} is not True and {0} is not False",
    COST: "type({0}) is not float or not 0.0 <= {0} < _INFINITE",
}
_SHOWN = {COUNT: "{{{0}}}", FLAG: '{{"true" if {0} else "false"}}', COST: "{{{0}!r}}"}


def _member(name: str, field: Field) -> str:
    if field is NAME:  # `EncodedNames` checks and encodes it, with its key, when it comes for the first time
        return f"{{_{name.upper()}[{name}]}}"
    return f',"{name}":{_SHOWN[field].format(name)}'


# --- The fold -----------------------------------------------------------------------------------------


def _folding() -> Iterable[str]:
    yield f'"""The fold of plain records of each kind.\n\n{_NOTE}\n"""'
    yield "\nfrom __future__ import annotations\n"
    yield "from typing import Any\n"
    branches = [line for kind in KINDS for line in _branch(kind)]
    if any("is_name(" in line for line in branches):
        yield "from m31a_mp.kinds.checks import is_name"
    yield "from m31a_mp.metrics.totals import Totals"
    yield "def fold_plain(totals: Totals, records: list[Any], latest: int) -> list[int]:"
    yield f"    {_FOLD_DOCUMENTATION}"
    for table in TABLES.values():
        state = f'totals.tables["{table.name}"]'
        yield f"    {table.name}: Any = {state}{'.by_name' if isinstance(table, Table) else ''}"
    yield "    updated = totals.updated"
    yield "    others = []"
    yield "    entry: Any"
    yield "    for position, record in enumerate(records):"
    yield "        try:"
    yield '            event, time = record["event"], record["time"]'
    yield "            if type(time) is not int or not 0 <= time <= latest:"
    yield "                raise ValueError"
    for i, kind in enumerate(KINDS):
        yield f'            {"elif" if i else "if"} event == "{kind.event}":'
        yield from (f"                {line}" for line in _branch(kind))
    yield "            else:"
    yield "                raise ValueError"
    yield "        except (KeyError, TypeError, ValueError):"
    yield "            others.append(position)"
    yield "            continue"
    yield "        if time < entry.first:"
    yield "            entry.first = time"
    yield "        if time > updated:"
    yield "            updated = time"
    yield "    totals.updated = updated"
    yield "    return others"


_FOLD_DOCUMENTATION = '''"""Count the records that are plainly valid and whose names have an entry: most.

    Args:
        totals: What they are added to.
        records: Parsed lines.
        latest: The latest time that a record may have, in nanoseconds since the epoch.

    Returns:
        The positions of the others, which were left alone.
    """'''


def _branch(kind: Kind) -> Iterable[str]:
    into = kind.into
    key = into.key if isinstance(into, Into) else ""
    fields = {name: field for name, field in kind.fields.items() if name != key}
    if fields:
        yield from (f'{name} = record["{name}"]' for name in fields)
        yield f"if {' or '.join(_guards(fields))}:"
        yield "    raise ValueError"
    if isinstance(into, Into):
        yield f'entry = {into.table.name}[record["{key}"]]'
        yield from _additions(kind, into)
    else:
        yield f"entry = {into.name}"
        yield f"entry.add(time, {', '.join(into.fields)})"


def _guards(fields: Mapping[str, Field]) -> Iterable[str]:
    """Conditions of which one is true unless the values are plainly right."""
    for name, field in fields.items():
        if field is NAME:
            yield f"not is_name({name})"
        elif field is FLAG:
            yield f"type({name}) is not bool"
        elif field is COST:
            yield f"type({name}) is not float or {name} < 0"
    counts = [name for name, field in fields.items() if field is COUNT]
    # What is shifted is not 0 if it has more bits than 63, or is negative.
    if len(counts) > 1:
        yield f"not {' is '.join(f'type({name})' for name in counts)} is int"
        yield f"({' | '.join(counts)}) >> 63"
    else:
        yield from (f"type({name}) is not int or {name} >> 63" for name in counts)


def _additions(kind: Kind, into: Into) -> Iterable[str]:
    flagged: dict[str, dict[bool, list[str]]] = {}
    for part, effect in into.adds.items():
        match effect:
            case Always():
                yield f"entry.{part} += 1"
            case If():
                branches = flagged.setdefault(effect.flag, {True: [], False: []})
                branches[effect.wanted].append(f"    entry.{part} += 1")
            case Value() if kind.fields[effect.field] is COST:
                yield f"entry.{part}.add({effect.field})"
            case Value():
                yield f"entry.{part} += {effect.field}"
            case Values():
                yield f"value = (time, {', '.join(effect.fields)})"
                yield f"if value > entry.{part}:"
                yield f"    entry.{part} = value"
    for flag, branches in flagged.items():
        yield f"if {flag}:"
        yield from branches[True] or ["    pass"]
        if branches[False]:
            yield "else:"
            yield from branches[False]


def main() -> None:
    for path, text in modules().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
