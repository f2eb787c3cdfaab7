"""SAC: twin critics in one optimiser, an actor through them, a temperature of its own, targets by polyak."""
# fast
# flow: qf_loss -> qf1, qf2; actor_loss -> actor, qf1, qf2; alpha_loss -> log_alpha
# cut: qf_loss -> actor; alpha_loss -> actor

import torch
import torch.nn as nn
import torch.nn.functional as F
from digest import digest
from replay import filled
from torch.distributions import Normal


class SoftQ(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.hidden = nn.Linear(4 + 1, width)
        self.out = nn.Linear(width, 1)

    def forward(self, obs, act):
        return self.out(self.hidden(torch.cat([obs, act], 1)).relu()).squeeze(1)


class Actor(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.hidden = nn.Linear(4, width)
        self.mean = nn.Linear(width, 1)
        self.log_std = nn.Linear(width, 1)
        self.register_buffer("scale", torch.tensor(1.0))

    def sample(self, obs):
        """Actions, squashed, and their log-probabilities."""
        h = self.hidden(obs).relu()
        gaussian = Normal(self.mean(h), self.log_std(h).clamp(-5, 2).exp())
        raw = gaussian.rsample()
        log_prob = gaussian.log_prob(raw) - 2 * (0.6931472 - raw - F.softplus(-2 * raw))
        return self.scale * raw.tanh(), log_prob.sum(1)


def follow(target, source, tau):
    for slow, fast in zip(target.parameters(), source.parameters(), strict=True):
        slow.data.mul_(1 - tau).add_(tau * fast.data)


if __name__ == "__main__":
    torch.manual_seed(1)
    gamma, tau, delay, target_entropy = 0.99, 0.005, 2, -1.0
    actor, qf1, qf2 = Actor(), SoftQ(), SoftQ()
    qf1_target, qf2_target = SoftQ(), SoftQ()
    qf1_target.load_state_dict(qf1.state_dict())
    qf2_target.load_state_dict(qf2.state_dict())
    q_optimizer = torch.optim.Adam([*qf1.parameters(), *qf2.parameters()], lr=1e-3)
    actor_optimizer = torch.optim.Adam(actor.parameters(), lr=3e-4)
    log_alpha = torch.zeros(1, requires_grad=True)
    a_optimizer = torch.optim.Adam([log_alpha], lr=1e-3)
    alpha = log_alpha.exp().item()
    memory = filled(seed=1)
    for t in range(36):
        data = memory.sample_batch(32)
        with torch.no_grad():
            act2, log_pi2 = actor.sample(data["obs2"])
            best = torch.min(qf1_target(data["obs2"], act2), qf2_target(data["obs2"], act2)) - alpha * log_pi2
            y = data["rew"] + gamma * (1 - data["done"]) * best
        qf_loss = sum(F.mse_loss(qf(data["obs"], data["act"]), y) for qf in (qf1, qf2))
        q_optimizer.zero_grad()
        qf_loss.backward()
        q_optimizer.step()

        if t % delay == 0:
            for _ in range(delay):  # the steps left out before
                act, log_pi = actor.sample(data["obs"])
                actor_loss = (alpha * log_pi - torch.min(qf1(data["obs"], act), qf2(data["obs"], act))).mean()
                actor_optimizer.zero_grad()
                actor_loss.backward()
                actor_optimizer.step()

                with torch.no_grad():
                    _, log_pi = actor.sample(data["obs"])
                alpha_loss = -(log_alpha.exp() * (log_pi + target_entropy)).mean()
                a_optimizer.zero_grad()
                alpha_loss.backward()
                a_optimizer.step()
                alpha = log_alpha.exp().item()

        follow(qf1_target, qf1, tau)
        follow(qf2_target, qf2, tau)
        if t % 12 == 0:
            print(f"{t}: qf {qf_loss.item():.4f}, actor {actor_loss.item():.4f}, alpha {alpha:.4f}")
    print("weights", digest(actor, qf1, qf2, qf1_target, qf2_target, log_alpha))
