"""The documents: their examples run and print what stands there, and what they name exists."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_bench import ROWS

import m31a_mp
from m31a_mp import Recorder
from m31a_mp.journal.batch import DROP_REASONS
from m31a_mp.segments import format as segment_format
from m31a_mp.system import process

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "src" / "m31a_mp"
DOCUMENTS = sorted(
    {
        *ROOT.glob("*.md"),
        *(path for folder in ("src", "tests", "scripts") for path in (ROOT / folder).rglob("*.md")),
    }
)
IDS = [str(document.relative_to(ROOT)) for document in DOCUMENTS]
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ANY_BLOCK = re.compile(r"^```.*?^```$|^ {4}.*?$", re.MULTILINE | re.DOTALL)
_INTERPRETERS = {"python": [sys.executable], "bash": ["bash", "-eu"]}
_TESTED_ELSEWHERE = {"js", "go"}  # by test_languages.py

# A console shows times, which are never the same, and columns as wide as the times.
_TIMES = [
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"), "DATE"),
    (re.compile(r"[\d.,]+ (us|ms|s|min|h)\b( [\d.]+ s)?"), "TIME"),
    (re.compile(r"─+"), "─"),
    (re.compile(r" {2,}"), "  "),
]


def blocks(document: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a document: language and text."""
    return _BLOCK.findall(document.read_text("utf-8"))


def prose(document: Path) -> str:
    """A document without its code."""
    return _ANY_BLOCK.sub("", document.read_text("utf-8"))


def environment(directory: Path) -> dict[str, str]:
    """Outside of any session, with the command line at hand."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("M31A_MP_")}
    return {**outside, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(directory)}


def ran(command: list[str], directory: Path) -> str:
    """What an example prints; it must succeed, and complain of nothing."""
    result = subprocess.run(
        command,
        cwd=directory,
        env=environment(directory),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert not result.stderr
    return result.stdout


# --- Examples -----------------------------------------------------------------------------------------


@pytest.mark.slow
@each_document
def test_examples_run_in_order_and_print_what_the_document_says(document: Path, tmp_path: Path) -> None:
    output = ""
    for number, (language, code) in enumerate(blocks(document)):
        if language == "text":
            assert output == code
            output = ""
        elif language in _INTERPRETERS:
            program = tmp_path / f"example{number}.{language}"
            program.write_text(code, "utf-8")
            output += ran([*_INTERPRETERS[language], str(program)], tmp_path)
        else:
            assert language in {"console", *_TESTED_ELSEWHERE}, "nobody runs it"
    assert not output


def without_times(text: str) -> list[str]:
    for pattern, word in _TIMES:
        text = pattern.sub(word, text)
    return text.splitlines()


@pytest.mark.slow
@each_document
def test_console_prints_what_the_document_says_but_for_the_times(document: Path, tmp_path: Path) -> None:
    for number, (language, session) in enumerate(blocks(document)):
        if language != "console":
            continue
        home = tmp_path / str(number)
        home.mkdir()
        # One shell runs all of them, because a command may set a variable for the next. Like a terminal, the
        # shell goes on when a command fails: `run` has the status of its command.
        commands = [line[2:] for line in session.splitlines() if line.startswith("$ ")]
        script = "".join(f"echo {shell_word(f'$ {command}')}\n{command}\n" for command in commands)
        printed = ran(["bash", "-c", f"{script}exit 0"], home)
        assert commands
        assert without_times(printed.replace(str(home), "/home/me")) == without_times(session)


def shell_word(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def test_documents_show_examples() -> None:
    languages = [language for document in DOCUMENTS for language, _ in blocks(document)]
    assert languages.count("python") >= 7
    assert languages.count("console") >= 2
    assert {"bash", *_TESTED_ELSEWHERE} <= set(languages)


# --- What they name -----------------------------------------------------------------------------------


def links(document: Path) -> Iterator[tuple[Path, str]]:
    """The relative links of a document: where each leads to, and its anchor."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        assert ":" not in target, f"{target} is not relative"
        path, _, anchor = target.partition("#")
        yield (document.parent / path).resolve() if path else document, anchor


