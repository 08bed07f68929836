"""Forks, signal handlers and their exceptions: their effects on this library, and the countermeasures.

**A fork copies memory and shares open files.** A child has the locks of its parent (flock(2) belongs to the
open file), its mapped segments, and the state of interrupted calls of other threads. A child that kept a lock
would hold it long after the parent died. A child that stored into the parent's segment would overwrite the
parent's records. Each module with shared state therefore registers one function with `after_in_child`, which
releases that state. The functions run in the order of `STAGES`: open files first, because other processes
wait for their locks; then the identity of the process; last the modules that record and merge.

**C code may fork without running the hooks of Python.** `mark` is a page that the kernel zeroes in every
forked child. Records, locks and operations read it first. The check takes a fiftieth of a record's time.

**A thread may be opening a file when another thread forks.** The child has the file without knowing it. A
caller that locks a file therefore reads before the open how many forks have `ended`, and takes the lock only
if no more forks have `begun`.

**A signal handler runs between any two lines of Python, and may raise, fork, or record.** A handler does not
run inside C code. The consequences:

- The hooks that count forks are C functions: no handler can interrupt them. A missed count would keep this
  process from its locks forever.
- The hooks of the child may be cut short, because Python swallows an exception there and continues. Every
  hook can be repeated. `mark` is set when all hooks have run. Until then, the next record, lock or operation
  runs them again.
- A lock that must be released uses the `with` of a C type, a `FileIO` or an `RLock`, around a callback. A
  `finally` or a context manager in Python can be interrupted before its first line.
- A handler that forks in the middle of an operation, and returns in the child, would do the rest of the
  operation twice. The operation knows its `generation`. In the child, the next step raises `ForkedError`.
- A handler cannot wait for the turn of the call that it interrupted. The handler's call is refused with
  `InterruptedCallError`, or is made when the turn is over (`turn.py`).

Two approaches do not work. Blocking signals around each call takes a system call each, and covers only one
thread. A lock in memory around a fork stays locked in the child: the thread that holds it is not there.
"""

from __future__ import annotations

import mmap
import os
from _collections import deque  # type: ignore[import-not-found]  # without what `collections` imports
from _functools import partial  # type: ignore[import-not-found]
from itertools import count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

STAGES = ("files", "locks", "process", "segments")
"""The order in which a forked child releases the state of its parent."""

generation = 0
"""The number of forks between the first process and this one."""

_MADV_WIPEONFORK = 18  # linux/mman.h, since Linux 4.14; Python has no name for it
_ATTEMPTS = 10

_in_child: dict[str, list[Callable[[], object]]] = {stage: [] for stage in STAGES}

# The counts of begun and ended forks of this process. C functions count in a deque of one item.
_begun: list[int] = deque([0], maxlen=1)
_ended: list[int] = deque([0], maxlen=1)
_begin = map(_begun.append, count(1)).__next__
_end = map(_ended.append, count(1)).__next__


def begun() -> int:
    """Return how many forks this process has begun."""
    return _begun[0]


def ended() -> int:
    """Return how many forks this process has ended. A running fork may copy any open file."""
    return _ended[0]


def after_in_child(stage: str) -> Callable[[Callable[[], object]], Callable[[], object]]:
    """Register a function that runs in every forked child, before other code of the child.

    Args:
        stage: One of `STAGES`.

    Returns:
        A decorator. The function may be called more than once for a fork.
    """

    def register(hook: Callable[[], object]) -> Callable[[], object]:
        _in_child[stage].append(hook)
        return hook

    return register


def came_through() -> None:
    """Release the state of the parent in a forked child."""
    global generation  # noqa: PLW0603
    if not mark[1]:  # count each fork once: without calls between these lines, no handler interrupts them
        generation += 1
        mark[1] = 1
    while _ended[0] != _begun[0]:  # forks that other threads had begun end only in the parent
        _end()
    interrupt = None
    for stage in STAGES:
        for hook in _in_child[stage]:
            interrupt = _insist(hook) or interrupt
    mark[0] = 1  # set last: after an interrupt, the next record runs all of this again
    if interrupt:
        raise interrupt


def settle() -> None:
    """Release the state of the parent, if this is a forked child that has not done so."""
    if not mark[0]:
        came_through()


def _insist(hook: Callable[[], object]) -> BaseException | None:
    """Run a hook to its end, despite exceptions of signal handlers. Return the last exception."""
    interrupt: BaseException | None = None
    for _ in range(_ATTEMPTS):
        if mark[0]:
            return interrupt  # a handler recorded meanwhile, and ran all hooks
        try:
            hook()
        except BaseException as error:
            interrupt = error
        else:
            return interrupt
    return interrupt


def _make_mark() -> mmap.mmap | bytearray:
    """Make two bytes that are 1, but 0 in a forked child; Python's hook resets them if the kernel cannot."""
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        page.madvise(_MADV_WIPEONFORK)
    except OSError:
        return bytearray(b"\1\1")
    page[:2] = b"\1\1"
    return page


mark = _make_mark()

os.register_at_fork(
    before=_begin,
    after_in_parent=_end,
    after_in_child=partial(mark.__setitem__, slice(0, 2), b"\0\0"),
)
os.register_at_fork(after_in_child=came_through)
