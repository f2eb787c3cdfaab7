"""VQ-VAE: straight-through estimator, codebook and commitment terms."""
# flow: loss -> encoder, quantizer, decoder

import torch
import torch.nn as nn
import torch.nn.functional as F
from digest import digest


class Quantizer(nn.Module):
    def __init__(self, codes, size, commitment=0.25):
        super().__init__()
        self.codebook = nn.Embedding(codes, size)
        nn.init.uniform_(self.codebook.weight, -1 / codes, 1 / codes)
        self.commitment = commitment

    def forward(self, z):
        """The nearest codes with the gradient passed on to ``z``, the loss of both terms, and which codes."""
        index = torch.cdist(z.flatten(0, -2), self.codebook.weight).argmin(1).view(z.shape[:-1])
        code = self.codebook(index)
        loss = F.mse_loss(code, z.detach()) + self.commitment * F.mse_loss(z, code.detach())
        return z + (code - z).detach(), loss, index


class VQVAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 8), nn.Unflatten(1, (2, 4)))
        self.quantizer = Quantizer(16, 4)
        self.decoder = nn.Sequential(nn.Flatten(), nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 10))

    def forward(self, x):
        code, loss, index = self.quantizer(self.encoder(x))
        return self.decoder(code), loss, index


torch.manual_seed(12)
model = VQVAE()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
for i in range(40):
    x = torch.randn(32, 10).cumsum(1)
    optimizer.zero_grad()
    recon, vq_loss, index = model(x)
    recon_loss = F.mse_loss(recon, x) / x.var()
    loss = recon_loss + vq_loss
    loss.backward()
    optimizer.step()
    if i % 10 == 9:
        print(f"{i + 1}: {recon_loss.item():.3f} {vq_loss.item():.3f}, {len(index.unique())} codes in use")
print("weights", digest(model))
