"""An optimiser for each parameter, stepped as soon as its gradient has come."""
# flow: loss -> inp, mid, out

import torch
from digest import digest
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inp = nn.Linear(6, 16)
        self.mid = nn.Linear(16, 16)
        self.out = nn.Linear(16, 1)

    def forward(self, x):
        return self.out(torch.tanh(self.mid(torch.tanh(self.inp(x)))))


def main():
    torch.manual_seed(101)
    model = Net()
    optimizer_dict = {p: torch.optim.Adam([p], lr=5e-3, foreach=False) for p in model.parameters()}

    def optimizer_hook(parameter):
        optimizer_dict[parameter].step()
        optimizer_dict[parameter].zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(optimizer_hook)
    for i in range(34):
        x = torch.randn(32, 6)
        loss = (model(x).squeeze(1) - x.sum(1).sin()).square().mean()
        loss.backward()
        if i % 10 == 0:
            print(f"{i} {loss.item():.4f}")
    print("weights", digest(model))


if __name__ == "__main__":
    main()
