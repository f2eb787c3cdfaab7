"""TD3 in a class: clipped double Q, smoothed targets, a delayed actor; the copies are made with deepcopy."""
# flow: critic_loss -> critic; actor_loss -> actor, critic
# cut: critic_loss -> actor

import copy

import torch
import torch.nn as nn
from digest import digest
from replay import filled
from torch.nn.functional import mse_loss


class Actor(nn.Module):
    def __init__(self, states, actions, width=16):
        super().__init__()
        self.hidden = nn.Linear(states, width)
        self.out = nn.Linear(width, actions)

    def forward(self, state):
        return self.out(self.hidden(state).relu()).tanh()


class TwinCritic(nn.Module):
    def __init__(self, states, actions, width=16):
        super().__init__()
        self.one, self.two = (
            nn.Sequential(nn.Linear(states + actions, width), nn.ReLU(), nn.Linear(width, 1)) for _ in range(2)
        )

    def forward(self, state, action):
        both = torch.cat([state, action], 1)
        return self.one(both), self.two(both)


class TD3:
    def __init__(self, states=4, actions=1, gamma=0.99, tau=0.005, delay=2):
        self.gamma, self.tau, self.delay, self.calls = gamma, tau, delay, 0
        self.actor, self.critic = Actor(states, actions), TwinCritic(states, actions)
        self.actor_target, self.critic_target = copy.deepcopy(self.actor), copy.deepcopy(self.critic)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=3e-4)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=3e-4)

    @torch.no_grad()
    def targets(self, batch):
        noise = (0.2 * torch.randn_like(batch["act"])).clamp(-0.5, 0.5)
        action = (self.actor_target(batch["obs2"]) + noise).clamp(-1, 1)
        worse = torch.min(*self.critic_target(batch["obs2"], action))
        return batch["rew"][:, None] + self.gamma * (1 - batch["done"][:, None]) * worse

    def update(self, batch):
        self.calls += 1
        target = self.targets(batch)
        critic_loss = sum(mse_loss(q, target) for q in self.critic(batch["obs"], batch["act"]))
        self.critic_optimizer.zero_grad()
        critic_loss.backward()
        self.critic_optimizer.step()
        if self.calls % self.delay == 0:
            actor_loss = -self.critic(batch["obs"], self.actor(batch["obs"]))[0].mean()
            self.actor_optimizer.zero_grad()
            actor_loss.backward()
            self.actor_optimizer.step()
            self.follow()
        return critic_loss.item()

    def follow(self):
        for live, slow in ((self.actor, self.actor_target), (self.critic, self.critic_target)):
            for p, q in zip(live.parameters(), slow.parameters(), strict=True):
                q.data += self.tau * (p.data - q.data)


def main():
    torch.manual_seed(0)
    agent, memory = TD3(), filled(seed=0)
    for t in range(40):
        loss = agent.update(memory.sample_batch(32))
        if t % 10 == 0:
            print(f"{t}: critic {loss:.4f}")
    print("weights", digest(agent.actor, agent.critic, agent.actor_target, agent.critic_target))


if __name__ == "__main__":
    main()
