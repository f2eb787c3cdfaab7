"""Fine-tuning: the stem frozen with its BatchNorm in eval, the last block and the new head at two rates."""
# flow: loss -> layer2, fc

import torch
from digest import digest
from torch import nn


class Backbone(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2))
        self.layer2 = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, classes)

    def forward(self, x):
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))


def pretrained():
    """A backbone with statistics from other data."""
    model = Backbone(classes=10)
    with torch.no_grad():
        for _ in range(5):
            model(2 * torch.randn(16, 1, 8, 8) + 1)
    return model


def freeze(module):
    module.eval()
    for param in module.parameters():
        param.requires_grad = False


def main():
    torch.manual_seed(77)
    model = pretrained()
    model.fc = nn.Linear(model.fc.in_features, 2)
    optimizer = torch.optim.SGD(
        [{"params": model.layer2.parameters(), "lr": 1e-3}, {"params": model.fc.parameters()}], lr=1e-2, momentum=0.9
    )
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2], gamma=0.5)
    for epoch in range(3):
        for phase in ("train", "val"):
            model.train(phase == "train")
            freeze(model.layer1)
            total = right = 0
            for _ in range(12 if phase == "train" else 3):
                labels = torch.randint(0, 2, (8,))
                pictures = torch.randn(8, 1, 8, 8) + labels.view(-1, 1, 1, 1)
                optimizer.zero_grad()
                with torch.set_grad_enabled(phase == "train"):
                    scores = model(pictures)
                    loss = nn.functional.cross_entropy(scores, labels)
                    if phase == "train":
                        loss.backward()
                        optimizer.step()
                total += loss.item()
                right += (scores.argmax(1) == labels).sum().item()
            print(f"epoch {epoch} {phase} loss {total:.4f} right {right}")
        scheduler.step()
    print("weights", digest(model))


if __name__ == "__main__":
    main()
