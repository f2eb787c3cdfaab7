r"""Contrastive: the batch is spread over shards, and the features that come from the others must be left uncut.

    images ──> f ──> own features ──────────────────────────┐
                  └──> gathered from the other shards ─ ‖ ──┼──> contrastive_loss     ‖ stop.gathered: none is right
    texts ──> g ───> own features, and gathered ────────────┘
    chunks ──> f, g ──> first features ─ ‖ ──> d loss / d features ──> weighs those of a second pass     ‖ stop.chunks

CLIP (Radford et al. 2021, arXiv:2103.00020, figure 3): each of N images is told apart from the other texts, each text
from the other images, as one classification by cosine similarity. Each of W shards computes the loss of the whole
matrix (global) or of its own rows (local), and the mean of the shards' gradients is taken. All have the same negatives:

    gathered with gradient, either loss     the gradient of the whole batch
    gathered without, loss global           1 / W of it: each pair is taught by its own shard alone
    gathered without, loss local            another direction: a feature is taught as a row, and never as a column
    own shard only                          the gradient of another loss, with N / W - 1 negatives

On real ranks all_gather is the differentiable one: its backward sums over ranks, data parallelism divides by W, and no
factor is missing. GradCache (Gao et al. 2021, arXiv:2101.06983): features chunk by chunk without a graph, the loss's
gradient with respect to them kept, and each chunk computed again to meet it; the whole batch's gradient, for the
towers' graph of one chunk. Were the first features live, their gradient would be differentiated as well.

    python train.py recipe=contrastive                                           # right: cosine 1, norm 1.00x
    python train.py recipe=contrastive stop.gathered=detach                      # broken: norm .2500x
    python train.py recipe=contrastive stop.gathered=detach stop.loss=local      # broken: another direction
    python train.py recipe=contrastive stop.memory=cached                        # GradCache: right, a chunk at a time

Figures of all arms, three seeds each: docs/recipes/contrastive.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import lightning as L
import torch
import torch.distributed as dist
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F

from stopgrad import FlowContract, Stops
from stopgrad.cuts.strategies import stops
from stopgrad.lightning.manual import backward, counted, log_is_due

PAPER = "Radford 2021; Gao 2021"
# The first choice is the right one, and the default.
BOUNDARIES = {
    "gathered": ["none", "detach", "no_grad", "data", "scale"],
    "chunks": ["no_grad", "detach", "data", "none"],
}
SWITCHES = {
    "negatives": ["all", "own"],  # own: of the own shard alone
    "loss": ["global", "local"],  # of the whole matrix, or of a shard's own rows
    "memory": ["whole", "cached"],  # cached: GradCache
}
METRICS = {
    "accuracy": {"goal": "max", "margin": 0.02},  # of 256 held-out images, those whose text is the nearest
    # With the gradient of the whole batch. Right is 1; of another direction, at most .992 on 40 seeds.
    "gradient_cosine": {"goal": None, "margin": 0.001, "broken_below": 0.992},
    "gradient_ratio": {"goal": None, "margin": 0.01, "broken_below": 0.3, "broken_above": 1.8},  # of norms; 1 is right
}
WITHOUT = {
    "gathered": "the only cut here that must be absent: with it 1/W of the gradient, or another direction",
    "chunks": "the cached gradient is differentiated too: twice too long, and turned",
    "negatives": "of the own shard, another loss: what gradient accumulation gives",
    "loss": "local, the same gradient for 1/W of the matrix, if what is gathered is not cut",
    "memory": "cached, the same gradient for the towers' graph of one chunk, and a second forward",
}
REFUSES = {"compile=update": "its gradients are taken apart, a shard at a time"}
NEEDS = {"stop.chunks": ["stop.memory=cached"]}
SMALL = ["data.batch_size=8", "recipe.chunk_size=2"]  # of which each of two ranks has two shards of two pairs
ROW = {"image": "open", "text": "open"}
FLOW = FlowContract({"contrastive_loss": ROW | {"stop.gathered": "open"}})
CACHED = FlowContract({"contrastive_loss": ROW | {"stop.chunks": "blocked"}})
ALONE = FlowContract({"contrastive_loss": ROW})


def info_nce(rows: Tensor, columns: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Mean of both directions, of features (2, R, E) against (2, C, E); column ``targets`` (R,) belongs to a row."""
    logits = rows @ columns.flip(0).mT / temperature  # images against texts, and texts against images
    return torch.stack([F.cross_entropy(each, targets) for each in logits]).mean()


