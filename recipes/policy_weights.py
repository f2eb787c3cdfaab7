r"""Policy weights: an importance weight says how much a sample counts, and must not be a way to the policy.

    x, a ──> log pi(a|x) ──┬───────────────────────────> log pi ──┐
                           │                                      ├──> policy_loss = -w A log pi
                           └──> w = pi / mu ──> min(w, c) ──‖──> w┘     ‖ stop.weights: w weighs, and is not learnt
    r ──> A = r - b ──────────────────────────────────────> A ────┘

Off-policy policy gradient: actions by an older policy mu, A log pi weighted by w. Capped and cut, w is V-trace's rho
(Espeholt et al. 2018, arXiv:1802.01561, eq. 1 and section 4.2) and CISPO's (MiniMax 2025, arXiv:2506.13585, eq. 4).
The gradient of a sample, with a = 0 where w is cut, 1 where it is not, and between them scale:a, is

    -w A (1 + a log pi) grad log pi

So without the cut every action less likely than 1/e is taught the wrong way round: at ten even choices by
1 + log .1 = -1.30, at a hundred thousand by -10.5. The policy learns, soundly, never to do what is rewarded.
stop.objective=ratio is the other right answer: -w A, no logarithm, and w live, since it is the only way (PPO's
objective before its clip; on-policy DiCE's, Foerster et al. 2018, arXiv:1802.05098). It has the same gradient.

    python train.py recipe=policy_weights                                           # right: reward .10 -> .94, 3 s
    python train.py recipe=policy_weights stop.weights=none                         # broken: .01
    python train.py recipe=policy_weights stop.weights=none stop.objective=ratio    # right again

Figures of all arms, three seeds each: docs/recipes/policy_weights.md.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import lightning as L
import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from recipes.parts.labels import check_labels
from recipes.parts.networks import mlp
from stopgrad import FlowContract, Stops
from stopgrad.lightning.manual import backward, counted, log_is_due
from stopgrad.runner.samples import add_grid

PAPER = "Espeholt 2018; MiniMax 2025"
# The first choice is the papers', and the default.
BOUNDARIES = {"weights": ["detach", "no_grad", "detach_", "data", "none", "scale", "reverse"]}
SWITCHES = {"objective": ["log", "ratio"]}  # -w A log pi, or -w A
METRICS = {
    "reward": {"goal": "max", "margin": 0.02, "broken_below": 0.1},  # expected; even choices get .1
    "gradient_cosine": {"goal": None, "margin": 0.01, "broken_below": 0.0},  # with the exact one, at the start
    "gradient_ratio": {"goal": None, "margin": 0.03},  # of its norm and the exact one's
}
WITHOUT = {
    "weights": "what is rewarded is unlearnt, wherever it is less likely than 1/e",
    "objective": "ratio, the weight is the only way to the policy: cut, nothing is learnt",
}
NEEDS = {"stop.objective": ["stop.weights=none"]}
SMALL = ["recipe.width=8", "data.batch_size=16"]
FLOW = FlowContract({"policy_loss": {"policy": "open", "stop.weights": "blocked"}})


class Feedback(NamedTuple):
    """What was seen, done and got; nothing is known of the other actions."""

    images: Tensor  # (B, C, H, W)
    actions: Tensor  # (B,) int64
    rewards: Tensor  # (B,)
    behaviour: Tensor  # (B,) log mu(a|x) of the policy that acted


class PolicyWeights(L.LightningModule):
    """A policy that names images, told of each name whether it was right; older policies act.

    Args:
        stop: the chosen strategies and switches.
        shape: (C, H, W) of an image.
        optimizer: from parameters to an optimiser.
        classes: K, the actions; all are equally likely at the start.
        width: units of the hidden layer.
        refresh: steps after which the policy that acts is made the one that is learnt.
        baseline: b, taken from the reward.
        cap: c, the most that a sample weighs: V-trace's rho-bar, CISPO's 1 + eps_high; None: any weight.
    """

    FLOW = FLOW

    def __init__(
        self,
        *,
        stop: Mapping[str, str],
        shape: Sequence[PositiveInt],
        optimizer: Callable[..., torch.optim.Optimizer],
        classes: PositiveInt = 10,
        width: PositiveInt = 64,
        refresh: PositiveInt = 10,
        baseline: float = 0.0,
        cap: PositiveFloat | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.stop = Stops(stop, BOUNDARIES, SWITCHES)
        last = nn.Linear(width, classes)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.policy = nn.Sequential(nn.Flatten(), *mlp(math.prod(shape), width), nn.ReLU(), last, nn.LogSoftmax(1))
        self.behaviour = copy.deepcopy(self.policy).requires_grad_(False)
        self.alignment: Tensor
        self.register_buffer("alignment", torch.zeros(2))  # at the first batch: cosine and ratio
        self.confusion = torch.zeros(classes, classes)
        self.classes, self.refresh, self.baseline = classes, refresh, baseline
        self.cap, self.optimizer = cap or math.inf, optimizer

    def parameter_groups(self) -> dict[str, nn.Module]:
        return {"policy": self.policy}

    # ---- the loss: what this recipe is about

    def importance(self, log_probs: Tensor, behaviour: Tensor) -> Tensor:
        return (log_probs - behaviour).exp().clamp(max=self.cap)

    def losses(self, feedback: Feedback) -> Tensor:
        """Of each sample (B,)."""
        log_probs = self.policy(feedback.images).gather(1, feedback.actions[:, None]).squeeze(1)
        weights = self.stop.weights(self.importance, log_probs, feedback.behaviour)  # the cut: weighed, not learnt
        gains = weights * (feedback.rewards - self.baseline)
        return -gains * log_probs if self.stop.objective == "log" else -gains

    def policy_loss(self, feedback: Feedback) -> Tensor:
        return self.losses(feedback).mean()

    # ---- acting, and the step

    @torch.no_grad()
    def collect(self, batch: Sequence[Tensor]) -> Feedback:
        """An action of the older policy for each image, and whether it is the label."""
        images, labels = batch
        log_probs = self.behaviour(images)  # (B, K)
        actions = (log_probs - (-torch.rand_like(log_probs).log()).log()).argmax(1)  # Gumbel noise: a sample
        taken = log_probs.gather(1, actions[:, None]).squeeze(1)
        return Feedback(images, actions, (actions == labels).to(taken), taken)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        if self.global_step == 0:
            self.alignment.copy_(self.aligned(batch))
        if self.global_step % self.refresh == 0:
            self.behaviour.load_state_dict(self.policy.state_dict())
        optimizer, feedback = counted(self), self.collect(batch)
        loss = self.policy_loss(feedback)
        optimizer.zero_grad()
        backward(self, loss, "policy_loss")
        optimizer.step()
        if log_is_due(self):
            self.log_dict({"loss/policy": loss.detach(), "training_reward": feedback.rewards.mean()}, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        weights = self.stop.weights.spelled
        if self.stop.objective == "ratio" and weights in ("detach", "no_grad", "detach_", "data"):
            raise ValueError(f"stop.objective=ratio: with stop.weights={weights} nothing learns; add stop.weights=none")
        return self.optimizer(self.policy.parameters())

    # ---- which way it goes, and how far

    def aligned(self, batch: Sequence[Tensor]) -> Tensor:
        """(2,): of the loss's gradient, its mean over all actions, and the exact one: their cosine and ratio of norms.

        The exact one is that of the expected reward, over images (B, C, H, W) with labels (B,).
        """
        images, labels = batch
        log_probs = self.policy(images)  # (B, K)
        actions = torch.arange(self.classes, device=images.device).repeat(len(images))
        right = (actions == labels.repeat_interleave(self.classes)).to(log_probs)
        every = Feedback(images.repeat_interleave(self.classes, 0), actions, right, log_probs.detach().flatten())
        loss = (every.behaviour.exp() * self.losses(every)).sum() / len(images)
        reward = log_probs.exp().gather(1, labels[:, None]).mean()
        found, exact = (
            torch.cat([gradient.flatten() for gradient in torch.autograd.grad(each, list(self.policy.parameters()))])
            for each in (-loss, reward)
        )
        return torch.stack([torch.cosine_similarity(found, exact, dim=0), found.norm() / exact.norm()])

    def check_data(self, data: L.LightningDataModule) -> None:
        """Refuse, before a run, a batch without labels, or labels that no action names."""
        check_labels(data, self.classes, "source", "target")

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        _, _, images, labels = batch  # of the source domain
        probs = self.policy(images).exp()  # (N, K)
        self.log("reward", probs.gather(1, labels[:, None]).mean(), prog_bar=True)
        self.log("accuracy", (probs.argmax(1) == labels).float().mean())
        self.log("health/entropy", -torch.special.xlogy(probs, probs).sum(1).mean())
        self.log_dict({"gradient_cosine": self.alignment[0], "gradient_ratio": self.alignment[1]})
        self.confusion = torch.stack([probs[labels == k].mean(0) for k in range(self.classes)])

    test_step = validation_step

    def on_validation_end(self) -> None:
        add_grid(self.logger, "confusion", self.sample(1), self.global_step)

    def sample(self, n: int) -> Tensor:
        """One picture (1, 1, K, K): how likely images of a label, a row, get each name; white is surely."""
        return self.confusion[None, None].nan_to_num() * 2 - 1
