"""What a declaration of a kind of record is made of: its fields, and what it adds to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from m31a_mp.kinds.fields import COST, NAME, Field
from m31a_mp.kinds.happenings import Happenings
from m31a_mp.kinds.parts import Exact, Latest, Sum
from m31a_mp.kinds.tables import Table


@dataclass(frozen=True)
class Always:
    """Adds 1."""

    def of(self, values: Mapping[str, Any]) -> int:  # noqa: ARG002  # whatever they are
        """What a record of these values adds."""
        return 1


@dataclass(frozen=True)
class If:
    """Adds 1 where a flag is set; or where it is not."""

    flag: str
    wanted: bool = True

    def of(self, values: Mapping[str, Any]) -> int:
        """What a record of these values adds."""
        return int(values[self.flag] is self.wanted)


@dataclass(frozen=True)
class Value:
    """Adds the value of a field."""

    field: str

    def of(self, values: Mapping[str, Any]) -> Any:
        """What a record of these values adds."""
        return values[self.field]


@dataclass(frozen=True)
class Values:
    """Gives the values of some fields, of which the latest ones stay."""

    fields: tuple[str, ...]

    def of(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        """What a record of these values gives."""
        return tuple(values[name] for name in self.fields)


Effect = Always | If | Value | Values


@dataclass(frozen=True)
class Into:
    """A table that a kind of record adds to: to the entry of a name, to each of some parts.

    Attributes:
        table: The table.
        key: The field of the record that has the entry's name.
        adds: What it adds, by part.
    """

    table: Table
    key: str
    adds: Mapping[str, Effect]


@dataclass(frozen=True)
class Kind:
    """One kind of record.

    Attributes:
        event: Its name: that of the method without `record_`.
        fields: Its keys, in the order of its line and of the method's arguments.
        into: What it adds to. To `Happenings` it adds one of the same fields.
        documentation: The method's docstring without its arguments.
        about: What the method's arguments are, by name.
        command: The name of that command; empty where cli/record.py has one that does more.
        example: What may stand behind `m31a-mp record`.
        grouped: Fields that come in one argument, by its name: an object has checked and spelled them.
    """

    event: str
    fields: Mapping[str, Field]
    into: Into | Happenings
    documentation: str
    about: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    example: str = ""
    grouped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse an addition that its part does not take: a float in a plain sum would show the order.

        Raises:
            TypeError: The declaration is wrong; says where.
        """
        if isinstance(self.into, Happenings):
            return
        if self.fields[self.into.key] is not NAME:
            raise TypeError(f"{self.event}: {self.into.key} is no name")
        for name, effect in self.into.adds.items():
            part = self.into.table.parts[name]
            is_float = isinstance(effect, Value) and self.fields[effect.field] is COST
            if not isinstance(effect, _TAKES.get(type(part), ())) or is_float != isinstance(part, Exact):
                raise TypeError(f"{self.event}: {name} does not take {effect}")

    @property
    def table(self) -> Table | Happenings:
        """What it adds to."""
        return self.into.table if isinstance(self.into, Into) else self.into


_TAKES: dict[type, tuple[type, ...]] = {Sum: (Always, If, Value), Exact: (Value,), Latest: (Values,)}
