"""The parts of an entry: sums, exact sums, latest values. No part depends on the order of additions.

There is no other way to add to an entry. The result therefore cannot depend on the order of records.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple, Protocol

from m31a_mp.kinds.bounded import BoundedCounts
from m31a_mp.kinds.checks import INT64_MAX, saturated
from m31a_mp.kinds.durations import Calls, Durations
from m31a_mp.kinds.exact import ExactSum
from m31a_mp.kinds.packed import add, pack, unpack
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


class Part(Protocol):
    """One part of an entry: its initial value, its merge, and its conversion to the shown form and back.

    A value is packed to be restored and merged. Most packed values are plain ones in tuples, which cost the
    garbage collector nothing. Restoring and merging take many values at once: a call for each would take most
    of the time.
    """

    def zero(self) -> Any:
        """Return the value before the first record."""

    def packed(self, value: Any) -> Any:
        """Return the packed form of a value."""

    def unpacked(self, packed: Any) -> Any:
        """Return the value of its packed form."""

    def merged(self, values: Sequence[Any]) -> Any:
        """Return the packed value for the records of some states together. There is at least one state."""

    def show(self, name: str, value: Any, shown: dict[str, Any]) -> None:
        """Add the value to the fields of an entry in `metrics.json`. `name` is the name of the part."""

    def save(self, value: Any, kept: dict[str, Any]) -> None:
        """Add to the checkpoint the state that the entry does not show."""

    def restored(self, name: str, shown: Shown, kept: Kept, at: Restoring) -> list[Any]:
        """Return the packed values of all entries of a table from `metrics.json`."""


class Plain:
    """A part whose values are their own packed form."""

    def packed(self, value: Any) -> Any:
        return value

    def unpacked(self, packed: Any) -> Any:
        return packed


class Sum(Plain):
    """A sum of integers. Only the shown value saturates at the largest 64-bit integer."""

    def zero(self) -> int:
        return 0

    def merged(self, values: Sequence[int]) -> int:
        return sum(values)

    def show(self, name: str, value: int, shown: dict[str, Any]) -> None:
        shown[name] = saturated(value)

    def save(self, value: int, kept: dict[str, Any]) -> None:
        """Keep nothing: `metrics.json` shows all of it."""

    def restored(self, name: str, shown: Shown, kept: Kept, at: Restoring) -> list[int]:  # noqa: ARG002
        return shown[name]


class Exact(NamedTuple):
    """An exact sum of floats. The shown value is rounded, and the checkpoint keeps the exact sum.

    Attributes:
        keep: The key in the checkpoint.
    """

    keep: str

    def zero(self) -> ExactSum:
        return ExactSum()

    def packed(self, value: ExactSum) -> tuple[float, ...]:
        return tuple(value.parts())

    def unpacked(self, packed: tuple[float, ...]) -> ExactSum:
        return ExactSum(list(packed))

    def merged(self, values: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
        return tuple(ExactSum(list(chain.from_iterable(values))).parts())

    def show(self, name: str, value: ExactSum, shown: dict[str, Any]) -> None:
        shown[name] = value.value()

    def save(self, value: ExactSum, kept: dict[str, Any]) -> None:
        kept[self.keep] = value.parts()

    def restored(self, name: str, shown: Shown, kept: Kept, at: Restoring) -> list[tuple[float, ...]]:  # noqa: ARG002
        parts = [known.get(self.keep, []) for known in kept]
        return list(map(exact, shown[name], parts))


class Latest(Plain):
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

    def merged(self, values: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
        return max(values)

    def show(self, name: str, value: tuple[Any, ...], shown: dict[str, Any]) -> None:  # noqa: ARG002
        shown |= zip(self.zeros, value[1:] or self.zeros.values(), strict=True)

    def save(self, value: tuple[Any, ...], kept: dict[str, Any]) -> None:
        kept[self.keep] = value[0] if value else None

    def restored(self, name: str, shown: Shown, kept: Kept, at: Restoring) -> list[tuple[Any, ...]]:  # noqa: ARG002
        latest: list[tuple[Any, ...]] = []
        for known, *values in zip(kept, *(shown[field] for field in self.zeros), strict=True):
            time = known.get(self.keep)
            if time is None and any(values):
                time = at.updated  # the values come from `save()`, or from another program
            latest.append(() if time is None else (at.time(time), *values))
        return latest


class LastTime(Plain):
    """The time of the latest record, in ns; 0 without records.

    Attributes:
        keep: The key in the checkpoint, which has nanoseconds. The shown value has microseconds.
    """

    def __init__(self, keep: str) -> None:
        self.keep = keep

    def zero(self) -> int:
        return 0

    def merged(self, values: Sequence[int]) -> int:
        return max(values)

    def show(self, name: str, value: int, shown: dict[str, Any]) -> None:
        shown[name] = from_ns(value) if value else None

    def save(self, value: int, kept: dict[str, Any]) -> None:
        if value:
            kept[self.keep] = value

    def restored(self, name: str, shown: Shown, kept: Kept, at: Restoring) -> list[int]:
        times = [known.get(self.keep) for known in kept]
        return at.times(
            [
                (to_ns(micros) if micros else 0) if time is None else time
                for time, micros in zip(times, shown[name], strict=True)
            ]
        )


class Earliest(Plain):
    """The value of the first record, after its time; at equal times, the least value.

    Attributes:
        keep: The key of the time in the checkpoint.
    """

    def __init__(self, keep: str) -> None:
        self.keep = keep

    def zero(self) -> tuple[Any, ...]:
        return ()

    def merged(self, values: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
        return min(filter(None, values), default=())

    def show(self, name: str, value: tuple[Any, ...], shown: dict[str, Any]) -> None:
        shown[name] = value[1] if value else ""

    def save(self, value: tuple[Any, ...], kept: dict[str, Any]) -> None:
        if value:
            kept[self.keep] = value[0]

    def restored(self, name: str, shown: Shown, kept: Kept, at: Restoring) -> list[tuple[Any, ...]]:
        return [
            (at.time(known.get(self.keep, at.started)), value) if value else ()
            for known, value in zip(kept, shown[name], strict=True)
        ]


class Ever(Plain):
    """A flag that is true if any record set it."""

    def zero(self) -> bool:
        return False

    def merged(self, values: Sequence[bool]) -> bool:
        return any(values)

    def show(self, name: str, value: bool, shown: dict[str, Any]) -> None:
        shown[name] = value

    def save(self, value: bool, kept: dict[str, Any]) -> None:
        """Keep nothing: `metrics.json` shows all of it."""

    def restored(self, name: str, shown: Shown, kept: Kept, at: Restoring) -> list[bool]:  # noqa: ARG002
        return shown[name]


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

    def packed(self, value: Durations) -> tuple[Any, ...]:
        histogram = value.histogram()
        return value.total, value.least, value.greatest, histogram and pack(histogram)

    def unpacked(self, packed: tuple[Any, ...]) -> Durations:
        total, least, greatest, histogram = packed
        return Durations(total, histogram and unpack(histogram), least, greatest)

    def merged(self, values: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
        totals, least, greatest, histograms = zip(*values, strict=True)
        try:
            return sum(totals), min(least), max(greatest), add(histograms)
        except TypeError:  # not all have durations, or not all of these have bounds
            timed = [value[1:] for value in values if value[3]]
        if not timed:
            return sum(totals), None, None, None
        least, greatest, histograms = zip(*timed, strict=True)
        # Unknown bounds stay unknown: files of earlier versions do not have them for models.
        is_known = len(timed) == 1 or not (None in least or None in greatest)
        bounds = (min(least), max(greatest)) if is_known else (None, None)
        return sum(totals), *bounds, add(histograms)

    def show(self, name: str, value: Durations, shown: dict[str, Any]) -> None:  # noqa: ARG002
        shown[self.total] = saturated(value.total)
        shown |= zip(self.bounds, (value.least, value.greatest), strict=True)
        shown[self.histogram] = value.histogram()

    def save(self, value: Durations, kept: dict[str, Any]) -> None:
        """Keep nothing: `metrics.json` shows all of it."""

    def restored(self, name: str, shown: Shown, kept: Kept, at: Restoring) -> list[tuple[Any, ...]]:  # noqa: ARG002
        histograms = [histogram and pack(histogram) for histogram in shown[self.histogram]]
        return list(zip(shown[self.total], *(shown[field] for field in self.bounds), histograms, strict=True))


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
        return value.counts, super().packed(value)

    def unpacked(self, packed: tuple[Any, ...]) -> Calls:
        counts, (total, least, greatest, histogram) = packed
        return Calls(counts, total, histogram and unpack(histogram), least, greatest)

    def merged(self, values: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
        counts, durations = zip(*values, strict=True)
        return tuple(map(sum, zip(*counts, strict=True))), super().merged(durations)

    def restored(self, name: str, shown: Shown, kept: Kept, at: Restoring) -> list[tuple[Any, ...]]:
        counts = zip(*(shown[field] for field in self.counts), strict=True)
        return list(zip(counts, super().restored(name, shown, kept, at), strict=True))


class Counts:
    """Counts by name, for a bounded number of names; None without any."""

    def zero(self) -> None:
        return None

    def packed(self, value: BoundedCounts | None) -> BoundedCounts | None:
        return value and BoundedCounts().merge(value)

    def unpacked(self, packed: BoundedCounts | None) -> BoundedCounts | None:
        return packed and BoundedCounts().merge(packed)

    def merged(self, values: Sequence[BoundedCounts | None]) -> BoundedCounts | None:
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

    def restored(self, name: str, shown: Shown, *_: Kept | Restoring) -> list[BoundedCounts | None]:
        return [BoundedCounts.restored(counts) if counts else None for counts in shown[name]]


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
