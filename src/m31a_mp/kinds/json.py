"""JSON as others wrote it. Lack of memory is no fault of theirs."""

from __future__ import annotations

from typing import Any

import orjson


def parse(text: bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: It is not JSON; says where.
        MemoryError: There is not enough memory. orjson calls that an error of the text.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if "memory" in error.msg:
            raise MemoryError(error.msg) from None
        raise
