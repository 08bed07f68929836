"""Forks: the one place where this library hears of them.

A forked child shares the open files and the memory that its parent maps, and has copies of everything else:
each module that keeps such things registers a hook that lets go of them in the child. The hooks run in the
order in which they were registered, which is that of the imports: what others build on comes first.

C code may fork without running the hooks of Python. A page that the kernel empties in every forked child
tells of such a fork: `mark[0]` is 0 until `came_through()` has run the hooks. Reading it costs a fiftieth of
a record.
"""

from __future__ import annotations

import mmap
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_MADV_WIPEONFORK = 18  # linux/mman.h, since Linux 4.14; Python has no name for it

generation = 0
"""How many forks lie between this process and the first one."""

begun = ended = 0
"""How many forks this process has begun and ended: one that is under way may take a copy of any open file."""

_in_child: list[Callable[[], None]] = []


def after_in_child(hook: Callable[[], None]) -> Callable[[], None]:
    """Have a function called in every forked child, before anything else of the child runs."""
    _in_child.append(hook)
    return hook


def came_through() -> None:
    """In a forked child: run the hooks. Also for a fork of C code, when `mark` tells of it."""
    global generation, ended  # noqa: PLW0603  # read by the modules that register hooks
    mark[0] = 1
    generation += 1
    ended = begun
    for hook in _in_child:
        hook()


def _before() -> None:
    global begun  # noqa: PLW0603
    begun += 1


def _after_in_parent() -> None:
    global ended  # noqa: PLW0603
    ended += 1


def _make_mark() -> mmap.mmap | bytearray:
    """A byte that is 1, and 0 in a forked child; where the kernel cannot do that, it stays 1."""
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        page.madvise(_MADV_WIPEONFORK)
    except OSError:
        return bytearray(b"\1")
    page[0] = 1
    return page


mark = _make_mark()

os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=came_through)