class Contrastive(L.LightningModule):
    """Two towers of one layer each, taught to meet, in manual optimisation; in float64.

    Args:
        stop: the chosen strategies and switches.
        features: of an image and of a text.
        optimizer: from parameters to an optimiser.
        width: E, of the embedding.
        temperature: of the softmax.
        shards: W, that all ranks together play: each the same number. A rank's shard k are its pairs k, k + W, ...
        chunk_size: pairs whose graph is held at one time, of ``stop.memory=cached``.
    """

    def __init__(
        self,
        *,
        stop: Mapping[str, str],
        features: PositiveInt,
        optimizer: Callable[..., torch.optim.Optimizer],
        width: PositiveInt = 8,
        temperature: PositiveFloat = 0.2,
        shards: PositiveInt = 4,
        chunk_size: PositiveInt = 8,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.stop = Stops(stop, BOUNDARIES, SWITCHES)
        self.image = nn.Sequential(nn.Linear(features, width), nn.Tanh()).double()
        self.text = nn.Sequential(nn.Linear(features, width), nn.Tanh()).double()
        self.temperature, self.shards, self.chunk_size, self.optimizer = temperature, shards, chunk_size, optimizer
        alone = shards == 1 or self.stop.negatives == "own"
        self.FLOW = CACHED if self.stop.memory == "cached" else ALONE if alone else FLOW

    def parameter_groups(self) -> dict[str, nn.Module]:
        return {"image": self.image, "text": self.text}

    def embed(self, images: Tensor, texts: Tensor) -> Tensor:
        """(2, B, E), of length 1."""
        return F.normalize(torch.stack([self.image(images), self.text(texts)]), dim=-1)

    # ---- the loss: what this recipe is about

    def split(self, features: Tensor, ranks: int) -> list[Tensor]:
        """A rank's features (2, B, E) in its shards."""
        mine = self.shards // ranks
        if self.shards % ranks or features.shape[1] % mine:
            raise ValueError(
                f"recipe.shards={self.shards}: {ranks} ranks of {features.shape[1]} pairs cannot share them"
            )
        return [features[:, k::mine] for k in range(mine)]

    def gather(self, features: Tensor, ranks: int) -> list[Tensor]:
        """The features (2, B / W, E) of every shard of every rank; with gradient, their backward sums over ranks."""
        everyone = all_gather(features) if ranks > 1 else [features]
        for rank in everyone:
            if ranks > 1 and rank.requires_grad:  # over gloo, its backward mixes up the elements of a transposed one
                rank.register_hook(lambda gradient: None if gradient is None else gradient.contiguous())
        return [shard for rank in everyone for shard in self.split(rank, ranks)]

    def shard_losses(self, features: Tensor, ranks: int) -> Iterator[Tensor]:
        """Of features (2, B, E), those of the shards that this rank plays."""
        own, gathered = self.split(features, ranks), []
        if self.stop.negatives == "all":
            gathered = self.stop.gathered(self.gather, features, ranks)  # no cut here: every shard's loss teaches all
        first = len(own) * dist.get_rank() if ranks > 1 else 0
        for number, rows in enumerate(own, start=first):
            columns = [*gathered[:number], rows, *gathered[number + 1 :]]
            whole = torch.cat(columns if gathered else [rows], dim=1)
            pairs = torch.arange(whole.shape[1], device=rows.device)
            if gathered and self.stop.loss == "local":
                yield info_nce(rows, whole, pairs.tensor_split(len(gathered))[number], self.temperature)
            else:
                yield info_nce(whole, whole, pairs, self.temperature)

    def parts(self, images: Tensor, texts: Tensor, ranks: int) -> Iterator[Tensor]:
        """The loss in parts whose gradients add up: one, or with cached memory one a chunk, made when asked for."""
        if self.stop.memory == "whole":
            yield torch.stack(list(self.shard_losses(self.embed(images, texts), ranks))).mean()
            return
        chunks = list(zip(images.split(self.chunk_size), texts.split(self.chunk_size), strict=True))
        features = self.stop.chunks(self.embed_each, chunks)  # the cut: what is kept of the first pass is numbers
        features, live = features.requires_grad_(), not stops(self.stop.chunks.spelled)
        loss = torch.stack(list(self.shard_losses(features, ranks))).mean()
        (cache,) = torch.autograd.grad(loss, features, create_graph=live)
        met = zip(chunks, cache.split(self.chunk_size, dim=1), strict=True)
        again = ((self.embed(*chunk) * gradient).sum() for chunk, gradient in met)
        valued = (part - part.detach() + loss.detach() / len(chunks) for part in again)
        yield from [torch.stack(list(valued)).sum()] if live else valued  # live, all share one graph

    def embed_each(self, chunks: Sequence[Sequence[Tensor]]) -> Tensor:
        return torch.cat([self.embed(*chunk) for chunk in chunks], dim=1)

    def contrastive_loss(self, batch: Sequence[Tensor]) -> Tensor:
        """The mean over the shards that this rank plays, of images and texts (B, D)."""
        return torch.stack(list(self.parts(*batch, ranks=world_size()))).sum()

    # ---- a backward for each part, and the step

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        optimizer, loss = counted(self), torch.zeros((), dtype=torch.float64, device=self.device)
        optimizer.zero_grad()
        for part in self.parts(*batch, ranks=world_size()):
            backward(self, part, "contrastive_loss")
            loss += part.detach()
        optimizer.step()
        if log_is_due(self):
            self.log("loss/contrastive", loss, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters())

    # ---- what is retrieved, and how far the gradient is from that of the whole batch

    def aligned(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Of the gradient, all shards played here, and the exact one: their cosine, and the ratio of their norms."""
        features = self.embed(images, texts)
        exact = info_nce(features, features, torch.arange(len(images), device=self.device), self.temperature)
        losses = (torch.stack(list(self.parts(images, texts, ranks=1))).sum(), exact)
        found, wanted = (nn.utils.parameters_to_vector(torch.autograd.grad(x, list(self.parameters()))) for x in losses)
        return torch.cosine_similarity(found, wanted, dim=0), found.norm() / wanted.norm()

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        images, texts = self.embed(*batch)
        nearest = (images @ texts.T).argmax(1)
        self.log("accuracy", (nearest == torch.arange(len(images), device=self.device)).double().mean(), prog_bar=True)
        with torch.inference_mode(False), torch.enable_grad():
            few = (part[: 8 * self.shards].clone() for part in batch)  # Lightning's own are inference tensors
            self.log_dict(dict(zip(("gradient_cosine", "gradient_ratio"), self.aligned(*few), strict=True)))

    test_step = validation_step


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
