r"""SimSiam: two views of an image must agree, and the view that is agreed with must stay put.

    view 1 ──> encoder ──> z1 ──> predictor ──> p1 ──> ‖ ──┐         ‖ stop.prediction: to see what the other side does
                                                           ├──> view_loss     and the same with the views exchanged
    view 2 ──> teacher ──> z2 ────────────────────> ‖ ─────┘         ‖ stop.target: p1 moves to z2, which stays put

SimSiam: Chen & He 2021, arXiv:2011.10566, algorithm 1: the teacher is the encoder itself, the loss minus the cosine of
p1 and z2. BYOL: Grill et al. 2020, arXiv:2006.07733, eq. 2 and section 3.1: the teacher is a running average of the
encoder, xi <- tau xi + (1 - tau) theta. DINO: Caron et al. 2021, arXiv:2104.14294, algorithm 1: such a teacher, no
predictor, and the cross-entropy of two softmaxes over K outputs, the teacher's centred, by the running mean c of what
it says, and sharpened, by the lower temperature:

    P_t = softmax((t - c) / tau_t),   P_s = softmax(s / tau_s),   loss = -sum P_t log P_s

All views agree where all images have one representation, at the lowest loss of all. Without the cut training ends
there; with it too, without SimSiam's predictor, DINO's centring (one output for all) or sharpening (all outputs alike).

    python train.py recipe=simsiam                               # right: spread .86, kNN .74 of distorted digits
    python train.py recipe=simsiam stop.target=none              # broken: spread .02, kNN .47, at the lowest loss
    python train.py recipe=byol                                  # a running average for a teacher
    python train.py recipe=dino stop.centring=none               # broken: one output for all

Figures of all arms, three seeds each: docs/recipes/simsiam.md.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal

import lightning as L
import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.parts.averages import follow
from recipes.parts.plots import in_the_plane, scatter
from recipes.parts.views import nearest_label, warped
from stopgrad import FlowContract, Stops
from stopgrad.cuts.strategies import CALLS_ONLY
from stopgrad.lightning.manual import backward, counted, data_of, log_is_due
from stopgrad.runner.samples import add_grid

PAPER = "Chen & He 2021; Grill 2020 (BYOL); Caron 2021 (DINO)"
# The first choice is the paper's, and the default.
BOUNDARIES = {
    "target": ["detach", "no_grad", "freeze", "data", "none", "scale", "reverse"],
    "prediction": ["none", "detach"],
}
SWITCHES = {"centring": ["kept", "none"], "sharpening": ["kept", "none"]}  # of DINO's teacher
METRICS = {
    "spread": {"goal": None, "margin": 0.1, "broken_below": 0.3},  # 1 is all over the sphere, 0 a single point
    "knn_accuracy": {"goal": "max", "margin": 0.05},  # chance is .1; the untrained encoder has .46 to .51
    # Of the teacher's answers, over log K. A single output for all images is 0 in both, no preference at all 1.
    "batch_entropy": {"goal": None, "margin": 0.05, "broken_below": 0.5},  # of the mean answer
    "sample_entropy": {"goal": None, "margin": 0.05, "broken_above": 0.9},  # mean over the answers
}
WITHOUT = {
    "target": "every image gets the same representation, at the lowest loss",
    "prediction": "cut, the target moves to an untrained prediction, and less is learnt",
    "centring": "one output for all images",
    "sharpening": "all outputs alike for every image",
}
NEEDS = {"stop.prediction": ["stop.target=none"]}
EXEMPT = {"ranks": "BatchNorm normalises by the rank's own half of the batch"}
SMALL = ["data.batch_size=16"]
FLOW = FlowContract({"view_loss": {"encoder": "open", "stop.prediction": "open", "stop.target": "blocked"}})

Share = Annotated[float, Field(ge=0, le=1)]


def batch_norm(width: int) -> nn.Module:
    """BatchNorm by the statistics of the batch, always: there are no running ones to move twice, or to average."""
    return nn.BatchNorm1d(width, track_running_stats=False)


class SimSiam(L.LightningModule):
    """An encoder, a predictor on it, and a teacher: the encoder itself, or its running average.

    Args:
        stop: the chosen strategies and switches.
        shape: of a sample: (C, H, W) of an image, or (D,).
        optimizer: from parameters to an optimiser.
        hidden: units of the encoder's hidden layers; null for a linear map.
        outputs: d, or DINO's K: of the encoder and of the predictor.
        predictor: units of its hidden layer; null for no predictor.
        decay: tau, of the running average that teaches; null: the encoder is its own teacher.
        objective: ``cosine`` of SimSiam and BYOL, ``cross_entropy`` of DINO.
        warp: of an image in a view: the most it is turned (radians), shifted (of half its width) and scaled.
        noise: standard deviation of what is added in a view.
        student_temperature, teacher_temperature: of DINO; sharpened is what has the lower one.
        centre_decay: of the running mean of DINO's centre.
    """

    FLOW = FLOW
    centre: Tensor  # (K,)

    def __init__(
        self,
        *,
        stop: Mapping[str, str],
        shape: Sequence[PositiveInt],
        optimizer: Callable[..., torch.optim.Optimizer],
        hidden: PositiveInt | None = 256,
        outputs: PositiveInt = 64,
        predictor: PositiveInt | None = 32,
        decay: Share | None = None,
        objective: Literal["cosine", "cross_entropy"] = "cosine",
        warp: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] = (0.5, 0.25, 0.2),
        noise: NonNegativeFloat = 0.0,
        student_temperature: PositiveFloat = 0.1,
        teacher_temperature: PositiveFloat = 0.04,
        centre_decay: Share = 0.9,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.stop = Stops(stop, BOUNDARIES, SWITCHES)
        if self.stop.prediction.spelled == "detach" and "target" not in self.stop.flipped:
            target = self.stop.target.spelled
            raise ValueError(f"stop.prediction=detach: with stop.target={target} nothing learns; add stop.target=none")
        self.encoder = self.make_encoder(math.prod(shape), hidden, outputs)
        self.predictor = nn.Identity()
        if predictor:
            parts = nn.Linear(outputs, predictor), batch_norm(predictor), nn.ReLU(), nn.Linear(predictor, outputs)
            self.predictor = nn.Sequential(*parts)
        self.average: nn.Sequential | None = None if decay is None else copy.deepcopy(self.encoder)
        self.shape, self.decay, self.objective, self.optimizer = shape, decay, objective, optimizer
        self.warp, self.noise = warp, noise
        self.student_temperature, self.centre_decay = student_temperature, centre_decay
        self.teacher_temperature = teacher_temperature if self.stop.sharpening == "kept" else student_temperature
        self.register_buffer("centre", torch.zeros(outputs))
        self.said = torch.zeros(outputs)  # the teacher's mean answer to the last batch

    @staticmethod
    def make_encoder(inputs: int, hidden: int | None, outputs: int) -> nn.Sequential:
        """(B, *shape) to (B, outputs): a backbone, of whose features the kNN is, and a projector."""
        if hidden is None:
            return nn.Sequential(nn.Flatten(), nn.Linear(inputs, outputs))
        backbone = nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        projector = nn.Linear(hidden, hidden), batch_norm(hidden), nn.ReLU(), nn.Linear(hidden, outputs)
        return nn.Sequential(nn.Sequential(*backbone), *projector)

    def parameter_groups(self) -> dict[str, nn.Module]:
        groups: dict[str, nn.Module] = {"encoder": self.encoder, "predictor": self.predictor}
        return {name: group for name, group in groups.items() if any(True for _ in group.parameters())}

    @property
    def teacher(self) -> nn.Module:
        return self.encoder if self.average is None else self.average

    # ---- the loss: what this recipe is about

    def view(self, samples: Tensor) -> Tensor:
        """A random view of each sample (B, *shape)."""
        if samples.ndim == 4:
            samples = warped(samples, *self.warp)
        return samples + self.noise * torch.randn_like(samples) if self.noise else samples

    def view_loss(self, samples: Tensor) -> Tensor:
        """Two views of samples (B, *shape), each to be predicted from the other."""
        views = torch.cat([self.view(samples), self.view(samples)])  # (2B, *shape)
        z = self.encoder(views)
        prediction = self.stop.prediction.cross(self.predictor(z))
        if self.average is None and self.stop.target.strategy not in CALLS_ONLY:
            target = self.stop.target.cross(z)  # the cut: z is there already, and the encoder is its own teacher
        else:
            target = self.stop.target(self.teacher, views)  # the same cut, on a call
        if self.objective == "cross_entropy":
            self.said = target.detach().mean(0)
        return self.distance(prediction, target.roll(len(samples), 0))  # each view against the other one

    def distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Mean over the rows of (N, d): minus the cosine, or the cross-entropy."""
        if self.objective == "cosine":
            return -F.cosine_similarity(prediction, target).mean()
        answers = F.log_softmax(prediction / self.student_temperature, 1)
        return -(self.answers(target) * answers).sum(1).mean()

    def answers(self, outputs: Tensor) -> Tensor:
        """The teacher's softmax (N, K) of its outputs: centred, so that none is always right, and sharpened."""
        centred = outputs - self.centre if self.stop.centring == "kept" else outputs
        return F.softmax(centred / self.teacher_temperature, 1)

    # ---- the step

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        optimizer = counted(self)
        loss = self.view_loss(batch)
        optimizer.zero_grad()
        backward(self, loss, "view_loss")
        optimizer.step()
        if self.average is not None and self.decay is not None:
            follow(self.average, self.encoder, self.decay)
        if self.objective == "cross_entropy":
            self.centre.lerp_(self.said.to(self.centre), 1 - self.centre_decay)
        if log_is_due(self):
            self.log("loss/view", loss.detach(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer([*self.encoder.parameters(), *self.predictor.parameters()])  # never the average

    # ---- has it collapsed, and what has it learnt?

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        directions = F.normalize(self.encoder(batch), dim=1)
        self.log("spread", directions.std(0).mean() * math.sqrt(directions.shape[1]), prog_bar=True)
        if self.objective == "cross_entropy":
            answers = self.answers(self.teacher(batch))
            whole = math.log(answers.shape[1])
            self.log("batch_entropy", torch.special.entr(answers.mean(0)).sum() / whole, prog_bar=True)
            self.log("sample_entropy", torch.special.entr(answers).sum(1).mean() / whole, prog_bar=True)
        if batch.ndim == 4:
            self.log("knn_accuracy", self.knn_accuracy(), prog_bar=True)
        add_grid(self.logger, "representations", self.sample(len(batch)), self.global_step)

    test_step = validation_step

    def knn_accuracy(self) -> Tensor:
        """Share of held-out images, distorted, that the nearest training images name right; the same every time."""
        data, backbone = data_of(self), self.encoder[0]
        distorted = warped(data.held_out_images, *self.warp, generator=torch.Generator().manual_seed(0))
        known, asked = (backbone(images.to(self.device)) for images in (data.images, distorted))
        named = nearest_label(asked, known, data.labels.to(self.device))
        return (named == data.held_out_labels.to(self.device)).float().mean()

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """One picture (1, 3, H, W): held-out samples on the unit sphere, seen from where they spread most."""
        data = data_of(self)
        samples = next(iter(data.val_dataloader()))[:500].to(self.device)
        labels = data.held_out_labels[:500] if hasattr(data, "held_out_labels") else None
        return scatter(in_the_plane(F.normalize(self.encoder(samples), dim=1)), labels)
