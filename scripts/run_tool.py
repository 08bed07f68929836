#!/usr/bin/env python3
"""Run one command inside a session: run_tool.py SESSION_DIR -- COMMAND [ARGUMENT...]

The command has this program's standard streams, and its environment names the session, so that a Python
program finds it with Recorder.from_env(). The call is recorded under the command's name. The exit status
is the command's: 128+N if signal N ended it, 127 if there is no such command, 126 if it cannot be run.

A session that nobody owns is owned for as long as the command runs, and merged into metrics.json then.
Whatever is wrong with a session, the command runs.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time

from m31a_mp import Collector, MetricsError, Recorder, SessionOwnedError, attach

FORWARDED = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM}
NAME_BYTES = 255  # what a file system allows a command; its name in the session is no longer


def open_session(directory: str) -> Recorder:
    """Become the owner of the session, or else attach to it."""
    sessions_dir, session_id = os.path.split(os.path.abspath(directory))
    try:
        return Collector(session_id, sessions_dir)
    except SessionOwnedError:
        pass
    except (MetricsError, OSError) as error:
        complain(f"this call waits for the session's next owner to count it: {error}")
    return attach(session_id, sessions_dir)


def record_run(recorder: Recorder, command: list[str]) -> int:
    """Run a command, record the call, return its exit status."""
    started = time.monotonic_ns()
    status = run(command, {**os.environ, **recorder.env()})
    duration_ms = (time.monotonic_ns() - started) // 1_000_000
    recorder.record_tool_call(tool_name(command[0]), status == 0, duration_ms)
    return status


def tool_name(command: str) -> str:
    name = os.fsencode(os.path.basename(command) or command)
    return name[:NAME_BYTES].decode(errors="replace")


def run(command: list[str], environment: dict[str, str]) -> int:
    """Run a command with the streams of this process; returns its exit status as a shell would."""
    # From here on signals wait until they are asked for. A handler could come too early, when there is no
    # child yet, or too late, when its pid is somebody else's.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*FORWARDED, signal.SIGCHLD})
    try:
        pid = os.posix_spawnp(
            command[0], command, environment, setsigmask=before, setsigdef=[signal.SIGPIPE, signal.SIGXFSZ]
        )
    except OSError as error:
        complain(f"{command[0]}: {error.strerror}")
        return 127 if isinstance(error, FileNotFoundError) else 126
    status = os.waitstatus_to_exitcode(wait(pid))
    return 128 - status if status < 0 else status


def wait(pid: int) -> int:
    """Wait for a child, and hand on the signals that this process gets meanwhile."""
    while True:
        received = signal.sigwaitinfo({*FORWARDED, signal.SIGCHLD})
        # What the terminal sends goes to the child as well; twice would be once too often. It is the
        # kernel that speaks then, and its codes are above 0 (sigaction(2)).
        if received.si_signo != signal.SIGCHLD and received.si_code <= 0:
            os.kill(pid, received.si_signo)
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status


def complain(message: str) -> None:
    print(f"run_tool: {message}", file=sys.stderr)


def main() -> int:
    logging.basicConfig(format="run_tool: %(message)s")  # what the library warns of
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if ignored, as some parents leave it, nothing is told
    match sys.argv[1:]:
        case [directory, "--", command, *arguments] if command:
            try:
                recorder = open_session(directory)
            except ValueError as error:
                complain(str(error))
                return 2
            with recorder:
                return record_run(recorder, [command, *arguments])
        case _:
            print(__doc__, file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main())
