"""DQN on CartPole, as a loop in plain PyTorch: Mnih et al. 2015, algorithm 1.

python benchmarks/plain/dqn.py        # 1,400 steps of 10 transitions and 10 updates: Q about 50
"""

import argparse
import copy
import time

import gymnasium
import torch
from torch import Tensor, nn

ENVS, UPDATES, BATCH, CAPACITY, WARMUP, WIDTH = 10, 10, 64, 100_000, 1000, 64
GAMMA, PERIOD, EPSILON, EXPLORATION = 0.99, 200, 0.05, 500


class Replay:
    """The last transitions: observation (4), action, reward, next observation (4), whether it goes on."""

    def __init__(self) -> None:
        self.table, self.count = torch.zeros(CAPACITY, 11), 0

    def add(self, rows: Tensor) -> None:
        self.table[(torch.arange(len(rows)) + self.count) % CAPACITY] = rows
        self.count += len(rows)

    def sample(self) -> tuple[Tensor, ...]:
        rows = self.table[torch.randint(min(self.count, CAPACITY), (BATCH,))]
        return rows[:, :4], rows[:, 4:5].long(), rows[:, 5], rows[:, 6:10], rows[:, 10]


@torch.no_grad()
def evaluate(network: nn.Module, episodes: int = 10) -> dict[str, float]:
    """The mean return of whole episodes of best actions, and the mean of what is expected in their states."""
    envs = gymnasium.make_vec("CartPole-v1", num_envs=episodes)
    observation, _ = envs.reset(seed=2**31)
    returns, playing, expected = torch.zeros(episodes), torch.ones(episodes, dtype=torch.bool), []
    while playing.any():
        values, actions = network(torch.from_numpy(observation)).max(1)
        expected.append(values.mean())
        observation, reward, terminated, truncated, _ = envs.step(actions.numpy())
        returns += torch.from_numpy(reward) * playing
        playing &= ~torch.from_numpy(terminated | truncated)
    return {"q": torch.stack(expected).mean().item(), "evaluation_return": returns.mean().item()}


def train(steps: int = 1400, seed: int = 0) -> dict[str, float]:
    torch.manual_seed(seed)
    envs = gymnasium.make_vec("CartPole-v1", num_envs=ENVS)
    observation = torch.from_numpy(envs.reset(seed=seed)[0])
    layers = [nn.Linear(4, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2)]
    network = nn.Sequential(*layers)
    target_network = copy.deepcopy(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01, fused=True)
    replay, resets = Replay(), torch.zeros(ENVS, dtype=torch.bool)
    started = time.perf_counter()

    for step in range(-(WARMUP // ENVS), steps):
        share = 1.0 if step < 0 else max(EPSILON, 1 - step / EXPLORATION)
        with torch.no_grad():
            best = network(observation).argmax(1)
        action = torch.where(torch.rand(ENVS) < share, torch.randint(2, (ENVS,)), best)
        following, reward, terminated, truncated, _ = envs.step(action.numpy())
        after, going_on = torch.from_numpy(following), ~torch.from_numpy(terminated)  # a truncation goes on
        rows = [observation, action[:, None], torch.from_numpy(reward)[:, None], after, going_on[:, None]]
        replay.add(torch.cat([each.float() for each in rows], dim=1)[~resets])  # a step that only resets is none
        observation, resets = after, torch.from_numpy(terminated | truncated)

        if step < 0:
            continue
        for update in range(step * UPDATES, (step + 1) * UPDATES):
            seen, actions, rewards, later, goes_on = replay.sample()
            with torch.no_grad():  # the cut: the target stays put
                target = rewards + GAMMA * goes_on * target_network(later).amax(1)
            loss = (target - network(seen).gather(1, actions).squeeze(1)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if (update + 1) % PERIOD == 0:
                target_network.load_state_dict(network.state_dict())

    seconds = time.perf_counter() - started
    return evaluate(network) | {"loss": loss.item(), "steps_per_second": steps / seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--seed", type=int, default=0)
    for name, value in train(**vars(parser.parse_args())).items():
        print(f"{name}: {value:.4g}")
