import torch
import torch.nn as nn


def mlp(sizes, activation, output_activation=nn.Identity):
    layers = []
    for j in range(len(sizes) - 1):
        act = activation if j < len(sizes) - 2 else output_activation
        layers += [nn.Linear(sizes[j], sizes[j + 1]), act()]
    return nn.Sequential(*layers)


class MLPActor(nn.Module):
    def __init__(self, obs_dim, act_dim, hidden, act_limit):
        super().__init__()
        self.pi = mlp([obs_dim, *hidden, act_dim], nn.ReLU, nn.Tanh)
        self.act_limit = act_limit

    def forward(self, obs):
        return self.act_limit * self.pi(obs)


class MLPQFunction(nn.Module):
    def __init__(self, obs_dim, act_dim, hidden):
        super().__init__()
        self.q = mlp([obs_dim + act_dim, *hidden, 1], nn.ReLU)

    def forward(self, obs, act):
        return self.q(torch.cat([obs, act], dim=-1)).squeeze(-1)


class MLPActorCritic(nn.Module):
    def __init__(self, obs_dim, act_dim, hidden=(16,), act_limit=1.0):
        super().__init__()
        self.pi = MLPActor(obs_dim, act_dim, hidden, act_limit)
        self.q = MLPQFunction(obs_dim, act_dim, hidden)

    def act(self, obs):
        with torch.no_grad():
            return self.pi(obs).numpy()
