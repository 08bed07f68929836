"""The timeline: what happened when, in at most 384 steps, whatever the order."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m31a_mp import SessionMetrics, Timeline, Usage, merge
from metrics_of import metrics_of
from strategies import Record, costs, expected_timeline

SECOND = 10**9
calls = st.builds(Record, st.just("tool_call"), st.tuples(st.just("bash"), st.booleans(), st.just(1)))
uses = st.builds(
    Record, st.just("llm_interaction"), st.tuples(st.just("plan"), st.just(Usage(1, 2, 3)), costs | st.none())
)
seconds = st.integers(0, 2000) | st.integers(0, 10**6) | st.sampled_from([10**9, 2 * 10**9])
records = st.lists(st.tuples(seconds.map(lambda s: s * SECOND + 5), calls | uses), max_size=30)


@pytest.fixture(autouse=True, scope="module")
def _few_steps() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("m31a_mp.kinds.timeline.MAX_STEPS", 4)
        patch.setattr("strategies.MAX_STEPS", 4)
        yield


@pytest.mark.slow
@given(records, st.randoms(use_true_random=False), st.integers(0, 30))
def test_order_and_parts_do_not_show(
    records: list[tuple[int, Record]], random: st.DataObject, at: int
) -> None:
    whole = metrics_of(records).to_json().get("timeline")
    assert whole == expected_timeline(records)
    shuffled = list(records)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert metrics_of(shuffled).to_json().get("timeline") == whole
    merged = merge(metrics_of(shuffled[:at]), metrics_of(shuffled[at:]))
    assert merged.to_json().get("timeline") == whole


def call(second: int) -> tuple[int, Record]:
    return second * SECOND, Record("tool_call", ("bash", False, 1))


def test_one_wrong_clock_makes_one_step_and_the_others_stay_fine() -> None:
    timeline = metrics_of([call(1000), call(1001), call(1002), call(3 * 10**9)]).timeline
    assert timeline
    assert (timeline.step_seconds, timeline.starts) == (1, [1000, 1001, 1002, 3 * 10**9])
    assert (timeline.tool_calls, timeline.failures) == ([1] * 4, [1] * 4)


def test_steps_are_as_wide_as_they_must_be() -> None:
    timeline = metrics_of([call(second) for second in range(1000, 1010)]).timeline
    assert timeline
    assert (timeline.step_seconds, timeline.starts) == (4, [1000, 1004, 1008])
    assert timeline.tool_calls == [4, 4, 2]


def test_phases_are_no_steps() -> None:
    assert metrics_of([(5, Record("heal_trigger", ("plan",)))]).timeline is None


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"step_seconds": 3}, "step_seconds"),
        ({"step_seconds": 0}, "step_seconds"),
        ({"starts": [1, 2]}, "tool_calls"),
        ({"costs": []}, "costs"),
        ({"costs": ["x"]}, "costs"),
    ],
)
def test_timeline_of_another_form_is_refused(wrong: dict[str, object], why: str) -> None:
    document = metrics_of([call(1)]).to_json()
    document["timeline"] |= wrong
    with pytest.raises(ValueError, match=f"timeline.*{why}"):
        SessionMetrics.from_json(orjson.loads(orjson.dumps(document)))


def test_empty_timeline_of_a_caller_is_written() -> None:
    document = SessionMetrics("s", timeline=Timeline()).to_json()
    assert SessionMetrics.from_json(document).timeline == Timeline()
