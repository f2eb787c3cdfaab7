"""PPO in one file: environments side by side, old log-probabilities and values as data, one summed loss."""
# fast
# flow: loss -> critic, actor

import argparse

import numpy as np
import torch
import torch.nn as nn
from cartpole import CartPole
from digest import digest
from torch.distributions import Categorical


def parse_args():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=2.5e-3)
    parser.add_argument("--num-envs", type=int, default=4)
    parser.add_argument("--num-steps", type=int, default=16)
    parser.add_argument("--updates", type=int, default=5)
    parser.add_argument("--minibatches", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--gamma", type=float, default=0.99)
    parser.add_argument("--lam", type=float, default=0.95)
    parser.add_argument("--clip", type=float, default=0.2)
    parser.add_argument("--entropy", type=float, default=0.01)
    parser.add_argument("--value", type=float, default=0.5)
    parser.add_argument("--max-grad-norm", type=float, default=0.5)
    return parser.parse_args()


def linear(inside, outside, gain):
    layer = nn.Linear(inside, outside)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class Agent(nn.Module):
    def __init__(self):
        super().__init__()
        self.critic = nn.Sequential(linear(4, 16, 2**0.5), nn.Tanh(), linear(16, 1, 1.0))
        self.actor = nn.Sequential(linear(4, 16, 2**0.5), nn.Tanh(), linear(16, 2, 0.01))

    def policy(self, obs):
        return Categorical(logits=self.actor(obs))

    def value(self, obs):
        return self.critic(obs).squeeze(-1)


def collect(agent, envs, obs, steps):
    """So many steps in every environment, as tensors of shape (steps, environments, ...)."""
    rows = []
    for _ in range(steps):
        with torch.no_grad():
            policy, value = agent.policy(obs), agent.value(obs)
            action = policy.sample()
        state, reward, done = envs.step(action.numpy())
        ended = torch.from_numpy(done).float()
        rows.append((obs, action, policy.log_prob(action), value, torch.from_numpy(reward), ended))
        obs = torch.from_numpy(np.where(done[:, None], envs.state, state).astype(np.float32))
    return [torch.stack(column) for column in zip(*rows, strict=True)], obs


def estimate(rewards, values, ended, last, gamma, lam):
    """Generalised advantages, from the end back."""
    advantages, carried = torch.zeros_like(rewards), torch.zeros(rewards.size(1))
    for t in reversed(range(len(rewards))):
        later = last if t + 1 == len(rewards) else values[t + 1]
        error = rewards[t] + gamma * later * (1 - ended[t]) - values[t]
        carried = error + gamma * lam * (1 - ended[t]) * carried
        advantages[t] = carried
    return advantages


if __name__ == "__main__":
    args = parse_args()
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    envs = CartPole(args.num_envs, seed=args.seed)
    agent = Agent()
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)
    obs = torch.from_numpy(envs.reset())
    size = args.num_envs * args.num_steps
    for update in range(args.updates):
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * (1 - update / args.updates)
        (states, actions, log_probs, values, rewards, ended), obs = collect(agent, envs, obs, args.num_steps)
        with torch.no_grad():
            advantages = estimate(rewards, values, ended, agent.value(obs), args.gamma, args.lam)
        targets = advantages + values
        flat = [t.flatten(0, 1) for t in (states, actions, log_probs, values, advantages, targets)]
        for _ in range(args.epochs):
            for rows in np.random.permutation(size).reshape(args.minibatches, -1):
                state, action, old_log_prob, old_value, advantage, target = (t[rows] for t in flat)
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                policy, value = agent.policy(state), agent.value(state)
                ratio = (policy.log_prob(action) - old_log_prob).exp()
                clipped = ratio.clamp(1 - args.clip, 1 + args.clip)
                policy_loss = -torch.min(ratio * advantage, clipped * advantage).mean()
                near = old_value + (value - old_value).clamp(-args.clip, args.clip)
                value_loss = torch.max((value - target).square(), (near - target).square()).mean() / 2
                loss = policy_loss + args.value * value_loss - args.entropy * policy.entropy().mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
                optimizer.step()
        print(f"update {update}: value {value_loss.item():.4f}, policy {policy_loss.item():.4f}")
    print("weights", digest(agent))
