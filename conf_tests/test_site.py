"""The documentation site: it builds without a warning, asks nothing of the network, and works in a browser."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import re
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from conf_tests.browser import in_a_browser

ROOT = Path(__file__).parents[1]
CONTROL_K = [
    {"type": kind, "value": key}
    for kind, key in (("keyDown", "\ue009"), ("keyDown", "k"), ("keyUp", "k"), ("keyUp", "\ue009"))
]
ALLOWED = ["clipboardReadWrite", "clipboardSanitizedWrite"]
EXTERNAL = re.compile(r"^(?:https?:)?//", re.I)

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("pydata_sphinx_theme") is None, reason="Sphinx is not installed: pip install -e '.[docs]'"
)


def build(source, out, builder="html"):
    """Build a site; a warning is an error, and the build goes on to name every one."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", builder, str(source), str(out)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    built = build(ROOT / "docs", out)
    assert (built.returncode, built.stderr) == (0, "")
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


def ids(page: Path) -> set[str]:
    return set(re.findall(r'\bid="([^"]+)"', page.read_text(encoding="utf-8")))


def test_links_to_the_old_site_hold(site):
    """old_pages.txt lists each page of the site before it was made by Sphinx, and the anchors of its headings."""
    old = [line.split() for line in (ROOT / "conf_tests" / "old_pages.txt").read_text().splitlines()]
    assert (len(old), sum(map(len, old))) == (130, 1158)
    assert [page for page, *_ in old if not (site / page).is_file()] == []
    assert [f"{page}#{lost}" for page, *anchors in old for lost in sorted({*anchors} - ids(site / page))] == []


def test_every_link_leads_somewhere(site):
    """Also those that are written as HTML, which Sphinx does not look at."""
    anchors = {page.relative_to(site).as_posix(): ids(page) for page in site.rglob("*.html")}
    lost = []
    for page in anchors:
        text = re.sub(r"<(script|style|pre)\b.*?</\1>", "", (site / page).read_text(encoding="utf-8"), flags=re.S)
        for url in re.findall(r'<a\b[^>]*\bhref="([^"]+)"', text):
            path, _, anchor = unquote(url).partition("#")
            if re.match(r"\w+:", url):
                continue
            target = (site / page).parent.joinpath(path).resolve().relative_to(site) if path else Path(page)
            known = anchors.get(target.as_posix(), {""} if (site / target).is_file() else None)
            if known is None or (anchor and anchor not in known):
                lost.append(f"{page}: {url}")
    assert lost == []


def test_every_page_is_there(site):
    from stopgrad.museum import exhibits

    names = {"index", "which", "semantics", "zh/semantics", "museum/index", *(f"museum/{n}" for n in exhibits())}
    names |= {"design", "your_code", "own_project", "recipes/index", "glossary", "museum/gallery"}
    names |= {"zh/index", "zh/which", "zh/museum/index", *(f"zh/museum/{n}" for n in exhibits())}
    assert all((site / f"{name}.html").is_file() for name in names)
    assert not list(site.rglob("exhibits.*")), "a module is no page"


def test_pages_say_their_language(site):
    for page in (page for page in site.rglob("*.html") if "_static" not in page.parts):
        chinese = page.relative_to(site).parts[0] == "zh"
        assert f'<html lang="{"zh-CN" if chinese else "en"}"' in page.read_text(encoding="utf-8"), page


def test_a_link_to_an_exhibit_stays_in_its_language(site):
    """In a repository both lead to the exhibit itself."""
    for page, link in (("museum/index", "no_graph.html"), ("zh/museum/index", "no_graph.html")):
        assert f'href="{link}"' in (site / f"{page}.html").read_text(encoding="utf-8")
    assert "损失没有计算图" in (site / "zh" / "museum" / "no_graph.html").read_text(encoding="utf-8")


def test_the_navigation_lists_the_recipes_that_help_lists(site):
    from stopgrad.runner.declared import recipe_files

    sidebar = (site / "recipes" / "td.html").read_text(encoding="utf-8").partition('class="bd-docs-nav')[2]
    pages = re.findall(r'<li class="toctree-l\d[^>]*><a [^>]*class="[^"]*internal" href="(\w+\.html|#)"', sidebar)
    listed = ["#" if name == "td" else f"{name}.html" for name in recipe_files(ROOT / "configs")]
    assert pages[: len(listed)] == listed


