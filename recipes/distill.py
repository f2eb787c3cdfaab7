r"""Distillation: what a student is compared with is no variable, and neither is what its own samples have earned.

    labels ──> teacher ──> ‖ ──> log t(y) ──┐                       ‖ stop.teacher: it must not come to meet the student
                                            ├──> A = log t / s ──> ‖ ──> - A log s ──> distill_loss
    y ~ student ──────────> log s(y) ───────┘                       ‖ stop.advantage: on-policy, earned and not learnt

With t the teacher's distribution over completions and s the student's: forward KL(t, s), on the teacher's samples
(Hinton et al. 2015, arXiv:1503.02531); reverse KL(s, t), differentiated; and on-policy distillation, reverse KL on the
student's own samples y (Agarwal et al. 2024, arXiv:2306.13649; Lu 2025), by the gradient of -A log s with A cut. With A
live that is also the gradient of minus the entropy, and s comes to sqrt(t) / Z. The divergence itself as the loss, -A,
has no gradient at all: E_s[grad log s] = 0 (stop.objective=value). Where the teacher learns from labels q beside
(online distillation, codistillation), its place in the loss must be cut, or it is drawn to the student:

    t = q, cut        t = (lam q + s) / (1 + lam), live in KL(s, t)

A teacher left in training mode teaches the mean over its dropout: of its probabilities forward, in reverse of its
logarithms.

    python train.py recipe=distill                             # right: 31 completions listed, KL below 1e-5
    python train.py recipe=distill stop.advantage=none stop.objective=value    # broken: the student does not move
    python train.py recipe=distill_online stop.teacher=none    # broken: the teacher goes half way to its student

Figures of all arms, three seeds each: docs/recipes/distill.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import lightning as L
import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from stopgrad import FlowContract, Stops
from stopgrad.cuts.strategies import stops
from stopgrad.lightning.manual import log_is_due

PAPER = "Hinton 2015; Agarwal 2024"
# The first choice is the papers', and the default.
BOUNDARIES = {
    "teacher": ["no_grad", "detach", "none"],
    "advantage": ["detach", "data", "none"],
}
SWITCHES = {
    "objective": ["score", "value"],  # -A log s, or -A, the divergence itself
    "teacher_mode": ["eval", "train"],
}
METRICS = {
    "kl": {"goal": "min", "margin": 1e-3, "broken_above": 0.5},  # nats from the student to what is to be learnt
    "slope": {"goal": "max", "margin": 1e-3, "broken_below": 0.9},  # of the teacher on its labels; 1 is right
}
WITHOUT = {
    "teacher": "it comes to meet its student",
    "advantage": "the student comes to the square root of its teacher's probabilities",
    "objective": "value, the loss is the divergence, and has no gradient",
    "teacher_mode": "in training mode, the student learns the mean over its dropout",
}
NEEDS = {
    "stop.teacher": ["recipe.divergence=reverse"],
    "stop.advantage": ["recipe.divergence=on_policy"],
    "stop.objective": ["recipe.divergence=on_policy", "stop.advantage=none"],
}
SMALL = ["data.batch_size=2"]
FLOW = FlowContract(
    {"distill_loss": {"student": "open", "teacher": "blocked", "stop.teacher": "blocked", "stop.advantage": "blocked"}}
)


class Distill(L.LightningModule):
    """A student of completions and its teacher, from listed completions or the student's samples.

    Args:
        stop: the chosen strategies and switches.
        student, teacher: make language models (recipes/parts/enumerable.py).
        optimizer: from parameters to an optimiser.
        divergence: ``on_policy``, ``reverse`` or ``forward``.
        num_generations: of samples a step, on-policy; None: every completion, each weighed by its probability.
        lam: of the teacher's own loss, its cross-entropy on labels; 0: it is there, and stays.
    """

    def __init__(
        self,
        *,
        stop: Mapping[str, str],
        student: Callable[[], Any],
        teacher: Callable[[], Any],
        optimizer: Callable[..., torch.optim.Optimizer],
        divergence: Literal["on_policy", "reverse", "forward"] = "on_policy",
        num_generations: PositiveInt | None = None,
        lam: NonNegativeFloat = 0.0,
    ) -> None:
        super().__init__()
        self.stop = Stops(stop, BOUNDARIES, SWITCHES)
        self.student, self.teacher = student(), teacher()
        if self.stop.teacher_mode == "eval":
            self.teacher.eval()
        if num_generations is not None and divergence != "on_policy":
            raise ValueError(f"recipe.num_generations={num_generations}: samples are on_policy's; choose null")
        self.divergence, self.num_generations, self.lam, self.optimizer = divergence, num_generations, lam, optimizer
        self.labels: Tensor  # (N,) log q of what is to be learnt: the teacher's labels, or the teacher as it was
        drawn = teacher().eval() if lam else self.teacher
        self.register_buffer("labels", self.every(drawn).detach().clone())
        row: dict[str, str] = dict(FLOW["distill_loss"]) | ({"teacher": "open"} if lam else {})
        if divergence != "on_policy":
            del row["stop.advantage"]
        self.FLOW = FlowContract({"distill_loss": row})

    def train(self, mode: bool = True) -> Distill:
        super().train(mode)
        self.teacher.train(mode and self.stop.teacher_mode == "train")
        return self

    def parameter_groups(self) -> dict[str, nn.Module]:
        return {"student": self.student, "teacher": self.teacher}

    def every(self, network: Any) -> Tensor:
        """log p (N,) of every completion."""
        prompts = torch.zeros(1, 1, device=self.device)
        return network(prompts, *network.everything(prompts)).sum(-1)[0]

    # ---- the loss: what this recipe is about

    def distill_loss(self, prompts: Tensor) -> Tensor:
        """The divergence of the student from its teacher, and lam times the teacher's from its labels."""
        loss = self.on_policy() if self.divergence == "on_policy" else self.differentiated()
        return loss - self.lam * (self.labels.exp() * self.every(self.teacher)).sum() if self.lam else loss

    def on_policy(self) -> Tensor:
        prompts = torch.zeros(1, 1, device=self.device)
        if self.num_generations is None:
            tokens, mask = self.student.everything(prompts)
            weights = self.every(self.student).exp().detach()
        else:
            tokens, mask = self.student.generate(prompts, self.num_generations)
            weights = torch.full(tokens.shape[1:2], 1 / self.num_generations, device=self.device)
        log_s = self.student(prompts, tokens, mask).sum(-1)[0]
        log_t = self.stop.teacher(self.teacher, prompts, tokens, mask).sum(-1)[0]  # the cut: what it says is so
        advantages = self.stop.advantage.cross(log_t - log_s)  # the cut: earned, and not learnt
        return -(weights * advantages * (log_s if self.stop.objective == "score" else 1)).sum()

    def differentiated(self) -> Tensor:
        log_s, log_t = self.every(self.student), self.stop.teacher.over(self.teacher)(self.every, self.teacher)
        if self.divergence == "forward":
            return (log_t.exp() * (log_t - log_s)).sum()
        return (log_s.exp() * (log_s - log_t)).sum()

    # ---- the step

    def training_step(self, prompts: Tensor, batch_idx: int) -> Tensor:
        loss = self.distill_loss(prompts)
        if log_is_due(self, steps_ahead=1):
            self.log("loss/distill", loss.detach(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.stop.objective == "value" and stops(self.stop.advantage.spelled):
            advantage = self.stop.advantage.spelled
            raise ValueError(f"stop.objective=value: with stop.advantage={advantage} nothing learns; choose none")
        learns = self.lam or not stops(self.stop.teacher.spelled)
        return self.optimizer([*self.student.parameters(), *(self.teacher.parameters() if learns else ())])

    # ---- how far the student is from what is to be learnt, and its teacher too

    def validation_step(self, prompts: Tensor, batch_idx: int) -> None:
        log_s, log_t = self.every(self.student), self.every(self.teacher)
        self.log("kl", (log_s.exp() * (log_s - self.labels)).sum(), prog_bar=True)
        self.log("health/kl_teacher", (log_s.exp() * (log_s - log_t)).sum(), prog_bar=True)
        apart, taught = self.labels.exp() - log_s.exp(), log_t.exp() - log_s.exp()
        if self.lam:
            self.log("slope", (apart * taught).sum() / apart.square().sum(), prog_bar=True)

    test_step = validation_step
