"""Histograms of durations: the exponential histogram of OpenTelemetry, base 2 and scale 4, in seconds.

Bucket `i` holds the durations `d` with `base**i < d <= base**(i + 1)`, where `base` is `2**(1/16)`. Each
bucket is 4.4 % wider than the previous one, so that a quantile is exact within 2.2 %. Durations are whole
milliseconds. A table of integers gives their bucket: a logarithm differs in the last digit between machines.
See the data model of OpenTelemetry's metrics, "ExponentialHistogram".
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from itertools import accumulate
from operator import add
from typing import Any

from m31a_mp.kinds.checks import INT64_MAX, as_float, kind

SCALE = 4
_STEPS = 2**SCALE  # buckets from one power of two to the next
LOWEST = -160  # the bucket of 1 ms: its upper bound is 2**(-159/16) s, the least bound above 0.001 s
HIGHEST = 848  # the bucket of 2**63 - 1 ms
_OCTAVES = (HIGHEST + 1) // _STEPS  # powers of two up to the highest bound


def _roots() -> list[int]:
    """Return `floor(1000 * base**step * 2**_OCTAVES)` for each step from one power of two to the next.

    The sixteenth root consists of four square roots. Their floors nest: the floor of the root of a floor is
    the floor of the root itself.
    """
    roots = [(1000 << _OCTAVES) ** _STEPS << step for step in range(_STEPS)]
    for _ in range(SCALE):
        roots = list(map(math.isqrt, roots))
    return roots


def _bounds() -> list[int]:
    """Return the largest whole number of milliseconds in each bucket: `floor(1000 * base**(index + 1))`.

    A bound is one of 16 roots, shifted by the power of two: every start of an owner makes this table.
    """
    roots = _roots()
    return [roots[upper % _STEPS] >> (_OCTAVES - upper // _STEPS) for upper in range(LOWEST + 1, HIGHEST + 2)]


_BOUNDS = _bounds()


def bucket(milliseconds: int) -> int:
    """Return the bucket of a duration from 1 to 2**63 - 1 ms."""
    return LOWEST + bisect_left(_BOUNDS, milliseconds)


def _bound_below(index: int) -> int:
    """Return the largest whole number of milliseconds below a bucket."""
    return _BOUNDS[index - 1 - LOWEST] if index > LOWEST else 0


# Most durations are short. A table has the buckets of these.
_SHORT = 4096


def _short_buckets() -> list[int]:
    buckets = [LOWEST]
    for index in range(LOWEST, bucket(_SHORT) + 1):
        buckets += [index] * (_BOUNDS[index - LOWEST] + 1 - len(buckets))
    return buckets[:_SHORT]


_BUCKETS = _short_buckets()


class Histogram:
    """The number of durations in each bucket.

    Attributes:
        zero_count: The number of durations of 0 ms.
        offset: The index of the first bucket that is not empty; 0 without any.
        counts: The number of durations in each bucket from `offset` on.
    """

    __slots__ = ("counts", "offset", "zero_count")

    def __init__(self, zero_count: int = 0, offset: int = 0, counts: list[int] | None = None) -> None:
        self.zero_count = zero_count
        self.offset = offset
        self.counts = counts or []

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        mine, theirs = ((h.zero_count, h.offset if h.counts else 0, h.counts) for h in (self, other))
        return mine == theirs

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"<Histogram of {self.count} durations>"

    def copy(self) -> Histogram:
        """Return a copy."""
        return Histogram(self.zero_count, self.offset, list(self.counts))

    @property
    def count(self) -> int:
        """The number of durations."""
        return self.zero_count + sum(self.counts)

    def add(self, durations: Mapping[int, int]) -> None:
        """Add durations, given as counts by milliseconds."""
        self.zero_count += durations.get(0, 0)
        least, greatest = min(filter(None, durations), default=0), max(durations, default=0)
        if greatest:
            self._reach(bucket(least), bucket(greatest))
            counts, offset = self.counts, self.offset
            for milliseconds, count in durations.items():
                if milliseconds:
                    index = _BUCKETS[milliseconds] if milliseconds < _SHORT else bucket(milliseconds)
                    counts[index - offset] += count

    def merge(self, other: Histogram) -> None:
        """Add the durations of another histogram."""
        self.zero_count += other.zero_count
        if other.counts:
            self._reach(other.offset, other.offset + len(other.counts) - 1)
            start = other.offset - self.offset
            mine = slice(start, start + len(other.counts))
            self.counts[mine] = map(add, self.counts[mine], other.counts)

    def _reach(self, first: int, last: int) -> None:
        """Extend the buckets to the indices from `first` to `last`."""
        if not self.counts:
            self.offset = first
        missing = self.offset - first
        if missing > 0:
            self.counts[:0] = [0] * missing
            self.offset = first
        missing = last + 1 - self.offset - len(self.counts)
        if missing > 0:
            self.counts += [0] * missing

    def quantile(self, q: float, least: int | None = None, greatest: int | None = None) -> float | None:
        """Return the duration that a fraction `q` of all did not exceed, in ms, exact within 2.2 %.

        Args:
            q: A fraction from 0 to 1: 0.5 is the median. The rank is `ceil(q * count)`, and at least 1.
            least: The least duration, in ms; None if unknown.
            greatest: The greatest duration, in ms; None if unknown.

        Returns:
            The geometric middle of the bucket, limited to the bucket's whole milliseconds and to the bounds;
            None without durations.

        Raises:
            TypeError: `q` is not a number.
            ValueError: `q` is not from 0 to 1.
        """
        if as_float(q) is None:
            raise TypeError(f"q must be a number from 0 to 1, not {kind(q)}")
        if not 0 <= q <= 1:
            raise ValueError(f"q must be from 0 to 1, not {q}")
        # Use the decimal value of `q`: 0.07 * 100 exceeds 7 in binary, and would give rank 8.
        numerator, denominator = _decimal(q)
        rank = max(1, -(-numerator * self.count // denominator))
        if not self.count or rank <= self.zero_count:
            return 0.0 if self.count else None
        if rank == 1 and least is not None:
            return float(least)
        if rank == self.count and greatest is not None:
            return float(greatest)
        ranks = accumulate(self.counts, initial=self.zero_count)
        next(ranks)
        index = next(index for index, up_to in enumerate(ranks, self.offset) if rank <= up_to)
        middle: float = 1000 * 2 ** ((index + 0.5) / _STEPS)
        lowest = _bound_below(index) + 1
        highest = _BOUNDS[index - LOWEST]
        middle = min(max(middle, lowest), highest)  # the range of whole milliseconds in the bucket
        return min(max(middle, least or 0), math.inf if greatest is None else greatest)

    def to_json(self) -> dict[str, Any]:
        """Return the histogram in the JSON form of OTLP, with counts of at most 2**63 - 1."""
        return {
            "scale": SCALE,
            "zero_count": min(self.zero_count, INT64_MAX),
            "offset": self.offset,
            "bucket_counts": [min(count, INT64_MAX) for count in self.counts]
            if max(self.counts, default=0) > INT64_MAX
            else list(self.counts),
        }

    @classmethod
    def from_json(cls, value: object) -> Histogram:
        """Restore a histogram from the result of `to_json`.

        Raises:
            ValueError: The value does not have this form; the message is the reason.
        """
        if not isinstance(value, dict):
            raise ValueError("is not an object")  # noqa: TRY004  # an error in the input, not of the caller
        if value.get("scale") != SCALE:
            raise ValueError(f"has a scale other than {SCALE}")
        offset, counts = value.get("offset", 0), value.get("bucket_counts", [])
        zero_count = value.get("zero_count", 0)
        if not isinstance(counts, list) or not _are_counts([zero_count, *counts]):
            raise ValueError("has counts that are not integers from 0 to 2**63 - 1")
        if type(offset) is not int or (
            counts and not LOWEST <= offset <= offset + len(counts) - 1 <= HIGHEST
        ):
            raise ValueError("has buckets outside the range of durations")
        if counts and counts[0] and counts[-1]:  # as this library writes it
            return cls(zero_count, offset, list(counts))
        filled = [i for i, count in enumerate(counts) if count]
        if not filled:
            return cls(zero_count)
        first, last = filled[0], filled[-1]
        return cls(zero_count, offset + first, counts[first : last + 1])


def _decimal(q: float) -> tuple[int, int]:
    """Return the decimal value of a number from 0 to 1 as a fraction."""
    digits, _, exponent = repr(float(q)).partition("e")
    whole, _, places = digits.partition(".")
    return int(whole + places), 10 ** (len(places) - int(exponent or 0))


def _are_counts(values: list[Any]) -> bool:
    return set(map(type, values)) == {int} and min(values) >= 0 and max(values) <= INT64_MAX
