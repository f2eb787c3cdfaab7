r"""TD learning: should the gradient follow the bootstrap target? Each answer fails once.

    s  ──> V(s) ──────────────────> ‖ ──┐               ‖ stop.prediction: cut only to see what the other side does
                                        ├──> td_loss
    s' ──> gamma V(s') ──> ‖ ──> r + ───┘               ‖ stop.target: V(s) moves to the target, which stays put

TD(0): Sutton 1988; its semi-gradient: Sutton & Barto 2018, section 9.3, and the two problems, figure 11.1 and example
11.3. Residual gradient, and residual algorithms between the two: Baird 1995, "Residual Algorithms: Reinforcement
Learning with Function Approximation". With delta = r + gamma V(s') - V(s), the weights step by

    alpha delta (grad V(s) - a gamma grad V(s')),   a = 0: detach;  a = 1: none;  between them: scale:a

With the cut, Baird's star diverges: the expected update multiplies the weights by a matrix with an eigenvalue above 1.
Without it, every problem converges, but the A-split to the wrong values: V(B) is drawn to V(A), which comes before it.
With the prediction cut instead of the target, the values of the future are fitted to those of the past, and no reward
is ever learned.

    python train.py recipe=td                              # the star diverges: weights 10 -> 2.6e22, 4 s
    python train.py recipe=td stop.target=none             # it converges: 8.76
    python train.py recipe=td_asplit                       # right: V(B) = 1
    python train.py recipe=td_asplit stop.target=none      # wrong: V(B) = .75

Figures of all arms, three seeds each: docs/recipes/td.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import lightning as L
import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from recipes.parts.transitions import Transition
from stopgrad import FlowContract, Stops
from stopgrad.lightning.manual import backward, counted, data_of, log_is_due, raw

PAPER = "Baird 1995; Sutton & Barto 2018"
# The first choice is the usual one, and the default.
BOUNDARIES = {
    "target": ["detach", "no_grad", "freeze", "detach_", "data", "inference_mode", "none", "scale", "reverse"],
    "prediction": ["none", "detach"],
}
SWITCHES = {}
METRICS = {
    "value_error": {"goal": "min", "margin": 0.01},  # root mean square over the states; all of order 1
    "weight_norm": {"goal": None, "margin": 1.0, "broken_above": 1e3},  # the star begins at 10.3; true values need 0
}
WITHOUT = {
    "target": "it moves to the prediction: wrong values where transitions are random; with the cut the star diverges",
    "prediction": "cut, no reward is learnt",
}
NEEDS = {"stop.prediction": ["stop.target=none"]}
SMALL = ["data.batch_size=2"]  # of which two ranks have one each
FLOW = FlowContract({"td_loss": {"value": "open", "stop.prediction": "open", "stop.target": "blocked"}})


class TD(L.LightningModule):
    """A linear value function, learned from transitions in manual optimisation; a batch is several updates.

    Args:
        stop: the chosen strategies.
        num_features: of a state.
        discount: gamma.
        initial_weights: (num_features,) to begin with; None draws them from a standard normal.
        optimizer: from parameters to an optimiser; plain SGD is the published update.
    """

    FLOW = FLOW

    def __init__(
        self,
        *,
        stop: Mapping[str, str],
        num_features: PositiveInt,
        optimizer: Callable[..., torch.optim.Optimizer],
        discount: NonNegativeFloat = 0.99,
        initial_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.stop = Stops(stop, BOUNDARIES, SWITCHES)
        self.value = nn.Linear(num_features, 1, bias=False, dtype=torch.float64)  # (..., d) -> (..., 1)
        if initial_weights is None:
            nn.init.normal_(self.value.weight)
        elif len(initial_weights) != num_features:
            raise ValueError(f"recipe.initial_weights={list(initial_weights)}: choose {num_features} numbers, or null")
        else:
            self.value.weight.data[0] = torch.tensor(initial_weights)
        self.discount, self.optimizer = discount, optimizer

    def parameter_groups(self) -> dict[str, nn.Module]:
        return {"value": self.value}

    # ---- the loss: what this recipe is about

    def discounted_value(self, features: Tensor) -> Tensor:
        return self.discount * self.value(features).squeeze(-1)

    def td_loss(self, batch: Transition) -> Tensor:
        """Half the mean squared TD error of transitions with any leading dimensions."""
        bootstrap = self.stop.target(self.discounted_value, batch.next_features)  # the cut: what follows stays put
        prediction = self.stop.prediction.cross(self.value(batch.features).squeeze(-1))
        return (batch.rewards + bootstrap - prediction).square().mean() / 2

    # ---- several updates a batch

    def training_step(self, batch: Transition, batch_idx: int) -> None:
        """One update for each of the batch's first dimension; Lightning counts the batch as one step."""
        last, optimizer = counted(self), raw(self)  # Lightning's global_step is the batches
        updates = [Transition(*parts) for parts in zip(*batch, strict=True)]
        for update, transitions in enumerate(updates, start=1):
            loss = self.td_loss(transitions)
            optimizer.zero_grad()
            backward(self, loss, "td_loss")
            (last if update == len(updates) else optimizer).step()
        if log_is_due(self):
            self.log("td_error", (2 * loss.detach()).sqrt())  # of the last update, root mean square
            self.log("weight_norm", self.value.weight.detach().norm(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        cut = ("detach", "no_grad", "freeze", "detach_", "data", "inference_mode")
        if self.stop.prediction.spelled == "detach" and self.stop.target.spelled in cut:
            target = self.stop.target.spelled
            raise ValueError(f"stop.prediction=detach: with stop.target={target} nothing learns; add stop.target=none")
        return self.optimizer(self.value.parameters())

    # ---- how far the values are from the true ones

    def validation_step(self, batch: Transition, batch_idx: int) -> None:
        chain = data_of(self).chain
        values = self.value(chain.features.to(self.device)).squeeze(-1)  # (S,)
        error = (values - chain.values(self.discount).to(self.device)).square().mean().sqrt()
        self.log_dict({f"value/{name}": value for name, value in zip(chain.names, values, strict=True)})
        self.log("weight_norm", self.value.weight.norm())
        self.log("value_error", error, prog_bar=True)

    test_step = validation_step
