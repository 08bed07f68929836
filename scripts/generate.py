#!/usr/bin/env python3
"""Write the modules that follow from the declarations in `m31a_mp/kinds/catalog.py`.

    scripts/generate.py

`_recording.py` has the `record_*` methods, `kinds/_entries.py` the values that records add up to, and
`metrics/_folding.py` adds what is read. They are what one would write by hand for each kind, and as fast: a
loop over the fields would double the time of a record, and checking the columns of a batch takes a third more
than checking each record where it is added. `cli/_options.py` has the options of `m31a-mp run` and `m31a-mp
record`, as their click commands declare them: a program that reads it needs neither click nor declarations.
All are checked in, and a test compares them with what this would write.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import click

import m31a_mp
from m31a_mp.cli import record, run
from m31a_mp.cli.counts import WholeNumber
from m31a_mp.kinds.catalog import KINDS, TABLES
from m31a_mp.kinds.declaration import (
    Always,
    Effect,
    Ended,
    Ends,
    If,
    Into,
    Kind,
    Unknown,
    Value,
    Values,
    When,
    Whole,
)
from m31a_mp.kinds.fields import CALL, COUNT, FILES, FLAG, NAME, PRICE, REQUIRED, SHORT_NAME, TEXT, Field
from m31a_mp.kinds.parts import Counts, Earliest, Ever, Exact, LastTime, Latest, Sum, Timed, TimedCalls
from m31a_mp.kinds.running import Running
from m31a_mp.kinds.tables import Table
from m31a_mp.kinds.timeline import COUNTS, Steps

PACKAGE = Path(m31a_mp.__file__).parent
_NOTE_OF_OPTIONS = (
    "Written by scripts/generate.py from cli/run.py, cli/record.py and kinds/catalog.py: change those."
)
_NOTE = "Written by scripts/generate.py from the declarations in kinds/catalog.py: change those."


def modules() -> dict[Path, str]:
    """The modules, and what should stand in them."""
    return {
        PACKAGE / "_recording.py": _format(_recording()),
        PACKAGE / "kinds/_entries.py": _format(_entries()),
        PACKAGE / "metrics/_folding.py": _format(_folding()),
        PACKAGE / "cli/_options.py": _format(_options()),
    }


def _format(lines: Iterable[str]) -> str:
    ruff, settings = Path(sys.executable).with_name("ruff"), PACKAGE.parents[1] / "pyproject.toml"
    command = [str(ruff), "format", "--config", str(settings), "-"]
    text = "\n".join(lines)
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    return str(done.stdout)


def _indented(lines: Iterable[str], by: int = 1) -> Iterable[str]:
    return (f"{by * 4 * ' '}{line}" if line else "" for text in lines for line in text.split("\n"))


# --- Recording ----------------------------------------------------------------------------------------

_FEW = 2
_GROUPS = {
    "usage": ("Usage | None", "Usage", "check_usage"),
    "outcome": ("PlanOutcome", "PlanOutcome", "check_outcome"),
}
"""Of an argument that spells fields by itself: its annotation, its type, and what refuses any other."""


def _recording() -> Iterable[str]:
    yield f'"""The `record_*` methods.\n\n{_NOTE}\n"""'
    yield "\nfrom __future__ import annotations\n"
    checks = sorted({field.check.__name__ for kind in KINDS for field in _arguments(kind).values() if field})
    yield f"from m31a_mp.kinds.checks import MAX_SHORT_NAME_BYTES, EncodedNames, {', '.join(checks)}, is_call"
    yield "from m31a_mp.plan import PlanOutcome, check_outcome"
    yield "from m31a_mp.usage import Usage, check_usage"
    yield "TYPE_CHECKING = False"
    yield "if TYPE_CHECKING:"
    yield "    from collections.abc import Callable\n"
    yield "    from m31a_mp.session.paths import Session"
    yield "_INFINITE = float('inf')"
    methods = [line for kind in KINDS for line in _method(kind)]
    measured = [kind for kind in KINDS if any(field.type == CALL.type for field in kind.fields.values())]
    methods += [line for kind in measured for line in _put_method(kind)]
    fields = {name: field for kind in KINDS for name, field in _arguments(kind).items() if field}
    for name, field in sorted(fields.items()):
        limit = ', "", MAX_SHORT_NAME_BYTES' if field.type == SHORT_NAME.type else ""
        if any(f"_{name.upper()}[" in line for line in methods):
            yield f'_{name.upper()} = EncodedNames("{name}"{limit})'
    for kind in KINDS:
        yield from (f"{name} = {made}" for name, made in _flagged_names(kind).items())
    yield "class Recording:"
    yield '    """A method for each kind of record.'
    yield ""
    yield "    Attributes:"
    yield "        _session: The session to record into; None makes each method a no-op."
    yield "        _put: Stages a record; takes the event, the members, perhaps the last value, and a time."
    yield '    """'
    yield "    _session: Session | None"
    yield "    _put: Callable[..., None]"
    yield from _indented(methods)


