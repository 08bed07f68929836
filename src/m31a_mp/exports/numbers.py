"""The numbers of sessions, as they add up for Prometheus."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate

from m31a_mp.exports.counters import COUNTERS
from m31a_mp.kinds.histogram import SCALE, Histogram
from m31a_mp.model import SessionMetrics

POWERS = range(-8, 13)
"""The bounds of Prometheus's buckets, as powers of two of a second: 4 ms to 68 minutes.

Each is also a bound of the histogram of a session, so that a bucket's count is exact.
"""

Labels = tuple[str, ...]
"""The values of the labels."""

Shown = Callable[[str, str], str]
"""Returns the value of a label for a name."""


@dataclass(slots=True)
class Numbers:
    """The counters and histograms of one session, or of several together.

    Attributes:
        counts: The counters, by name and labels. Costs are exact sums, so that the order of sessions does not
            show.
        durations: The histograms, by name and labels. A row has for each bound the number of durations up to
            it; then the number of all, and their sum in milliseconds. The sum is not a number if it is not
            known.
    """

    counts: dict[str, dict[Labels, int | Fraction]] = field(default_factory=dict)
    durations: dict[str, dict[Labels, list[float]]] = field(default_factory=dict)

    @classmethod
    def of(cls, metrics: SessionMetrics, shown: Shown) -> Numbers:
        """Return the numbers of a session.

        Args:
            metrics: The metrics.
            shown: Returns the name under which a name counts.
        """
        numbers = cls()
        for counter in COUNTERS:
            counts = numbers.counts[counter.name] = {}
            for labels, count in counter.rows(metrics):
                of = (shown(counter.labels[0], labels[0]), *labels[1:]) if labels else labels
                add_count(counts, of, count if type(count) is int else Fraction(count))
        tools = numbers.durations["tool.call.duration"] = {}
        for tool in metrics.tools:
            if tool.durations:
                # A file of an earlier version may have a sum of more calls than its histogram.
                is_whole = tool.durations.count + tool.interrupted_count == tool.call_count
                total = tool.total_duration_ms if is_whole else math.nan
                add_row(tools, (shown("tool", tool.name),), [*_cumulative(tool.durations), total])
        models = numbers.durations["model.interaction.duration"] = {}
        for model in metrics.models:
            if model.durations:
                row: list[float] = [*_cumulative(model.durations), model.total_duration_ms]
                add_row(models, (shown("model", model.model),), row)
        return numbers

    def add(self, other: Numbers) -> None:
        """Add the numbers of another session."""
        for name, counts in other.counts.items():
            mine = self.counts.setdefault(name, {})
            for labels, count in counts.items():
                add_count(mine, labels, count)
        for name, rows in other.durations.items():
            ours = self.durations.setdefault(name, {})
            for labels, row in rows.items():
                add_row(ours, labels, row)

    def beyond(self, other: Numbers) -> Numbers:
        """Return by how much these numbers are larger than others, where they are."""
        more = Numbers()
        for name, counts in self.counts.items():
            theirs = other.counts.get(name, {})
            for labels, count in counts.items():
                if count > theirs.get(labels, -1):  # a zero stays, too: its series would be gone
                    more.counts.setdefault(name, {})[labels] = count - theirs.get(labels, 0)
        for name, rows in self.durations.items():
            their_rows = other.durations.get(name, {})
            for labels, row in rows.items():
                their_row = their_rows.get(labels, [0] * len(row))
                if row != their_row and any(a > b for a, b in zip(row, their_row, strict=True)):
                    *up_to, total = (max(0, a - b) for a, b in zip(row, their_row, strict=True))
                    # A higher bound has no fewer durations, whatever the others are.
                    more.durations.setdefault(name, {})[labels] = [*accumulate(up_to, max), total]
        return more


def add_count(counts: dict[Labels, int | Fraction], labels: Labels, count: int | Fraction) -> None:
    """Add to a counter."""
    counts[labels] = counts.get(labels, 0) + count


def to_float(count: int | Fraction) -> float:
    """Return a counter as a float; the largest one if it is larger, as in the metrics of a session."""
    try:
        return float(count)
    except OverflowError:
        return sys.float_info.max


def add_row(rows: dict[Labels, list[float]], labels: Labels, row: list[float]) -> None:
    """Add to a histogram."""
    before = rows.get(labels)
    rows[labels] = row if before is None else [a + b for a, b in zip(before, row, strict=True)]


def _cumulative(histogram: Histogram) -> list[int]:
    """Return the number of durations up to each bound, and the number of all."""
    up_to = list(accumulate(histogram.counts, initial=histogram.zero_count))
    last = len(up_to) - 1
    steps = (
        2**SCALE
    )  # buckets from one power of two to the next; bucket `i` ends at `2**((i + 1) / steps)` seconds
    counts = [up_to[min(max(steps * power - histogram.offset, 0), last)] for power in POWERS]
    return [*counts, up_to[-1]]
