"""A linear autoencoder and a linear denoiser of its latent, in expectation, in plain PyTorch: REPA-E, arXiv:2504.10483.

    python benchmarks/plain/latent.py        # 1,500 steps: the latent's standard deviation stays above 1

The diffusion loss is fitted to the latent that the encoder makes, and must not make it convenient.
"""

import argparse
import time

import torch

NOISE, TIMES = 0.1, 50


def train(steps: int = 1500, seed: int = 0) -> dict[str, float]:
    torch.manual_seed(seed)
    encoder = torch.nn.Parameter(1 + torch.rand((), dtype=torch.float64))
    decoder = torch.nn.Parameter(torch.rand((), dtype=torch.float64))
    denoiser = torch.nn.Parameter(torch.zeros(TIMES, dtype=torch.float64))
    optimizer = torch.optim.Adam([encoder, decoder, denoiser], lr=0.02)
    t = (torch.arange(TIMES, dtype=torch.float64) + 0.5) / TIMES
    started = time.perf_counter()

    for _ in range(steps):
        reconstruction = (decoder * encoder - 1).square() + (NOISE * decoder).square()
        variance = (encoder.square() + NOISE**2).detach()  # the cut: alive, the latent shrinks to .23
        spread = (1 - t).square() * variance + t.square()
        diffusion = (denoiser.square() * spread - 2 * denoiser * (t - (1 - t) * variance) + 1 + variance).mean()
        optimizer.zero_grad()
        (reconstruction + diffusion).backward()
        optimizer.step()

    seconds = time.perf_counter() - started
    std = (encoder.square() + NOISE**2).sqrt().item()
    return {
        "latent_std": std,
        "reconstruction_error": reconstruction.item(),
        "diffusion_loss": diffusion.item(),
        "steps_per_second": steps / seconds,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    for name, value in train(**vars(parser.parse_args())).items():
        print(f"{name}: {value:.4g}")
