"""The table of events: what a line must hold, and that our own lines hold it."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import orjson
import pytest
from hypothesis import given

from m31a_mp import Collector, compact
from m31a_mp.journal.batch import Batch
from m31a_mp.kinds.catalog import EVENTS, KINDS
from m31a_mp.kinds.declaration import Kind
from m31a_mp.kinds.fields import CALL, COUNT, FILES, FLAG, NAME, PRICE, SHORT_NAME, TEXT
from m31a_mp.metrics.events import fold_checked
from m31a_mp.metrics.fold import Fold
from m31a_mp.metrics.totals import Totals
from m31a_mp.session.paths import Session
from strategies import Record, entries, expected, records


def test_there_is_an_event_for_every_record_method() -> None:
    methods = {name.removeprefix("record_") for name in dir(Collector) if name.startswith("record_")}
    assert set(EVENTS) == methods


@given(records)
def test_line_of_another_program_counts(record: Record) -> None:
    totals = Totals(0)
    fold_checked(totals, record.line(5), 0)
    assert entries(totals.to_metrics("s")) == expected([(5, record)])
    assert totals.updated == 5


def test_line_without_a_time_takes_the_one_given() -> None:
    totals = Totals(0)
    fold_checked(totals, b'{"event":"heal_trigger","phase":"plan"}', 42)
    assert totals.tables["phases"].by_name["plan"].first == totals.updated == 42


@given(records)
def test_line_that_lacks_a_key_is_refused_and_changes_nothing(record: Record) -> None:
    for key in record.fields():
        if EVENTS[record.event].fields[key].is_optional:
            continue
        line = orjson.loads(record.line(5))
        del line[key]
        totals = Totals(0)
        with pytest.raises(ValueError, match=f"'{key}'"):
            fold_checked(totals, orjson.dumps(line), 0)
        assert totals == Totals(0)


GOOD: dict[str, object] = {
    NAME.type: "plan",
    SHORT_NAME.type: "opus",
    TEXT.type: "",
    CALL.type: "a.1@host",
    FILES.type: ["a.py"],
    COUNT.type: 1,
    FLAG.type: True,
    PRICE.type: 0.5,
}
TAKEN: dict[str, list[object]] = {
    FLAG.type: [True, False],
    PRICE.type: [1.5, None, 2.0**64, 0, 0.0],
    FILES.type: [[]],
    COUNT.type: [0],
    TEXT.type: [""],
}
# Some equal what may be left out, and are of another type.
ZEROS: list[object] = [0, 0.0, False, ""]
WRONG: list[object] = [None, [], {}, "x" * 5000, -1, 1.5, 2**64, True, 2.0**64, [[]], [""], *ZEROS]


@pytest.mark.parametrize("wrong", WRONG, ids=range(len(WRONG)))
@pytest.mark.parametrize("kind", KINDS, ids=EVENTS)
def test_value_of_a_wrong_kind_is_refused_in_a_short_message(kind: Kind, wrong: object) -> None:
    good = {name: GOOD[field.type] for name, field in kind.fields.items()}
    for key, field in kind.fields.items():
        is_taken = any(wrong == value and type(wrong) is type(value) for value in TAKEN.get(field.type, []))
        is_taken |= field.is_optional and wrong is field.default
        line = json.dumps({"event": kind.event, "time": 1, **good, key: wrong}).encode()
        totals = Totals(0)
        if is_taken or (field.type == PRICE.type and wrong == 2**64):
            with suppress(ValueError):  # an integer of more than 64 bits is no JSON for the parser
                fold_checked(totals, line, 0)
            continue
        with pytest.raises(ValueError, match=f"{key}|not JSON") as error:
            fold_checked(totals, line, 0)
        assert len(str(error.value)) < 300
        assert totals == Totals(0)


@pytest.mark.parametrize(
    ("key", "whole"),
    [("cached_tokens", "prompt_tokens"), ("reasoning_tokens", "completion_tokens")],
)
def test_part_that_is_more_than_the_whole_is_refused(key: str, whole: str) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 3}
    line = {"event": "llm_interaction", "time": 1, "phase": "plan", "cost": None, **usage}
    totals = Totals(0)
    fold_checked(totals, json.dumps(line | {key: 3}).encode(), 0)
    for fold in (fold_checked, as_batch):
        with pytest.raises(ValueError, match=f"{key}.*more than {whole}"):
            fold(totals, json.dumps(line | {key: 4}).encode(), 0)
    assert totals.to_metrics("s").llms[0].interaction_count == 1


def as_batch(totals: Totals, line: bytes, now: int) -> None:
    """Fold a line of a batch; raise with the reason if it is set aside."""
    del now
    fold = Fold(totals)
    fold.add_batch("journal", Batch("w", 1, line + b"\n"))
    for rejected in fold.rejected:
        raise ValueError(rejected.reason)


@pytest.mark.parametrize("zero", [0.0, -0.0, False, 0, None, ""])
@pytest.mark.parametrize("key", ["cached_tokens", "truncated_input", "model", "duration_ms"])
def test_foreign_line_with_a_value_that_equals_the_default_leaves_the_session_usable(
    session: Session, key: str, zero: object
) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 3}
    line = {"event": "llm_interaction", "phase": "plan", "cost": 0.5, **usage}
    session.make()
    Path(session.journal).write_bytes(orjson.dumps(line | {key: zero}) + b"\n" + orjson.dumps(line) + b"\n")
    done = compact(session.sessions_dir, session.id)
    assert done.records + len(done.rejected) == 2
    assert done.metrics.llms[0].interaction_count == done.records
