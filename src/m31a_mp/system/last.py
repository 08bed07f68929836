"""Calls at the end of a process."""

from __future__ import annotations

import atexit
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# Such finalizers run when multiprocessing has waited for the processes of this one: they still record.
_PRIORITY = -100

_calls: list[Callable[[], None]] = []
_pid = 0  # the pid of the process whose finalizers make the calls


def at_last(call: Callable[[], None]) -> None:
    """Have a function called at the end of this process.

    A process that `multiprocessing` started calls it, too. No process does that ends by `os._exit`, or that a
    signal kills.

    Args:
        call: The function. It must not raise.
    """
    global _pid  # noqa: PLW0603
    if call not in _calls:
        _calls.append(call)
    process, util = map(sys.modules.get, ("multiprocessing.process", "multiprocessing.util"))
    if process and util and process.parent_process() and _pid != os.getpid():
        _pid = os.getpid()  # such a process ends without running atexit functions
        util.Finalize(None, _make_calls, exitpriority=_PRIORITY)


def _make_calls() -> None:
    for call in _calls:
        call()


def _at_exit() -> None:
    # See `ending`: multiprocessing may wait for its processes later than this.
    util = sys.modules.get("multiprocessing.util")
    if util and not util.is_exiting():
        util.Finalize(None, _make_calls, exitpriority=_PRIORITY)
    else:
        _make_calls()


atexit.register(_at_exit)