def _method(kind: Kind) -> Iterable[str]:
    arguments = _arguments(kind)
    required = [f"{name}: {_annotation(name, f)}" for name, f in arguments.items() if not _is_optional(f)]
    given = {name: f for name, f in arguments.items() if f and f.is_optional}
    optional = [f"{name}: {f.annotation} = {f.default!r}" for name, f in given.items()]
    # A few that may be left out are not by keyword alone: Python calls such a function some 50 ns slower.
    typed = [*required, *(["*"] if len(optional) > _FEW else []), *optional]
    yield f"def record_{kind.event}(self, {', '.join(typed)}) -> None:"
    yield from _indented(_documentation(kind))
    nothing = [f"{name} is None" for name in kind.grouped if "None" in _GROUPS[name][0]]  # to record
    yield f"    if {' or '.join(['self._session is None', *nothing])}:"
    yield "        return"
    needed = {name: field for name, field in arguments.items() if not _is_optional(field)}
    for field, alike in groupby(needed, lambda name: arguments[name]):
        names = list(alike)
        if field is None:
            _, made, check = _GROUPS[names[0]]
            yield f"    if type({names[0]}) is not {made}:"
            yield f"        {check}({names[0]})"
        else:
            yield from _indented(_checks(field, names))
    yield from _indented(_puts(kind))


def _put_method(kind: Kind) -> Iterable[str]:
    """The method for a measured call, which has an id: this library made the values, or checked them."""
    fields = {
        name: field._replace(default=REQUIRED) if field.type == CALL.type else field
        for name, field in kind.fields.items()
    }
    typed = (
        f"{name}: {CALL.annotation if field.type == CALL.type else field.annotation}"
        for name, field in fields.items()
    )
    texts = _required_texts(
        kind, {name: field for name, field in kind.fields.items() if not field.is_optional}
    )
    for name, field in fields.items():
        if field.is_optional:
            texts.append(f'{{"" if {name} is None else {_member(name, field)[1:-1]}}}')
        elif kind.fields[name].is_optional:
            texts.append(_member(name, field))
    yield f"def _put_{kind.event}(self, {', '.join(typed)}) -> None:"
    yield f"    self._put({kind.event!r}, {_spelled(''.join(texts))})"


def _arguments(kind: Kind) -> dict[str, Field | None]:
    """The arguments of a method; None of one that stands for a group of fields, and spells them."""
    group_of = {name: group for group, names in kind.grouped.items() for name in names}
    return {
        group_of.get(name, name): None if name in group_of else field for name, field in kind.fields.items()
    }


def _is_optional(field: Field | None) -> bool:
    return field is not None and field.is_optional


def _annotation(name: str, field: Field | None) -> str:
    return field.annotation if field else _GROUPS[name][0]


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
    if field == COUNT and len(names) > 1:
        return f"not {' is '.join(f'type({name})' for name in names)} is int or ({' | '.join(names)}) >> 63"
    odd = [_IS_ODD[field.type].format(name) for name in names]
    return odd[0] if len(odd) == 1 else " or ".join(f"({one})" for one in odd)


_IS_ODD = {
    NAME.type: "type({0}) is not str",
    SHORT_NAME.type: "type({0}) is not str",
    CALL.type: "not is_call({0})",
    FLAG.type: "{0} is not True and {0} is not False",
    COUNT.type: "type({0}) is not int or {0} >> 63",
    PRICE.type: "{0} is not None and (type({0}) is not float or not 0.0 <= {0} < _INFINITE)",
}
_SHOWN = {
    CALL.type: '"{{{0}}}"',
    COUNT.type: "{{{0}}}",
    FLAG.type: '{{"true" if {0} else "false"}}',
    PRICE.type: '{{"null" if {0} is None else repr({0})}}',
}


