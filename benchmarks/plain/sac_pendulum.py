"""SAC on Pendulum, as a loop in plain PyTorch: Haarnoja et al. 2018, arXiv:1812.05905, algorithm 1.

python benchmarks/plain/sac_pendulum.py        # 400 steps of 10 transitions and 10 updates: return -1,200 -> about -150
"""

import argparse
import copy
import math
import time

import gymnasium
import torch
from torch import Tensor, nn
from torch.nn import functional as F

ENVS, UPDATES, BATCH, CAPACITY, WARMUP, WIDTH = 10, 10, 128, 100_000, 1000, 64
GAMMA, REWARD_SCALE, TAU, TARGET_ENTROPY, TORQUE = 0.98, 0.1, 0.01, -1.0, 2.0


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    hidden = [nn.Linear(inputs, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(WIDTH, outputs))


class Critic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = mlp(4, 1), mlp(4, 1)

    def forward(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3) and (B, 1) to both values (B,)."""
        x = torch.cat([observations, actions], dim=1)
        return self.first(x).squeeze(1), self.second(x).squeeze(1)


class Replay:
    """The last transitions: observation (3), action, reward, next observation (3)."""

    def __init__(self) -> None:
        self.table, self.count = torch.zeros(CAPACITY, 8), 0

    def add(self, rows: Tensor) -> None:
        self.table[(torch.arange(len(rows)) + self.count) % CAPACITY] = rows
        self.count += len(rows)

    def sample(self) -> tuple[Tensor, ...]:
        rows = self.table[torch.randint(min(self.count, CAPACITY), (BATCH,))]
        return rows[:, :3], rows[:, 3:4], rows[:, 4], rows[:, 5:]


def act(actor: nn.Module, observations: Tensor) -> tuple[Tensor, Tensor]:
    """Actions (B, 1) in [-1, 1], live in their policy, and their log-probabilities (B,)."""
    mean, log_std = actor(observations).chunk(2, dim=1)
    log_std = log_std.clamp(-5, 2)
    z = torch.randn_like(mean)
    u = mean + log_std.exp() * z
    log_prob = -z.square() / 2 - log_std - math.log(2 * math.pi) / 2 - 2 * (math.log(2) - u - F.softplus(-2 * u))
    return u.tanh(), log_prob.squeeze(1)


@torch.no_grad()
def evaluate(actor: nn.Module, episodes: int = 10) -> float:
    """The mean return of whole episodes of 200 steps, without noise."""
    envs = gymnasium.make_vec("Pendulum-v1", num_envs=episodes)
    observation, _ = envs.reset(seed=2**31)
    returns = torch.zeros(episodes)
    for _ in range(200):
        actions = TORQUE * actor(torch.from_numpy(observation))[:, :1].tanh()
        observation, reward, *_ = envs.step(actions.numpy())
        returns += torch.from_numpy(reward)
    return returns.mean().item()


def train(steps: int = 400, seed: int = 0) -> dict[str, float]:
    torch.manual_seed(seed)
    envs = gymnasium.make_vec("Pendulum-v1", num_envs=ENVS)
    observation = torch.from_numpy(envs.reset(seed=seed)[0])
    actor, critic, log_alpha = mlp(3, 2), Critic(), torch.zeros((), requires_grad=True)
    target_critic = copy.deepcopy(critic)  # an average, in no optimiser
    actor_optimizer = torch.optim.Adam(actor.parameters(), lr=1e-3, fused=True)
    critic_optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3, fused=True)
    alpha_optimizer = torch.optim.Adam([log_alpha], lr=1e-3, fused=True)
    replay, resets = Replay(), torch.zeros(ENVS, dtype=torch.bool)
    started = time.perf_counter()

    for step in range(WARMUP // ENVS + steps):
        with torch.no_grad():
            sampled = act(actor, observation)[0]
        action = torch.rand(ENVS, 1) * 2 - 1 if step < WARMUP // ENVS else sampled
        following, reward, terminated, truncated, _ = envs.step(TORQUE * action.numpy())
        after, reward = torch.from_numpy(following), torch.from_numpy(reward).float()
        replay.add(torch.cat([observation, action, reward[:, None], after], dim=1)[~resets])  # a reset is none
        observation, resets = after, torch.from_numpy(terminated | truncated)  # Pendulum only truncates
        if step < WARMUP // ENVS:
            continue

        for _ in range(UPDATES):
            seen, actions, rewards, later = replay.sample()
            with torch.no_grad():  # the cut: the target stays put
                best, log_prob = act(actor, later)
                soft = torch.min(*target_critic(later, best)) - log_alpha.exp() * log_prob
                target = REWARD_SCALE * rewards + GAMMA * soft
            first, second = critic(seen, actions)
            critic_loss = F.mse_loss(first, target) + F.mse_loss(second, target)
            critic_optimizer.zero_grad()
            critic_loss.backward()
            critic_optimizer.step()

            best, log_prob = act(actor, seen)  # live: the critics teach through the sample
            alpha = log_alpha.exp().detach()  # the cut: it weighs
            critic.requires_grad_(False)  # the cut: the actor's loss goes through the critics and must not teach them
            actor_loss = (alpha * log_prob - torch.min(*critic(seen, best))).mean()
            actor_optimizer.zero_grad()
            actor_loss.backward()
            actor_optimizer.step()
            critic.requires_grad_(True)

            log_prob = act(actor, seen)[1].detach()  # the cut: the entropy is what it is
            alpha_loss = -(log_alpha.exp() * (log_prob + TARGET_ENTROPY)).mean()
            alpha_optimizer.zero_grad()
            alpha_loss.backward()
            alpha_optimizer.step()

            with torch.no_grad():
                for average, current in zip(target_critic.parameters(), critic.parameters(), strict=True):
                    average.lerp_(current, TAU)

    seconds = time.perf_counter() - started
    found = {"evaluation_return": evaluate(actor), "alpha": log_alpha.exp().item()}
    return found | {"steps_per_second": steps / seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    for name, value in train(**vars(parser.parse_args())).items():
        print(f"{name}: {value:.4g}")
