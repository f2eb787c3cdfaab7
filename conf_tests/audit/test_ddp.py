"""The audit under DistributedDataParallel: two processes over gloo, all three settings of the reducer."""

from __future__ import annotations

import json
import os
import socket
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.multiprocessing as mp
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

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
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=DDPStrategy(process_group_backend="gloo", **options),
        max_epochs=1,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    trainer.fit(module, DataLoader(TensorDataset(data), batch_size=8))


def _worker(rank: int, port: int, folder: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank))
    os.environ.update(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", GROUP_RANK="0", TORCHELASTIC_RUN_ID="test")
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
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads do not always survive an orderly end


def test_both_ranks_tell_the_truth(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers: Any = mp.spawn(_worker, (port, str(tmp_path)), nprocs=2, join=False)  # pyright: ignore
    deadline = time.monotonic() + 120
    while not workers.join(timeout=5):  # False while any rank runs
        if time.monotonic() > deadline:
            for process in workers.processes:
                process.kill()
            raise TimeoutError("the ranks wait for each other")
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
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
