r"""GRPO: reinforcement learning of a language model, where the cuts make the loss right and its value tells nothing.

    log pi ──┬──> ‖ ──> log old ──> ratio pi / old ────> ratio A ──────┐      ‖ stop.old_logp: it is 1, and lives
             │          or, in its place, ratio ──> ‖ ──> weight of log pi    ‖ stop.is_weight
             ├──> ‖ ──> pi's mean reward ──> R - b = A ────────────────┼──>   ‖ stop.baseline
             ├──> ‖ ──> k1 = log pi / ref ──> R - beta k1 ──> A        │      ‖ stop.kl_reward
             └──> k1, k2 or k3, weighed by (‖) pi / old ──> beta KL ───┘      ‖ stop.kl_weight: live, but with k2

Shao et al. 2024 (DeepSeekMath, arXiv:2402.03300, eq. 3 and 4): of each prompt's completions, each counts by what it
earns beyond the others. GSPO (arXiv:2507.18071) takes the ratio of whole sequences, CISPO (arXiv:2506.13585) and
truncated importance sampling weigh log pi by a ratio that is cut. Names as in trl's GRPOConfig. A KL divergence, live:

    - beta k1 in the reward, cut       the gradient of KL(pi, ref)
    + beta k1 in the loss              none: the expected score is 0
    + beta k2                          the gradient of KL(pi, ref), although k2 is another number
    + beta k3                          the gradient of KL(ref, pi), the other direction, although k3 is the right number
    + beta (pi/old) k1 or k3           the gradient of KL(pi, ref), off-policy too, if the weight is live
    + beta (pi/old) k2                 the gradient of KL(pi, ref), off-policy too, if the weight is cut

    python train.py recipe=grpo_exact                        # right: every completion listed, ends at Boltzmann's law
    python train.py recipe=grpo_exact stop.old_logp=none     # broken: the gradient is exactly 0
    python train.py recipe=grpo                              # a transformer learns to sort from a score, 15 s

Figures of all arms, three seeds each: docs/recipes/grpo.md.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import lightning as L
import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from recipes.parts.enumerable import boltzmann, rational
from stopgrad import FlowContract, Stops
from stopgrad.lightning.manual import backward, counted, log_is_due

PAPER = "Shao 2024; Zheng 2025; MiniMax 2025"
# The first choice is the papers', and the default.
BOUNDARIES = {
    "old_logp": ["detach", "data", "none"],
    "kl_reward": ["detach", "none"],
    "kl_weight": ["none", "detach"],
    "baseline": ["detach", "none"],
    "is_weight": ["detach", "none"],
    "seq_ratio": ["detach", "none"],
    "inner": ["detach", "none"],
}
METRICS = {
    "reward": {"goal": "max", "margin": 0.02},  # expected
    "boltzmann": {"goal": "min", "margin": 0.01, "broken_above": 0.05},  # total variation from it; .3 to .8 at first
    "gradient_cosine": {"goal": None, "margin": 0.01, "broken_below": 0.01},  # with the exact one, at the start
    "gradient_ratio": {"goal": None, "margin": 0.03},  # of its norm and the exact one's
}
WITHOUT = {
    "old_logp": "the ratio is the constant 1, and nothing is learnt",
    "kl_reward": "the same mean gradient, with noise in it",
    "kl_weight": "cut, k3 is the KL divergence of the other direction (with k2 it is the cut that is right)",
    "baseline": "it cancels the score: nothing is learnt",
    "is_weight": "it teaches pi log pi A: what is rare and rewarded is unlearnt",
    "seq_ratio": "twice the gradient",
    "inner": "no gradient at all",
}
NEEDS = {
    "stop.kl_reward": ["recipe.kl_in=reward"],
    "stop.kl_weight": ["recipe.kl_in=loss", "recipe.use_bias_correction_kl=true"],
    "stop.baseline": ["recipe.baseline=policy"],
    "stop.is_weight": ["recipe.loss_type=cispo"],
    "stop.seq_ratio": ["recipe.importance_sampling_level=sequence_token"],
    "stop.inner": ["recipe.importance_sampling_level=sequence_token"],
}
EXEMPT = {"ranks": "each rank writes completions of its own"}
SMALL = ["data.batch_size=2"]
FLOW = FlowContract({"grpo_loss": {"policy": "open", "stop.old_logp": "blocked"}})


class Rollout(NamedTuple):
    """G completions of up to T tokens for each of P prompts."""

    prompts: Tensor  # (P, ...)
    tokens: Tensor  # (P, G, T)
    mask: Tensor  # (P, G, T) which tokens are there
    weights: Tensor  # (P, G) of each in the mean; they sum to 1 over G
    rewards: Tensor  # (P, G)
    ref: Tensor  # (P, G, T) log ref(token)
    old: Tensor | None  # (P, G, T) log of the policy that wrote them; None: it is the one that learns


class GRPO(L.LightningModule):
    """A policy over completions, learned in manual optimisation from what they earn.

    Args:
        stop: the chosen strategies.
        policy: makes a language model (recipes/parts/enumerable.py says what it must do).
        reward: (prompts, tokens, mask) to (P, G).
        optimizer: from parameters to an optimiser.
        num_generations: G; None: every completion, each weighed by its probability.
        steps_per_generation: after which the policy that writes is made the one that learns.
        importance_sampling_level: of the ratio: each ``token`` (GRPO), the ``sequence``, per token in the geometric
            mean (GSPO), its token form ``sequence_token``, or the ``trajectory``: the ratio of completions itself.
        loss_type: ``grpo``: mean over a completion's tokens; ``dr_grpo``: their sum over T; ``cispo``: log pi, weighed.
        epsilon, epsilon_high: the ratio counts up to 1 - epsilon and 1 + epsilon_high; None: any.
        beta: of the KL divergence from the reference.
        kl_in: ``loss``, or ``reward``: k1, which the reward is lessened by.
        kl_estimator: in the loss, with d = log pi / ref: d, d^2 / 2, or exp(-d) - 1 + d.
        use_bias_correction_kl: weigh it by pi / old.
        baseline: mean reward of the ``group``, or of the ``policy``, which the group is reweighed to.
        scale_rewards: divide what is left by the group's standard deviation.
        reference: a ``copy`` of the policy at the start, or ``drawn`` anew.
    """

    def __init__(
        self,
        *,
        stop: Mapping[str, str],
        policy: Callable[[], Any],
        reward: Callable[..., Any],
        optimizer: Callable[..., torch.optim.Optimizer],
        num_generations: PositiveInt | None = None,
        steps_per_generation: PositiveInt = 1,
        importance_sampling_level: Literal["token", "sequence", "sequence_token", "trajectory"] = "token",
        loss_type: Literal["grpo", "dr_grpo", "cispo"] = "grpo",
        epsilon: NonNegativeFloat | None = 0.2,
        epsilon_high: NonNegativeFloat | None = 0.2,
        beta: NonNegativeFloat = 0.0,
        kl_in: Literal["loss", "reward"] = "loss",
        kl_estimator: Literal["k1", "k2", "k3"] = "k3",
        use_bias_correction_kl: bool = False,
        baseline: Literal["group", "policy"] = "group",
        scale_rewards: bool = False,
        reference: Literal["copy", "drawn"] = "copy",
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.stop = Stops(stop, BOUNDARIES)
        self.policy = policy()
        self.reference = (policy() if reference == "drawn" else copy.deepcopy(self.policy)).requires_grad_(False)
        self.behaviour = copy.deepcopy(self.policy).requires_grad_(False)
        self.reward = reward
        self.alignment: Tensor
        self.register_buffer("alignment", torch.zeros(2, dtype=torch.float64))  # at the first batch: cosine and ratio
        self.num_generations, self.steps_per_generation = num_generations, steps_per_generation
        self.level, self.loss_type = importance_sampling_level, loss_type
        self.lowest = 0.0 if epsilon is None else 1 - epsilon
        self.highest = math.inf if epsilon_high is None else 1 + epsilon_high
        self.beta, self.kl_in, self.kl_estimator, self.kl_weighed = beta, kl_in, kl_estimator, use_bias_correction_kl
        self.baseline, self.scale_rewards, self.optimizer = baseline, scale_rewards, optimizer
        self.FLOW = self.contract()

    def parameter_groups(self) -> dict[str, nn.Module]:
        return {"policy": self.policy}

    def contract(self) -> FlowContract:
        """What the loss must and must not reach: of the boundaries, those that it crosses."""
        crossed = {
            "kl_reward": self.kl_in == "reward",
            "baseline": self.baseline == "policy",
            "is_weight": self.loss_type == "cispo",
            "seq_ratio": self.level == "sequence_token",
            "inner": self.level == "sequence_token",
        }
        row = dict(FLOW["grpo_loss"]) | {f"stop.{name}": "blocked" for name, is_there in crossed.items() if is_there}
        if self.kl_in == "loss" and self.kl_weighed:
            row["stop.kl_weight"] = "open"
        return FlowContract({"grpo_loss": row})

    # ---- the loss: what this recipe is about

    def ratio(self, logp: Tensor, old: Tensor, mask: Tensor) -> Tensor:
        """pi / old: (P, G, T), or (P, G, 1) of sequences."""
        gap = logp - old
        if self.level == "token":
            return gap.exp()
        if self.level == "trajectory":
            return gap.sum(-1, keepdim=True).exp()
        whole = (gap.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True)).exp()
        if self.level == "sequence":
            return whole
        # the value is the sequence's, the gradient each token's
        return self.stop.seq_ratio.cross(whole) * (logp - self.stop.inner.cross(logp)).exp()

    def divergence(self, logp: Tensor, old: Tensor, ref: Tensor) -> Tensor:
        """An estimate of KL(pi, ref) (P, G, T), or (P, G, 1) of trajectories."""
        d, gap = logp - ref, logp - old
        if self.level == "trajectory":
            d, gap = d.sum(-1, keepdim=True), gap.sum(-1, keepdim=True)
        estimates = {"k1": lambda: d, "k2": lambda: d.square() / 2, "k3": lambda: (-d).exp() - 1 + d}
        estimate = estimates[self.kl_estimator]()
        if self.kl_weighed:
            estimate = self.stop.kl_weight.cross(gap.exp()) * estimate  # no cut: the weight is half of the gradient
        return estimate

    def advantages(self, rollout: Rollout, logp: Tensor, old: Tensor) -> Tensor:
        """R - b (P, G)."""
        rewards, shares = rollout.rewards, rollout.weights
        if self.kl_in == "reward":
            k1 = self.stop.kl_reward.cross((logp - rollout.ref).sum(-1))  # the cut: earned, as all else is
            rewards = rewards - self.beta * k1
        if self.baseline == "policy":
            shares = self.stop.baseline.cross(shares * (logp - old.detach()).sum(-1).exp())  # the cut: taken from A
        gains = rewards - (shares * rewards).sum(-1, keepdim=True)
        if self.scale_rewards:
            gains = gains / ((rollout.weights * gains.square()).sum(-1, keepdim=True).sqrt() + 1e-4)
        return gains

    def grpo_loss(self, rollout: Rollout) -> Tensor:
        logp = self.policy(rollout.prompts, rollout.tokens, rollout.mask)
        old = rollout.old
        if old is None:
            old = self.stop.old_logp.cross(logp)  # the cut: the ratio is 1, and lives
        ratio, gains = self.ratio(logp, old, rollout.mask), self.advantages(rollout, logp, old)[..., None]
        if self.loss_type == "cispo":
            weights = self.stop.is_weight.cross(ratio.clamp(max=self.highest))  # the cut: it weighs, and is not learnt
            losses = -weights * gains * (logp if ratio.shape == logp.shape else logp.sum(-1, keepdim=True))
        else:
            losses = -torch.minimum(ratio * gains, ratio.clamp(self.lowest, self.highest) * gains)
        if self.beta and self.kl_in == "loss":
            losses = losses + self.beta * self.divergence(logp, old, rollout.ref)
        return (rollout.weights * self.over_tokens(losses, rollout.mask)).sum(-1).mean()

    def over_tokens(self, losses: Tensor, mask: Tensor) -> Tensor:
        """(P, G) of a completion, from (P, G, T), or from (P, G, 1) that are of all its tokens already."""
        if self.level == "trajectory":
            return losses.squeeze(-1)
        summed = (losses * mask).sum(-1)
        return summed / mask.sum(-1) if self.loss_type == "grpo" else summed / mask.shape[-1]

    # ---- writing, and the step

    @torch.no_grad()
    def collect(self, prompts: Tensor) -> Rollout:
        """Completions for prompts (P, ...), and what they earn."""
        on_policy = self.steps_per_generation == 1
        writer = self.policy if on_policy else self.behaviour
        if self.num_generations is None:
            tokens, mask = writer.everything(prompts)
            weights = writer(prompts, tokens, mask).sum(-1).exp()
        else:
            tokens, mask = writer.generate(prompts, self.num_generations)
            weights = torch.full(tokens.shape[:2], 1 / self.num_generations, device=tokens.device)
        old = None if on_policy else writer(prompts, tokens, mask)
        ref = self.reference(prompts, tokens, mask) if self.beta else weights.new_zeros(tokens.shape)
        return Rollout(prompts, tokens, mask, weights, self.reward(prompts, tokens, mask), ref, old)

    def training_step(self, prompts: Tensor, batch_idx: int) -> None:
        if self.steps_per_generation > 1 and self.global_step % self.steps_per_generation == 0:
            self.behaviour.load_state_dict(self.policy.state_dict())
        optimizer, rollout = counted(self), self.collect(prompts)
        if self.global_step == 0 and self.num_generations is None:
            self.alignment.copy_(self.aligned(rollout))
        loss = self.grpo_loss(rollout)
        optimizer.zero_grad()
        backward(self, loss, "grpo_loss")
        optimizer.step()
        if log_is_due(self):
            earned = (rollout.weights * rollout.rewards).sum(-1).mean()
            self.log_dict({"loss/grpo": loss.detach(), "training_reward": earned}, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.policy.parameters())

    # ---- which way it goes, and where it must end

    def exactly(self, prompts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log pi, log ref and R (N,) of every completion of the first prompt."""
        tokens, mask = self.policy.everything(prompts[:1])
        logs = [each(prompts[:1], tokens, mask).sum(-1)[0] for each in (self.policy, self.reference)]
        return logs[0], logs[1], self.reward(prompts[:1], tokens, mask)[0]

    def aligned(self, rollout: Rollout) -> Tensor:
        """(2,): of the loss's gradient and the exact one of E[R] - beta KL(pi, ref): cosine and ratio of norms."""
        logp, ref, rewards = self.exactly(rollout.prompts)
        objective = (logp.exp() * (rewards - self.beta * (logp - ref))).sum()
        found, exact = (
            torch.cat([g.flatten() for g in torch.autograd.grad(each, [*self.policy.parameters()])])
            for each in (-self.grpo_loss(rollout), objective)
        )
        return torch.stack([torch.cosine_similarity(found, exact, dim=0), found.norm() / exact.norm()])

    def validation_step(self, prompts: Tensor, batch_idx: int) -> None:
        if self.num_generations is not None:
            tokens, mask = self.policy.generate(prompts, 1, greedily=True)
            rewards = self.reward(prompts, tokens, mask)
            self.log("reward", rewards.mean(), prog_bar=True)
            self.log("solved", (rewards == 1).to(rewards).mean(), prog_bar=True)
            return
        logp, ref, rewards = self.exactly(prompts)
        self.log("reward", (logp.exp() * rewards).sum(), prog_bar=True)
        self.log("kl", (logp.exp() * (logp - ref)).sum())
        self.log_dict({"gradient_cosine": self.alignment[0], "gradient_ratio": self.alignment[1]})
        for law in (boltzmann, rational) if self.beta else ():
            apart = (logp.exp() - law(ref.exp(), rewards, self.beta)).abs().sum() / 2
            self.log(law.__name__, apart, prog_bar=law is boltzmann)

    test_step = validation_step
