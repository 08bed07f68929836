"""What a program sees of the library's log: nothing, until it configures logging."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# Whatever there is to log: a summary, a refreshing thread that fails, a last flush that fails, records that
# are dropped.
PROGRAM = """
import sys, time
from pathlib import Path
{configure}
from m31a_mp import Collector, attach, compactor

sessions = Path(sys.argv[1])
with Collector("fine", sessions) as collector:
    collector.record_tool_call("bash", True, 1)

tries = []
def fail(*args, **kwargs):
    tries.append(args)
    raise OSError("on fire")

collector = Collector("broken", sessions, flush_interval=0.05)
compactor.compact_session = fail
while len(tries) < 2:  # when it tries again, what there was to say was said
    time.sleep(0.001)
collector.stop()

(sessions / "file").touch()
attach("file", sessions).record_tool_call("bash", True, 1)
"""


def stderr_of_program(sessions: Path, configure: str) -> str:
    program = PROGRAM.format(configure=configure)
    result = subprocess.run(
        [sys.executable, "-c", program, str(sessions)], check=False, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert not result.stdout
    return result.stderr


def test_program_that_configures_no_logging_sees_nothing(sessions: Path) -> None:
    assert stderr_of_program(sessions, "") == ""


def test_program_that_only_imports_logging_sees_nothing(sessions: Path) -> None:
    assert stderr_of_program(sessions, "import logging; logging.getLogger('mine')") == ""


def test_program_that_configures_logging_sees_what_there_is_under_the_name_of_the_library(
    sessions: Path,
) -> None:
    configure = (
        "import logging; logging.basicConfig(level='INFO', format='%(name)s %(levelname)s %(message)s')"
    )
    lines = stderr_of_program(sessions, configure).splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        "m31a_mp INFO session fine",
        "m31a_mp WARNING metrics.json is not fresh, nothing is lost",
        "m31a_mp WARNING the last flush of session broken failed, nothing is lost",
        f"m31a_mp WARNING records are being dropped in {sessions / 'file'}",
    ]


def test_program_that_asks_for_errors_only_sees_nothing(sessions: Path) -> None:
    configure = "import logging; logging.basicConfig(level='ERROR')"
    assert stderr_of_program(sessions, configure) == ""
