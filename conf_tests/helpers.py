"""What several tests need: run train.py as a user does, build recipes from their configs, take a loss's gradients."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn

from recipes.run.declared import CONFIGS
from recipes.run.names import register

ROOT = CONFIGS.parent


def train(*overrides: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """``python train.py overrides...`` in the folder ``cwd``, with the checkout's cache."""
    command = [sys.executable, str(ROOT / "train.py"), *overrides]
    if not any(o.startswith("-") and o != "-m" for o in overrides):
        command.append(f"cache={ROOT / '.cache'}")
    return subprocess.run(
        command, cwd=cwd, env=os.environ | {"OMP_NUM_THREADS": "1"} | env, capture_output=True, text=True, timeout=300
    )


def result(folder: Path) -> dict[str, Any]:
    """The ``result.json`` of the run directory ``folder``."""
    return json.loads((folder / "result.json").read_text())


def config(*overrides: str) -> DictConfig:
    """The composed config of a run."""
    register()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", list(overrides))


def build_recipe(*overrides: str) -> Any:
    """A recipe's module as train.py builds it, without a trainer."""
    composed = config(*overrides)
    torch.manual_seed(composed.seed)
    return instantiate(composed.recipe, stop=composed.stop, _convert_="all")


def norms(loss: Tensor, groups: Mapping[str, nn.Module]) -> dict[str, float | None]:
    """Norm of the loss's gradient in each group; None where nothing reaches it."""
    found: dict[str, float | None] = {}
    for name, module in groups.items():
        gradients = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True, retain_graph=True)
        reached = [g for g in gradients if g is not None]
        found[name] = float(torch.stack([g.norm() for g in reached]).norm()) if reached else None
    return found
