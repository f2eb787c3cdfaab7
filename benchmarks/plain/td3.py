"""TD3 on Pendulum, as a loop in plain PyTorch: Fujimoto et al. 2018, arXiv:1802.09477, algorithm 1.

python benchmarks/plain/td3.py        # 500 steps of 10 transitions and 10 updates: return -1,200 -> about -150
"""

import argparse
import copy
import time

import gymnasium
import torch
from torch import Tensor, nn
from torch.nn import functional as F

ENVS, UPDATES, BATCH, CAPACITY, WARMUP, WIDTH = 10, 10, 128, 100_000, 1000, 64
GAMMA, REWARD_SCALE, TAU, DELAY = 0.98, 0.1, 0.01, 2
EXPLORATION, SMOOTHING, NOISE_CLIP, TORQUE = 0.1, 0.2, 0.5, 2.0  # noise on actions in [-1, 1]


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


@torch.no_grad()
def evaluate(actor: nn.Module, episodes: int = 10) -> float:
    """The mean return of whole episodes of 200 steps, without noise."""
    envs = gymnasium.make_vec("Pendulum-v1", num_envs=episodes)
    observation, _ = envs.reset(seed=2**31)
    returns = torch.zeros(episodes)
    for _ in range(200):
        actions = TORQUE * actor(torch.from_numpy(observation))
        observation, reward, *_ = envs.step(actions.numpy())
        returns += torch.from_numpy(reward)
    return returns.mean().item()


def train(steps: int = 500, seed: int = 0) -> dict[str, float]:
    torch.manual_seed(seed)
    envs = gymnasium.make_vec("Pendulum-v1", num_envs=ENVS)
    observation = torch.from_numpy(envs.reset(seed=seed)[0])
    actor, critic = nn.Sequential(mlp(3, 1), nn.Tanh()), Critic()
    target_actor, target_critic = copy.deepcopy(actor), copy.deepcopy(critic)  # averages, in no optimiser
    actor_optimizer = torch.optim.Adam(actor.parameters(), lr=1e-3, fused=True)
    critic_optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3, fused=True)
    replay, resets = Replay(), torch.zeros(ENVS, dtype=torch.bool)
    started = time.perf_counter()

    for step in range(WARMUP // ENVS + steps):
        with torch.no_grad():
            noisy = (actor(observation) + EXPLORATION * torch.randn(ENVS, 1)).clamp(-1, 1)
        action = torch.rand(ENVS, 1) * 2 - 1 if step < WARMUP // ENVS else noisy
        following, reward, terminated, truncated, _ = envs.step(TORQUE * action.numpy())
        after, reward = torch.from_numpy(following), torch.from_numpy(reward).float()
        replay.add(torch.cat([observation, action, reward[:, None], after], dim=1)[~resets])  # a reset is none
        observation, resets = after, torch.from_numpy(terminated | truncated)  # Pendulum only truncates
        if step < WARMUP // ENVS:
            continue

        for update in range(1, UPDATES + 1):
            seen, actions, rewards, later = replay.sample()
            with torch.no_grad():  # the cut: the target stays put
                noise = (SMOOTHING * torch.randn(BATCH, 1)).clamp(-NOISE_CLIP, NOISE_CLIP)
                values = target_critic(later, (target_actor(later) + noise).clamp(-1, 1))
                target = REWARD_SCALE * rewards + GAMMA * torch.min(*values)
            first, second = critic(seen, actions)
            critic_loss = F.mse_loss(first, target) + F.mse_loss(second, target)
            critic_optimizer.zero_grad()
            critic_loss.backward()
            critic_optimizer.step()
            if update % DELAY:
                continue

            critic.requires_grad_(False)  # the cut: the actor's loss goes through the critic and must not teach it
            actor_loss = -critic(seen, actor(seen))[0].mean()
            actor_optimizer.zero_grad()
            actor_loss.backward()
            actor_optimizer.step()
            critic.requires_grad_(True)

            with torch.no_grad():
                for averages, networks in ((target_actor, actor), (target_critic, critic)):
                    for average, current in zip(averages.parameters(), networks.parameters(), strict=True):
                        average.lerp_(current, TAU)

    seconds = time.perf_counter() - started
    found = {"evaluation_return": evaluate(actor), "q": -actor_loss.item() / REWARD_SCALE}
    return found | {"steps_per_second": steps / seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    for name, value in train(**vars(parser.parse_args())).items():
        print(f"{name}: {value:.4g}")
