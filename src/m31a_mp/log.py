"""The library's log: silent unless the program wants to hear it."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import logging


def logger() -> logging.Logger | None:
    """None where the program has not imported `logging`: nobody can have asked to hear anything.

    A worker that records once need not import it then, which takes a fifth of Python's own start.
    """
    module = sys.modules.get("logging")
    if module is None or not hasattr(module, "captureWarnings"):  # its last name: it may be half imported
        return None
    found: logging.Logger = module.getLogger("m31a_mp")
    if not found.handlers:
        found.addHandler(module.NullHandler())
    return found


def warn(message: str, *arguments: object) -> bool:
    """Log a warning; returns whether anybody can have heard it."""
    found = logger()
    if found:
        found.warning(message, *arguments)
    return found is not None
