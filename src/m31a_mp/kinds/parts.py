"""The parts of an entry: sums, exact sums, the latest values. The order of additions shows in none of them.

There is no other way to add to an entry, so the result cannot depend on the order in which records arrive.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from m31a_mp.kinds.checks import INT64_MAX
from m31a_mp.kinds.exact import ExactSum
from m31a_mp.kinds.times import plausible


def saturated(number: int) -> int:
    """A sum as `metrics.json` shows it: the Go program keeps it in an int64."""
    return max(-INT64_MAX - 1, min(number, INT64_MAX))


def integer(value: object) -> int:
    """An integer of the checkpoint."""
    if type(value) is not int:
        raise TypeError(f"{value!r} is not an integer")
    return value


def _finite(value: object) -> float:
    if not isinstance(value, float) or not math.isfinite(value):
        raise TypeError(f"{value!r} is not a finite number")
    return value


@dataclass(frozen=True)
class Restoring:
    """Times in ns that restoring needs: of the session's start, of its last record, and now."""

    started: int
    updated: int
    now: int


class Part(Protocol):
    """One part of an entry: how it begins, merges, is shown, and comes back from what was shown."""

    def zero(self) -> Any:
        """The value before the first record."""

    def merged(self, mine: Any, theirs: Any) -> Any:
        """The value of the records of two states together."""

    def show(self, name: str, value: Any, shown: dict[str, Any]) -> None:
        """Put the value among the fields of an entry of `metrics.json`; `name` is that of the part."""

    def save(self, value: Any, kept: dict[str, Any]) -> None:
        """Put into the checkpoint what the entry does not show."""

    def restored(self, name: str, metric: Any, kept: Mapping[str, Any], at: Restoring) -> Any:
        """The value that an entry (one of the types in `model`) and the checkpoint give."""


class Sum:
    """A sum of integers; only what is shown of it stops at the largest of 64 bits."""

    def zero(self) -> int:
        return 0

    def merged(self, mine: int, theirs: int) -> int:
        return mine + theirs

    def show(self, name: str, value: int, shown: dict[str, Any]) -> None:
        shown[name] = saturated(value)

    def save(self, value: int, kept: dict[str, Any]) -> None:
        """Keep nothing: `metrics.json` shows all of it."""

    def restored(self, name: str, metric: Any, kept: Mapping[str, Any], at: Restoring) -> int:  # noqa: ARG002
        return int(getattr(metric, name))


@dataclass(frozen=True)
class Exact:
    """An exact sum of floats; what is shown of it is rounded, and the checkpoint keeps the rest.

    Attributes:
        keep: What the checkpoint calls it.
    """

    keep: str

    def zero(self) -> ExactSum:
        return ExactSum()

    def merged(self, mine: ExactSum, theirs: ExactSum) -> ExactSum:
        return ExactSum([*mine.parts(), *theirs.parts()])

    def show(self, name: str, value: ExactSum, shown: dict[str, Any]) -> None:
        shown[name] = value.value()

    def save(self, value: ExactSum, kept: dict[str, Any]) -> None:
        kept[self.keep] = value.parts()

    def restored(self, name: str, metric: Any, kept: Mapping[str, Any], at: Restoring) -> ExactSum:  # noqa: ARG002
        exact = ExactSum([_finite(part) for part in kept.get(self.keep, [])])
        shown = getattr(metric, name)
        return exact if exact.value() == shown else ExactSum([shown])


@dataclass(frozen=True)
class Latest:
    """The values recorded last, a tuple behind their time; of several at the same time, the greatest.

    Attributes:
        zeros: The values by the names that they are shown under, as they are while there is none.
        keep: What the checkpoint calls their time.
    """

    zeros: Mapping[str, Any]
    keep: str

    def zero(self) -> tuple[Any, ...]:
        return ()  # which is less than any

    def merged(self, mine: tuple[Any, ...], theirs: tuple[Any, ...]) -> tuple[Any, ...]:
        return max(mine, theirs)

    def show(self, name: str, value: tuple[Any, ...], shown: dict[str, Any]) -> None:  # noqa: ARG002
        shown |= zip(self.zeros, value[1:] or self.zeros.values(), strict=True)

    def save(self, value: tuple[Any, ...], kept: dict[str, Any]) -> None:
        kept[self.keep] = value[0] if value else None

    def restored(self, name: str, metric: Any, kept: Mapping[str, Any], at: Restoring) -> tuple[Any, ...]:  # noqa: ARG002
        values = tuple(getattr(metric, field) for field in self.zeros)
        time = kept.get(self.keep)
        if time is None and any(values):
            time = at.updated  # it came with `save()`, or from another program
        return () if time is None else (plausible(integer(time), at.now), *values)


@dataclass(frozen=True)
class Derived:
    """A field that follows from the others as they are shown; nothing of it is kept."""

    of: Callable[[Mapping[str, Any]], Any]


class Mean(Derived):
    """A sum for each of a number of records."""

    def __init__(self, total: str, count: str) -> None:
        super().__init__(lambda shown: shown[total] / shown[count] if shown[count] else 0.0)
