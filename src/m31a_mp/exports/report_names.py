"""Foreign names in a report: text of one line, and not too long."""

from __future__ import annotations

from dataclasses import dataclass

from m31a_mp.system.log import shown

MAX_NAME = 80
"""The most characters of a name; what is longer is cut in the middle."""
_MAX_HINT = 400  # of a name as it is shown when the mouse is over it


@dataclass(frozen=True, slots=True)
class Name:
    """A foreign name as text of one line, without control characters.

    Attributes:
        text: The name, cut in the middle if it is long.
        hint: More of the name; empty if all of it is in `text`.
    """

    text: str
    hint: str = ""


def name_of(text: str, most: int = MAX_NAME) -> Name:
    """Return a name to be shown, of at most some characters."""
    whole = shown(text)
    if not whole.strip():
        whole = f'"{whole}"'
    return Name(cut(whole, most), cut(whole, _MAX_HINT)) if len(whole) > most else Name(whole)


def cut(text: str, most: int) -> str:
    """Cut a text in the middle."""
    end = most // 3
    return text if len(text) <= most else f"{text[: most - 1 - end]}…{text[-end:]}"


def in_text(name: str, most: int) -> str:
    """Return a name for the middle of a text. Letters from right to left do not reorder the rest."""
    short = name_of(name, most).text
    return short if short.isascii() else f"\u2068{short}\u2069"
