"""The hash of a prompt, which tells whether two interactions had the same one."""

from __future__ import annotations

import hashlib

_DIGITS = 16


def hash_prompt(text: str) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a prompt's UTF-8, as the Go program has it.

    Raises:
        TypeError: It is no str.
        ValueError: It has a lone surrogate, which UTF-8 cannot carry.
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a str, not {type(text).__name__}")
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
