"""What optimisers do with the gradients that arrive: findings about parameters that nobody steps, or somebody twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.optim import Optimizer

SHOWN = 4  # names in a message; the evidence has all


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a training, though no operation of it is.

    Attributes:
        name: that of the exhibit that shows it: ``python -m stopgrad museum NAME``.
        evidence: the parameters that it is about, all of them.
        message: what was seen.
        fix: what to do.
    """

    name: str
    evidence: tuple[str, ...]
    message: str
    fix: str

    def __str__(self) -> str:
        return f"{self.message}; {self.fix} (python -m stopgrad museum {self.name})"


def held_by(optimizers: Iterable[Optimizer]) -> dict[int, list[Optimizer]]:
    """The optimisers that hold each parameter, by its ``id``; one that lists it twice is there twice."""
    held: dict[int, list[Optimizer]] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                held.setdefault(id(parameter), []).append(optimizer)
    return held


def listed_twice(names: Mapping[int, str], optimizers: Iterable[Optimizer]) -> list[Finding]:
    """Parameters that one optimiser lists more than once, and so steps more than once in a step."""
    found = []
    for optimizer in optimizers:
        times = Counter(id(p) for group in optimizer.param_groups for p in group["params"])
        twice = [_name(names, key) for key, count in times.items() if count > 1]
        if twice:
            kind = type(optimizer).__name__
            message = f"{kind} lists {shown(twice)} {max(times.values())} times, and steps it as often in each step"
            found.append(Finding("listed_twice", tuple(twice), message, f"hand {kind} each parameter once"))
    return found


def unstepped(
    names: Mapping[int, str], reached: Collection[int], optimizers: Sequence[Optimizer], model: Iterable[Tensor]
) -> list[Finding]:
    """Parameters at which a gradient arrived, and which no optimiser holds.

    Args:
        names: of the parameters, by ``id``.
        reached: ids of those at which a gradient arrived that is not zero.
        model: all parameters that belong to the model: what an optimiser holds beside them is left over.
    """
    held = held_by(optimizers)
    missed = [names[key] for key in names if key in reached and key not in held]
    if not missed:
        return []
    known = {id(p) for p in model}
    kinds = ", ".join(dict.fromkeys(type(o).__name__ for o in optimizers))
    message = f"a gradient arrives at {shown(missed)}, and no optimiser ({kinds}) holds it, so it never moves"
    fix = "hand it to the optimiser, or, if it is meant to stand still, set requires_grad_(False)"
    for optimizer in optimizers:
        held_shapes = [p.shape for group in optimizer.param_groups for p in group["params"] if id(p) not in known]
        if held_shapes:
            old = shown(["x".join(map(str, shape)) or "1" for shape in held_shapes])
            message += f"; {type(optimizer).__name__} holds others that are none of the model's, of shape {old}"
            fix = "make the optimiser after the last change of the model's parameters, or add_param_group"
    return [Finding("unstepped_parameter", tuple(missed), message, fix)]


def shown(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _name(names: Mapping[int, str], key: int) -> str:
    return names.get(key, "a parameter without a name")
