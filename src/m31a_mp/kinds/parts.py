"""The parts of an entry: sums, exact sums, latest values. No part depends on the order of additions.

There is no other way to add to an entry. The result therefore cannot depend on the order of records.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple, Protocol

from m31a_mp.kinds.bounded import BoundedCounts
from m31a_mp.kinds.checks import INT64_MAX, saturated
from m31a_mp.kinds.durations import Calls, Durations
from m31a_mp.kinds.exact import ExactSum
from m31a_mp.kinds.packed import Packed, add, pack, unpack
from m31a_mp.kinds.times import from_ns, plausible, to_ns


def integer(value: object) -> int:
    """Check an integer of the checkpoint."""
    if type(value) is not int:
        raise TypeError(f"{value!r} is not an integer")
    return value


def natural(value: object) -> int:
    """Check a count of the checkpoint."""
    number = integer(value)
    if not 0 <= number <= INT64_MAX:
        raise ValueError(f"{number} is not a count")
    return number


def finite(value: object) -> float:
    """Check a float of the checkpoint."""
    if not isinstance(value, float) or not math.isfinite(value):
        raise TypeError(f"{value!r} is not a finite number")
    return value


_USUAL = 2  # parts of an exact sum


def exact(shown: float, kept: object) -> tuple[float, ...]:
    """Return the parts of an exact sum that was published.

    Args:
        shown: The rounded sum.
        kept: The parts in the checkpoint. They do not count if another program has changed the sum.

    Raises:
        TypeError: The parts are not finite numbers.
    """
    if not isinstance(kept, list):
        raise TypeError(f"{kept!r} is not a list")
    parts = tuple(map(finite, kept))
    if len(parts) == _USUAL and parts[0] == shown == sum(parts):  # a sum of two floats is rounded once
        return parts
    whole = ExactSum(list(parts))
    return tuple(whole.parts()) if whole.value() == shown else (shown,)


class Restoring(NamedTuple):
    """Times in ns for restoring: the session's start, its last record, and now."""

    started: int
    updated: int
    now: int

    def time(self, value: object) -> int:
        """Check a time of the checkpoint. It may come from a wrong clock."""
        return plausible(integer(value), self.now)

    def times(self, values: list[Any]) -> list[int]:
        """Check times of the checkpoint."""
        if set(map(type, values)) == {int} and max(values) <= self.now:  # most are right
            return values
        return list(map(self.time, values))


Shown = Mapping[str, list[Any]]
"""The fields of all entries of a table in `metrics.json`: the values in the order of the entries."""
Kept = list[Mapping[str, Any]]
"""The checkpoint's parts of all entries of a table, in the same order."""
Column = list[Any]
"""A plain value of each entry of a table. Nobody changes a column: tables share them."""
Groups = Iterator[list[Sequence[Any]]]
"""Columns to add up: of each column, for each entry of the sum, the values that add up to it, one or more."""


class Part(Protocol):
    """One part of an entry: its initial value, its merge, and its conversion to the shown form and back.

    A value is packed to be restored and merged: into one plain value, or a few. Those of all entries stand in
    columns. A call for each value would take most of the time.
    """

    def zero(self) -> Any:
        """Return the value before the first record."""

    def packed(self, value: Any) -> tuple[Any, ...]:
        """Return the packed form of a value: a value for each column."""

    def unpacked(self, packed: Iterator[Any]) -> Any:
        """Return the value of its packed form, whose values are the next ones."""

    def merged(self, groups: Groups) -> list[Column]:
        """Return the columns of a sum. Those to add up are the next ones."""

    def show(self, name: str, value: Any, shown: dict[str, Any]) -> None:
        """Add the value to the fields of an entry in `metrics.json`. `name` is the name of the part."""

    def save(self, value: Any, kept: dict[str, Any]) -> None:
        """Add to the checkpoint the state that the entry does not show."""

    def restored(self, name: str, shown: Shown, kept: Kept, at: Restoring) -> list[Column]:
        """Return the columns of all entries of a table from `metrics.json`."""


class OneColumn:
    """A part with one column.

    Attributes:
        together: Returns the packed value for the records of some packed values together, of one or more.
    """

    together: Callable[[Sequence[Any]], Any]

    def packed(self, value: Any) -> tuple[Any, ...]:
        return (value,)

    def unpacked(self, packed: Iterator[Any]) -> Any:
        return next(packed)

    def merged(self, groups: Groups) -> list[Column]:
        return [list(map(self.together, next(groups)))]


