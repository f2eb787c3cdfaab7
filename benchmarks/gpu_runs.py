"""Short trainings of a recipe on a device, watched: what benchmarks/gpu.py compares and times."""

from __future__ import annotations

import contextlib
import functools
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.plugins.precision import MixedPrecision
from omegaconf import DictConfig
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from stopgrad import FlowContract
from stopgrad.lightning import FlowAudit
from stopgrad.lightning.manual import scale_of
from stopgrad.lightning.names import loss_being_named
from stopgrad.runner.build import build_recipe, trainer_section
from stopgrad.runner.compiling import compile_networks
from stopgrad.runner.finite import Finite

ROOT = Path(__file__).parents[1]
WARM_UP = 10
NEVER = 10**9
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique", "equal")
DRAWS = (torch.rand, torch.randn, torch.randint, torch.randperm, torch.normal, torch.bernoulli, torch.multinomial)
DRAWS += (torch.rand_like, torch.randn_like, torch.randint_like)


class NoiseOfTheCPU(TorchFunctionMode):
    """What is drawn from the global stream is drawn on the CPU and then moved: the same numbers on every device."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function not in DRAWS or kwargs.get("generator") is not None:
            return function(*args, **kwargs)
        devices = [each.device for each in args if isinstance(each, Tensor)]
        device = kwargs.pop("device", None) or (devices[0] if devices else "cpu")
        return function(*(each.cpu() if isinstance(each, Tensor) else each for each in args), **kwargs).to(device)


class WaitingOperations(TorchDispatchMode):
    """Counts on the CPU the operations after which it would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function.overloadpacket.__name__ in WAITS
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def counted_waits(device: str, into: list[int]) -> Iterator[None]:
    """How often the CPU waits for the device inside, appended to ``into``: on a GPU as torch.cuda counts it."""
    if device == "cpu":
        with WaitingOperations() as counter:
            yield
        into.append(counter.count)
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
    into.append(sum("synchronizing" in str(each.message) for each in caught))


@dataclass
class Trained:
    """What a training left.

    Attributes:
        losses: of each name, its values in order, of the unscaled loss.
        before, after: the floating-point state, on the CPU.
        cells: the state of each cell that the contract names, as ``loss:part``, in the audit's first matrix; and of the
            others, whether gradient arrives.
        norms: of the cells that are reached.
        broken: the cells in which the contract is broken.
        seconds: a step, after the warm-up; None of a run shorter than that.
        waits: in one step that does not log.
        peak: bytes; on a CPU 0.
        scale: of the losses at the end, in fp16.
    """

    losses: dict[str, list[float]] = field(default_factory=dict)
    before: dict[str, Tensor] = field(default_factory=dict)
    after: dict[str, Tensor] = field(default_factory=dict)
    cells: dict[str, str] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    seconds: float | None = None
    waits: int | None = None
    peak: int = 0
    scale: float = 1.0


