"""comparison.html as a file: how large, what is in it, what is beside it."""

from __future__ import annotations

import hashlib
import json
import re
from importlib.resources import files

import pytest

from conf_tests.compare.runs import PIXEL, in_memory, record, write_run
from stopgrad.compare import compare
from stopgrad.compare.page import copy_samples, curves_by_seed, flow_pictures
from stopgrad.compare.switches import switches


def test_is_one_small_file_that_asks_nothing_of_the_network(folder):
    content = (folder / "comparison.html").read_text()
    assert len(content) < 200_000
    assert not re.findall(r"(?:src|href)=[\"'](?!data:)", content)
    assert not re.findall(r"@import|url\(", content)
    assert "<b>late" not in content


def test_the_plotting_library_is_what_was_released():
    """The files of uPlot are those of its package on npm, and the page holds its licence, as that asks."""
    kit = files("stopgrad.compare").joinpath("uplot")
    said = json.loads(kit.joinpath("version.json").read_text())
    found = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in kit.iterdir()}
    assert {name: digest for name, digest in found.items() if name != "version.json"} == said["sha256"]
    assert f"(v{said['version']})" in kit.joinpath("uPlot.iife.min.js").read_text()
    assert "The MIT License" in kit.joinpath("LICENSE.txt").read_text()


def test_pictures_have_a_share_of_the_page(monkeypatch):
    """One that several arms have is there once; where there is no room for all, the first are."""
    records = {
        "detach": record("detach"),
        "data": record("data"),
        "again": record("detach"),
        "none": record("none"),
    }
    pictures, shown = flow_pictures(records)
    assert shown == {"detach": 0, "data": 1, "again": 0, "none": 2}
    assert len({*pictures}) == 3
    monkeypatch.setattr("stopgrad.compare.page.PICTURES", len(pictures[0]))
    assert flow_pictures(records) == (pictures[:1], {"detach": 0, "again": 0})


@pytest.mark.parametrize("text", ["{", "[]", '{"nodes": [{}], "edges": [], "losses": []}', '{"nodes": 1}'])
def test_a_damaged_picture_is_left_out(tmp_path, text):
    write_run(tmp_path, "detach", 0)
    write_run(tmp_path, "detach", 1)
    (tmp_path / "detach" / "seed-0" / "flow.json").write_text(text)
    compared = compare([tmp_path])
    assert compared.flow_record("detach") is None
    (tmp_path / "detach" / "seed-1" / "flow.json").write_text(json.dumps(record("detach")))
    assert compared.flow_record("detach") == record("detach")


def test_samples_are_copied_beside_the_page(folder, tmp_path):
    """Each arm's first, under a name of its own that is safe in a file system; what an earlier page had is gone."""
    (tmp_path / "old.png").write_bytes(b"")
    copied = copy_samples(compare([folder]), tmp_path)
    assert copied == {"none": f"{tmp_path.name}/01-none.png", "<b>late": f"{tmp_path.name}/02--b-late.png"}
    assert {file.name for file in tmp_path.iterdir()} == {"01-none.png", "02--b-late.png"}
    assert (folder / "comparison_files" / "01-none.png").read_bytes() == PIXEL


def test_long_curves_are_thinned_and_end_where_they_end():
    runs = in_memory(arms=2, seeds=3, tags=2, points=100)
    for values, kept, every in ((100_000, 100, 1), (2 * 6 * 60, 50, 2)):
        drawn = curves_by_seed(runs, ["frechet", "loss/1"], values)
        found = drawn["curves"]["frechet"]["arm-1"]
        steps = drawn["grids"][found["grid"]]
        assert (len(steps), steps[-1], found["every"]) == (kept, 100, every)
        assert found["seeds"][2][-1] == pytest.approx(runs.found.runs[5].curves["frechet"][-1][1], rel=1e-6)


@pytest.mark.parametrize(("stop", "flips", "otherwise", "alone"), [
    ({"features": "none"}, {"features": "none"}, {}, ["features"]),
    ({"features": "no_grad"}, {}, {"features": "no_grad"}, []),
    ({"features": "none", "zero_grad": "late"}, {"features": "none", "zero_grad": "late"}, {}, []),
    ({"features": "scale:0.5"}, {"features": "scale:0.5"}, {}, ["features"]),
])  # fmt: skip
def test_which_arms_flip_a_cut(tmp_path, stop, flips, otherwise, alone):
    default = {"stop_default": {"features": "detach", "zero_grad": "timely"}}
    write_run(tmp_path, "detach", 0, stop={"features": "detach"}, **default)
    write_run(tmp_path, "other", 0, stop=stop, **default)
    (tmp_path / "detach" / "seed-0" / "flow.json").write_text(json.dumps(record("detach")))
    found = {each["name"]: each for each in switches(compare([tmp_path]), {"detach": record("detach")})}
    assert {name: each["flips"]["other"] for name, each in found.items() if each["flips"]} == flips
    assert {name: each["otherwise"]["other"] for name, each in found.items() if each["otherwise"]} == otherwise
    assert [name for name, each in found.items() if each["alone"]] == alone
