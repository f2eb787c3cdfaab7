"""DDPG with one actor-critic module; the critic is frozen while the actor learns, and thawed after."""
# flow: loss_q -> q; loss_pi -> pi
# cut: loss_pi -> q

from copy import deepcopy

import torch
from digest import digest
from replay import filled
from spinning.core import MLPActorCritic
from torch.optim import Adam


def ddpg(steps=40, seed=0, gamma=0.99, polyak=0.995, pi_lr=1e-3, q_lr=1e-3):
    torch.manual_seed(seed)
    ac = MLPActorCritic(4, 1)
    ac_targ = deepcopy(ac)
    for p in ac_targ.parameters():
        p.requires_grad = False
    buffer = filled(seed)

    def compute_loss_q(data):
        o, a, r, o2, d = (data[name] for name in ("obs", "act", "rew", "obs2", "done"))
        q = ac.q(o, a)
        with torch.no_grad():
            backup = r + gamma * (1 - d) * ac_targ.q(o2, ac_targ.pi(o2))
        return ((q - backup) ** 2).mean(), q.detach().numpy()

    def compute_loss_pi(data):
        return -ac.q(data["obs"], ac.pi(data["obs"])).mean()

    pi_optimizer = Adam(ac.pi.parameters(), lr=pi_lr)
    q_optimizer = Adam(ac.q.parameters(), lr=q_lr)

    def update(data):
        q_optimizer.zero_grad()
        loss_q, q_values = compute_loss_q(data)
        loss_q.backward()
        q_optimizer.step()
        for p in ac.q.parameters():
            p.requires_grad = False
        pi_optimizer.zero_grad()
        loss_pi = compute_loss_pi(data)
        loss_pi.backward()
        pi_optimizer.step()
        for p in ac.q.parameters():
            p.requires_grad = True
        with torch.no_grad():
            for p, p_targ in zip(ac.parameters(), ac_targ.parameters(), strict=True):
                p_targ.data.mul_(polyak)
                p_targ.data.add_((1 - polyak) * p.data)
        return loss_q.item(), loss_pi.item(), float(q_values.mean())

    for t in range(steps):
        told = update(buffer.sample_batch(32))
        if t % 10 == 0:
            print(t, *(f"{value:.4f}" for value in told))
    return ac, ac_targ


if __name__ == "__main__":
    print("weights", digest(*ddpg()))
