"""MAML: inner steps with autograd.grad and create_graph, run by functional_call; one outer loss over the tasks."""
# fast
# flow: inner -> l1, l2, l3; meta_loss -> l1, l2, l3

import argparse

import torch
import torch.nn.functional as F
from digest import digest
from torch import nn
from torch.func import functional_call


class Sine(nn.Module):
    def __init__(self):
        super().__init__()
        self.l1 = nn.Linear(1, 20)
        self.l2 = nn.Linear(20, 20)
        self.l3 = nn.Linear(20, 1)

    def forward(self, x):
        return self.l3(torch.relu(self.l2(torch.relu(self.l1(x)))))


def sample_task():
    amplitude, phase = 0.1 + 4.9 * torch.rand(1), 3.14 * torch.rand(1)

    def draw(count):
        x = 10 * torch.rand(count, 1) - 5
        return x, amplitude * torch.sin(x + phase)

    return draw


def adapt(model, params, x, y, inner_lr, steps):
    for _ in range(steps):
        inner = F.mse_loss(functional_call(model, params, (x,)), y)
        grads = torch.autograd.grad(inner, list(params.values()), create_graph=True)
        params = {name: p - inner_lr * g for (name, p), g in zip(params.items(), grads, strict=True)}
    return params


def main(args):
    torch.manual_seed(args.seed)
    model = Sine()
    meta_optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    for iteration in range(args.iterations):
        meta_optimizer.zero_grad()
        meta_loss = torch.zeros(())
        for _ in range(args.tasks):
            draw = sample_task()
            fast = adapt(model, dict(model.named_parameters()), *draw(10), args.inner_lr, args.inner_steps)
            x, y = draw(10)
            meta_loss = meta_loss + F.mse_loss(functional_call(model, fast, (x,)), y)
        meta_loss = meta_loss / args.tasks
        meta_loss.backward()
        meta_optimizer.step()
        if iteration % 10 == 0:
            print(f"iteration {iteration} meta loss {meta_loss.item():.4f}")
    print("weights", digest(model))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--inner-lr", type=float, default=0.01)
    parser.add_argument("--inner-steps", type=int, default=2)
    parser.add_argument("--tasks", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=32)
    main(parser.parse_args())
