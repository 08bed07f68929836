"""The geometry of charts, against the numbers that are drawn."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_spans import START, timeline

from m31a_mp.exports.report_durations import Axis, axis_of, bars_of, distribution
from m31a_mp.exports.report_timeline import TimelineChart, timeline_charts
from m31a_mp.kinds.histogram import Histogram
from m31a_mp.model import PhaseMetric, SessionMetrics

LANE = 52  # the height of the highest bar

durations = st.dictionaries(
    st.integers(0, 2**63 - 1) | st.integers(0, 5000), st.integers(1, 1000), max_size=30
)


def histogram(counts: dict[int, int]) -> Histogram:
    made = Histogram()
    made.add(counts)
    return made


def heights(path: str) -> list[float]:
    """How high each bar of an outline is above the line, or how low below."""
    found: list[float] = []
    x, y, base = 0, 0.0, float(re.match(r"M0 ([\d.]+)", path)[1])  # type: ignore[index]
    for command, number in re.findall(r"([VH])([\d.]+)", path):
        if command == "V":
            y = float(number) - base
        else:
            found += [y] * (int(number) - x)
            x = int(number)
    return found


# --- Distributions ------------------------------------------------------------------------------------


@pytest.mark.slow
@given(st.lists(durations, min_size=1, max_size=4))
def test_every_duration_is_in_the_bar_at_its_place(all_counts: list[dict[int, int]]) -> None:
    histograms = [histogram(counts) for counts in all_counts]
    axis = axis_of(histograms)
    for made, counts in zip(histograms, all_counts, strict=True):
        bars = bars_of(made, axis) if counts else []
        assert sum(bars) == sum(counts.values())
        for milliseconds in counts:
            place = axis.place(milliseconds)
            assert 0 <= place <= axis.columns
            # A histogram has whole milliseconds: at a bound, the bar before it may hold the duration.
            assert bars[max(0, int(place - 1e-9))] or bars[min(int(place + 1e-9), len(bars) - 1)]


def test_heights_are_in_proportion_and_one_of_many_can_be_seen() -> None:
    made = histogram({10: 1000, 100: 500, 10_000: 1})
    axis = axis_of([made])
    drawn = distribution([made], [{}], axis, "")
    assert drawn
    [path] = drawn.paths
    assert sorted(-height for height in heights(path) if height) == [1, 15, 30]
    assert len(heights(path)) == axis.columns == drawn.columns


def test_second_histogram_hangs_below_the_first() -> None:
    one, two = histogram({10: 4}), histogram({10: 2, 20: 4})
    drawn = distribution([one, two], [{}, {}], axis_of([one, two]), "")
    assert drawn
    up, down = map(heights, drawn.paths)
    assert min(up) == -30
    assert max(up) == 0
    assert sorted(h for h in down if h) == [15, 30]
    assert drawn.height == 60


def test_zero_has_a_bar_of_its_own() -> None:
    made = histogram({0: 3, 1: 1})
    axis = axis_of([made])
    assert axis.has_zero
    assert bars_of(made, axis)[:3] == [3, 0, 1]
    assert axis.ticks[0].label == "0"


def test_histogram_that_is_not_known_is_not_drawn() -> None:
    axis = axis_of([histogram({5: 1})])
    assert distribution([None], [{}], axis, "") is None
    assert distribution([Histogram()], [{}], axis, "") is None
    drawn = distribution([None, histogram({5: 1})], [{}, {}], axis, "")
    assert drawn
    assert [bool(path) for path in drawn.paths] == [False, True]
    assert axis_of([]) == Axis()


@pytest.mark.parametrize(("milliseconds", "label"), [(1000, "1 s"), (60_000, "1 min"), (100, "100 ms")])
def test_labels_stand_at_their_durations(milliseconds: int, label: str) -> None:
    axis = axis_of([histogram({milliseconds // 50: 1, 50 * milliseconds: 1})])
    [tick] = [tick for tick in axis.ticks if tick.label == label]
    assert float(tick.x.rstrip("%")) == pytest.approx(100 * axis.place(milliseconds) / axis.columns, abs=0.01)


# --- Timeline -----------------------------------------------------------------------------------------


def metrics(**fields: object) -> SessionMetrics:
    return SessionMetrics("s", **fields)  # type: ignore[arg-type]


def chart(made: SessionMetrics) -> TimelineChart:
    [drawn] = timeline_charts([made])
    assert drawn
    return drawn


def test_bars_are_in_proportion_and_stand_one_on_another() -> None:
    made = timeline({START: 10, START + 1: 5, START + 3: 1})
    made.failures = [4, 0, 1]
    drawn = chart(metrics(timeline=made))
    [lane] = drawn.lanes
    first, second, last = drawn.moments
    assert [(bar.kind, bar.height) for bar in first.bars] == [("ok", 31.2), ("failed", 20.8)]
    assert first.bars[0].y + first.bars[0].height == lane.baseline
    assert first.bars[1].y + first.bars[1].height == pytest.approx(first.bars[0].y)
    assert [(bar.kind, bar.height) for bar in second.bars] == [("ok", LANE / 2)]
    assert [(bar.kind, bar.height) for bar in last.bars] == [("failed", LANE / 10)]
    assert lane.most == "highest bar: 10"
    place = [float(moment.x.rstrip("%")) for moment in drawn.moments]
    assert place[2] == pytest.approx(3 * place[1], abs=0.02)


def test_unknown_cost_is_a_mark_and_no_bar() -> None:
    made = timeline({START: 0, START + 1: 0}, costs={START: 0.0, START + 1: 0.5})
    made.unknown_costs = [1, 0]
    drawn = chart(metrics(timeline=made))
    assert [[bar.kind for bar in moment.bars] for moment in drawn.moments] == [["unknown"], ["cost"]]
    assert drawn.has_unknown
    assert "cost not known" in drawn.moments[0].title
    made.costs = [0.0, 0.0]
    made.unknown_costs = [1, 1]
    assert chart(metrics(timeline=made)).lanes[0].most == "not known"


def test_two_timelines_have_one_scale() -> None:
    short, long = timeline({START: 10}), timeline({START + 7 * i: 20 for i in range(60)})
    one, two = timeline_charts([metrics(timeline=short), metrics(timeline=long)])
    assert one
    assert two
    assert one.width == two.width
    assert one.lanes == two.lanes
    assert one.moments[0].bars[0].height == LANE / 2
    assert two.moments[0].bars[0].height == LANE


def test_session_without_a_timeline_has_no_chart() -> None:
    assert timeline_charts([metrics()]) == [None]
    assert timeline_charts([metrics(timeline=timeline({}))]) == [None]
    with_one, without = timeline_charts([metrics(timeline=timeline({START: 1})), metrics()])
    assert with_one
    assert without is None


def at(second: int) -> datetime:
    return datetime.fromtimestamp(START + second, UTC)


def test_phases_that_overlap_stand_one_above_another() -> None:
    made = timeline(dict.fromkeys(range(START, START + 100), 1))
    phases = [
        PhaseMetric("plan", entered_at=at(0), ended_at=at(20), success=True),
        PhaseMetric("execute", entered_at=at(20), ended_at=at(80)),
        PhaseMetric("verify", entered_at=at(50)),
        PhaseMetric("never entered"),
        PhaseMetric("before", entered_at=at(-50), ended_at=at(-10)),
    ]
    drawn = chart(metrics(timeline=made, phases=phases))
    strips = [
        (strip.name.text, float(strip.x[:-1]), float(strip.width[:-1]), strip.y, strip.is_bad)
        for strip in drawn.strips
    ]
    assert strips == [
        ("plan", 0, 20, 0, False),
        ("execute", 20, 60, 0, True),
        ("verify", 50, 50, 20, False),
    ]
    assert drawn.top == 40
    assert drawn.strips[-1].title.endswith("not ended")


@given(st.lists(st.integers(0, 2**33), min_size=1, max_size=20, unique=True), st.integers(0, 40))
def test_chart_of_any_times_stays_in_its_frame(seconds: list[int], width: int) -> None:
    drawn = chart(metrics(timeline=timeline(dict.fromkeys(seconds, 1), step_seconds=1 << width)))
    assert 1 <= len(drawn.moments) <= 120
    assert len(drawn.ticks) <= 9
    places = [moment.x for moment in drawn.moments] + [tick.x for tick in drawn.ticks]
    assert all(0 <= float(x.rstrip("%")) <= 100 for x in places)
