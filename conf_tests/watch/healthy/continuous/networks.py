import torch
import torch.nn as nn


def stack(*sizes):
    """Linear layers with ReLU between them."""
    layers = [nn.Linear(sizes[0], sizes[1])]
    for k in range(1, len(sizes) - 1):
        layers.extend([nn.ReLU(), nn.Linear(sizes[k], sizes[k + 1])])
    return nn.Sequential(*layers)


class ActorCritic(nn.Module):
    def __init__(self, states, actions, width=16):
        super().__init__()
        self.pi = nn.Sequential(stack(states, width, actions), nn.Tanh())
        self.q = stack(states + actions, width, 1)

    def value(self, state, action):
        return self.q(torch.cat([state, action], -1)).squeeze(-1)
