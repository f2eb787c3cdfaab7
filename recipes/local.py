r"""Local learning: each block has a loss of its own, and no gradient goes from block to block.

    x ──> block_1 ──> ‖ ──> block_2 ──> ‖ ──> block_3 ──> ‖ ──> block_4       ‖ stop.blocks: each is on its own
             └─> head_1        └─> head_2        └─> head_3        └─> head_4
                 auxiliary_loss: the first three heads                 └─> final_loss

Greedy layerwise training (Belilovsky, Eickenberg & Oyallon 2019, arXiv:1812.11446; all layers at once: 2020,
arXiv:1901.08164). Cut between blocks, each learns from its own head alone. Uncut, the same losses are deep supervision
(Lee et al. 2015, arXiv:1409.5185), and the last alone is ordinary training (stop.losses=last). Cut and with the last
loss alone, the last block learns on random features.

The cut saves nothing by itself: bytes are saved only where each block's backward follows its forward, so that one
block's graph is there at a time (stop.backward=each). Without the cut that is an error: the second backward wants what
the first has freed.

    python train.py recipe=local                        # right: .97 of the digits, 1,072 bytes an image
    python train.py recipe=local stop.blocks=none stop.backward=together stop.losses=last     # .97, 2,352 bytes
    python train.py recipe=local stop.losses=last       # broken: random features

Figures of all arms, three seeds each: docs/recipes/local.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import lightning as L
import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.parts.labels import check_labels
from stopgrad import FlowContract, Stops
from stopgrad.audits.retention import graph_size
from stopgrad.lightning.manual import backward, counted, log_is_due

PAPER = "Belilovsky 2019, 2020"
# The first choice is the paper's, and the default.
BOUNDARIES = {"blocks": ["detach", "data", "none", "scale", "reverse"]}
SWITCHES = {
    "losses": ["every", "last"],  # the heads that teach
    "backward": ["each", "together"],  # each: a block's backward as soon as its loss is there
}
# A last block on random features names fewer than .9 of the digits right.
METRICS = {"accuracy": {"goal": "max", "margin": 0.02, "broken_below": 0.93}}
WITHOUT = {
    "blocks": "deep supervision: the same accuracy, for the graph of all blocks",
    "losses": "the last alone, behind cuts: random features",
    "backward": "together, nothing is saved, whatever is cut",
}
REFUSES = {"compile=update": "its losses come one by one out of a generator"}
NEEDS = {"stop.blocks": ["stop.backward=together"]}
SMALL = ["recipe.width=8", "data.batch_size=16"]
LAST = {"final_loss": {"last": "open", "earlier": "blocked", "stop.blocks": "blocked"}}
FLOW = FlowContract(LAST | {"auxiliary_loss": {"earlier": "open", "last": "blocked", "stop.blocks": "blocked"}})
FINAL = FlowContract(LAST)


class Local(L.LightningModule):
    """A classifier of images by blocks of a linear layer and ReLU, with a linear head each.

    Args:
        stop: the chosen strategies and switches.
        shape: (C, H, W) of an image.
        optimizer: from parameters to an optimiser; it holds all blocks.
        classes: outputs of each head.
        depth: blocks, at least 3, so that a boundary lies between two earlier ones.
        width: outputs of a block.
    """

    def __init__(
        self,
        *,
        stop: Mapping[str, str],
        shape: Sequence[PositiveInt],
        optimizer: Callable[..., torch.optim.Optimizer],
        classes: PositiveInt = 10,
        depth: PositiveInt = 4,
        width: PositiveInt = 128,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        if depth < 3:
            raise ValueError(f"recipe.depth={depth}: choose 3 or more")
        self.stop = Stops(stop, BOUNDARIES, SWITCHES)
        self.FLOW = FLOW if self.stop.losses == "every" else FINAL
        sizes = [math.prod(shape), *[width] * (depth - 1)]
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(size, width), nn.ReLU()) for size in sizes)
        self.heads = nn.ModuleList(nn.Linear(width, classes) for _ in sizes)
        self.classes, self.optimizer = classes, optimizer

    def parameter_groups(self) -> dict[str, nn.Module]:
        earlier = nn.ModuleList([*self.blocks[:-1], *self.heads[:-1]])
        return {"earlier": earlier, "last": nn.ModuleList([self.blocks[-1], self.heads[-1]])}

    # ---- the losses: what this recipe is about

    def losses(self, batch: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Block by block, that of its head, of images (B, C, H, W) and labels (B,); or of the last head alone."""
        images, labels = batch
        features = images.flatten(1)
        for number, (block, head) in enumerate(zip(self.blocks, self.heads, strict=True), start=1):
            if number > 1:
                features = self.stop.blocks.cross(features)  # the cut: a block's loss must not teach those before it
            features = block(features)
            if number == len(self.blocks):
                yield "final_loss", F.cross_entropy(head(features), labels)
            elif self.stop.losses == "every":
                yield "auxiliary_loss", F.cross_entropy(head(features), labels)

    def together(self, batch: Sequence[Tensor]) -> list[tuple[str, Tensor]]:
        """The sum of all losses but the last, if there are others, and the last."""
        *others, final = self.losses(batch)
        if not others:
            return [final]
        return [("auxiliary_loss", torch.stack([loss for _, loss in others]).sum()), final]

    def auxiliary_loss(self, batch: Sequence[Tensor]) -> Tensor:
        return self.together(batch)[0][1]

    def final_loss(self, batch: Sequence[Tensor]) -> Tensor:
        return self.together(batch)[-1][1]

    # ---- one backward a block, or all graphs at once

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        optimizer, each = counted(self), self.stop.backward == "each"
        optimizer.zero_grad()
        for name, loss in self.losses(batch) if each else self.together(batch):
            backward(self, loss, name, retain_graph=not each and name == "auxiliary_loss")
        optimizer.step()
        if log_is_due(self):
            self.log("loss/final", loss.detach(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters())

    # ---- how well it does, and what it keeps

    def check_data(self, data: L.LightningDataModule) -> None:
        """Refuse, before a run, a batch without labels, or labels that the heads have no output for."""
        check_labels(data, self.classes, "source", "target")

    def held_bytes(self, batch: Sequence[Tensor]) -> int:
        """Most bytes that are saved for backward at one time in a step on this batch, beyond parameters."""
        parameters = list(self.parameters())
        if self.stop.backward == "each":
            return max(graph_size(loss, exclude=parameters).bytes for _, loss in self.losses(batch))
        return graph_size(*(loss for _, loss in self.losses(batch)), exclude=parameters).bytes

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        features, labels = batch[0].flatten(1), batch[1]
        for number, (block, head) in enumerate(zip(self.blocks, self.heads, strict=True), start=1):
            features = block(features)
            right = (head(features).argmax(1) == labels).float().mean()
            self.log("accuracy" if number == len(self.blocks) else f"health/accuracy_{number}", right, prog_bar=True)
        with torch.inference_mode(False), torch.enable_grad():
            self.log("held_bytes", self.held_bytes([part.clone() for part in batch]) / len(labels))  # an image

    test_step = validation_step
