"""What was to stand still and moves, and what was to move and stands still."""

from __future__ import annotations

import linecache
import re
from collections import defaultdict
from collections.abc import Iterator

from torch import nn

from stopgrad.flow.lookup import has_parameters, parameters_of
from stopgrad.flow.parts import adapters
from stopgrad.watch.calls import DROPOUTS, NORMS
from stopgrad.watch.findings import Finding, counted, rule, shown
from stopgrad.watch.names import is_copy, is_source, stands_still
from stopgrad.watch.seen import Seen


@rule
def moved_in_steps(watch: Seen) -> Iterator[Finding]:
    """A frozen parameter that moves in an optimiser's step."""
    groups: dict[int, list[int]] = defaultdict(list)
    for (parameter, optimizer), count in watch.moves.still.items():
        p = watch.ledger.parameters().get(parameter)
        if count and p is not None and not p.requires_grad:
            groups[optimizer].append(parameter)
    for optimizer, parameters in groups.items():
        known = watch.ledger.optimizers[optimizer]
        own = not known.home.startswith("torch.optim")
        steps = max(watch.moves.still[p, optimizer] for p in parameters)
        how = "of its own" if own else "by momentum or weight decay, on a gradient that is not None"
        yield Finding(
            "own_decay" if own else "frozen_momentum",
            "error",
            f"{known.title} moves {watch.parts_of(parameters)}, which is frozen, in {counted(steps, 'step')}, {how}",
            "hand the optimiser only what is to train; zero_grad(set_to_none=True)",
            *known.stepped_at,
        )


@rule
def moved_rows(watch: Seen) -> Iterator[Finding]:
    """Rows whose gradient a hook sets to zero, and which the step moves all the same."""
    for (parameter, optimizer), count in watch.moves.rows.items():
        known = watch.ledger.optimizers[optimizer]
        steps = watch.moves.steps[parameter, optimizer]
        yield Finding(
            "masked_rows",
            "error",
            f"a hook sets the gradient of rows of {watch.parts_of([parameter])} to zero, and {known.title} moves them, "
            f"in {count} of {steps} steps",
            "weight_decay=0 for this parameter, and no momentum from before; or write the rows back after the step",
            *known.stepped_at,
        )


@rule
def exchanged(watch: Seen) -> Iterator[Finding]:
    """A module was frozen, and then got a new parameter, which trains."""
    for module, before in watch.calls.frozen.items():
        new = {
            key: name
            for name, p in module.named_parameters()
            if id(p) not in before and p.requires_grad and (key := watch.ledger.key(p)) is not None
        }
        trained = [
            name for key, name in new.items() if any(parameter == key for _, parameter, _, _ in watch.ledger.uses)
        ]
        if trained:
            yield Finding(
                "exchanged_parameter",
                "error",
                f"{watch.name_of(module)} was frozen and then got {shown(trained)}, which requires grad and is trained",
                "freeze it again after the change: requires_grad_(False)",
            )


@rule
def statistics(watch: Seen) -> Iterator[Finding]:
    """A norm whose weights are frozen and whose running statistics move."""
    found: dict[str, tuple[list[str], bool]] = {}
    for name, root in watch.parts.roots().items():
        for path, module in root.named_modules():
            own = parameters_of(module, recurse=False)
            if not isinstance(module, NORMS) or not module.training or not own or module.running_mean is None:
                continue
            frozen = not any(p.requires_grad or watch.ledger.key(p) in watch.ledger.required for p in own)
            if frozen and watch.moves.moved(module.running_mean):
                follows = any(watch.moves.moved(p) for p in own)
                found.setdefault(name, ([], follows))[0].append(f"{name}.{path}" if path else name)
    for name, (norms, follows) in found.items():
        yield Finding(
            "frozen_batchnorm",
            "note" if follows else "error",
            f"{shown(norms)}: weights {'that follow others' if follows else 'frozen'}, running statistics that move",
            "nothing, if that is meant" if follows else f"{name}.eval() after each train()",
        )


