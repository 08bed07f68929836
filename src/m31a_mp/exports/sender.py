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

    def __init__(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: The system refuses another thread.
        """
        # Finalizers and signal handlers may put into a SimpleQueue at any point.
        self._news: SimpleQueue[bool] = SimpleQueue()
        self._latest: deque[SessionMetrics] = deque(maxlen=1)
        end = self._news.put
        arguments = (Exporter(), self._latest, self._news, weakref.ref(self, lambda _: end(False)))
        self._thread = threading.Thread(target=_send, args=arguments, name="m31a_mp otlp", daemon=True)
        self._thread.start()

    def put(self, metrics: SessionMetrics) -> None:
        """Have a state sent. Returns at once."""
        self._latest.append(metrics)
        self._news.put(True)

    def end(self) -> None:
        """Have the thread end when it has sent the latest state. Wait for it, for at most a second."""
        self._news.put(False)
        if self._thread.ident != threading.get_ident():
            self._thread.join(_JOIN_SECONDS)


def _send(
    exporter: Exporter, latest: deque[SessionMetrics], news: SimpleQueue[bool], _: weakref.ref[Sender]
) -> None:
    warned = False
    goes_on = True
    while goes_on:
        goes_on = _all_of(news)
        if latest:
            try:
                exporter.export(latest.popleft())
                warned = False
            except Exception as error:
                warned = warned or warn("metrics were not exported: %s", error)


def _all_of(news: SimpleQueue[bool]) -> bool:
    """Wait for news, and return whether none of them is the end."""
    goes_on = news.get()
    while goes_on:
        try:
            goes_on = news.get_nowait()
        except Empty:
            return True
    return False
