"""The types of the fields of a record. Their checks, with reasons, stand in `checks`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from m31a_mp.kinds import checks

REQUIRED: Any = object()


@dataclass(frozen=True)
class Field:
    """A type of field.

    Attributes:
        type: What it is, whether it may be left out or not.
        annotation: The type of the argument of a `record_*` method.
        check: Returns the plain value; raises TypeError or ValueError with the reason if it is none.
        default: What is left out of a line; REQUIRED if it may not be.
    """

    type: str
    annotation: str
    check: Callable[[str, object], Any]
    default: Any = REQUIRED

    @property
    def is_optional(self) -> bool:
        """Whether a record may come without it."""
        return self.default is not REQUIRED


def optional(field: Field, default: Any = None) -> Field:
    """The same field, which a record may come without."""
    annotation = f"{field.annotation} | None" if default is None else field.annotation
    return replace(field, annotation=annotation, default=default)


NAME = Field("name", "str", checks.check_name)
SHORT_NAME = Field("short name", "str", checks.check_short_name)
CALL = Field("call", "str", checks.check_call)
TEXT = Field("text", "str", checks.check_text)
FILES = Field("files", "list[str]", checks.check_files)
COUNT = Field("count", "int", checks.check_int)
FLAG = Field("flag", "bool", checks.check_bool)
PRICE = Field("price", "float | None", checks.check_price)
