"""One helper makes every step; its argument is called by the caller's name."""
# fast
# flow: forward_loss -> forward_model; policy_loss -> policy, forward_model

import torch
from digest import digest
from torch import nn


class MLP(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(n_in, 16), nn.ELU())
        self.last = nn.Linear(16, n_out)

    def forward(self, *inputs):
        return self.last(self.body(torch.cat(inputs, -1)))


def update(objective, optimizer, network, max_norm=1.0):
    optimizer.zero_grad()
    objective.backward()
    nn.utils.clip_grad_norm_(network.parameters(), max_norm)
    optimizer.step()


class Worker:
    def __init__(self):
        self.forward_model, self.policy = MLP(3, 2), MLP(2, 1)
        self.model_optimizer = torch.optim.Adam(self.forward_model.parameters(), 3e-3)
        self.policy_optimizer = torch.optim.Adam(self.policy.parameters(), 3e-3)

    def learn(self, state, action, next_state):
        forward_loss = (self.forward_model(state, action) - next_state).square().mean()
        update(forward_loss, self.model_optimizer, self.forward_model)
        policy_loss = self.forward_model(state, self.policy(state)).square().mean()
        update(policy_loss, self.policy_optimizer, network=self.policy)
        return forward_loss.item(), policy_loss.item()


if __name__ == "__main__":
    torch.manual_seed(121)
    worker, drift = Worker(), torch.tensor([[0.9, 0.2], [-0.2, 0.9]])
    for step in range(40):
        s, a = torch.randn(32, 2), torch.randn(32, 1)
        told = worker.learn(s, a, s @ drift + 0.5 * a)
        if step % 10 == 0:
            print(step, *(f"{value:.4f}" for value in told))
    print("weights", digest(worker.forward_model, worker.policy))
