r"""MAML: the gradient of a gradient step, and what is left of it when the step is taken for a constant.

    theta ──────────────────────────────────────> ‖ ──┐          ‖ stop.theta: cut only to see what the other way does
                                                      ├──> theta' ──> query ──> meta_loss
    theta ──> support ──> inner gradient g ──> ‖ ──> - alpha g   ‖ stop.inner: none is MAML, detach first-order MAML

Finn et al. 2017, arXiv:1703.03400: for each task theta' = theta - alpha g(theta), and theta goes down the loss at
theta' (eq. 1, algorithm 2). By the chain rule that gradient is (1 - alpha H) g'(theta'), H the Hessian of the support's
loss. First-order MAML (section 5.2) drops H: g is a constant. Between them, scale:s takes (1 - s alpha H). On
losses a (theta - c)^2 / 2 of several tasks each has its own fixed point,

    theta = sum w c / sum w,   w = a (1 - alpha a) (1 - s alpha a)      s = 1: MAML   s = 0: first order
                               w = a                                    joint training: no inner step at all

and only MAML's is the one from which a step of alpha leads to the lowest loss. With theta cut instead of g, -alpha H g'
is left, which climbs: no fixed point holds.

    python train.py recipe=maml                              # error .8 after one step, 3.2 before it
    python train.py recipe=maml stop.inner=detach            # first order: 1.1, in less time
    python train.py recipe=maml recipe.inner_steps=0         # broken: joint training, 2.7 after one step
    python train.py recipe=maml_lines                        # exactly: theta = -.7845; first order .0471; joint .8182

Figures of all arms, three seeds each: docs/recipes/maml.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import lightning as L
import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from recipes.parts.tasks import Tasks
from stopgrad import FlowContract, Stops
from stopgrad.cuts.strategies import stops
from stopgrad.lightning.manual import log_is_due

PAPER = "Finn 2017"
# The first choice is MAML's, and the default.
BOUNDARIES = {"inner": ["none", "detach", "data", "scale", "reverse"], "theta": ["none", "detach"]}
SWITCHES = {}
# The best single function has an error of 3.2 on the sinusoids: a start that adapts has less than half of it.
METRICS = {"adapted_error": {"goal": "min", "margin": 0.01, "broken_above": 1.6}}
WITHOUT = {
    "inner": "cut, first order: another fixed point, for less work",
    "theta": "cut, what is left of the gradient climbs",
}
REFUSES = {"compile=true": "does not currently support double backward"}
SMALL = ["recipe.hidden=[8]", "data.batch_size=2"]
OPEN = {"network": "open", "stop.theta": "open"}
FLOW = FlowContract({"meta_loss": OPEN | {"stop.inner": "open"}})
JOINT = FlowContract({"meta_loss": {"network": "open"}})


class Network(nn.Module):
    """A perceptron with ReLU, computed with whatever weights it is given.

    Args:
        sizes: of its layers, from input to output.
        bias: whether the layers have one.
    """

    def __init__(self, sizes: Sequence[int], bias: bool) -> None:
        super().__init__()
        layers = [nn.Linear(*size, bias=bias) for size in pairwise(sizes)]
        self.weights = nn.ParameterList([layer.weight.detach().T.contiguous() for layer in layers])
        self.biases = nn.ParameterList([layer.bias.detach()[None] for layer in layers] if bias else [])

    def copies(self, tasks: int) -> list[Tensor]:
        """theta once a task: weights (T, in, out), then biases (T, 1, out)."""
        return [parameter.expand(tasks, -1, -1) for parameter in (*self.weights, *self.biases)]

    def forward(self, inputs: Tensor, theta: Sequence[Tensor]) -> Tensor:
        """(T, K, in) to (T, K, out), each task by its own weights."""
        depth = len(self.weights)
        weights, biases = theta[:depth], theta[depth:]
        for n, weight in enumerate(weights):
            inputs = torch.baddbmm(biases[n], inputs, weight) if biases else torch.bmm(inputs, weight)
            if n + 1 < depth:
                inputs = inputs.relu()
        return inputs


class MAML(L.LightningModule):
    """A network that learns where to start from.

    Args:
        stop: the chosen strategies.
        optimizer: from parameters to an optimiser.
        hidden: sizes of the hidden layers; none makes it linear.
        bias: whether the layers have one.
        alpha: size of an inner step.
        inner_steps: in training; 0 is joint training, one network for all tasks.
        test_steps: after which ``adapted_error`` is measured.
    """

    def __init__(
        self,
        *,
        stop: Mapping[str, str],
        optimizer: Callable[..., torch.optim.Optimizer],
        hidden: Sequence[PositiveInt] = (40, 40),
        bias: bool = True,
        alpha: PositiveFloat = 0.01,
        inner_steps: NonNegativeInt = 1,
        test_steps: PositiveInt = 1,
    ) -> None:
        super().__init__()
        self.stop = Stops(stop, BOUNDARIES, SWITCHES)
        self.network = Network((1, *hidden, 1), bias)
        self.alpha, self.inner_steps, self.test_steps, self.optimizer = alpha, inner_steps, test_steps, optimizer
        self.FLOW = FLOW if inner_steps else JOINT

    def parameter_groups(self) -> dict[str, nn.Module]:
        return {"network": self.network}

    # ---- the loss: what this recipe is about

    def errors(self, theta: Sequence[Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        """(T,) Mean squared error of each task, by its own weights."""
        return (self.network(inputs, theta) - targets).square().mean((1, 2))

    def inner_gradient(self, theta: Sequence[Tensor], tasks: Tasks) -> tuple[Tensor, ...]:
        """Of each task's support, by its own weights; with a graph only where one is wanted."""
        loss = self.errors(theta, tasks.support_inputs, tasks.support_targets).sum()
        return torch.autograd.grad(loss, theta, create_graph=not stops(self.stop.inner.spelled))

    def adapt(self, tasks: Tasks, steps: int) -> Sequence[Tensor]:
        """theta': the weights of each task after so many steps from theta."""
        theta: Sequence[Tensor] = self.network.copies(len(tasks.support_inputs))
        for _ in range(steps):
            gradient = self.stop.inner.cross(self.inner_gradient(theta, tasks))  # the cut: a step that is a constant
            theta = self.stop.theta.cross(theta)
            theta = [weight - self.alpha * step for weight, step in zip(theta, gradient, strict=True)]
        return theta

    def meta_loss(self, batch: Sequence[Tensor]) -> Tensor:
        """Of the queries, after the inner steps."""
        tasks = Tasks(*batch)
        theta = self.adapt(tasks, self.inner_steps)
        return self.errors(theta, tasks.query_inputs, tasks.query_targets).mean()

    # ---- the step

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        loss = self.meta_loss(batch)
        if log_is_due(self, steps_ahead=1):
            self.log("loss/meta", loss.detach(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if stops(self.stop.inner.spelled) and self.stop.theta.spelled == "detach":
            inner = self.stop.inner.spelled
            raise ValueError(f"stop.theta=detach: with stop.inner={inner} nothing learns; choose stop.theta=none")
        return self.optimizer(self.parameters())

    # ---- how well it adapts

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        with torch.inference_mode(False), torch.enable_grad():
            tasks = Tasks(*(part.clone() for part in batch))  # Lightning's own are inference tensors
            for name, steps in (("error", 0), ("adapted_error", self.test_steps)):
                theta = self.adapt(tasks, steps)
                self.log(
                    name, self.errors(theta, tasks.query_inputs, tasks.query_targets).mean().detach(), prog_bar=True
                )
        if len(self.network.weights) == 1:
            self.log("theta", self.network.weights[0].detach().mean(), prog_bar=True)

    test_step = validation_step
