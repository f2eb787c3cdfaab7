r"""Truncated BPTT: the state crosses from chunk to chunk, and the gradient does not.

    x[0:k]  ──> recurrent net ──> y[0:k]  ──> recall_loss ──> backward, step
                     │ hidden
                     ‖                                        ‖ stop.hidden: the value crosses, its past does not
                     v
    x[k:2k] ──> recurrent net ──> y[k:2k] ──> recall_loss ──> backward, step

Williams & Peng 1990, "An Efficient Gradient-Based Algorithm for On-Line Training of Recurrent Network Trajectories":
BPTT(h; h') with h = h' = k, the chunk. With L_i the loss of chunk i and s_i the state at its border,

    dL_i/dw = dL_i/dw at s_i held fixed      the cut drops dL_i/ds_i ds_i/dw, all that came about before the border

What lies further back than the chunk's own steps gets no gradient. So a network that must name a symbol again after 12
steps never learns it from chunks of 10, though the state carries everything it would need; from chunks of 20 it
learns it, and then answers across borders too. Resetting the state at the border takes the value away as well. With no
cut, the second chunk's backward enters the graph of the first, which is freed: PyTorch raises.

    python train.py recipe=tbptt                        # right: names 94 in 100
    python train.py recipe=tbptt recipe.chunk=10        # too short for a delay of 12: chance
    python train.py recipe=tbptt stop.hidden=none       # raises at the second chunk

Figures of all arms, three seeds each: docs/recipes/tbptt.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import lightning as L
import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from stopgrad import FlowContract, Stops
from stopgrad.lightning.manual import backward, counted, log_is_due, raw
from stopgrad.runner.samples import add_grid

PAPER = "Williams & Peng 1990"
# The first choice is the usual one, and the default.
BOUNDARIES = {"hidden": ["detach", "detach_", "data", "none"]}
SWITCHES = {"state": ["carried", "reset"]}  # reset: zeros at every border, in training and after
METRICS = {
    "accuracy": {"goal": "max", "margin": 0.02, "broken_below": 0.4},  # of the symbols to recall; chance is .25
}
WITHOUT = {
    "hidden": "the second chunk's backward enters a graph that is freed, and PyTorch raises",
    "state": "reset, what came before the chunk cannot be recalled at all",
}
REFUSES = {
    "stop.hidden=none": "backward through the graph a second time",
    "compile=update": "its losses come one by one out of a generator",
}
SMALL = ["recipe.width=8", "data.length=40", "data.delay=2", "data.batch_size=8"]
FLOW = FlowContract({"recall_loss": {"network": "open", "stop.hidden": "blocked"}})


class Recaller(nn.Module):
    """Symbols (B, T) and a state, or None for zeros, to logits (B, T, S) and the state after them (1, B, width)."""

    def __init__(self, symbols: int, width: int) -> None:
        super().__init__()
        self.recurrent = nn.GRU(symbols, width, batch_first=True)
        self.readout = nn.Linear(width, symbols)

    def forward(self, inputs: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        outputs, after = self.recurrent(inputs, hidden)
        return self.readout(outputs), after


class TBPTT(L.LightningModule):
    """A GRU that recalls symbols, in manual optimisation: a batch of sequences is one update for each chunk.

    Args:
        stop: the chosen strategies and switches.
        symbols: S, how many there are.
        optimizer: from parameters to an optimiser.
        width: of the hidden state.
        chunk: k, steps between two updates, and steps that a gradient goes back at most.
    """

    FLOW = FLOW

    def __init__(
        self,
        *,
        stop: Mapping[str, str],
        symbols: PositiveInt,
        optimizer: Callable[..., torch.optim.Optimizer],
        width: PositiveInt = 64,
        chunk: PositiveInt = 20,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.stop = Stops(stop, BOUNDARIES, SWITCHES)
        self.network = Recaller(symbols, width)
        self.symbols, self.chunk, self.optimizer = symbols, chunk, optimizer

    def parameter_groups(self) -> dict[str, nn.Module]:
        return {"network": self.network}

    # ---- the loss: what this recipe is about

    def chunks(self, inputs: Tensor) -> Iterator[Tensor]:
        """Of one-hot inputs (B, T, S), the logits (B, k, S) of each chunk in turn; the next begins where it ended."""
        hidden = None
        for chunk in inputs.split(self.chunk, dim=1):
            if hidden is not None:
                hidden = self.stop.hidden.cross(hidden)  # the cut: the state is handed on, what made it is not
            if self.stop.state == "reset":
                hidden = None
            logits, hidden = self.network(chunk, hidden)
            yield logits

    def chunk_losses(self, batch: Sequence[Tensor]) -> Iterator[Tensor]:
        """Of symbols and targets (B, T): each chunk's cross entropy, a mean over its steps; unanswerable ones are 0."""
        symbols, targets = batch
        for logits, wanted in zip(self.chunks(self.one_hot(symbols)), targets.split(self.chunk, dim=1), strict=True):
            yield F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum") / wanted.numel()

    def recall_loss(self, batch: Sequence[Tensor]) -> Tensor:
        """The mean over all chunks; an update takes the loss of one."""
        return torch.stack(list(self.chunk_losses(batch))).mean()

    def one_hot(self, symbols: Tensor) -> Tensor:
        return F.one_hot(symbols, self.symbols).to(self.network.readout.weight.dtype)

    # ---- an update a chunk

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """One update for each chunk, the next computed by the new weights; Lightning counts the batch as one step."""
        last, optimizer, updates = counted(self), raw(self), -(-batch[0].shape[1] // self.chunk)
        for update, loss in enumerate(self.chunk_losses(batch), start=1):
            optimizer.zero_grad()
            backward(self, loss, "recall_loss")
            (last if update == updates else optimizer).step()
        if log_is_due(self):
            self.log("loss/recall", loss.detach(), prog_bar=True)  # of the last chunk

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters())

    # ---- what is recalled, and how far a gradient reaches

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        symbols, targets = batch
        logits = torch.cat(list(self.chunks(self.one_hot(symbols))), dim=1)  # (B, T, S)
        right = (logits.argmax(-1) == targets)[targets >= 0]
        self.log("accuracy", right.float().mean(), prog_bar=True)

    test_step = validation_step

    def on_train_end(self) -> None:
        add_grid(self.logger, "reach", self.sample(64), self.global_step)

    def sample(self, n: int) -> Tensor:
        """One picture (1, 1, n, n): is there a gradient from the logits of step t, a row, to the input of step s?

        Black where there is none, white where there is one.
        """
        with torch.inference_mode(False), torch.enable_grad():
            symbols = torch.zeros(1, n, dtype=torch.long, device=self.device)
            inputs = self.one_hot(symbols).requires_grad_()
            logits = torch.cat(list(self.chunks(inputs)), dim=1)[0].sum(-1)  # (n,)
            rows = [torch.autograd.grad(each, inputs, retain_graph=True)[0][0].abs().sum(-1) for each in logits]
        return ((torch.stack(rows) > 0).float() * 2 - 1)[None, None]
