"""Cross-validation: each fold makes a network, trains it and lets it go."""
# flow: loss -> hidden, out

import torch
from digest import digest
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(4, 10)
        self.out = nn.Linear(10, 1)

    def forward(self, x):
        return self.out(torch.sigmoid(self.hidden(x))).squeeze(1)


def fit_and_score(x_train, y_train, x_valid, y_valid, steps=12):
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-2, weight_decay=1e-3)
    loss_fn = nn.MSELoss()
    for _ in range(steps):
        loss = loss_fn(model(x_train), y_train)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        score = loss_fn(model(x_valid), y_valid).item()
    return score, digest(model)


torch.manual_seed(131)
x = torch.randn(60, 4)
y = x[:, 0].sin() + 0.5 * x[:, 1]
marks = ""
for fold in range(5):
    held_out = torch.arange(60) % 5 == fold
    score, mark = fit_and_score(x[~held_out], y[~held_out], x[held_out], y[held_out])
    marks += mark
    print(f"fold {fold}: {score:.5f}")
print("weights", digest(torch.frombuffer(bytearray(marks, "ascii"), dtype=torch.uint8)))
