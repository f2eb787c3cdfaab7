"""SAC: twin critics in one optimiser, an actor through them, a temperature of its own, targets by polyak."""
# fast
# flow: qf_loss -> qf1, qf2; actor_loss -> actor, qf1, qf2; alpha_loss -> log_alpha
# cut: qf_loss -> actor; alpha_loss -> actor

import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.optim as optim
from digest import digest
from replay import filled

LOG_STD_MAX, LOG_STD_MIN = 2, -5


class SoftQNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(4 + 1, 16)
        self.fc2 = nn.Linear(16, 1)

    def forward(self, x, a):
        return self.fc2(F.relu(self.fc1(torch.cat([x, a], 1))))


class Actor(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(4, 16)
        self.fc_mean = nn.Linear(16, 1)
        self.fc_logstd = nn.Linear(16, 1)
        self.register_buffer("action_scale", torch.tensor(1.0))

    def forward(self, x):
        x = F.relu(self.fc1(x))
        log_std = torch.tanh(self.fc_logstd(x))
        return self.fc_mean(x), LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (log_std + 1)

    def get_action(self, x):
        mean, log_std = self(x)
        normal = torch.distributions.Normal(mean, log_std.exp())
        x_t = normal.rsample()
        y_t = torch.tanh(x_t)
        log_prob = normal.log_prob(x_t) - torch.log(self.action_scale * (1 - y_t.pow(2)) + 1e-6)
        return y_t * self.action_scale, log_prob.sum(1, keepdim=True)


if __name__ == "__main__":
    torch.manual_seed(1)
    gamma, tau, policy_frequency, target_entropy = 0.99, 0.005, 2, -1.0
    actor = Actor()
    qf1, qf2 = SoftQNetwork(), SoftQNetwork()
    qf1_target, qf2_target = SoftQNetwork(), SoftQNetwork()
    qf1_target.load_state_dict(qf1.state_dict())
    qf2_target.load_state_dict(qf2.state_dict())
    q_optimizer = optim.Adam(list(qf1.parameters()) + list(qf2.parameters()), lr=1e-3)
    actor_optimizer = optim.Adam(list(actor.parameters()), lr=3e-4)
    log_alpha = torch.zeros(1, requires_grad=True)
    alpha = log_alpha.exp().item()
    a_optimizer = optim.Adam([log_alpha], lr=1e-3)
    rb = filled(seed=1)
    for global_step in range(36):
        data = rb.sample_batch(32)
        with torch.no_grad():
            next_state_actions, next_state_log_pi = actor.get_action(data["obs2"])
            qf1_next_target = qf1_target(data["obs2"], next_state_actions)
            qf2_next_target = qf2_target(data["obs2"], next_state_actions)
            min_qf_next_target = torch.min(qf1_next_target, qf2_next_target) - alpha * next_state_log_pi
            next_q_value = data["rew"] + (1 - data["done"]) * gamma * min_qf_next_target.view(-1)
        qf1_a_values = qf1(data["obs"], data["act"]).view(-1)
        qf2_a_values = qf2(data["obs"], data["act"]).view(-1)
        qf1_loss = F.mse_loss(qf1_a_values, next_q_value)
        qf2_loss = F.mse_loss(qf2_a_values, next_q_value)
        qf_loss = qf1_loss + qf2_loss
        q_optimizer.zero_grad()
        qf_loss.backward()
        q_optimizer.step()

        if global_step % policy_frequency == 0:  # the delay is made up for
            for _ in range(policy_frequency):
                pi, log_pi = actor.get_action(data["obs"])
                min_qf_pi = torch.min(qf1(data["obs"], pi), qf2(data["obs"], pi))
                actor_loss = ((alpha * log_pi) - min_qf_pi).mean()
                actor_optimizer.zero_grad()
                actor_loss.backward()
                actor_optimizer.step()

                with torch.no_grad():
                    _, log_pi = actor.get_action(data["obs"])
                alpha_loss = (-log_alpha.exp() * (log_pi + target_entropy)).mean()
                a_optimizer.zero_grad()
                alpha_loss.backward()
                a_optimizer.step()
                alpha = log_alpha.exp().item()

        for param, target_param in zip(qf1.parameters(), qf1_target.parameters(), strict=True):
            target_param.data.copy_(tau * param.data + (1 - tau) * target_param.data)
        for param, target_param in zip(qf2.parameters(), qf2_target.parameters(), strict=True):
            target_param.data.copy_(tau * param.data + (1 - tau) * target_param.data)
        if global_step % 12 == 0:
            print(f"{global_step} qf_loss {qf_loss.item():.4f} actor_loss {actor_loss.item():.4f} alpha {alpha:.4f}")
    print("weights", digest(actor, qf1, qf2, qf1_target, qf2_target, log_alpha))
