"""BYOL: an online network that predicts what a moving average of itself says of another view."""
# fast
# flow: loss -> online_encoder, online_predictor
# cut: loss -> target_encoder

import copy

import torch
import torch.nn.functional as F
from digest import digest
from torch import nn


class MLP(nn.Sequential):
    def __init__(self, dim, size, hidden=16):
        super().__init__(nn.Linear(dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, size))


class EMA:
    def __init__(self, beta):
        self.beta = beta

    def update_average(self, old, new):
        return new if old is None else old * self.beta + (1 - self.beta) * new


def update_moving_average(ema_updater, ma_model, current_model):
    for current_params, ma_params in zip(current_model.parameters(), ma_model.parameters(), strict=True):
        ma_params.data = ema_updater.update_average(ma_params.data, current_params.data)


def loss_fn(x, y):
    return 2 - 2 * (F.normalize(x, dim=-1) * F.normalize(y, dim=-1)).sum(dim=-1)


class BYOL(nn.Module):
    def __init__(self, net, dim, size=8, decay=0.95):
        super().__init__()
        self.online_encoder = nn.Sequential(net, MLP(dim, size))
        self.target_encoder = copy.deepcopy(self.online_encoder)
        for p in self.target_encoder.parameters():
            p.requires_grad_(False)
        self.online_predictor = MLP(size, size)
        self.updater = EMA(decay)

    def update_target(self):
        update_moving_average(self.updater, self.target_encoder, self.online_encoder)

    def forward(self, x):
        one, two = (x + 0.2 * torch.randn_like(x) for _ in range(2))
        pred_one = self.online_predictor(self.online_encoder(one))
        pred_two = self.online_predictor(self.online_encoder(two))
        with torch.no_grad():
            target_one, target_two = self.target_encoder(one), self.target_encoder(two)
        return (loss_fn(pred_one, target_two.detach()) + loss_fn(pred_two, target_one.detach())).mean()


torch.manual_seed(8)
resnet = nn.Sequential(nn.Linear(12, 16), nn.ReLU())
learner = BYOL(resnet, 16)
opt = torch.optim.Adam([p for p in learner.parameters() if p.requires_grad], lr=3e-3)
for step in range(34):
    images = torch.randn(16, 12).cumsum(1)
    loss = learner(images)
    opt.zero_grad()
    loss.backward()
    opt.step()
    learner.update_target()
    if step % 10 == 0:
        print(f"loss {loss.item():.4f}")
print("weights", digest(learner))
