"""Counts by name, of a bounded number of names, in which the order does not show.

The names that come first in the alphabet stay; what the others count is in `other`. A name leaves the first
ones only for names before it, and never comes back. So the count of one that stays is exact, and the result
does not depend on the order of the additions, nor on the parts that are merged.
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
        self._last: str | None = None  # the greatest name, once no more fit in

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BoundedCounts):
            return NotImplemented
        return self.shown() == other.shown()

    __hash__ = None  # type: ignore[assignment]  # it changes

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
        """Add the counts of another one, and return this one."""
        for name, count in other._counts.items():
            self.add(name, count)
        self._others += other._others  # of names behind the last one that stayed there
        return self

    def shown(self) -> dict[str, int]:
        """The counts, the highest first; of equal ones in the order of the alphabet, `other` last."""
        counts = dict(sorted(self._counts.items(), key=lambda item: (-item[1], item[0])))
        if self._others:
            counts[OTHER] = self._others
        return {name: min(count, INT64_MAX) for name, count in counts.items()}

    @classmethod
    def restored(cls, shown: Mapping[str, int]) -> BoundedCounts:
        """From what was shown."""
        counts = cls()
        for name, count in shown.items():
            counts.add(name, count)
        return counts
