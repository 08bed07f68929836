"""The timeline of a session as one line of bars."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from m31a_mp.cli.cells import whole_seconds
from m31a_mp.model import Timeline

_BARS = "▁▂▃▄▅▆▇█"
_COLUMNS = 60
_LEAST = 8  # fewer bars show nothing
# A step is from a wrong clock if its distance from the others is more than so many times their span.
_FAR = 20


class Activity:
    """A line of bars for the calls and interactions in equal spans of time. Empty spans have no bar."""

    def __init__(self, timeline: Timeline) -> None:
        happened = map(sum, zip(timeline.tool_calls, timeline.interactions, strict=True))
        self._seconds = timeline.step_seconds
        self._steps = [step for step in zip(timeline.starts, happened, strict=True) if step[1]]
        self._far = len(self._steps)
        self._leave_out_far_ones()
        self._far -= len(self._steps)

    def __bool__(self) -> bool:
        return bool(self._steps) and self._steps[-1][0] - self._steps[0][0] >= _LEAST * self._seconds

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        counts, seconds = self._columns(max(1, min(_COLUMNS, options.max_width)))
        most = max(counts)
        bars = (_BARS[(len(_BARS) * n - 1) // most] if n else " " for n in counts)
        far = f"; {self._far} far from these left out" if self._far else ""
        yield Text("Activity", "bold")
        yield Text("".join(bars).rstrip())
        each = f"{whole_seconds(seconds)} a column, at most {most:,} in one"
        yield Text(f"calls and interactions, {each}{far}", "dim")

    def _columns(self, width: int) -> tuple[list[int], int]:
        """Return the counts for equal spans of time, and the seconds of a span."""
        seconds = self._seconds
        while self._steps[-1][0] // seconds - self._steps[0][0] // seconds >= width:
            seconds *= 2
        first = self._steps[0][0] // seconds
        counts = [0] * (self._steps[-1][0] // seconds - first + 1)
        for start, happened in self._steps:
            counts[start // seconds - first] += happened
        return counts, seconds

    def _leave_out_far_ones(self) -> None:
        """Leave out single steps at the ends that are far from all others."""
        for steps in self._without_an_end():
            span = steps[-1][0] - steps[0][0] + self._seconds
            whole = self._steps[-1][0] - self._steps[0][0] + self._seconds
            if whole > _FAR * span:
                self._steps = steps
                return

    def _without_an_end(self) -> Iterator[list[tuple[int, int]]]:
        if len(self._steps) > 2:  # noqa: PLR2004  # with two steps, either could be the wrong one
            yield self._steps[1:]
            yield self._steps[:-1]
