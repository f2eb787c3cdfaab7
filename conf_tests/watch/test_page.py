"""``--html``: the report as a page. What it says, that nothing in it is read as HTML, and that a browser shows it."""

from __future__ import annotations

import html
import itertools
import json
import re
import time

import pytest

from conf_tests.browser import in_a_browser
from conf_tests.watch.test_run import LEAK, RIGHT, run, write
from stopgrad.flow.matrix import Cell, FlowMatrix
from stopgrad.flow.values import CutSite
from stopgrad.watch.findings import Finding
from stopgrad.watch.page import excerpt, html_page, notebook_html
from stopgrad.watch.report import LossRow, OptimizerRow, Report

KEYS = {"tab": "\ue004", "left": "\ue012", "up": "\ue013", "right": "\ue014", "down": "\ue015", "end": "\ue010"}

CHILD = """
    import multiprocessing, os, torch

    def train():
        w = torch.ones(2, requires_grad=True)
        opt = torch.optim.SGD([w], 0.1)
        child_loss = w.sum()
        child_loss.backward()
        opt.step()

    os.chdir("below")
    child = multiprocessing.get_context("fork").Process(target=train, name="two")
    child.start()
    child.join()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The pages of a GAN that leaks, and of one that does not."""
    folder = tmp_path_factory.mktemp("pages")
    for name, source in (("leak", LEAK), ("right", RIGHT)):
        ran = run("--html", f"{name}.html", write(folder, source).name, cwd=folder)
        assert ran.returncode == 0, ran.stderr
    return folder


