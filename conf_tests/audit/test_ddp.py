"""The audit under DistributedDataParallel: two processes over gloo, all three settings of the reducer."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from conf_tests.distributed.pair import on_two_ranks, trainer
from stopgrad import FlowContract, GradientStarved, audit
from stopgrad.lightning import FlowAudit

SETTINGS: dict[str, dict[str, bool]] = {
    "default": {},
    "find_unused": {"find_unused_parameters": True},
    "static_graph": {"static_graph": True},
}


class Net(L.LightningModule):
    """``starved`` says on which rank the trunk is cut off."""

    FLOW = FlowContract({"loss": {"trunk": "open", "head": "open", "target": "blocked"}})

    def __init__(self, starved: int | None = None, spare: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.head, self.target = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False)
        if spare:
            self.spare = nn.Linear(4, 4)
        self.starved = starved

    def forward(self, x: Tensor) -> Tensor:
        h = self.trunk(x).relu()
        if self.starved is not None and self.starved == self.global_rank:
            h = h.detach()
        return (self.head(h) - self.target(x)).square().mean()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def _fit(module: Net, callback: FlowAudit, **options: Any) -> None:
    data = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(data), batch_size=8, sampler=DistributedSampler(data, shuffle=False))
    trainer(DDPStrategy(**options), callbacks=[callback], max_epochs=1).fit(module, loader)


def _found() -> dict[str, Any]:
    """What one rank sees."""
    found: dict[str, Any] = {}
    for name, options in SETTINGS.items():
        callback = FlowAudit(every_n_steps=1)
        _fit(Net(spare=name != "default"), callback, **options)
        assert callback.matrix is not None
        found[name] = callback.matrix.to_dict()["loss"]
    try:
        _fit(Net(starved=1), FlowAudit(), find_unused_parameters=True)
    except GradientStarved as error:
        found["error"] = str(error)
    for name, options in SETTINGS.items():
        net = Net(spare=name != "default")
        ddp = DistributedDataParallel(net, **options)
        with audit(net) as a:
            a.loss("loss", ddp(torch.ones(2, 4))).backward()
        found[f"plain {name}"] = {part: a.matrix()["loss", part].state for part in a.parts}
    return found


def test_both_ranks_tell_the_truth() -> None:
    ranks = on_two_ranks(_found)
    expected = {"trunk": "open", "head": "open", "target": "blocked"}
    for found in ranks:
        for name in SETTINGS:
            spare = {} if name == "default" else {"spare": "independent"}
            assert {part: cell["state"] for part, cell in found[name].items()} == expected | spare, name
        assert found["plain default"] == expected
        assert found["plain find_unused"] == expected | {"spare": "independent"}
        assert set(found["plain static_graph"].values()) == {"opaque"}  # a probe would bring the ranks out of step
        assert "loss does not reach trunk" in found["error"]
    norms = [found["default"]["trunk"]["norm"] for found in ranks]
    assert norms[0] != norms[1]  # each rank's own, before DDP averages
