"""PPO on CartPole, as a loop in plain PyTorch: Schulman et al. 2017, arXiv:1707.06347, eq. 7 and 9.

python benchmarks/plain/actor_critic.py        # 60 iterations of 64 x 32 steps: a return of 500 out of 500
"""

import argparse
import math
import time
from collections import deque

import gymnasium
import torch
from torch import nn
from torch.distributions import Categorical

ENVS, ROLLOUT, EPOCHS, MINIBATCHES, WIDTH = 32, 64, 4, 4, 64
GAMMA, LAMBDA, CLIP, VALUE_WEIGHT, MAX_NORM = 0.98, 0.95, 0.2, 0.25, 2.0


def layer(inputs: int, outputs: int, gain: float) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(linear.weight, gain)
    nn.init.zeros_(linear.bias)
    return linear


def network(outputs: int, gain: float) -> nn.Module:
    """CartPole's four numbers to so many outputs; the gain is the last layer's."""
    hidden = [layer(4, WIDTH, math.sqrt(2)), nn.Tanh(), layer(WIDTH, WIDTH, math.sqrt(2)), nn.Tanh()]
    return nn.Sequential(*hidden, layer(WIDTH, outputs, gain))


@torch.no_grad()
def evaluate(actor: nn.Module, episodes: int = 20) -> float:
    """The mean return of whole episodes, always the likeliest action."""
    envs = gymnasium.make_vec("CartPole-v1", num_envs=episodes)
    observation, _ = envs.reset(seed=2**31)
    returns, playing = torch.zeros(episodes), torch.ones(episodes, dtype=torch.bool)
    while playing.any():
        action = actor(torch.from_numpy(observation)).argmax(1)
        observation, reward, terminated, truncated, _ = envs.step(action.numpy())
        returns += torch.from_numpy(reward).float() * playing
        playing &= ~torch.from_numpy(terminated | truncated)
    return returns.mean().item()


def train(steps: int = 60, seed: int = 0) -> dict[str, float]:
    torch.manual_seed(seed)
    envs = gymnasium.make_vec("CartPole-v1", num_envs=ENVS)
    observation = torch.from_numpy(envs.reset(seed=seed)[0])
    actor, critic = network(2, 0.01), network(1, 1.0)
    parameters = [*actor.parameters(), *critic.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=8e-3, eps=1e-5, fused=True)
    resets, running, episodes = torch.zeros(ENVS, dtype=torch.bool), torch.zeros(ENVS), deque([0.0], maxlen=20)
    started = time.perf_counter()

    for _ in range(steps):
        observations, actions = torch.zeros(ROLLOUT + 1, ENVS, 4), torch.zeros(ROLLOUT, ENVS, dtype=torch.long)
        log_probs, rewards = torch.zeros(ROLLOUT, ENVS), torch.zeros(ROLLOUT, ENVS)
        ends, overs, valid = (torch.zeros(ROLLOUT, ENVS, dtype=torch.bool) for _ in range(3))
        for t in range(ROLLOUT):
            observations[t], valid[t] = observation, ~resets  # a step after the end of an episode only resets
            with torch.no_grad():
                policy = Categorical(logits=actor(observation))
                actions[t] = policy.sample()
                log_probs[t] = policy.log_prob(actions[t])
            following, reward, terminated, truncated, _ = envs.step(actions[t].numpy())
            observation, rewards[t] = torch.from_numpy(following), torch.from_numpy(reward)
            ends[t], overs[t] = torch.from_numpy(terminated), torch.from_numpy(terminated | truncated)
            resets, running = overs[t], running + rewards[t]
            episodes.extend(running[resets].tolist())
            running = running * ~resets
        observations[ROLLOUT] = observation

        with torch.no_grad():  # the cut: neither loss may teach the critic through its own estimates
            values = critic(observations).squeeze(-1)
        errors = rewards + GAMMA * ~ends * values[1:] - values[:-1]
        advantages, last = torch.zeros_like(errors), torch.zeros(ENVS)
        for t in reversed(range(ROLLOUT)):
            last = errors[t] + GAMMA * LAMBDA * ~overs[t] * last
            advantages[t] = last
        targets = (advantages + values[:-1])[valid]
        batch = observations[:-1][valid], actions[valid], log_probs[valid], advantages[valid], targets

        for _ in range(EPOCHS):
            for here in torch.randperm(len(targets)).tensor_split(MINIBATCHES):
                seen, action, old_log_prob, advantage, target = (part[here] for part in batch)
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                ratio = (Categorical(logits=actor(seen)).log_prob(action) - old_log_prob).exp()
                policy_loss = -torch.min(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage).mean()
                value_loss = (critic(seen).squeeze(-1) - target).square().mean()
                optimizer.zero_grad()
                (policy_loss + VALUE_WEIGHT * value_loss).backward()
                nn.utils.clip_grad_norm_(parameters, MAX_NORM)
                optimizer.step()

    seconds = time.perf_counter() - started
    found = {"evaluation_return": evaluate(actor), "episode_return": sum(episodes) / len(episodes)}
    return found | {"steps_per_second": steps / seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    for name, value in train(**vars(parser.parse_args())).items():
        print(f"{name}: {value:.4g}")
