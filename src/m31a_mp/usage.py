"""The tokens of one interaction with a language model. A worker needs no more than this to record them."""

from __future__ import annotations

from m31a_mp.kinds.checks import check_int, kind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


class Usage:
    """The tokens of one interaction with a language model, each an int from 0 to 2**63 - 1.

    It cannot be changed, and is compared by its values. Wrong values raise TypeError or ValueError here.

    Attributes:
        prompt_tokens: The tokens of the prompt.
        completion_tokens: The tokens of the completion.
        total_tokens: What the provider says; it is not checked against the other two.
    """

    # No dataclass: a worker would pay for the import more than for Python's own start.
    __slots__ = ("completion_tokens", "members", "prompt_tokens", "total_tokens")
    __match_args__ = ("prompt_tokens", "completion_tokens", "total_tokens")

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    members: str  # not for users: as they stand in a record's line

    def __init__(self, prompt_tokens: int, completion_tokens: int, total_tokens: int) -> None:
        put = object.__setattr__
        put(self, "prompt_tokens", check_int("prompt_tokens", prompt_tokens))
        put(self, "completion_tokens", check_int("completion_tokens", completion_tokens))
        put(self, "total_tokens", check_int("total_tokens", total_tokens))
        members = (
            f',"{name}":{value}' for name, value in zip(self.__match_args__, self._values(), strict=True)
        )
        put(self, "members", "".join(members))

    @classmethod
    def from_response(cls, response: object) -> Usage | None:
        """The usage in an answer of OpenAI (chat completions, responses) or Anthropic (messages).

        Prompt tokens contain those that were read from a cache or written to it, completion tokens contain
        reasoning, whatever the API counts where; nothing is counted twice.

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
        from m31a_mp.response import tokens

        counts = tokens(response)
        return cls(*counts) if counts else None

    def _values(self) -> tuple[int, int, int]:
        return self.prompt_tokens, self.completion_tokens, self.total_tokens

    def __eq__(self, other: object) -> bool:
        return self._values() == other._values() if isinstance(other, Usage) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        names = zip(self.__match_args__, self._values(), strict=True)
        return f"Usage({', '.join(f'{name}={value!r}' for name, value in names)})"

    def __reduce__(self) -> tuple[type[Usage], tuple[int, int, int]]:
        return Usage, self._values()

    def __setattr__(self, name: str, _: object) -> NoReturn:
        raise AttributeError(f"a Usage cannot be changed, nor can its {name}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a Usage cannot be changed, nor can its {name}")


def check_usage(usage: object) -> None:
    """Raise TypeError if it is no usage; says what helps."""
    if not isinstance(usage, Usage):
        hint = "Usage.from_response() takes what a model's API returned"
        raise TypeError(f"usage must be a Usage or None, not {kind(usage)}; {hint}")
