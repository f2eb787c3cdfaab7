r"""DQN: the target of Q-learning stays put twice, cut from the gradient and held still by a copy.

    s, a ──> Q(s, a) ─────────────────────────────────────┐
                                                          ├──> q_loss
    s' ──> copy of Q ──> max Q'(s', a') ──‖──> r + gamma ─┘      ‖ stop.target: Q moves to the target, which stays put

Mnih et al. 2015, "Human-level control through deep reinforcement learning", algorithm 1; without its clipped error.
Double Q-learning, the action by Q and its value by the copy: van Hasselt et al. 2016, arXiv:1509.06461, eq. 4. A copy
that follows at each update by tau (Polyak): Lillicrap et al. 2016, arXiv:1509.02971. With delta the TD error, a step is

    delta (grad Q(s, a) - a gamma grad max Q(s', a')),   a = 0: cut;  a = 1: not cut

Two mistakes that look alike. Without the copy (stop.target_network=online), the cut target moves with every step and Q
runs away: 1e4 where no return is above 100. Without the cut (stop.target=none) Q has a part in the target's gradient,
so that nothing runs away; that is the residual gradient, right where transitions are deterministic, as here. Behind a
copy, which no optimiser holds, the missing cut is waste and nothing else.

    python train.py recipe=dqn                                             # right: Q about 50
    python train.py recipe=dqn stop.target_network=online                  # broken: Q runs away
    python train.py recipe=dqn stop.target_network=online stop.target=none # residual gradient: Q about 50

Figures of all arms, three seeds each: docs/recipes/dqn.md.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Annotated

import lightning as L
import torch
from gymnasium.spaces import Discrete
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from recipes.parts.averages import follow
from recipes.parts.environments import VectorEnvironment, play, spaces
from recipes.parts.networks import mlp
from recipes.parts.replay import Transitions
from stopgrad import FlowContract, Stops
from stopgrad.lightning.manual import backward, counted, data_of, log_is_due, raw

PAPER = "Mnih 2015; van Hasselt 2016"
# The first choice is the usual one, and the default.
BOUNDARIES = {"target": ["no_grad", "detach", "data", "freeze", "none", "scale", "reverse"]}
CUTS = ("no_grad", "detach", "data", "freeze")
SWITCHES = {"target_network": ["copy", "online"]}  # online: no copy, the network itself
METRICS = {
    # mean of max Q over the states of the evaluation; 1 / (1 - gamma) = 100 is the most that any policy is worth
    "q": {"goal": None, "margin": 20.0, "broken_above": 1e3},
}
WITHOUT = {
    "target": "a residual gradient; behind a copy, which no optimiser holds, waste",
    "target_network": "online, the target moves with every step, and Q runs away",
}
EXEMPT = {"ranks": "each rank has environments and a replay of its own"}
SMALL = ["data.num_envs=2", "data.updates_per_step=4", "data.batch_size=16", "data.warmup=50", "data.episodes=2"]
FLOW = FlowContract({"q_loss": {"network": "open", "stop.target": "blocked"}})

Share = Annotated[float, Field(ge=0, le=1)]


class DQN(L.LightningModule):
    """Values of actions, from replayed transitions, in manual optimisation; a batch is several updates.

    Args:
        stop: the chosen strategies and switches.
        environment: gymnasium's name of it; its actions are Discrete.
        optimizer: from parameters to an optimiser.
        width: units of both hidden layers.
        gamma: the discount.
        double: the target's action is chosen by the network and valued by the copy.
        period: C, updates from one move of the copy to the next.
        tau: how far the copy then moves to the network; 1 copies it, a small one with period=1 is Polyak's average.
        epsilon: share of random actions in the end.
        exploration_steps: steps over which it falls to that, from 1.

    Raises:
        ValueError: actions are no choice.
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
        double: bool = False,
        period: PositiveInt = 200,
        tau: Share = 1.0,
        epsilon: Share = 0.05,
        exploration_steps: PositiveInt = 500,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.stop = Stops(stop, BOUNDARIES, SWITCHES)
        observation, action = spaces(environment)
        if not isinstance(action, Discrete):
            kind = type(action).__name__
            raise ValueError(f"data.id={environment}: actions are {kind}; choose an environment with Discrete actions")
        self.actions = int(action.n)
        self.network = mlp(math.prod(observation.shape), width, width, self.actions)
        # frozen for good; but where nothing stops the target's gradient, left as a copy is: live
        self.target_network = copy.deepcopy(self.network).requires_grad_(self.stop.target.spelled not in CUTS)
        self.gamma, self.double_q, self.period, self.tau = gamma, double, period, tau
        self.epsilon, self.exploration_steps, self.optimizer = epsilon, exploration_steps, optimizer

    def parameter_groups(self) -> dict[str, nn.Module]:
        return {"network": self.network}

    # ---- the loss: what this recipe is about

    @property
    def next_network(self) -> nn.Module:
        return self.target_network if self.stop.target_network == "copy" else self.network

    def next_values(self, batch: Transitions) -> Tensor:
        """What the best action is worth in the next state, discounted; 0 after a termination."""
        values = self.next_network(batch.next_observations)
        if self.double_q:
            best = self.network(batch.next_observations).argmax(-1, keepdim=True)
            values = values.gather(-1, best).squeeze(-1)
        else:
            values = values.amax(-1)
        return self.gamma * batch.going_on * values

    def q_loss(self, batch: Transitions) -> Tensor:
        """The mean squared TD error, of transitions with any leading dimensions."""
        following = self.stop.target.over(self.next_network)(self.next_values, batch)  # the cut: the target stays put
        taken = self.network(batch.observations).gather(-1, batch.actions.long()).squeeze(-1)
        return (batch.rewards + following - taken).square().mean()

    # ---- several updates a batch

    def training_step(self, batch: Transitions, batch_idx: int) -> None:
        """One update for each of the batch's first dimension; Lightning counts the batch as one step."""
        last, optimizer = counted(self), raw(self)
        updates = [Transitions(*parts) for parts in zip(*batch, strict=True)]
        for k, transitions in enumerate(updates, start=self.global_step * len(updates) + 1):
            loss = self.q_loss(transitions)
            optimizer.zero_grad()
            backward(self, loss, "q_loss")
            (last if k % len(updates) == 0 else optimizer).step()
            if k % self.period == 0:
                follow(self.target_network, self.network, 1 - self.tau)
        if log_is_due(self):
            self.log("loss/q", loss.detach(), prog_bar=True)  # of the last update

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.network.parameters())

    # ---- acting, and what is expected of it

    def setup(self, stage: str) -> None:
        data_of(self).policy = self.explore

    def explore(self, observations: Tensor, generator: torch.Generator) -> Tensor:
        """Actions (N, 1) for observations (N, O), so many of them at random; the noise is the environments' own."""
        share = max(self.epsilon, 1 - self.global_step / self.exploration_steps)
        best = self.network(observations).argmax(-1, keepdim=True).cpu()
        anything = torch.randint(self.actions, best.shape, generator=generator)
        return torch.where(torch.rand(best.shape, generator=generator) < share, anything, best).float()

    def validation_step(self, environments: VectorEnvironment, batch_idx: int) -> None:
        """Whole episodes of best actions: their mean return, and what Q expects in their states."""
        expected = []

        def policy(observations: Tensor) -> Tensor:
            values, actions = self.network(observations.flatten(1).to(self.device)).max(-1)
            expected.append(values.mean())
            return actions.cpu()

        returns = play(environments, policy)
        self.log("q", torch.stack(expected).mean(), prog_bar=True, batch_size=len(returns))
        self.log("evaluation_return", returns.mean(), prog_bar=True, batch_size=len(returns))

    test_step = validation_step
