"""The modules that follow from the declarations are those that the declarations give."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

import generate
from m31a_mp import PlanOutcome, Usage, attach
from m31a_mp._recording import Recording
from m31a_mp.kinds.catalog import EVENTS, KINDS
from m31a_mp.kinds.declaration import Always, Into, Kind, Value, Values
from m31a_mp.kinds.fields import COUNT, NAME, PRICE
from m31a_mp.kinds.parts import Exact, Latest, Part, Sum
from m31a_mp.kinds.tables import Table
from m31a_mp.session.paths import Session
from strategies import Record, records


def test_modules_are_what_the_declarations_give() -> None:
    for path, text in generate.modules().items():
        assert path.read_text() == text, "run scripts/generate.py"


class Line(Recording):
    """Takes one record, and is its line."""

    def __init__(self) -> None:
        self._session = Session("s", "/s")
        self._put = self.put

    def put(self, event: str, members: str, last: int | str = "", at: int = 0) -> None:
        assert at >= 0
        self.event = event
        self.text = f'{{"time":1{members}{last}}}'


@pytest.mark.slow
@given(records)
def test_line_of_a_process_holds_the_fields_of_its_record_in_their_order(record: Record) -> None:
    line = Line()
    record.perform(line)
    assert line.event == record.event
    assert list(orjson.loads(line.text).items()) == [("time", 1), *record.fields().items()]


@pytest.mark.parametrize("kind", KINDS, ids=EVENTS)
def test_message_names_the_argument_that_is_wrong(kind: Kind, sessions: Path) -> None:
    good = {"name": "a", "short name": "a", "count": 1, "flag": False, "price": 0.5, "call": "1"}
    grouped = {name for names in kind.grouped.values() for name in names}
    arguments = {name: good[field.type] for name, field in kind.fields.items() if name not in grouped}
    whole = {"usage": Usage(1, 2, 3), "outcome": PlanOutcome("T", "edit", "", True, 1)}
    arguments |= {name: whole[name] for name in kind.grouped}
    record = getattr(attach("s", sessions), f"record_{kind.event}")
    for name in arguments:
        with pytest.raises(TypeError, match=f"^{name} must be"):
            record(**(arguments | {name: b"wrong"}))


@pytest.mark.parametrize(
    ("part", "effect"),
    [
        (Sum(), Value("cost")),
        (Sum(), Values(("count",))),
        (Exact("costs"), Value("count")),
        (Exact("costs"), Always()),
        (Latest({"count": 0}, "latest"), Value("count")),
    ],
)
def test_addition_that_could_show_the_order_cannot_be_declared(part: Part, effect: Any) -> None:
    with pytest.raises(TypeError, match="part does not take"):
        Kind(
            "event",
            {"name": NAME, "count": COUNT, "cost": PRICE},
            (Into(Table("tools", "name", part=part), "name", {"part": effect}),),
            "Record it.",
        )
