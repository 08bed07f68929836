"""The sum of many totals, of which few change from one look to the next.

The totals are the leaves of a tree. Each node above has the sum of sixteen below it. A change renews only the
nodes above it: of a thousand totals, one change costs three sums of at most sixteen.
"""

from __future__ import annotations

from collections.abc import Mapping

from m31a_mp.metrics.totals import Totals

_BRANCHES = 16


class Adding:
    """A sum of totals by name. The totals must not be changed."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        # The leaves, then the levels above, up to one node. A node without totals below it is None.
        self._levels: list[list[Totals | None]] = [[]]

    def sum(self, totals: Mapping[str, Totals]) -> Totals:
        """Return the sum of these totals, as a new object."""
        leaves = self._levels[0]
        changed = set()
        for name in totals.keys() - self._places.keys():
            self._places[name] = len(leaves)
            leaves.append(None)
        for name, place in self._places.items():
            if leaves[place] is not (part := totals.get(name)):
                leaves[place] = part
                changed.add(place)
        self._renew(changed)
        return _added([self._levels[-1][0]]) if leaves else Totals()

    def _renew(self, changed: set[int]) -> None:
        level = 0
        while len(below := self._levels[level]) > 1:
            level += 1
            if level == len(self._levels):
                self._levels.append([])
                changed = set(range(len(below)))
            nodes = self._levels[level]
            nodes += [None] * (-(-len(below) // _BRANCHES) - len(nodes))
            changed = {place // _BRANCHES for place in changed}
            for place in changed:
                nodes[place] = _added(below[place * _BRANCHES : (place + 1) * _BRANCHES])


def _added(parts: list[Totals | None]) -> Totals:
    whole = Totals()
    whole.merge(*filter(None, parts))
    return whole
