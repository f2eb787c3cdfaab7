"""A headless Chromium for tests, driven through chromedriver; tests that need it are skipped where there is none."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
in_a_browser = pytest.mark.skipif(
    BROWSER is None or DRIVER is None,
    reason="no chromium with chromedriver on the PATH (Debian: chromium chromium-driver)",
)

CONTRAST = """
const parts = text => text.match(/[\\d.]+/g).map(Number).map((v, k) => text.startsWith("rgb") && k < 3 ? v / 255 : v);
const light = colour => colour.slice(0, 3).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
  .reduce((sum, v, k) => sum + v * [.2126, .7152, .0722][k], 0);
const behind = node => {
  const colour = parts(getComputedStyle(node).backgroundColor);
  return colour[3] === 0 ? behind(node.parentNode) : colour;
};
return Math.min(...[...document.querySelectorAll(arguments[0])].map(node => {
  const style = getComputedStyle(node), back = light(behind(node));
  const ink = light(parts(node.namespaceURI.endsWith("svg") ? style.fill : style.color));
  return (Math.max(ink, back) + .05) / (Math.min(ink, back) + .05);
}));
"""


class Browser:
    """A headless browser, driven by the WebDriver protocol (https://www.w3.org/TR/webdriver2/) over plain HTTP."""

    ARGUMENTS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900")

    def __init__(self, driver: str) -> None:
        self.session = driver
        options = {"args": self.ARGUMENTS, "binary": BROWSER}
        wanted = {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}
        self.session += "/session/" + self.post("/session", capabilities=wanted)["sessionId"]

    def post(self, path: str, **body: object) -> Any:
        request = urllib.request.Request(
            self.session + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, url: str) -> None:
        self.post("/url", url=url)

    def run(self, script: str, *args: str) -> Any:
        return self.post("/execute/sync", script=script, args=args)

    def click(self, selector: str) -> None:
        """A real click on the first element that matches, as a mouse does it."""
        (element,) = self.post("/element", using="css selector", value=selector).values()
        self.post(f"/element/{element}/click")

    def press(self, *keys: str) -> None:
        """Keys, one after another, to whatever has the focus."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.post("/actions", actions=[{"type": "key", "id": "keyboard", "actions": actions}])

    def point(self, *path: tuple[float, float], drag: bool = False) -> None:
        """The mouse moves along a path of (x, y) in the window; ``drag``: with its button down."""
        moves = [{"type": "pointerMove", "duration": 20, "x": round(x), "y": round(y)} for x, y in path]
        if drag:
            moves[1:1] = [{"type": "pointerDown", "button": 0}]
            moves += [{"type": "pointerUp", "button": 0}]
        mouse = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": moves}
        self.post("/actions", actions=[mouse])

    def cdp(self, command: str, **parameters: object) -> Any:
        """A command of the DevTools protocol."""
        return self.post("/goog/cdp/execute", cmd=command, params=parameters)

    def contrast(self, selector: str) -> float:
        """The least contrast of the texts that match to what lies behind them (WCAG 2.1, 1.4.3)."""
        return self.run(CONTRAST, selector)

    def errors(self) -> list[str]:
        """What the console has complained about since the last call."""
        return [entry["message"] for entry in self.post("/se/log", type="browser") if entry["level"] == "SEVERE"]

    def screenshot(self, file: Path) -> None:
        request = urllib.request.urlopen(f"{self.session}/screenshot", timeout=60)
        with request as answer:
            file.write_bytes(base64.b64decode(json.load(answer)["value"]))

    def scheme(self, name: str) -> None:
        """Prefer ``light`` or ``dark``."""
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.cdp("Emulation.setEmulatedMedia", features=features)

    def wait_for(self, script: str, seconds: float = 20) -> Any:
        """What ``script`` returns as soon as that is true."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.1)
        return value


@contextlib.contextmanager
def running_browser() -> Iterator[Browser]:
    """A headless Chromium, ended with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen([str(DRIVER), f"--port={port}", "--silent"], stdout=subprocess.DEVNULL) as driver:
        try:
            for _ in range(100):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.1)
            running = Browser(f"http://127.0.0.1:{port}")
            yield running
            with urllib.request.urlopen(urllib.request.Request(running.session, method="DELETE"), timeout=30):
                pass
        finally:
            driver.terminate()


def wait_until(true: Callable[[], object], seconds: float = 40) -> None:
    """Ask ``true()`` again and again; it must not take so long."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.3)