class Losses(L.Callback):
    """Keeps every loss on the device until the end."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, Tensor]] = []

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        self.kept.append((loss_being_named() or "loss", loss.detach().double() / scale_of(trainer)))

    def read(self) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for name, value in self.kept:
            found.setdefault(name, []).append(value.item())
        return found


class Clock(L.Callback):
    """Seconds of the steps after the warm-up; then, where ``waits``, one more step whose waits are counted."""

    def __init__(self, steps: int, device: str, warm_up: int, waits: bool) -> None:
        self.steps, self.device, self.warm_up, self.count = steps, device, warm_up, waits
        self.done, self.seconds, self.waits = 0, 0.0, []
        self.inside: Any = None

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if self.count and self.done == self.steps:
            self.inside = counted_waits(self.device, self.waits)
            self.inside.__enter__()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.done += 1
        if self.inside is not None:
            self.inside.__exit__(None, None, None)
            trainer.should_stop, self.inside = True, None
        elif self.done in (self.warm_up, self.steps):
            finish(self.device)
            self.seconds = time.perf_counter() - self.seconds


def contract_of(recipe: L.LightningModule) -> FlowContract:
    return FlowContract.of(getattr(recipe, "FLOW", {}))


def finish(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def composed(overrides: Sequence[str], device: str, steps: int, precision: str = "32-true") -> DictConfig:
    """The config of a run of so many steps on the device."""
    trainer = ["trainer=cpu"] if device == "cpu" else ["trainer=gpu"]
    length = [f"trainer.max_steps={steps}", f"cache={ROOT / '.cache'}", f"trainer.precision={precision}"]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose("train", [*overrides, *length, *trainer])


def parts(config: DictConfig) -> tuple[Any, Any]:
    """The recipe, built on the CPU, and its data; nothing is drawn differently for a device."""
    torch.manual_seed(0)
    return build_recipe(config), instantiate(config.data, _convert_="all")


def state(recipe: torch.nn.Module) -> dict[str, Tensor]:
    floating = {name: tensor for name, tensor in recipe.state_dict().items() if tensor.is_floating_point()}
    return {name: tensor.detach().to("cpu", torch.float64, copy=True) for name, tensor in floating.items()}


@torch.no_grad()
def disturb(recipe: torch.nn.Module, part: float) -> None:
    """Change each weight by at most this part of itself."""
    generator = torch.Generator().manual_seed(0)
    for weight in recipe.parameters():
        noise = 2 * torch.rand(weight.shape, generator=generator, dtype=torch.float64) - 1
        weight.copy_(weight * (1 + part * noise))


def scaled(config: DictConfig, first: float | None) -> MixedPrecision | None:
    """fp16 with a scaler of this first scale; on a CPU, where Lightning would take bf16 for it, always."""
    device = "cpu" if config.trainer.accelerator == "cpu" else "cuda"
    if config.trainer.precision != "16-mixed" or (device == "cuda" and first is None):
        return None
    del config.trainer.precision
    return MixedPrecision("16-mixed", device, torch.amp.GradScaler(device, init_scale=first or 2.0**16))


def trained(
    overrides: Sequence[str],
    device: str,
    steps: int,
    *,
    precision: str = "32-true",
    compiled: bool = False,
    audit_every: int | None = None,
    audited: bool = True,
    same_noise: bool = False,
    warm_up: int = WARM_UP,
    waits: bool = False,
    first_scale: float | None = None,
    disturbed: float = 0.0,
) -> Trained:
    """Train as train.py does, without validation and files.

    Args:
        overrides: such as ``recipe=gan``.
        audit_every: audit every so many batches, not the first alone.
        same_noise: draw on the CPU whatever the device, so that two devices can be compared.
        waits: count those of a further step.
        first_scale: of the losses in fp16; by default the scaler's own.
        disturbed: by at most this part of itself each weight is changed before.
    """
    config = composed(overrides, device, steps + 10 * waits, precision)
    recipe, data = parts(config)
    if disturbed:
        disturb(recipe, disturbed)
    found = Trained(before=state(recipe))
    if compiled:
        compile_networks(recipe)
    audit = FlowAudit(audit_every, on_violation="record", watch=False)
    losses, clock = Losses(), Clock(steps, device, min(warm_up, steps - 1), waits)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    if same_noise:
        recipe.training_step = _with_noise_of_the_cpu(recipe.training_step)
    scaler = scaled(config, first_scale)
    with tempfile.TemporaryDirectory() as folder:
        trainer = instantiate(
            trainer_section(config),
            callbacks=[Finite(at_once=False), losses, *([audit] if audited else []), clock],
            plugins=scaler and [scaler],
            default_root_dir=folder,
            limit_val_batches=0,
            log_every_n_steps=NEVER,
            **QUIET,
            _convert_="all",
        )
        torch.manual_seed(1)
        trainer.fit(recipe, data)
    found.losses, found.after = losses.read(), state(recipe)
    if audit.matrix is not None:
        matrix, contract = audit.matrix, contract_of(recipe)
        named = contract.wanted(matrix.losses, matrix.parts, partial=True, unions=matrix.facts.unions)
        for key, cell in matrix.items():
            shut = "not reached" if cell.state in ("blocked", "independent") else cell.state
            found.cells[":".join(key)] = cell.state if key in named else shut
            if cell.state == "open":
                found.norms[":".join(key)] = cell.norm
    found.broken = sorted({f"{each.loss}:{each.part}" for each in audit.violations})
    timed = steps - clock.warm_up
    found.seconds = clock.seconds / timed if timed > 0 else None
    found.waits = clock.waits[0] if clock.waits else None
    found.peak = 0 if device == "cpu" else torch.cuda.max_memory_allocated()
    found.scale = scale_of(trainer)
    return found


def _with_noise_of_the_cpu(step: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(step)
    def inside(*args: Any, **kwargs: Any) -> Any:
        with NoiseOfTheCPU():
            return step(*args, **kwargs)

    return inside


def plain(overrides: Sequence[str], device: str, steps: int) -> float:
    """Seconds a step of a loop that calls the same training_step, without Lightning."""
    recipe, data = parts(composed(overrides, device, 10 * steps))
    recipe.to(device)
    stub: Any = SimpleNamespace(log_every_n_steps=NEVER, global_step=0, max_steps=steps, datamodule=data, world_size=1)
    stub.strategy, stub.global_rank, stub.logger = SimpleNamespace(root_device=torch.device(device)), 0, None
    recipe.trainer = data.trainer = stub
    data.prepare_data()
    data.setup("fit")
    recipe.setup("fit")
    made = recipe.configure_optimizers()
    optimizers = made if isinstance(made, list) else [made]
    for optimizer in optimizers:
        optimizer.optimizer = optimizer  # as Lightning's wrapper holds it
    recipe.optimizers = lambda: optimizers if len(optimizers) > 1 else optimizers[0]
    recipe.manual_backward = lambda loss, **options: loss.backward(**options)
    recipe.log = recipe.log_dict = lambda *args, **kwargs: None
    stub.train_dataloader = data.train_dataloader()
    started = 0.0
    for k, batch in enumerate(stub.train_dataloader):
        stub.global_step = k
        loss = recipe.training_step(batch, k)
        if recipe.automatic_optimization:
            optimizers[0].zero_grad()
            (loss["loss"] if isinstance(loss, dict) else loss).backward()
            optimizers[0].step()
        if k + 1 in (WARM_UP, steps):
            finish(device)
            started = time.perf_counter() - started
        if k + 1 == steps:
            break
    return started / (steps - WARM_UP)
