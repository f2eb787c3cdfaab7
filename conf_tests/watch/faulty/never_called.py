"""A text classifier with an embedding of positions and a BatchNorm that ``forward`` leaves out."""

# finds: note unused_layers

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TextClassifier(nn.Module):
    def __init__(self, vocabulary: int = 30, width: int = 8, longest: int = 12, classes: int = 2) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        # mended:
        self.positions = nn.Embedding(longest, width)
        self.encoder = nn.GRU(width, width, batch_first=True)
        # mended:
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        _, last = self.encoder(self.tokens(tokens))
        return self.head(last.squeeze(0))


def main() -> None:
    torch.manual_seed(0)
    model = TextClassifier()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-2)
    for _ in range(10):
        tokens, labels = torch.randint(30, (16, 12)), torch.randint(2, (16,))
        loss = F.cross_entropy(model(tokens), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


if __name__ == "__main__":
    main()
