"""A pole on a cart after Barto, Sutton and Anderson (1983), in NumPy: one, or many at once."""

import numpy as np

GRAVITY, CART, POLE, HALF_LENGTH, FORCE, STEP = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02


class CartPole:
    """``count`` poles; a pole that has fallen begins anew."""

    def __init__(self, count=1, seed=0, limit=60):
        self.rng = np.random.default_rng(seed)
        self.count, self.limit = count, limit
        self.state = np.zeros((count, 4))
        self.age = np.zeros(count, dtype=int)

    def reset(self, which=slice(None)):
        self.state[which] = self.rng.uniform(-0.05, 0.05, self.state[which].shape)
        self.age[which] = 0
        return self.state.astype(np.float32)

    def step(self, action):
        """(states, rewards, whether it ended) after pushing each cart; an action lies in {0, 1}, or in [-1, 1]."""
        action = np.asarray(action, dtype=float).reshape(self.count)
        push = FORCE * (2 * action - 1) if set(np.unique(action)) <= {0.0, 1.0} else FORCE * action
        x, v, angle, spin = self.state.T
        total = CART + POLE
        inner = (push + POLE * HALF_LENGTH * spin**2 * np.sin(angle)) / total
        turn = (GRAVITY * np.sin(angle) - np.cos(angle) * inner) / (
            HALF_LENGTH * (4 / 3 - POLE * np.cos(angle) ** 2 / total)
        )
        drive = inner - POLE * HALF_LENGTH * turn * np.cos(angle) / total
        self.state = np.stack([x + STEP * v, v + STEP * drive, angle + STEP * spin, spin + STEP * turn], axis=1)
        self.age += 1
        done = (np.abs(self.state[:, 0]) > 2.4) | (np.abs(self.state[:, 2]) > 0.21) | (self.age >= self.limit)
        seen = self.state.astype(np.float32)
        if done.any():
            self.reset(done)
        return seen, np.ones(self.count, dtype=np.float32), done