def test_what_is_broken_fails_the_build(tmp_path):
    """A recipe without a page, a page in no place, no picture, and links to no page, anchor, row or exhibit."""
    for name in ("docs", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    docs = tmp_path / "docs"
    (docs / "recipes" / "td.md").unlink()
    (docs / "lonely.md").write_text("# Lonely\n\n![p](pictures/none.png)\n")
    links = "[a](none.md) [b](audit.md#none) [c](#none) [d](semantics.md#row-99)"
    links += " [e](../stopgrad/museum/exhibits/none.md)"
    with (docs / "propose.md").open("a") as page:
        page.write(f"\n{links} [f](semantics.md#row-9) [g](../stopgrad/museum/exhibits/no_graph.md)\n")
    built = build(docs, tmp_path / "out", builder="dummy")  # all but the writing
    assert built.returncode == 1
    for page, said in (
        ("recipes/index.md", "toctree contains reference to nonexisting document 'recipes/td'"),
        ("lonely.md", "document isn't included in any toctree"),
        ("lonely.md", "image file not readable: pictures/none.png"),
        ("propose.md", "'myst' cross-reference target not found: 'none.md'"),
        ("propose.md", "local id not found in doc 'audit': 'none'"),
        ("propose.md", "'myst' cross-reference target not found: 'none' "),
        ("propose.md", "local id not found in doc 'semantics': 'row-99'"),
        ("propose.md", "'myst' cross-reference target not found: 'museum/none.md'"),
    ):
        assert re.search(rf"docs/{page}:(\d+:)? WARNING: {re.escape(said)}", built.stderr), said
    assert "row-9'" not in built.stderr
    assert "no_graph" not in built.stderr


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
    browser.wait_for("return document.readyState === 'complete'")
    urls = browser.run("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert any(".css" in url for url in urls)
    assert any("/_static/scripts/" in url for url in urls)
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
    """As one types, by the keyboard alone."""
    browser.open(f"{server}/index.html")
    browser.wait_for("return document.readyState === 'complete'")
    browser.post("/actions", actions=[{"type": "key", "id": "keyboard", "actions": CONTROL_K}])
    browser.wait_for("return document.activeElement.name === 'q'")
    browser.press(*query)
    browser.wait_for(f"return document.querySelector('#search-results a[href$=\"{expected}\"]')")


@in_a_browser
def test_chinese_is_found_by_a_part_of_a_sentence(site, browser):
    """Without spaces, and from a folder; what stands nowhere is not found, though each of its characters does."""
    browser.open(f"{(site / 'search.html').as_uri()}?q=没有版本计数器")
    done = "return /finished|did not match/.test(document.querySelector('.search-summary')?.textContent) && "
    found = "[...document.querySelectorAll('#search-results li a')].map(link => link.href).join(' ') || 'none'"
    assert "zh/semantics.html" in browser.wait_for(done + found)
    browser.open(f"{(site / 'search.html').as_uri()}?q=器数计本版")
    assert browser.wait_for(done + found) == "none"


@in_a_browser
def test_code_is_copied(server, browser):
    browser.post("/goog/cdp/execute", cmd="Browser.grantPermissions", params={"permissions": ALLOWED})
    browser.open(f"{server}/museum/no_graph.html")
    browser.wait_for("return document.readyState === 'complete'")
    browser.click(".highlight-diff .copy")
    browser.wait_for("return document.querySelector('.highlight-diff .copy').textContent === 'Copied'")
    browser.run("navigator.clipboard.readText().then(text => { window.read = text })")
    assert "loss.backward()" in browser.wait_for("return window.read")


@in_a_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(server, browser, scheme):
    """As the reader's system is; every text can be read in both."""
    browser.scheme(scheme)
    browser.errors()
    browser.open(f"{server}/museum/no_graph.html")
    browser.wait_for("return document.readyState === 'complete'")
    assert browser.run("return document.documentElement.dataset.theme") == scheme
    texts = "article p, article li, article a, article code, article pre, article pre span, article h1, article summary"
    assert browser.contrast(texts) > 4.5
    browser.scheme("light")
    assert browser.errors() == []


@in_a_browser
def test_a_row_is_reached_from_the_first_table(server, browser):
    """A reader with a tutorial in hand: the wrong sentences come first, one click from the code that proves it."""
    browser.open(f"{server}/semantics.html")
    assert browser.run("return document.querySelector('table td:nth-child(2)').innerText") in ("false", "half true")
    browser.run("document.querySelector('a[href=\"#row-7\"]').click()")
    top = browser.wait_for("return location.hash && document.getElementById('row-7').getBoundingClientRect().top + 1")
    assert 0 < top < 400, "the row is in sight"


SHOWN = ".decision-shown"
CHOICES = f"return [...document.querySelectorAll('{SHOWN} .decision-answers button')].map(each => each.textContent)"


@in_a_browser
@pytest.mark.parametrize("page", ["which.html", "zh/which.html"])
def test_every_answer_is_reached_by_clicks(server, browser, page):
    """Each leaf of the tree, and only with what stands there; the recipe is one more click away."""
    browser.open(f"{server}/{page}")
    assert browser.wait_for(f"return document.querySelector('{SHOWN}') && document.querySelector('.decision').hidden")
    leaves = browser.run(
        "return [...document.querySelectorAll('.decision details')].filter(each => !each.querySelector('details'))"
        ".map(each => each.querySelector('ul').textContent)"
    )
    found = []

    def walk(path):
        for step in range(len(browser.run(CHOICES))):
            browser.click(f"{SHOWN} .decision-answers button:nth-child({step + 1})")
            browser.wait_for(f"return location.hash === '#decision{''.join(f'-{n}' for n in (*path, step))}'")
            browser.wait_for(
                f"return document.querySelectorAll('{SHOWN} .decision-trail button').length === {len(path) + 2}"
            )
            walk([*path, step])
            browser.click(f"{SHOWN} .decision-trail button:nth-child({len(path) + 1})")
            browser.wait_for(
                f"return document.querySelectorAll('{SHOWN} .decision-trail button').length <= {len(path) + 1}"
            )
        if not browser.run(CHOICES):
            found.append(browser.run(f"return document.querySelector('{SHOWN} ul').textContent"))

    walk([])
    assert len(leaves) > 20
    assert found == leaves


@in_a_browser
def test_a_decision_by_keyboard_and_by_link(server, browser):
    """Tab and Enter; what is asked next has the focus; "back" goes back; the address leads there again."""
    browser.open(f"{server}/which.html")
    browser.wait_for(f"return document.querySelector('{SHOWN} button')")
    browser.run(f"document.querySelector('{SHOWN} button').focus()")
    asked = "return document.activeElement.getAttribute('aria-label')"
    browser.press("\ue007")
    assert browser.wait_for(asked) == "Who makes the target?"
    browser.press("\ue004", "\ue007")
    browser.wait_for("return location.hash === '#decision-0-0'")
    shown = f"return document.querySelector('{SHOWN}').innerText.includes('td stop.target: cut by detach.')"
    browser.wait_for(shown)
    assert browser.run(f"return document.activeElement === document.querySelector('{SHOWN} [role=group]')")
    browser.run("history.back()")
    browser.wait_for("return location.hash === '#decision-0'")
    browser.wait_for(f"return document.querySelectorAll('{SHOWN} .decision-answers button').length === 4")
    browser.open("about:blank")
    browser.open(f"{server}/which.html#decision-0-0")
    browser.wait_for(shown)


@in_a_browser
def test_a_decision_without_scripts(server, browser):
    """The same is a nested list that unfolds, and prints."""
    browser.post("/goog/cdp/execute", cmd="Emulation.setScriptExecutionDisabled", params={"value": True})
    browser.open(f"{server}/which.html")
    assert browser.run(f"return document.querySelector('{SHOWN}')") is None
    browser.click(".decision > details > summary")
    browser.click(".decision > details > details > summary")
    line = "document.querySelector('.decision details details li:last-child')"
    assert browser.run(f"return {line}.checkVisibility() && {line}.textContent").startswith("td3 stop.target: cut by")
    browser.post("/goog/cdp/execute", cmd="Emulation.setScriptExecutionDisabled", params={"value": False})


@in_a_browser
def test_nothing_is_wider_than_a_phone(server, browser):
    pages = ("semantics.html", "which.html", "museum/index.html", "museum/toggle_optimizer.html")
    boxes = (
        "[document.documentElement, ...document.querySelectorAll('main, .bd-content, .bd-article-container, article')]"
    )
    wide = f"return Math.max(...{boxes}.map(box => box.scrollWidth - box.clientWidth))"
    phone = {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.post("/goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride", params=phone)
    found = {}
    for page in (
        *pages,
        "recipes/index.html",
        "design.html",
        "your_code.html",
        "zh/which.html",
        "museum/gallery.html",
        "glossary.html",
        "recipes/gan.html",
    ):
        browser.open(f"{server}/{page}")
        found[page] = (browser.run("return innerWidth"), browser.run(wide))
    browser.post("/goog/cdp/execute", cmd="Emulation.clearDeviceMetricsOverride", params={})
    assert found == dict.fromkeys(found, (360, 0))
