"""REINFORCE: the returns are numbers; one backward an episode, of a name that was a list before."""
# flow: policy_loss -> inner, outer

import argparse

import torch
import torch.nn as nn
from cartpole import CartPole
from digest import digest
from torch.distributions import Categorical


class Policy(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 32)
        self.dropout = nn.Dropout(p=0.4)
        self.outer = nn.Linear(32, 2)

    def forward(self, state):
        return Categorical(logits=self.outer(self.dropout(self.inner(state)).relu()))


class Agent:
    def __init__(self, gamma):
        self.gamma = gamma
        self.policy = Policy()
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=1e-2)
        self.log_probs, self.rewards = [], []

    def act(self, state):
        distribution = self.policy(torch.from_numpy(state))
        action = distribution.sample()
        self.log_probs.append(distribution.log_prob(action))
        return action.numpy()

    def learn(self):
        rewards = torch.tensor(self.rewards)
        weights = self.gamma ** torch.arange(len(rewards))
        returns = (rewards * weights).flip(0).cumsum(0).flip(0) / weights
        returns = (returns - returns.mean()) / (returns.std() + 1e-8)
        policy_loss = [-lp * ret for lp, ret in zip(self.log_probs, returns, strict=True)]
        self.optimizer.zero_grad()
        policy_loss = torch.cat(policy_loss).sum()
        policy_loss.backward()
        self.optimizer.step()
        self.log_probs, self.rewards = [], []
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
        loss = agent.learn()
        if episode % 10 == 0:
            print(f"episode {episode}: loss {loss:.4f}")
    print("weights", digest(agent.policy))
