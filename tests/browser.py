"""A headless Chromium for tests, over its pipe for developer tools: a message is JSON and a NUL."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")
# The browser reads commands from descriptor 3 and writes answers to descriptor 4. Other shells than Bash take
# no descriptors above 9.
_SHELL = 'exec "$@" 3<&"$COMMANDS" 4>&"$ANSWERS"'
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # which root cannot have
    "--remote-debugging-pipe",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--hide-scrollbars",
    "about:blank",
)


class Page:
    """A page of the browser.

    Attributes:
        events: What the browser told without being asked: the method and the parameters.
    """

    def __init__(self, commands: IO[bytes], answers: IO[bytes]) -> None:
        self._commands, self._answers = commands, answers
        self._number, self._rest, self._of = 0, b"", {}
        self.events: list[tuple[str, dict[str, Any]]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._of = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Make a call, and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters, **self._of}
        self._commands.write(json.dumps(message).encode() + b"\0")
        self._commands.flush()
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                result: dict[str, Any] = answer["result"]
                return result

    def open(self, path: Path, *, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        """Open a file, and wait until it is loaded."""
        self.events.clear()
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.call("Page.navigate", url=path.as_uri())
        while not any(method == "Page.loadEventFired" for method, _ in self.events):
            self._next()

    def ask(self, expression: str) -> Any:
        """Return the value of an expression in JavaScript."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def each(self, selector: str, expression: str) -> list[Any]:
        """Return the value of an expression for each element `e` that a selector finds."""
        found: list[Any] = self.ask(f"[...document.querySelectorAll({selector!r})].map((e) => {expression})")
        return found

    def complaints(self) -> list[str]:
        """List what stands in the console: errors of scripts, refused styles, whatever was logged."""
        told = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [json.dumps(parameters) for method, parameters in self.events if method in told]

    def requested(self) -> list[str]:
        """List the addresses that the page asked for."""
        return [
            parameters["request"]["url"]
            for method, parameters in self.events
            if method == "Network.requestWillBeSent"
        ]

    def picture(self, path: Path) -> None:
        """Write a picture of the whole page."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        data = self.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)[
            "data"
        ]
        path.write_bytes(base64.b64decode(data))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            read = os.read(self._answers.fileno(), 1 << 20)
            assert read, "the browser has ended"
            self._rest += read
        text, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        if "method" in message:
            self.events.append((message["method"], message.get("params", {})))
        return message


@contextlib.contextmanager
def opened() -> Iterator[Page]:
    """Start a browser. Without one, the test is skipped."""
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        pytest.skip(f"needs a Chromium: there is none of {', '.join(_NAMES)}")
    commands, answers = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(prefix="m31a_mp.", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            ["bash", "-c", _SHELL, "bash", program, f"--user-data-dir={profile}", *_OPTIONS],
            env={**os.environ, "COMMANDS": str(commands[0]), "ANSWERS": str(answers[1]), "HOME": profile},
            pass_fds=(commands[0], answers[1]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands[0])
        os.close(answers[1])
        try:
            with open(commands[1], "wb") as to_browser, open(answers[0], "rb") as from_browser:
                page = Page(to_browser, from_browser)
                yield page
                page._of = {}
                page.call("Browser.close")
            process.wait(30)
        finally:
            process.kill()
            process.wait()
