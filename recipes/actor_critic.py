r"""Actor-critic: the policy's loss must not teach the critic, and the critic must not move its own targets.

    observations ──> trunk ──> actor ──> log pi(a|s) ───────────> policy_loss
                       │                  A = G(r, V) - V ──‖──┘          ‖ stop.advantage: the critic is a weight here
                       └──‖──> critic ──> V(s) ─────────────────> value_loss
                          ‖ stop.trunk          G(r, V(s')) ──‖──┘        ‖ stop.target: V learns towards G, not G to V

A2C: Mnih et al. 2016, arXiv:1602.01783, algorithm S3. PPO: Schulman et al. 2017, arXiv:1707.06347, eq. 7 and 9. GAE:
Schulman et al. 2016, arXiv:1506.02438, eq. 16. The value's gradient cut at a shared trunk: PPG, Cobbe et al. 2021,
arXiv:2009.04416, section 3.6.

Without the cut at the advantage, the policy's loss is lowered by moving the value instead of the policy: A2C's value
settles H(pi) / 2c too high, where c is the value's weight. Without the cut at the target, the target is pulled towards
the value as well (a residual gradient). CartPole's return shows neither: it is learnt all the same.

    python train.py recipe=actor_critic                          # right
    python train.py recipe=bandit stop.advantage=none            # broken: V is 1.69 where every reward is 1

Figures of all arms, three seeds each: docs/recipes/actor_critic.md.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import lightning as L
import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from recipes.parts.environments import Step, VectorEnvironment, play, spaces
from recipes.parts.policies import MLP, Normalise, clipped_gain, linear, policy_for
from recipes.parts.rollouts import Rollout, lambda_returns, once
from stopgrad import FlowContract, Stops
from stopgrad.lightning import unaudited
from stopgrad.lightning.manual import backward, clip_gradients, counted, log_is_due, raw, trainer_of

Share = Annotated[float, Field(ge=0, le=1)]
AtLeastTwo = Annotated[int, Field(ge=2)]  # every second step may be one that only resets

PAPER = "Mnih 2016; Schulman 2017; Cobbe 2021"
# The first choice is the paper's, and the default.
BOUNDARIES = {
    "target": ["no_grad", "detach", "data", "freeze", "none", "scale", "reverse"],
    "advantage": ["no_grad", "detach", "data", "freeze", "none", "scale", "reverse"],
    "trunk": ["none", "detach", "data", "no_grad", "freeze", "scale", "reverse"],
}
SWITCHES: dict[str, list[str]] = {}
# What a comparison judges by. No return is a line beyond which an arm is broken: CartPole is learnt by most of them.
METRICS = {
    "episode_return": {"goal": "max", "margin": 25.0},  # of CartPole's 500
    "evaluation_return": {"goal": "max", "margin": 25.0},
    "health/value_bias": {"goal": None, "margin": 0.02},  # exact on the bandit: 0, or H(pi) / 2c
}
WITHOUT = {
    "target": "a residual gradient: the target moves towards the value",
    "advantage": "the policy's loss teaches the critic: V is off by H(pi) / 2c",
    "trunk": "cut, V has no features of its own",
}
REFUSES = {"compile=update": "an advantage is kept from one loss to the next, so that a graph serves but one of them"}
NEEDS = {"stop.trunk": ["recipe.network=shared"]}
EXEMPT = {"ranks": "each rank has environments of its own"}
SMALL = ["data.num_envs=4", "data.episodes=2", "recipe.rollout=8", "recipe.minibatch=32"]
POLICY = {"actor": "open", "trunk": "open", "critic": "blocked", "stop.advantage": "blocked"}
VALUE = {"critic": "open", "actor": "blocked", "stop.target": "blocked"}
FLOW = FlowContract({"policy_loss": POLICY, "value_loss": VALUE | {"trunk": "open", "stop.trunk": "open"}})
SEPARATE = FlowContract({"policy_loss": POLICY, "value_loss": VALUE | {"trunk": "blocked"}})  # two networks


class ActorCritic(L.LightningModule):
    """A policy and its critic, in manual optimisation; a batch is one rollout and its epochs of minibatches.

    Args:
        stop: the chosen strategies.
        environment: gymnasium's name of it; its spaces shape the networks.
        num_envs: that run side by side.
        network: ``shared``: actor and critic are heads on one trunk; ``separate``: two networks.
        width: units of both hidden layers.
        objective: ``clip`` (PPO, eq. 7) or ``policy_gradient`` (A2C).
        rollout: T, the steps of each environment in an iteration.
        epochs: over a rollout.
        minibatch: transitions of an update, at least: a rollout is split into as many as it fills.
        gamma, gae_lambda: the discount, and the weight of what was seen over what V says.
        clip: of the probability ratio.
        value_weight: c, of the squared error of V.
        entropy_weight: of the entropy bonus.
        max_grad_norm: of all gradients together.
        normalise_observations: by their running mean and standard deviation.
        normalise_advantages: within a minibatch.
        anneal: the learning rate and ``clip`` fall linearly to 0 over the run.
        recompute: V in targets and advantages anew for every minibatch, which an open boundary needs in any case:
            with it, an arm that is cut differs from one that is open by the gradient alone.
        optimizer: from parameters to an optimiser.
    """

    def __init__(
        self,
        *,
        stop: Mapping[str, str],
        environment: str,
        num_envs: PositiveInt,
        optimizer: Callable[..., torch.optim.Optimizer],
        network: Literal["separate", "shared"] = "separate",
        width: PositiveInt = 64,
        objective: Literal["clip", "policy_gradient"] = "clip",
        rollout: AtLeastTwo = 64,
        epochs: PositiveInt = 4,
        minibatch: PositiveInt = 512,
        gamma: Share = 0.98,
        gae_lambda: Share = 0.95,
        clip: NonNegativeFloat = 0.2,
        value_weight: NonNegativeFloat = 0.25,
        entropy_weight: NonNegativeFloat = 0.0,
        max_grad_norm: PositiveFloat = 2.0,
        normalise_observations: bool = False,
        normalise_advantages: bool = True,
        anneal: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.stop = Stops(stop, BOUNDARIES, SWITCHES)
        steps = rollout * num_envs
        if steps < minibatch:
            raise ValueError(
                f"recipe.minibatch={minibatch}: a rollout has {rollout} x {num_envs} = {steps} steps; "
                f"choose at most {steps}, or a longer recipe.rollout"
            )
        if network == "separate" and self.stop.trunk.spelled != "none":
            raise ValueError(
                f"stop.trunk={self.stop.trunk.spelled}: no trunk is shared with recipe.network=separate; "
                "choose stop.trunk=none or recipe.network=shared"
            )
        observation, action = spaces(environment)
        inputs = math.prod(observation.shape)
        self.shared, self.FLOW = network == "shared", FLOW if network == "shared" else SEPARATE
        self.normalise = Normalise(observation.shape) if normalise_observations else None
        self.trunk, self.actor, self.critic = MLP(inputs, width), policy_for(action, width), linear(width, 1, 1.0)
        if not self.shared:
            self.critic = nn.Sequential(MLP(inputs, width), self.critic)
        self.rollout, self.epochs, self.num_minibatches = rollout, epochs, steps // minibatch
        self.objective, self.clip, self.anneal, self.recompute = objective, clip, anneal, recompute
        self.gamma, self.gae_lambda, self.normalise_advantages = gamma, gae_lambda, normalise_advantages
        self.value_weight, self.entropy_weight, self.max_grad_norm = value_weight, entropy_weight, max_grad_norm
        self.optimizer = optimizer
        self.remaining = 1.0  # of the schedule

    def parameter_groups(self) -> dict[str, nn.Module]:
        return {"trunk": self.trunk, "actor": self.actor, "critic": self.critic}

    # ---- the two losses: what this recipe is about

    @once
    def advantages(self, rollout: Rollout) -> Tensor:
        values = self.stop.advantage(self.values, rollout)  # the cut: the policy's loss must not teach the critic
        return self.returns(rollout, values) - values[:-1]

    @once
    def targets(self, rollout: Rollout) -> Tensor:
        values = self.stop.target(self.values, rollout)  # the cut: V goes to its target, not its target to V
        return self.returns(rollout, values)

    def policy_loss(self, rollout: Rollout, here: Tensor | None = None) -> Tensor:
        """Of the transitions ``here`` (B,), all valid ones by default: A2C's, or PPO's clipped one, less the bonus."""
        here = rollout.valid if here is None else here
        advantage = self.advantages(rollout)[here]
        if self.normalise_advantages:
            advantage = (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)
        policy = self.policy(rollout.observations[:-1].flatten(0, 1)[here])
        log_prob = self.actor.log_prob(policy, rollout.actions[here])
        if self.objective == "policy_gradient":
            gain = log_prob * advantage
        else:
            ratio = (log_prob - rollout.log_probs[here]).exp()
            gain = clipped_gain(ratio, advantage, self.clip * self.remaining)  # min(ratio A, clip(ratio) A)
        if self.entropy_weight:
            gain = gain + self.entropy_weight * self.actor.entropy(policy)
        return -gain.mean()

    def value_loss(self, rollout: Rollout, here: Tensor | None = None) -> Tensor:
        """c (V - G)^2 of the transitions ``here`` (B,), all valid ones by default."""
        here = rollout.valid if here is None else here
        value = self.value(rollout.observations[:-1].flatten(0, 1)[here])
        return self.value_weight * (value - self.targets(rollout)[here]).square().mean()

    def policy(self, observations: Tensor) -> Any:
        """What :meth:`Categorical.act` and :meth:`Gaussian.act` make actions of, for observations (B, ...)."""
        return self.actor(self.trunk(observations))

    def value(self, observations: Tensor) -> Tensor:
        """V (B,) of observations (B, ...)."""
        if self.shared:
            observations = self.stop.trunk(self.trunk, observations)  # the cut, if any: the trunk is the policy's alone
        return self.critic(observations).squeeze(-1)

    def values(self, rollout: Rollout) -> Tensor:
        """V (T + 1, N), of the last observation too."""
        return self.value(rollout.observations.flatten(0, 1)).view(rollout.observations.shape[:2])

    def returns(self, rollout: Rollout, values: Tensor) -> Tensor:
        return lambda_returns(values[1:], rollout.steps, self.gamma, self.gae_lambda)

    # ---- a rollout, and the order of backward and step

    def seen(self, observations: Tensor) -> Tensor:
        """Observations as the networks see them."""
        observations = observations.to(self.device)
        return observations if self.normalise is None else self.normalise(observations)

    @torch.no_grad()
    def collect(self, environments: VectorEnvironment) -> Rollout:
        """Act for T steps, with noise of the environments' own generator."""
        noise = self.actor.noise(self.rollout, environments.num_envs, generator=environments.generator)
        raw, actions, steps = [environments.observation], [], []
        for now in noise.to(self.device).unbind():
            actions.append(self.actor.act(self.policy(self.seen(raw[-1])), now))
            steps.append(environments.step(actions[-1].cpu()))
            raw.append(steps[-1].observation)
        steps = Step(*(torch.stack(each).to(self.device) for each in zip(*steps, strict=True)))
        observations, chosen = self.seen(torch.stack(raw)), torch.cat(actions)
        log_probs = self.actor.log_prob(self.policy(observations[:-1].flatten(0, 1)), chosen)
        if self.normalise is not None:
            self.normalise.update(torch.cat(raw[:-1]).to(self.device))
        return Rollout(observations, chosen, log_probs, steps, steps.valid.flatten().nonzero().squeeze(1))

    def training_step(self, environments: VectorEnvironment, batch_idx: int) -> None:
        started, optimizer, due = time.perf_counter(), raw(self), log_is_due(self, steps_ahead=1)
        self.remaining = 1 - self.global_step / trainer_of(self).max_steps if self.anneal else 1.0
        for group in optimizer.param_groups:
            group["lr"] = optimizer.defaults["lr"] * self.remaining

        rollout = self.collect(environments)
        terms = self.critic_health(rollout) if due else {}
        minibatches = [part for _ in range(self.epochs) for part in self.minibatches(rollout, environments.generator)]
        losses = self.update(rollout, minibatches[0], counted(self), each=True)  # global_step is the iterations
        with unaudited():  # the same two losses again, whose sum takes one backward
            for here in minibatches[1:]:
                losses = self.update(rollout, here, optimizer)
        if due:
            terms |= losses | self.policy_health(rollout)
            if environments.episodes:
                terms["episode_return"] = torch.tensor(list(environments.episodes)[-20:]).mean()
            terms["steps_per_second"] = torch.tensor(len(rollout.valid) / (time.perf_counter() - started))
            self.log_dict(terms, prog_bar=True)

    def minibatches(self, rollout: Rollout, generator: torch.Generator) -> Sequence[Tensor]:
        """The indices of the transitions in a fresh order, in equal parts; no part is dropped."""
        order = torch.randperm(len(rollout.valid), generator=generator).to(self.device)
        return rollout.valid[order].tensor_split(min(self.num_minibatches, len(order)))

    def update(self, rollout: Rollout, here: Tensor, optimizer: Any, each: bool = False) -> dict[str, Tensor]:
        """One step by both losses; with ``each``, in a backward of its own, so that the audit tells them apart."""
        optimizer.zero_grad()
        policy_loss, value_loss = self.policy_loss(rollout, here), self.value_loss(rollout, here)
        if each:
            backward(self, policy_loss, "policy_loss")
            backward(self, value_loss, "value_loss")
        else:
            backward(self, policy_loss + value_loss, "policy_loss + value_loss")
        clip_gradients(self, optimizer, self.max_grad_norm)
        optimizer.step()
        return {"loss/policy": policy_loss.detach(), "loss/value": value_loss.detach()}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters())

    # ---- how well it does

    @torch.no_grad()
    def critic_health(self, rollout: Rollout) -> dict[str, Tensor]:
        """Of V before it learns from the rollout: its mean error, and the share of the variance it explains."""
        values = self.values(rollout)
        returns = self.returns(rollout, values).flatten()[rollout.valid]
        error = values[:-1].flatten()[rollout.valid] - returns
        found = {"health/value_bias": error.mean()}
        return found | {"health/explained_variance": 1 - error.var() / returns.var()} if returns.var() > 0 else found

    @torch.no_grad()
    def policy_health(self, rollout: Rollout) -> dict[str, Tensor]:
        """How far the policy has moved from the one that acted: the KL divergence, and the share of ratios clipped."""
        policy = self.policy(rollout.observations[:-1].flatten(0, 1)[rollout.valid])
        log_ratio = self.actor.log_prob(policy, rollout.actions[rollout.valid]) - rollout.log_probs[rollout.valid]
        entropy = self.actor.entropy(policy)
        gone = (log_ratio.expm1().abs() > self.clip * self.remaining).float()
        kl = log_ratio.expm1() - log_ratio  # the mean of this is the KL divergence too, and it is never negative
        return {"health/entropy": entropy.mean(), "health/kl": kl.mean(), "health/clipped": gone.mean()}

    def validation_step(self, environments: VectorEnvironment, batch_idx: int) -> None:
        """The mean return of whole episodes, always the likeliest action."""
        returns = play(environments, lambda observation: self.actor.act(self.policy(self.seen(observation))).cpu())
        self.log("evaluation_return", returns.mean(), prog_bar=True, batch_size=len(returns))

    test_step = validation_step
