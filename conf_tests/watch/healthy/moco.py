"""MoCo: a momentum encoder for the keys, which fill a queue kept as a buffer."""
# flow: loss -> encoder_q
# cut: loss -> encoder_k

import torch
import torch.nn as nn
from digest import digest
from torch.nn.functional import cross_entropy, normalize


class Encoder(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.body = nn.Linear(12, 24)
        self.fc = nn.Linear(24, size)

    def forward(self, x):
        return normalize(self.fc(self.body(x).relu()), dim=1)


class MoCo(nn.Module):
    def __init__(self, size=8, length=64, momentum=0.99, temperature=0.2):
        super().__init__()
        self.momentum, self.temperature = momentum, temperature
        self.encoder_q, self.encoder_k = Encoder(size), Encoder(size)
        self.encoder_k.load_state_dict(self.encoder_q.state_dict())
        for p in self.encoder_k.parameters():
            p.requires_grad = False
        self.register_buffer("queue", normalize(torch.randn(length, size), dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def keys(self, x):
        for k, q in zip(self.encoder_k.parameters(), self.encoder_q.parameters(), strict=True):
            k.data = self.momentum * k.data + (1 - self.momentum) * q.data
        return self.encoder_k(x)

    @torch.no_grad()
    def remember(self, keys):
        rows = (self.place + torch.arange(len(keys))) % len(self.queue)
        self.queue[rows] = keys
        self.place += len(keys)

    def forward(self, one, other):
        """Scores of each query: its own key first, then the whole queue."""
        queries, keys = self.encoder_q(one), self.keys(other)
        own = (queries * keys).sum(1, keepdim=True)
        scores = torch.cat([own, queries @ self.queue.clone().T], 1) / self.temperature
        self.remember(keys)
        return scores


def main():
    torch.manual_seed(10)
    model = MoCo()
    optimizer = torch.optim.SGD(filter(lambda p: p.requires_grad, model.parameters()), 0.03, momentum=0.9)
    first = torch.zeros(16, dtype=torch.long)
    for i in range(40):
        x = torch.randn(16, 12).cumsum(1)
        scores = model(x + 0.2 * torch.randn_like(x), x + 0.2 * torch.randn_like(x))
        loss = cross_entropy(scores, first)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % 10 == 0:
            print(f"{i}: loss {loss.item():.4e}, found {(scores.argmax(1) == 0).float().mean().item():.2f}")
    print("weights", digest(model))


if __name__ == "__main__":
    main()
