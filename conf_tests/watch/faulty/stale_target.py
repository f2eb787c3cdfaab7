"""A DDPG critic whose target network is copied once and never follows."""

# finds: error stale_target

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Critic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        return self.body(torch.cat([state, action], 1))


class Agent:
    def __init__(self) -> None:
        self.critic = Critic()
        self.critic_target = copy.deepcopy(self.critic)
        self.optimizer = torch.optim.Adam(self.critic.parameters(), lr=1e-3)

    def follow(self, tau: float) -> None:
        # mended: pairs = zip(self.critic.parameters(), self.critic_target.parameters(), strict=True)
        pairs = zip(self.critic_target.parameters(), self.critic_target.parameters(), strict=True)
        for p, p_target in pairs:
            p_target.data.lerp_(p.data, tau)

    def learn(self) -> None:
        state, action, reward = torch.randn(16, 3), torch.randn(16, 1), torch.randn(16, 1)
        with torch.no_grad():
            target = reward + 0.99 * self.critic_target(state + 0.1, action)
        critic_loss = F.mse_loss(self.critic(state, action), target)
        self.optimizer.zero_grad()
        critic_loss.backward()
        self.optimizer.step()
        self.follow(tau=0.005)


def main() -> None:
    torch.manual_seed(0)
    agent = Agent()
    for _ in range(40):
        agent.learn()


if __name__ == "__main__":
    main()
