"""The hash of a prompt, which shows whether two interactions had the same prompt."""

from __future__ import annotations

import hashlib

_DIGITS = 16


def hash_prompt(text: str) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a prompt's UTF-8, like the Go program.

    Raises:
        TypeError: The prompt is not a str.
        ValueError: The prompt has a lone surrogate, which UTF-8 cannot encode.
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a str, not {type(text).__name__}")
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
