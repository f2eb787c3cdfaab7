"""BYOL: an online network that predicts what a moving average of itself says of another view."""
# fast
# flow: loss -> online_encoder, online_predictor
# cut: loss -> target_encoder

import copy

import torch
from digest import digest
from torch import nn
from torch.nn.functional import cosine_similarity


def head(inside, outside, hidden=16):
    return nn.Sequential(nn.Linear(inside, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outside))


class BYOL(nn.Module):
    def __init__(self, backbone, features, size=8, momentum=0.95):
        super().__init__()
        self.online_encoder = nn.Sequential(backbone, head(features, size))
        self.online_predictor = head(size, size)
        self.target_encoder = copy.deepcopy(self.online_encoder).requires_grad_(False)
        self.momentum = momentum

    def update_target(self):
        for online, target in zip(self.online_encoder.parameters(), self.target_encoder.parameters(), strict=True):
            target.data = self.momentum * target.data + (1 - self.momentum) * online.data

    def forward(self, x):
        views = [x + 0.2 * torch.randn_like(x) for _ in range(2)]
        guesses = [self.online_predictor(self.online_encoder(view)) for view in views]
        with torch.no_grad():
            targets = [self.target_encoder(view) for view in views]
        return sum(2 - 2 * cosine_similarity(g, t) for g, t in zip(guesses, reversed(targets), strict=True)).mean()


torch.manual_seed(8)
backbone = nn.Sequential(nn.Linear(12, 16), nn.ReLU())
learner = BYOL(backbone, 16)
opt = torch.optim.Adam([p for p in learner.parameters() if p.requires_grad], lr=3e-3)
for step in range(34):
    loss = learner(torch.randn(16, 12).cumsum(1))
    opt.zero_grad()
    loss.backward()
    opt.step()
    learner.update_target()
    if step % 10 == 0:
        print(f"{step}: {loss.item():.4f}")
print("weights", digest(learner))
