"""Fold: each record once, each piece of damage once."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from time import time_ns
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m31a_mp import Collector, PhaseMetric, ToolMetric, Usage, compact, load
from m31a_mp.journal.batch import Batch
from m31a_mp.journal.reader import Damage, Lines
from m31a_mp.kinds import durations, exact
from m31a_mp.metrics import fold
from m31a_mp.metrics.events import fold_checked
from m31a_mp.metrics.fold import Fold
from m31a_mp.metrics.rejected import Rejected
from m31a_mp.metrics.totals import Totals
from m31a_mp.model import read
from m31a_mp.session.paths import Session
from strategies import INT64_MAX, Record, bare, encoded, entries, expected, few_records, records, untimed


def lines(records: list[Record], first: int) -> bytes:
    return b"".join(record.line(first + i) for i, record in enumerate(records))


def plan(fold: Fold) -> Any:
    """The entry of the phase `plan`."""
    return fold.totals.tables["phases"].by_name["plan"]


@pytest.mark.slow
@given(st.lists(few_records, max_size=20), st.lists(st.integers(0, 20), max_size=8), st.integers(0, 5))
def test_batches_that_come_again_and_again_count_each_record_once(
    records: list[Record], cuts: list[int], repeats: int
) -> None:
    ends = [*sorted(min(cut, len(records)) for cut in cuts), len(records)]
    result = Fold(Totals(0))
    done = 0
    for end in ends:
        # What was not noted as done comes again, with what is new behind it.
        start = max(0, done - repeats)
        for _ in range(2):
            data = lines(records, 0)
            kept = data.split(b"\n")[start:end]
            result.add_batch("journal", Batch("a", start + 1, b"".join(line + b"\n" for line in kept)))
        done = end
    assert entries(result.totals.to_metrics("s")) == expected(enumerate(records))
    assert result.records == len(records)


def test_records_of_two_writers_with_the_same_numbers_all_count() -> None:
    result = Fold(Totals(0))
    for writer in "ab":
        result.add_batch("journal", Batch(writer, 1, lines([Record("heal_trigger", ("plan",))], 0)))
    assert plan(result).heal_trigger_count == 2


def test_gap_in_the_numbers_loses_nothing_and_what_is_below_it_is_known() -> None:
    record = Record("heal_trigger", ("plan",))
    result = Fold(Totals(0))
    result.add_batch("journal", Batch("a", 5, lines([record] * 2, 5)))
    result.add_batch("journal", Batch("a", 5, lines([record] * 3, 5)))
    assert plan(result).heal_trigger_count == 3


def test_invalid_record_of_a_batch_is_rejected_with_its_place_and_is_not_offered_again() -> None:
    good = Record("heal_trigger", ("plan",)).line(1)
    result = Fold(Totals(0))
    batch = Batch("a", 1, good + b"garbage\n" + good, offset=100)
    result.add_batch("journal", batch)
    result.add_batch("journal", batch)
    (item,) = result.rejected
    assert (item.file, item.offset, item.data) == ("journal", 100 + len(good), b"garbage")
    assert (result.records, result.totals.rejected) == (2, 1)


_odd: st.SearchStrategy[object] = st.sampled_from(
    [None, True, False, 0, -1, 1.0, -1.0, -0.0, 2**63 - 1, 2**63, 2**64, 1e308, "", "plan", "0", [], {}, [1]]
)


_past = _odd.filter(lambda value: value != INT64_MAX)  # which would be the time of its folding, too


@st.composite
def _odd_lines(draw: st.DrawFn) -> bytes:
    """A record of which something may be missing, odd or too much; or no record, nor even a line."""
    record = orjson.loads(draw(few_records).line(draw(st.integers(0, 50))))
    for key in draw(st.lists(st.sampled_from([*record, "more"]), max_size=2)):
        if key == "time" or draw(st.booleans()):  # without a time, a line gets that of its folding
            record[key] = draw(_past if key == "time" else _odd)
        else:
            record.pop(key, None)
    line = json.dumps(record).encode()  # which writes integers of any size
    parts = [
        line[:-1],
        line + b"," + line,
        b"[]",
        b"{}",
        b"",
        b"1",
        b'{"a":[1',
        b"2]}," + line,
        b'{"x":"y',
        b'z"}',
    ]
    parts += [
        b'{"a":1',
        b'"b":2}',
        b'"b":{}},' + line,
        b"[" + line,
        line + b"]",
        line + b",0," + line,
        b"0," + line,
    ]
    return draw(st.sampled_from([line] * len(parts) + parts))


_KNOWN = [
    Record(event, arguments)
    for name in ("bash", "plan")
    for event, arguments in (
        ("tool_call", (name, True, 1)),
        ("heal_trigger", (name,)),
        ("llm_interaction", (name, Usage(1, 2, 3), 0.5)),
    )
]


@pytest.mark.slow
@given(st.lists(_odd_lines(), max_size=12), st.integers(0, 12))
def test_batch_gives_what_its_lines_give_one_by_one(texts: list[bytes], known: int) -> None:
    data = b"".join(text + b"\n" for text in texts)
    batch, single = Fold(Totals(0)), Fold(Totals(0))
    for one in (batch, single):  # those of known names are counted fast
        one.add_journal("j", [Lines(0, line) for line in lines(_KNOWN, 0).splitlines(keepends=True)])
    batch.totals.writer("a").last = known
    batch.add_batch("j", Batch("a", 1, data))
    offsets = [sum(len(text) + 1 for text in texts[:i]) for i in range(len(texts))]
    single.add_journal("j", [Lines(o, t + b"\n") for o, t in list(zip(offsets, texts, strict=True))[known:]])
    assert batch.totals.to_metrics("s") == single.totals.to_metrics("s")
    assert batch.totals.to_checkpoint() | {"writers": {}} == single.totals.to_checkpoint() | {"writers": {}}
    rejected = [item._replace(data=item.data.removesuffix(b"\n")) for item in single.rejected]
    assert (batch.records, batch.rejected) == (single.records, rejected)


@pytest.mark.slow
@given(st.lists(records, max_size=20), st.integers(1, 300))
def test_pieces_and_what_is_counted_in_between_do_not_show(records: list[Record], size: int) -> None:
    data = lines(records, 0)
    results = []
    for few in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            if few:  # each piece has a few lines, and is counted at once
                patch.setattr(fold, "_PIECE_BYTES", size)
                patch.setattr(fold, "_FIRST_PIECE_BYTES", 1)
                patch.setattr(fold, "_SETTLED_RECORDS", 0)
                patch.setattr(durations, "_FEW", 0)
                patch.setattr(durations, "_MAX_DISTINCT", 1)
                patch.setattr(exact, "_ADDENDS_KEPT", 1)
            result = Fold(Totals(0))
            for writer in "ab":  # the second batch finds the entries of the first
                result.add_batch("j", Batch(writer, 1, data))
            results.append((result.records, result.totals.to_metrics("s"), result.totals.to_checkpoint()))
    assert results[0] == results[1]


@pytest.mark.parametrize("call", ['a"b', "a\\b", "\N{SNOWMAN}", "", "x" * 257, 5, 1.0, True, [], ["1"], {}])
@pytest.mark.parametrize("is_running", [False, True])
def test_end_of_a_call_with_an_id_that_none_can_have_is_set_aside(call: object, is_running: bool) -> None:
    result = Fold(Totals(0))
    begun = Record("tool_started", ("bash", "1")).line(1) if is_running else b""
    result.add_batch("j", Batch("a", 1, Record("tool_call", ("bash", True, 1)).line(1) + begun))
    ended = orjson.loads(Record("tool_call", ("bash", True, 1), {"call": "1"}).line(2)) | {"call": call}
    result.add_batch("j", Batch("b", 1, orjson.dumps(ended) + b"\n"))
    (item,) = result.rejected
    assert item.reason.startswith("call ")
    assert result.totals.to_metrics("s").tools[0].call_count == 1
    assert len(result.totals.tables["running"]) == is_running


HEAL = Record("heal_trigger", ("plan",)).line(1).rstrip()


@pytest.mark.parametrize(
    ("texts", "counted"),
    [
        ([b'{"a":[1', b"2]}," + HEAL], 0),
        ([b'{"a":[1', b"2]},0," + HEAL], 0),
        ([b'{"a":[' + HEAL, HEAL + b"]}," + HEAL], 0),
        ([b'{"a":1', b'"b":2},' + HEAL], 0),
        ([b'{"a":1', b'"b":2},0,' + HEAL], 0),
        ([b'{"a":"x', b'y"},' + HEAL], 0),
        ([b'{"a":"x', b'y"},0,' + HEAL], 0),
        ([b"[" + HEAL, HEAL + b"]", HEAL + b"," + HEAL], 0),
        ([HEAL + b"," + HEAL, b""], 0),
        ([HEAL, b"", HEAL + b"," + HEAL], 1),
        ([HEAL[:-1], b"}," + HEAL], 0),
        ([HEAL[:-1] + b',"a":[1]}', HEAL], 2),
        ([HEAL[:-1] + b',"a":{"b":{}}}', b" " + HEAL + b"\r"], 2),
    ],
)
@pytest.mark.parametrize("around", [0, 1])
def test_lines_that_are_records_only_when_they_are_joined_are_rejected_each_by_itself(
    texts: list[bytes], counted: int, around: int
) -> None:
    texts = [HEAL] * around + texts + [HEAL] * around
    for lines in (texts, texts[::-1]):
        result = Fold(Totals(0))
        result.add_batch(
            "j", Batch("b", 1, HEAL + b"\n")
        )  # makes the entry: those of known names are counted fast
        plan(result).heal_trigger_count = result.records = 0
        result.add_batch("j", Batch("a", 1, b"".join(text + b"\n" for text in lines)))
        assert (result.records, len(result.rejected)) == (
            counted + 2 * around,
            len(texts) - counted - 2 * around,
        )
        assert plan(result).heal_trigger_count == result.records


@pytest.mark.parametrize("first", [0, 1, 2])
def test_batch_whose_numbers_begin_anywhere_loses_no_record_and_counts_once(first: int) -> None:
    records = lines([Record("heal_trigger", ("plan",))] * 3, 5)
    result = Fold(Totals(0))
    for _ in range(2):
        result.add_batch("j", Batch("a", first, records))
    assert (
        result.records,
        plan(result).heal_trigger_count,
        result.rejected,
    ) == (3, 3, [])
    checkpoint = orjson.loads(orjson.dumps(result.totals.to_checkpoint()))
    resumed = Fold(Totals.restore(read(result.totals.to_metrics("s").to_json()), checkpoint))
    resumed.add_batch("j", Batch("a", first, records))
    resumed.add_batch("j", Batch("a", first + 3, records))
    assert plan(resumed).heal_trigger_count == 6


DAY = 24 * 60 * 60 * 10**9


class TestWrongClock:
    """A record whose clock is days ahead counts, and its time is that of the merging."""

    @pytest.mark.parametrize("time", [INT64_MAX, "in two days"])
    @pytest.mark.parametrize("by", ["line", "batch"])
    def test_it_counts_and_is_not_the_last_one_for_ever(
        self, session: Session, time: object, by: str
    ) -> None:
        before = datetime.now(UTC)
        ahead = time if isinstance(time, int) else time_ns() + 2 * DAY
        records = b"".join(
            Record(*record).line(ahead)
            for record in (
                ("tool_call", ("bash", True, 3)),
                ("phase_duration", ("plan", 7, True)),
                ("tool_call", ("bash", False, 4)),
            )
        )
        Path(session.journal).write_bytes(records if by == "line" else encoded(Batch("a" * 16, 1, records)))
        with Collector("s", session.sessions_dir) as collector:
            metrics = collector.snapshot()
            assert bare(metrics.tools) == [ToolMetric("bash", 2, 1, 1, 7, 3.5)]
            assert untimed(metrics.phases) == [PhaseMetric("plan", 7, success=True)]
            assert before <= metrics.started_at <= metrics.updated_at <= datetime.now(UTC)
            collector.record_phase_duration("plan", 5, False)
            metrics = collector.snapshot()
            assert untimed(metrics.phases) == [PhaseMetric("plan", 5)]
            assert before <= metrics.updated_at <= datetime.now(UTC)
            assert metrics.rejected == 0

    def test_clock_that_is_hours_ahead_is_believed(self, session: Session) -> None:
        ahead = time_ns() + DAY - 60 * 10**9
        Path(session.journal).write_bytes(
            Record("phase_duration", ("plan", 7, True)).line(ahead)
            + Record("phase_duration", ("plan", 5, True)).line(time_ns())
        )
        phases = compact(session.sessions_dir, "s").metrics.phases
        assert untimed(phases) == [PhaseMetric("plan", 7, success=True)]

    @pytest.mark.slow
    @given(
        st.lists(
            st.tuples(st.sampled_from([0, 5, 10**18, INT64_MAX - 1, INT64_MAX]), few_records), max_size=8
        ),
        st.randoms(use_true_random=False),
    )
    def test_order_does_not_show(self, records: list[tuple[int, Record]], random: st.DataObject) -> None:
        shuffled = list(records)
        random.shuffle(shuffled)  # type: ignore[attr-defined]
        results = []
        for given_records in (records, shuffled):
            result = Totals(0)
            for time, record in given_records:
                fold_checked(result, record.line(time), 2 * 10**18)
            results.append(result.to_metrics("s"))
        assert results[0] == results[1]

    def test_time_that_was_published_from_such_a_clock_is_overtaken(self, session: Session) -> None:
        far = "2262-04-11T23:47:16.854775Z"
        with Collector("s", session.sessions_dir) as collector:
            collector.record_phase_duration("plan", 7, True)
        document = orjson.loads(Path(session.metrics).read_bytes())
        document["updated_at"] = far
        document["m31a_mp"]["phases"]["plan"] = {"first": INT64_MAX, "latest": INT64_MAX}
        Path(session.metrics).write_bytes(orjson.dumps(document))
        before = datetime.now(UTC)
        with Collector("s", session.sessions_dir) as collector:
            assert before <= collector.snapshot().updated_at <= datetime.now(UTC)
            assert untimed(collector.snapshot().phases) == [PhaseMetric("plan", 7, success=True)]
            collector.record_phase_duration("plan", 5, False)
            assert untimed(collector.snapshot().phases) == [PhaseMetric("plan", 5)]
        assert load(session.sessions_dir, "s").updated_at <= datetime.now(UTC)  # type: ignore[union-attr]


def test_damage_and_lines_are_told_apart() -> None:
    result = Fold(Totals(0))
    good = Record("heal_trigger", ("plan",)).line(1)
    result.add_journal(
        "j", [Lines(0, good), Damage(50, "why", b"what"), Lines(90, b"garbage\n"), Lines(99, good)]
    )
    assert [(item.offset, item.data.rstrip()) for item in result.rejected] == [
        (50, b"what"),
        (90, b"garbage"),
    ]
    assert (result.records, result.totals.rejected) == (2, 2)


def test_news_change_with_whatever_the_fold_gains_and_with_nothing_else() -> None:
    found = Fold(Totals())
    record = Record("tool_call", ("grep", True, 1)).line(0)
    batch = Batch("w", 1, record, {"no_space": 1})
    news = {found.news}
    found.add_batch("journal", batch)
    news.add(found.news)
    found.add_journal("journal", [Lines(0, record)])
    news.add(found.news)
    found.add_batch("journal", Batch("w", 2, b"", {"no_space": 2}))
    news.add(found.news)
    found.reject(Rejected("journal", 0, "damage", b""))
    news.add(found.news)
    found.interrupted += 1
    news.add(found.news)
    assert len(news) == 6
    found.add_batch("journal", batch)  # it comes again
    found.continue_now()
    assert found.news in news


def test_rejected_pieces_are_all_counted_and_their_bytes_bounded() -> None:
    result = Fold(Totals(0))
    for i in range(30):
        result.reject(Rejected("j", i, "why", bytes(1024 * 1024)))
    assert result.totals.rejected == len(result.rejected) == 30
    assert sum(len(item.data) for item in result.rejected) <= fold._MAX_REJECTED_BYTES
