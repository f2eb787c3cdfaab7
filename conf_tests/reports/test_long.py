"""Reports of graphs so long that freeing them ends the process: an audit of one measures it, and ends as it should."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

PROGRAMS = {
    "euler": """
        import torch
        from stopgrad import audit
        w = torch.ones(9, requires_grad=True)
        with audit({"w": w}) as a:
            y = w.clone()
            for _ in range(30_000):
                y = y + y * 1e-7
            a.loss("loss", y.sum()).backward()
        state = a.matrix()["loss", "w"]
        assert torch.allclose(w.grad.norm(), torch.tensor(state.norm)), state.norm
        del y
        print(state.state, len(state.path) < 50)
    """,
    "views": """
        import torch
        from stopgrad import audit
        w = torch.ones(4, requires_grad=True)
        with audit({"w": w}) as a:
            y = w * 1.0
            for i in range(30_000):
                y = y[torch.tensor([1, 2, 3, 0])] if i % 100 == 0 else y.view(4)
            a.loss("loss", y.square().sum())
        del y
        print(a.matrix()["loss", "w"].state, True)
    """,
    "kept states": """
        import torch
        from torch import nn
        from stopgrad import audit
        from stopgrad.retention import kept_graphs
        torch.manual_seed(0)
        cell = nn.RNNCell(2, 2)
        states = [torch.zeros(1, 2)]
        with audit({"cell": cell}) as a:
            for _ in range(20_000):
                states.append(cell(torch.ones(1, 2), states[-1]))
            a.loss("loss", states[-1].sum())
        (kept,) = kept_graphs({"states": states})
        state = a.matrix()["loss", "cell"].state
        states.clear()
        print(state, kept.path.startswith("states"))
    """,
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_graph_of_tens_of_thousands_of_operations(name: str) -> None:
    """https://github.com/pytorch/pytorch/issues/5534, https://github.com/pytorch/pytorch/pull/6873: an integration in
    small steps; https://github.com/pytorch/pytorch/issues/109948: selections in a loop;
    https://github.com/pytorch/pytorch/issues/5477: additions and products.
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(PROGRAMS[name])], capture_output=True, text=True)
    assert done.stdout == "open True\n", (done.returncode, done.stderr[-500:])
