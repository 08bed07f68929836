"""The thread that sends the metrics of a session after each flush. It needs the extra `otlp`."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from queue import Empty, SimpleQueue

from m31a_mp.exports.otlp import Exporter
from m31a_mp.model import SessionMetrics
from m31a_mp.system.log import warn

# The longest wait of `stop()` for the last state to be sent. A receiver that is gone costs no more.
_JOIN_SECONDS = 1.0


class Sender:
    """Sends the latest metrics in a daemon thread, so that nobody waits for the receiver.

    States that come while the thread sends are passed over, except for the latest. The thread ends when the
    object is gone. A forked child does not have the thread.
    """

    def __init__(self, directory: str) -> None:
        """Start the thread.

        Args:
            directory: The session's directory, for a hint.

        Raises:
            RuntimeError: The system refuses another thread.
        """
        # Finalizers and signal handlers may put into a SimpleQueue at any point.
        self._news: SimpleQueue[bool] = SimpleQueue()
        self._latest: deque[SessionMetrics] = deque(maxlen=1)
        self._last: SessionMetrics | None = None
        self._directory = directory
        self._is_told = threading.Event()
        exporter, end = Exporter(), self._news.put
        self._endpoint = exporter.endpoint
        itself = weakref.ref(self, lambda _: end(False))
        arguments = (exporter, self._latest, self._news, self._is_told, itself)
        self._thread = threading.Thread(target=_send, args=arguments, name="m31a_mp otlp", daemon=True)
        self._thread.start()

    def put(self, metrics: SessionMetrics) -> None:
        """Have a state sent. Returns at once."""
        self._last = metrics
        self.put_again()

    def put_again(self) -> bool:
        """Have the last state sent once more: a receiver forgets what is not sent for some minutes.

        Returns:
            Whether there is such a state.
        """
        if self._last is None:
            return False
        self._latest.append(self._last)
        self._news.put(True)
        return True

    def end(self) -> None:
        """Have the thread end when it has sent the latest state. Wait for it, for at most a second.

        If that is not enough, warn: the program may end before the thread has sent the state.
        """
        self._news.put(False)
        if self._thread.ident == threading.get_ident():
            return
        self._thread.join(_JOIN_SECONDS)
        if self._thread.is_alive() and not self._is_told.is_set():
            self._is_told.set()
            warn(
                "the end of session %s may not be exported: %s did not take it in time. "
                "To export it: m31a-mp export otlp %s",
                self._directory,
                self._endpoint,
                self._directory,
            )


def _send(
    exporter: Exporter,
    latest: deque[SessionMetrics],
    news: SimpleQueue[bool],
    is_told: threading.Event,
    _: weakref.ref[Sender],
) -> None:
    goes_on = True
    while goes_on:
        goes_on = _all_of(news)
        if latest:
            try:
                exporter.export(latest.popleft())
                is_told.clear()
            except Exception as error:
                if not is_told.is_set() and warn("metrics were not exported: %s", error):
                    is_told.set()


def _all_of(news: SimpleQueue[bool]) -> bool:
    """Wait for news, and return whether none of them is the end."""
    goes_on = news.get()
    while goes_on:
        try:
            goes_on = news.get_nowait()
        except Empty:
            return True
    return False
