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
        raise missing(error, requirement) from None


def missing(error: ImportError, requirement: str) -> TroubleError:
    """Return the report of an import that failed because a package of an extra is not installed.

    Args:
        error: The error of the import.
        requirement: The package that the extra is for, for a hint.
    """
    name = (error.name or requirement).partition(".")[0]
    hint = shlex.join([sys.executable, "-m", "pip", "install", requirement])
    return TroubleError(f"{name} is not installed", hint, CANNOT_START)
