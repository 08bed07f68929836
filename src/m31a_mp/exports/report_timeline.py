"""The geometry of the chart of what happened when. A template writes it as SVG.

The chart is as wide as the page: horizontal places are percentages, so that text is never stretched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from m31a_mp.exports.report_names import MAX_NAME, Name, in_text, name_of
from m31a_mp.exports.spans import Spans, near_steps, spans
from m31a_mp.model import PhaseMetric, SessionMetrics, Timeline
from m31a_mp.wording import cost, count, outcome, whole_seconds

_MOST_SPANS = 120  # on a telephone, a column is 3 pixels wide then
_LEAST_SPANS = 24  # of a few, each would be as wide as a word
_LANE = 52  # the height of the highest bar, in pixels
_LABEL = 24  # the room above a lane for its label
_AXIS = 22  # the room below all lanes for the times
_GAP = 0.15  # the part of a column that stays empty
_LEAST_BAR = 1.5  # a bar that is not nothing can be seen
_UNKNOWN_BAR = 5.0  # the height of a mark of unknown costs
_MOST_TICKS = 8
_TICKS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)
_EDGE = 4  # a label nearer to an edge, in percent, would leave the chart
_MINUTE, _DAY = 60, 86_400
_STRIP = 18  # the height of the strip of a phase, in pixels
_OVERLAP = 0.3  # of two strips that is taken for none, in percent: a phase begins when the last one ends
_STRIPS = 4  # one above another, of phases at the same time


@dataclass(frozen=True, slots=True)
class Bar:
    """A rectangle: its kind, and its upper edge and height in pixels."""

    kind: str
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class Moment:
    """A column of the chart: all bars of one span of time. `x` is in percent."""

    x: str
    title: str
    bars: list[Bar]


@dataclass(frozen=True, slots=True)
class Strip:
    """A phase, from its latest beginning to its end. `x` and `width` are in percent, `y` in pixels."""

    x: str
    width: str
    y: float
    name: Name
    title: str
    is_bad: bool


@dataclass(frozen=True, slots=True)
class Lane:
    """A row of the chart. `y` and `baseline` are the places of its label and of the feet of its bars."""

    label: str
    most: str
    y: float
    baseline: float


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis. `x` is in percent. Minor ones are left out where there is little room."""

    x: str
    label: str
    is_minor: bool = False


@dataclass(frozen=True, slots=True)
class TimelineChart:
    """What happened when.

    Attributes:
        height: The height in pixels.
        top: The height of the strips of phases, in pixels.
        bar_width: The width of a bar, in percent.
        width: The width of a column, in percent.
        strips, moments, lanes, ticks: The contents.
        has_unknown: Whether the cost of an interaction is not known.
        note: A sentence on the columns.
    """

    height: float
    top: float
    bar_width: str
    width: str
    strips: list[Strip]
    moments: list[Moment]
    lanes: list[Lane]
    ticks: list[Tick]
    has_unknown: bool
    note: str


@dataclass(frozen=True, slots=True)
class _Series:
    """What a lane shows: its label, the bars of a column from below, and how a value is written."""

    label: str
    kinds: tuple[str, ...]
    values: Sequence[tuple[float, ...]]
    written: Callable[[float], str]

    @property
    def most(self) -> float:
        return max(map(sum, self.values))


def timeline_charts(sessions: Sequence[SessionMetrics]) -> list[TimelineChart | None]:
    """Draw timelines with columns of one width and bars of one scale; None for a session without one."""
    timelines = [metrics.timeline for metrics in sessions]
    near = [near_steps(timeline) if timeline else ([], 0) for timeline in timelines]
    found = _in_spans(timelines, [steps for steps, _ in near])
    columns = max((len(each.starts) for each in found if each), default=0)
    columns = max(columns, _LEAST_SPANS)
    series = [_series(each) if each else [] for each in found]
    most = {
        label: max(one.most for lanes in series for one in lanes if one.label == label)
        for label in {one.label for lanes in series for one in lanes}
    }
    return [
        _Drawing(each, metrics.phases, lanes, most, columns).chart(left_out) if each else None
        for metrics, each, lanes, (_, left_out) in zip(sessions, found, series, near, strict=True)
    ]


def _in_spans(timelines: Sequence[Timeline | None], steps: Sequence[list[int]]) -> list[Spans | None]:
    """Add up all timelines in spans of one width."""
    seconds = 1
    for _ in range(2):  # the first time, the widest of them is found
        found = [
            spans(timeline, kept, _MOST_SPANS, seconds) if timeline and kept else None
            for timeline, kept in zip(timelines, steps, strict=True)
        ]
        seconds = max((each.seconds for each in found if each), default=1)
    return found


def _series(found: Spans) -> list[_Series]:
    sums = found.sums
    ok = [max(0, calls - failed) for calls, failed in zip(sums["tool_calls"], sums["failures"], strict=True)]
    lanes = []
    if any(sums["tool_calls"]):
        calls = list(zip(ok, sums["failures"], strict=True))
        lanes.append(_Series("Tool calls", ("ok", "failed"), calls, "{:,.0f}".format))
    if any(sums["tokens"]):
        lanes.append(_Series("Tokens", ("tokens",), [(n,) for n in sums["tokens"]], "{:,.0f}".format))
    if any(sums["costs"]) or any(sums["unknown_costs"]):
        lanes.append(_Series("Cost", ("cost",), [(n,) for n in sums["costs"]], cost))
    return lanes


