"""Five folds, a model and an optimiser each, trained in turn; their average predicts."""
# flow: loss -> models[0], models[1], models[2], models[3], models[4]

import torch
from digest import digest
from torch import nn


class Regressor(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(3, 12)
        self.out = nn.Linear(12, 1)

    def forward(self, x):
        return self.out(torch.tanh(self.hidden(x))).squeeze(1)


def k_fold(n, k):
    for fold in torch.randperm(n).chunk(k):
        keep = torch.ones(n, dtype=torch.bool)
        keep[fold] = False
        yield keep.nonzero().flatten(), fold


def main(k=5, epochs=8):
    torch.manual_seed(13)
    x = torch.randn(80, 3)
    y = torch.sin(x[:, 0]) + x[:, 1] * x[:, 2]
    models = [Regressor() for _ in range(k)]
    optimizers = [torch.optim.Adam(model.parameters(), lr=2e-2) for model in models]
    folds = list(k_fold(len(x), k))
    for epoch in range(epochs):
        for model, optimizer, (train, _) in zip(models, optimizers, folds, strict=True):
            for batch in train[torch.randperm(len(train))].split(16):
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(model(x[batch]), y[batch])
                loss.backward()
                optimizer.step()
        with torch.no_grad():
            held_out = [(m(x[v]) - y[v]).square().mean().item() for m, (_, v) in zip(models, folds, strict=True)]
        if epoch % 2 == 0:
            print(epoch, " ".join(f"{value:.3f}" for value in held_out))
    print("weights", digest(*models))


if __name__ == "__main__":
    main()
