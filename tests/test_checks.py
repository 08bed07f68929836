"""Names as they stand in a line."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given

from m31a_mp.checks import Names
from strategies import names


@given(names)
def test_any_name_makes_a_part_of_one_line_of_json(name: str) -> None:
    member = Names("phase")[name]
    assert "\n" not in member
    assert "\0" not in member
    assert orjson.loads(f'{{"a":1{member},"b":2}}') == {"a": 1, "phase": name, "b": 2}


def test_names_take_no_more_memory_than_for_some_thousands() -> None:
    kept = Names("phase")
    for i in range(10_000):
        assert kept[str(i)] == f',"phase":"{i}"'
    assert len(kept) < 5000


def test_name_that_is_refused_is_not_kept() -> None:
    kept = Names("phase")
    with pytest.raises(ValueError, match="empty"):
        kept[""]
    assert kept == {}
