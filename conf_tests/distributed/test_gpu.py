"""The check of a GPU, on a CPU: it runs, goes on, and finds what is otherwise."""

import copy
import json
import math
import os
import signal
import subprocess
import sys
import time
import warnings

import pytest
import torch

from benchmarks import gpu_checks as checks
from benchmarks import gpu_page as page
from benchmarks.gpu_pool import Item, Record, run
from benchmarks.gpu_runs import NoiseOfTheCPU, Trained, trained
from conf_tests.helpers import ROOT


def test_check_runs_on_a_cpu_and_goes_on(tmp_path):
    file = tmp_path / "gpu.json"
    kept = {"fp32 dirac_gan": {"ok": True, "said": "kept", "seconds": 1.0}}
    file.write_text(json.dumps({"card": "of an earlier call", "items": kept}))
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--check", "--device=cpu", "--small", "--workers=1"]
    ran = subprocess.run(
        [*command, "--only=fp32", f"--out={file}", "dirac_gan"], capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    items = json.loads(file.read_text())["items"]
    flipped = items.pop("fp32 dirac_gan stop.fakes=none")
    assert items == kept
    assert (flipped["losses"], flipped["weights"]) == (0.0, 0.0)  # the same device
    assert flipped["broken"] == ["d_loss:generator", "d_loss:stop.fakes"]
    assert "2 hold, 0 do not" in ran.stdout


def test_what_fails_is_told_and_the_rest_goes_on(tmp_path):
    fine = '{"ok": true, "said": "fine"}'
    items = [
        Item("raises", json.loads, {"s": "{"}),
        Item("ends", os._exit, {"status": 3}),
        Item("hangs", signal.pause, {}, 0.4),
        Item("works", json.loads, {"s": fine}),
    ]
    run(items, Record(tmp_path / "gpu.json", {"card": "none"}), 1, time.monotonic() + 100)
    content = json.loads((tmp_path / "gpu.json").read_text())
    said = {name: (found["ok"], found["said"]) for name, found in content["items"].items()}
    assert said == {
        "raises": (False, said["raises"][1]),
        "ends": (False, "its process ended with exit code 3"),
        "hangs": (False, "not finished after 0 s"),
        "works": (True, "fine"),
    }
    assert said["raises"][1].startswith("json.decoder.JSONDecodeError: ")
    run([Item("late", json.loads, {"s": fine})], Record(tmp_path / "gpu.json", {}), 1, time.monotonic() - 1)
    assert "late" not in json.loads((tmp_path / "gpu.json").read_text())["items"]


def test_losses_weights_and_verdicts_that_differ_are_seen():
    assert checks.apart({"loss": [1.0, 4.0]}, {"loss": [1.0, 3.0]}) == 0.25
    assert checks.apart({"loss": [1.0]}, {"loss": [1.0, 1.0]}) == math.inf
    assert checks.apart({"loss": [1.0, 2.0]}, {"loss": [1.0, math.nan]}) == math.inf
    a, b = (Trained(before={"w": torch.zeros(2)}, after={"w": torch.tensor([4.0, y])}) for y in (0.0, 1.0))
    assert checks.moved_apart(a, b) == 0.25
    a.cells, b.cells = {"l:p": "open", "l:q": "zero"}, {"l:p": "blocked", "l:q": "zero"}
    assert checks.other_cells(a, b) == ["l:p open -> blocked"]
    a.norms, b.norms = {"l:p": 2.0, "l:q": 1.0}, {"l:p": 2.5}
    assert checks.norms_apart(a, b) == 0.25


@pytest.fixture(scope="module")
def td():
    with warnings.catch_warnings():
        checks.begin()
        return trained(["recipe=td", "data.batch_size=2"], "cpu", 4, same_noise=True)


@pytest.mark.parametrize("wrong", [None, "losses", "after", "cells", "broken"])
def test_a_device_that_trains_otherwise_does_not_hold(wrong, td, monkeypatch):
    def other(overrides, device, steps, **options):
        found = copy.deepcopy(td)
        match wrong if device == "other" else None:
            case "losses":
                found.losses["td_loss"][-1] *= 1.01
            case "after":
                found.after = {name: 1.01 * weight for name, weight in found.after.items()}
            case "cells":
                found.cells["td_loss:stop.target"] = "open"
            case "broken":
                found.broken = ["td_loss:stop.target"]
        return found

    monkeypatch.setattr(checks, "trained", other)
    assert checks.agrees([], "other", 4)["ok"] == (wrong is None)


@pytest.mark.parametrize("wrong", [None, "losses", "norms", "cells"])
def test_half_precision_that_does_otherwise_does_not_hold(wrong, td, monkeypatch):
    def other(overrides, device, steps, *, precision="32-true", **options):
        found = copy.deepcopy(td)
        match wrong if precision == "16-mixed" else None:
            case "losses":
                found.losses["td_loss"][-1] = math.inf
            case "norms":
                found.norms = {name: norm / 2 for name, norm in found.norms.items()}
            case "cells":
                found.cells["td_loss:value"] = "zero"
        return found

    monkeypatch.setattr(checks, "trained", other)
    assert checks.mixed([], "cpu", "16-mixed", 4)["ok"] == (wrong is None)


def test_noise_is_that_of_the_cpu_whatever_the_device():
    torch.manual_seed(0)
    plain = torch.randn(3), torch.randint(5, (3,)), torch.rand_like(torch.ones(2))
    torch.manual_seed(0)
    with NoiseOfTheCPU():
        moved = torch.randn(3, device="meta"), torch.randint(5, (3,)), torch.rand_like(torch.ones(2))
    assert moved[0].device.type == "meta"  # drawn, then moved: the next draws are the same
    assert torch.equal(plain[1], moved[1])
    assert torch.equal(plain[2], moved[2])


def test_page_says_what_the_file_holds_and_no_more():
    here = page.PAGE.read_text()
    assert here == page.written(here, page.section(page.measured())), "stale: python benchmarks/gpu.py --write"
    items = {
        "fp32 gan": {"ok": True, "said": "near"},
        "fp32 td": {"ok": False, "said": "far | away"},
        "speed gan": {"ok": True, "said": "9 steps a second"},
    }
    text = page.section({"card": "A card", "torch": "2", "command": "python it", "items": items})
    assert text.startswith("A card, torch 2, `python it`: 2 of 3 items hold.")
    assert "| 1 of 2 |" in text
    assert "| `fp32 td` | far / away |" in text
    assert "| `speed gan` | 9 steps a second |" in text
    assert page.section(None).startswith("Nothing has run on a GPU")
