"""A variational autoencoder; the loss is a sum over the batch."""
# flow: loss -> body, to_mean, to_log_var, decoder

import torch
from digest import digest
from torch import nn, optim
from torch.nn import functional as F

torch.manual_seed(1)


class VAE(nn.Module):
    def __init__(self, pixels=64, width=32, codes=4):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(pixels, width), nn.ReLU())
        self.to_mean = nn.Linear(width, codes)
        self.to_log_var = nn.Linear(width, codes)
        self.decoder = nn.Sequential(nn.Linear(codes, width), nn.ReLU(), nn.Linear(width, pixels))

    def forward(self, x):
        h = self.body(x)
        mean, log_var = self.to_mean(h), self.to_log_var(h)
        z = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
        return self.decoder(z), mean, log_var


model = VAE()
optimizer = optim.Adam(model.parameters(), lr=1e-3)
data = (torch.rand(256, 8, 8) > 0.7).float().flatten(1)


def negative_elbo(logits, x, mean, log_var):
    reconstruction = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    divergence = (mean.square() + log_var.exp() - 1 - log_var).sum() / 2
    return reconstruction + divergence


def train(epoch):
    model.train()
    total = 0.0
    for x in data.split(16):
        optimizer.zero_grad()
        logits, mean, log_var = model(x)
        loss = negative_elbo(logits, x, mean, log_var)
        loss.backward()
        total += loss.item()
        optimizer.step()
    print(f"epoch {epoch}: {total / len(data):.4f} nats a picture")


@torch.no_grad()
def sample(count):
    model.eval()
    return model.decoder(torch.randn(count, 4)).sigmoid()


if __name__ == "__main__":
    for epoch in range(3):
        train(epoch)
        print(f"mean of samples {sample(8).mean().item():.4f}")
    print("weights", digest(model))
