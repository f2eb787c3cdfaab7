"""REINFORCE: the returns are numbers; one backward an episode."""
# flow: policy_loss -> affine1, affine2

import argparse
from collections import deque

import torch
import torch.nn as nn
import torch.nn.functional as F
from cartpole import CartPole
from digest import digest
from torch.distributions import Categorical


class Policy(nn.Module):
    def __init__(self):
        super().__init__()
        self.affine1 = nn.Linear(4, 32)
        self.dropout = nn.Dropout(p=0.6)
        self.affine2 = nn.Linear(32, 2)

    def forward(self, x):
        return F.softmax(self.affine2(F.relu(self.dropout(self.affine1(x)))), dim=1)


class Agent:
    def __init__(self, gamma):
        self.gamma = gamma
        self.policy = Policy()
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=1e-2)
        self.saved_log_probs = []
        self.rewards = []

    def act(self, state):
        m = Categorical(self.policy(torch.from_numpy(state)))
        action = m.sample()
        self.saved_log_probs.append(m.log_prob(action))
        return action.numpy()

    def finish_episode(self):
        R, returns = 0.0, deque()
        for r in reversed(self.rewards):
            R = r + self.gamma * R
            returns.appendleft(R)
        returns = torch.tensor(returns)
        returns = (returns - returns.mean()) / (returns.std() + 1e-8)
        policy_loss = [-log_prob * R for log_prob, R in zip(self.saved_log_probs, returns, strict=True)]
        self.optimizer.zero_grad()
        policy_loss = torch.cat(policy_loss).sum()
        policy_loss.backward()
        self.optimizer.step()
        self.rewards.clear()
        self.saved_log_probs.clear()
        return policy_loss.item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--gamma", type=float, default=0.99)
    parser.add_argument("--seed", type=int, default=543)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    env, agent = CartPole(seed=args.seed), Agent(args.gamma)
    for episode in range(35):
        state, done = env.reset(), [False]
        while not done[0] and len(agent.rewards) < 25:
            state, reward, done = env.step(agent.act(state))
            agent.rewards.append(float(reward[0]))
        loss = agent.finish_episode()
        if episode % 10 == 0:
            print(f"episode {episode}: loss {loss:.4f}")
    print("weights", digest(agent.policy))
