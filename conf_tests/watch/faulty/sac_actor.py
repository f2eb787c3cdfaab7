"""Soft actor-critic: the actor's loss fills the critics' and the temperature's gradients, which are cleared in time."""

# finds: note gradient_through

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Actor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.body(state).chunk(2, dim=1)
        normal = torch.distributions.Normal(mean, log_std.clamp(-5, 2).exp())
        raw = normal.rsample()
        return raw.tanh(), normal.log_prob(raw) - torch.log(1 - raw.tanh().square() + 1e-6)


class Critic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        return self.body(torch.cat([state, action], 1))


def main() -> None:
    torch.manual_seed(0)
    actor, critic = Actor(), Critic()
    critic_target = copy.deepcopy(critic)
    log_alpha = torch.zeros(1, requires_grad=True)
    actor_opt, critic_opt = torch.optim.Adam(actor.parameters(), 3e-4), torch.optim.Adam(critic.parameters(), 3e-4)
    alpha_opt = torch.optim.Adam([log_alpha], 3e-4)
    for _ in range(8):
        state, action, reward = torch.randn(32, 3), torch.rand(32, 1) * 2 - 1, torch.randn(32, 1)
        with torch.no_grad():
            next_action, next_log_prob = actor(state + 0.1)
            target = reward + 0.99 * (critic_target(state + 0.1, next_action) - log_alpha.exp() * next_log_prob)
        critic_loss = F.mse_loss(critic(state, action), target)
        critic_opt.zero_grad()
        critic_loss.backward()
        critic_opt.step()

        new_action, log_prob = actor(state)
        # mended: critic.requires_grad_(False)
        # mended: actor_loss = (log_alpha.detach().exp() * log_prob - critic(state, new_action)).mean()
        # mended: critic.requires_grad_(True)
        actor_loss = (log_alpha.exp() * log_prob - critic(state, new_action)).mean()
        actor_opt.zero_grad()
        actor_loss.backward()  # here
        actor_opt.step()

        alpha_loss = -(log_alpha.exp() * (log_prob - 1).detach()).mean()
        alpha_opt.zero_grad()
        alpha_loss.backward()
        alpha_opt.step()
        with torch.no_grad():
            for p, p_target in zip(critic.parameters(), critic_target.parameters(), strict=True):
                p_target.lerp_(p, 0.05)


if __name__ == "__main__":
    main()
