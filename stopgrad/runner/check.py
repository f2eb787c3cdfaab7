"""What can be refused is refused before a run directory exists, and before the first arm of a sweep starts."""

from __future__ import annotations

import copy
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from stopgrad.cuts.strategies import check_stop
from stopgrad.runner import names
from stopgrad.runner.declared import declaration
from stopgrad.runner.errors import InputError, choose, is_input_error, one_line, wants_traceback
from stopgrad.runner.hydra_internals import compose_once, product
from stopgrad.runner.imports import import_lightning
from stopgrad.runner.launch import averages, ranks_are_there, under_srun
from stopgrad.runner.progress import Sweep
from stopgrad.runner.safety import check_paths, check_safety
from stopgrad.runner.workers import workers_import

SECTIONS = ("recipe", "stop", "data", "trainer", "callbacks", "logger")


def pinned(config: DictConfig) -> DictConfig:
    """The config of one run: where an arm of a comparison is chosen, with what that arm changes.

    Raises:
        InputError: an arm that the comparison does not have, or a comparison without an arm.
    """
    if config.compare is None:
        if config.arm is not None:
            raise InputError(f"arm={config.arm}: an arm belongs to a comparison; add compare=NAME")
        return config
    if config.arm is None:
        name = config.hydra.runtime.choices.compare if "hydra" in config else "NAME"
        raise InputError(f"compare={name}: a comparison is many runs; write python train.py -m compare={name}")
    if config.arm not in config.compare.arms:
        raise InputError(choose("arm", config.arm, config.compare.arms))
    merged = OmegaConf.merge(config, config.compare.arms[config.arm])
    assert isinstance(merged, DictConfig)
    return merged


def check_compare(config: DictConfig) -> None:
    """Refuse a comparison whose ``expect``, where it has one, does not give each arm but the reference a verdict.

    Raises:
        InputError: an arm that it does not have, one of which nothing is said, or a word that is no verdict.
    """
    if config.compare is None or "expect" not in config.compare:
        return
    from stopgrad.compare.verdict import VERDICTS  # imports torch, as every run does soon after

    reference, expect = config.compare.reference, config.compare.expect
    others = [arm for arm in config.compare.arms if arm != reference]
    if not isinstance(expect, DictConfig):
        raise InputError(f"compare.expect={expect}: give each arm a verdict; write ARM: VERDICT")
    for arm, word in expect.items():
        if arm not in others:
            raise InputError(choose("compare.expect", arm, others))
        if word not in VERDICTS:
            raise InputError(choose(f"compare.expect.{arm}", word, VERDICTS))
    for arm in others:
        if arm not in expect:
            raise InputError(f"compare.expect: says nothing of the arm {arm}; write {arm}: {'|'.join(VERDICTS)}")


@contextmanager
def as_run_in(config: DictConfig, folder: str) -> Iterator[None]:
    """Let ``${hydra:...}`` resolve as it will in the run, whose directory is ``folder``."""
    before = HydraConfig.instance().cfg
    with read_write(config.hydra), open_dict(config.hydra):  # HydraConfig makes it read-only
        config.hydra.runtime.output_dir = os.path.abspath(folder)
    HydraConfig.instance().set_config(config)
    try:
        yield
    finally:
        HydraConfig.instance().cfg = before


def check(config: DictConfig, folder: str) -> None:
    """Refuse one run's config, from the cheapest check to the dearest.

    Raises:
        InputError: with the key, the value and the choices in one line.
    """
    config = copy.deepcopy(config)
    with as_run_in(config, folder):
        hydra = config.hydra
        config = pinned(config)
        check_compare(config)
        for section in SECTIONS:
            if not isinstance(config[section], DictConfig) and not (section == "logger" and config[section] is None):
                raise InputError(f"{section}={config[section]}: a section has keys; write {section}.KEY=VALUE")
        import_lightning()
        check_safety(config, hydra)
        check_paths(config, folder)
        check_ranks(config)
        check_run(config)