@rule
def teacher_dropout(watch: Seen) -> Iterator[Finding]:
    """A frozen network that answers otherwise each time; not the base of adapters, which trains with it."""
    bases = [module for module in watch.parts.roots().values() if adapters(module)]
    adapted = {module for base in bases for module in base.modules()}
    for name, root in watch.candidates().items():
        parameters = parameters_of(root)
        frozen = parameters and not any(
            p.requires_grad or watch.ledger.key(p) in watch.ledger.required for p in parameters
        )
        if not frozen or root in adapted or any(watch.moves.moved(p) for p in parameters):
            continue
        active = [
            path
            for path, module in root.named_modules()
            if isinstance(module, DROPOUTS)
            and module.p > 0
            and module.training
            and watch.calls.call_of(module) is not None
        ]
        if active:
            yield Finding(
                "teacher_dropout",
                "warning",
                f"{name} is frozen and its dropout is on ({shown(active)}): it answers otherwise each time",
                f"{name}.eval() after each train()",
            )


@rule
def teacher_trains(watch: Seen) -> Iterator[Finding]:
    """A network that is named a teacher, or a target, and is stepped on the loss that trains its like."""
    stepped: dict[int, set[str]] = defaultdict(set)
    for loss, parameter, _, _ in watch.ledger.uses:
        stepped[parameter].add(loss)

    def losses(module: nn.Module) -> set[str]:
        return {loss for p in parameters_of(module) for loss in stepped.get(watch.key(p), ())}

    told: list[str] = []
    networks = watch.candidates()
    moving = {module for name, module in networks.items() if not stands_still(name)}  # by one of its names
    for name, module in networks.items():
        if module in moving or name.startswith(tuple(f"{outer}." for outer in told)):
            continue
        alike = watch.like(module)
        student = next((n for n in alike if not stands_still(n)), None)
        if student is None or any(map(is_source, alike)) or not _may_copy(watch, module, networks[student]):
            continue
        both = losses(module) & losses(networks[student])
        if both:
            told.append(name)
            loss = sorted(both)[0]
            yield Finding(
                "teacher_trains",
                "error",
                f"{name} is stepped on {loss}, together with {student}",
                f"compute what {name} says under torch.no_grad(), and hand {name} to no optimiser",
                *watch.ledger.losses[loss][:2],
            )


def _may_copy(watch: Seen, module: nn.Module, other: nn.Module) -> bool:
    """A network is taken at its name; a layer, such as an embedding of what is to come out, where both began alike."""
    pairs = zip(parameters_of(module), parameters_of(other), strict=True)
    return any(True for _ in module.children()) or all(watch.moves.began_alike(p, q) for p, q in pairs)


@rule
def aliased(watch: Seen) -> Iterator[Finding]:
    """Two names of one network, one of which says that it stands still."""
    for (one, other), ref in watch.parts.aliases.items():
        module = ref()
        if (
            module is None
            or stands_still(one) == stands_still(other)
            or not any(watch.is_stepped(p) for p in parameters_of(module))
        ):
            continue
        still, moving = (one, other) if stands_still(one) else (other, one)
        yield Finding(
            "aliased_target",
            "error",
            f"{still} is {moving}: one network under two names, which is stepped",
            f"{still} = copy.deepcopy({moving}).requires_grad_(False)",
        )


@rule
def stale(watch: Seen) -> Iterator[Finding]:
    """A copy of a network that trains, named for a target or an average, which never follows it."""
    if not watch.ended or not watch.ledger.steps:
        return
    told: list[str] = []
    steps = max(known.total for known in watch.ledger.optimizers.values())
    for name, module in watch.candidates().items():
        parameters = parameters_of(module)
        if name.startswith(tuple(f"{outer}." for outer in told)):
            continue
        if not is_copy(name) or not parameters or any(watch.is_stepped(p) or watch.moves.moved(p) for p in parameters):
            continue
        leader = next(
            (n for n in watch.like(module) if any(watch.is_stepped(p) for p in parameters_of(watch.candidates()[n]))),
            None,
        )
        if leader is None or not any(map(watch.moves.moved, parameters_of(watch.candidates()[leader]))):
            continue
        written = any(map(watch.moves.written, parameters))
        if not written and (steps < 30 or _is_synced_somewhere(watch, name)):
            continue
        told.append(name)
        yield Finding(
            "stale_target",
            "error",
            f"{name} has its first values after {counted(steps, 'step')} of {leader}"
            + (", though it was written to" if written else ""),
            f"{name}.load_state_dict({leader}.state_dict()) every so many steps, or an average of the parameters",
        )


