"""The parts of an entry: sums, exact sums, latest values. No part depends on the order of additions.

There is no other way to add to an entry. The result therefore cannot depend on the order of records.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from m31a_mp.kinds.bounded import BoundedCounts
from m31a_mp.kinds.checks import saturated
from m31a_mp.kinds.durations import Calls, Durations
from m31a_mp.kinds.exact import ExactSum
from m31a_mp.kinds.histogram import Histogram
from m31a_mp.kinds.times import from_ns, plausible, to_ns


def integer(value: object) -> int:
    """Check an integer of the checkpoint."""
    if type(value) is not int:
        raise TypeError(f"{value!r} is not an integer")
    return value


def finite(value: object) -> float:
    """Check a float of the checkpoint."""
    if not isinstance(value, float) or not math.isfinite(value):
        raise TypeError(f"{value!r} is not a finite number")
    return value


class Restoring(NamedTuple):
    """Times in ns for restoring: the session's start, its last record, and now."""

    started: int
    updated: int
    now: int

    def time(self, value: object) -> int:
        """Check a time of the checkpoint. It may come from a wrong clock."""
        return plausible(integer(value), self.now)


class Part(Protocol):
    """One part of an entry: its initial value, its merge, and its conversion to the shown form and back."""

    def zero(self) -> Any:
        """Return the value before the first record."""

    def merged(self, mine: Any, theirs: Any) -> Any:
        """Return the value for the records of two states together."""

    def show(self, name: str, value: Any, shown: dict[str, Any]) -> None:
        """Add the value to the fields of an entry in `metrics.json`. `name` is the name of the part."""

    def save(self, value: Any, kept: dict[str, Any]) -> None:
        """Add to the checkpoint the state that the entry does not show."""

    def restored(self, name: str, metric: Any, kept: Mapping[str, Any], at: Restoring) -> Any:
        """Return the value from an entry (one of the types in `model`) and the checkpoint."""


class Sum:
    """A sum of integers. Only the shown value saturates at the largest 64-bit integer."""

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


