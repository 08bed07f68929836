"""Sums of floats in which the order of the addends does not show."""

from __future__ import annotations

import math

_ADDENDS_KEPT = 1024
_MAX_FLOAT = math.nextafter(math.inf, 0)
_SCALE = 2.0**-64  # sums of as many addends as there can be do not overflow on the way


class ExactSum:
    """A sum of floats that is not rounded before it is shown."""

    __slots__ = ("_addends",)

    def __init__(self, addends: list[float] | None = None) -> None:
        self._addends = addends or []

    def add(self, value: float) -> None:
        """Add a float."""
        self._addends.append(value)
        if len(self._addends) > _ADDENDS_KEPT:
            self._addends = self.parts()

    def parts(self) -> list[float]:
        """The sum as a few floats: its rounded value, the rounded rest, and so on until nothing rests."""
        parts: list[float] = []
        try:
            while rest := math.fsum([*self._addends, *(-part for part in parts)]):
                parts.append(rest)
        except OverflowError:
            # JSON has no infinity: the sum stops at the largest float, or at the least one.
            scaled = math.fsum(addend * _SCALE for addend in self._addends)
            return [max(-_MAX_FLOAT, min(scaled / _SCALE, _MAX_FLOAT))]
        return parts

    def value(self) -> float:
        """The sum, rounded once."""
        parts = self.parts()
        return parts[0] if parts else 0.0
