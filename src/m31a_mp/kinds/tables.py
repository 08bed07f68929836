"""Tables of entries by name: the declaration and the state of a table.

A declaration (`Table`) makes the state that a fold changes (`Entries`). The state merges with another state,
converts to fields of `SessionMetrics`, and is restored from these fields and the checkpoint.

A publication encodes an entry once, and the entry then rests until a record changes it: a flush costs what
changed, not what the session has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from operator import attrgetter
from typing import Any, NamedTuple

import orjson

from m31a_mp.kinds._entries import ENTRIES as ENTRY_CLASSES
from m31a_mp.kinds._entries import Entry
from m31a_mp.kinds.parts import Derived, Exact, Part, Restoring, Timed, TimedCalls
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

    def packed(self, entry: Entry) -> tuple[Any, ...]:
        """Return the packed form of an entry: the time of its first record, then its parts."""
        return entry.first, *[part.packed(getattr(entry, at)) for at, part in self.parts.items()]

    def unpacked(self, packed: tuple[Any, ...]) -> Entry:
        """Return the entry of its packed form."""
        entry = ENTRY_CLASSES[self.name]()
        entry.first = packed[0]
        for (at, part), value in zip(self.parts.items(), packed[1:], strict=True):
            setattr(entry, at, part.unpacked(value))
        return entry

    def merged(self, packed: list[tuple[Any, ...]]) -> tuple[Any, ...]:
        """Return the sum of packed entries."""
        firsts, *columns = zip(*packed, strict=True)
        parts = zip(self.parts.values(), columns, strict=True)
        return min(firsts), *[part.merged(column) for part, column in parts]


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
        self._packed: dict[str, tuple[Any, ...]] = {}

    def __len__(self) -> int:
        return len(self.by_name) + len(self._resting) + len(self._packed)

    def __contains__(self, name: str) -> bool:
        return name in self.by_name or name in self._resting or name in self._packed

    def names(self) -> Iterator[str]:
        """Return the names of all entries."""
        return chain(self.by_name, self._resting, self._packed)

    def entry(self, name: str, time: int) -> Any:
        """Return the entry of a name, to be changed. A missing entry is made, first recorded at `time`."""
        entry = self.by_name.get(name)
        if entry is None:
            if rested := self._resting.pop(name, None):
                entry = rested.entry
            elif packed := self._packed.pop(name, None):
                entry = self.table.unpacked(packed)
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
        for name in list(self._packed):
            self.entry(name, 0)

    def _all(self) -> Iterator[tuple[str, Any]]:
        self._unpack()
        yield from self.by_name.items()
        for name, rested in self._resting.items():
            yield name, rested.entry

    def begun(self) -> Iterator[int]:
        """Return the time of the first record of each entry."""
        unpacked = chain(self.by_name.values(), (rested.entry for rested in self._resting.values()))
        return chain((entry.first for entry in unpacked), (packed[0] for packed in self._packed.values()))

    def settle(self) -> None:
        """Count waiting values in the entries to save memory."""
        for name, part in self.table.parts.items():
            if isinstance(part, TimedCalls | Timed | Exact):
                for entry in self.by_name.values():
                    getattr(entry, name).settle()

    def merge(self, *others: Entries) -> None:
        """Add the entries of other states."""
        found: dict[str, list[tuple[Any, ...]]] = {}
        for other in others:
            for name, packed in other._all_packed():
                found.setdefault(name, []).append(packed)
        for name, entries in found.items():
            self._add(name, entries)

    def _add(self, name: str, entries: list[tuple[Any, ...]]) -> None:
        if name in self:
            entries = [self.table.packed(self.entry(name, 0)), *entries]
            del self.by_name[name]
        self._packed[name] = self.table.merged(entries) if len(entries) > 1 else entries[0]

    def _all_packed(self) -> Iterator[tuple[str, tuple[Any, ...]]]:
        yield from self._packed.items()
        for name, entry in self.by_name.items():
            yield name, self.table.packed(entry)
        for name, rested in self._resting.items():
            yield name, self.table.packed(rested.entry)

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
        columns = [part.restored(name, shown, known, at) for name, part in self.table.parts.items()]
        entries = list(zip(firsts, *columns, strict=True))
        self._packed = dict(zip(names, entries, strict=True))
        if len(self._packed) < len(names):
            self._packed = {}
            for name, packed in zip(names, entries, strict=True):
                self._add(name, [packed])

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
