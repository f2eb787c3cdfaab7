"""A ring of transitions, and a cart whose pushes lie in [-1, 1]."""

import numpy as np
import torch
from cartpole import CartPole


class ReplayBuffer:
    def __init__(self, size, obs_dim, act_dim, seed=0):
        self.rng = np.random.default_rng(seed)
        self.data = {
            "obs": np.zeros((size, obs_dim), np.float32),
            "obs2": np.zeros((size, obs_dim), np.float32),
            "act": np.zeros((size, act_dim), np.float32),
            "rew": np.zeros(size, np.float32),
            "done": np.zeros(size, np.float32),
        }
        self.ptr, self.size, self.max_size = 0, 0, size

    def store(self, **transition):
        for name, value in transition.items():
            self.data[name][self.ptr] = value
        self.ptr = (self.ptr + 1) % self.max_size
        self.size = min(self.size + 1, self.max_size)

    def sample_batch(self, batch_size=32):
        idxs = self.rng.integers(0, self.size, size=batch_size)
        return {name: torch.as_tensor(value[idxs]) for name, value in self.data.items()}


def filled(seed, count=200):
    """A buffer with transitions under random pushes."""
    env, buffer = CartPole(seed=seed), ReplayBuffer(1000, 4, 1, seed)
    obs = env.reset()[0]
    for _ in range(count):
        act = env.rng.uniform(-1, 1, 1)
        obs2, rew, done = env.step(act)
        buffer.store(obs=obs, obs2=obs2[0], act=act, rew=rew[0], done=float(done[0]))
        obs = env.state[0].astype(np.float32) if done[0] else obs2[0]
    return buffer
