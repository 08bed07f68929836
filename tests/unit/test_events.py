"""The table of events: what a line must hold, and that our own lines hold it."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given

from m31a_mp import Collector
from m31a_mp.kinds.catalog import EVENTS
from m31a_mp.kinds.fields import COST, FLAG
from m31a_mp.metrics.events import fold_checked
from m31a_mp.metrics.totals import Totals
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
        line = orjson.loads(record.line(5))
        del line[key]
        totals = Totals(0)
        with pytest.raises(ValueError, match=f"'{key}'"):
            fold_checked(totals, orjson.dumps(line), 0)
        assert totals == Totals(0)


@pytest.mark.parametrize("wrong", [None, [], {}, "x" * 5000, -1, 1.5, 2**64, True])
@pytest.mark.parametrize("event", sorted(EVENTS))
def test_value_of_a_wrong_kind_is_refused_in_a_short_message(event: str, wrong: object) -> None:
    good: dict[str, object] = {"event": event, "time": 1, "success": True, "duration_ms": 1}
    good |= {"name": "bash", "phase": "plan", "cost": 0.5}
    good |= {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 1}
    for key, field in EVENTS[event].fields.items():
        accepted = (field is FLAG and wrong is True) or (field is COST and wrong == 1.5)
        accepted |= field is COST and wrong == 2**64
        totals = Totals(0)
        if accepted:
            fold_checked(totals, orjson.dumps({**good, key: wrong if wrong != 2**64 else 2.0**64}), 0)
            assert totals != Totals(0)
            continue
        line = orjson.dumps({**good, key: None}).replace(b'"%b":null' % key.encode(), b'"%b":%b' % (
            key.encode(), b"18446744073709551616" if wrong == 2**64 else orjson.dumps(wrong)
        ))  # fmt: skip
        with pytest.raises(ValueError, match=key) as error:
            fold_checked(totals, line, 0)
        assert len(str(error.value)) < 300
        assert totals == Totals(0)
