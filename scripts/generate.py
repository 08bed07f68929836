#!/usr/bin/env python3
"""Write the modules that follow from the declarations in `m31a_mp/kinds/catalog.py`.

    scripts/generate.py

`_recording.py` has the `record_*` methods, `metrics/_folding.py` adds what is read. Both are what one would
write by hand for each kind, and as fast: a loop over the fields would double the time of a record, and
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
        PACKAGE / "_recording.py": _format(_recording()),
        PACKAGE / "metrics/_folding.py": _format(_folding()),
    }


def _format(lines: Iterable[str]) -> str:
    ruff, settings = Path(sys.executable).with_name("ruff"), PACKAGE.parents[1] / "pyproject.toml"
    command = [str(ruff), "format", "--config", str(settings), "-"]
    text = "\n".join(lines)
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    return str(done.stdout)


# --- Recording ----------------------------------------------------------------------------------------


def _recording() -> Iterable[str]:
    yield f'"""The `record_*` methods.\n\n{_NOTE}\n"""'
    yield "\nfrom __future__ import annotations\n"
    yield "from m31a_mp.kinds.checks import EncodedNames, check_bool, check_cost, check_int, check_name"
    yield "from m31a_mp.usage import Usage, check_usage"
    yield "TYPE_CHECKING = False"
    yield "if TYPE_CHECKING:"
    yield "    from collections.abc import Callable\n"
    yield "    from m31a_mp.session.paths import Session"
    yield "_INFINITE = float('inf')"
    methods = [line for kind in KINDS for line in _method(kind)]
    names = {name for kind in KINDS for name, field in kind.fields.items() if field is NAME}
    for name in sorted(names):
        if any(f"_{name.upper()}[" in line for line in methods):
            yield f'_{name.upper()} = EncodedNames("{name}")'
    for kind in KINDS:
        yield from (f"{name} = {made}" for name, made in _flagged_names(kind).items())
    yield "class Recording:"
    yield '    """A method for each kind of record.'
    yield ""
    yield "    Attributes:"
    yield "        _session: Where to record; None: nowhere, and each method is a no-op."
    yield "        _put: Stages a record: takes its event, its members, and perhaps the last value."
    yield '    """'
    yield "    _session: Session | None"
    yield "    _put: Callable[..., None]"
    yield from (f"    {line}" if line else "" for line in methods)


def _method(kind: Kind) -> Iterable[str]:
    arguments = _arguments(kind)
    typed = (f"{name}: {_annotation(field)}" for name, field in arguments.items())
    yield f"def record_{kind.event}(self, {', '.join(typed)}) -> None:"
    yield from (f"    {line}" if line else "" for line in _documentation(kind))
    nothing = [f"{name} is None" for name in kind.grouped]  # to record
    yield f"    if {' or '.join(['self._session is None', *nothing])}:"
    yield "        return"
    for field, alike in groupby(arguments, lambda name: arguments[name]):
        run = list(alike)
        if field:
            yield f"    if {_is_odd(field, run)}:"
            yield from (f'        {name} = {field.check.__name__}("{name}", {name})' for name in run)
        else:
            yield f"    if type({run[0]}) is not Usage:"
            yield f"        check_usage({run[0]})"
    yield f"    self._put({', '.join([repr(kind.event), *_members(kind)])})"


def _arguments(kind: Kind) -> dict[str, Field | None]:
    """The arguments of a method; None of one that stands for a group of fields, and has spelled them."""
    group_of = {name: group for group, names in kind.grouped.items() for name in names}
    return {
        group_of.get(name, name): None if name in group_of else field for name, field in kind.fields.items()
    }


def _annotation(field: Field | None) -> str:
    return field.annotation if field else "Usage | None"


def _documentation(kind: Kind) -> Iterable[str]:
    lines = kind.documentation.splitlines()
    if kind.about:
        lines += ["", "Args:", *(f"    {name}: {text}" for name, text in kind.about.items())]
    if len(lines) == 1:
        yield f'"""{lines[0]}"""'
        return
    yield f'"""{lines[0]}'
    yield from lines[1:]
    yield '"""'


def _is_odd(field: Field, names: list[str]) -> str:
    """Whether one of these values is not plainly right; of several counts in a row at once."""
    if field is COUNT:
        return " or ".join(_guards(dict.fromkeys(names, COUNT)))
    return " or ".join(_IS_ODD[field].format(name) for name in names)


_IS_ODD = {
    NAME: "type({0}) is not str",
    FLAG: "{0} is not True and {0} is not False",
    COST: "type({0}) is not float or not 0.0 <= {0} < _INFINITE",
}
_SHOWN = {COUNT: "{{{0}}}", FLAG: '{{"true" if {0} else "false"}}', COST: "{{{0}!r}}"}


def _members(kind: Kind) -> list[str]:
    """What a record puts behind its event: its members, and if a count is the last one, that by itself.

    A flag right behind a name is looked up with the name, and so is the key behind it: of most records,
    which are tool calls, only the duration is left to be spelled.
    """
    arguments = _arguments(kind)
    texts = [_member(name, field) for name, field in arguments.items()]
    if known := list(_flagged_names(kind)):
        name, flag = list(kind.fields)[:2]
        _, brace, value = "".join(texts[2:]).partition("{")
        texts = [f"{{({known[0]} if {flag} else {known[1]})[{name}]}}", brace + value]
    members = "".join(texts)
    name, field = list(arguments.items())[-1]
    last = [name] if field is COUNT else []
    if last:
        members = members.removesuffix(f"{{{name}}}")
    whole = members.startswith("{") and members.count("{") == 1 and members.endswith("}")
    return [members[1:-1] if whole else f"f'{members}'", *last]


def _flagged_names(kind: Kind) -> dict[str, str]:
    """The names that stand ready with a flag behind them, and the key behind that: true, and false."""
    if list(kind.fields.values())[:2] != [NAME, FLAG]:
        return {}
    name, flag = list(kind.fields)[:2]
    key = "".join(_member(name, field) for name, field in list(kind.fields.items())[2:]).partition("{")[0]
    return {
        f"_{kind.event.upper()}_{truth.upper()}": f"""EncodedNames("{name}", ',"{flag}":{truth}{key}')"""
        for truth in ("true", "false")
    }


def _member(name: str, field: Field | None) -> str:
    if field is None:
        return f"{{{name}.members}}"
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
