"""The tokens in the answer of a language model, as the APIs of OpenAI and Anthropic spell them.

Of OpenAI the input contains what was read from the cache, and the output the reasoning. Of Anthropic the
output contains the reasoning, too, but the input is only what is neither written to the cache nor read from
it: the three together are the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from m31a_mp.kinds.checks import as_int, kind

_BITS = 63
# OpenAI has the parts in an object of their own: chat completions in the first, responses in the second.
_PROMPT_DETAILS = ("prompt_tokens_details", "input_tokens_details")
_COMPLETION_DETAILS = ("completion_tokens_details", "output_tokens_details")


def tokens(response: object) -> dict[str, int] | None:
    """The tokens by the names that `Usage` gives them; None where there is no usage.

    Raises:
        TypeError: It is no response, or its usage has a count that is no int.
        ValueError: Its usage has none of the known forms, or a count is out of range.
    """
    usage = _usage(response)
    if usage is None:
        return None
    total = _get(usage, "total_tokens")
    if _get(usage, "prompt_tokens") is not None:  # chat completions; embeddings complete nothing
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
        prompt += written + cached  # Anthropic's; OpenAI's responses have a total, and their input is whole
    total = prompt + completion if total is None else _count(usage, "total_tokens")
    if max(prompt, total).bit_length() > _BITS:
        raise ValueError(f"the tokens of the usage add up to more than 2**{_BITS} - 1")
    # A gateway may say it in both ways.
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
    """The usage in a response, or in an event of a stream; a usage is returned as it is."""
    if response is None or any(_get(response, key) is not None for key in ("prompt_tokens", "input_tokens")):
        return response
    # Also those without usage say what they are: `object` at OpenAI, `type` at Anthropic and in streams.
    if not isinstance(response, Mapping) and not any(
        hasattr(response, k) for k in ("usage", "object", "type")
    ):
        raise TypeError(f"a {kind(response)} is no response of OpenAI or Anthropic")
    usage = _get(response, "usage")
    if usage is None and str(_get(response, "type")).startswith("response."):
        return _get(_get(response, "response"), "usage")  # `response.completed` in a stream of OpenAI's
    return usage


def _get(holder: object, key: str) -> Any:
    """From a dict or from an object of an SDK; None if it is not there, as where it is null."""
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
