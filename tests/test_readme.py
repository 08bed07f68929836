"""The examples of the README run, and print what it says."""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INTERPRETERS = {"python": [sys.executable], "bash": ["bash", "-eu"]}


def test_examples_run_in_order_and_print_what_the_readme_says(tmp_path: Path) -> None:
    blocks = _BLOCK.findall(README.read_text("utf-8"))
    output = ""
    ran = 0
    for language, code in blocks:
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
    assert ran >= 5
    assert not output
