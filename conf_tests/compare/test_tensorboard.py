"""TensorBoard, which is shown a comparison, asked over HTTP and in a real browser."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import urllib.request

import pytest

from conf_tests.browser import in_a_browser, wait_until

DEEP = """
const texts = [];
const walk = node => {
  if (node.nodeType === 3) texts.push(node.textContent);
  if (node.shadowRoot) walk(node.shadowRoot);
  for (const child of node.childNodes) if (!["STYLE", "SCRIPT"].includes(child.nodeName)) walk(child);
};
walk(document.body);
return texts.join(" ").replace(/\\s+/g, " ");
"""


@pytest.fixture(scope="module")
def tensorboard(folder):
    """``tensorboard --logdir runs``, and the address at which it answers."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder.parent), "--port", "0"]
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stderr is not None
            found = next(filter(None, (re.search(r"http://\S+", line) for line in server.stderr)))
            threading.Thread(target=server.stderr.read, daemon=True).start()
            address = found[0].rstrip("/")
            wait_until(lambda: len(ask(address, "/data/runs")) == 12)
            yield address
        finally:
            server.terminate()


def ask(address, path):
    with urllib.request.urlopen(address + path, timeout=30) as answer:
        return json.load(answer)


def test_tensorboard_has_a_readable_directory_an_arm(tensorboard):
    runs = ask(tensorboard, "/data/runs")
    assert {run for run in runs if "comparison" in run} == {
        "sweep/comparison/detach", "sweep/comparison/none", "sweep/comparison/-b-late",
    }  # fmt: skip
    layout = ask(tensorboard, "/data/plugin/custom_scalars/layout")
    charts = [chart["multiline"]["tag"] for category in layout["category"] for chart in category["chart"]]
    assert charts == [["^Metrics/score$"], ["^loss/probe$"], ["^val/end$"]]
    images = ask(tensorboard, "/data/plugin/images/tags")
    assert {run for run, tags in images.items() if "flow" in tags} == {run for run in runs if "comparison" in run}


@in_a_browser
@pytest.mark.parametrize(
    ("tab", "texts"),
    [
        ("custom_scalars", ["metrics", "score", "sweep/comparison/none"]),
        ("hparams", ["stop.features", "verdict", "broken", "identical", "Metrics/score", "1.3900", "-0.7100"]),
        ("text", ["verdict", "no step uses it; identical weights"]),
        ("images", ["flow", "sweep/comparison/detach"]),
    ],
)
def test_tensorboard_shows(tensorboard, browser, tab, texts):
    browser.errors()
    browser.open("about:blank")
    browser.open(f"{tensorboard}/#{tab}")
    wait_until(lambda: all(text in browser.run(DEEP) for text in texts))
    assert browser.errors() == []
