"""Any dealing of records to sites, and any order of shares and gathers, gives the numbers of one machine."""

from __future__ import annotations

import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m31a_mp.metrics.file import encoded
from m31a_mp.metrics.site import Place, Site
from m31a_mp.metrics.totals import Totals
from m31a_mp.sharing.gather import Gathering
from m31a_mp.sharing.state import State
from m31a_mp.sharing.store import open_store
from metrics_of import SESSION, folded
from strategies import Record, few_records

SITES = 3
timed = st.lists(st.tuples(st.integers(0, 10**6), few_records), max_size=20, unique_by=lambda item: item[0])


def states_of(site: int, records: list[tuple[int, Record]]) -> list[State]:
    """The state of a site before its first record, and after each one."""
    identity = Site(f"{site:032x}", 1, Place(site, "boot", "host"))
    states = []
    for number in range(len(records) + 1):
        totals = folded(records[:number], Totals(0))
        totals.site = identity._replace(number=number + 1)
        states.append(State.of(totals.site, encoded(SESSION, totals)))
    return states


@pytest.mark.slow
@settings(max_examples=60)
@given(timed, st.data())
def test_dealing_and_order_do_not_show(records: list[tuple[int, Record]], data: st.DataObject) -> None:
    dealt: list[list[tuple[int, Record]]] = [[] for _ in range(SITES)]
    for record in records:
        dealt[data.draw(st.integers(0, SITES - 1))].append(record)
    states = [states_of(site, part) for site, part in enumerate(dealt)]
    shares = data.draw(st.lists(st.sampled_from([state for part in states for state in part]), max_size=30))
    last = data.draw(st.permutations([part[-1] for part in states]))
    with tempfile.TemporaryDirectory() as directory:
        store, gathering = open_store(directory), Gathering(SESSION, directory)
        latest: dict[str, int] = {}
        for state in [*shares, *last, *data.draw(st.lists(st.sampled_from(shares or last), max_size=3))]:
            store.put(SESSION, state)
            site, number = state.header.site, state.header.number
            latest[site] = max(latest.get(site, 0), number)
            if data.draw(st.booleans()):
                seen = [
                    record for site, number in latest.items() for record in dealt[int(site)][: number - 1]
                ]
                found = gathering.look()
                found.sites = []
                assert found == folded(seen, Totals(0)).to_metrics(SESSION)
        whole = gathering.look()
        whole.sites = []
        expected = folded(records, Totals(0)).to_metrics(SESSION)
        assert whole == expected
        assert whole.rest == expected.rest
