"""The timeline of a session as one line of bars."""

from __future__ import annotations

from collections.abc import Iterator

from m31a_mp.cli.layout import Line
from m31a_mp.exports.spans import near_steps, spans
from m31a_mp.model import Timeline
from m31a_mp.wording import whole_seconds

_BARS = "▁▂▃▄▅▆▇█"
_COLUMNS = 60
_LEAST = 8  # fewer bars show nothing


class Activity:
    """A line of bars for the calls and interactions in equal spans of time. Empty spans have no bar."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._steps, self._far = near_steps(timeline)

    def __bool__(self) -> bool:
        starts = [self._timeline.starts[i] for i in self._steps]
        return bool(starts) and starts[-1] - starts[0] >= _LEAST * self._timeline.step_seconds

    def lines(self, width: int) -> Iterator[Line]:
        """Yield the lines for a width in cells."""
        found = spans(self._timeline, self._steps, max(1, min(_COLUMNS, width)))
        both = zip(found.sums["tool_calls"], found.sums["interactions"], strict=True)
        counts = [int(calls + interactions) for calls, interactions in both]
        most = max(counts)
        bars = (_BARS[(len(_BARS) * n - 1) // most] if n else " " for n in counts)
        far = f"; {self._far} far from these left out" if self._far else ""
        yield Line(("Activity", "bold"))
        yield Line("".join(bars).rstrip())
        each = f"{whole_seconds(found.seconds)} a column, at most {most:,} in one"
        yield Line((f"calls and interactions, {each}{far}", "dim"))
