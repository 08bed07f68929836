"""Read the tokens from a response of a language model, in the formats of OpenAI and Anthropic.

OpenAI includes tokens read from the cache in the input, and reasoning in the output. Anthropic includes
reasoning in the output, too, but its input excludes tokens written to the cache or read from it: the sum of
the three is the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from m31a_mp.kinds.checks import as_int, kind

_BITS = 63
# OpenAI puts the parts in a separate object: chat completions in the first, responses in the second.
_PROMPT_DETAILS = ("prompt_tokens_details", "input_tokens_details")
_COMPLETION_DETAILS = ("completion_tokens_details", "output_tokens_details")


def tokens(response: object) -> dict[str, int] | None:
    """Return the tokens by their names in `Usage`; None without a usage.

    Raises:
        TypeError: The object is not a response, or a count in its usage is not an int.
        ValueError: The usage has an unknown form, or a count is out of range.
    """
    usage = _usage(response)
    if usage is None:
        return None
    total = _get(usage, "total_tokens")
    if _get(usage, "prompt_tokens") is not None:  # chat completions, or embeddings without completion tokens
        prompt, completion = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    elif _get(usage, "input_tokens") is None or _get(usage, "output_tokens") is None:
        raise ValueError(
            f"the usage, a {kind(usage)}, has neither prompt_tokens nor input_tokens and "
            "output_tokens; of a stream, take the final message"
        )
    else:
        prompt, completion = _count(usage, "input_tokens"), _count(usage, "output_tokens")
    written, cached = (
        _count(usage, key) for key in ("cache_creation_input_tokens", "cache_read_input_tokens")
    )
    if total is None and _get(usage, "prompt_tokens") is None:
        prompt += written + cached  # Anthropic; responses of OpenAI have a total, and their input is complete
    total = prompt + completion if total is None else _count(usage, "total_tokens")
    if max(prompt, total).bit_length() > _BITS:
        raise ValueError(f"the tokens of the usage add up to more than 2**{_BITS} - 1")
    # A gateway may use both forms.
    cached = min(prompt, max(cached, *(_count(_get(usage, key), "cached_tokens") for key in _PROMPT_DETAILS)))
    reasoning = max(_count(_get(usage, key), "reasoning_tokens") for key in _COMPLETION_DETAILS)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": total,
        "cached_tokens": cached,
        "cache_write_tokens": min(written, prompt - cached),
        "reasoning_tokens": min(reasoning, completion),
    }


def _usage(response: object) -> object:
    """Return the usage in a response, or in an event of a stream. A usage is returned unchanged."""
    if response is None or any(_get(response, key) is not None for key in ("prompt_tokens", "input_tokens")):
        return response
    # Responses without usage are recognized by `object` (OpenAI) or `type` (Anthropic, and streams).
    if not isinstance(response, Mapping) and not any(
        hasattr(response, k) for k in ("usage", "object", "type")
    ):
        raise TypeError(f"a {kind(response)} is not a response of OpenAI or Anthropic")
    usage = _get(response, "usage")
    if usage is None and str(_get(response, "type")).startswith("response."):
        return _get(_get(response, "response"), "usage")  # `response.completed` in a stream of OpenAI
    return usage


def _get(holder: object, key: str) -> Any:
    """Return a value from a dict or from an object of an SDK; None if it is missing or null."""
    return holder.get(key) if isinstance(holder, Mapping) else getattr(holder, key, None)


def _count(usage: object, key: str) -> int:
    count = _get(usage, key)
    if count is None:
        return 0
    number = as_int(count)
    if number is None:
        raise TypeError(f"{key} of the usage must be an int, not {kind(count)}")
    if number < 0 or number.bit_length() > _BITS:
        raise ValueError(f"{key} of the usage must be from 0 to 2**{_BITS} - 1")
    return number