def _puts(kind: Kind) -> Iterable[str]:
    """What stages a record: what may be left out is spelled only where it is given.

    A flag right behind a name is looked up with the name, and so is the key behind it: of most records,
    which are tool calls, only the duration is left to be spelled. To spell a count that is the last member
    where the line is put together takes less time than here.
    """
    arguments = _arguments(kind)
    required = {name: field for name, field in arguments.items() if not _is_optional(field)}
    optional = {name: field for name, field in arguments.items() if field and field.is_optional}
    members = "".join(_required_texts(kind, required))
    name, field = list(required.items())[-1]
    last = [name] if field == COUNT else []
    short = [_spelled(members.removesuffix(f"{{{name}}}") if last else members), *last]
    if "outcome" in kind.grouped:
        short += ['""', "outcome.time()"]
    put = f"self._put({', '.join([repr(kind.event), *short])})"
    if not optional:
        yield put
        return
    if last:  # most records have nothing more
        yield f"if {' and '.join(f'{name} is {field.default}' for name, field in optional.items())}:"
        yield f"    {put}"
        yield "    return"
    yield f"members = {_spelled(members)}"
    for name, field in optional.items():
        yield f"if {name} is not {field.default}:"
        yield from _indented(_checks(field, [name]))
        if name in kind.only_failed:
            yield "    if success:"
            yield f'        raise ValueError("{name} is of a call that failed, but success is true")'
        yield f"    members += {_spelled(_member(name, field))}"
    yield f"self._put('{kind.event}', members)"


def _checks(field: Field, names: list[str]) -> Iterable[str]:
    """What checks values that are not plainly right."""
    yield f"if {_is_odd(field, names)}:"
    yield from (f'    {name} = {field.check.__name__}("{name}", {name})' for name in names)


def _required_texts(kind: Kind, required: Mapping[str, Field | None]) -> list[str]:
    """The members that every record has."""
    texts = [_member(name, field) for name, field in required.items()]
    if known := list(_flagged_names(kind)):
        name, flag = list(kind.fields)[:2]
        _, brace, value = "".join(texts[2:]).partition("{")
        texts = [f"{{({known[0]} if {flag} else {known[1]})[{name}]}}", brace + value]
    return texts


def _spelled(text: str) -> str:
    """A text as an f-string, or as the expression that is all of it."""
    is_one = text.startswith("{") and text.count("{") == 1 and text.endswith("}")
    return text[1:-1] if is_one else f"f'{text}'"


def _flagged_names(kind: Kind) -> dict[str, str]:
    """The names that stand ready with a flag behind them, and the key behind that: true, and false."""
    if [field.type for field in kind.fields.values()][:2] != [NAME.type, FLAG.type]:
        return {}
    name, flag = list(kind.fields)[:2]
    required = [(name, field) for name, field in kind.fields.items() if not field.is_optional]
    key = "".join(_member(name, field) for name, field in required[2:]).partition("{")[0]
    known = f"_{kind.event.upper()}"
    return {
        f"{known}_{truth.upper()}": f"""EncodedNames("{name}", ',"{flag}":{truth}{key}')"""
        for truth in ("true", "false")
    }


def _member(name: str, field: Field | None) -> str:
    if field is None:
        return "{usage.members}" if name == "usage" else f"{{{name}.members()}}"
    if field.type in {NAME.type, SHORT_NAME.type}:  # `EncodedNames` checks and encodes it when it is new
        return f"{{_{name.upper()}[{name}]}}"
    return f',"{name}":{_SHOWN[field.type].format(name)}'


# --- The entries --------------------------------------------------------------------------------------


