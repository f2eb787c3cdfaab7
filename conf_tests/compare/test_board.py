"""``python -m stopgrad board``: TensorBoard with short names, one colour an arm, metrics and the flow picture first."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from urllib.parse import parse_qs, urlsplit

import pytest
import torch

from conf_tests.browser import in_a_browser, wait_until
from conf_tests.compare.runs import write_run
from conf_tests.compare.test_tensorboard import DEEP, ask
from conf_tests.helpers import ROOT
from stopgrad.__main__ import main
from stopgrad.compare import compare
from stopgrad.compare.board import BY_ARM, address, link, names, tags_in
from stopgrad.compare.tags import logged, shown


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A sweep of two arms, compared, and beside it a run of its own."""
    from torch.utils.tensorboard.writer import SummaryWriter

    folder = tmp_path_factory.mktemp("logs") / "runs"
    sweep = folder / "gan" / "sweep-2026-11-26_00-54-26"
    for arm in ("detach", "none"):
        for seed in (0, 1, 10):
            run = write_run(sweep, arm, seed, curve=10)
            with SummaryWriter(run) as writer:
                writer.add_scalar("flow/probe/head", 2.0, 0)
                writer.add_scalar(shown("score", ["score"]), 1.0, 5)
                writer.add_image("flow/matrix", torch.zeros(3, 4, 4), 0)
    compare([sweep]).write(sweep)
    write_run(folder / "td", "default", 3)
    return folder


def test_names_are_arms_and_seeds(runs):
    sweep = next((runs / "gan").iterdir())
    assert [*names(sweep)] == [
        "detach/0", "detach/1", "detach/10", "detach/mean", "none/0", "none/1", "none/10", "none/mean",
    ]  # fmt: skip
    assert names(sweep)["none/10"] == sweep / "none" / "seed-10"
    assert names(sweep)["none/mean"] == sweep / "comparison" / "none"
    assert "default/3" in names(runs)
    assert len(names(runs)) == 9
    assert [*names(runs / "td")] == ["default/3"]
    assert [*names(sweep / "none" / "seed-1")] == ["none/1"]
    assert [*names(sweep / "comparison")] == ["detach/mean", "none/mean"]


def test_what_has_the_same_name_is_told_apart(tmp_path):
    for sweep in ("a", "b"):
        write_run(tmp_path / sweep, "none", 0)
    write_run(tmp_path / "b", "none", 1)
    assert [*names(tmp_path)] == ["a-none/0", "b-none/0", "none/1"]


def test_one_colour_an_arm(runs):
    """TensorBoard groups runs by what the expression captures."""
    expression = re.compile(BY_ARM.removeprefix("regex:"))
    groups: dict = {}
    for name in names(runs):
        found = expression.match(name)
        assert found
        groups.setdefault(found.groups(), []).append(name)
    assert [*map(len, groups.values())] == [1, 4, 4]


def test_runs_that_come_later_are_linked(tmp_path):
    runs, links = tmp_path / "runs", tmp_path / "links"
    write_run(runs, "none", 0)
    link(runs, links)
    write_run(runs, "none", 1)
    link(runs, links)
    assert sorted(str(path.relative_to(links)) for path in links.glob("*/*")) == ["none/0", "none/1"]
    assert (links / "none/1").resolve() == runs / "none" / "seed-1"


def test_metrics_and_the_picture_are_pinned(runs):
    asked = parse_qs(urlsplit(address(runs / "gan")).query)
    assert asked["runColorGroup"] == [BY_ARM]
    assert json.loads(asked["pinnedCards"][0]) == [
        {"plugin": "scalars", "tag": "Metrics/score"},
        {"plugin": "images", "tag": "flow/matrix", "runId": "defaultExperimentId/detach/0", "sample": 0},
    ]
    assert address(runs / "td").endswith("&pinnedCards=%5B%5D&smoothing=0#timeseries")


