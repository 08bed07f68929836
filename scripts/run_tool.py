#!/usr/bin/env python3
"""Run one command inside a session: run_tool.py SESSION_DIR -- COMMAND [ARGUMENT...]

Does what `m31a-mp run` does, and needs no click and no rich. The command has this program's standard
streams, and its environment names the session, so that a Python program finds it with Recorder.from_env().
The call is recorded under the command's name. The exit status is the command's: 128+N if signal N ended it,
127 if there is no such command, 126 if it cannot be run; 125 if no process could be started.

A session that nobody owns is owned for as long as the command runs, and merged into metrics.json then.
Whatever is wrong with a session, the command runs.
"""

from __future__ import annotations

import os
import sys

from m31a_mp.cli.keeper import end_as
from m31a_mp.cli.wrapped import run_in_session, tell
from m31a_mp.session.paths import Session


def complain(message: str) -> None:
    tell("run_tool", message)


def named(directory: str) -> Session:
    sessions_dir, session_id = os.path.split(os.path.abspath(directory))
    return Session.named(session_id, sessions_dir)


def main() -> int:
    match sys.argv[1:]:
        case [directory, "--", command, *arguments] if command:
            try:
                return end_as(run_in_session([command, *arguments], lambda: named(directory), say=complain))
            except OSError as error:
                complain(f"{command}: {error.strerror}")
                return 125
        case _:
            print(__doc__, file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main())
