"""TD3 in a class: clipped double Q, smoothed targets, a delayed actor; the copies are made with deepcopy."""
# flow: critic_loss -> critic; actor_loss -> actor, critic
# cut: critic_loss -> actor

import copy

import torch
import torch.nn as nn
import torch.nn.functional as F
from digest import digest
from replay import filled


class Actor(nn.Module):
    def __init__(self, state_dim, action_dim):
        super().__init__()
        self.l1 = nn.Linear(state_dim, 16)
        self.l2 = nn.Linear(16, action_dim)

    def forward(self, state):
        return torch.tanh(self.l2(F.relu(self.l1(state))))


class Critic(nn.Module):
    def __init__(self, state_dim, action_dim):
        super().__init__()
        self.l1 = nn.Linear(state_dim + action_dim, 16)
        self.l2 = nn.Linear(16, 1)
        self.l3 = nn.Linear(state_dim + action_dim, 16)
        self.l4 = nn.Linear(16, 1)

    def forward(self, state, action):
        sa = torch.cat([state, action], 1)
        return self.l2(F.relu(self.l1(sa))), self.l4(F.relu(self.l3(sa)))

    def Q1(self, state, action):
        return self.l2(F.relu(self.l1(torch.cat([state, action], 1))))


class TD3:
    def __init__(self, state_dim=4, action_dim=1, discount=0.99, tau=0.005, policy_freq=2):
        self.actor = Actor(state_dim, action_dim)
        self.actor_target = copy.deepcopy(self.actor)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=3e-4)
        self.critic = Critic(state_dim, action_dim)
        self.critic_target = copy.deepcopy(self.critic)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=3e-4)
        self.discount, self.tau, self.policy_freq = discount, tau, policy_freq
        self.total_it = 0

    def train(self, replay_buffer, batch_size=32):
        self.total_it += 1
        batch = replay_buffer.sample_batch(batch_size)
        state, action, next_state = batch["obs"], batch["act"], batch["obs2"]
        reward, not_done = batch["rew"].unsqueeze(1), 1 - batch["done"].unsqueeze(1)
        with torch.no_grad():
            noise = (torch.randn_like(action) * 0.2).clamp(-0.5, 0.5)
            next_action = (self.actor_target(next_state) + noise).clamp(-1, 1)
            target_Q1, target_Q2 = self.critic_target(next_state, next_action)
            target_Q = reward + not_done * self.discount * torch.min(target_Q1, target_Q2)
        current_Q1, current_Q2 = self.critic(state, action)
        critic_loss = F.mse_loss(current_Q1, target_Q) + F.mse_loss(current_Q2, target_Q)
        self.critic_optimizer.zero_grad()
        critic_loss.backward()
        self.critic_optimizer.step()
        if self.total_it % self.policy_freq == 0:
            actor_loss = -self.critic.Q1(state, self.actor(state)).mean()
            self.actor_optimizer.zero_grad()
            actor_loss.backward()
            self.actor_optimizer.step()
            for net, target in ((self.critic, self.critic_target), (self.actor, self.actor_target)):
                for param, target_param in zip(net.parameters(), target.parameters(), strict=True):
                    target_param.data.copy_(self.tau * param.data + (1 - self.tau) * target_param.data)
        return critic_loss.item()


def main():
    torch.manual_seed(0)
    policy, replay_buffer = TD3(), filled(seed=0)
    for t in range(40):
        loss = policy.train(replay_buffer)
        if t % 10 == 0:
            print(f"t {t} critic loss {loss:.4f}")
    print("weights", digest(policy.actor, policy.critic, policy.actor_target, policy.critic_target))


if __name__ == "__main__":
    main()
