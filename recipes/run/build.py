"""From a config to the objects of a run: data, recipe, trainer."""

from __future__ import annotations

import inspect
import logging
import pickle
import typing
import warnings
from typing import Any, NamedTuple

import lightning as L
import torch
from hydra.utils import get_class, instantiate
from lightning.pytorch.callbacks import ProgressBar
from omegaconf import DictConfig, OmegaConf
from pydantic import ConfigDict, TypeAdapter, ValidationError

from recipes.run.errors import InputError, choose, full_error

NOISE = (
    ".*does not have many workers",
    ".*Using ModelCheckpoint with manual optimization",  # the state after the step is the one to resume from
    r".*isinstance\(treespec, LeafSpec\)",  # Lightning's own use of torch
)
ARBITRARY = ConfigDict(arbitrary_types_allowed=True)


class Run(NamedTuple):
    data: L.LightningDataModule
    recipe: L.LightningModule
    trainer: L.Trainer


def quiet() -> None:
    """No tips and no notes about the hardware; warnings about what our loaders do on purpose are dropped."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in NOISE:
        warnings.filterwarnings("ignore", message=message)


def build(config: DictConfig, *, with_callbacks: bool = True) -> Run:
    """Instantiate what the config describes; seed the random streams first."""
    quiet()
    data = instantiate(config.data, _convert_="all")
    recipe = instantiate(config.recipe, stop=config.stop, _convert_="all")
    extras: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    if with_callbacks:
        made = [instantiate(each, _convert_="all") for each in config.callbacks.values() if each is not None]
        callbacks = [callback for callback in made if callback is not None]
        watched = any(isinstance(callback, ProgressBar) for callback in callbacks)
        extras = {"logger": instantiate(config.logger), "callbacks": callbacks, "enable_progress_bar": watched}
    return Run(data, recipe, instantiate(config.trainer, **extras, _convert_="all"))


def check_build(config: DictConfig) -> None:
    """Build once for the sake of the errors, read the data, and look into the checkpoint; nothing is written.

    Raises:
        InputError: one line with the key.
    """
    for key in ("recipe", "data", "trainer"):
        check_arguments(key, config[key])
    check_type("seed", config.seed, typing.Annotated[int, "seed"])
    try:
        with torch.random.fork_rng(devices=[]):
            run = build(config, with_callbacks=False)
        run.data.prepare_data()
        run.data.setup("fit")
        run.data.train_dataloader()
    except (ValueError, TypeError) as error:
        if full_error():
            raise
        raise InputError(str(error.__cause__ or error)) from error
    if config.ckpt_path is not None:
        check_checkpoint(config.ckpt_path, run.recipe)


def check_type(key: str, value: Any, hint: Any) -> None:
    """Refuse a value that its annotation does not allow."""
    try:
        adapter = TypeAdapter(hint, config=ARBITRARY) if not isinstance(hint, type) else TypeAdapter(hint)
        adapter.validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise InputError(f"{key}={value}: {reason[0].lower()}{reason[1:]}") from None


def target_class(key: str, path: str) -> type:
    """The class of a ``_target_``."""
    try:
        return get_class(path)
    except Exception as error:
        raise InputError(f"{key}._target_={path}: {error}".partition("\n")[0]) from None


def check_arguments(key: str, config: DictConfig) -> None:
    """Check a section of the config against the signature of its ``_target_``.

    Raises:
        InputError: no such class, no such argument, or a value that its annotation does not allow.
    """
    target = target_class(key, config._target_)
    parameters = inspect.signature(target).parameters
    hints = typing.get_type_hints(target.__init__, include_extras=True)
    for name, value in OmegaConf.to_container(config, resolve=True).items():  # pyright: ignore
        if name.startswith("_"):
            continue
        if name not in parameters:
            raise InputError(choose(f"{key}.{name}", value, [p for p in parameters if p != "stop"]))
        nested = isinstance(value, dict) and "_target_" in value
        if nested:
            target_class(f"{key}.{name}", value["_target_"])
        elif name in hints:
            check_type(f"{key}.{name}", value, hints[name])


def read_checkpoint(path: str) -> dict[str, Any]:
    """A checkpoint's content; its tensors stay on disk until they are used.

    Raises:
        InputError: the file is truncated, is no checkpoint of ours, or would run code when loaded.
    """
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except pickle.UnpicklingError:
        raise InputError(f"ckpt_path={path}: refused, it holds more than tensors and plain values") from None
    except Exception:
        raise InputError(f"ckpt_path={path}: cannot be read; it is truncated, or no checkpoint") from None
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint or "loops" not in checkpoint:
        raise InputError(f"ckpt_path={path}: no checkpoint of a run; choose one of its checkpoints/*.ckpt")
    return checkpoint


def check_checkpoint(path: str, recipe: L.LightningModule) -> None:
    """Refuse a checkpoint whose weights do not fit the recipe.

    Raises:
        InputError: it cannot be read, or names or shapes of its weights differ.
    """
    found = {name: tuple(t.shape) for name, t in read_checkpoint(path)["state_dict"].items()}
    wanted = {name: tuple(t.shape) for name, t in recipe.state_dict().items()}
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            here, there = (list(side[name]) if name in side else "absent" for side in (wanted, found))
            raise InputError(
                f"ckpt_path={path}: written by another recipe or size: {name} is {there} there and {here} here; "
                "give the overrides it was trained with"
            )
