"""comparison.html and TensorBoard in a real browser: arms and cells are clicked, texts read, the console is silent."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request

import pytest

from conf_tests.browser import in_a_browser
from conf_tests.compare.runs import nudge, write_run
from stopgrad.compare import compare

OPEN = {"state": "open", "norm": 0.5, "cuts": ["detach at model.py:9"]}
KEYS = {"tab": "\ue004", "enter": "\ue007", "down": "\ue015", "space": "\ue00d"}
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
def folder(tmp_path_factory):
    """Three arms, three seeds: the reference, an identical leak, and one that is broken; a name that is HTML."""
    root = tmp_path_factory.mktemp("runs") / "sweep"
    for seed in range(3):
        write_run(root, "detach", seed, 1.0 + seed / 10, curve=20)
        write_run(root, "none", seed, 1.0 + seed / 10, cells=OPEN, curve=20)
        compared = {"reference": "detach", "arms": [], "expect": {"none": "identical", "<b>late": "same_result"}}
        later = {"started": "2026-01-02", "compare": compared}
        write_run(root, "<b>late", seed, -1.0, cells=OPEN, alter=nudge(4), curve=20, **later)
    compare([root]).write(root)
    return root


@pytest.fixture
def page(folder, browser):
    """The page, opened anew; whatever a test did, the console must have stayed silent."""
    browser.errors()
    browser.open("about:blank")
    browser.open(f"{(folder / 'comparison.html').as_uri()}#none")
    yield browser
    assert browser.errors() == []


def text(browser, selector):
    return browser.run("return document.querySelector(arguments[0]).innerText", selector)


def test_is_one_small_file_that_asks_nothing_of_the_network(folder):
    content = (folder / "comparison.html").read_text()
    assert len(content) < 2_000_000
    assert not re.findall(r"(?:src|href)=[\"'](?!data:)", content)
    assert not re.findall(r"@import|url\(", content)
    assert "<b>late" not in content.partition("<noscript>")[0] + content.partition("</noscript>")[2]


@in_a_browser
class TestPage:
    def test_tells_every_arm(self, page):
        assert text(page, "h1") == "made_up: what did the cut change?"
        rows = page.run("return [...document.querySelectorAll('#arms tbody tr')].map(row => row.innerText)")
        assert len(rows) == 3
        assert rows[1].startswith("none\tidentical\t–\tprobe reaches encoder; no step uses it; identical weights")
        assert rows[2].startswith("<b>late\tbroken\nexpected same result\n\t")
        assert page.run("return performance.getEntriesByType('resource').length") == 0

    def test_an_arm_is_chosen_by_mouse(self, page):
        assert text(page, "#arm-title") == "none: identical"
        page.click("#arms tr:nth-child(3) button")
        assert text(page, "#arm-title") == "<b>late: broken\nexpected same result"
        assert page.run("return document.querySelectorAll('#arms [aria-pressed=true]').length") == 1
        assert "seed 0: score -1 is below the line 0" in text(page, "#detail")
        assert "The weights differ between 2 and 4 on (seed 0), first in head.weight; 1 of 3" in text(page, "#detail")
        assert page.run("return document.querySelectorAll('#curves .curve.chosen').length") == 2

    def test_a_cell_tells_its_line(self, page):
        page.click('[data-cell="probe encoder"]')
        told = text(page, "#cell")
        assert told.startswith(
            "probe → encoder: open, |g| 0.5, 100% of all gradient that arrives there; in detach it is"
        )
        assert told.endswith("cuts on the way: detach at model.py:9")
        page.click("#arms tr:nth-child(1) button")
        page.click('[data-cell="probe encoder"]')
        assert text(page, "#cell") == "probe → encoder: blocked\nstopped by detach at model.py:7"
        assert page.run("return document.querySelectorAll('.matrix .changed').length") == 0

    def test_by_keyboard_alone(self, page):
        page.run("document.querySelector('#arms button').focus()")
        page.press(KEYS["down"], KEYS["down"], KEYS["enter"])
        assert text(page, "#arm-title").startswith("<b>late")
        page.press(KEYS["tab"])
        assert page.run("return document.activeElement.dataset.cell") == "probe encoder"
        page.press(KEYS["space"])
        assert text(page, "#cell").startswith("probe → encoder: open")
        assert page.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"

    def test_for_a_screen_reader(self, page):
        page.click("#arms tr:nth-child(3) button")
        bare = page.run(
            "return [...document.querySelectorAll('button, svg, img')].filter(node => "
            "!(node.innerText || node.getAttribute('aria-label') || node.getAttribute('alt'))).length"
        )
        assert bare == 0
        assert page.run("return document.querySelector('#cell').getAttribute('aria-live')") == "polite"
        label = page.run("return document.querySelector('[data-tag=score] svg').getAttribute('aria-label')")
        assert re.fullmatch(r"score, mean over the seeds at the end: detach 1.39; <b>late -0.71", label)
        levels = page.run("return [...document.querySelectorAll('h1, h2, h3')].map(h => Number(h.tagName[1]))")
        assert levels[0] == 1
        assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
        assert page.run("return [...document.querySelectorAll('th')].every(th => th.scope)")

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_readable_in(self, page, scheme):
        """Contrast of text to its background: at least 4.5 to 1, as WCAG 2.1 asks (1.4.3)."""
        page.scheme(scheme)
        ratio = page.contrast("p, td, th, h1, h2, .verdict, .was, svg text, code")
        page.scheme("")
        assert ratio >= 4.5

    @pytest.mark.parametrize("last", [300, 99_999, 2_000_000])
    def test_no_tick_is_cut_off(self, page, last):
        beyond = page.run(
            """
            const flat = [-1e20, 1e-5], c = {steps: [1, arguments[0]], mean: flat, low: flat, high: flat};
            const svg = chart("a", {detach: c}).querySelector("svg");
            document.querySelector("#curves").append(svg);
            const box = svg.viewBox.baseVal;
            return [...svg.querySelectorAll("text")].map(text => text.getBBox())
              .filter(b => b.x < 0 || b.y < 0 || b.x + b.width > box.width || b.y + b.height > box.height).length""",
            last,
        )
        assert beyond == 0

    def test_fits_a_phone(self, page):
        page.post("/window/rect", width=500, height=900)
        wide = page.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
        page.post("/window/rect", width=1280, height=900)
        assert wide == 0


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


def wait_until(true, seconds=40):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.3)


def test_tensorboard_has_a_readable_directory_an_arm(tensorboard):
    runs = ask(tensorboard, "/data/runs")
    assert {run for run in runs if "comparison" in run} == {
        "sweep/comparison/detach", "sweep/comparison/none", "sweep/comparison/-b-late",
    }  # fmt: skip
    layout = ask(tensorboard, "/data/plugin/custom_scalars/layout")
    charts = [chart["multiline"]["tag"] for category in layout["category"] for chart in category["chart"]]
    assert charts == [["^Metrics/score$"], ["^loss/probe$"]]
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
