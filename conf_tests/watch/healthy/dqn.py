"""DQN: a replay buffer, a target network that is copied now and then and never trained."""
# flow: loss -> q_network
# cut: loss -> target_network

import random
from collections import deque

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.optim as optim
from cartpole import CartPole
from digest import digest


class QNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 2))

    def forward(self, x):
        return self.network(x)


def linear_schedule(start_e, end_e, duration, t):
    return max((end_e - start_e) / duration * t + start_e, end_e)


if __name__ == "__main__":
    seed, gamma, learning_starts, total = 1, 0.99, 64, 240
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    envs = CartPole(seed=seed)
    q_network = QNetwork()
    optimizer = optim.Adam(q_network.parameters(), lr=1e-3)
    target_network = QNetwork()
    target_network.load_state_dict(q_network.state_dict())
    rb = deque(maxlen=1000)
    obs = envs.reset()
    for global_step in range(total):
        epsilon = linear_schedule(1, 0.05, 0.5 * total, global_step)
        if random.random() < epsilon:
            actions = np.array([random.randrange(2)])
        else:
            q_values = q_network(torch.Tensor(obs))
            actions = torch.argmax(q_values, dim=1).cpu().numpy()
        next_obs, rewards, dones = envs.step(actions)
        rb.append((obs[0], next_obs[0], actions, rewards, dones.astype(np.float32)))
        obs = next_obs if not dones[0] else envs.state.astype(np.float32)
        if global_step > learning_starts and global_step % 4 == 0:
            batch = [torch.tensor(np.stack(column)) for column in zip(*random.sample(rb, 16), strict=True)]
            observations, next_observations, acts, rews, ends = batch
            with torch.no_grad():
                target_max, _ = target_network(next_observations).max(dim=1)
                td_target = rews.flatten() + gamma * target_max * (1 - ends.flatten())
            old_val = q_network(observations).gather(1, acts).squeeze()
            loss = F.mse_loss(td_target, old_val)
            if global_step % 40 == 0:
                print(f"step {global_step} td_loss {loss.item():.4f} q_values {old_val.mean().item():.4f}")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if global_step % 30 == 0:
            pairs = zip(target_network.parameters(), q_network.parameters(), strict=True)
            for target_network_param, q_network_param in pairs:
                target_network_param.data.copy_(q_network_param.data)
    print("weights", digest(q_network, target_network))
