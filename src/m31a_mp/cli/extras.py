"""The extras that some commands need."""

from __future__ import annotations

import shlex
import sys
from importlib import import_module
from typing import Any

from m31a_mp.cli import CANNOT_START
from m31a_mp.cli.naming import TroubleError


def needing(module: str, requirement: str) -> Any:
    """Import a module of this library that needs an extra.

    Args:
        module: The module.
        requirement: The package that the extra is for, for a hint.

    Raises:
        TroubleError: A package of the extra is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        name = (error.name or requirement).partition(".")[0]
        hint = shlex.join([sys.executable, "-m", "pip", "install", requirement])
        raise TroubleError(f"{name} is not installed", hint, CANNOT_START) from None
