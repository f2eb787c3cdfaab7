"""Actor-critic with one trunk: the advantage holds the value as a number."""
# flow: loss -> trunk, policy_head, value_head

import torch
import torch.nn as nn
import torch.nn.functional as F
from cartpole import CartPole
from digest import digest
from torch.distributions import Categorical

torch.manual_seed(543)
env = CartPole(seed=543)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Linear(4, 32)
        self.policy_head = nn.Linear(32, 2)
        self.value_head = nn.Linear(32, 1)

    def forward(self, state):
        h = self.trunk(state).relu()
        return Categorical(logits=self.policy_head(h)), self.value_head(h).squeeze(-1)


model = TwoHeads()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)


def play(limit=25):
    """One episode: log-probabilities and values with their graphs, rewards as numbers."""
    log_probs, values, rewards = [], [], []
    state, done = env.reset(), [False]
    while not done[0] and len(rewards) < limit:
        policy, value = model(torch.from_numpy(state[0]))
        action = policy.sample()
        state, reward, done = env.step([action.item()])
        log_probs.append(policy.log_prob(action))
        values.append(value)
        rewards.append(float(reward[0]))
    return log_probs, values, rewards


def discounted(rewards, gamma=0.99):
    returns, later = [], 0.0
    for reward in reversed(rewards):
        later = reward + gamma * later
        returns.append(later)
    returns = torch.tensor(returns[::-1])
    return (returns - returns.mean()) / (returns.std() + 1e-6)


def learn(log_probs, values, rewards):
    terms = []
    for log_prob, value, target in zip(log_probs, values, discounted(rewards), strict=True):
        terms.append(F.smooth_l1_loss(value, target) - log_prob * (target.item() - value.item()))
    optimizer.zero_grad()
    loss = torch.stack(terms).sum()
    loss.backward()
    optimizer.step()
    return loss.item()


def main():
    average = 10.0
    for episode in range(32):
        log_probs, values, rewards = play()
        loss = learn(log_probs, values, rewards)
        average += 0.05 * (len(rewards) - average)
        if episode % 8 == 0:
            print(f"episode {episode}: lasted {len(rewards)}, on average {average:.2f}, loss {loss:.4f}")
    print("weights", digest(model))


if __name__ == "__main__":
    main()
