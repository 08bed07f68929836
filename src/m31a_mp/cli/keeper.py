"""One command, run as a shell runs it, and recorded whatever becomes of its runner.

    caller  ->  runner  ->  keeper  ->  command

The runner is the process that the caller knows. The keeper is its forked child: it waits for the command
and records the call, so that a `kill -9` of the runner, at whatever moment, does not take the record.
Streams are inherited. All three are in one process group: what the terminal sends, each of them gets, and
the command answers for all. What somebody sends to the runner alone is handed on.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from errno import ENOEXEC

from m31a_mp.collector import Collector
from m31a_mp.errors import MetricsError
from m31a_mp.metrics.compactor import compact
from m31a_mp.recorder import Recorder
from m31a_mp.system.calls import new_call
from m31a_mp.timing import error_of

CANNOT_EXECUTE = 126
NOT_FOUND = 127
SIGNAL_BASE = 128
"""A command that signal N ended has the exit status 128+N."""
INTERRUPTED = -int(signal.SIGINT)
"""What stands for the status of a command that SIGINT ended."""

_HANDED_ON = frozenset(
    {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
)
_STOPS = frozenset({signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})
_AWAITED = _HANDED_ON | _STOPS | {signal.SIGCHLD}

# What Python ignores; a command expects to be ended by them.
_RESTORED = [signal.SIGPIPE, signal.SIGXFSZ]


class BlockedSignals:
    """Signals are held back from here on: they are asked for, and interrupt nothing."""

    def __init__(self) -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if ignored, as some parents leave it, nothing is told
        self.before = signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)

    @staticmethod
    def ended_by() -> int | None:
        """The signal that would have ended this process by now, if one came."""
        while received := signal.sigtimedwait(_HANDED_ON, 0):
            if signal.getsignal(received.si_signo) is not signal.SIG_IGN:
                return received.si_signo
        return None


def run_recorded(  # noqa: PLR0913  # all of them by name
    recorder: Recorder,
    command: list[str],
    *,
    tool: str,
    phase: str | None,
    held: BlockedSignals,
    complain: Callable[[str], None],
    recorded: Callable[[Exception | None], None],
) -> int:
    """Run a command and record the call; with a phase also that it was entered, its duration and outcome.

    Args:
        recorder: Where to record. If it is the session's owner and this process is killed, the keeper
            merges the session in its place.
        command: The command and its arguments.
        tool: The name to record the call under.
        phase: The phase that the command is.
        held: The signals that this process held back so far.
        complain: Told in words what is wrong with the command.
        recorded: Called in the keeper when the call is recorded, with what a record raised, if one did.

    Returns:
        The exit status as a shell tells it; `INTERRUPTED` if SIGINT ended the command, see `end_as`.

    Raises:
        OSError: There can be no more processes; nothing was run.
    """
    runner = os.getpid()
    keeper = os.fork()
    if not keeper:
        status = CANNOT_EXECUTE
        try:
            records = _Records()
            if phase is not None:
                records.make(recorder.record_phase_transition, phase)
            call = new_call()
            records.make(recorder.record_tool_started, tool, call)
            started = time.monotonic_ns()
            ended = _keep(command, {**os.environ, **recorder.env()}, runner, held, complain)
            status = _as_told(ended)
            duration_ms = (time.monotonic_ns() - started) // 1_000_000
            success, error = status == 0, error_of(ended)
            records.make(recorder.record_tool_call, tool, success, duration_ms, error, call)
            if phase is not None:
                records.make(recorder.record_phase_duration, phase, duration_ms, success)
            records.make(recorder.bring_out)
            recorded(records.error)
            if os.getppid() != runner:
                _merge_instead(recorder)
        except BaseException as error:
            complain(f"{command[0]}: {error!r}")
        finally:
            os._exit(end_as(status))
    status = _wait(keeper)
    # SIGINT is blocked in the keeper: it only ends by that as its command did.
    if status < 0 and status != INTERRUPTED:
        complain(f"the process that waits for {command[0]} was killed; how it ended may not be recorded")
    return _as_told(status)


def end_as(status: int) -> int:
    """End this process as its command ended, if that was by SIGINT.

    A shell ends its script at Ctrl-C only if the program that ran died of it, too.

    Args:
        status: What `run_recorded` returned.

    Returns:
        The exit status as a shell tells it, where the process did not end.
    """
    if status == INTERRUPTED:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.raise_signal(signal.SIGINT)
    return _as_shell(status)


class _Records:
    """The records of a call. None of them may take the command's status.

    Attributes:
        error: What the first one raised that raised something.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None

    def make(self, record: Callable[..., None], *arguments: object) -> None:
        """Make one."""
        try:
            record(*arguments)
        except Exception as error:
            self.error = self.error or error


