"""The sum of many totals is that of a plain merge, whatever changed since the last one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from m31a_mp.metrics.totals import Totals
from m31a_mp.sharing.adding import Adding
from metrics_of import SESSION, folded
from strategies import Record

PARTS = [folded([(i, Record("tool_call", (f"tool {i % 3}", True, i)))], Totals(0)) for i in range(40)]

chosen = st.dictionaries(st.sampled_from([str(i) for i in range(40)]), st.sampled_from(PARTS), max_size=40)


@given(st.lists(chosen, max_size=6))
def test_sum_is_that_of_a_plain_merge(looks: list[dict[str, Totals]]) -> None:
    adding = Adding()
    for totals in looks:
        plain = Totals()
        for part in totals.values():
            plain.merge(part)
        found = adding.sum(totals)
        if totals:
            assert found.to_metrics(SESSION) == plain.to_metrics(SESSION)
            assert found.to_metrics(SESSION).rest == plain.to_metrics(SESSION).rest
        found.merge(PARTS[0])  # the caller may change what it got


def test_parts_are_left_as_they_are() -> None:
    before = [part.to_metrics(SESSION) for part in PARTS]
    adding = Adding()
    adding.sum({str(i): part for i, part in enumerate(PARTS)}).merge(PARTS[1])
    assert [part.to_metrics(SESSION) for part in PARTS] == before
