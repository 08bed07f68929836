"""Records of every kind, what they must add up to, and a process that is killed on their way."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import orjson
from hypothesis import strategies as st

from m31a_mp import SessionMetrics, Usage
from m31a_mp._recording import Recording
from m31a_mp.journal.append import Journal
from m31a_mp.journal.batch import Batch
from m31a_mp.kinds.catalog import EVENTS, KINDS, TABLES
from m31a_mp.kinds.declaration import Into, Kind
from m31a_mp.kinds.fields import COST, COUNT, FLAG, NAME
from m31a_mp.kinds.parts import Exact, Latest, Part, Sum
from m31a_mp.kinds.tables import Table
from m31a_mp.segments.drain import drain
from m31a_mp.segments.reader import list_segments
from m31a_mp.session.paths import Session
from m31a_mp.system import files
from workers import locked

INT64_MAX = 2**63 - 1


@dataclass(frozen=True)
class Record:
    """One call of a `record_*` method."""

    event: str
    arguments: tuple[Any, ...]

    def perform(self, recorder: Recording) -> None:
        getattr(recorder, f"record_{self.event}")(*self.arguments)

    def fields(self) -> dict[str, Any]:
        """The arguments by the keys that they have in a line."""
        kind = EVENTS[self.event]
        arguments = dict(zip(_arguments(kind), self.arguments, strict=True))
        for group, names in kind.grouped.items():
            arguments |= {name: getattr(arguments[group], name) for name in names}
        return {name: arguments[name] for name in kind.fields}

    def line(self, time: int) -> bytes:
        """As any other program would write it."""
        return orjson.dumps({"event": self.event, "time": time, **self.fields()}) + b"\n"


def _arguments(kind: Kind) -> list[str]:
    """The names of the arguments of a kind's method."""
    group_of = {name: group for group, names in kind.grouped.items() for name in names}
    return list(dict.fromkeys(group_of.get(name, name) for name in kind.fields))


Entries = dict[str, list[dict[str, Any]]]


def expected(records: Iterable[tuple[int, Record]]) -> Entries:
    """What records of these times must add up to, as in `metrics.json`; no two have the same time."""
    of: dict[str, list[tuple[int, Kind, dict[str, Any]]]] = {name: [] for name in TABLES}
    for time, record in sorted(records, key=lambda item: item[0]):
        kind = EVENTS[record.event]
        of[kind.table.name].append((time, kind, record.fields()))
    return {
        name: _expected_entries(table, of[name]) if isinstance(table, Table) else _expected_list(of[name])
        for name, table in TABLES.items()
    }


def _expected_entries(table: Table, records: list[tuple[int, Kind, dict[str, Any]]]) -> list[dict[str, Any]]:
    added: dict[str, dict[str, list[Any]]] = {}
    for _, kind, fields in records:
        entry = added.setdefault(fields[table.key], {part: [] for part in table.parts})
        assert isinstance(kind.into, Into)
        for part, effect in kind.into.adds.items():
            entry[part].append(effect.of(fields))
    entries = []
    for name, parts in added.items():
        shown = {table.key: name}
        for part, values in parts.items():
            shown |= _expected_part(part, table.parts[part], values)
        entries.append(shown | {at: derived.of(shown) for at, derived in table.derived.items()})
    return entries


def _expected_part(name: str, part: Part, values: list[Any]) -> dict[str, Any]:
    """What is shown of values that were added in the order of their times."""
    match part:
        case Sum():
            return {name: min(sum(values), INT64_MAX)}
        case Exact():
            return {name: float(sum(map(Fraction, values), Fraction()))}
        case Latest():
            return dict(zip(part.zeros, values[-1] if values else part.zeros.values(), strict=True))
    raise AssertionError(part)


def _expected_list(records: list[tuple[int, Kind, dict[str, Any]]]) -> list[dict[str, Any]]:
    return [values for _, _, values in sorted(records, key=lambda item: (item[0], *item[2].values()))][-1000:]


def entries(metrics: SessionMetrics) -> Entries:
    """The entries of metrics, to compare with what was `expected`; without their times."""
    document = metrics.to_json()
    for happening in (entry for table in TABLES for entry in document.get(table, [])):
        happening.pop("timestamp", None)
    return {table: document.get(table, []) for table in TABLES}


_TRICKY = [
    "bash", "plan", "%", "%d%b%s", '"', "\\", "\n", "\0", "\x7f", "\r\n", "\u2028", "é", "e\u0301", "\ufeff",
    "\U0001f600", "\U0010ffff", "\ufffe", '{"batch":"', "null", " ", "x" * 4096, "\0" * 4096,
    "\U0001f600" * 1024,
]  # fmt: skip

_characters = st.characters(exclude_categories=["Cs"])  # all that UTF-8 can carry
names = st.sampled_from(_TRICKY) | st.text(_characters, min_size=1, max_size=60)
few_names = st.sampled_from(["bash", "plan", "%é", "\n"])
counts = st.integers(0, 1000) | st.integers(0, 2**40)
any_counts = counts | st.sampled_from([INT64_MAX - 1, INT64_MAX]) | st.integers(0, INT64_MAX)
costs = st.sampled_from([0.0, 0.1, 0.2, 0.3, 1e-300, 5e-324, 1e16]) | st.floats(0, 1e15, allow_subnormal=True)


def records_of(
    names: st.SearchStrategy[str], counts: st.SearchStrategy[int] = counts
) -> st.SearchStrategy[Record]:
    """A record of any kind with such names and numbers."""
    values = {NAME: names, COUNT: counts, FLAG: st.booleans(), COST: costs}
    return st.one_of(
        [
            st.builds(_record, st.just(kind), st.tuples(*(values[field] for field in kind.fields.values())))
            for kind in KINDS
        ]
    )


def _record(kind: Kind, values: tuple[Any, ...]) -> Record:
    """A record of these values of its fields, of which `Usage` takes some."""
    fields = dict(zip(kind.fields, values, strict=True))
    made = {"usage": lambda: Usage(*(fields[name] for name in kind.grouped["usage"]))}
    arguments = (made[name]() if name in kind.grouped else fields[name] for name in _arguments(kind))
    return Record(kind.event, tuple(arguments))


records = records_of(names)
few_records = records_of(few_names)


def encoded(batch: Batch) -> bytes:
    """A batch as it stands in the journal."""
    return batch.header() + bytes(batch.records)


def killed_while_appending(session: Session, written: Callable[[bytes], int]) -> None:
    """A process that drains everything is killed when it has written so many bytes to the journal."""
    pid = os.fork()
    if not pid:
        try:
            _append_and_die(session, written)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _append_and_die(session: Session, written: Callable[[bytes], int]) -> None:
    write_all = files.write_all

    def write_some(fd: int, data: bytes, *where: int) -> None:
        if data == b"\n":  # completes the line of another
            write_all(fd, data, *where)
            return
        write_all(fd, data[: written(data)], *where)
        os._exit(0)

    files.write_all = write_some  # type: ignore[assignment]
    log = Journal(session)
    with locked(session):
        drain(log, list_segments(session.segments))


def around_line_ends(line: int, shift: int) -> Callable[[bytes], int]:
    """So many bytes that they end `shift` bytes from the end of a line, and are never all."""

    def length(data: bytes) -> int:
        ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
        return max(0, min(ends[line % len(ends)] + shift, len(data) - 1))

    return length