def check_ranks(config: DictConfig) -> None:
    """Refuse numbers of devices that this launch cannot give.

    Raises:
        InputError: with the key and what is allowed.
    """
    devices, nodes = config.trainer.devices, config.trainer.get("num_nodes", 1)
    starter = "srun" if under_srun() else "torchrun"
    for key, value in (("devices", devices), ("num_nodes", nodes)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"trainer.{key}={value}: choose a number from 1")
    if not averages(config):
        if devices * nodes > 1:
            raise InputError(f"trainer.devices={devices}: several processes need trainer=ddp")
        if ranks_are_there():
            raise InputError(f"trainer.strategy: under {starter} every run needs trainer=ddp")
        return
    shard = config.trainer.get("shard") or 1
    if isinstance(shard, int) and devices * nodes % shard:
        raise InputError(f"trainer.shard={shard}: choose a number that divides the {devices * nodes} ranks")
    if not ranks_are_there():
        if nodes > 1:
            raise InputError(f"trainer.num_nodes={nodes}: several machines need torchrun; see docs/distributed.md")
        return
    local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    if (devices, nodes) != (local, world // local):
        raise InputError(
            f"trainer.devices={devices} trainer.num_nodes={nodes}: {starter} started {local} ranks on each of "
            f"{world // local} machines; write trainer.devices={local} trainer.num_nodes={world // local}"
        )


def check_run(config: DictConfig) -> None:
    """The part of the check that belongs to the recipe, and builds it."""
    if config.mode not in ("train", "evaluate"):
        raise InputError(choose("mode", config.mode, ["train", "evaluate"]))
    if config.mode == "evaluate" and config.ckpt_path is None:
        raise InputError("ckpt_path=null: mode=evaluate needs a checkpoint; write ckpt_path=FILE")
    if config.ckpt_path is not None and not os.path.isfile(config.ckpt_path):
        raise InputError(f"ckpt_path={config.ckpt_path}: no such file")
    declared = declaration(config.recipe._target_)
    stop: Any = OmegaConf.to_container(config.stop, resolve=True)
    try:
        check_stop(stop, declared.boundaries, declared.switches)
    except ValueError as error:
        raise InputError(str(error)) from None

    from stopgrad.runner.build import check_build  # torch comes in only now
    from stopgrad.runner.compiling import check_compile

    check_compile(config, declared.refuses)
    check_build(config)


def sweep_configs(config: DictConfig) -> list[DictConfig]:
    """The config of every run of a sweep; none where the sweeper is not Hydra's basic one: it chooses as it goes."""
    if not config.hydra.sweeper._target_.endswith("BasicSweeper"):
        return []
    from hydra.core.override_parser.overrides_parser import OverridesParser

    loader = GlobalHydra.instance().config_loader()
    compose_once(loader)
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    overrides = OverridesParser.create(loader).parse_overrides([*params, *names.as_typed(config.hydra)])
    configs = [loader.load_sweep_config(config, run) for run in product(overrides)]
    for number, each in enumerate(configs):
        with read_write(each.hydra), open_dict(each.hydra):
            each.hydra.job.num = number
        with as_run_in(each, config.hydra.sweep.dir):
            subdir = str(each.hydra.sweep.subdir)  # which may name the number
        with read_write(each.hydra):
            each.hydra.sweep.subdir = subdir
    return configs


class CheckFirst(Callback):
    """Hydra's hook before anything is written. Hydra turns a callback's exception into a warning, so this one exits."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        self._check([config], config.hydra.run.dir)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            if ranks_are_there():
                starter = "srun" if under_srun() else "torchrun"
                raise InputError(f"-m under {starter}: start a sweep without it; trainer=ddp starts its ranks itself")
            configs = sweep_configs(config)
            if configs:
                names.COMMON = set.intersection(*(set(names.as_typed(each.hydra)) for each in configs))
            Sweep.now = Sweep.of(config, configs)
        except Exception as error:
            self._exit(error)
        with workers_import(config, len(configs)):
            self._check(configs or [config], config.hydra.sweep.dir)

    def _check(self, configs: list[DictConfig], folder: str) -> None:
        try:
            for config in configs:
                check(config, folder)
            try:
                os.makedirs(folder, exist_ok=True)  # Hydra would do it next, but with a traceback where it cannot
            except OSError as error:
                raise InputError(f"hydra.run.dir={folder}: cannot be written: {error.strerror}") from None
        except Exception as error:
            self._exit(error)

    def _exit(self, error: Exception) -> NoReturn:
        if is_input_error(error) and not wants_traceback():
            print(f"error: {one_line(error)}", file=sys.stderr)
            sys.exit(2)
        traceback.print_exception(error)
        sys.exit(1)
