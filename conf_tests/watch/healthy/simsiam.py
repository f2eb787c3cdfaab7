"""SimSiam: each view predicts the other's projection, which is detached; the predictor keeps its rate."""
# flow: loss -> backbone, projector, predictor

import torch
import torch.nn as nn
from digest import digest


class SimSiam(nn.Module):
    def __init__(self, size=16, narrow=4):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv1d(1, 4, 5, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(40, size))
        self.projector = self.block(size, size, nn.BatchNorm1d(size, affine=False))
        self.predictor = self.block(narrow, size)

    def block(self, hidden, size, *last):
        return nn.Sequential(
            nn.Linear(size, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, size), *last
        )

    def forward(self, left, right):
        """(prediction, what it is to match) for both directions."""
        z_left, z_right = (self.projector(self.backbone(view)) for view in (left, right))
        return (self.predictor(z_left), z_right.detach()), (self.predictor(z_right), z_left.detach())


class Mean:
    def __init__(self):
        self.total = self.count = 0

    def add(self, value):
        self.total, self.count = self.total + value, self.count + 1

    def __str__(self):
        return f"{self.total / self.count:.4f}"


def augment(x):
    return torch.roll(x, int(torch.randint(0, 3, ())), dims=-1) + 0.1 * torch.randn_like(x)


def train(batches, model, optimizer):
    told, similarity = Mean(), nn.CosineSimilarity(dim=1)
    model.train()
    for batch in batches:
        pairs = model(augment(batch), augment(batch))
        loss = -sum(similarity(p, z).mean() for p, z in pairs) / 2
        told.add(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return told


def main():
    torch.manual_seed(31)
    model = SimSiam()
    encoder = [*model.backbone.parameters(), *model.projector.parameters()]
    groups = [{"params": encoder, "decays": True}, {"params": model.predictor.parameters(), "decays": False}]
    optimizer = torch.optim.SGD(groups, 0.05, momentum=0.9, weight_decay=1e-4)
    batches = torch.randn(12 * 16, 1, 24).cumsum(-1).split(16)
    for epoch in range(3):
        for group in optimizer.param_groups:
            if group["decays"]:
                group["lr"] = 0.05 * (1 - epoch / 6)
        print("epoch", epoch, train(batches, model, optimizer))
    print("weights", digest(model))


if __name__ == "__main__":
    main()
