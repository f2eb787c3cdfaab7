"""What the callbacks share: which batches are audited, the parts of a module, and one verdict over all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from lightning.pytorch import Callback, LightningModule

from stopgrad.audits.ranks import gathered
from stopgrad.cuts.boundary import Boundary, Stops
from stopgrad.flow.contract import FlowContract, named_parts
from stopgrad.flow.lookup import Modules
from stopgrad.flow.parts import Parts, find_parts

_V = TypeVar("_V")


def groups_of(module: LightningModule) -> Modules:
    """What the module's ``parameter_groups()`` returns, or else the module: its children are the groups.

    A group may be given by dotted names or wildcards, such as ``{"lora": "*.lora_*"}``.
    """
    declared = getattr(module, "parameter_groups", None)
    groups: Any = declared() if callable(declared) else module
    if not isinstance(groups, Mapping):
        return groups
    return {name: _by_name(module, name, group) for name, group in groups.items()}


def _by_name(module: LightningModule, name: str, group: Any) -> Any:
    names = [group] if isinstance(group, str) else group
    by_name = isinstance(names, list | tuple) and any(isinstance(each, str) for each in names)
    return find_parts(module, {name: names}).tensors[name] if by_name else group


def parts_in(module: LightningModule, contract: FlowContract) -> Parts:
    """The parts of a module, and the submodules and parameters that a contract asks for."""
    return find_parts(*split_groups(module), asked=named_parts(contract))


def split_groups(module: LightningModule) -> tuple[Modules, Mapping[str, Any] | None]:
    """What has parts, and which ones, if they are declared."""
    groups = groups_of(module)
    return (module, groups) if isinstance(groups, Mapping) else (groups, None)


def boundaries_of(module: LightningModule) -> list[str]:
    """Names of the boundaries among the module's attributes, such as those of its ``stop``."""
    names = []
    for value in vars(module).values():
        names += [value.name] if isinstance(value, Boundary) else value.boundaries if isinstance(value, Stops) else []
    return list(dict.fromkeys(names))


def over_ranks(found: Sequence[_V]) -> list[_V]:
    """The findings of all ranks, each once: all ranks must raise, or none."""
    return list(dict.fromkeys(v for rank in gathered(list(found)) for v in rank))


class Audit(Callback):
    """Which batches are audited, and what happens on a violation."""

    def __init__(self, every_n_steps: int | None, on_violation: str) -> None:
        if on_violation not in ("raise", "warn", "record"):
            raise ValueError(f"on_violation={on_violation}: choose one of raise, warn, record")
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(
                f"every_n_steps={every_n_steps}: choose a number from 1, or None for the first batch alone"
            )
        self.every_n_steps = every_n_steps
        self.on_violation = on_violation
        self.batches = 0

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.batches = state_dict["batches"]
