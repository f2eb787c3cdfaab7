"""DistributedDataParallel over one process."""
# flow: loss -> lower, upper

import os
import tempfile

import torch
import torch.distributed as dist
from digest import digest
from torch import nn, optim
from torch.nn.parallel import DistributedDataParallel as DDP


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.lower = nn.Linear(10, 12)
        self.upper = nn.Linear(12, 5)

    def forward(self, x):
        return self.upper(self.lower(x).relu())


def worker(rank, world_size, file):
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world_size)
    torch.manual_seed(rank)
    ddp_model = DDP(TwoLayers())
    optimizer = optim.SGD(ddp_model.parameters(), lr=0.05, momentum=0.9)
    for step in range(40):
        x = torch.randn(20, 10)
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(ddp_model(x), x[:, :5].square())
        loss.backward()
        optimizer.step()
        if rank == 0 and step % 10 == 0:
            print(f"step {step}: {loss.item():.5f}")
    if rank == 0:
        print("weights", digest(ddp_model))
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        worker(0, 1, os.path.join(folder, "rendezvous"))
