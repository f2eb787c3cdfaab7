r"""Attribution: what a transformer does with its own gates is frozen, so that its inputs add up to its logit.

    tokens ──> x ──> norm: x / ‖ ──> attention: ‖ v ──> norm: x / ‖ ──> MLP: h ‖ ──> ... ──> logit ──> explained_logit
                  stop.norm: |x|      stop.attention: A     stop.norm       stop.gate: sigmoid(1.7 h)

Input times gradient adds up to the logit where the logit is linear in the input. A transformer without biases is that
in all but three things: the attention pattern, the denominators of its norms, and the gate h sigmoid(1.7 h) of its MLP.
With these taken for constants (Ali et al. 2022, "XAI for Transformers", arXiv:2202.07304, for pattern and norm)
relevance is conserved, exactly: sum over tokens of x dlogit/dx = logit. Each that is left alive takes its own part
away, the norm most of all: behind norms a scaled input changes nothing, so that x dlogit/dx adds up to nearly 0.

The model itself is trained without any cut, to tell which of two tokens is the more frequent.

    python train.py recipe=attribution                         # right: all of the logit, to 1e-15
    python train.py recipe=attribution stop.norm=none          # broken: all of it is missing

Figures of all arms, three seeds each: docs/recipes/attribution.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import lightning as L
import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from stopgrad import FlowContract, Stops
from stopgrad.lightning.manual import backward, counted, log_is_due

PAPER = "Ali 2022"
# The first choice is the paper's, and the default.
BOUNDARIES = {
    "attention": ["detach", "data", "none", "scale"],
    "norm": ["detach", "data", "none", "scale"],
    "gate": ["detach", "data", "none", "scale"],
}
SWITCHES = {}
METRICS = {
    "conservation_error": {"goal": "min", "margin": 0.005, "broken_above": 0.05},  # relative to the logits
    "accuracy": {"goal": "max", "margin": 0.02},
}
WITHOUT = {
    "attention": "the relevance of tokens that attention turns to or from is counted twice, or not",
    "norm": "scaling an input changes nothing behind a norm: most of the relevance is lost",
    "gate": "relevance by the slope of the gate and not by its value",
}
SMALL = ["data.batch_size=8", "recipe.width=8"]
FLOW = FlowContract(
    {
        "label_loss": {"embedding": "open", "blocks": "open", "head": "open"},
        "explained_logit": {
            "embedding": "open",
            "stop.attention": "blocked",
            "stop.norm": "blocked",
            "stop.gate": "blocked",
        },
    }
)


def alive(value: Tensor) -> Tensor:
    return value


class Block(nn.Module):
    """Attention and an MLP, each behind a norm, without biases: (B, T, width) to the same.

    Args:
        width: of a token; one head.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor, cut: Mapping[str, Callable[[Tensor], Tensor]]) -> Tensor:
        """``cut``: what becomes of the attention pattern, of a norm's denominator and of the gate."""
        query, key, value = self.qkv(normed(x, cut["norm"])).chunk(3, dim=-1)
        pattern = (query @ key.transpose(1, 2) / query.shape[-1] ** 0.5).softmax(-1)
        x = x + self.out(cut["attention"](pattern) @ value)
        hidden = self.up(normed(x, cut["norm"]))
        return x + self.down(hidden * cut["gate"]((1.702 * hidden).sigmoid()))  # quick GELU


def normed(x: Tensor, cut: Callable[[Tensor], Tensor]) -> Tensor:
    """x over its root mean square."""
    return x / cut((x.square().mean(-1, keepdim=True) + 1e-6).sqrt())


class Attribution(L.LightningModule):
    """A transformer that counts, and the relevance of its inputs, float64.

    Args:
        stop: the chosen strategies, of the relevance; what is trained has no cut.
        optimizer: from parameters to an optimiser.
        vocabulary: of tokens; the first two are counted.
        length: T.
        width: of a token.
        layers: blocks.
    """

    FLOW = FLOW

    def __init__(
        self,
        *,
        stop: Mapping[str, str],
        optimizer: Callable[..., torch.optim.Optimizer],
        vocabulary: PositiveInt = 4,
        length: PositiveInt = 6,
        width: PositiveInt = 16,
        layers: PositiveInt = 2,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.stop = Stops(stop, BOUNDARIES, SWITCHES)
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.head = nn.Linear(width, 1, bias=False)
        self.double()
        self.vocabulary, self.length, self.optimizer = vocabulary, length, optimizer
        self.explained = False  # in this run

    def parameter_groups(self) -> dict[str, nn.Module]:
        return {"embedding": self.embedding, "blocks": self.blocks, "head": self.head}

    # ---- the loss, and what is explained: what this recipe is about

    def tokens(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, T) of normal noise (B, T), and whether the first is more frequent than the second (B,)."""
        tokens = (torch.special.ndtr(noise) * self.vocabulary).long().clamp(0, self.vocabulary - 1)
        return tokens, ((tokens == 0).sum(1) > (tokens == 1).sum(1)).to(self.head.weight)

    def logits(self, x: Tensor, explained: bool) -> Tensor:
        """(B,) of embedded tokens (B, T, width); explained, with the three cuts."""
        crossing = {
            "attention": self.stop.attention.cross,  # the cuts: what decides how much of an input passes is a constant
            "norm": self.stop.norm.cross,
            "gate": self.stop.gate.cross,
        }
        cut = crossing if explained else dict.fromkeys(crossing, alive)
        for block in self.blocks:
            x = block(x, cut)
        return self.head(normed(x, cut["norm"]).mean(1)).squeeze(1)

    def label_loss(self, noise: Tensor) -> Tensor:
        tokens, labels = self.tokens(noise)
        return F.binary_cross_entropy_with_logits(self.logits(self.embedding(tokens), explained=False), labels)

    def explained_logit(self, noise: Tensor) -> Tensor:
        """Sum of the logits (B,), whose gradient at the embedded tokens is to explain them."""
        return self.logits(self.embedding(self.tokens(noise)[0]), explained=True).sum()

    def relevance(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) of embedded tokens (B, T, width): input times gradient; and the logits (B,)."""
        x = x.detach().requires_grad_()
        logits = self.logits(x, explained=True)
        (gradient,) = torch.autograd.grad(logits.sum(), x)
        return (x.detach() * gradient).sum(-1), logits.detach()

    # ---- the step

    def training_step(self, noise: Tensor, batch_idx: int) -> None:
        optimizer = counted(self)
        if not self.explained:
            backward(self, self.explained_logit(noise), "explained_logit")  # to be audited; nothing steps on it
            self.explained = True
        optimizer.zero_grad()
        loss = self.label_loss(noise)
        backward(self, loss, "label_loss")
        optimizer.step()
        if log_is_due(self):
            self.log("loss/label", loss.detach(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters())

    # ---- how much of the logit is explained

    def validation_step(self, noise: Tensor, batch_idx: int) -> None:
        with torch.inference_mode(False), torch.enable_grad():
            tokens, labels = self.tokens(noise.clone())
            relevance, logits = self.relevance(self.embedding(tokens))
        self.log("conservation_error", (relevance.sum(1) - logits).abs().mean() / logits.abs().mean(), prog_bar=True)
        self.log("accuracy", ((logits > 0) == (labels > 0)).double().mean(), prog_bar=True)
        counted_ones = (tokens < 2).to(relevance)
        self.log("health/on_counted", (relevance.abs() * counted_ones).sum() / relevance.abs().sum())

    test_step = validation_step
