r"""MuZero's half gradient: a model that is unrolled K times gets the gradient of two steps, however large K is.

    s0 ──> model ──> s1 ──> ‖ ──> model ──> s2 ──> ‖ ──> ... ──> sK       ‖ stop.state: of the gradient, scale:0.5 lets
                     └──> loss             └──> loss                       half through to the step before

Schrittwieser et al. 2020, arXiv:1911.08265: the loss is the mean over the steps, and the gradient at the start of each
step of the model is halved. With s' = theta s, from 1 at theta = 1, the derivative of the mean state is

    (K + 1) / 2                    live: it grows with the length
    2 - 2 (1 - 2^-K) / K           halved: below 2
    1                              cut: as of single steps, each from a state that is given

All have the same fixed point where the model can be right. The steps that learning stands are another matter.

    python train.py recipe=muzero recipe.num_unroll_steps=20                         # right
    python train.py recipe=muzero recipe.num_unroll_steps=20 stop.state=none         # broken: it oscillates

Figures of all arms: docs/recipes/muzero.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import lightning as L
import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from stopgrad import FlowContract, Stops
from stopgrad.lightning.manual import log_is_due

PAPER = "Oh 2017; Schrittwieser 2020"
# The first choice is MuZero's, and the default; none is plain backpropagation.
BOUNDARIES = {"state": ["scale:0.5", "none", "scale", "detach", "data"]}
SWITCHES = {}
METRICS = {
    "error": {"goal": "min", "margin": 1e-3, "broken_above": 0.005},  # |theta - the true one|
    "gradient": {"goal": None, "margin": 0.01},  # of the mean state, at theta = 1
}
WITHOUT = {"state": "whole, the gradient grows with the length of the unroll, and long ones need smaller steps"}
SMALL = ["data.batch_size=2"]
FLOW = FlowContract({"unroll_loss": {"model": "open", "stop.state": "open"}})


class MuZero(L.LightningModule):
    """A model of one number, learnt by unrolling it from 1.

    Args:
        stop: the chosen strategy.
        optimizer: from parameters to an optimiser.
        num_unroll_steps: K.
        truth: the factor that each step has.
    """

    FLOW = FLOW

    def __init__(
        self,
        *,
        stop: Mapping[str, str],
        optimizer: Callable[..., torch.optim.Optimizer],
        num_unroll_steps: PositiveInt = 5,
        truth: PositiveFloat = 0.9,
    ) -> None:
        super().__init__()
        self.stop = Stops(stop, BOUNDARIES, SWITCHES)
        self.model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
        nn.init.ones_(self.model.weight)
        self.steps, self.truth, self.optimizer = num_unroll_steps, truth, optimizer

    def parameter_groups(self) -> dict[str, nn.Module]:
        return {"model": self.model}

    # ---- the loss: what this recipe is about

    def unroll(self) -> Tensor:
        """s1 to sK (K,), from 1."""
        state, states = self.model.weight.new_ones(1), []
        for step in range(self.steps):
            state = self.model(state if step == 0 else self.stop.state.cross(state))  # a part of the gradient goes on
            states.append(state)
        return torch.cat(states)

    def unroll_loss(self, batch: Tensor) -> Tensor:
        """Half the mean squared error of the states."""
        states = self.unroll()
        truth = self.truth ** torch.arange(1, self.steps + 1).to(states)
        return (states - truth).square().mean() / 2

    # ---- the step

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.unroll_loss(batch)
        if log_is_due(self, steps_ahead=1):
            self.log("loss/unroll", loss.detach(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters())

    # ---- how far the model is off, and how long its gradient began

    def gradient(self) -> Tensor:
        """The derivative of the mean state at theta = 1, as the strategy has it."""
        with torch.inference_mode(False), torch.enable_grad():
            theta, now = self.model.weight, self.model.weight.detach().clone()
            with torch.no_grad():
                theta.fill_(1.0)
            (found,) = torch.autograd.grad(self.unroll().mean(), [theta])
            with torch.no_grad():
                theta.copy_(now)
        return found.squeeze()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("error", (self.model.weight.detach() - self.truth).abs().squeeze(), prog_bar=True)
        self.log("gradient", self.gradient())

    test_step = validation_step
