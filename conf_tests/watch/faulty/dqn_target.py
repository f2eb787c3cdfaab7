"""A DQN whose loss runs into its target network as well."""

# finds: warning live_target

import collections
import random

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Qnet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 32), nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(x)))


class Buffer:
    def __init__(self) -> None:
        self.transitions: collections.deque = collections.deque(maxlen=500)

    def sample(self, count: int) -> list[Tensor]:
        return [torch.stack(column) for column in zip(*random.sample(self.transitions, count), strict=True)]


def train(q: Qnet, q_target: Qnet, memory: Buffer, optimizer: torch.optim.Optimizer) -> None:
    for _ in range(4):
        s, a, r, s_next = memory.sample(16)
        q_a = q(s).gather(1, a)
        # mended: target = r + 0.98 * q_target(s_next).max(1, keepdim=True)[0].detach()
        target = r + 0.98 * q_target(s_next).max(1, keepdim=True)[0]
        loss = F.smooth_l1_loss(q_a, target)
        optimizer.zero_grad()
        loss.backward()  # here
        optimizer.step()


def main() -> None:
    torch.manual_seed(0)
    random.seed(0)
    q, q_target, memory = Qnet(), Qnet(), Buffer()
    q_target.load_state_dict(q.state_dict())
    optimizer = torch.optim.Adam(q.parameters(), lr=5e-4)
    for episode in range(8):
        for _ in range(20):
            s = torch.randn(4)
            a = q(s).argmax().reshape(1) if random.random() > 0.1 else torch.randint(2, (1,))
            memory.transitions.append((s, a, torch.rand(1), s + 0.1 * torch.randn(4)))
        train(q, q_target, memory, optimizer)
        if episode % 4 == 3:
            q_target.load_state_dict(q.state_dict())


if __name__ == "__main__":
    main()
