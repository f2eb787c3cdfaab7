"""Domain separation with an encoder for each side; "target" is a side here, and nobody's teacher."""
# flow: loss -> source_encoder, target_encoder, shared_encoder, word_embed, target_embed, head

import torch
from digest import digest
from torch import nn
from torch.nn import functional as F


class Separation(nn.Module):
    def __init__(self, words: int = 12, size: int = 8) -> None:
        super().__init__()
        self.word_embed, self.target_embed = nn.Embedding(words, size), nn.Embedding(words, size)
        self.source_encoder, self.target_encoder, self.shared_encoder = (
            nn.Sequential(nn.Linear(size, size), nn.Tanh(), nn.Linear(size, size)) for _ in range(3)
        )
        self.head = nn.Linear(size, words)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        one, other = self.word_embed(source), self.target_embed(target)
        private = self.source_encoder(one), self.target_encoder(other)
        common = self.shared_encoder(one), self.shared_encoder(other)
        apart = sum((p * c).sum(-1).square().mean() for p, c in zip(private, common, strict=True))
        return self.head(private[0] + common[0]), self.head(private[1] + common[1]), apart


def main() -> None:
    torch.manual_seed(2)
    model = Separation()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(33):
        source, target = torch.randint(12, (16,)), torch.randint(12, (16,))
        optimizer.zero_grad()
        left, right, apart = model(source, target)
        loss = F.cross_entropy(left, source) + F.cross_entropy(right, target) + 0.1 * apart
        loss.backward()
        optimizer.step()
        if step % 11 == 10:
            print(step, f"{loss.item():.4f}")
    print("weights", digest(model))


if __name__ == "__main__":
    main()
