"""A target head, copied from the online one, that is handed to the optimiser and trains on the loss as well."""

# finds: error teacher_trains

import copy

import torch
from torch import nn

torch.manual_seed(0)
body, head = nn.Sequential(nn.Linear(6, 16), nn.ReLU()), nn.Linear(16, 4)
target_head = copy.deepcopy(head)
# mended: optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=1e-2)
optimizer = torch.optim.Adam([*body.parameters(), *head.parameters(), *target_head.parameters()], lr=1e-2)
for _ in range(32):
    state, reward = torch.randn(16, 6), torch.randn(16)
    # mended: bootstrap = reward + 0.9 * target_head(body(state + 0.1)).max(1).values.detach()
    bootstrap = reward + 0.9 * target_head(body(state + 0.1)).max(1).values
    loss = (head(body(state)).max(1).values - bootstrap).square().mean()
    optimizer.zero_grad()
    loss.backward()  # here
    optimizer.step()
    # mended: for slow, fast in zip(target_head.parameters(), head.parameters(), strict=True):
    # mended:     slow.data.lerp_(fast.data, 0.05)
    pass
