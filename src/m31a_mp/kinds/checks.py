"""Checks of a record's arguments, and names encoded for its line."""

from __future__ import annotations

import sys

INT64_MAX = 2**63 - 1
"""The largest count, sum or duration: the Go program stores an int64. Sums saturate at this value."""
_INFINITE = float("inf")
MAX_NAME_BYTES = 4096
MAX_SHORT_NAME_BYTES = 1024
MAX_CALL_BYTES = 256
MAX_FILES = 1000
_NUMPY_BOOLS = ("numpy.bool", "numpy.bool_")  # since version 2; before version 2

# The most encoded names in a cache. A full cache is cleared.
_NAMES_KEPT = 4096


def saturated(number: int) -> int:
    """Limit a sum to an int64 for `metrics.json`: the Go program stores it in one."""
    return min(number, INT64_MAX)


def kind(value: object) -> str:
    """Return the name of a value's type, with the module unless builtin: NumPy has a `bool`, too."""
    cls = type(value)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _is_a(tower: str, value: object) -> bool:
    # Do not import `numbers`: NumPy imports the module to register its numbers.
    return isinstance(value, getattr(sys.modules.get("numbers"), tower, ()))


def as_int(value: object) -> int | None:
    """Convert an integer, NumPy's included, to an int; None for other values and for bools."""
    if isinstance(value, bool):
        return None
    if issubclass(type(value), int):
        return int.__index__(value)  # type: ignore[arg-type]  # a subclass may override `__int__`
    # NumPy's time spans are registered as integers, but have no `__index__`: their unit would be lost.
    if _is_a("Integral", value) and hasattr(type(value), "__index__"):
        return int(value)  # type: ignore[call-overload, no-any-return]  # checked in the line before
    return None


def as_bool(value: object) -> bool | None:
    """Convert a truth value, NumPy's included, to a bool; None for other values."""
    if isinstance(value, bool):
        return value
    return bool(value) if kind(value) in _NUMPY_BOOLS else None


def as_float(value: object) -> float | None:
    """Convert a number, NumPy's included, to a float; None for other values, infinite if too large."""
    number = as_int(value)
    if number is None and issubclass(type(value), float):
        return float.__float__(value)  # type: ignore[arg-type]  # as above
    if number is None and (not _is_a("Real", value) or _is_a("Integral", value)):
        return None
    try:
        return float(value if number is None else number)  # type: ignore[arg-type]  # checked above
    except OverflowError:
        return _INFINITE


def check_text(field: str, value: object, limit: int = MAX_NAME_BYTES) -> str:
    """Return the text, if it has at most `limit` bytes of UTF-8. It may be empty."""
    text = _plain(field, value)
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise ValueError(f"{field} has a lone surrogate at {error.start}; UTF-8 cannot encode it") from None
    if size > limit:
        raise ValueError(f"{field} has {size} bytes of UTF-8; at most {limit} are allowed")
    return text


def _plain(field: str, value: object) -> str:
    """Return the text as a plain str: a subclass may override `__str__`."""
    if not issubclass(type(value), str):
        raise TypeError(f"{field} must be a str, not {kind(value)}")
    return str.__str__(value)


def check_name(field: str, value: object, limit: int = MAX_NAME_BYTES) -> str:
    """Return the name, if it is text of 1 to `limit` bytes of UTF-8; by default 4096."""
    text = check_text(field, value, limit)
    if not text:
        raise ValueError(f"{field} must not be empty")
    return text


def check_short_name(field: str, value: object) -> str:
    """Return the name, if it has 1 to 1024 bytes of UTF-8: a line has room for a long and two short ones."""
    return check_name(field, value, MAX_SHORT_NAME_BYTES)


def check_call(field: str, value: object) -> str:
    """Return the call id, if it has 1 to 256 printable ASCII characters without quotes and backslashes."""
    text = check_name(field, value, MAX_CALL_BYTES)
    if not is_call(text):
        raise ValueError(f"{field} must be printable ASCII without double quotes and backslashes")
    return text