def _entries() -> Iterable[str]:
    yield f'"""The entries of each table: the values that records add up to.\n\n{_NOTE}\n"""'
    yield "\nfrom __future__ import annotations\n"
    yield "from typing import Any\n"
    yield "from m31a_mp.kinds.bounded import BoundedCounts"
    yield "from m31a_mp.kinds.durations import Calls, Durations"
    yield "from m31a_mp.kinds.exact import ExactSum"
    yield from _ENTRY.splitlines()
    tables = [table for table in TABLES.values() if isinstance(table, Table)]
    for table in tables:
        yield f"class {_entry_class(table)}(Entry):"
        yield f'    """An entry of `{table.name}`."""\n'
        yield f"    __slots__ = {tuple(sorted(table.parts))}"
        yield from (f"    {name}: {_VALUES[type(part)]}" for name, part in table.parts.items())
    yield "ENTRIES: dict[str, type[Entry]] = {"
    yield from (f"    {table.name!r}: {_entry_class(table)}," for table in tables)
    yield "}"
    yield '"""The class of the entries of each table, by the name of the table."""'


_ENTRY = '''
class Entry:
    """All records of one name, added up.

    Attributes:
        first: The time of the first record, in ns. Entries are sorted by this time.
    """

    __slots__ = ("first",)
    first: int
'''
_VALUES: dict[type, str] = {
    Sum: "int",
    LastTime: "int",
    Exact: "ExactSum",
    Latest: "tuple[Any, ...]",
    Earliest: "tuple[Any, ...]",
    Ever: "bool",
    Timed: "Durations",
    TimedCalls: "Calls",
    Counts: "BoundedCounts | None",
}
"""The type of the value of each part. The compiled fold needs it to be quick."""


def _entry_class(table: Table) -> str:
    return f"{table.name.title().replace('_', '')}Entry"


# --- The fold -----------------------------------------------------------------------------------------


def _folding() -> Iterable[str]:
    yield f'"""The fold of plain records of each kind.\n\n{_NOTE}\n"""'
    yield "\nfrom __future__ import annotations\n"
    yield "from typing import Any\n"
    yield "import orjson\n"
    branches = [line for kind in KINDS for line in _branch(kind)]
    checks = sorted({name for line in branches for name in _IS_RIGHT.values() if f"{name}(" in line})
    classes = sorted(_entry_class(table) for table in TABLES.values() if isinstance(table, Table))
    yield f"from m31a_mp.kinds._entries import {', '.join(classes)}"
    yield "from m31a_mp.kinds.bounded import BoundedCounts"
    yield f"from m31a_mp.kinds.checks import {', '.join(checks)}"
    yield "from m31a_mp.kinds.running import CallsUnderWay"
    yield "from m31a_mp.metrics.totals import Totals"
    keys = dict.fromkeys(("event", "time", *(name for kind in KINDS for name in kind.fields)))
    members = ",".join(f'"{key}":0' for key in keys)
    yield "# The strings that the parser uses as keys. A look-up by the same string compares no characters."
    yield f"_KEYS: list[str] = list(orjson.loads('{{{members}}}'))"
    yield "def fold_plain(totals: Totals, records: list[Any], latest: int) -> list[int]:"
    yield f"    {_FOLD_DOCUMENTATION}"
    yield f"    {', '.join(map(_key, keys))} = _KEYS"
    yield from _indented(line for table in TABLES.values() for line in _state(table))
    yield from _indented(_loop())


def _loop() -> Iterable[str]:
    yield "start = end = 0  # the bounds of the current step of the timeline"
    yield from _NO_STEP
    yield "step_cost: list[float] = []"
    yield "updated = totals.updated"
    yield "others = []"
    yield "record: dict[str, Any]"
    yield "event: str"
    yield "value: Any"
    yield "for position, parsed in enumerate(records):"
    yield "    try:"
    yield "        record = parsed"
    yield f"        event = record[{_key('event')}]"
    yield f"        time = record[{_key('time')}]"
    yield "        if type(time) is not int or not start <= time < end:"
    yield "            if type(time) is not int or not 0 <= time <= latest:"
    yield "                raise ValueError"
    yield f"            {_ADD_STEP}"
    yield from _indented(_NO_STEP, 3)
    yield "            step_cost.clear()"
    yield "            start, end = timeline.bounds(time, latest)"
    for i, kind in enumerate(KINDS):
        yield f'        {"elif" if i else "if"} event == "{kind.event}":'
        yield from _indented(_branch(kind), 3)
    yield "        else:"
    yield "            raise ValueError"
    yield "    except (KeyError, TypeError, ValueError):"
    yield "        others.append(position)"
    yield "        continue"
    yield "    if time > updated:"
    yield "        updated = time"
    yield _ADD_STEP
    yield "totals.updated = updated"
    yield "return others"


