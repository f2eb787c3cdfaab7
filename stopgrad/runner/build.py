"""From a config to the objects of a run: data, recipe, trainer."""

from __future__ import annotations

import copy
import importlib
import inspect
import logging
import os
import pickle
import re
import typing
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ProgressBar
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from pydantic import (
    ConfigDict,
    NonNegativeInt,
    PositiveInt,
    PydanticUserError,
    TypeAdapter,
    ValidationError,
)

from stopgrad.lightning.lightning_internals import raised_in_restore, rest_idle_hooks, shorten_batches
from stopgrad.runner.checkpoints import WholeCheckpoints
from stopgrad.runner.compiling import compile_recipe, losses_of
from stopgrad.runner.errors import InputError, RunFailed, choose, wants_traceback
from stopgrad.runner.launch import averages, world_size

NOISE = (
    ".*does not have many workers",
    ".*Be aware that when using `ckpt_path`",  # a resumed run may keep its checkpoints at other steps, and elsewhere
    ".*The dirpath has changed from",
    r".*Found \d+ module\(s\) in eval mode at the start of training",  # a frozen backbone's BatchNorm
    ".*It is recommended to use `self.log",  # every rank evaluates on the same data
    r".*isinstance\(treespec, LeafSpec\)",  # Lightning's own use of torch
    r"`torch\.jit\.script` is deprecated",  # torch's own use of itself, in forward-mode derivatives
)
ROOT = {
    "seed": NonNegativeInt,
    "trainer.max_steps": PositiveInt,
    "trainer.val_check_interval": PositiveInt,
    "trainer.log_every_n_steps": PositiveInt,
}
LENGTH = ("max_epochs", "min_epochs", "min_steps")  # an epoch is as long as the run, so that these would do nothing
SHARED = ("data.batch_size", "data.num_envs", "recipe.num_envs", "recipe.minibatch")  # sizes that the ranks share
LAUNCH = {"restarts": NonNegativeInt, "timeout": PositiveInt, "shard": typing.Optional[PositiveInt]}  # noqa: UP045
KEY_FIRST = re.compile(r"[a-z_.]+=")  # a message that names its key already
ARBITRARY = ConfigDict(arbitrary_types_allowed=True)


SOUND: set[str] = set()  # callbacks and loggers that were built before, for another arm of the sweep


class Run(NamedTuple):
    data: L.LightningDataModule
    recipe: L.LightningModule
    trainer: L.Trainer


def trainer_section(config: DictConfig) -> DictConfig:
    """What Lightning's trainer is made of: without the keys that say how its ranks are started.

    Raises:
        InputError: one of those has a value that it cannot have.
    """
    section = copy.deepcopy(config.trainer)
    with read_write(section), open_dict(section):
        for key, hint in LAUNCH.items():
            if averages(config) and key in section:
                check_type(f"trainer.{key}", section.pop(key), hint)
    return section


