"""The documents: their examples run and print what they say, and their links and tables are true."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from m31a_mp.segments import format as segment_format

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "src" / "m31a_mp"
DOCUMENTS = [
    ROOT / "README.md",
    PACKAGE / "README.md",
    PACKAGE / "CHANGELOG.md",
    PACKAGE / "cli" / "README.md",
    ROOT / "tests" / "README.md",
    ROOT / "scripts" / "README.md",
]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_INTERPRETERS = {"python": [sys.executable], "bash": ["bash", "-eu"]}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def anchors_of(path: Path) -> set[str]:
    """The anchors that a heading has where the document is shown."""
    headings = _HEADING.findall(path.read_text("utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(("path", "least"), [(ROOT / "README.md", 4), (PACKAGE / "README.md", 4)], ids=str)
def test_examples_run_in_order_and_print_what_the_document_says(
    path: Path, least: int, tmp_path: Path
) -> None:
    output = ""
    ran = 0
    for language, code in _BLOCK.findall(path.read_text("utf-8")):
        if language == "text":
            assert output == code
            output = ""
            continue
        if language not in _INTERPRETERS:
            continue  # other languages have tests of their own; a console shows what it looks like
        program = tmp_path / f"example{ran}.{language}"
        program.write_text(code, "utf-8")
        interpreter = _INTERPRETERS[language]
        result = subprocess.run(
            [*interpreter, str(program)], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        assert not result.stderr
        output += result.stdout
        ran += 1
    assert ran >= least
    assert not output


def test_no_other_document_has_an_example_that_nothing_runs() -> None:
    tried = {ROOT / "README.md", PACKAGE / "README.md"}
    left = {
        (name_of(path), language)
        for path in DOCUMENTS
        if path not in tried
        for language, _ in _BLOCK.findall(path.read_text("utf-8"))
    }
    assert left <= {("src/m31a_mp/cli/README.md", "console")}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_to_what_is_there(path: Path) -> None:
    for target, anchor in _LINK.findall(path.read_text("utf-8")):
        leads_to = (path.parent / target).resolve() if target else path
        assert leads_to.exists(), target
        assert not anchor or anchor in anchors_of(leads_to), anchor


def test_first_page_takes_five_minutes() -> None:
    assert (ROOT / "README.md").read_text("utf-8").count("\n") <= 160


def test_every_test_file_that_the_proofs_name_is_there() -> None:
    named = re.findall(r"`(test_\w+\.py)`", (ROOT / "tests" / "README.md").read_text("utf-8"))
    assert named
    there = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert set(named) <= there


def test_table_of_the_segment_is_what_the_code_reads_and_writes() -> None:
    text = (PACKAGE / "README.md").read_text("utf-8").partition("**A segment**")[2]
    rows = re.findall(r"^\| (\d+) \|([^|]*)\|", text, re.MULTILINE)
    offsets = [int(offset) for offset, _ in rows]
    lengths = [[int(part) for part in re.findall(r"\d+", sizes)] for _, sizes in rows]
    assert offsets[0] == 0
    assert offsets[-1] == segment_format.DATA_OFFSET
    assert segment_format.DRAINED_OFFSET in offsets
    assert segment_format.FINISHED_OFFSET in offsets
    dropped = 8 * segment_format.DROPPED_WORD
    assert lengths[offsets.index(dropped)] == [3, 8, 8]  # of three reasons the count and its complement
    identity = segment_format._START.size
    assert identity in offsets
    start = offsets.index(identity)
    fields = [size for row in lengths[start : offsets.index(segment_format.DRAINED_OFFSET)] for size in row]
    assert sum(fields) + 4 == segment_format._IDENTITY.size  # the last four bytes are padding
    assert sum(lengths[offsets.index(segment_format.DRAINED_OFFSET)]) == segment_format.DRAINED.size
    for (offset, row), following in zip(zip(offsets, lengths, strict=True), offsets[1:], strict=False):
        assert offset == dropped or offset + sum(row) <= following
