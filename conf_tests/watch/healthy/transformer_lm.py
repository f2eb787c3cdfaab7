"""A small decoder-only transformer, trained with AdamW in two groups and a cosine schedule with warm-up."""
# flow: loss -> words, places, blocks, norm, head

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
from digest import digest
from torch.nn import functional as F


@dataclass
class Config:
    length: int = 12
    vocabulary: int = 17
    layers: int = 2
    heads: int = 2
    size: int = 16


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.size, 3 * config.size)
        self.out = nn.Linear(config.size, config.size)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.before_attention, self.before_mlp = nn.LayerNorm(config.size), nn.LayerNorm(config.size)
        self.attention = Attention(config)
        self.mlp = nn.Sequential(
            nn.Linear(config.size, 4 * config.size), nn.GELU(), nn.Linear(4 * config.size, config.size)
        )

    def forward(self, x):
        x = x + self.attention(self.before_attention(x))
        return x + self.mlp(self.before_mlp(x))


class Transformer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.words = nn.Embedding(config.vocabulary, config.size)
        self.places = nn.Embedding(config.length, config.size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.size)
        self.head = nn.Linear(config.size, config.vocabulary, bias=False)

    def forward(self, text, following=None):
        x = self.words(text) + self.places.weight[: text.size(1)]
        for block in self.blocks:
            x = block(x)
        scores = self.head(self.norm(x))
        loss = None if following is None else F.cross_entropy(scores.flatten(0, 1), following.flatten())
        return scores, loss

    def optimizer(self, lr, weight_decay):
        matrices, vectors = [], []
        for p in self.parameters():
            (matrices if p.ndim > 1 else vectors).append(p)
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))


def rate(step, warm_up=5, total=40, top=3e-3, bottom=3e-4):
    if step < warm_up:
        return top * (step + 1) / warm_up
    return bottom + (top - bottom) * math.cos(math.pi / 2 * (step - warm_up) / (total - warm_up)) ** 2


torch.manual_seed(1337)
config = Config()
model = Transformer(config)
optimizer = model.optimizer(3e-3, 0.1)
text = torch.randint(0, 3, (600,)).cumsum(0) % config.vocabulary
windows = text.unfold(0, config.length + 1, 1)


def batch(size=8):
    rows = windows[torch.randint(len(windows), (size,))]
    return rows[:, :-1], rows[:, 1:]


@torch.no_grad()
def held_out_loss(count=3):
    model.eval()
    mean = sum(model(*batch())[1].item() for _ in range(count)) / count
    model.train()
    return mean


for step in range(40):
    for group in optimizer.param_groups:
        group["lr"] = rate(step)
    if step % 20 == 0:
        print(f"{step}: {held_out_loss():.4f}")
    _, loss = model(*batch())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
print(f"last {loss.item():.4f}")
print("weights", digest(model))
