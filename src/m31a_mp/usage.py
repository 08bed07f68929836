"""The tokens of one interaction with a language model. A worker needs only this module to record them."""

from __future__ import annotations

from m31a_mp.kinds.checks import check_int, kind
from m31a_mp.kinds.value import Value


class Usage(Value):
    """The tokens of one interaction with a language model, each an int from 0 to 2**63 - 1.

    Immutable, and compared by value. The last three counts are parts of the first two, and are not added to
    them.

    Attributes:
        prompt_tokens: The tokens of the prompt.
        completion_tokens: The tokens of the completion.
        total_tokens: The total that the provider reports. It is not checked against the other two.
        cached_tokens: The prompt tokens that were read from a cache.
        cache_write_tokens: The prompt tokens that were written to a cache.
        reasoning_tokens: The completion tokens that were reasoning.
        members: The fields encoded for a record's line. Not for users.
    """

    __slots__ = (
        "cache_write_tokens",
        "cached_tokens",
        "completion_tokens",
        "members",
        "prompt_tokens",
        "reasoning_tokens",
        "total_tokens",
    )
    __match_args__ = (
        "prompt_tokens",
        "completion_tokens",
        "total_tokens",
        "cached_tokens",
        "cache_write_tokens",
        "reasoning_tokens",
    )

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    members: str

    def __init__(  # noqa: PLR0913  # one for each field
        self,
        prompt_tokens: int,
        completion_tokens: int,
        total_tokens: int,
        *,
        cached_tokens: int = 0,
        cache_write_tokens: int = 0,
        reasoning_tokens: int = 0,
    ) -> None:
        """Make a usage from the tokens of an interaction.

        Raises:
            TypeError: A value is not an int; the message names the field.
            ValueError: A value is out of range, or a part exceeds its whole.
        """
        whole = (prompt_tokens, completion_tokens, total_tokens)
        parts = (cached_tokens, cache_write_tokens, reasoning_tokens)
        counts = tuple(map(check_int, self.__match_args__, whole + parts))
        prompt, completion, total, cached, written, reasoning = counts
        if cached + written > prompt:
            raise ValueError(f"of {prompt} prompt tokens, {cached} cannot be cached and {written} written")
        if reasoning > completion:
            raise ValueError(f"of {completion} completion tokens, {reasoning} cannot be reasoning")
        self._set(*counts)
        members = f',"prompt_tokens":{prompt},"completion_tokens":{completion},"total_tokens":{total}'
        if cached or written or reasoning:
            given = zip(self.__match_args__[len(whole) :], counts[len(whole) :], strict=True)
            members += "".join(f',"{name}":{count}' for name, count in given if count)
        object.__setattr__(self, "members", members)

    @classmethod
    def from_response(cls, response: object) -> Usage | None:
        """Read the usage from a response of OpenAI (chat completions, responses) or Anthropic (messages).

        For every API, prompt tokens include those read from a cache or written to it, and completion tokens
        include reasoning. No token is counted twice. A part that exceeds its whole is limited to the whole.

        Args:
            response: The SDK's object, or a dict of the same JSON; an event of a stream; or the usage itself.

        Returns:
            The usage; None if there is none, as in most events of a stream. `record_llm_interaction` ignores
            None. Usages in the events of one stream are running totals; mostly there is one, at the end.

        Raises:
            TypeError: The object is not a response, or a count is not an int.
            ValueError: The usage has an unknown form, or a count is out of range.
        """
        if isinstance(response, cls):
            return response
        from m31a_mp.response import tokens

        counts = tokens(response)
        return cls(**counts) if counts else None


def check_usage(usage: object) -> None:
    """Raise TypeError, with advice, if the object is not a `Usage`."""
    if not isinstance(usage, Usage):
        hint = "Usage.from_response() takes what a model's API returned"
        raise TypeError(f"usage must be a Usage or None, not {kind(usage)}; {hint}")