def quiet() -> None:
    """No tips and no notes about the hardware; warnings about what our loaders do on purpose are dropped."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in NOISE:
        warnings.filterwarnings("ignore", message=message)


def build_recipe(config: DictConfig) -> L.LightningModule:
    return instantiate(config.recipe, stop=config.stop, _convert_="all")


def build(config: DictConfig) -> Run:
    """Instantiate what the config describes; seed the random streams first."""
    quiet()
    made = [instantiate(each, _convert_="all") for each in config.callbacks.values() if each is not None]
    callbacks = [callback for callback in made if callback is not None]
    watched = any(isinstance(callback, ProgressBar) for callback in callbacks)
    extras = {
        "logger": instantiate(config.logger) if config.logger else False,
        "callbacks": callbacks,
        "enable_progress_bar": watched,
    }
    elastic = (
        [TorchElasticEnvironment()] if averages(config) else []
    )  # the ranks are there already: stopgrad/runner/launch.py
    extras["plugins"] = [WholeCheckpoints(), *elastic]
    part = share(config, world_size(config))
    data = instantiate(part.data, _convert_="all")
    recipe = build_recipe(part)
    compile_recipe(recipe, config.compile)
    trainer = instantiate(trainer_section(config), **extras, _convert_="all")
    rest_idle_hooks(trainer, recipe)
    shorten_batches(trainer)
    return Run(data, recipe, trainer)


def share(config: DictConfig, ranks: int) -> DictConfig:
    """The config of one rank. In the user's, sizes are those of the whole run.

    Raises:
        InputError: a size that cannot be shared evenly.
    """
    if ranks == 1:
        return config
    part = copy.deepcopy(config)
    for key in SHARED:
        whole = OmegaConf.select(config, key)
        if not isinstance(whole, int):
            continue
        if whole % ranks:
            raise InputError(f"{key}={whole}: is shared by {ranks} ranks; choose a multiple of {ranks}")
        OmegaConf.update(part, key, whole // ranks)
    return part


def seed_rank(seed: int) -> None:
    """Let a rank other than 0 draw streams of its own, once all have built the same weights."""
    rank = int(os.environ.get("RANK", 0))
    if rank > 0:
        (own,) = np.random.SeedSequence([seed, rank]).generate_state(1)
        L.seed_everything(int(own), workers=True, verbose=False)


def check_build(config: DictConfig) -> None:
    """Build once for the sake of the errors, read the data, and look into the checkpoint; nothing is written.

    Raises:
        InputError: one line with the key.
    """
    quiet()
    for key, hint in ROOT.items():
        check_type(key, OmegaConf.select(config, key), hint)
    for name in LENGTH:
        if config.trainer.get(name) not in (None, -1):
            raise InputError(f"trainer.{name}={config.trainer[name]}: does nothing; a run is trainer.max_steps long")
    trainer = trainer_section(config)
    for key, section in {"recipe": config.recipe, "data": config.data, "trainer": trainer}.items():
        check_arguments(key, section)
    choices = config.hydra.runtime.choices
    with torch.random.fork_rng(devices=[]):
        part = share(config, world_size(config))
        data = attempt(f"data={choices.data}", lambda: instantiate(part.data, _convert_="all"))
        attempt(f"data={choices.data}", lambda: (data.prepare_data(), data.setup("fit"), data.train_dataloader()))
        recipe = attempt(f"recipe={choices.recipe}", lambda: build_recipe(part))
        attempt(f"recipe={choices.recipe}", recipe.configure_optimizers)
        if config.compile == "update":
            losses_of(recipe)
        if hasattr(recipe, "check_data"):  # what only the two together can tell
            attempt(f"recipe={choices.recipe}", lambda: recipe.check_data(data))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*AMP with fp16 is not supported on CPU")  # refused here
            made = attempt(f"trainer={choices.trainer}", lambda: instantiate(trainer, logger=False))
    if trainer.get("precision") == "16-mixed" != made.precision:
        raise InputError("trainer.precision=16-mixed: fp16 with a scaler needs a GPU; choose bf16-mixed or 32-true")
    for key, section in parts_to_build(config):
        content = f"{key}={OmegaConf.to_container(section, resolve=True)}"
        if content in SOUND:
            continue
        check_arguments(key, section)
        said = f"logger={choices.logger}" if key == "logger" else key
        attempt(said, lambda section=section: instantiate(section, _convert_="all"))
        SOUND.add(content)
    if config.ckpt_path is not None:
        check_checkpoint(config.ckpt_path, recipe)


def parts_to_build(config: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    """(key, section) of each callback and of the logger.

    Raises:
        InputError: it says not what it is.
    """
    sections = {f"callbacks.{name}": each for name, each in config.callbacks.items()} | {"logger": config.logger}
    for key, section in sections.items():
        if section is None or (key == "logger" and not section):
            continue
        if not isinstance(section, DictConfig) or "_target_" not in section:
            raise InputError(f"{key}={section}: has no _target_; name its class, or choose null")
        yield key, section


def attempt(section: str, make: Callable[[], Any]) -> Any:
    """``make()``; what it refuses becomes one line that begins with the section of the config."""
    try:
        return make()
    except (ValueError, ImportError, MisconfigurationException, InstantiationException) as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
        refused = isinstance(cause, (ValueError, ImportError, MisconfigurationException))
        if wants_traceback() or not refused:
            raise
        message = " ".join(str(cause).split())
        raise InputError(message if KEY_FIRST.match(message) else f"{section}: {message}") from error


def check_type(key: str, value: Any, hint: Any) -> None:
    """Refuse a value that its annotation does not allow."""
    try:
        TypeAdapter(hint, config=ARBITRARY).validate_python(value)
    except PydanticUserError:  # a type with a configuration of its own
        return
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise InputError(f"{key}={value}: {reason[0].lower()}{reason[1:]}") from None


def target_class(key: str, path: str) -> Callable[..., Any]:
    """The class, or function, of a ``_target_``."""
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{key}._target_={path}: {error}") from None
    if not callable(found):
        raise InputError(f"{key}._target_={path}: is no class")
    return found


def check_arguments(key: str, config: DictConfig) -> None:
    """Check a section of the config against the signature of its ``_target_``.

    Raises:
        InputError: no such class, no such argument, or a value that its annotation does not allow.
    """
    target = target_class(key, config._target_)
    parameters = inspect.signature(target).parameters
    try:
        made_by = target.__init__ if isinstance(target, type) else target
        hints = typing.get_type_hints(made_by, include_extras=True)
    except (NameError, TypeError):  # annotations of a third party that only a type checker can read
        hints = {}
    section: Any = OmegaConf.to_container(config, resolve=True)
    for name, value in section.items():
        if name.startswith("_"):
            continue
        if name not in parameters:
            raise InputError(choose(f"{key}.{name}", value, [p for p in parameters if p != "stop"]))
        if isinstance(value, dict) and "_target_" in value:
            check_arguments(f"{key}.{name}", OmegaConf.create(value))
        elif name in hints:
            check_type(f"{key}.{name}", value, hints[name])


def read_checkpoint(path: str) -> dict[str, Any]:
    """A checkpoint's content; its tensors stay on disk until they are used.

    Raises:
        InputError: the file is truncated, is no checkpoint of ours, or would run code when loaded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a file that is none of ours: it is refused below
            checkpoint = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except pickle.UnpicklingError:
        raise InputError(f"ckpt_path={path}: refused, it holds more than tensors and plain values") from None
    except Exception:
        raise InputError(f"ckpt_path={path}: cannot be read; it is truncated, or no checkpoint") from None
    form = {"state_dict": dict, "loops": dict, "ranks": list, "callbacks": dict}
    if not isinstance(checkpoint, dict) or any(not isinstance(checkpoint.get(k), t) for k, t in form.items()):
        raise InputError(f"ckpt_path={path}: no checkpoint of a run; choose one of its checkpoints/*.ckpt")
    return checkpoint


def not_resumable(error: BaseException, path: str | None) -> RunFailed | None:
    """What to say of a checkpoint that was damaged with care: it loads, and then Lightning cannot restore from it."""
    if path is None or isinstance(error, RunFailed) or not raised_in_restore(error):
        return None
    reason = " ".join(str(error).split())
    return RunFailed(f"ckpt_path={path}: cannot be restored from: {type(error).__name__}: {reason}")


def check_checkpoint(path: str, recipe: L.LightningModule) -> None:
    """Refuse a checkpoint whose weights do not fit the recipe.

    Raises:
        InputError: it cannot be read, or names or shapes of its weights differ.
    """
    checkpoint = read_checkpoint(path)
    found = {name: tuple(getattr(t, "shape", ["no tensor"])) for name, t in checkpoint["state_dict"].items()}
    wanted = {name: tuple(t.shape) for name, t in recipe.state_dict().items()}
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            here, there = (list(side[name]) if name in side else "absent" for side in (wanted, found))
            raise InputError(
                f"ckpt_path={path}: written by another recipe or size: {name} is {there} there and {here} here; "
                "give the overrides it was trained with"
            )
