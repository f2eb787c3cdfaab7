"""An echo state network: the reservoir's weights are buffers, the read-out alone learns."""
# flow: loss -> readout

import torch
from digest import digest
from torch import nn


class Reservoir(nn.Module):
    def __init__(self, units, radius=0.9, leak=0.3):
        super().__init__()
        w = torch.randn(units, units) * (torch.rand(units, units) < 0.2)
        self.register_buffer("w", radius * w / torch.linalg.eigvals(w).abs().max())
        self.register_buffer("w_in", torch.rand(1, units) * 2 - 1)
        self.leak = leak

    def forward(self, sequence):
        state, states = sequence.new_zeros(self.w.size(0)), []
        for value in sequence:
            state = (1 - self.leak) * state + self.leak * torch.tanh(value * self.w_in[0] + state @ self.w)
            states.append(state)
        return torch.stack(states)


def mackey_glass(length, delay=17):
    x = [1.2] * (delay + 1)
    for _ in range(length):
        x.append(x[-1] + 0.2 * x[-delay] / (1 + x[-delay] ** 10) - 0.1 * x[-1])
    return torch.tensor(x[delay:])


def main():
    torch.manual_seed(100)
    reservoir = Reservoir(40)
    readout = nn.Linear(40, 1)
    series = mackey_glass(150)
    states = reservoir(series[:-1])[20:]
    target = series[21:].unsqueeze(1)
    optimizer = torch.optim.Adam(readout.parameters(), lr=2e-2)
    for epoch in range(45):
        loss = nn.functional.mse_loss(readout(states), target)
        readout.zero_grad()
        loss.backward()
        optimizer.step()
        if epoch % 15 == 0:
            print(f"epoch {epoch} mse {loss.item():.6f}")
    print("weights", digest(reservoir, readout))


if __name__ == "__main__":
    main()
