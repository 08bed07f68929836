"""The types of the fields of a record. Their checks, with reasons, stand in `checks`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from m31a_mp.kinds import checks


@dataclass(frozen=True)
class Field:
    """A type of field.

    Attributes:
        annotation: The type of the argument of a `record_*` method.
        check: Returns the plain value; raises TypeError or ValueError with the reason if it is none.
    """

    annotation: str
    check: Callable[[str, object], Any]


NAME = Field("str", checks.check_name)
COUNT = Field("int", checks.check_int)
FLAG = Field("bool", checks.check_bool)
COST = Field("float", checks.check_cost)
