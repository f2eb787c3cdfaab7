"""In a notebook audits, matrices, pictures, exhibits and comparisons show themselves, in light and dark."""

from __future__ import annotations

import html
import re
import xml.etree.ElementTree as ET

import pytest
import torch
from torch import nn

from conf_tests.browser import CONTRAST, in_a_browser
from conf_tests.compare.runs import write_run
from stopgrad import audit
from stopgrad.compare import compare
from stopgrad.drawing import flow_svg
from stopgrad.flow.ink import COLOURS
from stopgrad.flow.pictures import html_page, matrix_svg
from stopgrad.museum import exhibits

pytest.importorskip("IPython")

from IPython.core.formatters import DisplayFormatter


def shown(thing) -> dict[str, str]:
    """What Jupyter gets to show, by kind."""
    return DisplayFormatter().format(thing)[0]


def followed(draw: bool) -> audit:
    net = nn.ModuleDict({"trunk": nn.Linear(4, 3), "probe": nn.Linear(3, 1)})
    with audit(net, draw=draw) as a:
        hidden = net["trunk"](torch.ones(2, 4)).detach()
        a.loss("probe <loss>", net["probe"](hidden).mean())
    return a


@pytest.mark.parametrize("draw", [False, True])
def test_an_audit_shows_its_matrix_the_line_of_each_cut_and_the_flow_if_it_was_followed(draw):
    a = followed(draw)
    content = shown(a)["text/html"]
    assert content.startswith("<style>.stopgrad {")
    assert re.findall(r'<td class="(\w+)"', content) == ["blocked", "open"]
    assert re.findall(r'<th scope="row">(.*?)</th>', content) == ["probe &lt;loss&gt;"]
    line = re.search(r"test_shown.py:\d+", str(a.matrix()))
    assert line
    assert re.search(rf"<li>probe &lt;loss&gt; -&gt; trunk: stopped by detach at \S*{line[0]}</li>", content)
    assert content.count("<svg") == draw
    assert (str(flow_svg(a)) in content) if draw else "<figure" not in content


def test_an_audit_without_a_loss_says_so():
    a = audit(nn.Linear(1, 1))
    assert "No loss was reported" in shown(a)["text/html"]


@pytest.mark.parametrize("picture", [lambda a: flow_svg(a), lambda a: matrix_svg(a.matrix())])
def test_a_picture_shows_itself_and_is_a_plain_string_in_a_file(picture, tmp_path):
    svg = picture(followed(draw=True))
    assert isinstance(svg, str)
    assert ET.fromstring(svg).tag.endswith("svg")
    content = shown(svg)["text/html"]
    assert content.count("<svg") == content.count("</figure>") == 1
    assert svg in content
    (tmp_path / "a.svg").write_text(svg)
    assert ET.parse(tmp_path / "a.svg")
    assert svg in html_page("a", svg)


@pytest.mark.parametrize("name", exhibits())
def test_an_exhibit_shows_its_page(name):
    exhibit = exhibits()[name]
    content = shown(exhibit)["text/markdown"]
    page = exhibit.path.read_text()
    assert content.startswith(f"# {exhibit.title}\n\n{exhibit.summary}\n\n## Script\n\n```diff\n")
    for title in ("Script", "Message", "Why", "Fix", "Find", "Threads"):
        section = re.search(rf"^## {title}\n\n(.+?)(?=\n\n## |\Z)", page, re.M | re.S)
        assert (section[1].strip() in content) if section else f"## {title}" not in content
    assert "## Matches" not in content


def test_a_comparison_shows_its_table(tmp_path):
    for arm in ("detach", "none"):
        write_run(tmp_path, arm, 0)
    content = shown(compare([tmp_path]))["text/markdown"]
    assert "| arm | verdict |" in content
    assert "- `none`: " in content


def test_nothing_comes_from_elsewhere():
    content = shown(followed(draw=True))["text/html"]
    assert not re.search(r"(?:src|href)=|url\(|@import|<script", content)


@in_a_browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_can_be_read_in_light_and_dark(browser, tmp_path, theme):
    """By what the notebook says, whatever the system prefers; the drawing too."""
    back = {"light": "#fff", "dark": "#111"}[theme]
    style = f"<style>body {{ --jp-layout-color0: {back}; background: {back} }}</style>"
    body = f'<body data-jp-theme-light="{str(theme == "light").lower()}">'
    page = tmp_path / "cell.html"
    page.write_text(f"<!doctype html><meta charset=utf-8>{style}{body}{shown(followed(draw=True))['text/html']}")
    browser.errors()
    browser.open(page.as_uri())
    assert browser.run(CONTRAST, ".stopgrad th, .stopgrad td.open, .stopgrad td.blocked, .stopgrad li") >= 4.5
    assert browser.run("return document.querySelector('.stopgrad').innerText").count("blocked") == 1
    for name in ("ink", "back"):
        fill = browser.run("return getComputedStyle(document.querySelector(arguments[0])).fill", f".stopgrad .f{name}")
        red_green_blue = [*map(int, re.findall(r"\d+", fill))]
        assert red_green_blue == [*bytes.fromhex(COLOURS[name][theme == "dark"][1:])]
    assert browser.errors() == []


def test_names_are_not_read_as_html():
    content = shown(followed(draw=True))["text/html"]
    assert "<loss>" not in content
    assert "probe <loss>" in html.unescape(content)