def _state(table: Table | Steps | Whole) -> Iterable[str]:
    """The variables for the state of a table."""
    state = f'totals.tables["{table.name}"]'
    if isinstance(table, Table):
        yield f"{table.name}: dict[str, {_entry_class(table)}] = {state}.by_name"
        is_optional = any(
            into.table is table and kind.fields[into.key].is_optional
            for kind in KINDS
            for into in kind.into
            if isinstance(into, Into)
        )
        yield f"{_entry(table)}: {_entry_class(table)}{' | None' if is_optional else ''}"
    elif isinstance(table, Running):
        yield f"{table.name}: CallsUnderWay = {state}"
        yield f"{_begun(table)} = {table.name}.calls"
    else:
        yield f"{table.name}: Any = {state}"


_NO_STEP = [" = ".join([*(f"step_{name}" for name in COUNTS), "0"])]
_ADD_STEP = f"timeline.add(start, {', '.join(f'step_{name}' for name in COUNTS)}, costs=step_cost)"
_FOLD_DOCUMENTATION = '''"""Count the plainly valid records whose names have an entry. These are most records.

    Args:
        totals: The totals to add to.
        records: Parsed lines.
        latest: The latest time that a record may have, in nanoseconds since the epoch.

    Returns:
        The positions of the other records, which are not counted.
    """'''


def _branch(kind: Kind) -> Iterable[str]:
    required = {name: field for name, field in kind.fields.items() if not field.is_optional}
    if len(required) == len(kind.fields) or not isinstance(kind.into[0], Into):
        yield from _fold(kind, kind.fields)
        return
    yield f"if len(record) == {2 + len(required)}:  # nothing that may be left out is there"
    yield from _indented(_fold(kind, required))
    if kind.usual:
        present = " and ".join(f"{_key(name)} in record" for name in kind.usual)
        yield f"elif len(record) == {2 + len(required) + len(kind.usual)} and {present}:"
        usual = {name: kind.fields[name]._replace(default=REQUIRED) for name in kind.usual}
        yield from _indented(_fold(kind, required | usual))
    yield "else:"
    yield from _indented(_fold(kind, kind.fields))


def _fold(kind: Kind, given: Mapping[str, Field]) -> Iterable[str]:
    """What adds a record that has these fields; the others have their default."""
    first, *others = kind.into
    key = first.key if isinstance(first, Into) else ""
    fields = {name: field for name, field in given.items() if name != key}
    for name, field in fields.items():
        default = "" if field.default is None else f", {field.default!r}"
        yield f"{name} = record{f'.get({_key(name)}{default})' if field.is_optional else f'[{_key(name)}]'}"
    keys = {into.key for into in others if isinstance(into, Into) and isinstance(into.table, Table)}
    # A name that has an entry was checked when it got that.
    checked = {name: field for name, field in fields.items() if name not in keys}
    if checked:
        rules = [rule for rule in kind.rules if given.keys() >= {*rule.parts, rule.whole}]
        broken = (f"{' + '.join(rule.parts)} > {rule.whole}" for rule in rules)
        yield f"if {' or '.join([*_guards(kind, checked), *broken])}:"
        yield "    raise ValueError"
    if isinstance(first, Ends):
        raise TypeError(f"{kind.event} only ends a call")
    if not isinstance(first, Into):
        values = (f"tuple({name})" if kind.fields[name].type == FILES.type else name for name in first.fields)
        yield f"{first.name}.add(time, {', '.join(values)})"
        yield from _earlier(first.name)
        return
    yield f"{_entry(first.table)} = {first.table.name}[record[{_key(key)}]]"
    yield from _into_tables(kind, given, first)


