"""comparison.html in a real browser: arms and cells are clicked, texts read, the console is silent."""

from __future__ import annotations

import csv
import itertools
import re
from urllib.parse import parse_qsl

import pytest

from conf_tests.browser import in_a_browser, wait_until
from conf_tests.compare.runs import in_memory, record
from stopgrad.compare.page import html_page

KEYS = {"tab": "\ue004", "enter": "\ue007", "down": "\ue015", "right": "\ue014", "space": "\ue00d", "escape": "\ue00c"}


@pytest.fixture
def page(folder, browser):
    """The page, opened anew; whatever a test did, the console must have stayed silent."""
    browser.errors()
    at(browser, folder, "")
    yield browser
    browser.scheme("")
    assert browser.errors() == []


def at(browser, folder, view):
    browser.open("about:blank")
    browser.open(f"{(folder / 'comparison.html').as_uri()}#{view}")
    browser.wait_for("return document.readyState === 'complete' && typeof view === 'object'")


def text(browser, selector):
    return browser.run("return document.querySelector(arguments[0]).innerText", selector)


def pressed(browser, selector):
    """Which buttons below ``selector`` are switched on: what they choose, or their texts."""
    buttons = "[...document.querySelectorAll(`${arguments[0]} [aria-pressed=true]`)]"
    return browser.run(f"return {buttons}.map(b => Object.values(b.dataset)[0] ?? b.innerText)", selector)


def place(browser, tag, x, y=0.5):
    """Where in the window the step ``x`` of a curve is, at a part ``y`` of its height."""
    return browser.run(
        """
        const {chart, box} = charts.get(arguments[0]);
        box.scrollIntoView({block: "center"});
        chart.syncRect();  // which it does by itself, a frame after it was scrolled
        const over = chart.over.getBoundingClientRect();
        return [over.left + chart.valToPos(arguments[1], "x"), over.top + over.height * arguments[2]]""",
        tag,
        x,
        y,
    )


def tip(browser, tag):
    """What is told over a curve: a heading, and by arm what stands beside it."""
    heading, rows = browser.run(
        """
        const tip = document.querySelector(`[data-tag="${arguments[0]}"] .tip`);
        if (tip.hidden) return [null, []];
        const rows = [...tip.querySelectorAll("tr")].map(row => [...row.children].slice(1).map(cell => cell.innerText));
        return [tip.querySelector("strong").innerText, rows]""",
        tag,
    )
    return heading, {arm: told for arm, *told in rows}


def arms_drawn(browser, tag):
    """The arms whose curves are drawn, each with how strongly."""
    script = "return Object.fromEntries(charts.get(arguments[0]).curves.map(curve => [curve.name, curve.alpha]))"
    return browser.run(script, tag)


def view(browser):
    return dict(parse_qsl(browser.run("return location.hash").lstrip("#")))


