import torch
import torch.nn.functional as F
from torch.utils.data import Dataset


class Waves(Dataset):
    """Pictures of plane waves, small and large."""

    def __init__(self, count, factor, seed):
        generator = torch.Generator().manual_seed(seed)
        y, x = torch.meshgrid(torch.linspace(0, 1, 16), torch.linspace(0, 1, 16), indexing="ij")
        a, b = 8 * torch.rand(2, count, 1, 1, 1, generator=generator)
        self.large = torch.sin(a * x + b * y)
        self.small = F.avg_pool2d(self.large, factor)

    def __len__(self):
        return len(self.large)

    def __getitem__(self, index):
        return self.small[index], self.large[index]