class _Drawing:
    """The parts of one chart."""

    def __init__(
        self,
        found: Spans,
        phases: Sequence[PhaseMetric],
        lanes: list[_Series],
        most: dict[str, float],
        columns: int,
    ) -> None:
        self._found, self._lanes, self._most = found, lanes, most
        self._first, self._seconds = found.starts[0], columns * found.seconds
        self._columns = columns
        self.strips = list(self._strips(phases))
        self._top = max((strip.y + _STRIP + 2 for strip in self.strips), default=0)

    def chart(self, left_out: int) -> TimelineChart:
        """Put the parts together."""
        found, width = self._found, 100 / self._columns
        moments = [
            Moment(percent(i * width), _moment_title(found, i), list(self._bars(i)))
            for i in range(len(found.starts))
        ]
        far = f" {count(left_out, 'step')} far from these left out: a clock was wrong." if left_out else ""
        return TimelineChart(
            height=self._baseline(len(self._lanes) - 1) + _AXIS,
            top=self._top,
            bar_width=percent(width * (1 - _GAP)),
            width=percent(width),
            strips=self.strips,
            moments=[moment for moment in moments if moment.bars],
            lanes=[
                Lane(
                    lane.label, _most_text(lane, self._most), self._baseline(i) - _LANE - 8, self._baseline(i)
                )
                for i, lane in enumerate(self._lanes)
            ],
            ticks=list(self._ticks()),
            has_unknown=any(found.sums["unknown_costs"]),
            note=f"Each column is {whole_seconds(found.seconds)}. Times are UTC.{far}",
        )

    def _baseline(self, lane: int) -> float:
        return self._top + (lane + 1) * (_LABEL + _LANE)

    def _x(self, time: float) -> float:
        """Return the place of a time in seconds since the epoch, in percent."""
        return 100 * (time - self._first) / self._seconds

    def _strips(self, phases: Sequence[PhaseMetric]) -> Iterator[Strip]:
        """Yield the phases. Phases at the same time stand one above another."""
        free = [-math.inf] * _STRIPS  # where the last strip of each row ends
        end_of_chart = self._x(self._found.starts[-1] + self._found.seconds)
        entered = [(phase.entered_at, phase) for phase in phases if phase.entered_at]
        for begun, phase in sorted(entered, key=lambda item: item[0]):
            is_over = phase.ended_at is not None and phase.ended_at >= begun
            end = self._x(phase.ended_at.timestamp()) if phase.ended_at and is_over else end_of_chart
            x, end = max(0.0, self._x(begun.timestamp())), min(end, end_of_chart)
            row = next((row for row, until in enumerate(free) if until <= x + _OVERLAP), None)
            if x >= end or row is None:
                continue
            free[row] = end
            until = f"to {phase.ended_at:%H:%M:%S}, {outcome(phase)}" if is_over else "not ended"
            title = f"{in_text(phase.phase, MAX_NAME)}: {begun:%Y-%m-%d %H:%M:%S} {until}"
            is_bad = is_over and not phase.success
            yield Strip(percent(x), percent(end - x), row * (_STRIP + 2), name_of(phase.phase), title, is_bad)

    def _bars(self, i: int) -> Iterator[Bar]:
        for number, lane in enumerate(self._lanes):
            y = self._baseline(number)
            for kind, value in zip(lane.kinds, lane.values[i], strict=True):
                if value > 0:
                    height = max(_LEAST_BAR, _LANE * (value / self._most[lane.label]))
                    y -= height
                    yield Bar(kind, round(y, 2), round(height, 2))
            if lane.label == "Cost" and self._found.sums["unknown_costs"][i]:
                yield Bar("unknown", round(y - _UNKNOWN_BAR, 2), _UNKNOWN_BAR)

    def _ticks(self) -> Iterator[Tick]:
        """Yield marks at whole minutes, hours and so on, at most as many as there is room for."""
        step = next((step for step in _TICKS if self._seconds / step <= _MOST_TICKS), 0)
        step = step or _DAY * math.ceil(self._seconds / _MOST_TICKS / _DAY)
        form = "%H:%M:%S" if step < _MINUTE else "%H:%M" if step < _DAY else "%Y-%m-%d"
        times = range(-(-self._first // step) * step, self._found.starts[-1] + 1, step)
        for number, time in enumerate(times):
            if _EDGE <= self._x(time) <= 100 - _EDGE:
                is_new_day = time % _DAY == 0 and step < _DAY
                label = f"{_at(time):%b %d}" if is_new_day else _at(time).strftime(form)
                yield Tick(percent(self._x(time)), label, number % 2 == 1)


def _most_text(lane: _Series, most: dict[str, float]) -> str:
    return f"highest bar: {lane.written(most[lane.label])}" if most[lane.label] else "not known"


def _moment_title(found: Spans, i: int) -> str:
    sums = {name: column[i] for name, column in found.sums.items()}
    failed = f", {sums['failures']:,.0f} failed" if sums["failures"] else ""
    parts = [f"{count(int(sums['tool_calls']), 'tool call')}{failed}"] if sums["tool_calls"] else []
    if sums["interactions"]:
        parts.append(count(int(sums["interactions"]), "interaction"))
        parts.append(count(int(sums["tokens"]), "token"))
        parts.append(f"cost {cost(sums['costs'], int(sums['unknown_costs']), int(sums['interactions']))}")
    return f"{_at(found.starts[i]):%Y-%m-%d %H:%M:%S}: {'; '.join(parts)}"


def _at(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def percent(number: float) -> str:
    """Format a place on a chart."""
    return f"{number:.2f}".rstrip("0").rstrip(".") + "%"
