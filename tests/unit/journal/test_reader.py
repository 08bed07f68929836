"""What reads the journal: any bytes, to their end."""

from __future__ import annotations

from io import BytesIO

import orjson
from hypothesis import example, given, settings
from hypothesis import strategies as st

from damage import JOURNAL
from m31a_mp.journal.append import is_balanced
from m31a_mp.journal.reader import read


@settings(max_examples=200)
@given(st.binary(max_size=400), st.integers(0, len(JOURNAL)), st.integers(0, len(JOURNAL)))
def test_reading_any_bytes_comes_to_an_end_and_raises_nothing(garbage: bytes, start: int, end: int) -> None:
    header = b'\n{"batch":"a","first":1,"count":1,"bytes":50,"crc32":"00"}\n'
    for data in (garbage, JOURNAL[start:] + garbage + JOURNAL[:end], garbage.replace(b"\1", header)):
        offsets = [item.offset for item in read(BytesIO(data))]
        assert offsets == sorted(offsets)
        assert not offsets or offsets[-1] <= len(data)


@given(
    name=st.text(st.characters(codec="utf-8") | st.sampled_from('{}"\\'), min_size=1), dropped=st.booleans()
)
@example(name="fmt{x}", dropped=True)
@example(name='\\"}\\\\', dropped=False)
def test_beginning_of_a_record_or_header_is_not_taken_for_a_whole_one(name: str, dropped: bool) -> None:
    text = orjson.dumps(
        {"event": "a", "name": name, **({"dropped": {"no_space": 3}} if dropped else {}), "n": 1}
    )
    assert [end for end in range(len(text) + 1) if is_balanced(text[:end])] == [len(text)]