def _into_tables(kind: Kind, given: Mapping[str, Field], first: Into) -> Iterable[str]:
    """What adds a checked record to the entry of the first table, and to the others."""
    others = kind.into[1:]
    tables = [into for into in others if isinstance(into, Into) and (into.key in given or not into.key)]
    for into in tables:  # all that may fail comes before the first addition
        if isinstance(into.table, Table):
            entry = f"{into.table.name}[{into.key}]"
            absent = f"None if {into.key} is None else " if given[into.key].is_optional else ""
            yield f"{_entry(into.table)} = {absent}{entry}"
    perhaps = [into for into in tables if into.key and given[into.key].is_optional]
    always = [first, *(into for into in tables if into not in perhaps)]
    yield from _additions(given, always)
    for into in always:
        yield from _first(into)
    for into in perhaps:
        yield f"if {_entry(into.table)} is not None:"
        yield from _indented([*_additions(given, [into]), *_first(into)])
    for ends in kind.into:
        if isinstance(ends, Ends) and ends.call in given:
            end = f"{ends.table.name}.end({ends.call})"
            yield f"if {ends.call} is not None:\n    {end}" if given[ends.call].is_optional else end


def _key(name: str) -> str:
    return f"{name}_key"


def _entry(table: Table | Steps) -> str:
    return f"{table.name}_entry"


def _begun(table: Running) -> str:
    return f"{table.name}_calls"


def _first(into: Into) -> Iterable[str]:
    if isinstance(into.table, Table):
        yield from _earlier(_entry(into.table))


def _earlier(entry: str) -> Iterable[str]:
    yield f"if time < {entry}.first:"
    yield f"    {entry}.first = time"


def _guards(kind: Kind, fields: Mapping[str, Field]) -> Iterable[str]:
    """Conditions of which one is true unless the values are plainly right.

    Each type has a condition of its own: the compiler learns from it that the value is an int.
    """
    begun = {ends.call: f"{_begun(ends.table)}" for ends in kind.into if isinstance(ends, Ends)}
    for name, field in fields.items():
        if field.type == FLAG.type:
            yield f"type({name}) is not bool"
        elif field.type == PRICE.type:
            yield f"({name} is not None and (type({name}) is not float or {name} < 0))"
        elif field.type != COUNT.type:
            wrong = f"not {_IS_RIGHT[field.type]}({name})"
            if name in begun:  # an id that began a call was checked when it did
                wrong = f"{name} not in {begun[name]} and {wrong}"
            given = f"{name} {'is not' if field.default is None else '!='} {field.default!r}"
            yield f"({given} and {wrong})" if field.is_optional else f"({wrong})"
        elif field.default is None:
            yield f"({name} is not None and (type({name}) is not int or {name} >> 63))"
    counts = [n for n, field in fields.items() if field.type == COUNT.type and field.default is not None]
    yield from (f"type({name}) is not int" for name in counts)
    if counts:  # what is shifted is not 0 if it has more bits than 63, or is negative
        both = " | ".join(counts)
        yield f"({both}) >> 63" if len(counts) > 1 else f"{both} >> 63"


_IS_RIGHT = {
    NAME.type: "is_name",
    SHORT_NAME.type: "is_short_name",
    CALL.type: "is_call",
    TEXT.type: "is_text",
    FILES.type: "is_files",
}


def _additions(given: Mapping[str, Field], targets: list[Into]) -> Iterable[str]:
    """What adds to some entries: without a condition, and then by conditions."""
    conditional: dict[str, dict[bool, list[str]]] = {}
    for into in targets:
        for name, effect in into.adds.items():
            if isinstance(effect, Value | Unknown) and effect.field not in given:
                continue  # it is None
            if isinstance(effect, If) and effect.flag not in given:
                continue  # it is False
            prefix = "step_" if isinstance(into.table, Steps) else f"{_entry(into.table)}."
            for condition, holds, line in _addition(given, into, prefix + name, name, effect):
                if condition:
                    conditional.setdefault(condition, {True: [], False: []})[holds].append(line)
                else:
                    yield line
    for condition, branches in conditional.items():
        holds = not branches[False] or bool(branches[True])
        yield f"if {condition if holds else _negated(condition)}:"
        yield from _indented(branches[holds])
        if branches[not holds]:
            yield "else:"
            yield from _indented(branches[not holds])


def _negated(condition: str) -> str:
    return condition.replace(" is None", " is not None") if " is None" in condition else f"not {condition}"


