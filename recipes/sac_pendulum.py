r"""SAC on Pendulum: three losses, each with the others' variables in it, learned each for itself or all at once.

    s, a ──> critic ──> Q(s, a) ────────────────────────────────────────────┐
                                                                            ├──> critic_loss
    s' ──> actor, alpha, critic' ──> min Q' - alpha log pi ──‖──> r + gamma ┘      ‖ stop.target

    s ──> actor ──> ‖ ──> a ──> critic (‖) ──> min Q(s, a) ──┐          ‖ stop.action: none; cut, a is only a sample
            │                                                ├──> actor_loss       ‖ stop.critic: its weights
            ├──> log pi ──> alpha (‖) log pi ────────────────┘                     ‖ stop.alpha: a weight here
            └──> log pi ──> ‖ ──> -alpha (log pi + H) ──────────> alpha_loss       ‖ stop.log_prob: a fact here

Haarnoja et al. 2018, arXiv:1812.05905: eq. 5 and 6 (critic), 7 (actor), 18 (temperature), algorithm 1. The exact part,
where Q is known, is recipes/sac.py. Where each loss zeroes its own optimiser's gradients before it runs backward, and
steps at once, no leak is ever used: four of the five cuts save work, and nothing else. Where all run backward before
any step, as with a single optimiser, each leak is used.

    python train.py recipe=sac_pendulum                                         # right: return -1200 -> -102, 40 s
    python train.py recipe=sac_pendulum stop.action=detach                      # broken: Q teaches no policy
    python train.py recipe=sac_pendulum stop.step=together stop.log_prob=none   # broken: alpha grows without end

Figures of all arms, three seeds each: docs/recipes/sac_pendulum.md.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import lightning as L
import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.parts.averages import follow
from recipes.parts.critics import TwinCritic
from recipes.parts.environments import VectorEnvironment, play, spaces
from recipes.parts.networks import mlp
from recipes.parts.replay import Transitions, bounded_sizes, unscaled
from stopgrad import FlowContract, Stops
from stopgrad.lightning.manual import backward, counted, data_of, log_is_due, raw, trainer_of

PAPER = "Haarnoja 2018"
# The first choice is the paper's, and the default.
BOUNDARIES = {
    "target": ["no_grad", "detach", "data", "freeze", "none"],
    "critic": ["freeze", "none"],
    "alpha": ["detach", "data", "none"],
    "action": ["none", "detach"],
    "log_prob": ["detach", "data", "none"],
}
SWITCHES = {"step": ["apart", "together"]}  # apart: zero_grad, backward and step of each loss; together: of all
METRICS = {
    "evaluation_return": {"goal": "max", "margin": 50.0, "broken_below": -900.0},  # of Pendulum; random actions: -1200
    "alpha": {"goal": None, "margin": 0.1, "broken_above": 100.0},  # 1 at the start
    # What the critics expect, in units of the reward: never above 0, but for entropy, worth 50 where alpha is .14
    "q": {"goal": None, "margin": 10.0, "broken_above": 50.0},
    "entropy": {"goal": None, "margin": 0.2},  # of the policy, in nats; -1 is its target
}
WITHOUT = {
    "target": "the critics' loss moves policy and alpha too, by little here; waste where gradients are zeroed in time",
    "critic": "the critics learn to call every action good; waste where gradients are zeroed in time",
    "alpha": "alpha hears of no entropy, and falls or grows by the sign of H; waste where gradients are zeroed in time",
    "action": "cut, as by sample() in the place of rsample(), Q teaches the policy nothing",
    "log_prob": "the entropy's terms cancel: alpha grows without end; waste where gradients are zeroed in time",
    "step": "together, with a cut missing, an optimiser steps on what another loss left",
}
EXEMPT = {"ranks": "each rank has environments and a replay of its own"}
SMALL = ["data.num_envs=2", "data.updates_per_step=4", "data.batch_size=16", "data.warmup=50", "data.episodes=2"]
FLOW = FlowContract(
    {
        "critic_loss": {"critic": "open", "actor": "blocked", "alpha": "blocked", "stop.target": "blocked"},
        "actor_loss": {
            "actor": "open",
            "critic": "blocked",
            "alpha": "blocked",
            "stop.critic": "blocked",
            "stop.alpha": "blocked",
            "stop.action": "open",
        },
        "alpha_loss": {"alpha": "open", "actor": "blocked", "stop.log_prob": "blocked"},
    }
)

Share = Annotated[float, Field(ge=0, le=1)]


class SquashedGaussian(nn.Module):
    """A policy over actions in [-1, 1]: a = tanh(u), u normal (appendix C)."""

    def __init__(self, observation: int, width: int, action: int) -> None:
        super().__init__()
        self.network = mlp(observation, width, width, 2 * action)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """(..., O) to mean and logarithm of the standard deviation of u, (..., A) each."""
        mean, log_std = self.network(observations).chunk(2, dim=-1)
        return mean, log_std.clamp(-5, 2)


def drawn(law: tuple[Tensor, Tensor]) -> Tensor:
    """u (..., A), live in its law: reparametrised."""
    mean, log_std = law
    return mean + log_std.exp() * torch.randn_like(mean)


def log_prob(law: tuple[Tensor, Tensor], u: Tensor) -> Tensor:
    """log pi(tanh u) (...), in nats: the normal's, less log of the slope 1 - tanh^2 u."""
    mean, log_std = law
    normal = -((u - mean) * (-log_std).exp()).square() / 2 - log_std - math.log(2 * math.pi) / 2
    return (normal - 2 * (math.log(2) - u - F.softplus(-2 * u))).sum(-1)


