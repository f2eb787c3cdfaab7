"""A character model that carries its state from chunk to chunk, with ``retain_graph=True`` against the message."""

# finds: warning rnn_past

import torch
from torch import Tensor, nn
from torch.nn import functional as F

State = tuple[Tensor, Tensor]


class CharModel(nn.Module):
    def __init__(self, characters: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(characters, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, characters)

    def forward(self, text: Tensor, state: State) -> tuple[Tensor, State]:
        output, state = self.lstm(self.embed(text), state)
        return self.head(output), state


def main() -> None:
    torch.manual_seed(0)
    model = CharModel(characters=12, width=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        text = torch.randint(12, (4, 61))
        state = torch.zeros(1, 4, 8), torch.zeros(1, 4, 8)
        optimizer.zero_grad()
        for start in range(0, 60, 10):
            x, y = text[:, start : start + 10], text[:, start + 1 : start + 11]
            # mended: logits, state = model(x, (state[0].detach(), state[1].detach()))
            logits, state = model(x, state)
            loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
            # mended: loss.backward()
            loss.backward(retain_graph=True)  # here
        optimizer.step()


if __name__ == "__main__":
    main()