class Exact(NamedTuple):
    """An exact sum of floats. The shown value is rounded, and the checkpoint keeps the exact sum.

    Attributes:
        keep: The key in the checkpoint.
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
        exact = ExactSum([finite(part) for part in kept.get(self.keep, [])])
        shown = getattr(metric, name)
        return exact if exact.value() == shown else ExactSum([shown])


class Latest(NamedTuple):
    """The values of the latest record, a tuple that starts with their time; at equal times, the greatest.

    Attributes:
        zeros: The values without a record, by the fields that show them.
        keep: The key of the time in the checkpoint.
    """

    zeros: Mapping[str, Any]
    keep: str

    def zero(self) -> tuple[Any, ...]:
        return ()  # less than any other tuple

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
            time = at.updated  # the values come from `save()`, or from another program
        return () if time is None else (at.time(time), *values)


class LastTime(NamedTuple):
    """The time of the latest record, in ns; 0 without records.

    Attributes:
        keep: The key in the checkpoint, which has nanoseconds. The shown value has microseconds.
    """

    keep: str

    def zero(self) -> int:
        return 0

    def merged(self, mine: int, theirs: int) -> int:
        return max(mine, theirs)

    def show(self, name: str, value: int, shown: dict[str, Any]) -> None:
        shown[name] = from_ns(value) if value else None

    def save(self, value: int, kept: dict[str, Any]) -> None:
        if value:
            kept[self.keep] = value

    def restored(self, name: str, metric: Any, kept: Mapping[str, Any], at: Restoring) -> int:
        shown, time = getattr(metric, name), kept.get(self.keep)
        if time is None:
            time = to_ns(shown) if shown else 0
        return at.time(time)


class Earliest(NamedTuple):
    """The value of the first record, after its time; at equal times, the least value.

    Attributes:
        keep: The key of the time in the checkpoint.
    """

    keep: str

    def zero(self) -> tuple[Any, ...]:
        return ()

    def merged(self, mine: tuple[Any, ...], theirs: tuple[Any, ...]) -> tuple[Any, ...]:
        return min(mine, theirs) if mine and theirs else mine or theirs

    def show(self, name: str, value: tuple[Any, ...], shown: dict[str, Any]) -> None:
        shown[name] = value[1] if value else ""

    def save(self, value: tuple[Any, ...], kept: dict[str, Any]) -> None:
        if value:
            kept[self.keep] = value[0]

    def restored(self, name: str, metric: Any, kept: Mapping[str, Any], at: Restoring) -> tuple[Any, ...]:
        value = getattr(metric, name)
        return (at.time(kept.get(self.keep, at.started)), value) if value else ()


class Ever:
    """A flag that is true if any record set it."""

    def zero(self) -> bool:
        return False

    def merged(self, mine: bool, theirs: bool) -> bool:
        return mine or theirs

    def show(self, name: str, value: bool, shown: dict[str, Any]) -> None:
        shown[name] = value

    def save(self, value: bool, kept: dict[str, Any]) -> None:
        """Keep nothing: `metrics.json` shows all of it."""

    def restored(self, name: str, metric: Any, kept: Mapping[str, Any], at: Restoring) -> bool:  # noqa: ARG002
        return bool(getattr(metric, name))


class Timed:
    """Durations: their sum, bounds and histogram.

    Attributes:
        total: The field for the sum.
        bounds: The fields for the least and the greatest duration.
        histogram: The field for the histogram.
    """

    total = "total_duration_ms"
    bounds = ("min_duration_ms", "max_duration_ms")
    histogram = "durations"

    def zero(self) -> Durations:
        return Durations()

    def merged(self, mine: Durations, theirs: Durations) -> Durations:
        mine.merge(theirs)
        return mine

    def show(self, name: str, value: Durations, shown: dict[str, Any]) -> None:  # noqa: ARG002
        shown[self.total] = saturated(value.total)
        shown |= zip(self.bounds, (value.least, value.greatest), strict=True)
        shown[self.histogram] = value.histogram()

    def save(self, value: Durations, kept: dict[str, Any]) -> None:
        """Keep nothing: `metrics.json` shows all of it."""

    def restored(self, name: str, metric: Any, kept: Mapping[str, Any], at: Restoring) -> Durations:  # noqa: ARG002
        return Durations(*self._shown_by(metric))

    def _shown_by(self, metric: Any) -> tuple[int, Histogram | None, int | None, int | None]:
        least, greatest = (getattr(metric, field) for field in self.bounds)
        histogram = getattr(metric, self.histogram)
        return getattr(metric, self.total), histogram and histogram.copy(), least, greatest


class TimedCalls(Timed):
    """Calls: their number, outcomes and durations.

    Attributes:
        counts: The fields for the numbers of all calls, successes and failures.
    """

    counts = ("call_count", "success_count", "fail_count")

    def zero(self) -> Calls:
        return Calls()

    def show(self, name: str, value: Durations, shown: dict[str, Any]) -> None:
        super().show(name, value, shown)
        if isinstance(value, Calls):
            shown |= zip(self.counts, map(saturated, value.counts), strict=True)

    def restored(self, name: str, metric: Any, kept: Mapping[str, Any], at: Restoring) -> Calls:  # noqa: ARG002
        count, successes, failures = (getattr(metric, field) for field in self.counts)
        return Calls((count, successes, failures), *self._shown_by(metric))


class Counts:
    """Counts by name, for a bounded number of names; None without any."""

    def zero(self) -> None:
        return None

    def merged(self, mine: BoundedCounts | None, theirs: BoundedCounts | None) -> BoundedCounts | None:
        return (mine or BoundedCounts()).merge(theirs) if theirs else mine

    def show(self, name: str, value: BoundedCounts | None, shown: dict[str, Any]) -> None:
        shown[name] = value.shown() if value else {}

    def save(self, value: BoundedCounts | None, kept: dict[str, Any]) -> None:
        """Keep nothing: `metrics.json` shows all of it."""

    def restored(self, name: str, metric: Any, *_: Mapping[str, Any] | Restoring) -> BoundedCounts | None:
        shown = getattr(metric, name)
        return BoundedCounts.restored(shown) if shown else None


class Derived:
    """A field that is computed from the other shown fields. It has no state.

    Attributes:
        of: Returns the value, given the other fields.
    """

    def __init__(self, of: Callable[[Mapping[str, Any]], Any]) -> None:
        self.of = of


class Mean(Derived):
    """A sum divided by the number of records that have a value."""

    def __init__(self, total: str, count: str, *, without: str) -> None:
        def mean(shown: Mapping[str, Any]) -> float:
            valued = shown[count] - shown[without]
            return shown[total] / valued if valued > 0 else 0.0

        super().__init__(mean)
