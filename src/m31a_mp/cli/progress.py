"""Progress bars for long work on a terminal. A pipe gets none."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from m31a_mp.cli.tables import console
from m31a_mp.inspection.status import Reading, reading
from m31a_mp.session.paths import Session

# The delay before the bar appears. Shorter work needs no bar.
_PATIENCE_SECONDS = 0.5
_POLL_SECONDS = 0.1


@contextmanager
def reading_progress(session: Session, what: str) -> Iterator[None]:
    """Show a bar while this thread reads the journals of a session."""
    with _progress(what, lambda: reading(session)):
        yield


@contextmanager
def counting_progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a bar while `total` items are processed. Yield a function to call after each."""
    done = 0

    def count() -> None:
        nonlocal done
        done += 1

    with _progress(what, lambda: Reading(done, total)):
        yield count


@contextmanager
def _progress(what: str, ask: Callable[[], Reading]) -> Iterator[None]:
    screen = console(stderr=True)
    if not screen.is_terminal or screen.is_dumb_terminal:
        yield
        return
    ended = threading.Event()
    columns = (TextColumn(what), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn())
    # A separate thread draws, because the work is one long call. The bar disappears at the end.
    bar = Progress(*columns, console=screen, transient=True, auto_refresh=False)
    thread = threading.Thread(target=_draw, args=(bar, ask, ended), daemon=True)
    with _signals_raised():
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


class EndedError(KeyboardInterrupt):
    """A signal ends the program, like Ctrl-C."""

    def __init__(self, signal_number: int) -> None:
        super().__init__()
        self.signal_number = signal_number


@contextmanager
def _signals_raised() -> Iterator[None]:
    """Raise on signals that end the program: the bar must not stay on the terminal, nor the cursor hidden."""

    def end(signal_number: int, _: object) -> None:
        raise EndedError(signal_number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _draw(bar: Progress, ask: Callable[[], Reading], ended: threading.Event) -> None:
    if ended.wait(_PATIENCE_SECONDS):
        return
    with suppress(Exception), bar:  # an error of the bar must not stop the work
        task = bar.add_task("")
        while True:
            now = ask()
            bar.update(task, completed=now.done, total=now.total or None)
            bar.refresh()
            if ended.wait(_POLL_SECONDS):
                return
