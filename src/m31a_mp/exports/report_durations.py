"""The geometry of distributions of durations. A template writes it as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from m31a_mp.exports.report_timeline import Tick, percent
from m31a_mp.kinds.histogram import SCALE, Histogram, bucket

_PER_DOUBLING = 4  # bars from one power of two to the next; a histogram has 16 buckets there
_MERGED = 2**SCALE // _PER_DOUBLING
_LEAST_BARS = 16  # of a few, each would be as wide as a word
_SHAPE = 30  # the height of the highest bar of a distribution
_ZERO_COLUMNS = 2  # the bar of 0 ms, and a gap
_DURATIONS = {
    "1 ms": 1,
    "10 ms": 10,
    "100 ms": 100,
    "1 s": 1000,
    "10 s": 10_000,
    "1 min": 60_000,
    "10 min": 600_000,
    "1 h": 3_600_000,
    "10 h": 36_000_000,
    "10 d": 864_000_000,
    "1,000 d": 86_400_000_000,
}
_LEAST_DISTANCE = 20  # of two labels, in percent
_EDGE_OF_AXIS = 8


@dataclass(frozen=True, slots=True)
class Axis:
    """A logarithmic axis of durations, the same for all distributions of a table.

    Attributes:
        first: The index of the first bar: bar `i` holds what took `2**(i / 4)` to `2**((i + 1) / 4)` s.
        bars: The number of bars.
        has_zero: Whether there is a bar of 0 ms, before the others.
        ticks: The marks.
    """

    first: int = 0
    bars: int = 0
    has_zero: bool = False
    ticks: list[Tick] = field(default_factory=list)

    @property
    def columns(self) -> int:
        """The width in bars."""
        return self.bars + (_ZERO_COLUMNS if self.has_zero else 0)

    def place(self, milliseconds: float) -> float:
        """Return the place of a duration, in bars from the left edge."""
        if milliseconds <= 0:
            return 0.5
        offset = _ZERO_COLUMNS if self.has_zero else 0
        return offset + _PER_DOUBLING * math.log2(milliseconds / 1000) - self.first


def axis_of(histograms: Sequence[Histogram]) -> Axis:
    """Return the axis that has room for some histograms."""
    filled = [h for h in histograms if h.counts]
    has_zero = any(h.zero_count for h in histograms)
    if not filled and not has_zero:
        return Axis()
    first = min((h.offset for h in filled), default=bucket(1)) // _MERGED
    last = max((h.offset + len(h.counts) - 1 for h in filled), default=bucket(1)) // _MERGED
    missing = max(0, _LEAST_BARS - (last + 1 - first))
    left = 0 if has_zero else missing // 2
    bare = Axis(first - left, last + 1 - first + missing, has_zero)
    return Axis(bare.first, bare.bars, has_zero, list(_duration_ticks(bare)))


def _duration_ticks(axis: Axis) -> Iterator[Tick]:
    last = -math.inf
    if axis.has_zero:
        last = 100 * 0.5 / axis.columns
        yield Tick(percent(last), "0")
    for label, milliseconds in _DURATIONS.items():
        x = 100 * axis.place(milliseconds) / axis.columns
        if _EDGE_OF_AXIS <= x <= 100 - _EDGE_OF_AXIS and x - last >= _LEAST_DISTANCE:
            last = x
            yield Tick(percent(x), label)


@dataclass(frozen=True, slots=True)
class Distribution:
    """One histogram, or two: the second one hangs below the first.

    Attributes:
        columns, height: The size of the drawing, in bars and in pixels.
        paths: The outline of each histogram.
        marks: For each histogram the places of some durations, by a name: `p50`, `p95`.
        title: The durations in words.
    """

    columns: int
    height: int
    paths: list[str]
    marks: list[dict[str, float]]
    title: str


def distribution(
    histograms: Sequence[Histogram | None], marks: Sequence[dict[str, float]], axis: Axis, title: str
) -> Distribution | None:
    """Draw histograms on an axis; None if there is nothing to draw.

    Args:
        histograms: The histograms, None for those that are not known.
        marks: Durations to be marked, in milliseconds, for each histogram.
        axis: The axis, from `axis_of` these and others.
        title: The durations in words.
    """
    if not any(h and h.count for h in histograms):
        return None
    return Distribution(
        axis.columns,
        _SHAPE * len(histograms),
        [_outline(h, axis, down=i == 1) if h and h.count else "" for i, h in enumerate(histograms)],
        [{name: round(axis.place(ms), 2) for name, ms in each.items()} for each in marks],
        title,
    )


def bars_of(histogram: Histogram, axis: Axis) -> list[int]:
    """Return the counts of the bars of an axis."""
    counts = [0] * axis.columns
    offset = _ZERO_COLUMNS if axis.has_zero else 0
    if histogram.zero_count:
        counts[0] = histogram.zero_count
    for index, number in enumerate(histogram.counts, histogram.offset):
        if number:
            counts[offset + index // _MERGED - axis.first] += number
    return counts


def _outline(histogram: Histogram, axis: Axis, *, down: bool) -> str:
    """Return the path around the bars, standing on the line at `_SHAPE` or hanging from it."""
    counts = bars_of(histogram, axis)
    most = max(counts)
    path, x = f"M0 {_SHAPE}", 0
    for number, run in groupby(counts):
        x += len(list(run))
        height = max(1.0, _SHAPE * (number / most)) if number else 0
        path += f"V{_SHAPE + (height if down else -height):.4g}H{x}"
    return f"{path}V{_SHAPE}z"
