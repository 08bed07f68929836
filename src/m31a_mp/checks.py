"""What the arguments of a record must be, and how a name stands in its line."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from m31a_mp.model import Usage

INT64_MAX = 2**63 - 1
_INFINITE = float("inf")
MAX_NAME_BYTES = 4096

# How many names are kept ready; with more distinct ones than that, they are made anew.
_NAMES_KEPT = 4096


def check_name(field: str, value: object) -> str:
    """A name: text of 1 to 4096 bytes of UTF-8."""
    if not isinstance(value, str):
        raise TypeError(f"{field} must be a str, not {type(value).__name__}")
    if not value:
        raise ValueError(f"{field} must not be empty")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise ValueError(f"{field} has a lone surrogate at {error.start}, which UTF-8 cannot carry") from None
    if size > MAX_NAME_BYTES:
        raise ValueError(f"{field} has {size} bytes of UTF-8; at most {MAX_NAME_BYTES} are allowed")
    return str.__str__(value)  # of a str subclass, what it is and not how it shows itself


def check_int(field: str, value: object) -> int:
    """A count or a duration: an integer from 0 to 2**63 - 1."""
    if not isinstance(value, int) or isinstance(value, bool):
        hint = "; round it" if isinstance(value, float) else ""
        raise TypeError(f"{field} must be an int, not {type(value).__name__}{hint}")
    if not 0 <= value <= INT64_MAX:
        given = "is negative" if value < 0 else f"has {int(value).bit_length()} bits"
        raise ValueError(f"{field} must be from 0 to 2**63 - 1; this one {given}")
    return int(value)


def check_cost(field: str, value: object) -> float:
    """A cost: a finite number that is not negative."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{field} must be a float, not {type(value).__name__}")
    try:
        cost = float(value)
    except OverflowError:
        cost = _INFINITE
    if not -_INFINITE < cost < _INFINITE:
        raise ValueError(f"{field} must be finite, not {cost}")
    if cost < 0:
        raise ValueError(f"{field} must not be negative, it is {cost}")
    return cost


def check_bool(field: str, value: object) -> bool:
    """True or False, and nothing that only counts as such."""
    if not isinstance(value, bool):
        raise TypeError(f"{field} must be a bool, not {type(value).__name__}")
    return value


def check_usage(usage: object) -> Usage:
    """A `Usage` whose numbers are in range."""
    # Whoever has one has imported where it comes from; a worker without need not.
    made: type[Usage] | tuple[()] = getattr(sys.modules.get("m31a_mp.model"), "Usage", ())
    if not isinstance(usage, made):
        raise TypeError(f"usage must be a Usage or None, not {type(usage).__name__}")
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        check_int(f"usage.{name}", getattr(usage, name))
    return usage


# All that JSON wants escaped.
_ESCAPES = {code: f"\\u{code:04x}" for code in (*range(0x20), ord('"'), ord("\\"))}


class Names(dict[str, str]):
    """Names as they stand in a line, with their key and what follows: each is checked and encoded once, then
    looked up.
    """

    def __init__(self, key: str, rest: str = "") -> None:
        self._key = key
        self._rest = rest

    def __missing__(self, value: str) -> str:
        name = check_name(self._key, value)
        member = f',"{self._key}":"{name.translate(_ESCAPES)}"{self._rest}'
        if len(self) >= _NAMES_KEPT:
            self.clear()
        self[name] = member
        return member
