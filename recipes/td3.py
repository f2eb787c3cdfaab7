r"""TD3: the target stays put, the actor learns through the critic, and the critic must not learn from the actor.

    s, a  ──> critic ──> Q(s, a) ────────────────────────────────────┐
                                                                     ├──> critic_loss
    s' ──> actor' ──> critic' ──> min Q'(s', a') ──‖──> r + gamma ───┘      ‖ stop.target: the target stays put

    s  ──> actor ──> action ───> critic ──> -Q(s, actor(s)) ─────────> actor_loss
                       ‖ (never)    ‖ (its weights)      ‖ stop.action: the actor dies;  ‖ stop.critic: Q learns nothing

Fujimoto et al. 2018, arXiv:1802.09477, algorithm 1: clipped double Q-learning (eq. 10), target policy smoothing (eq.
14-15), delayed updates (section 5.2). Actor's gradient through the critic: Silver et al. 2014, eq. 9.

The target comes from averaged copies, which never learn by gradient; without them, from the networks themselves. If the
critic keeps what the actor's loss leaves in it, it learns to call every action good. If the actor's action is cut, as
by a detour through NumPy, nothing crashes and the actor's gradient is 0.

    python train.py recipe=td3                                           # right: return -1200 -> -104, 15 s
    python train.py recipe=td3 stop.critic=none stop.zero_grad=late      # broken: the critic's gradients are kept
    python train.py recipe=td3 stop.action=detach stop.critic=none       # broken: the actor never learns

Figures of all arms, three seeds each: docs/recipes/td3.md.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import lightning as L
import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from recipes.parts.averages import follow
from recipes.parts.critics import TwinCritic
from recipes.parts.environments import VectorEnvironment, play, spaces
from recipes.parts.networks import mlp
from recipes.parts.replay import Transitions, bounded_sizes, unscaled
from stopgrad import FlowContract, Stops
from stopgrad.lightning.manual import backward, counted, data_of, log_is_due, raw, trainer_of

PAPER = "Fujimoto 2018; Silver 2014"
# The first choice is the paper's, and the default.
BOUNDARIES = {
    "target": ["no_grad", "detach", "data", "freeze", "none", "scale", "reverse"],
    "action": ["none", "detach", "data", "no_grad", "scale", "reverse"],
    "critic": ["freeze", "none"],
}
CUTS = ("no_grad", "detach", "data", "freeze")
SWITCHES = {
    "zero_grad": ["timely", "late"],  # late: what the other loss left is still there when an optimiser steps
    "target_network": ["average", "online"],  # online: no copies, the networks themselves
    "target_cut": ["value", "action"],  # action: only actor'(s') crosses stop.target, as tutorials have it
}
METRICS = {
    "evaluation_return": {"goal": "max", "margin": 50.0, "broken_below": -900.0},  # of Pendulum; random actions: -1200
}
WITHOUT = {
    "target": "a residual gradient; behind averaged copies, which no optimiser holds, waste",
    "action": "cut, the actor's gradient is exactly 0",
    "critic": "the critic learns to call every action good; waste where it is zeroed in time",
    "zero_grad": "late, an optimiser steps on what the other loss left",
    "target_network": "online, the target moves with every step",
    "target_cut": "action, the critic's own share stays live: a residual gradient",
}
NEEDS = {"stop.action": ["stop.critic=none"]}
EXEMPT = {"ranks": "each rank has environments and a replay of its own"}
SMALL = ["data.num_envs=2", "data.updates_per_step=4", "data.batch_size=16", "data.warmup=50", "data.episodes=2"]
FLOW = FlowContract(
    {
        "critic_loss": {"critic": "open", "actor": "blocked", "stop.target": "blocked"},
        "actor_loss": {"actor": "open", "critic": "blocked", "stop.action": "open", "stop.critic": "blocked"},
    }
)

Share = Annotated[float, Field(ge=0, le=1)]


class TD3(L.LightningModule):
    """An actor and two critics, from replayed transitions, in manual optimisation; a batch is several updates.

    Args:
        stop: the chosen strategies and switches.
        environment: gymnasium's name of it; its spaces shape the networks.
        width: units of both hidden layers, of actor and critics.
        gamma: the discount.
        reward_scale: the critics' unit: they learn the returns of so many times the reward.
        tau: how far the copies move towards the networks at each of the actor's updates.
        policy_delay: critic updates for each update of the actor.
        exploration_noise: standard deviation, on actions in [-1, 1].
        smoothing_noise, noise_clip: standard deviation and bound of the noise on the target's actions.
        actor_optimizer, critic_optimizer: from parameters to an optimiser.
    """

    FLOW = FLOW

    def __init__(
        self,
        *,
        stop: Mapping[str, str],
        environment: str,
        actor_optimizer: Callable[..., torch.optim.Optimizer],
        critic_optimizer: Callable[..., torch.optim.Optimizer],
        width: PositiveInt = 64,
        gamma: Share = 0.99,
        reward_scale: PositiveFloat = 1.0,
        tau: Share = 0.005,
        policy_delay: PositiveInt = 2,
        exploration_noise: NonNegativeFloat = 0.1,
        smoothing_noise: NonNegativeFloat = 0.2,
        noise_clip: NonNegativeFloat = 0.5,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.stop = Stops(stop, BOUNDARIES, SWITCHES)
        observation, action = bounded_sizes(environment, spaces(environment))
        self.actor = nn.Sequential(*mlp(observation, width, width, action), nn.Tanh())  # to actions in [-1, 1]
        self.critic = TwinCritic(observation + action, width)
        # frozen for good; but where nothing stops the target's gradient, left as a copy is: live
        live = self.stop.target.spelled not in CUTS or self.stop.target_cut == "action"
        self.target_actor = copy.deepcopy(self.actor).requires_grad_(live)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(live)
        self.tau = tau
        self.gamma, self.reward_scale, self.policy_delay = gamma, reward_scale, policy_delay
        self.exploration_noise, self.smoothing_noise, self.noise_clip = exploration_noise, smoothing_noise, noise_clip
        self.actor_optimizer, self.critic_optimizer = actor_optimizer, critic_optimizer
        self.terms: dict[str, Tensor] = {}  # the last value of each, detached
        self.clock = (time.perf_counter(), 0)  # and how many transitions there were then

    def parameter_groups(self) -> dict[str, nn.Module]:
        return {"actor": self.actor, "critic": self.critic}

    # ---- the two losses: what this recipe is about

    def next_actions(self, batch: Transitions) -> Tensor:
        """What the target's actor would do next, smoothed by clipped noise (eq. 14)."""
        noise = (torch.randn_like(batch.actions) * self.smoothing_noise).clamp(-self.noise_clip, self.noise_clip)
        return (self.next_actor(batch.next_observations) + noise).clamp(-1, 1)

    def next_values(self, batch: Transitions, actions: Tensor) -> Tensor:
        """The lesser of both critics' values of what follows (eq. 10), discounted; 0 after a termination."""
        return self.gamma * batch.going_on * self.next_critic(batch.next_observations, actions).amin(0)

    def critic_loss(self, batch: Transitions) -> Tensor:
        """Squared TD errors of both critics, on transitions with any leading dimensions."""
        stop = self.stop.target.over(self.next_actor, self.next_critic)
        if self.stop.target_cut == "value":  # the cut: the target stays put
            following = stop(lambda: self.next_values(batch, self.next_actions(batch)))
        else:  # too little: the critic's share is live
            following = self.next_values(batch, stop(self.next_actions, batch))
        errors = self.critic(batch.observations, batch.actions) - (self.reward_scale * batch.rewards + following)
        return 2 * errors.square().mean()  # the mean of each critic's, summed

    def actor_loss(self, batch: Transitions) -> Tensor:
        """The first critic's value of the actor's actions, to be raised."""
        actions = self.stop.action(self.actor, batch.observations)  # no cut: the critic's slope is all the actor gets
        values = self.stop.critic(self.critic.first, batch.observations, actions)  # through it, not to its weights
        return -values.mean()

    @property
    def next_actor(self) -> nn.Module:
        return self.target_actor if self.stop.target_network == "average" else self.actor

    @property
    def next_critic(self) -> nn.Module:
        return self.target_critic if self.stop.target_network == "average" else self.critic

    # ---- the order of backward, zero_grad and step

    def training_step(self, batch: Transitions, batch_idx: int) -> None:
        """One update for each of the batch's first dimension; Lightning counts the batch as one step."""
        actor_optimizer, critic_optimizer, last = raw(self, 0), raw(self, 1), counted(self, 1)
        updates = [Transitions(*parts) for parts in zip(*batch, strict=True)]
        for k, transitions in enumerate(updates, start=self.global_step * len(updates) + 1):
            stepped = last if k % len(updates) == 0 else critic_optimizer
            self.learn("critic_loss", transitions, critic_optimizer, stepped)
            if k % self.policy_delay == 0:
                self.learn("actor_loss", transitions, actor_optimizer, actor_optimizer)
                follow(self.target_critic, self.critic, 1 - self.tau)
                follow(self.target_actor, self.actor, 1 - self.tau)
        if log_is_due(self):
            self.log_health()

    def learn(
        self, name: str, batch: Transitions, optimizer: torch.optim.Optimizer, stepped: torch.optim.Optimizer
    ) -> None:
        """One update by the loss of that name."""
        if self.stop.zero_grad == "timely":
            optimizer.zero_grad()
        loss = getattr(self, name)(batch)
        backward(self, loss, name)
        stepped.step()
        if self.stop.zero_grad == "late":
            optimizer.zero_grad()
        self.terms[f"loss/{name.removesuffix('_loss')}"] = loss.detach()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        action, critic = self.stop.action.spelled, self.stop.critic.spelled
        if action in CUTS and critic == "freeze":
            raise ValueError(f"stop.action={action}: with stop.critic=freeze nothing learns; add stop.critic=none")
        return [self.actor_optimizer(self.actor.parameters()), self.critic_optimizer(self.critic.parameters())]

    # ---- acting, and how well it goes

    def setup(self, stage: str) -> None:
        data_of(self).policy = self.explore

    def explore(self, observations: Tensor, generator: torch.Generator) -> Tensor:
        """Noisy actions (N, A) for observations (N, O); the noise is the environments' own."""
        actions = self.actor(observations)
        noise = torch.randn(actions.shape, generator=generator).to(actions) * self.exploration_noise
        return (actions + noise).clamp(-1, 1)

    def log_health(self) -> None:
        experience: Any = trainer_of(self).train_dataloader
        (time_then, count_then), self.clock = self.clock, (time.perf_counter(), experience.replay.count)
        if "loss/actor" in self.terms:  # what the critic makes of the actor, in units of the reward
            self.terms["health/q"] = -self.terms["loss/actor"] / self.reward_scale
        self.terms["steps_per_second"] = torch.tensor((self.clock[1] - count_then) / (self.clock[0] - time_then))
        if experience.environments.episodes:
            self.terms["episode_return"] = torch.tensor(experience.environments.episodes)[-10:].mean()
        self.log_dict(self.terms, prog_bar=True)

    def validation_step(self, environments: VectorEnvironment, batch_idx: int) -> None:
        """The mean return of whole episodes, without noise."""

        def policy(observations: Tensor) -> Tensor:
            return unscaled(environments, self.actor(observations.flatten(1).to(self.device)).cpu())

        returns = play(environments, policy)
        self.log("evaluation_return", returns.mean(), prog_bar=True, batch_size=len(returns))

    test_step = validation_step
