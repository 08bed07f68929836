"""Counts by name, for a bounded number of names, independent of the order of additions.

The alphabetically first names stay. The counts of the others go to `other`. A name gives way only to names
before it, and never comes back. The count of a name that stays is therefore exact, and the result depends
neither on the order of additions nor on the parts that are merged.
"""

from __future__ import annotations

from collections.abc import Mapping

from m31a_mp.kinds.checks import INT64_MAX

MAX_NAMES = 100
OTHER = "other"


class BoundedCounts:
    """Counts of at most 100 names, and of `other`."""

    __slots__ = ("_counts", "_last", "_others")

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._others = 0
        self._last: str | None = None  # the greatest name, set when the limit is reached

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BoundedCounts):
            return NotImplemented
        return self.shown() == other.shown()

    __hash__ = None  # type: ignore[assignment]  # mutable

    def add(self, name: str, count: int = 1) -> None:
        """Count a name."""
        counts = self._counts
        if name in counts:
            counts[name] += count
        elif name == OTHER or (self._last is not None and name > self._last):
            self._others += count
        else:
            counts[name] = count
            if len(counts) > MAX_NAMES:
                self._others += counts.pop(max(counts))
            if len(counts) == MAX_NAMES:
                self._last = max(counts)

    def merge(self, other: BoundedCounts) -> BoundedCounts:
        """Add the counts of another object, and return this one."""
        for name, count in other._counts.items():
            self.add(name, count)
        self._others += other._others  # these names come after the last name that stayed in `other`
        return self

    def shown(self) -> dict[str, int]:
        """Return the counts, highest first, equal ones in alphabetical order, `other` last."""
        counts = dict(sorted(self._counts.items(), key=lambda item: (-item[1], item[0])))
        if self._others:
            counts[OTHER] = self._others
        return {name: min(count, INT64_MAX) for name, count in counts.items()}

    @classmethod
    def restored(cls, shown: Mapping[str, int]) -> BoundedCounts:
        """Restore the counts from the result of `shown`."""
        counts = cls()
        for name, count in shown.items():
            counts.add(name, count)
        return counts
