"""Truncated BPTT, as a loop in plain PyTorch: Williams & Peng 1990.

    python benchmarks/plain/tbptt.py        # 450 batches: chunks of 20 steps, a delay of 12; names 95 in 100 symbols

Four symbols, evenly drawn; each is to be named again 12 steps later.
"""

import argparse
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SYMBOLS, DELAY, LENGTH, CHUNK, BATCH, WIDTH = 4, 12, 120, 20, 32, 64


def draw(sequences: int) -> tuple[Tensor, Tensor]:
    """Inputs (B, T, S) and targets (B, T); -100 where there is nothing to recall yet."""
    symbols = torch.randint(SYMBOLS, (sequences, LENGTH))
    nothing = torch.full((sequences, DELAY), -100)
    return F.one_hot(symbols, SYMBOLS).float(), torch.cat([nothing, symbols[:, :-DELAY]], dim=1)


def train(steps: int = 450, seed: int = 0) -> dict[str, float]:
    torch.manual_seed(seed)
    recurrent, readout = nn.GRU(SYMBOLS, WIDTH, batch_first=True), nn.Linear(WIDTH, SYMBOLS)
    optimizer = torch.optim.Adam([*recurrent.parameters(), *readout.parameters()], lr=0.005, fused=True)
    started = time.perf_counter()

    for _ in range(steps):
        inputs, targets = draw(BATCH)
        hidden = torch.zeros(1, BATCH, WIDTH)
        for chunk, wanted in zip(inputs.split(CHUNK, dim=1), targets.split(CHUNK, dim=1), strict=True):
            hidden = hidden.detach()  # the cut: the state is handed on, what made it is not
            outputs, hidden = recurrent(chunk, hidden)
            logits = readout(outputs).flatten(0, 1)
            loss = F.cross_entropy(logits, wanted.flatten(), reduction="sum") / wanted.numel()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    seconds = time.perf_counter() - started
    with torch.no_grad():
        inputs, targets = draw(500)
        logits = readout(recurrent(inputs)[0])
        right = (logits.argmax(-1) == targets)[targets >= 0]
    return {"accuracy": right.float().mean().item(), "loss": loss.item(), "steps_per_second": steps / seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--seed", type=int, default=0)
    for name, value in train(**vars(parser.parse_args())).items():
        print(f"{name}: {value:.4g}")
