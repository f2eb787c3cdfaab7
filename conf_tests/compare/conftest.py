"""A sweep's runs, compared: what the page and TensorBoard are shown of it."""

from __future__ import annotations

import json

import pytest

from conf_tests.compare.runs import PIXEL, nudge, record, write_run
from stopgrad.compare import compare

OPEN = {"state": "open", "norm": 0.5, "cuts": ["detach at model.py:9"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three arms, three seeds: the reference, an identical leak, and one that is broken; a name that is HTML."""
    root = tmp_path_factory.mktemp("runs") / "sweep"
    compared = {"reference": "detach", "arms": [], "expect": {"none": "identical", "<b>late": "same_result"}}
    late = {"started": "2026-01-02", "compare": compared, "stop": {"features": "none", "zero_grad": "late"}}
    default = {"stop_default": {"features": "detach", "zero_grad": "timely"}}
    for seed in range(3):
        good, end = 1.0 + seed / 10, {"val/end": 10.0 + 2 * seed}
        write_run(root, "detach", seed, good, curve=20, once=end, **default)
        write_run(root, "none", seed, good, cells=OPEN, curve=20, once=end, **default)
        worse = {"val/end": -10.0 + seed}
        write_run(root, "<b>late", seed, -1.0, cells=OPEN, alter=nudge(4), curve=20, once=worse, **default | late)
    for arm, drawn in (("detach", record("detach")), ("none", record("none")), ("<b>late", record("scale:0.5"))):
        (root / arm / "seed-0" / "flow.json").write_text(json.dumps(drawn))
    (root / "none" / "seed-1" / "samples.png").write_bytes(PIXEL)
    (root / "<b>late" / "seed-0" / "samples.png").write_bytes(PIXEL)
    compare([root]).write(root)
    return root
