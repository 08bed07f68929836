"""Calls at the end of a process."""

from __future__ import annotations

import atexit
import os
import sys

from m31a_mp.system.process import LAST, after_children

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

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
        sys.modules["multiprocessing.util"].Finalize(None, _make_calls, exitpriority=LAST)


def _make_calls() -> None:
    for call in _calls:
        call()


atexit.register(after_children, _make_calls)
