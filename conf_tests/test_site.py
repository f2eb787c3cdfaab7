"""The documentation site: it builds without a warning, asks nothing of the network, and works in a browser."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path

import pytest

from conf_tests.browser import in_a_browser

ROOT = Path(__file__).parents[1]
EXTERNAL = re.compile(r"^(?:https?:)?//", re.I)

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed: pip install -e '.[docs]'"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site. A warning fails the build (but not with --quiet, which hides it from --strict too)."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    built = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=120
    )
    assert built.returncode == 0, built.stderr
    return out


class Loads(HTMLParser):
    """Collects what a page loads by itself: scripts, styles, icons, pictures, frames. Links to follow are no loads."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag, attrs):
        facts = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "embed", "video", "audio"):
            self.urls += [facts[key] for key in ("src", "srcset") if facts.get(key)]
        if tag == "link" and facts.get("rel") not in ("canonical", "prev", "next", "edit"):
            self.urls.append(facts.get("href") or "")


def test_every_page_is_there(site):
    from stopgrad.museum import exhibits

    names = {"index", "which", "semantics", "zh/semantics", "museum/index", *(f"museum/{n}" for n in exhibits())}
    names |= {"design", "your_code", "own_project", "recipes/index"}
    assert all((site / f"{name}.html").is_file() for name in names)
    assert not list(site.rglob("hooks.*")), "the hooks are no page"


def test_the_navigation_lists_the_recipes_that_help_lists(site):
    from stopgrad.runner.declared import recipe_files

    pages = re.findall(r'href="(\w+)\.html" class="md-nav__link', (site / "recipes" / "td.html").read_text())
    listed = recipe_files(ROOT / "configs")
    assert [name for name in dict.fromkeys(pages) if name in listed] == list(listed)


def test_a_recipe_without_a_page_fails_the_build(tmp_path):
    for name in ("mkdocs.yml", "docs", "configs"):
        source = ROOT / name
        shutil.copytree(source, tmp_path / name) if source.is_dir() else shutil.copy(source, tmp_path)
    (tmp_path / "docs" / "recipes" / "td.md").unlink()
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert built.returncode == 1
    assert "recipes/td.md" in built.stderr


def test_pages_load_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        loads = Loads()
        loads.feed(page.read_text(encoding="utf-8"))
        assert loads.urls, "the collector saw nothing"
        assert not [url for url in loads.urls if EXTERNAL.match(url)], page.name


def test_styles_load_nothing_from_elsewhere(site):
    sheets = list(site.rglob("*.css"))
    assert sheets
    for sheet in sheets:
        urls = re.findall(r"(?:url\(|@import)\s*[\"']?([^\"')]+)", sheet.read_text(encoding="utf-8"))
        assert not [url for url in urls if EXTERNAL.match(url)], sheet.name


def test_a_broken_link_fails_the_build(tmp_path):
    """The strictness is real: mkdocs refuses a page that links nowhere."""
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("# A\n\n[b](b.md)\n")
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    (tmp_path / "mkdocs.yml").write_text(re.sub(r"^hooks:.*$", "", settings, flags=re.M))
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict"], cwd=tmp_path, capture_output=True, timeout=120
    )
    assert built.returncode == 1


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server(site):
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@in_a_browser
@pytest.mark.parametrize("page", ["index.html", "semantics.html", "zh/semantics.html", "museum/dead_critic.html"])
def test_browser_asks_nothing_of_the_network(server, browser, page):
    browser.open(f"{server}/{page}")
    browser.wait_for("return document.querySelector('.md-search__input') && document.readyState === 'complete'")
    urls = browser.run("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert any(".css" in url for url in urls)
    assert any("/javascripts/" in url for url in urls)
    assert [url for url in urls if not url.startswith((server, "data:", "blob:"))] == []


@in_a_browser
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("inference tensors cannot be saved", "museum/inference_saved.html"),
        ("codebook", "museum/dead_codebook.html"),
        ("版本计数器", "zh/semantics.html"),
    ],
)
def test_search_finds(server, browser, query, expected):
    browser.open(f"{server}/index.html")
    browser.wait_for("return document.readyState === 'complete'")
    browser.run("document.querySelector('#__search').click(); document.querySelector('.md-search__input').focus()")
    (field,) = browser.post("/element", using="css selector", value=".md-search__input").values()
    browser.post(f"/element/{field}/value", text=query)
    links = browser.wait_for(
        "return [...document.querySelectorAll('.md-search-result__link')].map(link => link.href).join(' ')"
    )
    assert expected in links


@in_a_browser
def test_a_row_is_reached_from_the_first_table(server, browser):
    """A reader with a tutorial in hand: the wrong sentences come first, one click from the code that proves it."""
    browser.open(f"{server}/semantics.html")
    assert browser.run("return document.querySelector('table td:nth-child(2)').innerText") in ("false", "half true")
    browser.run("document.querySelector('a[href=\"#row-7\"]').click()")
    top = browser.wait_for("return location.hash && document.getElementById('row-7').getBoundingClientRect().top + 1")
    assert 0 < top < 400, "the row is in sight"


@in_a_browser
def test_nothing_is_wider_than_a_phone(server, browser):
    pages = ("semantics.html", "which.html", "museum/index.html", "museum/toggle_optimizer.html")
    for page in (*pages, "recipes/index.html", "design.html", "your_code.html"):
        browser.open(f"{server}/{page}")
        browser.post("/window/rect", width=500, height=900)
        wide = browser.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
        browser.post("/window/rect", width=1280, height=900)
        assert wide == 0, page
