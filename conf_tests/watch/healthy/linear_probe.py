"""An autoencoder first, then its encoder frozen and a linear probe on the codes."""
# flow: recon_loss -> encoder, decoder; probe_loss -> probe
# cut: probe_loss -> encoder

import torch
import torch.nn as nn
from digest import digest


def pretrain(encoder, decoder, loader, epochs):
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=3e-3)
    for epoch in range(epochs):
        for x, _ in loader:
            recon_loss = nn.functional.mse_loss(decoder(encoder(x)), x)
            optimizer.zero_grad()
            recon_loss.backward()
            optimizer.step()
        print(f"pretrain {epoch}: {recon_loss.item():.4f}")


def linear_probe(encoder, loader, epochs):
    encoder.eval()
    for p in encoder.parameters():
        p.requires_grad_(False)
    probe = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(probe.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(epochs):
        right = total = 0
        for x, y in loader:
            logits = probe(encoder(x))
            probe_loss = nn.functional.cross_entropy(logits, y)
            optimizer.zero_grad()
            probe_loss.backward()
            optimizer.step()
            right, total = right + (logits.argmax(1) == y).sum().item(), total + len(y)
        print(f"probe {epoch}: accuracy {right / total:.3f}")
    return probe


def main():
    torch.manual_seed(21)
    y = torch.randint(0, 3, (16 * 17,))
    x = torch.randn(3, 12)[y] + 0.5 * torch.randn(len(y), 12)
    loader = list(zip(x.split(16), y.split(16), strict=True))
    encoder = nn.Sequential(nn.Linear(12, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 6))
    decoder = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 12))
    pretrain(encoder, decoder, loader, 2)
    probe = linear_probe(encoder, loader, 2)
    print("weights", digest(encoder, decoder, probe))


if __name__ == "__main__":
    main()
