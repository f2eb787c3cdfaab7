"""The audit's state and line for every rule, against a truth that does not come from the audit.

The truth is measured twice without it: by ``torch.autograd.grad`` (does a gradient arrive?) and by perturbation (does
the loss's value depend on the part at all?).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from conf_tests.audit.cases import CASES, Case
from stopgrad import audit


def _model() -> tuple[nn.Linear, nn.Linear, Tensor]:
    torch.manual_seed(0)
    a, b, x = nn.Linear(4, 4), nn.Linear(4, 4), torch.randn(5, 4)
    torch.manual_seed(1)  # the same samples in every run
    return a, b, x


@pytest.fixture
def double_precision() -> Iterator[None]:
    """In double precision rounding noise and a gradient cannot be taken for each other."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def _truth(case: Case) -> str:
    a, b, x = _model()
    loss = case.compute(a, b, x)
    live = [p for p in a.parameters() if p.requires_grad]
    if case.name == "checkpoint_reentrant":  # refuses autograd.grad
        loss.backward()
        grads = [p.grad for p in live]
    else:
        grads = torch.autograd.grad(loss, live, allow_unused=True) if live else ()
    arrived = [g for g in grads if g is not None]
    if arrived:
        return "open" if any(g.abs().max() > 1e-12 for g in arrived) else "zero"
    return "blocked" if _depends(case, loss.item()) else "independent"


def _depends(case: Case, value: float) -> bool:
    """Does the loss's value change when the part's parameters do?"""
    for seed in range(5):
        a, b, x = _model()
        with torch.no_grad():
            for p in a.parameters():
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)) * 3)
        if case.compute(a, b, x).item() != value:
            return True
    return False


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_truth_is_what_the_case_declares(case: Case, double_precision: None) -> None:
    if case.kind in ("item", "tolist", "numpy"):  # the value depends on the part, but only through Python
        assert _truth(case) == "blocked"
    else:
        assert _truth(case) == case.state


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_state_and_line(case: Case) -> None:
    a, b, x = _model()
    with audit({"a": a, "b": b}) as flow:
        flow.loss("loss", case.compute(a, b, x))
    cell = flow.matrix()["loss", "a"]
    assert cell.state == case.state, flow.matrix().text()
    if case.kind is None:
        assert cell.state in ("open", "zero") or not cell.cuts
        return
    cuts = [(cut.kind, cut.line) for cut in cell.cuts]
    assert (case.kind, case.line) in cuts, flow.matrix().text()
    assert len(cuts) == 1, flow.matrix().text()
    assert cell.cuts[0].file.endswith("cases.py")


def test_enough_cases() -> None:
    assert len(CASES) >= 60
    assert {case.state for case in CASES} == {"open", "zero", "blocked", "independent"}
