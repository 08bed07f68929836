"""Tables of entries by name: the declaration and the state of a table.

A declaration (`Table`) makes the state that a fold changes (`Entries`). The state merges with another state,
converts to fields of `SessionMetrics`, and is restored from these fields and the checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from m31a_mp.kinds._entries import ENTRIES as ENTRY_CLASSES
from m31a_mp.kinds._entries import Entry
from m31a_mp.kinds.parts import Derived, Exact, Part, Restoring, Timed, TimedCalls
from m31a_mp.kinds.state import State
from m31a_mp.model import ENTRIES, SessionMetrics


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


class Entries(State):
    """The entries of a table.

    Attributes:
        table: The declaration.
        by_name: Each entry by its name. A plain dict, because the fold looks up every record.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self.by_name: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.by_name)

    def begun(self) -> Iterator[int]:
        """Return the time of the first record of each entry."""
        return (entry.first for entry in self.by_name.values())

    def settle(self) -> None:
        """Count waiting values in the entries to save memory."""
        for name, part in self.table.parts.items():
            if isinstance(part, TimedCalls | Timed | Exact):
                for entry in self.by_name.values():
                    getattr(entry, name).settle()

    def merge(self, other: Entries) -> None:
        """Add the entries of another state."""
        for name, entry in other.by_name.items():
            self._add(name, entry)

    def shown(self) -> dict[str, Any]:
        """Return the entries as a field of `SessionMetrics`."""
        in_order = sorted(self.by_name.items(), key=lambda item: (item[1].first, item[0]))
        metric = ENTRIES[self.table.name]
        return {self.table.name: [metric(**self._fields(name, entry)) for name, entry in in_order]}

    def kept(self) -> dict[str, Any]:
        """Return the checkpoint's part of each entry."""
        kept: dict[str, Any] = {}
        for name, entry in self.by_name.items():
            kept[name] = of_entry = {"first": entry.first}
            for at, part in self.table.parts.items():
                part.save(getattr(entry, at), of_entry)
        return kept

    def restore(self, metrics: SessionMetrics, kept: Mapping[str, Any], at: Restoring) -> None:
        """Add the entries of `metrics.json`. Several of one name, left by another program, add up."""
        for i, metric in enumerate(getattr(metrics, self.table.name)):
            name = getattr(metric, self.table.key)
            known = kept.get(name, {})
            entry = self.table.entry(at.time(known.get("first", at.started + i)))
            for part_name, part in self.table.parts.items():
                setattr(entry, part_name, part.restored(part_name, metric, known, at))
            if name in self.by_name:
                self._add(name, entry)
            else:
                self.by_name[name] = entry

    def _add(self, name: str, other: Any) -> None:
        entry = self.by_name.get(name)
        if entry is None:
            entry = self.by_name[name] = self.table.entry(other.first)
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
