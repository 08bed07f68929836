"""The ids of the calls that this process makes."""

from __future__ import annotations

import os
from itertools import count

from m31a_mp.kinds.call import Caller
from m31a_mp.system import fork, process
from m31a_mp.system.fork import mark

# The text before the number of a call, the numbers, and the text behind; None before the first call.
_ids: tuple[str, count[int], str] | None = None


def new_call() -> str:
    """Return a call id that is unique among all processes, now and later."""
    global _ids  # noqa: PLW0603
    while True:
        if not mark[0]:
            fork.came_through()
        generation, ids = fork.generation, _ids
        if ids is None:
            _ids = ids = _new_ids()
        before, numbers, behind = ids
        call = f"{before}{next(numbers)}{behind}"
        if (
            generation == fork.generation
        ):  # else a signal handler forked meanwhile, and this id is the parent's
            return call


def _new_ids() -> tuple[str, count[int], str]:
    me = process.current()
    caller = Caller(me.pid, me.started, me.namespace, me.boot_id, os.uname().nodename)
    before, behind = caller.ids(os.urandom(8).hex())
    return before, count(1), behind


@fork.after_in_child("process")
def _forget_parent() -> None:
    global _ids  # noqa: PLW0603
    _ids = None
