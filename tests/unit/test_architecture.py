"""The folders are the stages of a record: imports go one way, and what a record needs is imported early."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import m31a_mp

PACKAGE = Path(m31a_mp.__file__).parent

# Each may import those after it. What stands together may import each other.
LAYERS: list[set[str]] = [
    {"__main__", "cli"},
    {"exports"},
    {"wording"},
    {"collector", "ending", "refresh"},
    {"recorder", "timing"},
    {"_recording"},
    {"inspection"},
    {"sharing"},
    {"metrics"},
    {"segments"},
    {"journal"},
    {"session"},
    {"system"},
    {"usage"},
    {"model", "kinds", "errors", "response", "plan", "prompt"},
]
# Of these, a record needs all but what is named here.
HOT = {
    "segments",
    "journal",
    "session",
    "system",
    "kinds",
    "recorder",
    "timing",
    "usage",
    "errors",
    "plan",
    "_recording",
}
COLD_IN_HOT = {
    "journal/reader.py",
    "session/lease.py",
    *(f"kinds/{path.name}" for path in PACKAGE.glob("kinds/*.py") if path.stem != "checks"),
}
# What is for those who look, measure or ask only, and that a record never comes to.
LATE = {
    "plan.py": {"datetime"},
    "recorder.py": {
        "m31a_mp.inspection.snapshot",
        "m31a_mp.kinds.json",
        "m31a_mp.model",
        "m31a_mp.sharing.keeper",
        "m31a_mp.sharing.store",
    },
    "system/process.py": {"psutil"},
    "timing.py": {"functools", "inspect", "signal", "subprocess"},
    "usage.py": {"m31a_mp.response"},
}
# What `m31a-mp record`, and `run` in a session with an owner, come to: nothing cold, and little of Python.
QUICK = {
    *(
        f"cli/{name}.py"
        for name in ("__init__", "_options", "keeper", "naming", "quick", "recording", "running")
    ),
    "cli/wrapped.py",
}
QUICK_OF_PYTHON = {"__future__", "errno", "gc", "mmap", "os", "signal", "sys", "time"}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def part_of(name: str) -> str:
    """The folder of a module, or its own name if it is in none."""
    return name.removesuffix(".py").split("/")[0]


def imports_of(nodes: list[ast.stmt]) -> Iterator[str]:
    """The modules that statements import, but for those that only types need."""
    for node in nodes:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            is_package = (PACKAGE.parent / node.module.replace(".", "/")).is_dir()
            yield from names if is_package and node.module.startswith("m31a_mp") else [node.module]
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def file_of(module: str) -> str:
    """The file of a module of ours, or of a name in a package of ours; otherwise the module."""
    path = module.removeprefix("m31a_mp.").replace(".", "/")
    names = (f"{path}.py", f"{path}/__init__.py", f"{path.rpartition('/')[0]}/__init__.py")
    return next((name for name in names if (PACKAGE / name).exists()), module)


def late_imports_of(tree: ast.Module) -> set[str]:
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = [node for function in functions for node in ast.walk(function) if isinstance(node, ast.stmt)]
    return set(imports_of(inside))


def rank_of(part: str) -> int:
    [rank] = [rank for rank, layer in enumerate(LAYERS) if part in layer]
    return rank


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    name = name_of(path)
    ours = (
        module.removeprefix("m31a_mp.").split(".")[0]
        for module in imports_of(ast.parse(path.read_text()).body)
        if module.startswith("m31a_mp.")
    )
    rank = rank_of(part_of(name))
    assert [part for part in ours if part != "__version__" and rank_of(part) < rank] == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_what_a_record_needs_is_imported_early(path: Path) -> None:
    name = name_of(path)
    if part_of(name) in HOT and name not in COLD_IN_HOT:
        assert late_imports_of(ast.parse(path.read_text())) == LATE.get(name, set())


@pytest.mark.parametrize("name", sorted(QUICK))
def test_what_a_quick_command_needs_is_hot(name: str) -> None:
    imported = set(imports_of(ast.parse((PACKAGE / name).read_text()).body)) - QUICK_OF_PYTHON
    hot = {path for path in map(name_of, MODULES) if part_of(path) in HOT} - COLD_IN_HOT
    assert set(map(file_of, imported)) - QUICK - hot == set()


def test_every_folder_says_what_comes_in_and_goes_out_and_what_it_promises() -> None:
    folders = {path.parent.name for path in MODULES if path.parent != PACKAGE} - {"cli"}
    for folder in folders:
        text = ast.get_docstring(ast.parse((PACKAGE / folder / "__init__.py").read_text())) or ""
        for part in ("In: ", "Out: ", "Promise: "):
            assert f"\n{part}" in text, folder
        assert ("\nHot: " if folder in HOT else "\nCold: ") in text, folder
