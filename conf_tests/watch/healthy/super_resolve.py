"""Super-resolution; the batches come from two worker processes."""
# flow: loss -> conv1, conv2, conv3

import argparse
from math import log10

import torch
import torch.nn as nn
import torch.optim as optim
from digest import digest
from super_resolution.dataset import Waves
from super_resolution.model import Net
from torch.utils.data import DataLoader


def train(epoch):
    epoch_loss = 0
    for input, target in training_data_loader:
        optimizer.zero_grad()
        loss = criterion(model(input), target)
        epoch_loss += loss.item()
        loss.backward()
        optimizer.step()
    print(f"===> Epoch {epoch} Complete: Avg. Loss: {epoch_loss / len(training_data_loader):.4f}")


def test():
    avg_psnr = 0
    with torch.no_grad():
        for input, target in testing_data_loader:
            mse = criterion(model(input), target)
            avg_psnr += 10 * log10(1 / mse.item())
    print(f"===> Avg. PSNR: {avg_psnr / len(testing_data_loader):.4f} dB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--upscale_factor", type=int, default=2)
    parser.add_argument("--nEpochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    opt = parser.parse_args()

    torch.manual_seed(123)
    training_data_loader = DataLoader(
        Waves(48, opt.upscale_factor, 0), 4, shuffle=True, num_workers=opt.threads, persistent_workers=True
    )
    testing_data_loader = DataLoader(Waves(8, opt.upscale_factor, 1), 4)
    model = Net(upscale_factor=opt.upscale_factor)
    criterion = nn.MSELoss()
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    for epoch in range(1, opt.nEpochs + 1):
        train(epoch)
        test()
    print("weights", digest(model))
