"""Sums of floats in which the order of the addends does not show."""

from __future__ import annotations

import math

_ADDENDS_KEPT = 1024
_MAX_FLOAT = math.nextafter(math.inf, 0)
_SCALE = 2.0**-64  # sums of as many addends as there can be do not overflow on the way


class ExactSum:
    """A sum of floats that is not rounded before it is shown.

    Attributes:
        append: Adds a float. It waits in a list until the sum is asked for, or settled.
        extend: Adds some.
    """

    __slots__ = ("_addends", "append", "extend")

    def __init__(self, addends: list[float] | None = None) -> None:
        self._addends: list[float] = addends or []
        self.append = self._addends.append
        self.extend = self._addends.extend

    def settle(self) -> None:
        """Add up what waits, if that is much: so it takes no more memory than it must."""
        if len(self._addends) > _ADDENDS_KEPT:
            self.parts()

    def parts(self) -> list[float]:
        """The sum as a few floats: its rounded value, the rounded rest, and so on until nothing rests."""
        parts: list[float] = []
        try:
            while rest := math.fsum([*self._addends, *(-part for part in parts)]):
                parts.append(rest)
        except OverflowError:
            # JSON has no infinity: the sum stops at the largest float, or at the least one.
            scaled = math.fsum(addend * _SCALE for addend in self._addends)
            parts = [max(-_MAX_FLOAT, min(scaled / _SCALE, _MAX_FLOAT))]
        self._addends[:] = parts  # which are the same sum
        return parts

    def value(self) -> float:
        """The sum, rounded once."""
        parts = self.parts()
        return parts[0] if parts else 0.0
