"""A siamese network: both pictures go through the same layers, and both ways carry the gradient."""
# flow: loss -> cnn, fc

import torch
import torch.nn as nn
import torch.nn.functional as F
from digest import digest
from torch.utils.data import DataLoader, Dataset


class Pairs(Dataset):
    def __init__(self, count):
        kinds = torch.randint(0, 4, (count, 2))
        patterns = torch.randn(4, 1, 8, 8)
        self.left = patterns[kinds[:, 0]] + 0.3 * torch.randn(count, 1, 8, 8)
        self.right = patterns[kinds[:, 1]] + 0.3 * torch.randn(count, 1, 8, 8)
        self.label = (kinds[:, 0] != kinds[:, 1]).float()

    def __getitem__(self, index):
        return self.left[index], self.right[index], self.label[index]

    def __len__(self):
        return len(self.label)


class SiameseNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.cnn = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(4), nn.MaxPool2d(2))
        self.fc = nn.Sequential(nn.Linear(36, 16), nn.ReLU(inplace=True), nn.Linear(16, 4))

    def forward_once(self, x):
        return self.fc(self.cnn(x).flatten(1))

    def forward(self, input1, input2):
        return self.forward_once(input1), self.forward_once(input2)


class ContrastiveLoss(nn.Module):
    def __init__(self, margin=2.0):
        super().__init__()
        self.margin = margin

    def forward(self, output1, output2, label):
        distance = F.pairwise_distance(output1, output2)
        near = (1 - label) * distance.pow(2)
        return torch.mean(near + label * torch.clamp(self.margin - distance, min=0.0).pow(2))


torch.manual_seed(11)
train_dataloader = DataLoader(Pairs(136), shuffle=True, batch_size=8)
net = SiameseNetwork()
criterion = ContrastiveLoss()
optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
for epoch in range(2):
    for i, (img0, img1, label) in enumerate(train_dataloader, 0):
        optimizer.zero_grad()
        output1, output2 = net(img0, img1)
        loss_contrastive = criterion(output1, output2, label)
        loss = loss_contrastive
        loss.backward()
        optimizer.step()
        if i % 10 == 0:
            print(f"Epoch number {epoch}\n Current loss {loss_contrastive.item()}")

net.eval()
with torch.no_grad():
    a, b, label = next(iter(train_dataloader))
    print("mean distance", F.pairwise_distance(*net(a, b)).mean().item())
print("weights", digest(net))