@in_a_browser
class TestPage:
    def test_tells_every_arm(self, page):
        assert text(page, "h1") == "made_up: what did the cut change?"
        rows = page.run("return [...document.querySelectorAll('#arms tbody tr')].map(row => row.innerText)")
        assert len(rows) == 3
        assert text(page, "#about") == "3 arms, seeds 0, 1, 2, against detach: 1 identical and 1 broken."
        assert rows[1].startswith("none\n\tidentical\t–\tprobe reaches encoder; no step uses it; identical weights")
        assert rows[2].startswith("<b>late\n\tbroken\nexpected same result\n\t")
        assert page.run("return performance.getEntriesByType('resource').length") == 0

    def test_an_arm_is_chosen_by_mouse(self, page):
        assert text(page, "#arm-title") == "detach: reference"
        page.click("#arms tr:nth-child(3) button")
        assert text(page, "#arm-title") == "<b>late: broken\nexpected same result"
        assert pressed(page, "#arms") == ["<b>late"]
        assert "seed 0: score -1 is below the line 0" in text(page, "#detail")
        assert "The weights differ between 2 and 4 on (seed 0), first in head.weight; 1 of 3" in text(page, "#detail")
        last = "return charts.get('score').curves.at(-1)"
        assert page.run(f"{last}.name") == "<b>late"
        assert page.run(f"{last}.width > Math.max(...charts.get('score').curves.slice(0, -1).map(c => c.width))")

    def test_a_loss_lights_up_what_it_reaches(self, page):
        """By the button and in the picture; what it does not reach is dimmed, and its row of the matrix is marked."""

        def lit():
            """By name, and the losses of the arrows."""
            return page.run(
                "return [...document.querySelectorAll('#picture .node, #picture .cut, #picture .edge')]"
                ".filter(node => getComputedStyle(node).opacity === '1')"
                ".map(node => node.dataset.boundary || node.dataset.node || `${node.dataset.loss}'s arrow`).sort()"
            )

        page.run("document.head.append(make('style', {}, '* { transition: none !important }'))")
        everything = ["encoder", "features", "head", "other", "other's arrow", "probe", "probe's arrow"]
        assert sorted({*lit()}) == everything
        page.click('#losses [data-loss="probe"]')
        assert sorted({*lit()}) == ["features", "head", "probe", "probe's arrow"]
        assert page.run("return document.querySelectorAll('.matrix tr.on').length") == 1
        assert text(page, "#told") == (
            "In detach, probe reaches head (|g| 2); is stopped before encoder (detach at model.py:7)."
        )
        assert view(page) == {"loss": "probe"}
        page.click("#arms tr:nth-child(2) button")
        assert sorted({*lit()}) == ["encoder", "features", "head", "probe", "probe's arrow"]
        page.click('#picture .node.loss[data-node="probe"]')
        assert pressed(page, "#losses") == []
        page.click('#picture .node.loss[data-node="probe"]')
        assert pressed(page, "#losses") == ["probe"]
        assert text(page, "#told") == "In none, probe reaches encoder (|g| 0.5) and head (|g| 2)."

    def test_a_cut_lights_up_the_arms_that_flip_it(self, page):
        """In the table, the curves and the matrix; flipped, the arrows of such an arm are drawn."""

        def drawn():
            return page.run("return document.querySelector('#picture desc').textContent")

        assert "probe is stopped before encoder by stop.features (detach" in drawn()
        page.click('#picture .cut[data-boundary="features"]')
        assert pressed(page, "#switches") == ["features"]
        rows = page.run("return [...document.querySelectorAll('#arms tr.lit')].map(row => row.dataset.arm)")
        assert rows == ["none", "<b>late"]
        assert page.run("return document.querySelectorAll('#picture .cut.chosen').length") == 1
        assert arms_drawn(page, "score") == {"detach": 1, "none": 1, "<b>late": 1}
        assert text(page, '[data-cell="probe encoder"]') == "blocked\nopen in none, open in <b>late"
        assert text(page, "#told") == "features is detach in detach, the reference; none and <b>late (none) flip it."
        assert pressed(page, "#flips") == []
        page.click('#flips [data-flip="none"]')
        assert "stop.features (none" in drawn()
        assert "lets probe through to encoder" in drawn()
        assert text(page, "#arm-title") == "none: identical"
        page.click('#flips [data-flip="none"]')
        assert "probe is stopped before encoder" in drawn()
        page.click('#switches [data-cut="zero_grad"]')
        assert arms_drawn(page, "score") == {"detach": 1, "none": 0.18, "<b>late": 1}
        assert view(page) == {"cut": "zero_grad"}

    def test_a_cell_tells_its_line(self, page):
        page.click("#arms tr:nth-child(2) button")
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

    def test_a_value_is_read_over_a_curve(self, page):
        """Means and ranges of three seeds, whose scores are .2 or .1 apart and rise by .01 a step."""
        page.point(place(page, "score", 12))
        heading, told = tip(page, "score")
        assert heading == "step 12"
        assert told["detach"] == ["1.31", "1.11 to 1.51", "1.11 1.31 1.51"] == told["none"]
        assert told["<b>late"] == ["-0.79", "-0.89 to -0.69", "-0.89 -0.79 -0.69"]
        page.point((5, 5))
        assert tip(page, "score") == (None, {})

    def test_arms_and_seeds_are_switched_off_and_on(self, page):
        page.click('[data-shown="none"]')
        page.click('[data-seed="2"]')
        page.click('[data-seed="0"]')
        page.point(place(page, "score", 12))
        assert tip(page, "score") == ("step 12", {"detach": ["1.31", "", "1.31"], "<b>late": ["-0.79", "", "-0.79"]})
        assert view(page) == {"show": "<b>late", "seed": "1"}
        page.click('[data-seed="1"]')
        assert text(page, "[data-tag=score] .plot") == "No arm that is drawn has it."
        for button in ('[data-seed="0"]', '[data-seed="1"]', '[data-seed="2"]', '[data-shown="none"]'):
            page.click(button)
        assert arms_drawn(page, "score") == {"detach": 1, "none": 1, "<b>late": 1}
        assert view(page) == {}

    def test_zoom_by_dragging_and_back(self, page):
        page.point(place(page, "score", 5), place(page, "score", 15), drag=True)
        ends = "return [...charts.values()].map(({chart}) => [chart.scales.x.min, chart.scales.x.max])"
        score, loss, end = page.run(ends)
        assert score == loss == pytest.approx([5, 15], abs=0.1)  # all curves at once
        assert end == [-0.6, 2.6]  # but that of one point, which is over arms
        first, last = map(float, view(page)["zoom"].split(".."))
        assert [first, last] == pytest.approx(score, abs=1e-4)
        page.click("#reset")
        assert page.run(ends)[0] == [1, 20]
        assert view(page) == {}

    def test_a_logarithmic_scale(self, page):
        """Losses 1 / (1 + step) between 1 and 1/20: by default linear, and then halfway lies at the geometric mean."""
        halfway = (
            "const c = charts.get('loss/probe').chart; return c.posToVal(c.bbox.height / devicePixelRatio / 2, 'y')"
        )
        assert page.run(halfway) == pytest.approx((1 + 1 / 20) / 2, rel=0.01)
        page.click('[data-tag="loss/probe"] button')
        assert page.run(halfway) == pytest.approx((1 / 20) ** 0.5, rel=0.01)
        assert pressed(page, "#curves") == ["log"]
        assert view(page) == {"log": "loss/probe"}

    def test_one_point_is_a_dot_among_its_seeds(self, page):
        """val/end is 10, 12 and 14 in the seeds of an arm: a dot at 12, rings at 10 and 14, and nothing between."""
        found = page.run(
            """
            const {chart} = charts.get("val/end"), ink = [], ratio = devicePixelRatio;
            for (const value of [10, 11, 12, 14]) {
              const x = Math.round(chart.valToPos(value, "y", true)), y = Math.round(chart.valToPos(0, "x", true));
              const at = by => chart.ctx.getImageData(x + by * ratio, y, 1, 1).data;
              const isInk = ([red, , , alpha]) => alpha > 128 && red < 100;  // not the grid, which is light
              ink.push([isInk(at(0)), isInk(at(3))]);
            }
            return [ink, chart.bands?.length ?? 0]"""
        )
        assert found == [[[False, True], [False, False], [True, True], [False, True]], 0]
        x, y = page.run(
            """
            const {chart, box} = charts.get("val/end");
            box.scrollIntoView({block: "center"});
            chart.syncRect();
            const over = chart.over.getBoundingClientRect();
            return [over.left + 20, over.top + chart.valToPos(2, "x")]"""
        )
        page.point((x, y))
        assert tip(page, "val/end") == ("<b>late", {"<b>late": ["-9", "-10 to -8", "-10 -9 -8"]})

    @pytest.mark.parametrize("last", [300, 99_999, 2_000_000])
    def test_no_label_is_cut_off(self, page, last):
        """Of values between -1e20 and 1e-5; labels end within the canvas, and beside the axis."""
        room = page.run(
            """
            const flat = [-1e20, 1e-5], box = make("div", {style: "width: 300px"}), steps = [1, Number(arguments[0])];
            document.querySelector("#curves").append(box);
            const values = {steps, mean: flat, low: flat, high: flat, seeds: {}};
            const curve = {name: "a", ...values, ink: "#000000", dash: [], width: 1, alpha: 1};
            const chart = lineChart(box, [curve], {tag: "a", log: false, zoom: null});
            const pen = document.createElement("canvas").getContext("2d"), wide = text => pen.measureText(text).width;
            pen.font = FONT;
            return Promise.resolve().then(() => {  // it is drawn once what runs has ended
              const [x, y] = chart.axes, left = chart.bbox.left / devicePixelRatio;
              const across = x._splits.map((step, k) => [left + chart.valToPos(step, "x"), wide(x._values[k]) / 2]);
              return [...y._values.map(text => y._size - y.gap - y.ticks.size - wide(text)),
                ...across.flatMap(([at, half]) => [at - half, chart.width - at - half])];
            })""",
            last,
        )
        assert len(room) > 10
        assert min(room) >= 0

    def test_the_numbers_as_csv(self, page, tmp_path):
        page.cdp("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        page.click("#csv")
        wait_until(lambda: (tmp_path / "made_up.csv").exists())
        with open(tmp_path / "made_up.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 3 * 3 * (20 + 20 + 1)
        by = {(r["metric"], r["arm"], r["seed"], r["step"]): float(r["value"]) for r in rows}
        assert by["score", "<b>late", "2", "12"] == pytest.approx(-1 + 0.11 + 0.2, rel=1e-6)
        assert by["val/end", "none", "1", "100"] == 12.0

    def test_a_link_keeps_the_view(self, page, folder):
        """What is chosen by mouse is there again where the address is opened in another window."""
        page.click("#arms tr:nth-child(2) button")
        page.click('#losses [data-loss="probe"]')
        page.click('#switches [data-cut="features"]')
        page.click('[data-shown="<b>late"]')
        page.click('[data-seed="0"]')
        page.click('[data-tag="score"] button')
        page.point(place(page, "score", 4), place(page, "score", 9), drag=True)
        parts = ("#arms", "#losses", "#switches", "#flips", "#shown", "#tools", "#curves")
        seen = {part: pressed(page, part) for part in parts}
        assert seen == {
            "#arms": ["none"], "#losses": ["probe"], "#switches": ["features"], "#flips": ["none"],
            "#shown": ["detach", "none"], "#tools": ["1", "2"], "#curves": ["log"],
        }  # fmt: skip
        link = page.run("return location.hash")
        zoom = page.run("return view.zoom")
        at(page, folder, link[1:])
        assert {part: pressed(page, part) for part in parts} == seen
        assert page.run("return view.zoom") == pytest.approx(zoom, rel=1e-4)
        assert page.run("return location.hash") == link
        page.point(place(page, "score", 6))
        told = ["1.35", "1.25 to 1.45", "1.25 1.45"]
        assert tip(page, "score") == ("step 6", {"detach": told, "none": told})

    @pytest.mark.parametrize("link", ["%3Cb%3Elate", "arm=%3Cb%3Elate&loss=gone&cut=gone&show=gone&zoom=9..1&log=gone"])
    def test_a_link_of_an_older_page(self, page, folder, link):
        at(page, folder, link)
        assert text(page, "#arm-title").startswith("<b>late: broken")
        assert pressed(page, "#losses") == pressed(page, "#switches") == []

    def test_by_keyboard_alone(self, page):
        """From the top of the page, by Tab and what a key does."""

        def focused():
            return page.run("return Object.values(document.activeElement.dataset)[0]")

        page.press(KEYS["tab"], KEYS["enter"])
        assert (focused(), pressed(page, "#losses")) == ("probe", ["probe"])
        page.press(KEYS["tab"], KEYS["space"])
        assert (focused(), pressed(page, "#switches")) == ("features", ["features"])
        page.press(KEYS["tab"], KEYS["tab"], KEYS["enter"])
        assert focused() == "none"
        assert text(page, "#arm-title") == "none: identical"
        assert page.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.press(KEYS["escape"])
        assert pressed(page, "#losses") == pressed(page, "#switches") == []
        page.run("document.querySelector('#arms button').focus()")
        page.press(KEYS["down"], KEYS["down"], KEYS["enter"])
        assert text(page, "#arm-title").startswith("<b>late")

    def test_a_curve_is_read_by_keyboard(self, page):
        page.run("document.querySelector('[data-tag=score] .plot').focus()")
        page.press(KEYS["right"], KEYS["right"], KEYS["right"])
        assert text(page, "#read") == "score, step 3: none 1.22, detach 1.22, <b>late -0.88"
        assert tip(page, "score")[0] == "step 3"
        page.press("+")
        first, last = page.run("return view.zoom")
        assert (first, last) == (1, 3 + 19 / 4)
        page.press("0")
        assert view(page) == {}

    def test_for_a_screen_reader(self, page):
        page.click("#arms tr:nth-child(3) button")
        bare = page.run(
            "return [...document.querySelectorAll('button, svg:not([aria-hidden]), img, input, .plot, [role=group]')]"
            ".filter(node => !(node.innerText || node.getAttribute('aria-label') || node.getAttribute('alt')"
            " || node.querySelector('title'))).length"
        )
        assert bare == 0
        for live in ("#cell", "#told", "#read"):
            assert page.run("return document.querySelector(arguments[0]).getAttribute('aria-live')", live) == "polite"
        label = page.run("return document.querySelector('[data-tag=score] .plot').getAttribute('aria-label')")
        assert re.fullmatch(r"score, mean over the seeds at the end: detach 1.39; <b>late -0.71", label)
        levels = page.run("return [...document.querySelectorAll('h1, h2, h3')].map(h => Number(h.tagName[1]))")
        assert levels[0] == 1
        assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
        assert page.run("return [...document.querySelectorAll('th:not(.tip th)')].every(th => th.scope)")

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_readable_in(self, page, scheme):
        """Contrast of text to its background: at least 4.5 to 1, as WCAG 2.1 asks (1.4.3); of lines 3 to 1 (1.4.11)."""
        page.scheme(scheme)
        assert page.contrast("p, td, th, h1, h2, .verdict, .was, .flips-it, code, button:not(:disabled), small") >= 4.5
        lines = page.run("return ['--ink', ...[1, 2, 3, 4, 5, 6, 7].map(k => `--c${k}`)].map(colour)")
        behind = luminance(page.run("return colour('--back')"))
        for line in map(luminance, lines):
            assert (max(line, behind) + 0.05) / (min(line, behind) + 0.05) >= 3

    def test_fits_a_phone(self, page):
        """360 px: what is wide is scrolled in its own place, never the page."""
        page.cdp("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=1, mobile=True)
        try:
            page.wait_for("return charts.get('score').chart.width < 360")
            page.click("#arms tr:nth-child(3) button")
            page.click('#switches [data-cut="features"]')
            page.point(place(page, "score", 19))
            assert tip(page, "score")[0] == "step 19"
            assert page.run("return document.documentElement.scrollWidth") == 360
        finally:
            page.cdp("Emulation.clearDeviceMetricsOverride")

    def test_in_print(self, page):
        """On paper: nothing to press, dark ink also where the screen is dark, and all tables whole."""
        dark = [{"name": "prefers-color-scheme", "value": "dark"}]
        page.cdp("Emulation.setEmulatedMedia", media="print", features=dark)
        page.run("dispatchEvent(new Event('beforeprint'))")
        try:
            assert page.run("return ['#tools', '#csv', '#no-arms', '[data-tag=score] figcaption button']"
                            ".every(s => !document.querySelector(s)?.checkVisibility())")  # fmt: skip
            assert page.run("return getComputedStyle(document.querySelector('.wide')).overflowX") == "visible"
            assert luminance(page.run("return charts.get('score').curves.find(c => c.name === 'detach').ink")) < 0.1
            assert page.contrast("td, th, p, h2") >= 4.5
        finally:
            page.run("dispatchEvent(new Event('afterprint'))")
            page.cdp("Emulation.setEmulatedMedia", media="")

    def test_samples_lie_beside_the_page(self, page, folder):
        """One loads when it is seen; one that was lost is said to be."""
        page.click("#arms tr:nth-child(2) button")
        assert page.run("return document.querySelector('.samples img').loading") == "lazy"
        page.run("document.querySelector('.samples').scrollIntoView()")
        page.wait_for("return document.querySelector('.samples img').naturalWidth === 1")
        (folder / "comparison_files" / "02--b-late.png").rename(folder / "away.png")
        try:
            page.click("#arms tr:nth-child(3) button")
            page.run("document.querySelector('.samples').scrollIntoView()")
            page.wait_for("return document.querySelector('.missing') !== null")
        finally:
            (folder / "away.png").rename(folder / "comparison_files" / "02--b-late.png")
        assert text(page, ".missing").startswith("comparison_files/02--b-late.png is not beside this page")
        assert ["ERR_FILE_NOT_FOUND" in error for error in page.errors()] == [True]


def luminance(colour):
    """Of #rgb or #rrggbb (WCAG 2.1)."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[k : k + 2], 16) / 255 for k in (0, 2, 4)]
    light = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return sum(v * share for v, share in zip(light, (0.2126, 0.7152, 0.0722), strict=True))


@in_a_browser
def test_a_hundred_runs(browser, tmp_path):
    """33 arms of three seeds, 12 curves of 200 points: under 3 MB, and every arm is there. How fast: benchmarks."""
    runs = in_memory(arms=33, seeds=3, tags=12, points=200)
    records = {k: record("none" if k % 2 else "detach") for k in range(33)}
    for k, each in records.items():
        each["nodes"][0]["label"] = f"encoder {k}"  # no two pictures are one
    runs.flow_record = lambda arm: records[int(arm[4:])]
    file = tmp_path / "comparison.html"
    file.write_text(html_page(runs, {}))
    assert file.stat().st_size < 3_000_000
    at(browser, tmp_path, "")
    assert len(pressed(browser, "#shown")) == 10
    browser.click("#all-arms")
    assert len(arms_drawn(browser, "loss/11")) == 33
    browser.click('#switches [data-cut="fakes"]')
    assert len([alpha for alpha in arms_drawn(browser, "frechet").values() if alpha == 1]) == 16 + 1
    at(browser, tmp_path, "cut=fakes")
    assert len(pressed(browser, "#shown")) == 1 + 16 + 4  # all that flip it, and four of the nine first that do not
    assert browser.run("return location.hash") == "#cut=fakes"
    assert browser.errors() == []
