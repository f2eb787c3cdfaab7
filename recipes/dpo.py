r"""DPO: a policy is measured against its reference, and is lost when the reference moves with it.

    base ──┬──> ‖ ──> + adapter ──> log pi(chosen) - log pi(rejected) ───┐   ‖ stop.base: LoRA's frozen weights
           │                                                             ├──> dpo_loss
           └──> or its copy ──> log ref(chosen) - log ref(rejected) ─ ‖ ─┘   ‖ stop.reference: a constant

Rafailov et al. 2023, arXiv:2305.18290, eq. 7: -log sigmoid(beta h), h = log pi/ref (chosen) - log pi/ref (rejected).
Where a share s of the labels says so (label_smoothing = 1 - s), the loss is lowest at h = logit(s) / beta, by whomever:

    reference a frozen copy                the policy's margin has grown by h
    reference a copy that is trained too   by h / 2: each goes half of the way, in opposite directions
    reference the policy itself, live      by nothing: h is 0 for good, and so is the gradient
    reference the policy itself, cut       without end: h is 0 for good, the gradient a constant
    reference the policy without adapter, its base trained, cut       by 2 h: the base goes along, at the same loss
    reference the policy without adapter, its base trained, live      by h: the two ways to the base cancel

stop.model says which of these is the reference: a copy, the base (peft's disable_adapter) or the policy.

    python train.py recipe=dpo                                            # right: margin 2.77 = logit(.8) / .5
    python train.py recipe=dpo stop.model=base stop.base=none             # broken: 5.55, at the same loss
    python train.py recipe=dpo stop.model=policy                          # broken: 75 and growing, loss .6931

Figures of all arms, three seeds each: docs/recipes/dpo.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal

import lightning as L
import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from stopgrad import FlowContract, Stops
from stopgrad.cuts.strategies import stops
from stopgrad.lightning.manual import log_is_due

PAPER = "Rafailov 2023; Hu 2021"
# The first choice is the papers', and the default.
BOUNDARIES = {
    "reference": ["no_grad", "detach", "data", "none"],
    "base": ["detach", "data", "none"],
    "kl": ["detach", "none"],
}
SWITCHES = {"model": ["copy", "base", "policy"]}  # what the reference is
METRICS = {
    "margin": {"goal": None, "margin": 0.01, "broken_above": 5.0, "broken_below": 0.5},  # 2.7726 is right
    "loss": {"goal": "min", "margin": 1e-3},  # log 2 = .6931 at the start
}
WITHOUT = {
    "reference": "it goes half of the way, the other way; and where it is the policy itself, nothing is learnt",
    "base": "what reads the base as its reference moves along, and the margin is double at the same loss",
    "kl": "KTO's reference point learns too: no clear effect here",
    "model": "the policy itself as its reference: the margin grows without end, at a loss of log 2",
}
NEEDS = {"stop.kl": ["recipe.loss_type=kto"]}
ROW = {"adapter": "open", "base": "blocked", "stop.base": "blocked", "stop.reference": "blocked"}
FLOW = FlowContract({"dpo_loss": ROW})
KTO = FlowContract({"dpo_loss": {**ROW, "stop.kl": "blocked"}})


class Table(nn.Module):
    """Logits (prompts, answers) in float64, drawn from N(0, spread^2)."""

    def __init__(self, prompts: int, answers: int, spread: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(spread * torch.randn(prompts, answers, dtype=torch.float64))

    def forward(self) -> Tensor:
        return self.logits


class DPO(L.LightningModule):
    """A policy over a few answers to each prompt: logits of a base and of an adapter, which begins at 0.

    Args:
        stop: the chosen strategies and switches.
        optimizer: from parameters to an optimiser; it gets what is live.
        prompts, answers: of the data.
        beta: how far a label pulls the policy from its reference.
        label_smoothing: the share of labels that are the wrong way round.
        loss_type: ``sigmoid``: DPO; ``kto``: chosen and rejected answers by themselves, against z0 = KL(pi, ref)
            (Ethayarajh et al. 2024, arXiv:2402.01306).
    """

    def __init__(
        self,
        *,
        stop: Mapping[str, str],
        optimizer: Callable[..., torch.optim.Optimizer],
        prompts: PositiveInt = 4,
        answers: PositiveInt = 6,
        beta: PositiveFloat = 0.5,
        label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.2,
        loss_type: Literal["sigmoid", "kto"] = "sigmoid",
    ) -> None:
        super().__init__()
        self.stop = Stops(stop, BOUNDARIES, SWITCHES)
        self.base, self.adapter = Table(prompts, answers, 1.0), Table(prompts, answers, 0.0)
        self.copy = Table(prompts, answers, 0.0)
        self.copy.load_state_dict(self.base.state_dict())
        self.start: Tensor
        self.register_buffer("start", self.base.logits.detach().clone())
        self.beta, self.label_smoothing, self.loss_type, self.optimizer = beta, label_smoothing, loss_type, optimizer
        self.FLOW = KTO if loss_type == "kto" else FLOW

    def parameter_groups(self) -> dict[str, nn.Module]:
        return {"adapter": self.adapter, "base": self.base, "reference": self.copy}

    # ---- the loss: what this recipe is about

    def log_policy(self) -> Tensor:
        """(prompts, answers)"""
        base = self.stop.base.cross(self.base())  # the cut: what others read as well must not learn
        return (base + self.adapter()).log_softmax(-1)

    def log_reference(self) -> Tensor:
        """(prompts, answers)"""
        if self.stop.model == "policy":
            return self.log_policy()  # never right: h is 0 whatever is learnt
        return (self.base if self.stop.model == "base" else self.copy)().log_softmax(-1)

    def log_ratios(self) -> Tensor:
        """log pi / ref (prompts, answers)."""
        return self.log_policy() - self.stop.reference(self.log_reference)  # the cut: a constant to compare with

    def dpo_loss(self, batch: Sequence[Tensor]) -> Tensor:
        """Of prompts, chosen and rejected answers (B,)."""
        prompts, chosen, rejected = batch
        ratios = self.log_ratios()
        h, eps = ratios[prompts, chosen] - ratios[prompts, rejected], self.label_smoothing
        if self.loss_type == "sigmoid":
            return -((1 - eps) * logsigmoid(self.beta * h) + eps * logsigmoid(-self.beta * h)).mean()
        z0 = self.stop.kl.cross((self.log_policy().exp() * ratios).sum(-1)[prompts])  # the cut: where ratios count from
        good, bad = (self.beta * (ratios[prompts, answers] - z0) for answers in (chosen, rejected))
        right = (1 - eps) * (good.sigmoid() + (-bad).sigmoid()) + eps * ((-good).sigmoid() + bad.sigmoid())
        return (1 - right / 2).mean()

    # ---- the step

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        loss = self.dpo_loss(batch)
        if log_is_due(self, steps_ahead=1):
            self.log("loss/dpo", loss.detach(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        learns = {"adapter": True, "base": not stops(self.stop.base.spelled)}
        learns["reference"] = self.stop.model == "copy" and not stops(self.stop.reference.spelled)
        groups = self.parameter_groups()
        return self.optimizer([p for name in groups if learns[name] for p in groups[name].parameters()])

    # ---- how far the policy has come from where it began, and how far it says it has

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        prompts, chosen, rejected = batch
        moved = self.log_policy() - self.start.log_softmax(-1)
        for name, ratios in (("margin", moved), ("health/h", self.log_ratios())):
            self.log(name, (ratios[prompts, chosen] - ratios[prompts, rejected]).mean(), prog_bar=True)
        self.log("loss", self.dpo_loss(batch), prog_bar=True)
        self.log("health/base_moved", (self.base() - self.start).abs().max())

    test_step = validation_step
