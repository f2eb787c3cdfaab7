"""Sine waves by two LSTM cells and LBFGS, whose closure runs several times a step."""
# flow: loss -> lower, upper, readout

import torch
import torch.nn as nn
from digest import digest


class Predictor(nn.Module):
    def __init__(self, size=6):
        super().__init__()
        self.lower = nn.LSTMCell(1, size)
        self.upper = nn.LSTMCell(size, size)
        self.readout = nn.Linear(size, 1)

    def forward(self, series, beyond=0):
        """What comes next after each value, and ``beyond`` more values fed with its own output."""
        low = high = None
        told = []
        for k in range(series.size(1) + beyond):
            value = series[:, k : k + 1] if k < series.size(1) else told[-1]
            low = self.lower(value, low)
            high = self.upper(low[0], high)
            told.append(self.readout(high[0]))
        return torch.cat(told, 1)


if __name__ == "__main__":
    torch.manual_seed(0)
    phase = torch.rand(10, 1) * 40
    waves = ((torch.arange(14) + phase) / 4).sin().double()
    train, test = waves[2:], waves[:2]
    net = Predictor().double()
    mse = nn.MSELoss()
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.8, max_iter=2)
    for i in range(30):

        def closure():
            optimizer.zero_grad()
            loss = mse(net(train[:, :-1]), train[:, 1:])
            loss.backward()
            return loss

        before = optimizer.step(closure)
        if i % 5:
            continue
        with torch.no_grad():
            ahead = net(test[:, :-1], beyond=4)
            print(i, before.item(), mse(ahead[:, :13], test[:, 1:]).item())
    print("weights", digest(net))