class Temperature(nn.Module):
    """alpha, by its logarithm, at first 1."""

    def __init__(self) -> None:
        super().__init__()
        self.log_alpha = nn.Parameter(torch.zeros(1))

    def forward(self) -> Tensor:
        return self.log_alpha.exp()


class SoftActorCritic(L.LightningModule):
    """An actor, two critics and a temperature, from replayed transitions; a batch is several updates.

    Args:
        stop: the chosen strategies and switches.
        environment: gymnasium's name of it; its spaces shape the networks.
        width: units of both hidden layers, of actor and critics.
        gamma: the discount.
        reward_scale: the critics' unit: they learn the returns of so many times the reward.
        tau: how far the critics' copy moves towards them at each update.
        target_entropy: H, in nats, of actions in [-1, 1]; None: minus as many as an action has numbers.
        optimizer: from parameters to an optimiser, one for each loss.
    """

    FLOW = FLOW

    def __init__(
        self,
        *,
        stop: Mapping[str, str],
        environment: str,
        optimizer: Callable[..., torch.optim.Optimizer],
        width: PositiveInt = 64,
        gamma: Share = 0.99,
        reward_scale: PositiveFloat = 1.0,
        tau: Share = 0.005,
        target_entropy: float | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.stop = Stops(stop, BOUNDARIES, SWITCHES)
        observation, action = bounded_sizes(environment, spaces(environment))
        self.actor, self.temperature = SquashedGaussian(observation, width, action), Temperature()
        self.critic = TwinCritic(observation + action, width)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.gamma, self.reward_scale, self.tau, self.optimizer = gamma, reward_scale, tau, optimizer
        self.target_entropy = -float(action) if target_entropy is None else target_entropy
        self.terms: dict[str, Tensor] = {}  # the last value of each, detached

    def parameter_groups(self) -> dict[str, nn.Module]:
        return {"critic": self.critic, "actor": self.actor, "alpha": self.temperature}

    # ---- the three losses: what this recipe is about

    def next_values(self, batch: Transitions) -> Tensor:
        """The soft value of what follows (...) (eq. 3), discounted; 0 after a termination."""
        law = self.actor(batch.next_observations)
        u = drawn(law)
        values = self.target_critic(batch.next_observations, u.tanh()).amin(0)
        return self.gamma * batch.going_on * (values - self.temperature() * log_prob(law, u))

    def critic_loss(self, batch: Transitions) -> Tensor:
        """Squared soft TD errors of both critics (eq. 5)."""
        stop = self.stop.target.over(self.actor, self.temperature, self.target_critic)
        target = self.reward_scale * batch.rewards + stop(self.next_values, batch)  # the cut: it stays put
        errors = self.critic(batch.observations, batch.actions) - target
        return 2 * errors.square().mean()  # the mean of each critic's, summed

    def actor_loss(self, batch: Transitions) -> Tensor:
        """Entropy is raised by alpha, and the lesser of both critics' values (eq. 7)."""
        law = self.actor(batch.observations)
        u = self.stop.action.cross(drawn(law))  # no cut: the critics' slope is what teaches
        values = self.stop.critic(self.critic, batch.observations, u.tanh()).amin(0)  # through it, not to its weights
        alpha = self.stop.alpha.cross(self.temperature())  # the cut: it weighs
        self.terms["q"] = values.detach().mean() / self.reward_scale
        return (alpha * log_prob(law, u) - values).mean()

    def alpha_loss(self, batch: Transitions) -> Tensor:
        """Alpha rises while the entropy is below its target (eq. 18)."""
        law = self.actor(batch.observations)
        logs = self.stop.log_prob.cross(log_prob(law, drawn(law)))  # the cut: the entropy is what it is
        self.terms["entropy"] = -logs.detach().mean()
        return -(self.temperature() * (logs + self.target_entropy)).mean()

    # ---- the order of backward, zero_grad and step

    def training_step(self, batch: Transitions, batch_idx: int) -> None:
        """One update for each of the batch's first dimension; Lightning counts the batch as one step."""
        names = [f"{name}_loss" for name in self.parameter_groups()]
        optimizers = [raw(self, n) for n in range(3)]
        updates = [Transitions(*parts) for parts in zip(*batch, strict=True)]
        for k, transitions in enumerate(updates, start=1):
            if k == len(updates):
                optimizers[0] = counted(self)
            learners = list(zip(names, optimizers, strict=True))
            for together in [learners] if self.stop.step == "together" else [[each] for each in learners]:
                for _, optimizer in together:
                    optimizer.zero_grad()
                for name, _ in together:
                    loss = getattr(self, name)(transitions)
                    backward(self, loss, name)
                    self.terms[f"loss/{name.removesuffix('_loss')}"] = loss.detach()
                for _, optimizer in together:
                    optimizer.step()
            follow(self.target_critic, self.critic, 1 - self.tau)
        if log_is_due(self):
            experience: Any = trainer_of(self).train_dataloader
            if experience.environments.episodes:
                self.terms["episode_return"] = torch.tensor(experience.environments.episodes)[-10:].mean()
            self.log_dict(self.terms, prog_bar=True)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.optimizer(module.parameters()) for module in self.parameter_groups().values()]

    # ---- acting, and how well it goes

    def setup(self, stage: str) -> None:
        data_of(self).policy = self.explore

    def explore(self, observations: Tensor, generator: torch.Generator) -> Tensor:
        """Sampled actions (N, A) for observations (N, O); the noise is the environments' own."""
        mean, log_std = self.actor(observations)
        return (mean + log_std.exp() * torch.randn(mean.shape, generator=generator).to(mean)).tanh()

    def validation_step(self, environments: VectorEnvironment, batch_idx: int) -> None:
        """The mean return of whole episodes of the policy's mean actions."""

        def policy(observations: Tensor) -> Tensor:
            mean, _ = self.actor(observations.flatten(1).to(self.device))
            return unscaled(environments, mean.tanh().cpu())

        returns = play(environments, policy)
        found = {"evaluation_return": returns.mean(), "alpha": self.temperature()[0]}
        self.log_dict(found, prog_bar=True, batch_size=len(returns))

    test_step = validation_step
