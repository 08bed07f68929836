"""Tables of entries by name: the declaration and the state of a table.

A declaration (`Table`) makes the state that a fold changes (`Entries`). The state merges with another state,
converts to fields of `SessionMetrics`, and is restored from these fields and the checkpoint.

A publication encodes an entry once, and the entry then rests until a record changes it: a flush costs what
changed, not what the session has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from typing import Any, NamedTuple

import orjson

from m31a_mp.kinds._entries import ENTRIES as ENTRY_CLASSES
from m31a_mp.kinds._entries import Entry
from m31a_mp.kinds.parts import Derived, Exact, Part, Restoring, Timed, TimedCalls
from m31a_mp.kinds.state import State
from m31a_mp.model import ENTRIES, SessionMetrics, entry_to_json


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

    def __len__(self) -> int:
        return len(self.by_name) + len(self._resting)

    def __contains__(self, name: str) -> bool:
        return name in self.by_name or name in self._resting

    def names(self) -> Iterator[str]:
        """Return the names of all entries."""
        return (name for name, _ in self._all())

    def entry(self, name: str, time: int) -> Any:
        """Return the entry of a name, to be changed. A missing entry is made, first recorded at `time`."""
        entry = self.by_name.get(name)
        if entry is None:
            rested = self._resting.pop(name, None)
            entry = self.by_name[name] = rested.entry if rested else self.table.entry(time)
        return entry

    def encoded(
        self, encode: Callable[[dict[str, Any]], orjson.Fragment]
    ) -> tuple[list[orjson.Fragment], dict[str, orjson.Fragment]]:
        """Return the entries in order, and the checkpoint's part of each, as JSON. The entries rest now.

        Args:
            encode: Returns the JSON of an entry in its list.
        """
        metric = ENTRIES[self.table.name]
        for name, entry in self.by_name.items():
            shown = encode(entry_to_json(metric(**self._fields(name, entry))))
            self._resting[name] = Resting((entry.first, name), entry, shown, fragment(self._kept(entry)))
        self.by_name.clear()  # keep the dict: a fold may go on with it
        in_order = sorted(self._resting.values(), key=attrgetter("place"))
        return [rested.shown for rested in in_order], {rested.place[1]: rested.kept for rested in in_order}

    def _all(self) -> Iterator[tuple[str, Any]]:
        yield from self.by_name.items()
        for name, rested in self._resting.items():
            yield name, rested.entry

    def begun(self) -> Iterator[int]:
        """Return the time of the first record of each entry."""
        return (entry.first for _, entry in self._all())

    def settle(self) -> None:
        """Count waiting values in the entries to save memory."""
        for name, part in self.table.parts.items():
            if isinstance(part, TimedCalls | Timed | Exact):
                for entry in self.by_name.values():
                    getattr(entry, name).settle()

    def merge(self, other: Entries) -> None:
        """Add the entries of another state."""
        for name, entry in other._all():
            self._add(name, entry)

    def shown(self) -> dict[str, Any]:
        """Return the entries as a field of `SessionMetrics`."""
        in_order = sorted(self._all(), key=lambda item: (item[1].first, item[0]))
        metric = ENTRIES[self.table.name]
        return {self.table.name: [metric(**self._fields(name, entry)) for name, entry in in_order]}

    def kept(self) -> dict[str, Any]:
        """Return the checkpoint's part of each entry."""
        return {name: self._kept(entry) for name, entry in self._all()}

    def restore(self, metrics: SessionMetrics, kept: Mapping[str, Any], at: Restoring) -> None:
        """Add the entries of `metrics.json`. Several of one name, left by another program, add up."""
        for i, metric in enumerate(getattr(metrics, self.table.name)):
            name = getattr(metric, self.table.key)
            known = kept.get(name, {})
            entry = self.table.entry(at.time(known.get("first", at.started + i)))
            for part_name, part in self.table.parts.items():
                setattr(entry, part_name, part.restored(part_name, metric, known, at))
            if name in self:
                self._add(name, entry)
            else:
                self.by_name[name] = entry

    def _add(self, name: str, other: Any) -> None:
        entry = self.entry(name, other.first)
        entry.first = min(entry.first, other.first)
        for at, part in self.table.parts.items():
            setattr(entry, at, part.merged(getattr(entry, at), getattr(other, at)))

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
