"""Sums of floats that do not depend on the order of the addends."""

from __future__ import annotations

import math

_ADDENDS_KEPT = 1024
_MAX_FLOAT = math.nextafter(math.inf, 0)
_SCALE = 2.0**-64  # scaled sums of any possible number of addends do not overflow


class ExactSum:
    """A sum of floats that is rounded only when it is shown.

    Attributes:
        waiting: The floats whose sum it is. Whoever adds a float appends it here. There are few of them
            after the sum is computed or settled.
    """

    __slots__ = ("waiting",)

    def __init__(self, addends: list[float] | None = None) -> None:
        self.waiting: list[float] = addends or []

    def settle(self) -> None:
        """Add up the waiting floats if there are many, to save memory."""
        if len(self.waiting) > _ADDENDS_KEPT:
            self.parts()

    def parts(self) -> list[float]:
        """Return the sum as a few floats: its rounded value, the rounded rest, and so on, until no rest."""
        parts: list[float] = []
        left = self.waiting
        try:
            while rest := math.fsum(left):
                parts.append(rest)
                left = [*left, -rest]
        except OverflowError:
            # JSON has no infinity: limit the sum to the largest or the least float.
            scaled = math.fsum(addend * _SCALE for addend in self.waiting)
            parts = [max(-_MAX_FLOAT, min(scaled / _SCALE, _MAX_FLOAT))]
        self.waiting[:] = parts  # their sum is the same
        return parts

    def value(self) -> float:
        """Return the sum, rounded once."""
        parts = self.parts()
        return parts[0] if parts else 0.0