def _is_synced_somewhere(watch: Seen, name: str) -> bool:
    """Whether the script has more than one line that may write to this network: what has not run may come."""
    last = re.escape(name.rpartition(".")[2])
    line = re.compile(
        rf"\b{last}\b.*(load_state_dict|parameters|copy_|lerp|state_dict)|(update|sync|copy|polyak|soft|hard)\w*\(.*\b{last}\b"
    )
    files = {file for file, _, _ in watch.ledger.losses.values()} | {
        known.file for known in watch.ledger.optimizers.values()
    }
    return sum(line.search(text) is not None for file in files for text in linecache.getlines(file)) > 1


@rule
def never_eval(watch: Seen) -> Iterator[Finding]:
    """A network with dropout or norms that is tested in train mode, and that ``eval()`` was never called on."""
    if not watch.ledger.steps:
        return
    for name, root in watch.parts.roots().items():
        inner = [m for m in root.modules() if any(watch.is_stepped(p) for p in parameters_of(m, recurse=False))]
        inner += [m for parent in root.modules() for m in parent.children() if not has_parameters(m)]
        tested = [call for m in inner if (call := watch.calls.call_of(m)) is not None and call.tested]
        if not tested or any(m in watch.calls.evaluated for m in root.modules()):
            continue
        if not any(watch.is_stepped(p) for p in parameters_of(root)) or _feeds_a_loss(watch, root):
            continue
        sampler = _is_judged_by_another(watch, name)
        kinds = shown(sorted({type(m).__name__ for call in tested if (m := call.module()) is not None}))
        assert tested[0].tested is not None
        yield Finding(
            "never_eval",
            "note" if sampler else "error",
            f"{name} runs without gradients in train mode, with its {kinds} on, and eval() is never called",
            f"{name}.eval() before the test, {name}.train() after it",
            *tested[0].tested,
        )


def _feeds_a_loss(watch: Seen, root: nn.Module) -> bool:
    """Whether what a network says without gradients goes into a loss: a target, a pseudo label, an old probability."""
    own = {watch.home.get(watch.key(p)) for p in parameters_of(root)}
    cells = watch.matrix.items() if watch.matrix is not None else ()
    return any(
        cut.kind in ("no_grad", "inference_mode") for (_, part), cell in cells if part in own for cut in cell.cuts
    )


def _is_judged_by_another(watch: Seen, root: str) -> bool:
    """Whether a network's losses pass through another network that another optimiser holds: a generator."""
    holders = watch.ledger.holders()
    homes = {watch.home.get(key): set(owners) for key, owners in holders.items()}
    own = {home for p in parameters_of(watch.parts.roots()[root]) if (home := watch.home.get(watch.key(p))) is not None}
    for found in watch.evidence.values():
        for upstream, downstream in found.crossings:
            if (
                upstream in own
                and downstream not in own
                and homes.get(upstream, set()).isdisjoint(homes.get(downstream, set()))
            ):
                return True
    return False


@rule
def ranks(watch: Seen) -> Iterator[Finding]:
    """Ranks that began alike and hold other parameters after some steps."""
    if watch.ranks.drifted is not None:
        step, rank = watch.ranks.drifted
        yield Finding(
            "ranks_drift",
            "error",
            f"rank {rank} began with the parameters of rank 0, and holds others after {counted(step, 'step')}",
            "average the gradients of all ranks before each step, as DistributedDataParallel does in backward",
        )
