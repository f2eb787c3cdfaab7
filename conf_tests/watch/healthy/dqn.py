"""DQN: a replay buffer, a target network that is copied now and then and never trained."""
# flow: loss -> q_network
# cut: loss -> target_network

import random
from collections import deque

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from cartpole import CartPole
from digest import digest


class QNetwork(nn.Module):
    def __init__(self, width=24):
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2)
        )

    def forward(self, obs):
        return self.network(obs)


if __name__ == "__main__":
    seed, gamma, warm_up, total = 1, 0.99, 64, 240
    random.seed(seed)
    torch.manual_seed(seed)
    env = CartPole(seed=seed)
    q_network, target_network = QNetwork(), QNetwork()
    target_network.load_state_dict(q_network.state_dict())
    optimizer = torch.optim.Adam(q_network.parameters(), lr=1e-3)
    memory = deque(maxlen=1000)
    obs = env.reset()[0]
    for t in range(total):
        epsilon = max(0.05, 1 - 2 * t / total)
        greedy = random.random() >= epsilon
        action = q_network(torch.from_numpy(obs)).argmax().item() if greedy else random.randrange(2)
        after, reward, done = env.step([action])
        memory.append((obs, action, reward[0], after[0], np.float32(done[0])))
        obs = env.state[0].astype(np.float32) if done[0] else after[0]

        if t > warm_up and t % 4 == 0:
            columns = zip(*random.sample(memory, 16), strict=True)
            state, act, rew, state2, end = (torch.from_numpy(np.stack(column)) for column in columns)
            with torch.no_grad():
                target = rew + gamma * (1 - end) * target_network(state2).amax(1)
            q = q_network(state).gather(1, act[:, None]).squeeze(1)
            loss = F.smooth_l1_loss(q, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if t % 40 == 0:
                print(f"{t}: loss {loss.item():.4f}, q {q.mean().item():.4f}")
        if t % 30 == 0:
            for frozen, live in zip(target_network.parameters(), q_network.parameters(), strict=True):
                frozen.data.copy_(live.data)
    print("weights", digest(q_network, target_network))
