"""What an audit knows of memory that was written into: every alias of it depends on what was written, nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from stopgrad import audit


def parts() -> nn.ModuleDict:
    return nn.ModuleDict({"written": nn.Linear(3, 1), "used": nn.Linear(3, 1)})


def test_memory_that_is_used_again_is_no_alias():
    """Tensors that no operation of PyTorch's makes, some in the place of one that was written into and is gone."""
    model = parts()
    with audit(model) as watched:
        target = torch.zeros(3)
        target[:] = model["written"].weight.detach()[0]
        del target
        made = [torch.from_numpy(np.ones(3, dtype=np.float32)) for _ in range(100)]
        loss = model["used"](torch.stack(made)).mean()
        watched.loss("loss", loss)
        loss.backward()
    cells = watched.matrix()
    assert cells["loss", "written"].state == "independent"
    assert cells["loss", "written"].cuts == ()
    assert cells["loss", "used"].state == "open"


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_a_new_sparse_tensor_is_no_alias():
    """It has no storage, and may have the id of one that is gone."""
    model = parts()
    with audit(model) as watched:
        indices, grown = torch.tensor([[0, 1, 2]]), model["written"].weight.detach()[0, 0]
        for _ in range(50):
            torch.sparse_coo_tensor(indices, torch.ones(3), (3,)).mul_(grown)
        made = [torch.sparse_coo_tensor(indices, torch.ones(3), (3,)) for _ in range(300)]
        loss = model["used"](torch.stack([each.to_dense() for each in made])).mean()
        watched.loss("loss", loss)
        loss.backward()
    assert watched.matrix()["loss", "written"].state == "independent"


def test_an_alias_is_known_once_the_view_that_was_written_into_is_gone():
    model = parts()
    with audit(model) as watched:
        target = torch.zeros(3)
        view = target.view(3)
        view[:] = model["written"].weight.detach()[0]
        del view
        loss = model["used"](target).mean()
        watched.loss("loss", loss)
        loss.backward()
    cells = watched.matrix()
    assert cells["loss", "written"].state == "blocked"
    assert [cut.kind for cut in cells["loss", "written"].cuts] == ["detach"]


def test_what_is_written_holds_no_memory():
    """Of a tensor that is gone an audit keeps its storage's number, not what lay in it."""
    model = parts()
    freed = []

    class Freed(np.ndarray):
        def __del__(self) -> None:
            freed.append(True)

    with audit(model) as watched:
        target = torch.from_numpy(np.zeros(3, dtype=np.float32).view(Freed))
        target[:] = model["written"].weight.detach()[0]
        freed.clear()
        del target
        assert freed
        loss = model["used"](torch.ones(3)).mean()
        watched.loss("loss", loss)
        loss.backward()
