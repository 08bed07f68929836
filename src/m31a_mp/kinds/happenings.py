"""Lists of single happenings: the declaration and the state of a list.

The times, and the content at equal times, decide which happenings stay. The order of arrival does not.
`metrics.json` shows microseconds. The checkpoint keeps the remaining nanoseconds, so that a published
happening compares as before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from m31a_mp.kinds.checks import INT64_MAX, saturated
from m31a_mp.kinds.parts import Derived, Restoring, integer
from m31a_mp.kinds.state import State
from m31a_mp.kinds.times import from_ns, to_ns
from m31a_mp.model import ENTRIES

MAX_HAPPENINGS = 1000
"""The number of the latest happenings of one kind that are kept."""


class Happenings:
    """A list of the latest happenings of one kind, and their total number.

    Attributes:
        name: The key in `metrics.json`, which is the field of `SessionMetrics`.
        fields: The fields of an entry besides `timestamp`, named like those of the record.
        count: The key of the total number.
        derived: The fields of an entry that are computed from the others.
    """

    def __init__(self, name: str, *fields: str, count: str, **derived: Derived) -> None:
        self.name = name
        self.fields = fields
        self.count = count
        self.derived = derived

    def new(self) -> Recent:
        """Return an empty list."""
        return Recent(self)


class Recent(State):
    """The latest happenings of one kind.

    Attributes:
        table: The declaration.
        count: The total number.
        first: The time of the first of all happenings, in ns; meaningless without any.
    """

    def __init__(self, table: Happenings) -> None:
        self.table = table
        self.first = INT64_MAX
        self.count = 0
        self._items: list[tuple[Any, ...]] = []

    def __len__(self) -> int:
        return len(self._items)

    def add(self, time: int, *values: Any) -> None:
        """Add a happening."""
        self.count += 1
        self._items.append((time, *values))
        if len(self._items) >= 2 * MAX_HAPPENINGS:  # rarely, because this sorts all items
            self._items = self._latest()

    def begun(self) -> Iterator[int]:
        """Return the time of the first happening, if any."""
        return iter([self.first] if self.count else [])

    def merge(self, *others: Recent) -> None:
        """Add the happenings of other states."""
        for other in others:
            self.first = min(self.first, other.first)
            self.count += other.count
            self._items += other._items
        self._items = self._latest()

    def shown(self) -> dict[str, Any]:
        """Return the happenings as fields of `SessionMetrics`."""
        items = [self._shown(time, values) for time, *values in self._latest()]
        return {self.table.name: items, self.table.count: saturated(self.count)}

    def kept(self) -> dict[str, Any] | None:
        """Return the checkpoint's part; None for an empty list, because earlier versions had none."""
        if not self.count:
            return None
        return {"first": self.first, "ns": [time % 1000 for time, *_ in self._latest()]}

    def restore(self, read: Mapping[str, Any], kept: Mapping[str, Any], at: Restoring) -> None:
        """Add the happenings of `metrics.json`."""
        shown: dict[str, list[Any]] = read[self.table.name].fields
        times, below = shown["timestamp"], list(map(integer, kept.get("ns", [])))
        if len(below) != len(times):  # another program or `save()` has changed the list
            below = [0] * len(times)
        for time, ns, *values in zip(
            times, below, *(shown[field] for field in self.table.fields), strict=True
        ):
            self.add(at.time(to_ns(time) + ns), *values)
        self.count = max(self.count, read[self.table.count])
        if self.count:
            self.first = at.time(kept.get("first", at.started))

    def _shown(self, time: int, values: list[Any]) -> Any:
        fields = dict(zip(self.table.fields, values, strict=True))
        derived = {name: of.of(fields) for name, of in self.table.derived.items()}
        return ENTRIES[self.table.name](**fields, **derived, timestamp=from_ns(time))

    def _latest(self) -> list[tuple[Any, ...]]:
        """Return the happenings that stay, in order. Each has its time, then its fields."""
        return sorted(self._items)[-MAX_HAPPENINGS:]
