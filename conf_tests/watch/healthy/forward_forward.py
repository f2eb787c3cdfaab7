"""Forward-forward: each layer has its own loss and optimiser, and is fed with detached outputs."""
# flow: loss -> layers[0], layers[1]

import torch
import torch.nn as nn
from digest import digest
from torch.optim import Adam


class Layer(nn.Linear):
    def __init__(self, in_features, out_features, threshold=2.0):
        super().__init__(in_features, out_features)
        self.threshold = threshold
        self.opt = Adam(self.parameters(), lr=0.03)

    def forward(self, x):
        direction = x / (x.norm(2, 1, keepdim=True) + 1e-4)
        return torch.relu(super().forward(direction))

    def train_step(self, x_pos, x_neg):
        g_pos = self.forward(x_pos).pow(2).mean(1)
        g_neg = self.forward(x_neg).pow(2).mean(1)
        loss = torch.log(1 + torch.exp(torch.cat([self.threshold - g_pos, g_neg - self.threshold]))).mean()
        self.opt.zero_grad()
        loss.backward()
        self.opt.step()
        return self.forward(x_pos).detach(), self.forward(x_neg).detach(), loss.item()


class Net:
    def __init__(self, dims):
        self.layers = [Layer(dims[d], dims[d + 1]) for d in range(len(dims) - 1)]

    def train(self, x_pos, x_neg):
        losses = []
        for layer in self.layers:
            x_pos, x_neg, loss = layer.train_step(x_pos, x_neg)
            losses.append(loss)
        return losses


def overlay(x, y):
    """The label written over the first ten inputs."""
    x = x.clone()
    x[:, :10] = 0.0
    x[range(len(x)), y] = x.max()
    return x


def main():
    torch.manual_seed(1234)
    net = Net([30, 24, 24])
    y = torch.randint(0, 10, (64,))
    x = torch.randn(10, 30)[y] + 0.1 * torch.randn(64, 30)
    for epoch in range(34):
        losses = net.train(overlay(x, y), overlay(x, (y + torch.randint(1, 10, (64,))) % 10))
        if epoch % 10 == 0:
            print(epoch, *(f"{loss:.5f}" for loss in losses))
    print("weights", digest(*net.layers))


if __name__ == "__main__":
    main()
