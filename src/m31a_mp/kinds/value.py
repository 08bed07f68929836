"""Values that a caller builds for a record.

They are not dataclasses: importing `dataclasses` takes as long as starting Python.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn


class Value:
    """An immutable value, compared by its fields, which `__match_args__` lists."""

    __slots__ = ()
    __match_args__: tuple[str, ...] = ()

    def _set(self, *fields: object) -> None:
        for name, value in zip(self.__match_args__, fields, strict=True):
            object.__setattr__(self, name, value)

    def _fields(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.__match_args__)

    def __eq__(self, other: object) -> bool:
        return self._fields() == other._fields() if isinstance(other, type(self)) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._fields())

    def __repr__(self) -> str:
        fields = zip(self.__match_args__, self._fields(), strict=True)
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in fields)})"

    def __reduce__(self) -> tuple[object, ...]:
        return _make, (type(self), dict(zip(self.__match_args__, self._fields(), strict=True)))

    def __setattr__(self, name: str, _: object) -> NoReturn:
        raise AttributeError(f"a {type(self).__name__} cannot be changed, nor can its {name}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a {type(self).__name__} cannot be changed, nor can its {name}")


def _make(cls: Any, fields: dict[str, Any]) -> Any:
    return cls(**fields)