def texts(content: str) -> str:
    """The page without its tags, scripts and styles; spaces are one."""
    bare = re.sub(r"<(script|style)\b.*?</\1>", "", content, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", bare)).split())


def marked(content: str) -> list[str]:
    return [" ".join(texts(mark).split()) for mark in re.findall(r"<mark>.*?</mark>", content, re.S)]


def made_up(**other) -> Report:
    """A report that no run has written."""
    matrix = FlowMatrix(["G"], {("loss", "G"): Cell("open", 1.0)}, ["loss"])
    given = {
        "script": "a.py", "matrix": matrix, "losses": (LossRow("loss", "a.py", 1, 2),), "optimizers": (),
        "cycles": (2, 2), "findings": (), "notes": (),
    }  # fmt: skip
    return Report(**(given | other))


@pytest.mark.parametrize("name", ["leak", "right"])
def test_is_one_small_file_that_asks_nothing_of_the_network(folder, name):
    content = (folder / f"{name}.html").read_text()
    assert len(content) < 40_000
    assert not re.findall(r"(?:src|href)=[\"'](?!data:|#)", content)
    assert not re.findall(r"@import|url\(|https?:(?!//www\.w3\.org/2000/svg)", content)


def test_a_finding_with_its_line_fix_and_exhibit(folder):
    content = (folder / "leak.html").read_text()
    said = texts(content)
    assert said.startswith("train.py: gradients train.py: what its gradients do 8 cycles · torch 2.")
    assert "1 error , 1 note Findings error g_opt stepped G on d_loss's gradient as well, in 8 of 8 steps" in said
    assert "Fix : cut what crosses from G into d_loss (.detach())" in said
    assert "python -m stopgrad museum late_zero_grad" in said
    assert marked(content) == ["▸ 15 d_loss.backward()", "▸ 19 g_loss.backward()"]
    assert "g_opt Adam, train.py:8 8 G d_loss, g_loss d_opt Adam, train.py:8 8 D d_loss" in said
    assert "Healthy" not in said


def test_a_healthy_script_is_said_to_be(folder):
    content = (folder / "right.html").read_text()
    said = texts(content)
    assert "Healthy : no error and no warning in 8 cycles, 1 note . Findings" in said
    assert "Where gradients are stopped detach at train.py:14 stops d_loss → G train.py:14" in said
    cut = "d_loss = bce(D(real), torch.ones(16, 1)) + bce(D(fake.detach()), torch.zeros(16, 1))"
    assert marked(content) == ["▸ 19 g_loss.backward()", f"▸ 14 {cut}"]


@pytest.mark.parametrize(
    ("report", "line"),
    [
        (made_up(), "Healthy : no error and no warning in 2 cycles."),
        (made_up(losses=(), matrix=None), "Nothing to report: no backward ran."),
        (made_up(findings=(Finding("rounded", "warning", "m", "f"),)), "1 warning Findings warning m Fix : f"),
    ],
)
def test_what_it_comes_to(report, line):
    said = texts(html_page(report)).replace("Healthy :", "Healthy :").replace(" .", ".")
    assert line in said
    assert ("Healthy" in said) == line.startswith("Healthy")


def test_cuts_that_stop_come_first():
    beside, first, second = (CutSite("detach", "gone.py", line) for line in (1, 5, 9))
    cells = {("a", "p"): Cell("open", 1.0, (beside, second)), ("b", "p"): Cell("blocked", 0.0, (second, first))}
    said = texts(html_page(made_up(matrix=FlowMatrix(["p"], cells, ["a", "b"])))).partition("are stopped ")[2]
    assert said.startswith(
        "detach at gone.py:5 stops b → p gone.py:5 detach at gone.py:9 stops b → p; a → p has another way gone.py:9 "
        "detach at gone.py:1 a → p has another way gone.py:1 Losses"
    )


def test_every_cell_is_told_once(folder):
    content = (folder / "right.html").read_text()
    data = json.loads(re.findall(r'id="data">(.*?)</script>', content)[0])
    assert (data["losses"], data["parts"]) == (["d_loss", "g_loss"], ["G", "D"])
    assert data["cells"]["0 0"] == {"cuts": [0]}
    assert data["cuts"] == ["detach at train.py:14"]
    assert data["cells"]["1 0"]["norm"] > 0
    assert data["texts"][data["cells"]["1 0"]["path"]].startswith("binary_cross_entropy_with_logits (train.py:18) ← ")
    assert data["lines"] == ["train.py:15", "train.py:19"]


def test_nothing_is_read_as_html(tmp_path):
    evil, raw = "<i onx='1'>&amp;\"", tmp_path / "<i onx>.py"
    raw.write_text("</pre><i onx>&lt;\n" * 5)
    cut = CutSite("no_derivative", str(raw), 3, op=evil)
    cells = {
        (evil, evil): Cell("blocked", 0.0, (cut,), note=evil, died=(evil,)),
        ("b", evil): Cell("open", 1.0, (cut,), path=(evil,)),
    }
    report = Report(
        evil,
        FlowMatrix([evil], cells, [evil, "b"]),
        (LossRow(evil, str(raw), 2, 1), LossRow("b", str(raw), 2, 1, evil)),
        (OptimizerRow(evil, evil, evil, 3, 1, (evil,), (evil,)),),
        (1, 1),
        (Finding(evil, "error", evil, evil, str(raw), 4), Finding("late_zero_grad", "error", evil, evil, evil, 4)),
        (evil,),
    )
    for content in (html_page(report), notebook_html(report), report.matrix._repr_html_()):
        assert "<i onx" not in content
        assert "</pre><i" not in content
        assert evil in html.unescape(content)
        assert "</script" not in re.sub(r"</script>\n", "", content)
    assert "&lt;/pre&gt;&lt;i onx&gt;&amp;lt;" in html_page(report)


@pytest.mark.parametrize(
    ("line", "numbers"),
    [(1, ["▸ 1", "2", "3", "4"]), (5, ["2", "3", "4", "▸ 5", "6", "7", "8"]), (9, ["6", "7", "8", "▸ 9"])],
)
def test_an_excerpt(line, numbers, tmp_path):
    file = tmp_path / "a.py"
    file.write_text("".join(f"    line {i}\n" for i in range(1, 10)))
    shown = excerpt(str(file), line)
    assert [" ".join(n.split()) for n in re.findall(r"<i>(.*?)</i>", shown)] == numbers
    assert marked(shown) == [f"▸ {line} line {line}"]
    assert re.findall(r"<b>( *)line", shown) == [""] * len(numbers)


def test_no_excerpt_without_a_source():
    assert excerpt("", 0) == ""
    assert texts(excerpt("gone.py", 3)) == "gone.py:3"


def test_what_cannot_be_written_is_refused_before_the_script_runs(tmp_path):
    write(tmp_path, "print('ran')")
    for file, why in (("no/where.html", "the folder cannot be written"), (".", "is a folder")):
        ran = run("--html", file, "train.py", cwd=tmp_path)
        assert (ran.returncode, ran.stdout, ran.stderr) == (2, "", f"error: --html {file}: {why}\n")


def test_goes_where_it_was_asked_to_and_each_child_writes_its_own(tmp_path):
    (tmp_path / "below").mkdir()
    ran = run("--html", "page.html", write(tmp_path, CHILD), cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert sorted(file.name for file in tmp_path.rglob("*.html")) == ["page.html", "page.two.html"]
    assert "no backward ran" in (tmp_path / "page.html").read_text()
    assert "child_loss" in (tmp_path / "page.two.html").read_text()


@pytest.fixture
def page(folder, browser):
    """Opens a page; whatever a test does, the console stays silent."""
    browser.errors()

    def opened(name, path=folder):
        browser.open("about:blank")
        browser.open((path / f"{name}.html").as_uri())
        end = time.monotonic() + 10  # a key that comes before a busy browser has the page in focus is lost
        while time.monotonic() < end and not browser.run(
            "return document.hasFocus() && document.readyState == 'complete'"
        ):
            time.sleep(0.02)
        return browser

    yield opened
    assert browser.errors() == []


def told(browser) -> str:
    return browser.run("return document.querySelector('#cell').innerText")


def shows(browser, text: str) -> bool:
    """Whether a cell's details begin so, within the seconds that a busy browser may take to act on a key."""
    end = time.monotonic() + 10
    while time.monotonic() < end and not told(browser).startswith(text):
        time.sleep(0.02)
    return told(browser).startswith(text)


@in_a_browser
class TestInABrowser:
    def test_by_keyboard_a_cell_tells_its_cut_and_leads_to_its_line(self, page):
        b = page("right")
        b.press(KEYS["tab"])
        assert shows(b, "d_loss → G: blocked; backward at train.py:15\nstopped by detach at train.py:14")
        assert b.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
        b.press(KEYS["down"])
        assert shows(b, "g_loss → G: open")
        said = told(b)
        assert re.match(r"g_loss → G: open, \|g\| 0\.\d+, 100% of all gradient that arrives there; backward at", said)
        assert "\nway: binary_cross_entropy_with_logits (train.py:18) ← " in said
        b.press(KEYS["right"], KEYS["right"], KEYS["down"])  # the last two lead nowhere
        assert shows(b, "g_loss → D: open")
        b.press(KEYS["up"], KEYS["left"], KEYS["left"], KEYS["tab"])
        assert b.run("return document.activeElement.getAttribute('href')") == "#cut-0"
        assert b.run("return document.querySelectorAll('.flow [tabindex=\"0\"]').length") == 1
        assert b.run("return document.querySelector('#cut-0 mark b').innerText").endswith("torch.zeros(16, 1))\n")

    def test_by_mouse(self, page):
        b = page("leak")
        b.click(".flow tbody tr:nth-child(2) td:nth-child(3)")
        assert shows(b, "g_loss → D: open")
        assert b.run("return performance.getEntriesByType('resource').length") == 0

    def test_a_share_is_of_all_gradient_at_the_part(self, page, tmp_path):
        cells = {("a", "p"): Cell("open", 3.0), ("b", "p"): Cell("open", 1.0), ("c", "p"): Cell("open", 0.001)}
        cells |= {("a", "q"): Cell("open", 5.0), ("b", "q"): Cell("open", 0.0), ("c", "q"): Cell("open", float("inf"))}
        matrix = FlowMatrix(["p", "q"], cells, ["a", "b", "c"])
        (tmp_path / "p.html").write_text(html_page(made_up(matrix=matrix)))
        b, said = page("p", tmp_path), []
        for row, column in itertools.product((1, 2, 3), (2, 3)):
            b.click(f".flow tbody tr:nth-child({row}) :nth-child({column})")
            said.append(told(b).partition(": ")[2])
        arrives = "of all gradient that arrives there"
        assert said == [
            f"open, |g| 3, 75% {arrives}", f"open, |g| 5, 100% {arrives}", f"open, |g| 1, 25% {arrives}", "open",
            f"open, |g| 0.001, less than 1% {arrives}", "open, |g| inf",
        ]  # fmt: skip

    def test_for_a_screen_reader(self, page):
        b = page("leak")
        levels = b.run("return [...document.querySelectorAll('h1, h2, h3')].map(h => Number(h.tagName[1]))")
        assert levels[0] == 1
        assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
        assert b.run("return [...document.querySelectorAll('th')].every(th => th.scope)")
        assert b.run("return document.querySelector('#cell').getAttribute('aria-live')") == "polite"
        assert b.run("return document.querySelector('.flow').getAttribute('role')") == "grid"

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_readable_in(self, page, scheme):
        b = page("leak")
        b.scheme(scheme)
        ratio = b.contrast("h1, h2, h3, p, td, th, code, .sum span, .badge, figcaption, .source i, .source b")
        b.scheme("")
        assert ratio >= 4.5

    def test_fits_a_phone(self, page):
        b = page("leak")
        b.post("/window/rect", width=500, height=900)
        wide = b.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
        b.post("/window/rect", width=1280, height=900)
        assert wide == 0

    def test_a_large_matrix_keeps_its_heads_in_sight(self, page, tmp_path):
        losses, parts = [f"loss_{i}" for i in range(256)], [f"trunk.layer{i}.attention" for i in range(100)]
        cells = {(loss, part): Cell("open", 1.0) for loss in losses for part in parts}
        (tmp_path / "large.html").write_text(html_page(made_up(matrix=FlowMatrix(parts, cells, losses))))
        b = page("large", tmp_path)
        b.press(KEYS["tab"], KEYS["end"], *[KEYS["down"]] * 60, *[KEYS["left"]] * 40)
        box = "const box = s => { const r = %s.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; };"
        boxes = []
        for key in [KEYS["up"]] * 30 + [KEYS["left"]] * 15:
            b.press(key)
            boxes.append(b.run(box % "document.activeElement" + "return box()"))
        assert shows(b, "loss_30 → trunk.layer44.attention: open")
        left, top = (min(box[side] for box in boxes) for side in (0, 1))
        right, bottom = (max(box[side] for box in boxes) for side in (2, 3))
        shown = b.run(box % "document.querySelector('.tall')" + "return box()")
        head = b.run(box % "document.querySelector('.flow thead td')" + "return box()")
        assert shown[:2] == pytest.approx(head[:2], abs=1.5)  # the heads stand still in their corner
        assert left >= head[2] - 1
        assert top >= head[3] - 1
        assert right <= shown[2]
        assert bottom <= shown[3]
