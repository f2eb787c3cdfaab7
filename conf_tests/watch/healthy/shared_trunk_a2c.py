"""A2C on one trunk: the critic's loss keeps the graph for the actor's, then one step on both."""
# flow: critic_loss -> trunk, critic; actor_loss -> trunk, actor
# cut: actor_loss -> critic

import torch
from cartpole import CartPole
from digest import digest
from torch import nn
from torch.distributions import Categorical


class ActorCritic(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 24), nn.Tanh())
        self.actor = nn.Linear(24, 2)
        self.critic = nn.Linear(24, 1)

    def forward(self, obs):
        h = self.trunk(obs)
        return Categorical(logits=self.actor(h)), self.critic(h).squeeze(-1)


def main(updates=32, horizon=5, gamma=0.99):
    torch.manual_seed(111)
    env = CartPole(4, seed=111)
    net = ActorCritic()
    optimizer = torch.optim.RMSprop(net.parameters(), lr=3e-3, eps=1e-5)
    obs = torch.from_numpy(env.reset())
    for update in range(updates):
        log_probs, values, rewards, masks = [], [], [], []
        for _ in range(horizon):
            dist, value = net(obs)
            action = dist.sample()
            state, reward, done = env.step(action.numpy())
            log_probs.append(dist.log_prob(action))
            values.append(value)
            rewards.append(torch.from_numpy(reward))
            masks.append(1 - torch.from_numpy(done).float())
            obs = torch.from_numpy(state)
        with torch.no_grad():
            R = net(obs)[1]
        returns = []
        for reward, mask in zip(rewards[::-1], masks[::-1], strict=True):
            R = reward + gamma * R * mask
            returns.insert(0, R)
        advantage = torch.stack(returns) - torch.stack(values)
        critic_loss = advantage.pow(2).mean()
        actor_loss = -(torch.stack(log_probs) * advantage.detach()).mean()
        optimizer.zero_grad()
        critic_loss.backward(retain_graph=True)
        actor_loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()
        if update % 8 == 0:
            print(f"update {update} actor {actor_loss.item():.4f} critic {critic_loss.item():.4f}")
    print("weights", digest(net))


if __name__ == "__main__":
    main()