def test_pinned_are_the_first_that_the_recipe_declares(tmp_path):
    from torch.utils.tensorboard.writer import SummaryWriter

    names_logged = ["d", "c", "b", "a"]
    for seed in (0, 1):
        run = write_run(tmp_path, "none", seed, metrics_declared={name: {"goal": None} for name in names_logged[::-1]})
        with SummaryWriter(run) as writer:
            for name in names_logged:
                writer.add_scalar(shown(name, names_logged), 1.0, 0)
    (tmp_path / "none" / "seed-0" / "result.json").write_text("damaged")
    pinned = json.loads(parse_qs(urlsplit(address(tmp_path)).query)["pinnedCards"][0])
    assert [card["tag"] for card in pinned] == ["Metrics/a", "Metrics/b", "Metrics/c"]


def test_a_comparison_logs_its_metrics_first_and_nothing_final(runs):
    arm = names(runs / "gan")["none/mean"]
    found = tags_in(arm)
    assert "Metrics/score" in found
    assert "loss/probe" in found
    assert not [tag for tag in found if tag.startswith(("final", "epoch")) or tag == "score"]


def test_a_metric_that_was_measured_once_is_there_too(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for arm, score in (("detach", 1.0), ("none", 3.0)):
        for seed in (0, 1):
            write_run(tmp_path, arm, seed, score + seed)
    compare([tmp_path]).write(tmp_path)
    events = EventAccumulator(str(tmp_path / "comparison" / "none")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("Metrics/score")] == [(100, 3.5)]


def test_names_in_tensorboard_are_read_as_they_were_logged():
    for tag in ("score", "health/slope", "loss/g"):
        assert logged(shown(tag, ["score", "health/slope"])) == tag
    assert sorted(["flow/a", shown("z", ["z"]), "accuracy"])[0] == "Metrics/z"


@pytest.mark.parametrize(("folder", "message"), [("gone", "gone: no such directory"), (".", ".: no run below it")])
def test_nothing_to_show(tmp_path, monkeypatch, capsys, folder, message):
    monkeypatch.chdir(tmp_path)
    assert main(["board", folder]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_without_tensorboard_it_says_what_to_install(runs, monkeypatch, capsys):
    monkeypatch.setattr("stopgrad.compare.board.find_spec", lambda name: None)
    assert main(["board", str(runs)]) == 2
    assert capsys.readouterr().err == "error: board: tensorboard is not installed: pip install 'stopgrad[compare]'\n"


@pytest.fixture(scope="module")
def served(runs, tmp_path_factory):
    """The command on the whole folder: the process, the address that it printed, and where its links are."""
    temporary = tmp_path_factory.mktemp("tmp")
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "TMPDIR": str(temporary)}
    command = [sys.executable, "-m", "stopgrad", "board", str(runs / "gan"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip(), temporary
        process.kill()


def test_tensorboard_is_served_with_these_names(served, runs):
    _, url, temporary = served
    base = url.partition("?")[0].rstrip("/")
    wait_until(lambda: len(ask(base, "/data/runs")) == 8)
    assert sorted(ask(base, "/data/runs")) == [*names(runs / "gan")]
    assert url.endswith(address(runs / "gan"))
    assert [path for path in temporary.iterdir() if path.name.startswith("stopgrad-board-")]


@in_a_browser
def test_the_first_screen(served, browser):
    """What is pinned, then Metrics, then flow; no epoch; the runs by their short names."""
    browser.errors()
    browser.open("about:blank")
    browser.open(served[1])
    wait_until(lambda: all(text in browser.run(DEEP) for text in ("2 cards", "Metrics /score", "flow /matrix")))
    said = browser.run(DEEP)
    heads = "return [...document.querySelectorAll('.group-title')].map(node => node.textContent.trim())"
    assert browser.run(heads)[:3] == ["Pinned", "Metrics", "flow"]
    assert "epoch" not in said
    assert "final/" not in said
    assert "sweep-2026" not in said
    assert browser.errors() == []


def test_zz_it_ends_and_leaves_nothing(served):
    process, url, temporary = served
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 130
    assert not [path for path in temporary.iterdir() if path.name.startswith("stopgrad-board-")]
    time.sleep(0.5)
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url.partition("?")[0], timeout=5)
