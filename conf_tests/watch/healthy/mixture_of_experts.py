"""A sparse mixture of experts: in some steps an expert gets no example, and so no gradient."""
# flow: total_loss -> gate, experts, head

import torch
from digest import digest
from torch import nn
from torch.nn import functional as F


class Expert(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class SparseMoE(nn.Module):
    def __init__(self, d=8, num_experts=6, classes=3):
        super().__init__()
        self.gate = nn.Linear(d, num_experts)
        self.experts = nn.ModuleList(Expert(d) for _ in range(num_experts))
        self.head = nn.Linear(d, classes)

    def forward(self, x):
        probs = self.gate(x).softmax(-1)
        weight, chosen = probs.max(-1)
        out = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            rows = (chosen == index).nonzero().flatten()
            if len(rows) == 0:
                continue
            out = out.index_add(0, rows, weight[rows, None] * expert(x[rows]))
        share = F.one_hot(chosen, len(self.experts)).float().mean(0)
        aux_loss = len(self.experts) * (share * probs.mean(0)).sum()
        return self.head(x + out), aux_loss


torch.manual_seed(17)
moe = SparseMoE()
optimizer = torch.optim.AdamW(moe.parameters(), lr=5e-3)
directions = torch.randn(3, 8)
for step in range(48):
    y = torch.randint(0, 3, (4,))
    x = directions[y] + 0.5 * torch.randn(4, 8)
    logits, aux_loss = moe(x)
    loss = F.cross_entropy(logits, y)
    total_loss = loss + 0.01 * aux_loss
    optimizer.zero_grad(set_to_none=True)
    total_loss.backward()
    optimizer.step()
    if step % 12 == 0:
        print(f"step {step}: loss {loss.item():.4f}, balance {aux_loss.item():.4f}")
print("weights", digest(moe))