def _addition(
    given: Mapping[str, Field], into: Into, target: str, name: str, effect: Effect
) -> Iterable[tuple[str, bool, str]]:
    """The lines that add to one part: the condition of each, whether it has to hold, and the line."""
    part = into.table.parts[name]
    match effect:
        case Ended():
            yield effect.success, True, f"{target}.waiting.append({effect.duration_ms})"
            yield effect.success, False, f"{target}.waiting.append(~{effect.duration_ms})"
        case When():
            yield "", True, f"if time > {target}:\n    {target} = time"
        case Values():
            value = f"(time, {', '.join(effect.fields)})"
            yield "", True, f"value = {value}\nif value > {target}:\n    {target} = value"
        case If() if isinstance(part, Ever):
            yield effect.flag, True, f"{target} = True"
        case If():
            yield effect.flag, effect.wanted, f"{target} += 1"
        case Unknown():
            yield f"{effect.field} is None", True, f"{target} += 1"
        case Always():
            yield "", True, f"{target} += 1"
        case Value():
            field = given[effect.field]
            condition = f"{effect.field} is None" if field.default is None or field.type == PRICE.type else ""
            to_step = isinstance(into.table, Steps) and isinstance(part, Exact)
            added = f"{target}.append({effect.field})" if to_step else None
            yield condition, False, added or _value_addition(part, target, effect.field)


def _value_addition(part: object, target: str, field: str) -> str:
    if isinstance(part, Exact | Timed):
        return f"{target}.waiting.append({field})"
    if isinstance(part, Counts):
        return f"if {target} is None:\n    {target} = BoundedCounts()\n{target}.add({field})"
    if isinstance(part, Earliest):
        earlier = f"not {target} or value < {target}"
        return f"value = (time, {field})\nif {earlier}:\n    {target} = value"
    return f"{target} += {field}"


def main() -> None:
    for path, text in modules().items():
        path.write_text(text)


# --- The options of the command line --------------------------------------------------------------------


def _options() -> Iterable[str]:
    yield f'"""The options of the commands that start without click.\n\n{_NOTE_OF_OPTIONS}\n"""'
    yield "from __future__ import annotations\n"
    yield "TYPE_CHECKING = False"
    yield "if TYPE_CHECKING:"
    yield "    from typing import Any\n"
    yield "    Command = tuple[tuple[str, ...] | None, dict[str, tuple[str, str]], dict[str, Any]]"
    events = {kind.command: kind.event for kind in KINDS if kind.command}
    yield f"EVENTS = {events!r}"
    yield '"""The kind of record that a command of `record` makes."""'
    commands = {"run": run.command, "record": record.command}
    commands |= {f"record {name}": command for name, command in record.command.commands.items()}
    yield "COMMANDS: dict[str, Command] = {"
    for name, command in commands.items():
        yield f"    {name!r}: {_command(command)!r},"
    yield "}"
    yield '"""The arguments, the options and the defaults of each command.'
    yield ""
    yield "The arguments are None if the words from the first argument on are not the command's own. An"
    yield "option has the name and the kind of its value."
    yield '"""'


def _command(command: click.Command) -> tuple[Any, ...]:
    """Describe the arguments and options of a command in plain values.

    Raises:
        KeyError, TypeError: The command has a parameter that `cli/quick.py` cannot read.
    """
    with command.make_context(command.name, [], resilient_parsing=True) as context:
        defaults, is_whole = context.params, context.allow_interspersed_args
    own = [parameter for parameter in command.params if is_whole or isinstance(parameter, click.Option)]
    if any(parameter.callback or parameter.nargs != 1 for parameter in own):
        raise TypeError(f"{command.name} has a parameter with a callback, or with several values")
    options = {
        word: (option.name, kind)
        for option in own
        if isinstance(option, click.Option)
        for word, kind in _kinds(option).items()
    }
    arguments = tuple(argument.name for argument in own if isinstance(argument, click.Argument))
    optional = [str(parameter.name) for parameter in own if not parameter.required]
    return arguments if is_whole else None, options, {name: defaults[name] for name in optional}


def _kinds(option: click.Option) -> dict[str, str]:
    """The words of an option, each with the kind of its value."""
    if option.is_flag:
        return dict.fromkeys(option.opts, "on") | dict.fromkeys(option.secondary_opts, "off")
    kinds = {WholeNumber.name: "count", "float": "number", "text": "texts" if option.multiple else "text"}
    return dict.fromkeys(option.opts, kinds[option.type.name])


if __name__ == "__main__":
    main()
