"""The tokens of one interaction with a language model. A worker needs no more than this to record them."""

from __future__ import annotations

from m31a_mp.kinds.checks import check_int, kind
from m31a_mp.kinds.value import Value


class Usage(Value):
    """The tokens of one interaction with a language model, each an int from 0 to 2**63 - 1.

    It cannot be changed, and is compared by its values. Nothing is counted twice: the last three are parts of
    the first two.

    Attributes:
        prompt_tokens: The tokens of the prompt.
        completion_tokens: The tokens of the completion.
        total_tokens: What the provider says; it is not checked against the other two.
        cached_tokens: Those of the prompt that were read from a cache.
        cache_write_tokens: Those of the prompt that were written to a cache.
        reasoning_tokens: Those of the completion that were reasoning.
        members: Not for users: the fields as they stand in a record's line.
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
        """Put the tokens of an interaction together.

        Raises:
            TypeError: A value is no int; says which.
            ValueError: A value is out of range, or a part is more than the whole.
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
        """The usage in an answer of OpenAI (chat completions, responses) or Anthropic (messages).

        Prompt tokens contain those that were read from a cache or written to it, completion tokens contain
        reasoning, whatever the API counts where; nothing is counted twice. A part that is said to be more
        than the whole is taken as the whole.

        Args:
            response: The SDK's object, or a dict of the same JSON; an event of a stream; or the usage itself.

        Returns:
            The usage; None if there is none, as in most events of a stream: `record_llm_interaction` takes
            that as a no-op. What it finds in the events of one stream are running totals; mostly there is
            one, at the end.

        Raises:
            TypeError: It is no response, or a count is no int.
            ValueError: The usage is of no known form, or a count is out of range.
        """
        if isinstance(response, cls):
            return response
        from m31a_mp.response import tokens

        counts = tokens(response)
        return cls(**counts) if counts else None


def check_usage(usage: object) -> None:
    """Raise TypeError if it is no usage; says what helps."""
    if not isinstance(usage, Usage):
        hint = "Usage.from_response() takes what a model's API returned"
        raise TypeError(f"usage must be a Usage or None, not {kind(usage)}; {hint}")