class Sum(OneColumn):
    """A sum of integers. Only the shown value saturates at the largest 64-bit integer."""

    together = staticmethod(sum)

    def zero(self) -> int:
        return 0

    def show(self, name: str, value: int, shown: dict[str, Any]) -> None:
        shown[name] = saturated(value)

    def save(self, value: int, kept: dict[str, Any]) -> None:
        """Keep nothing: `metrics.json` shows all of it."""

    def restored(self, name: str, shown: Shown, kept: Kept, at: Restoring) -> list[Column]:  # noqa: ARG002
        return [shown[name]]


class Exact(OneColumn):
    """An exact sum of floats. The shown value is rounded, and the checkpoint keeps the exact sum.

    Attributes:
        keep: The key in the checkpoint.
    """

    def __init__(self, keep: str) -> None:
        self.keep = keep

    def zero(self) -> ExactSum:
        return ExactSum()

    def packed(self, value: ExactSum) -> tuple[Any, ...]:
        return (tuple(value.parts()),)

    def unpacked(self, packed: Iterator[Any]) -> ExactSum:
        return ExactSum(list(next(packed)))

    @staticmethod
    def together(values: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
        return tuple(ExactSum(list(chain.from_iterable(values))).parts())

    def show(self, name: str, value: ExactSum, shown: dict[str, Any]) -> None:
        shown[name] = value.value()

    def save(self, value: ExactSum, kept: dict[str, Any]) -> None:
        kept[self.keep] = value.parts()

    def restored(self, name: str, shown: Shown, kept: Kept, at: Restoring) -> list[Column]:  # noqa: ARG002
        parts = [known.get(self.keep, []) for known in kept]
        return [list(map(exact, shown[name], parts))]


class Latest(OneColumn):
    """The values of the latest record, a tuple that starts with their time; at equal times, the greatest.

    Attributes:
        zeros: The values without a record, by the fields that show them.
        keep: The key of the time in the checkpoint.
    """

    def __init__(self, zeros: Mapping[str, Any], keep: str) -> None:
        self.zeros = zeros
        self.keep = keep

    def zero(self) -> tuple[Any, ...]:
        return ()  # less than any other tuple

    @staticmethod
    def together(values: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
        return max(values)

    def show(self, name: str, value: tuple[Any, ...], shown: dict[str, Any]) -> None:  # noqa: ARG002
        shown |= zip(self.zeros, value[1:] or self.zeros.values(), strict=True)

    def save(self, value: tuple[Any, ...], kept: dict[str, Any]) -> None:
        kept[self.keep] = value[0] if value else None

    def restored(self, name: str, shown: Shown, kept: Kept, at: Restoring) -> list[Column]:  # noqa: ARG002
        latest: list[tuple[Any, ...]] = []
        for known, *values in zip(kept, *(shown[field] for field in self.zeros), strict=True):
            time = known.get(self.keep)
            if time is None and any(values):
                time = at.updated  # the values come from `save()`, or from another program
            latest.append(() if time is None else (at.time(time), *values))
        return [latest]


class LastTime(OneColumn):
    """The time of the latest record, in ns; 0 without records.

    Attributes:
        keep: The key in the checkpoint, which has nanoseconds. The shown value has microseconds.
    """

    def __init__(self, keep: str) -> None:
        self.keep = keep

    def zero(self) -> int:
        return 0

    @staticmethod
    def together(values: Sequence[int]) -> int:
        return max(values)

    def show(self, name: str, value: int, shown: dict[str, Any]) -> None:
        shown[name] = from_ns(value) if value else None

    def save(self, value: int, kept: dict[str, Any]) -> None:
        if value:
            kept[self.keep] = value

    def restored(self, name: str, shown: Shown, kept: Kept, at: Restoring) -> list[Column]:
        times = [known.get(self.keep) for known in kept]
        found = [
            (to_ns(micros) if micros else 0) if time is None else time
            for time, micros in zip(times, shown[name], strict=True)
        ]
        return [at.times(found)]


class Earliest(OneColumn):
    """The value of the first record, after its time; at equal times, the least value.

    Attributes:
        keep: The key of the time in the checkpoint.
    """

    def __init__(self, keep: str) -> None:
        self.keep = keep

    def zero(self) -> tuple[Any, ...]:
        return ()

    @staticmethod
    def together(values: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
        return min(filter(None, values), default=())

    def show(self, name: str, value: tuple[Any, ...], shown: dict[str, Any]) -> None:
        shown[name] = value[1] if value else ""

    def save(self, value: tuple[Any, ...], kept: dict[str, Any]) -> None:
        if value:
            kept[self.keep] = value[0]

    def restored(self, name: str, shown: Shown, kept: Kept, at: Restoring) -> list[Column]:
        return [
            [
                (at.time(known.get(self.keep, at.started)), value) if value else ()
                for known, value in zip(kept, shown[name], strict=True)
            ]
        ]


class Ever(OneColumn):
    """A flag that is true if any record set it."""

    together = staticmethod(any)

    def zero(self) -> bool:
        return False

    def show(self, name: str, value: bool, shown: dict[str, Any]) -> None:
        shown[name] = value

    def save(self, value: bool, kept: dict[str, Any]) -> None:
        """Keep nothing: `metrics.json` shows all of it."""

    def restored(self, name: str, shown: Shown, kept: Kept, at: Restoring) -> list[Column]:  # noqa: ARG002
        return [shown[name]]


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

    def packed(self, value: Any) -> tuple[Any, ...]:
        histogram = value.histogram()
        return value.total, value.least, value.greatest, histogram and pack(histogram)

    def unpacked(self, packed: Iterator[Any]) -> Durations:
        total, least, greatest, histogram = islice(packed, 4)
        return Durations(total, histogram and unpack(histogram), least, greatest)

    def merged(self, groups: Groups) -> list[Column]:
        totals, *timed = islice(groups, 4)
        return [list(map(sum, totals)), *map(list, zip(*map(_timed, *timed), strict=True))]

    def show(self, name: str, value: Durations, shown: dict[str, Any]) -> None:  # noqa: ARG002
        shown[self.total] = saturated(value.total)
        shown |= zip(self.bounds, (value.least, value.greatest), strict=True)
        shown[self.histogram] = value.histogram()

    def save(self, value: Durations, kept: dict[str, Any]) -> None:
        """Keep nothing: `metrics.json` shows all of it."""

    def restored(self, name: str, shown: Shown, kept: Kept, at: Restoring) -> list[Column]:  # noqa: ARG002
        return [shown[field] for field in (self.total, *self.bounds, self.histogram)]


def _timed(
    least: Sequence[int | None], greatest: Sequence[int | None], histograms: Sequence[Packed | None]
) -> tuple[int | None, int | None, Packed | None]:
    """Return the bounds and the histogram of some durations together, of one or more."""
    if len(histograms) == 1:
        return least[0], greatest[0], histograms[0]
    try:
        return min(least), max(greatest), add(histograms)  # type: ignore[type-var,arg-type]  # mostly
    except TypeError:  # not all have durations, or not all of these have bounds
        timed = [value for value in zip(least, greatest, histograms, strict=True) if value[2]]
    if not timed:
        return None, None, None
    least, greatest, histograms = zip(*timed, strict=True)
    # Unknown bounds stay unknown: files of earlier versions do not have them for models.
    is_known = len(timed) == 1 or not (None in least or None in greatest)
    bounds = (min(least), max(greatest)) if is_known else (None, None)
    return *bounds, add(histograms)


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

    def packed(self, value: Any) -> tuple[Any, ...]:
        return *value.counts, *super().packed(value)

    def unpacked(self, packed: Iterator[Any]) -> Calls:
        calls, successes, failures, total, least, greatest, histogram = islice(packed, 7)
        return Calls((calls, successes, failures), total, histogram and unpack(histogram), least, greatest)

    def merged(self, groups: Groups) -> list[Column]:
        counts = [list(map(sum, column)) for column in islice(groups, len(self.counts))]
        return [*counts, *super().merged(groups)]

    def restored(self, name: str, shown: Shown, kept: Kept, at: Restoring) -> list[Column]:
        counts = [shown[field] for field in self.counts]
        return [*counts, *super().restored(name, shown, kept, at)]


class Counts(OneColumn):
    """Counts by name, for a bounded number of names; None without any."""

    def zero(self) -> None:
        return None

    def packed(self, value: BoundedCounts | None) -> tuple[Any, ...]:
        return (value and BoundedCounts().merge(value),)

    def unpacked(self, packed: Iterator[Any]) -> BoundedCounts | None:
        counts: BoundedCounts | None = next(packed)
        return counts and BoundedCounts().merge(counts)

    @staticmethod
    def together(values: Sequence[BoundedCounts | None]) -> BoundedCounts | None:
        if not any(values):
            return None
        whole = BoundedCounts()
        for counts in filter(None, values):
            whole.merge(counts)
        return whole

    def show(self, name: str, value: BoundedCounts | None, shown: dict[str, Any]) -> None:
        shown[name] = value.shown() if value else {}

    def save(self, value: BoundedCounts | None, kept: dict[str, Any]) -> None:
        """Keep nothing: `metrics.json` shows all of it."""

    def restored(self, name: str, shown: Shown, *_: Kept | Restoring) -> list[Column]:
        return [[BoundedCounts.restored(counts) if counts else None for counts in shown[name]]]


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
