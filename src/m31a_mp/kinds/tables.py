"""Tables of entries by name: the declaration and the state of a table.

A declaration (`Table`) makes the state that a fold changes (`Entries`). The state merges with another state,
converts to fields of `SessionMetrics`, and is restored from these fields and the checkpoint.

A publication encodes an entry once, and the entry then rests until a record changes it: a flush costs what
changed, not what the session has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain, count
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

import orjson

from m31a_mp.kinds._entries import ENTRIES as ENTRY_CLASSES
from m31a_mp.kinds._entries import Entry
from m31a_mp.kinds.parts import Column, Derived, Exact, Groups, Part, Restoring, Timed, TimedCalls
from m31a_mp.kinds.state import State
from m31a_mp.model import ENTRIES, entry_to_json

_NOTHING: Mapping[str, Any] = {}


class Table:
    """Entries by name.

    Attributes:
        name: The key in `metrics.json`, which is the field of `SessionMetrics`.
        key: The field of an entry with its name.
        parts: The parts of an entry.
        derived: The fields that are computed from the parts.
    """

    def __init__(self, name: str, key: str, **parts: Part | Derived) -> None:
        self.name = name
        self.key = key
        self.parts: dict[str, Part] = {n: p for n, p in parts.items() if not isinstance(p, Derived)}
        self.derived = {n: p for n, p in parts.items() if isinstance(p, Derived)}

    def new(self) -> Entries:
        """Return the table without entries."""
        return Entries(self)

    def entry(self, first: int) -> Entry:
        """Return an entry without additions."""
        entry = ENTRY_CLASSES[self.name]()
        entry.first = first
        for name, part in self.parts.items():
            setattr(entry, name, part.zero())
        return entry

    def packed(self, entries: Mapping[str, Entry]) -> PackedEntries:
        """Return the packed form of entries by name."""
        columns: list[Column] = [[entry.first for entry in entries.values()]]
        for at, part in self.parts.items():
            values = [part.packed(getattr(entry, at)) for entry in entries.values()]
            columns += map(list, zip(*values, strict=True))
        return PackedEntries(_rows(entries), columns)

    def unpacked(self, packed: Iterator[Any]) -> Entry:
        """Return the entry of the values in a row of the columns."""
        entry = ENTRY_CLASSES[self.name]()
        entry.first = next(packed)
        for at, part in self.parts.items():
            setattr(entry, at, part.unpacked(packed))
        return entry

    def merged(self, states: Sequence[PackedEntries]) -> PackedEntries:
        """Return the sum of packed entries. There is at least one state."""
        names = list(states[0].rows)
        groups: Groups
        if all(state.is_dense() and list(state.rows) == names for state in states):  # as of similar sites
            groups = (list(zip(*columns, strict=True)) for columns in zip(*_columns(states), strict=True))
            return self._merged(names, groups)
        starts = accumulate((len(state.columns[0]) for state in states), initial=0)
        placed = (
            (name, start + row)
            for state, start in zip(states, starts, strict=False)
            for name, row in state.rows.items()
        )
        columns = [list(chain.from_iterable(some)) for some in zip(*_columns(states), strict=True)]
        return self.grouped(placed, columns)

    def grouped(self, placed: Iterable[tuple[str, int]], columns: list[Column]) -> PackedEntries:
        """Add up the rows of each name. `placed` has the names and their rows."""
        rows: dict[str, list[int]] = {}
        for name, row in placed:
            rows.setdefault(name, []).append(row)
        # A slice takes a list out of a column also for one row.
        some: list[Callable[[Column], Sequence[Any]]] = [
            itemgetter(*of) if len(of) > 1 else itemgetter(slice(of[0], of[0] + 1)) for of in rows.values()
        ]
        return self._merged(rows, ([group(column) for group in some] for column in columns))

    def _merged(self, names: Iterable[str], groups: Groups) -> PackedEntries:
        columns: list[Column] = [list(map(min, next(groups)))]
        for part in self.parts.values():
            columns += part.merged(groups)
        return PackedEntries(_rows(names), columns)


def _rows(names: Iterable[str]) -> dict[str, int]:
    return {name: row for row, name in enumerate(names)}


class PackedEntries(NamedTuple):
    """The packed entries of a table.

    Attributes:
        rows: The row of each entry, by its name. A row without a name has no entry any more.
        columns: The times of the first records, then the columns of the parts.
    """

    rows: dict[str, int]
    columns: list[Column]

    def is_dense(self) -> bool:
        """Whether every row has an entry."""
        return len(self.rows) == len(self.columns[0])


def _columns(states: Iterable[PackedEntries]) -> list[list[Column]]:
    return [state.columns for state in states]


class Resting(NamedTuple):
    """An entry that did not change since it was encoded.

    Attributes:
        place: The time of its first record, and its name: entries are sorted by both.
        entry: The entry.
        shown: The JSON of the entry in the list of its table.
        kept: The JSON of its part of the checkpoint.
    """

    place: tuple[int, str]
    entry: Any
    shown: orjson.Fragment
    kept: orjson.Fragment


class Entries(State):
    """The entries of a table.

    Attributes:
        table: The declaration.
        by_name: The entries that may have changed since the last `encoded`, by name. A plain dict, because
            the fold looks up every record. The fold takes the entry of any other name from `entry`.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self.by_name: dict[str, Any] = {}
        self._resting: dict[str, Resting] = {}
        # Entries that were restored or merged, and not asked for since.
        self._packed = PackedEntries({}, [])

    def __len__(self) -> int:
        return len(self.by_name) + len(self._resting) + len(self._packed.rows)

    def __contains__(self, name: str) -> bool:
        return name in self.by_name or name in self._resting or name in self._packed.rows

    def names(self) -> Iterator[str]:
        """Return the names of all entries."""
        return chain(self.by_name, self._resting, self._packed.rows)

    def entry(self, name: str, time: int) -> Any:
        """Return the entry of a name, to be changed. A missing entry is made, first recorded at `time`."""
        entry = self.by_name.get(name)
        if entry is None:
            if rested := self._resting.pop(name, None):
                entry = rested.entry
            elif (row := self._packed.rows.pop(name, None)) is not None:
                entry = self.table.unpacked(column[row] for column in self._packed.columns)
            else:
                entry = self.table.entry(time)
            self.by_name[name] = entry
        return entry

    def encoded(
        self, encode: Callable[[dict[str, Any]], orjson.Fragment]
    ) -> tuple[list[orjson.Fragment], dict[str, orjson.Fragment]]:
        """Return the entries in order, and the checkpoint's part of each, as JSON. The entries rest now.

        Args:
            encode: Returns the JSON of an entry in its list.
        """
        self._unpack()
        metric = ENTRIES[self.table.name]
        for name, entry in self.by_name.items():
            shown = encode(entry_to_json(metric(**self._fields(name, entry))))
            self._resting[name] = Resting((entry.first, name), entry, shown, fragment(self._kept(entry)))
        self.by_name.clear()  # keep the dict: a fold may go on with it
        in_order = sorted(self._resting.values(), key=attrgetter("place"))
        return [rested.shown for rested in in_order], {rested.place[1]: rested.kept for rested in in_order}

    def _unpack(self) -> None:
        for name in list(self._packed.rows):
            self.entry(name, 0)
        self._packed = PackedEntries({}, [])  # the columns take memory

    def _all(self) -> Iterator[tuple[str, Any]]:
        self._unpack()
        yield from self.by_name.items()
        for name, rested in self._resting.items():
            yield name, rested.entry

    def begun(self) -> Iterator[int]:
        """Return the time of the first record of each entry."""
        unpacked = chain(self.by_name.values(), (rested.entry for rested in self._resting.values()))
        rows, columns = self._packed
        return chain((entry.first for entry in unpacked), (columns[0][row] for row in rows.values()))

    def settle(self) -> None:
        """Count waiting values in the entries to save memory."""
        for name, part in self.table.parts.items():
            if isinstance(part, TimedCalls | Timed | Exact):
                for entry in self.by_name.values():
                    getattr(entry, name).settle()

    def merge(self, *others: Entries) -> None:
        """Add the entries of other states."""
        states = [packed for each in (self, *others) for packed in each._all_packed()]
        if len(states) == 1:  # share the columns
            self._packed = PackedEntries(dict(states[0].rows), states[0].columns)
        elif states:
            self._packed = self.table.merged(states)
        self.by_name.clear()  # keep the dict: a fold may go on with it
        self._resting.clear()

    def _all_packed(self) -> Iterator[PackedEntries]:
        unpacked = self.by_name | {name: rested.entry for name, rested in self._resting.items()}
        if unpacked:
            yield self.table.packed(unpacked)
        if self._packed.rows:
            yield self._packed

    def shown(self) -> dict[str, Any]:
        """Return the entries as a field of `SessionMetrics`."""
        in_order = sorted(self._all(), key=lambda item: (item[1].first, item[0]))
        metric = ENTRIES[self.table.name]
        return {self.table.name: [metric(**self._fields(name, entry)) for name, entry in in_order]}

    def kept(self) -> dict[str, Any]:
        """Return the checkpoint's part of each entry."""
        return {name: self._kept(entry) for name, entry in self._all()}

    def restore(self, read: Mapping[str, Any], kept: Mapping[str, Any], at: Restoring) -> None:
        """Add the entries of `metrics.json`. Several of one name, left by another program, add up."""
        shown: dict[str, list[Any]] = read[self.table.name].fields
        names = shown[self.table.key]
        if not names:
            return
        known = [kept.get(name, _NOTHING) for name in names]
        firsts = at.times([part.get("first", at.started + i) for i, part in enumerate(known)])
        columns = [firsts]
        for name, part in self.table.parts.items():
            columns += part.restored(name, shown, known, at)
        self._packed = PackedEntries(_rows(names), columns)
        if len(self._packed.rows) < len(names):
            self._packed = self.table.grouped(zip(names, count(), strict=False), columns)

    def _fields(self, name: str, entry: Any) -> dict[str, Any]:
        shown: dict[str, Any] = {self.table.key: name}
        for at, part in self.table.parts.items():
            part.show(at, getattr(entry, at), shown)
        for at, derived in self.table.derived.items():
            shown[at] = derived.of(shown)
        return shown

    def _kept(self, entry: Any) -> dict[str, Any]:
        kept: dict[str, Any] = {"first": entry.first}
        for at, part in self.table.parts.items():
            part.save(getattr(entry, at), kept)
        return kept


def fragment(value: Any) -> orjson.Fragment:
    """Return the JSON of a value in one line."""
    # Copy the bytes: a result of orjson takes at least 1 KiB of memory.
    return orjson.Fragment(bytes(memoryview(orjson.dumps(value))))