def anchors(document: Path) -> list[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@each_document
def test_links_lead_to_files_and_headings_that_exist(document: Path) -> None:
    for path, anchor in links(document):
        assert path.is_relative_to(ROOT)
        assert path.exists(), path
        if anchor:
            assert anchors(path).count(anchor) == 1, f"{path}#{anchor}"


def test_every_document_can_be_reached_from_the_readme() -> None:
    linked = {path for path, _ in links(ROOT / "README.md")}
    assert set(DOCUMENTS) - {ROOT / "README.md"} <= linked


def test_link_to_a_heading_with_code_and_commas_is_that_of_github(tmp_path: Path) -> None:
    document = tmp_path / "README.md"
    document.write_text("# `run`, a *command*\n\n    # no heading\n\n```bash\n# none\n```\n\n## A_b c-d\n")
    assert anchors(document) == ["run-a-command", "a_b-c-d"]


@each_document
def test_files_of_the_project_that_a_document_names_exist(document: Path) -> None:
    text = document.read_text("utf-8")
    for name in re.findall(r"(?<![\w/.])(?:src|tests|scripts)/[\w./]*\w", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`(?!tests/)((?:\w+/)*test_\w+\.py)`", text):
        assert (ROOT / "tests" / name).exists(), name


def test_every_folder_and_module_of_the_package_is_in_its_document() -> None:
    table = (
        (PACKAGE / "README.md").read_text("utf-8").partition("| folder or module |")[2].partition("\n\n")[0]
    )
    named = set(re.findall(r"`([\w]+(?:/|\.py))`", table))
    there = {f"{path.name}/" for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    there |= {path.name for path in PACKAGE.glob("*.py") if not path.name.startswith("__")}
    assert named == there


def test_every_record_method_is_in_the_table_of_calls() -> None:
    text = (PACKAGE / "README.md").read_text("utf-8")
    section = text.partition("\n### The calls\n")[2].partition("\n### ")[0]
    assert set(re.findall(r"`(record_\w+)\(", section)) == {
        name for name in dir(Recorder) if name.startswith("record_")
    }


def test_every_row_of_the_benchmarks_is_described() -> None:
    document = (ROOT / "scripts" / "README.md").read_text("utf-8")
    assert [row for row in ROWS if f"`{row}`" not in document] == []


def test_every_script_is_described() -> None:
    document = (ROOT / "scripts" / "README.md").read_text("utf-8")
    scripts = {path.name for path in (ROOT / "scripts").iterdir() if path.is_file()} - {"README.md"}
    assert {name for name in scripts if f"| `scripts/{name}` |" not in document} == set()


def test_readme_takes_five_minutes() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 160


def test_changelog_has_the_version_and_the_versions_of_the_formats() -> None:
    changelog = (PACKAGE / "CHANGELOG.md").read_text("utf-8")
    assert f"\n## [{m31a_mp.__version__}]" in changelog
    assert f"\n| segment | {segment_format.VERSION} |" in changelog


@each_document
def test_document_never_says_whoever(document: Path) -> None:
    assert "whoever" not in prose(document).lower()


# --- The bytes of a segment ---------------------------------------------------------------------------

Field = tuple[int, int | None]


def table_of_the_segment(text: str) -> dict[Field, str]:
    """The rows of the table: offset and size, and what stands there. The last one goes to the end."""
    table = text.partition("| offset | bytes | content |\n|---|---|---|\n")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (\d+) \| (\d+|to the end) \| (.+) \|$", table, re.MULTILINE)
    assert len(rows) == len(table.splitlines())
    return {(int(offset), int(size) if size.isdigit() else None): content for offset, size, content in rows}


def fields(offset: int, form: struct.Struct) -> Iterator[Field]:
    """Where the values of a struct stand, and their sizes; padding is none."""
    for count, code in re.findall(r"(\d*)([a-zA-Z])", form.format):
        size = struct.calcsize(f"={count}{code}")
        if code == "s":
            yield offset, size
        elif code != "x":
            each = struct.calcsize(f"={code}")
            yield from ((at, each) for at in range(offset, offset + size, each))
        offset += size


def fields_in_the_code() -> list[Field]:
    return [
        *fields(0, segment_format._START),
        *fields(segment_format._IDENTITY_OFFSET, segment_format._IDENTITY),
        *fields(segment_format.DRAINED_OFFSET, segment_format.DRAINED),
        (segment_format.FINISHED_OFFSET, len(segment_format.FINISHED)),
        *((8 * (segment_format.DROPPED_WORD + 2 * i), 16) for i in range(len(DROP_REASONS))),
        (segment_format.DATA_OFFSET, None),
    ]


@pytest.fixture
def documented() -> dict[Field, str]:
    return table_of_the_segment((PACKAGE / "README.md").read_text("utf-8"))


def test_table_of_the_segment_has_the_offsets_and_sizes_of_the_code(documented: dict[Field, str]) -> None:
    assert list(documented) == fields_in_the_code()


def test_header_has_at_each_offset_what_the_table_says(documented: dict[Field, str]) -> None:
    writer, first, size = "0123456789abcdef", 7, 16384
    header = segment_format.header(writer, first, size)
    who = process.current()
    (crc,) = [content for content in documented.values() if content.startswith("CRC-32")]
    start, end = map(int, re.findall(r"\d+", crc.removeprefix("CRC-32")))
    check = segment_format.drained_words(segment_format.DATA_OFFSET, first)[2]
    values: dict[str, int | bytes] = {
        "magic": segment_format.MAGIC,
        "version": segment_format.VERSION,
        "CRC-32": zlib.crc32(header[start:end]),
        "writer id": writer.encode(),
        "number of the first record": first,
        "size": size,
        "the writer's process: pid namespace": who.namespace,
        "the writer's process: pid": who.pid,
        "the writer's process: start": who.started,
        "the writer's process: boot id": who.boot_id.encode().ljust(36, b"\0"),
        "drained: records before this offset": segment_format.DATA_OFFSET,
        "drained: number": first,
        "drained: check": check,
        "NULs": bytes(8),
        "records dropped": bytes(16),
    }
    for (offset, length), content in documented.items():
        if length is None:
            continue
        (value,) = [values[name] for name in values if content.startswith(name)][:1]
        stored = header[offset : offset + length]
        assert stored == (value if isinstance(value, bytes) else value.to_bytes(length, sys.byteorder)), (
            content
        )


def test_words_of_the_segment_in_the_table_are_those_of_the_code(documented: dict[Field, str]) -> None:
    assert f"`{segment_format.MAGIC.decode()}`" in documented[0, 8]
    assert documented[8, 4] == f"version, {segment_format.VERSION}"
    words = documented[segment_format.FINISHED_OFFSET, 8]
    assert f"`{segment_format.FOLLOWED.decode()}`" in words
    assert f"`{segment_format.FINISHED.decode()}`" in words
    dropped = [content for content in documented.values() if content.startswith("records dropped")]
    for reason, content in zip(DROP_REASONS, dropped, strict=True):
        assert f"`{reason}`" in content


def test_table_with_a_wrong_offset_or_size_differs_from_the_code(documented: dict[Field, str]) -> None:
    text = (PACKAGE / "README.md").read_text("utf-8")
    for offset, size in documented:
        for wrong in (f"| {offset + 1} | {size}", f"| {offset} | 9"):
            row = f"| {offset} | {'to the end' if size is None else size} |"
            assert text.count(row) == 1
            changed = table_of_the_segment(text.replace(row, f"{wrong} |".replace("None", "to the end")))
            assert list(changed) != fields_in_the_code()
