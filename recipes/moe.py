r"""Mixture of experts: how a router learns from the experts that it chose, and what keeps their load even.

    x ──> router ──> p ──> top k ──┬─────────────────> / ──> gate ──‖──> sum gate E(x) ──> task_loss    ‖ stop.gate
                     │             └──> their sum ──‖──┘                ‖ stop.denominator (norm_topk_prob)
                     ├──> P, mean probability of each expert ──‖──┐     ‖ stop.probability
                     └──> f, its share of the tokens ──────────‖──┴──> balance_loss = N sum f P         ‖ stop.load

Top-k has no gradient: the router hears of the task through the gate alone (Shazeer et al. 2017, arXiv:1701.06538; Fedus
et al. 2021, arXiv:2101.03961, eq. 2). With one expert a token, a gate divided by the sum of those chosen is p / p: 1,
and its gradient 0. With the divisor cut it is grad log p; stop.value=one has the value 1 and the gradient of p.

The balance loss (eq. 4 to 6 there) counts in f, which has no gradient, and moves P. With the mean probability in the
place of the count (stop.assignment=soft) it has its minimum where probabilities are even on average, whatever is
chosen, and reads 1.00, as if all were well. Loss-free balancing (Wang et al. 2024, arXiv:2408.15664) needs no gradient:
a bias on the choice alone moves against the load.

    python train.py recipe=moe                                  # right: error .1
    python train.py recipe=moe recipe.norm_topk_prob=true       # broken: 1, the router's gradient is 4e-17
    python train.py recipe=moe_balance                          # right: the fullest expert has 1.0 of its share
    python train.py recipe=moe_balance stop.assignment=soft     # broken: 3 of it, and the loss says 1

Figures of all arms, three seeds each: docs/recipes/moe.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import lightning as L
import torch
import torch.distributed as dist
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from stopgrad import FlowContract, Stops
from stopgrad.lightning.manual import backward, counted, log_is_due

PAPER = "Shazeer 2017; Fedus 2021; Wang 2024"
# The first choice is the papers', and the default.
BOUNDARIES = {
    "gate": ["none", "detach", "data", "scale", "reverse"],
    "denominator": ["none", "detach", "data"],
    "probability": ["none", "detach"],
    "load": ["detach", "data", "none"],
}
SWITCHES = {
    "value": ["probability", "one"],  # of the gate; its gradient is the probability's in both
    "assignment": ["hard", "soft"],  # f: the share of tokens sent, or the mean probability once more
}
METRICS = {
    "task_error": {"goal": "min", "margin": 0.1, "broken_above": 0.45},  # mean squared; one expert alone has .75
    "max_load": {"goal": "min", "margin": 0.1, "broken_above": 2.0},  # of the fullest expert, 1 is its fair share
    "router_gradient": {"goal": None, "margin": 0.01},  # of the task loss, at the start
}
WITHOUT = {
    "gate": "cut, the router never hears of the task",
    "denominator": "where k = 1 it must be cut: live, the gate is p / p, and its gradient 0",
    "probability": "cut, nothing balances",
    "load": "live, only with stop.assignment=soft: twice the gradient, and the same wrong minimum",
    "value": "one, the experts are not scaled down",
    "assignment": "soft, probabilities are even and one expert gets most tokens, at the same loss",
}
NEEDS = {
    "stop.denominator": ["recipe.norm_topk_prob=true"],
    "stop.probability": ["stop.assignment=soft", "stop.load=none"],
    "stop.load": ["stop.assignment=soft"],
}
EXEMPT = {"ranks": "the balance loss is a product of means, which each rank takes over its own tokens"}
SMALL = ["data.batch_size=32", "data.tokens=256"]
FLOW = FlowContract(
    {
        "task_loss": {"router": "open", "experts": "open", "stop.gate": "open"},
        "balance_loss": {"router": "open", "stop.probability": "open", "stop.load": "blocked"},
    }
)


class MoE(L.LightningModule):
    """Linear experts and a router that sends each token to k of them, float64.

    Args:
        stop: the chosen strategies and switches.
        optimizer: from parameters to an optimiser.
        num_experts: N.
        num_experts_per_tok: k.
        features: of a token.
        norm_topk_prob: whether the gates of a token are divided by their sum.
        router_aux_loss_coef: weight of the balance loss.
        bias_update_speed: u, the step of loss-free balancing; 0: none.
        router: ``linear``; or ``bias``: the token is its logits, and one bias an expert is learnt.
    """

    def __init__(
        self,
        *,
        stop: Mapping[str, str],
        optimizer: Callable[..., torch.optim.Optimizer],
        num_experts: PositiveInt = 4,
        num_experts_per_tok: PositiveInt = 1,
        features: PositiveInt = 8,
        norm_topk_prob: bool = False,
        router_aux_loss_coef: NonNegativeFloat = 0.02,
        bias_update_speed: NonNegativeFloat = 0.0,
        router: Literal["linear", "bias"] = "linear",
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.stop = Stops(stop, BOUNDARIES, SWITCHES)
        if num_experts_per_tok > num_experts:
            raise ValueError(f"recipe.num_experts_per_tok={num_experts_per_tok}: choose at most {num_experts}")
        self.router = nn.Linear(features, num_experts, dtype=torch.float64)
        if router == "bias":
            nn.init.eye_(self.router.weight).requires_grad_(False)
            self.router.bias.data = 0.5 * torch.eye(num_experts, dtype=torch.float64)[0]  # too much of the first
        self.experts = nn.Linear(features, num_experts, bias=False, dtype=torch.float64)
        self.register_buffer("choice_bias", torch.zeros(num_experts, dtype=torch.float64))
        self.register_buffer("first_gradient", torch.zeros((), dtype=torch.float64))
        self.choice_bias: Tensor
        self.first_gradient: Tensor
        self.k, self.norm_topk_prob, self.coef, self.speed = (
            num_experts_per_tok,
            norm_topk_prob,
            router_aux_loss_coef,
            bias_update_speed,
        )
        self.optimizer = optimizer
        rows = {name: dict(row) for name, row in FLOW.items()}
        if norm_topk_prob:
            rows["task_loss"] |= {"router": "attached", "stop.denominator": "open"}  # with k = 1 what arrives is 0
        self.FLOW = FlowContract({name: rows[name] for name in self.losses()})

    def parameter_groups(self) -> dict[str, nn.Module]:
        return {"router": self.router, "experts": self.experts}

    def losses(self) -> dict[str, tuple[Callable[[Sequence[Tensor]], Tensor], float]]:
        """Of those that this run has, the method and the weight."""
        every = {"task_loss": (self.task_loss, 1.0), "balance_loss": (self.balance_loss, self.coef)}
        return {name: each for name, each in every.items() if each[1]}

    # ---- the two losses: what this recipe is about

    def gates(self, p: Tensor) -> Tensor:
        """(B, N) of probabilities (B, N): 0 but for the k experts that are chosen."""
        chosen = (p + self.choice_bias).topk(self.k, 1).indices
        gates = p.gather(1, chosen)
        if self.norm_topk_prob:
            gates = gates / self.stop.denominator.cross(gates.sum(1, keepdim=True))  # uncut and k = 1: p / p
        if self.stop.value == "one":
            gates = 1 + gates - gates.detach()
        return torch.zeros_like(p).scatter(1, chosen, self.stop.gate.cross(gates))

    def task_loss(self, batch: Sequence[Tensor]) -> Tensor:
        """Half the mean squared error of the experts' answers, by their gates, for inputs (B, D) and labels (B, 1)."""
        inputs, labels, _ = batch
        answers = self.gates(self.router(inputs).softmax(1)) * self.experts(inputs)  # (B, N)
        return (answers.sum(1, keepdim=True) - labels).square().mean() / 2

    def balance_loss(self, batch: Sequence[Tensor]) -> Tensor:
        """N sum f P: 1 where either is even."""
        p = self.router(batch[0]).softmax(1)
        f = self.load(p) if self.stop.assignment == "hard" else p.mean(0)
        f = self.stop.load.cross(f)  # counted, not learnt
        return len(f) * (f * self.stop.probability.cross(p.mean(0))).sum()

    def load(self, p: Tensor) -> Tensor:
        """(N,) The share of the tokens that each expert is sent."""
        chosen = (p.detach() + self.choice_bias).topk(self.k, 1).indices
        return chosen.flatten().bincount(minlength=p.shape[1]) / chosen.numel()

    # ---- the step

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        optimizer = counted(self)
        if self.global_step == 0:
            self.first_gradient.copy_(self.router_gradient(batch))
        optimizer.zero_grad()
        terms = {}
        for name, (loss, weight) in self.losses().items():
            value = loss(batch)
            backward(self, weight * value, name)
            terms[f"loss/{name}"] = value.detach()
        if self.speed:
            self.balance(self.router(batch[0]).softmax(1))
        optimizer.step()
        if log_is_due(self):
            self.log_dict(terms, prog_bar=True)

    @torch.no_grad()
    def balance(self, p: Tensor) -> None:
        """Loss-free: an expert's bias rises by u where its load, over all ranks, is below the mean, else it falls."""
        load = self.load(p)
        if dist.is_initialized():
            dist.all_reduce(load)
        self.choice_bias += self.speed * (load.mean() - load).sign()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        hard = self.stop.assignment == "hard" or self.stop.load.spelled != "none"
        if self.coef and hard and self.stop.probability.spelled == "detach":
            raise ValueError(
                "stop.probability=detach: nothing is left of the balance loss; add recipe.router_aux_loss_coef=0"
            )
        return self.optimizer([weight for weight in self.parameters() if weight.requires_grad])

    # ---- what the router hears, and whom it sends to

    def router_gradient(self, batch: Sequence[Tensor]) -> Tensor:
        """Norm of the task loss's gradient at the router."""
        learnt = [weight for weight in self.router.parameters() if weight.requires_grad]
        found = torch.autograd.grad(self.task_loss(batch), learnt, allow_unused=True)
        return sum((each.square().sum() for each in found if each is not None), self.first_gradient * 0).sqrt()

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        inputs, _, clusters = batch
        p = self.router(inputs).softmax(1)
        load, n = self.load(p), p.shape[1]
        self.log("max_load", n * load.max(), prog_bar=True)
        self.log("health/max_probability", n * p.mean(0).max())
        self.log("health/balance_loss", n * (load * p.mean(0)).sum())
        self.log("task_error", 2 * self.task_loss(batch), prog_bar=True)
        self.log("router_gradient", self.first_gradient)
        sent = (clusters * n + p.argmax(1)).bincount(minlength=n * n).view(n, n)  # clusters by experts
        self.log("health/purity", sent.max(1).values.sum() / len(clusters))

    test_step = validation_step