def _merge_instead(recorder: Recorder) -> None:
    recorder.stop()  # of a forked child: gives up its own shared memory
    if isinstance(recorder, Collector) and recorder.directory:
        with suppress(MetricsError, OSError):  # then the next owner does it
            compact(os.path.dirname(recorder.directory), recorder.session_id)


def _keep(
    command: list[str],
    environment: Mapping[str, str],
    runner: int,
    held: BlockedSignals,
    complain: Callable[[str], None],
) -> int:
    """Run the command; returns its exit status, or minus the number of the signal that ended it."""
    try:
        return _wait(_start(command, environment, held), runner)
    except OSError as error:
        complain(f"{command[0]}: {error.strerror}")
        return NOT_FOUND if isinstance(error, FileNotFoundError) else CANNOT_EXECUTE


def _start(command: list[str], environment: Mapping[str, str], held: BlockedSignals) -> int:
    try:
        return os.posix_spawnp(command[0], command, environment, setsigmask=held.before, setsigdef=_RESTORED)
    except OSError as error:
        if error.errno != ENOEXEC:
            raise
    # A script that does not say what is to read it: a shell does, as for execvp(3).
    script = ["/bin/sh", shutil.which(command[0]) or command[0], *command[1:]]
    return os.posix_spawn(script[0], script, environment, setsigmask=held.before, setsigdef=_RESTORED)


def _wait(pid: int, sender: int | None = None) -> int:
    """Wait for a child, hand on the signals that come meanwhile, and stop when it is stopped.

    Args:
        pid: The child.
        sender: Whose signals are handed on; None: everybody's. The keeper takes them from the runner only,
            for what is sent to all processes of a name or of a group would come twice.

    Returns:
        Its exit status, or minus the number of the signal that ended it.
    """
    while True:
        received = signal.sigwaitinfo(_AWAITED)
        if received.si_signo != signal.SIGCHLD:
            # What the terminal sends, the child gets as well. It is the kernel that speaks then, and its
            # codes are above 0 (sigaction(2)).
            if received.si_code <= 0 and sender in (None, received.si_pid):
                _send(pid, received.si_signo)
            continue
        ended, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
        if not ended:
            continue
        if not os.WIFSTOPPED(status):
            return os.waitstatus_to_exitcode(status)
        if os.WSTOPSIG(status) in _STOPS:  # not SIGSTOP: who sends that to the child means the child
            _stop_too(pid)


def _stop_too(pid: int) -> None:
    """Stop as Ctrl-Z stops a program, so that a shell takes its terminal back; then go on with the child."""
    signal.raise_signal(signal.SIGTSTP)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTSTP})  # here it stops
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTSTP})
    _send(pid, signal.SIGCONT)


def _send(pid: int, signal_number: int) -> None:
    with suppress(OSError):  # it may run as somebody else, like sudo
        os.kill(pid, signal_number)


def _as_told(status: int) -> int:
    """The status as `run_recorded` tells it: as a shell does, but for `INTERRUPTED`."""
    return status if status == INTERRUPTED else _as_shell(status)


def _as_shell(status: int) -> int:
    return SIGNAL_BASE - status if status < 0 else status
