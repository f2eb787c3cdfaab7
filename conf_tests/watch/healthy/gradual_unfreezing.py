"""Gradual unfreezing: the head first, then a layer more each phase, added to the optimiser as a group."""
# flow: loss -> layer1, layer2, head

import torch
from digest import digest
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer1 = nn.Linear(8, 16)
        self.layer2 = nn.Linear(16, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(torch.relu(self.layer2(torch.relu(self.layer1(x)))))


torch.manual_seed(91)
net = Net()
net.requires_grad_(False)
net.head.requires_grad_(True)
optimizer = torch.optim.SGD(net.head.parameters(), lr=0.1)
rule = torch.randn(8, 3)
for phase, thawed in enumerate([None, net.layer2, net.layer1]):
    if thawed is not None:
        thawed.requires_grad_(True)
        optimizer.add_param_group({"params": thawed.parameters(), "lr": 0.1 / 2**phase})
    for _ in range(12):
        x = torch.randn(32, 8)
        loss = nn.functional.cross_entropy(net(x), (x @ rule).argmax(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"phase {phase}: {loss.item():.4f}")
print("weights", digest(net))
