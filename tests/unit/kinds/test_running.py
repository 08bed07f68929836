"""Calls under way: beginnings and ends are paired in any order, over batches, owners and merges."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise, permutations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m31a_mp import RunningCall, attach, compact, merge
from m31a_mp.kinds import running
from m31a_mp.kinds.call import Caller, caller_of, callers_part
from m31a_mp.kinds.catalog import RUNNING
from m31a_mp.kinds.tables import fragment
from m31a_mp.metrics.events import fold_checked
from m31a_mp.metrics.totals import Totals
from m31a_mp.model import entry_to_json
from m31a_mp.session.paths import Session
from m31a_mp.system import calls, process
from metrics_of import stored
from strategies import Record

NAMES = ("bash", "grep")
HOUR = 3600 * 10**9


@dataclass(frozen=True)
class Call:
    """What becomes of one call: whether it is recorded to have begun, and to have ended."""

    number: int
    has_begun: bool
    has_ended: bool

    def records(self) -> list[Record]:
        name, call = NAMES[self.number % 2], f"call-{self.number}"
        begun = [Record("tool_started", (name, call))] * self.has_begun
        return begun + [Record("tool_call", (name, True, 5), {"call": call})] * self.has_ended


@st.composite
def dealt(draw: st.DrawFn) -> tuple[list[Call], list[list[tuple[int, Record]]]]:
    """Calls, and their records in any order, dealt to parts."""
    fates = draw(st.lists(st.sampled_from([(True, True), (True, False)]), max_size=12))
    calls = [Call(number, *fate) for number, fate in enumerate(fates)]
    records = [(time, record) for time, record in enumerate(r for call in calls for r in call.records())]
    in_order = draw(st.permutations(records))
    cuts = sorted(draw(st.lists(st.integers(0, len(in_order)), max_size=3)))
    bounds = [0, *cuts, len(in_order)]
    return calls, [in_order[a:b] for a, b in pairwise(bounds)]


def add(totals: Totals, records: list[tuple[int, Record]]) -> None:
    for time, record in records:
        fold_checked(totals, record.line(HOUR + time), HOUR)


def assert_right(totals: Totals, calls: list[Call]) -> None:
    metrics = totals.to_metrics("s")
    under_way = [NAMES[call.number % 2] for call in calls if not call.has_ended]
    assert [call.name for call in metrics.running] == under_way
    assert sum(tool.call_count for tool in metrics.tools) == sum(call.has_ended for call in calls)


@given(dealt())
def test_any_order_over_batches_and_owners_pairs_each_call_once(
    case: tuple[list[Call], list[list[tuple[int, Record]]]],
) -> None:
    calls, parts = case
    totals = Totals(0)
    for part in parts:
        add(totals, part)
        totals = stored(totals)  # an owner publishes, and the next one goes on
    assert_right(totals, calls)
    assert totals.tables["running"]._ended == set()


@given(dealt())
def test_merged_parts_pair_what_was_dealt_to_different_ones(
    case: tuple[list[Call], list[list[tuple[int, Record]]]],
) -> None:
    calls, parts = case
    whole = Totals(0)
    for part in parts:
        totals = Totals(0)
        add(totals, part)
        whole.merge(stored(totals))
    assert_right(whole, calls)


def test_end_waits_for_its_beginning_for_one_more_drain_and_no_longer() -> None:
    under_way = Totals(0).tables["running"]
    under_way.end("late")
    under_way.end("lost")
    under_way.forget_ended()
    under_way.add(1, "bash", "late")
    assert under_way.calls == {}
    under_way.forget_ended()
    assert under_way.kept() is None
    under_way.add(1, "bash", "lost")
    assert list(under_way.calls) == ["lost"]


@pytest.mark.parametrize("limit", ["MAX_RUNNING", "MAX_RUNNING_BYTES"])
def test_too_many_calls_are_refused_until_others_end(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(running, limit, 2 if limit == "MAX_RUNNING" else 2 * 25 + 1)
    totals = Totals(0)
    for call in ("1", "2"):
        fold_checked(totals, Record("tool_started", ("bash", call)).line(1), 1)
    with pytest.raises(ValueError, match="2 calls that have not ended"):
        fold_checked(totals, Record("tool_started", ("bash", "3")).line(1), 1)
    fold_checked(totals, Record("tool_call", ("bash", True, 1), {"call": "1"}).line(2), 2)
    fold_checked(totals, Record("tool_started", ("bash", "3")).line(3), 3)
    assert len(totals.tables["running"]) == 2


def test_calls_begun_twice_take_as_much_room_as_they_give_back() -> None:
    under_way = Totals(0).tables["running"]
    for name in ("a", "x" * 4096, "b"):
        under_way.add(len(name), name, "1")
    assert under_way.calls == {"1": (1, "a")}
    under_way.end("1")
    assert under_way._bytes == 0


def test_ends_whose_beginning_never_comes_are_gone_after_the_next_owner_has_drained_all() -> None:
    totals = Totals(0)
    for number in range(3):
        line = Record("tool_call", ("bash", True, 1), {"call": f"end {number}"}).line(number)
        fold_checked(totals, line, HOUR)
        totals.tables["running"].forget_ended()
        totals = stored(totals)
        assert totals.tables["running"].kept()["ended"] == [f"end {number}"]


def test_id_of_no_possible_process_says_nothing_and_stops_nothing(session: Session) -> None:
    boot = process.current().boot_id
    recorder = attach(session.id, session.sessions_dir)
    recorder.record_tool_started("bash", f"{2**64}.1.1.{boot}.run.1@host")
    recorder.record_tool_started("bash", f"{2**59}.1.1.{boot}.run.1@host")
    running = compact(session.sessions_dir, session.id).metrics.running
    assert {(call.pid, call.host) for call in running} == {(0, ""), (2**59, "host")}


def test_same_id_in_different_sessions_is_not_the_same_call() -> None:
    begun, other, ended = (Totals(0) for _ in range(3))
    fold_checked(begun, Record("tool_started", ("make", "1")).line(1), 1)
    fold_checked(other, Record("tool_started", ("lint", "1")).line(2), 2)
    fold_checked(ended, Record("tool_call", ("test", True, 1), {"call": "1"}).line(3), 3)
    parts = [totals.to_metrics(name) for totals, name in zip((begun, other, ended), "abc", strict=True)]
    for order in permutations(parts):
        assert [call.name for call in merge(*order).running] == ["make", "lint"]


def test_interrupted_call_is_a_failure_of_unknown_duration_once() -> None:
    totals = Totals(0)
    fold_checked(totals, Record("tool_call", ("bash", True, 10)).line(HOUR), HOUR)
    fold_checked(totals, Record("tool_started", ("bash", "1")).line(HOUR + 1), HOUR)
    totals.interrupt("1")
    for _ in range(2):
        metrics = totals.to_metrics("s")
        [tool] = metrics.tools
        assert (tool.call_count, tool.success_count, tool.fail_count, tool.interrupted_count) == (2, 1, 1, 1)
        assert (tool.total_duration_ms, tool.avg_duration_ms, tool.max_duration_ms) == (10, 10.0, 10)
        assert tool.durations is not None
        assert tool.durations.count == 1
        assert metrics.timeline is not None
        assert (metrics.timeline.tool_calls, metrics.timeline.failures) == ([2], [1])
        assert metrics.running == []
        totals = stored(totals)


def test_interrupted_call_of_a_tool_that_nothing_else_tells_of_has_an_entry_of_its_start() -> None:
    totals = Totals(HOUR)
    fold_checked(totals, Record("tool_started", ("early", "1")).line(HOUR), HOUR)
    fold_checked(totals, Record("tool_call", ("late", True, 10)).line(HOUR + 1), HOUR)
    totals.interrupt("1")
    tools = totals.to_metrics("s").tools
    assert [(tool.name, tool.call_count, tool.avg_duration_ms) for tool in tools] == [
        ("early", 1, 0.0),
        ("late", 1, 10.0),
    ]


def test_calls_are_shown_by_when_they_began_with_who_makes_them() -> None:
    totals = Totals(0)
    mine = Caller(42, 7, 9, "b00t", "a host").ids("run")
    for time, call in ((HOUR + 1000, "foreign"), (HOUR, "5".join(mine))):
        fold_checked(totals, Record("tool_started", ("bash", call)).line(time), HOUR)
    began = datetime(1970, 1, 1, 1, tzinfo=UTC)
    assert totals.to_metrics("s").running == [
        RunningCall("bash", began, 42, "a-host"),
        RunningCall("bash", began.replace(microsecond=1)),
    ]
    assert totals.to_metrics("s").started_at.timestamp() == 0


class TestIds:
    def test_each_is_another_one_and_says_who_this_is(self) -> None:
        ids = [calls.new_call() for _ in range(1000)]
        assert len(set(ids)) == 1000
        assert len({callers_part(call) for call in ids}) == 1
        caller = caller_of(ids[0])
        assert caller is not None
        assert caller.pid > 0

    @pytest.mark.parametrize(
        "call",
        ["", "1", "a.b.c.d.e.f@host", "1.2.3.4.5@host", "-1.2.3.boot.run.1@host", "\u0661.2.3.b.r.1@h"],
    )
    def test_that_of_another_program_says_nothing(self, call: str) -> None:
        assert caller_of(call) is None


_move = st.tuples(st.sampled_from(["add", "end", "take", "look"]), st.integers(0, 3), st.integers(0, 5))


@given(st.lists(_move, max_size=30))
def test_encoded_calls_are_those_that_are_shown_whatever_was_encoded_before(
    moves: list[tuple[str, int, int]],
) -> None:
    under_way = RUNNING.new()
    for move, call, time in [*moves, ("look", 0, 0)]:
        if move == "add":
            under_way.add(time, f"tool {time}", f"call-{call}")
        elif move == "end":
            under_way.end(f"call-{call}")
        elif move == "take" and f"call-{call}" in under_way.calls:
            under_way.take(f"call-{call}")
        elif move == "look":
            shown = [entry_to_json(metric) for metric in under_way.shown()["running"]]
            assert orjson.loads(orjson.dumps(under_way.encoded(fragment))) == shown
