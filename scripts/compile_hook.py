"""A hook of the build: with M31A_MP_COMPILE=1, the wheel has the fold as machine code, made by mypyc.

    M31A_MP_COMPILE=1 pip install .

Without the variable, the hook does nothing and needs nothing: the wheel is pure Python. The compiled modules
stand beside their sources in the wheel, and Python prefers them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# Where a merge spends its time in Python. A module that a record needs stays as it is: it starts faster.
MODULES = (
    "m31a_mp/kinds/_entries.py",
    "m31a_mp/kinds/bounded.py",
    "m31a_mp/kinds/durations.py",
    "m31a_mp/kinds/exact.py",
    "m31a_mp/kinds/running.py",
    "m31a_mp/metrics/_folding.py",
)
# orjson is there for the types: mypyc reads what the modules import.
NEEDED = ["mypy>=1.15", "orjson>=3.10", "setuptools>=70"]


class CompileHook(BuildHookInterface):  # type: ignore[misc]  # hatchling is not there when this is checked
    """Compiles in a copy of the sources: a compiled module in a checkout would hide later changes."""

    PLUGIN_NAME = "custom"
    _copy: str | None = None

    def dependencies(self) -> list[str]:
        """Return what the build environment must have."""
        return NEEDED if is_wanted() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the modules, and add them to the wheel."""
        if not is_wanted():
            return
        if version == "editable":
            raise ValueError("M31A_MP_COMPILE=1 has no effect on an editable installation: unset it")
        self._copy = tempfile.mkdtemp(prefix="m31a_mp-")
        sources = shutil.copytree(Path(self.root, "src"), Path(self._copy, "src"))
        for left in sources.rglob("*.so"):
            left.unlink()
        # mypyc reads the types of other modules. What it finds there depends on the installed extras.
        command = [sys.executable, "-m", "mypyc", "--strict", "--follow-imports=silent", *MODULES]
        subprocess.run(command, cwd=sources, env={**os.environ, "MYPYC_DEBUG_LEVEL": "0"}, check=True)
        compiled = [path for path in sources.rglob("*.so") if "build" not in path.relative_to(sources).parts]
        for path in compiled:
            build_data["force_include"][str(path)] = str(path.relative_to(sources))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, *_: object) -> None:
        """Remove the copy."""
        if self._copy:
            shutil.rmtree(self._copy)


def is_wanted() -> bool:
    return os.environ.get("M31A_MP_COMPILE", "") not in {"", "0"}