def check_files(field: str, value: object) -> tuple[str, ...]:
    """Return the names of files, if they are at most 1,000, each of 1 to 4096 bytes of UTF-8."""
    if not isinstance(value, list | tuple):
        raise TypeError(f"{field} must be a list or tuple of str, not {kind(value)}")
    if len(value) > MAX_FILES:
        raise ValueError(f"{field} has {len(value)} names; at most {MAX_FILES} are allowed")
    return tuple(check_name(f"{field}[{i}]", name) for i, name in enumerate(value))


def is_text(value: object, limit: int = MAX_NAME_BYTES) -> bool:
    """Whether a JSON value is a text that `check_text` accepts. It cannot contain a lone surrogate."""
    if type(value) is not str or len(value) > limit:
        return False
    return value.isascii() or len(value.encode()) <= limit


def is_name(value: object, limit: int = MAX_NAME_BYTES) -> bool:
    """Whether a JSON value is a name that `check_name` accepts."""
    if type(value) is not str or not 0 < len(value) <= limit:
        return False
    return value.isascii() or len(value.encode()) <= limit


def is_short_name(value: object) -> bool:
    """Whether a JSON value is a name that `check_short_name` accepts."""
    return is_name(value, MAX_SHORT_NAME_BYTES)


def is_call(value: object) -> bool:
    """Whether a value is a call id that `check_call` accepts. A line of JSON contains it unescaped."""
    if type(value) is not str or not 0 < len(value) <= MAX_CALL_BYTES:
        return False
    return value.isascii() and value.isprintable() and '"' not in value and "\\" not in value


def is_files(value: object) -> bool:
    """Whether a JSON value is a list of files that `check_files` accepts."""
    return isinstance(value, list | tuple) and len(value) <= MAX_FILES and all(map(is_name, value))


def check_int(field: str, value: object) -> int:
    """Return a count or a duration, if it is an integer from 0 to 2**63 - 1."""
    number = value if type(value) is int else as_int(value)
    if number is None:
        hint = "; round it" if as_float(value) is not None else ""
        raise TypeError(f"{field} must be an int, not {kind(value)}{hint}")
    if not 0 <= number <= INT64_MAX:
        given = "is negative" if number < 0 else f"has {number.bit_length()} bits"
        raise ValueError(f"{field} must be from 0 to 2**63 - 1; this one {given}")
    return number


def check_cost(field: str, value: object) -> float:
    """Return a cost, if it is a finite number that is not negative."""
    cost = value if type(value) is float else as_float(value)
    if cost is None:
        raise TypeError(f"{field} must be a float, not {kind(value)}")
    if not -_INFINITE < cost < _INFINITE:
        raise ValueError(f"{field} must be finite, not {cost}")
    if cost < 0:
        raise ValueError(f"{field} must not be negative, it is {cost}")
    return cost


def check_price(field: str, value: object) -> float | None:
    """Return a checked cost; None if it is unknown."""
    return None if value is None else check_cost(field, value)


def check_bool(field: str, value: object) -> bool:
    """Return True or False. Other truthy or falsy values are refused."""
    truth = as_bool(value)
    if truth is None:
        raise TypeError(f"{field} must be a bool, not {kind(value)}")
    return truth


# The characters that JSON requires to be escaped.
_ESCAPES = {code: f"\\u{code:04x}" for code in (*range(0x20), ord('"'), ord("\\"))}


def quoted(text: str) -> str:
    """Quote a text for JSON."""
    return f'"{text.translate(_ESCAPES)}"'


class EncodedNames(dict[str, str]):
    """A cache of names encoded for a line, with their key and the text that follows.

    Each name is checked and encoded once, then looked up.
    """

    def __init__(self, key: str, rest: str = "", limit: int = MAX_NAME_BYTES) -> None:
        self._key = key
        self._rest = rest
        self._limit = limit

    def __missing__(self, value: str) -> str:
        name = check_name(self._key, value, self._limit)
        member = f',"{self._key}":{quoted(name)}{self._rest}'
        if len(self) >= _NAMES_KEPT:
            self.clear()
        self[name] = member
        return member
