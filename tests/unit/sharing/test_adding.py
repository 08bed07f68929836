"""The sum of many totals is that of a plain merge, whatever changed since the last one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m31a_mp.metrics.totals import Totals
from m31a_mp.sharing import adding
from m31a_mp.sharing.adding import Adding
from metrics_of import SESSION, folded
from strategies import Record

PARTS = [folded([(i, Record("tool_call", (f"tool {i % 3}", True, i)))], Totals(0)) for i in range(40)]

chosen = st.dictionaries(st.sampled_from([str(i) for i in range(40)]), st.sampled_from(PARTS), max_size=40)


@pytest.fixture(params=[2, 16], scope="module")
def _branches(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adding, "_BRANCHES", request.param)
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("_branches")
@given(st.lists(chosen, max_size=6))
def test_sum_is_that_of_a_plain_merge(looks: list[dict[str, Totals]]) -> None:
    sums = Adding()
    for totals in looks:
        plain = Totals()
        for part in totals.values():
            plain.merge(part)
        found = sums.sum(totals)
        if totals:
            assert found.to_metrics(SESSION) == plain.to_metrics(SESSION)
            assert found.to_metrics(SESSION).rest == plain.to_metrics(SESSION).rest
        found.merge(PARTS[0])  # the caller may change what it got


def test_entry_that_was_taken_out_to_be_changed_is_in_a_later_sum() -> None:
    whole = Totals()
    whole.merge(*PARTS[:5])
    whole.entry("tools", "tool 1", 0).calls.waiting.append(7)
    again, straight = Totals(), Totals()
    again.merge(whole, PARTS[6])
    straight.merge(*PARTS[:5], PARTS[6])
    straight.entry("tools", "tool 1", 0).calls.waiting.append(7)
    assert again.to_metrics(SESSION) == straight.to_metrics(SESSION)
    assert again.to_metrics(SESSION).rest == straight.to_metrics(SESSION).rest


def test_parts_are_left_as_they_are() -> None:
    before = [part.to_metrics(SESSION) for part in PARTS]
    sums = Adding()
    sums.sum({str(i): part for i, part in enumerate(PARTS)}).merge(PARTS[1])
    assert [part.to_metrics(SESSION) for part in PARTS] == before


def test_one_change_among_many_merges_only_the_nodes_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sums = Adding()
    totals = {str(i): PARTS[i % len(PARTS)] for i in range(1000)}
    sums.sum(totals)
    merged: list[int] = []
    merge = Totals.merge

    def merge_counted(whole: Totals, *parts: Totals) -> None:
        merged.append(len(parts))
        merge(whole, *parts)

    monkeypatch.setattr(Totals, "merge", merge_counted)
    sums.sum(totals | {"7": PARTS[8]})
    assert len(merged) == 4  # three nodes above the leaf, and the copy for the caller
    assert sum(merged) <= 16 + 16 + 4 + 1
