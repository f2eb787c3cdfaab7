"""DDPG with one actor-critic module; the critic is frozen while the actor learns, and thawed after."""
# flow: loss_q -> q; loss_pi -> pi
# cut: loss_pi -> q

from copy import deepcopy

import torch
from continuous.networks import ActorCritic
from digest import digest
from replay import filled
from torch.optim import Adam


def switch(module, on):
    for p in module.parameters():
        p.requires_grad = on


def ddpg(steps=40, seed=0, gamma=0.99, keep=0.995, lr=1e-3):
    torch.manual_seed(seed)
    agent = ActorCritic(4, 1)
    slow = deepcopy(agent)
    switch(slow, False)
    memory = filled(seed)
    pi_optimizer, q_optimizer = Adam(agent.pi.parameters(), lr), Adam(agent.q.parameters(), lr)

    def q_error(data):
        with torch.no_grad():
            later = slow.value(data["obs2"], slow.pi(data["obs2"]))
            backup = data["rew"] + gamma * (1 - data["done"]) * later
        return (agent.value(data["obs"], data["act"]) - backup).square().mean()

    def update(data):
        q_optimizer.zero_grad()
        loss_q = q_error(data)
        loss_q.backward()
        q_optimizer.step()

        switch(agent.q, False)
        pi_optimizer.zero_grad()
        loss_pi = -agent.value(data["obs"], agent.pi(data["obs"])).mean()
        loss_pi.backward()
        pi_optimizer.step()
        switch(agent.q, True)

        with torch.no_grad():
            for p, p_slow in zip(agent.parameters(), slow.parameters(), strict=True):
                p_slow.lerp_(p, 1 - keep)
        return loss_q.item(), loss_pi.item()

    for t in range(steps):
        told = update(memory.sample_batch(32))
        if t % 10 == 0:
            print(t, *(f"{value:.4f}" for value in told))
    return agent, slow


if __name__ == "__main__":
    print("weights", digest(*ddpg()))
