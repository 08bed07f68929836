"""The timeline of a session in equal spans of time, few enough to be drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from m31a_mp.kinds.exact import ExactSum
from m31a_mp.model import Timeline

# A step is from a wrong clock if its distance from the others is more than so many times their span.
_FAR = 20
_YEAR_10000 = 253_402_300_800  # in seconds since the epoch: `datetime` ends before


class Spans(NamedTuple):
    """Equal spans of time without a gap, with the sums of what happened in each.

    Attributes:
        seconds: The width of a span.
        starts: The start of each span, in seconds since the epoch.
        sums: The sums in each span, for each of `Timeline.columns()`.
    """

    seconds: int
    starts: range = range(0)
    sums: Mapping[str, list[float]] = MappingProxyType({})


def near_steps(timeline: Timeline) -> tuple[list[int], int]:
    """Return the indexes of the steps in which anything happened, and how many of these are left out.

    A single step at either end that is far from all others is left out: its clock was wrong.
    """
    happened = zip(timeline.starts, timeline.tool_calls, timeline.interactions, strict=True)
    used = [i for i, (_, *numbers) in enumerate(happened) if any(numbers)]
    steps = [i for i in used if 0 <= timeline.starts[i] < _YEAR_10000]
    for kept in _without_an_end(steps):
        if _width(timeline, steps) > _FAR * _width(timeline, kept):
            steps = kept
            break
    return steps, len(used) - len(steps)


def _without_an_end(steps: list[int]) -> Iterator[list[int]]:
    if len(steps) > 2:  # noqa: PLR2004  # with two steps, either could be the wrong one
        yield steps[1:]
        yield steps[:-1]


def _width(timeline: Timeline, steps: Sequence[int]) -> int:
    return timeline.starts[steps[-1]] - timeline.starts[steps[0]] + timeline.step_seconds


def spans(timeline: Timeline, steps: Sequence[int], most: int, least_seconds: int = 1) -> Spans:
    """Add up steps in spans of time.

    Args:
        timeline: The timeline.
        steps: The indexes of the steps, in order.
        most: The most spans, at least 1.
        least_seconds: The least width of a span, a power of two.

    Returns:
        The spans from the first step to the last one, as narrow as possible; none without steps.
    """
    seconds = max(timeline.step_seconds, least_seconds)
    if not steps:
        return Spans(seconds)
    starts = [timeline.starts[i] for i in steps]
    while starts[-1] // seconds - starts[0] // seconds >= most:
        seconds *= 2
    first, last = starts[0] // seconds, starts[-1] // seconds
    places = [start // seconds - first for start in starts]
    sums = {name: _sums(places, [getattr(timeline, name)[i] for i in steps]) for name in Timeline.columns()}
    return Spans(seconds, range(first * seconds, (last + 1) * seconds, seconds), sums)


def _sums(places: Sequence[int], values: Sequence[float]) -> list[float]:
    """Add up values at the same place. A sum of whole numbers is one."""
    parts: list[list[float]] = [[] for _ in range(places[-1] + 1)]
    for place, value in zip(places, values, strict=True):
        parts[place].append(value)
    is_whole = all(isinstance(value, int) for value in values)
    return [sum(part) if is_whole else ExactSum(part).value() for part in parts]
