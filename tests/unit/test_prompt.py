"""The hash of a prompt."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest

from m31a_mp import hash_prompt


@pytest.mark.parametrize("text", ["", "plan", "é\n", "\U0001f600" * 100])
def test_hash_is_the_first_16_digits_of_sha_256(text: str) -> None:
    assert hash_prompt(text) == sha256(text.encode("utf-8")).hexdigest()[:16]


@pytest.mark.parametrize(
    ("wrong", "error"), [(b"plan", TypeError), (None, TypeError), ("\ud800", ValueError)]
)
def test_what_is_no_text_is_refused(wrong: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        hash_prompt(wrong)
