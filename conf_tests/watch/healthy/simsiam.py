"""SimSiam: each view predicts the other's projection, which is detached."""
# flow: loss -> backbone, projector, predictor

import torch
import torch.nn as nn
from digest import digest


class SimSiam(nn.Module):
    def __init__(self, dim=16, pred_dim=4):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv1d(1, 4, 5, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 10, dim))
        self.projector = nn.Sequential(
            nn.Linear(dim, dim, bias=False),
            nn.BatchNorm1d(dim),
            nn.ReLU(inplace=True),
            nn.Linear(dim, dim, bias=False),
            nn.BatchNorm1d(dim, affine=False),
        )
        self.predictor = nn.Sequential(
            nn.Linear(dim, pred_dim, bias=False),
            nn.BatchNorm1d(pred_dim),
            nn.ReLU(inplace=True),
            nn.Linear(pred_dim, dim),
        )

    def forward(self, x1, x2):
        z1, z2 = self.projector(self.backbone(x1)), self.projector(self.backbone(x2))
        p1, p2 = self.predictor(z1), self.predictor(z2)
        return p1, p2, z1.detach(), z2.detach()


class AverageMeter:
    def __init__(self, name):
        self.name, self.sum, self.count = name, 0.0, 0

    def update(self, val, n=1):
        self.sum += val * n
        self.count += n

    def __str__(self):
        return f"{self.name} {self.sum / self.count:.4f}"


def augment(x):
    return torch.roll(x, int(torch.randint(0, 3, ())), dims=-1) + 0.1 * torch.randn_like(x)


def train(loader, model, criterion, optimizer, epoch):
    losses = AverageMeter("Loss")
    model.train()
    for images in loader:
        p1, p2, z1, z2 = model(x1=augment(images), x2=augment(images))
        loss = -(criterion(p1, z2).mean() + criterion(p2, z1).mean()) * 0.5
        losses.update(loss.item(), images.size(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"Epoch {epoch} {losses}")


def main():
    torch.manual_seed(31)
    model = SimSiam()
    optim_params = [
        {"params": [*model.backbone.parameters(), *model.projector.parameters()], "fix_lr": False},
        {"params": model.predictor.parameters(), "fix_lr": True},
    ]
    optimizer = torch.optim.SGD(optim_params, 0.05, momentum=0.9, weight_decay=1e-4)
    loader = torch.randn(12 * 16, 1, 24).cumsum(-1).split(16)
    for epoch in range(3):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 if group["fix_lr"] else 0.05 * (1 - epoch / 6)
        train(loader, model, nn.CosineSimilarity(dim=1), optimizer, epoch)
    print("weights", digest(model))


if __name__ == "__main__":
    main()
