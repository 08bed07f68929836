"""Parse foreign JSON. Lack of memory is not an error in the JSON."""

from __future__ import annotations

# orjson imports these while it is imported itself, and crashes if a signal handler raises meanwhile.
import dataclasses  # noqa: F401
import datetime as dt  # noqa: F401
import enum  # noqa: F401
import json  # noqa: F401
import uuid  # noqa: F401
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
