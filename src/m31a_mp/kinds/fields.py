"""The types of the fields of a record. Their checks are in `checks`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from m31a_mp.kinds import checks

REQUIRED: Any = object()


class Field(NamedTuple):
    """A type of field.

    Attributes:
        type: The name of the type, the same for required and optional fields.
        annotation: The annotation of the argument of a `record_*` method.
        check: Returns the plain value; raises TypeError or ValueError with the reason if it is not valid.
        default: The value that a line may omit; REQUIRED if a line must have the field.
    """

    type: str
    annotation: str
    check: Callable[[str, object], Any]
    default: Any = REQUIRED

    @property
    def is_optional(self) -> bool:
        """Whether a record may omit the field."""
        return self.default is not REQUIRED


def optional(field: Field, default: Any = None) -> Field:
    """Return the field as an optional one, which a record may omit."""
    annotation = f"{field.annotation} | None" if default is None else field.annotation
    return field._replace(annotation=annotation, default=default)


NAME = Field("name", "str", checks.check_name)
SHORT_NAME = Field("short name", "str", checks.check_short_name)
CALL = Field("call", "str", checks.check_call)
TEXT = Field("text", "str", checks.check_text)
FILES = Field("files", "list[str]", checks.check_files)
COUNT = Field("count", "int", checks.check_int)
FLAG = Field("flag", "bool", checks.check_bool)
PRICE = Field("price", "float | None", checks.check_price)
