"""Counts of a bounded number of names: which ones stay does not depend on the order."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m31a_mp.kinds import bounded
from m31a_mp.kinds.bounded import BoundedCounts

names = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "other", "z"]), max_size=30)


@pytest.fixture(autouse=True, scope="module")
def _few() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounded, "MAX_NAMES", 3)
        yield


def made_of(names: list[str]) -> BoundedCounts:
    counts = BoundedCounts()
    for name in names:
        counts.add(name)
    return counts


def expected(names: list[str]) -> dict[str, int]:
    kept = sorted({name for name in names if name != "other"})[:3]
    counts = {name: Counter(names)[name] for name in kept}
    others = len(names) - sum(counts.values())
    return counts | ({"other": others} if others else {})


@given(names, st.randoms(use_true_random=False), st.integers(0, 30))
def test_first_names_of_the_alphabet_stay_in_any_order(
    names: list[str], random: st.DataObject, at: int
) -> None:
    shuffled = list(names)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert made_of(names).shown() == made_of(shuffled).shown() == expected(names)
    merged = made_of(shuffled[:at]).merge(made_of(shuffled[at:]))
    assert merged == made_of(names)
    resumed = BoundedCounts.restored(made_of(shuffled[:at]).shown())
    for name in shuffled[at:]:
        resumed.add(name)
    assert resumed == made_of(names)


def test_most_frequent_one_is_shown_first_and_the_rest_last() -> None:
    counts = made_of([*"zzzz", *"bab", "y", "y", "y"])
    assert list(counts.shown().items()) == [("y", 3), ("b", 2), ("a", 1), ("other", 4)]
