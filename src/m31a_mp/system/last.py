"""Calls at the end of a process."""

from __future__ import annotations

import atexit
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# multiprocessing runs finalizers of a negative priority when it has waited for its processes.
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
    # A thread may be importing these modules. They are whole in a process that multiprocessing started.
    parent = getattr(sys.modules.get("multiprocessing.process"), "parent_process", None)
    if parent and parent() and _pid != os.getpid():
        _pid = os.getpid()  # such a process ends without running atexit functions
        sys.modules["multiprocessing.util"].Finalize(None, _make_calls, exitpriority=_PRIORITY)


def _make_calls() -> None:
    for call in _calls:
        call()


def after_children(call: Callable[[], None]) -> None:
    """Make a call at the end of the program, when multiprocessing has waited for its processes.

    This is for `atexit`, which runs functions in reverse order: if multiprocessing registered its function
    earlier, it waits for its processes later, and they still record.
    """
    util = sys.modules.get("multiprocessing.util")
    if util and not util.is_exiting():
        util.Finalize(None, call, exitpriority=_PRIORITY)
    else:
        call()


atexit.register(after_children, _make_calls)
