"""The documentation site: ``python -m sphinx -W --keep-going docs OUT``, offline, as the site is.

The pages are plain Markdown that reads well in a repository too. What a site needs beyond them is added here: the
navigation, a page for each exhibit of the museum in each language, and the anchors that links from elsewhere use.
"""

from __future__ import annotations

import functools
import re
import sys
import unicodedata
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.search.en import SearchEnglish
from sphinx.transforms import SphinxTransform

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS)]

import exhibits as museum  # noqa: E402

from stopgrad.museum import exhibits  # noqa: E402
from stopgrad.runner.declared import recipe_files  # noqa: E402

project = "stopgrad"
html_title = "stopgrad"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["measured"]
highlight_language = "none"  # an indented block is what a program prints
myst_heading_anchors = 6
myst_links_external_new_tab = False
smartquotes = False  # what is quoted is often what is typed
nitpicky = True

html_theme = "pydata_sphinx_theme"
html_static_path = ["static"]
html_favicon = "static/favicon.svg"
html_css_files = ["site.css"]
html_js_files = [("site.js", {"defer": "defer"})]
html_copy_source = False
html_show_sourcelink = False
html_context = {"default_mode": "auto"}  # light or dark as the reader's system is
html_theme_options = {
    "logo": {"text": "stopgrad"},
    "header_links_before_dropdown": 6,
    "navigation_depth": 2,
    "collapse_navigation": True,
    "secondary_sidebar_items": ["page-toc"],
    "search_as_you_type": True,
    "footer_start": [],
    "footer_end": [],
}

# Pages in reading order, and what stands under each. A recipe without a page, or a page in no place here, is a warning.
TREE = {
    "index": [
        "Any script <run>",
        "Which one <which>",
        "Semantics <semantics>",
        "Museum <museum/index>",
        "Recipes <recipes/index>",
        "Comparison <comparison>",
        "Audit <audit>",
        "Several processes <distributed>",
        "Speed <speed>",
        "Your own project <own_project>",
        "Glossary <glossary>",
        "Design <design>",
        "中文 <zh/index>",
    ],
    "run": ["ablate", "propose", "notebooks"],
    "audit": ["your_code", "reports"],
    "zh/index": ["semantics", "which", "museum/index"],
    "zh/museum/index": list(exhibits()),
    "museum/index": ["Broken and mended <gallery>", *exhibits()],
    "recipes/index": list(recipe_files(DOCS.parent / "configs")),
}
alone = {entry.split("<")[-1].rstrip(">") for entry in TREE["index"]} - set(TREE) | {"index"}
html_sidebars = {page: [] for page in alone}  # nothing stands beside them


class Search(SearchEnglish):
    """English by words and their stems; Chinese, which has no spaces, by every two neighbouring characters."""

    _word_re = re.compile(r"[㐀-鿿]+|[^\W㐀-鿿]+")
    js_splitter_code = r"""
var splitQuery = query => (query.match(/[㐀-鿿]+|(?:(?![㐀-鿿])[\p{L}\p{N}_])+/gu) || []).flatMap(word =>
  /^[㐀-鿿]{3,}$/.test(word) ? [...word].slice(1).map((last, at) => word[at] + last) : [word]);
"""

    def __init__(self, options: dict[str, str]) -> None:
        super().__init__(options)
        self.stem = functools.cache(super().stem)  # most of a page's words stand on other pages too

    def split(self, input: str) -> list[str]:
        found = []
        for word in super().split(input):
            pairs = word[0] >= "㐀" and len(word) > 2
            found += [word[at : at + 2] for at in range(len(word) - 1)] if pairs else [word]
        return found


class Anchors(SphinxTransform):
    """The ids of a heading: first the one that a repository's host gives it, last the one of the site's old pages.

    Where the page itself has an ``<a id=...>``, links to it are known as well.
    """

    default_priority = 720  # after myst has given headings their ids, before links are resolved

    def apply(self, **kwargs: Any) -> None:
        old: set[str] = set()
        for section in self.document.findall(nodes.section):
            slug = section.get("slug")
            ids = [slug] if slug else []
            ids += [each for each in (*section["ids"], old_anchor(section[0].astext(), old)) if each not in ids]
            section["ids"] = [each for each in ids if self.document.ids.setdefault(each, section) is section]
        for raw in self.document.findall(nodes.raw):
            for each in re.findall(r'<a id="([^"]+)">', raw.astext()):
                self.document.myst_slugs[each] = (raw.line or 0, each, each)


def old_anchor(title: str, seen: set[str]) -> str:
    """The anchor of a heading where Python-Markdown made it, which knows ASCII alone; ``seen`` has those above it."""
    ascii_only = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode()
    base = anchor = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", ascii_only).strip().lower())
    count = 0
    while not anchor or anchor in seen:
        count += 1
        anchor = f"{base}_{count}"
    seen.add(anchor)
    return anchor


def write_exhibits(app: Sphinx) -> None:
    """A page for each exhibit, beside the museum's list, in both languages."""
    for language, folder in enumerate((DOCS / "museum", DOCS / "zh" / "museum")):
        pages = {folder / f"{name}.md": museum.page(exhibit, language) for name, exhibit in exhibits().items()}
        for old in {*folder.glob("*.md")} - {*pages, folder / "index.md", folder / "gallery.md"}:
            old.unlink()
        for path, text in pages.items():
            museum.write(path, text)


def for_the_site(app: Sphinx, docname: str, source: list[str]) -> None:
    """What stands under a page; and a link to an exhibit, in a repository its source, leads to its page."""
    pages = "../" * docname.count("/") + ("zh/" if docname.startswith("zh/") else "") + "museum"
    source[0] = re.sub(r"\]\((?:\.\./)+stopgrad/museum/exhibits/(\w+\.md)", rf"]({pages}/\1", source[0])
    if docname in TREE:
        source[0] += "\n\n```{toctree}\n:hidden:\n\n" + "\n".join(TREE[docname]) + "\n```\n"


def say_the_language(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """For screen readers and hyphenation."""
    context["language"] = "zh-CN" if page.startswith("zh/") else "en"


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_search_language(Search)
    app.add_transform(Anchors)
    app.connect("builder-inited", write_exhibits)
    app.connect("source-read", for_the_site)
    app.connect("html-page-context", say_the_language)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
