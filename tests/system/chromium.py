"""A headless Chromium, driven over its DevTools protocol (https://chromedevtools.github.io/devtools-protocol/)."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import websocket

from tests.system.harness import START_SECONDS, Process, clean_environ, until

#: The program, as Debian's package ``chromium`` installs it.
CHROMIUM = shutil.which("chromium")
_OPTIONS = (
    "--headless=new",
    # Tests run as root, and in containers whose /dev/shm is small.
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    # Nothing leaves this machine.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--no-default-browser-check",
    "--no-first-run",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    # Pages that nobody sees are not slowed down.
    "--disable-background-timer-throttling",
    "--disable-renderer-backgrounding",
    # A port of its own choice, which it writes into a file.
    "--remote-debugging-port=0",
)


class Chromium(Process):
    """One browser, with a profile of its own below ``folder``."""

    def __init__(self, name: str, folder: Path) -> None:
        assert CHROMIUM is not None
        profile = folder / name
        self._port_file = profile / "DevToolsActivePort"
        super().__init__(name, [CHROMIUM, *_OPTIONS, f"--user-data-dir={profile}"], clean_environ(folder), folder)

    def await_ready(self) -> None:
        """Wait until pages can be opened."""
        until(self._ready, f"{self.name} listens", START_SECONDS)

    def _ready(self) -> bool:
        assert self.alive, f"{self.name} ended by itself:\n{self.text()}"
        # Written before it is filled.
        return self._port_file.exists() and len(self._port_file.read_text().split()) > 1

    @contextlib.contextmanager
    def page(self, url: str) -> Iterator[Page]:
        """A page that has loaded ``url``; closed at the end."""
        target = json.loads(self._ask("PUT", "/json/new?about:blank"))
        page = Page(target["webSocketDebuggerUrl"])
        try:
            page.load(url)
            yield page
        finally:
            page.close()
            self._ask("GET", f"/json/close/{target['id']}")

    def _ask(self, method: str, path: str) -> bytes:
        """The answer of the browser's own HTTP server."""
        port = int(self._port_file.read_text().split()[0])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_SECONDS)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status == 200, (answer.status, body)
            return body
        finally:
            connection.close()


class Page:
    """One page, by the address of its debugger."""

    def __init__(self, debugger: str) -> None:
        self._numbers = itertools.count(1)
        # The browser refuses whoever comes from a page.
        self._socket = websocket.create_connection(debugger, timeout=START_SECONDS, suppress_origin=True)

    def load(self, url: str) -> None:
        """Go to ``url`` and wait until it is loaded."""
        answer = self._call("Page.navigate", url=url)
        assert "errorText" not in answer, answer
        until(lambda: self.evaluate("document.readyState") == "complete", f"{url} is loaded")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page, or of the promise that it is."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def close(self) -> None:
        """Let go of the page, which stays open."""
        self._socket.close()

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while (message := json.loads(self._socket.recv())).get("id") != number:
            pass
        assert "result" in message, message
        result: dict[str, Any] = message["result"]
        return result
