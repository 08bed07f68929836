"""The ids of the calls that this process makes."""

from __future__ import annotations

import os
from itertools import count

from m31a_mp.kinds.call import Caller
from m31a_mp.system import fork, process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# Makes the next id of this process; None before the first id.
_next: Callable[[], str] | None = None


def new_call() -> str:
    """Return a call id that is unique among all processes, now and later."""
    global _next  # noqa: PLW0603
    while True:
        fork.settle()
        generation, make = fork.generation, _next
        if make is None:
            _next = make = _ids()
        call = make()
        if (
            generation == fork.generation
        ):  # else a signal handler forked meanwhile, and this id is the parent's
            return call


def _ids() -> Callable[[], str]:
    me = process.current()
    caller = Caller(me.pid, me.started, me.namespace, me.boot_id, os.uname().nodename)
    before, behind = caller.ids(os.urandom(8).hex())
    numbers = count(1)
    return lambda: f"{before}{next(numbers):x}{behind}"


@fork.after_in_child("process")
def _forget_parent() -> None:
    global _next  # noqa: PLW0603
    _next = None
