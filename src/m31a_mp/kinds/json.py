"""Parse foreign JSON. Lack of memory is not an error in the JSON."""

from __future__ import annotations

from typing import Any

import orjson


def parse(text: bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: The text is not JSON; the message names the place.
        MemoryError: There is not enough memory. orjson reports this as an error in the text.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if "memory" in error.msg:
            raise MemoryError(error.msg) from None
        raise
