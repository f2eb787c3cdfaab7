"""Parameters that no loss reaches or no optimiser steps, and passes that are run for nothing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from torch import Tensor, nn

from stopgrad.flow.lookup import parameters_of
from stopgrad.flow.values import CutSite
from stopgrad.watch.findings import Finding, counted, rule, shown
from stopgrad.watch.names import stands_still
from stopgrad.watch.seen import Seen

ENOUGH = 30  # cycles after which a run that did not end by itself is judged too


def _is_judged(watch: Seen) -> bool:
    return watch.ledger.number > 0 and (watch.ended or watch.cycle >= ENOUGH)


def _span(watch: Seen) -> str:
    return f"in {counted(min(watch.cycle + 1, watch.books), 'cycle')}"


@rule
def rebuilt(watch: Seen) -> Iterator[Finding]:
    """A loss that is a leaf: it was rebuilt from a number, and nothing lies behind it."""
    for loss, count in watch.ledger.rebuilt.items():
        file, line, times = watch.ledger.losses[loss]
        if count == times:
            yield Finding(
                "rebuilt_loss",
                "error",
                f"{loss} is a leaf: its backward reaches no parameter, {counted(count, 'time')}",
                "keep the loss a result of the model: no torch.tensor(loss), .item(), .detach() or requires_grad on it",
                file,
                line,
            )


@rule
def unreached(watch: Seen) -> Iterator[Finding]:
    """Parameters that were to be trained, that a loss was computed from, and that no loss's gradient reaches."""
    ledger = watch.ledger
    if not _is_judged(watch):
        return
    written = {parameter for _, parameter in ledger.wrote}
    stops: dict[int, tuple[str, CutSite]] = {}
    for loss, found in watch.evidence.items():
        for parameter, cut in found.stopped.items() if not ledger.rebuilt[loss] else ():
            stops.setdefault(parameter, (loss, cut))
    groups: dict[tuple[str, CutSite], list[int]] = defaultdict(list)
    for parameter, tensor in watch.to_train().items():
        waits = parameter in stops and not stands_still(watch.home.get(parameter, ""))
        if parameter not in written and waits and tensor.requires_grad and not watch.moves.moved(tensor):
            groups[watch.home.get(parameter, "others"), stops[parameter][1]].append(parameter)
    for (part, cut), parameters in groups.items():
        losses = shown(loss for loss, found in watch.evidence.items() if found.stopped.keys() & set(parameters))
        whole = len(parameters) == sum(home == part for home in watch.home.values())
        what = part if whole else f"{counted(len(parameters), 'parameter')} of {part}"
        verb = "requires" if whole or len(parameters) == 1 else "require"
        yield Finding(
            _name_of(watch, part, cut, parameters),
            "error",
            f"{what} {verb} grad and no loss reaches it {_span(watch)}: {cut} stops {losses}",
            f"let the gradient through where {part} is to learn; or freeze it: {part}.requires_grad_(False)",
            cut.file,
            cut.line,
        )


def _name_of(watch: Seen, part: str, cut: CutSite, parameters: list[int]) -> str:
    """The exhibit that shows it, by how and where the gradient was stopped."""
    if cut.kind in ("no_grad", "inference_mode"):
        return "never_moved"
    if cut.kind == "detach_":
        return "reused_fakes"
    if any(upstream == part for found in watch.evidence.values() for upstream, _ in found.fed):
        return "starved_generator"
    owners = {id(p) for m in watch.modules() if isinstance(m, nn.Embedding) for p in parameters_of(m)}
    alive = watch.ledger.parameters()
    return "dead_codebook" if all(id(alive[p]) in owners for p in parameters) else "dead_critic"


@rule
def constants(watch: Seen) -> Iterator[Finding]:
    """A term of a loss that hangs on a network and is a constant."""
    for loss, found in watch.evidence.items():
        for cut, parts in found.constants:
            yield Finding(
                "detached_penalty" if cut.kind == "no_derivative" else "no_grad_critic",
                "error",
                f"a term of {loss} is computed from {shown(parts)} and is a constant: {cut}",
                "call autograd.grad with create_graph=True"
                if cut.kind == "no_derivative"
                else "compute it with gradients, and freeze what is not to learn by requires_grad_(False)",
                cut.file,
                cut.line,
            )


@rule
def unstepped(watch: Seen) -> Iterator[Finding]:
    """A gradient arrives where no optimiser steps."""
    if not watch.ledger.steps or not _is_judged(watch):
        return
    missed, holders = _missed(watch), watch.ledger.holders()
    roots = {
        name: {key for p in parameters_of(module) if (key := watch.ledger.key(p)) is not None}
        for name, module in watch.parts.roots().items()
    }
    known = {key for keys in roots.values() for key in keys}
    stale = _stale(watch, known)
    told = {key for _, reached in watch.standing.values() for key in reached}  # by the name of a value: live_target
    loose = [key for key, p in missed.items() if isinstance(p, nn.Parameter) and key not in known]
    for name, keys in roots.items():
        mine = [key for key in missed if key in keys - told]
        held = [key for key in keys if key in holders]
        if name in watch.parts.listed:
            loose += mine
        elif mine and (stale or (held and not _is_head(watch, name, held))):
            yield _never_held(watch, name, mine, stale)
        elif mine and watch.ledger.uses and (most := max(watch.ledger.piled().get(key, 0) for key in mine)) > 1:
            part = watch.parts_of(mine) if held else name
            loss, file, line = _first_loss(watch, mine)
            yield Finding(
                "unfrozen_features",
                "warning",
                f"{loss} writes gradients into {part}, which no optimiser steps: {most} of them piled up",
                f"{part}.requires_grad_(False), or call it under torch.no_grad() where no gradient is to go through",
                file,
                line,
            )
    if loose:
        loss, file, line = _first_loss(watch, loose)
        what = f"{counted(len(loose), 'parameter')} of {watch.parts_of(loose)}"
        yield Finding(
            "unstepped_parameter",
            "error",
            f"{loss} sends a gradient to {what}, which no optimiser holds",
            "hand it to an optimiser; layers in a list belong into nn.ModuleList",
            file,
            line,
        )


def _missed(watch: Seen) -> dict[int, Tensor]:
    """The parameters that get gradients, and that neither an optimiser nor the script itself steps."""
    ledger, holders = watch.ledger, watch.ledger.holders()
    written = {parameter for _, parameter in ledger.wrote} - {parameter for _, parameter in ledger.by_hand}
    alive = {key: p for key, p in ledger.parameters().items() if key in written and key not in holders}
    piled = watch.ledger.piled()
    return {k: p for k, p in alive.items() if p.requires_grad and (piled.get(k, 0) > 1 or not watch.moves.moved(p))}


def _first_loss(watch: Seen, parameters: list[int]) -> tuple[str, str, int]:
    """A loss that writes there, and its line."""
    loss = next(loss for loss, key in watch.ledger.wrote if key in parameters)
    return loss, *watch.ledger.losses[loss][:2]


def _stale(watch: Seen, known: set[int]) -> list[int]:
    """The optimisers that hold a parameter which no module has any more."""
    written = {parameter for _, parameter in watch.ledger.wrote}
    alive = watch.ledger.parameters()

    def is_left_over(key: int) -> bool:  # dead by now, where nobody but the optimiser held it
        return key not in known and key not in written and isinstance(alive.get(key, nn.Parameter()), nn.Parameter)

    return [key for key, optimizer in watch.ledger.optimizers.items() if any(map(is_left_over, optimizer.holds))]


def _is_head(watch: Seen, root: str, held: list[int]) -> bool:
    """Whether what is held is one child of a network, as where a head is trained on features."""
    children = [{id(p) for p in parameters_of(child)} for _, child in watch.parts.roots()[root].named_children()]
    alive = watch.ledger.parameters()
    return {id(alive[key]) for key in held} in children


def _never_held(watch: Seen, root: str, missed: list[int], stale: list[int]) -> Finding:
    own = {watch.key(p): name for name, p in watch.parts.roots()[root].named_parameters()}
    loss, file, line = _first_loss(watch, missed)
    message = f"{loss} sends a gradient to {shown(f'{root}.{own[key]}' for key in missed)}, and no optimiser holds it"
    fix = "hand it to an optimiser, or freeze it"
    if stale:
        known = watch.ledger.optimizers[stale[0]]
        message += f"; {known.title} holds others, which are no longer the model's"
        fix, file, line = "make the optimiser after the last change of the model's parameters", known.file, known.line
    return Finding("unstepped_parameter", "error", message, fix, file, line)


@rule
def undetached(watch: Seen) -> Iterator[Finding]:
    """A loss's gradient in a part that is cleared before any step: waste where it lies upstream, nature downstream."""
    ledger = watch.ledger
    used: dict[str, Counter[str]] = defaultdict(Counter)  # loss -> the parts that steps used it for
    wrote: dict[str, Counter[str]] = defaultdict(Counter)
    wasted: dict[str, Counter[str]] = defaultdict(Counter)
    for (loss, parameter, _, _), count in ledger.uses.items():
        used[loss][watch.home.get(parameter, "others")] += count
    for store, found in ((ledger.wrote, wrote), (ledger.wasted, wasted)):
        for (loss, parameter), count in store.items():
            found[loss][watch.home.get(parameter, "others")] += count
    holders = ledger.holders()
    held = {watch.home.get(parameter, "others") for parameter in holders}
    for loss, parts in wasted.items():
        crossings = watch.evidence[loss].crossings if loss in watch.evidence else {}
        for part, count in parts.items():
            if used[loss][part] or count < wrote[loss][part] / 2 or part not in held or not used[loss]:
                continue
            down = [p for p in used[loss] if (part, p) in crossings and (p, part) not in crossings]
            file, line, _ = ledger.losses[loss]
            if down:
                yield Finding(
                    "undetached_fake",
                    "warning",
                    f"{loss} runs back through {part} in each cycle, and its gradient there is cleared unused",
                    f"detach what {shown(down)} is given of {part}: .detach(), or compute it under torch.no_grad()",
                    *(_fed(watch, down[0]) or crossings[part, down[0]]),
                )
            else:
                yield Finding(
                    "gradient_through",
                    "note",
                    f"{loss} also fills {part}'s gradients, which are cleared before a step uses them",
                    f"nothing; {part}.requires_grad_(False) while {loss} is computed saves its weights' gradients",
                    file,
                    line,
                )


def _fed(watch: Seen, part: str) -> tuple[str, int] | None:
    """The line at which the network of a part was called with what carries a gradient."""
    names = {**watch.candidates(), **watch.parts.names()}
    call = watch.calls.call_of(names[part]) if part in names else None
    return None if call is None else call.fed


@rule
def rounded(watch: Seen) -> Iterator[Finding]:
    """A whole part whose gradient is exactly zero in every measured cycle."""
    if watch.matrix is None or not _is_judged(watch):
        return
    train = {watch.home.get(key, "others") for key in watch.to_train()}
    found: dict[str, list[str]] = defaultdict(list)
    for part in watch.matrix.parts:
        cells = [(loss, watch.matrix[loss, part].state) for loss in watch.matrix.losses]
        zero = [loss for loss, state in cells if state == "zero"]
        if part in train and zero and not any(state in ("open", "opaque") for _, state in cells):
            found[zero[0]].append(part)
    for loss, parts in found.items():
        note = watch.matrix[loss, parts[0]].note
        file, line, _ = watch.ledger.losses.get(loss, ("", 0, 0))
        yield Finding(
            "rounded",
            "warning",
            f"{loss}'s gradient arrives at {shown(parts)} and is exactly zero{f': {note}' if note else ''}",
            "pass the gradient straight through (z + (q - z).detach()), or take away what saturates",
            file,
            line,
        )


@rule
def flags(watch: Seen) -> Iterator[Finding]:
    """``module.requires_grad = False`` sets an attribute that nobody reads."""
    for name, root in watch.parts.names().items():
        for path, module in root.named_modules():
            if vars(module).get("requires_grad") is False and any(p.requires_grad for p in parameters_of(module)):
                where = f"{name}.{path}" if path else name
                yield Finding(
                    "module_flag",
                    "error",
                    f"{where}.requires_grad = False freezes nothing: its parameters still require grad",
                    f"{where}.requires_grad_(False)",
                )


@rule
def unused(watch: Seen) -> Iterator[Finding]:
    """Layers that an optimiser holds and that are never called."""
    if not _is_judged(watch) or not watch.calls.of or not watch.ledger.steps:
        return
    written = {parameter for _, parameter in watch.ledger.wrote}
    holders = watch.ledger.holders()
    for name, root in watch.parts.roots().items():
        layers = []
        for path, module in root.named_modules():
            keys = [watch.ledger.key(p) for p in parameters_of(module, recurse=False)]
            idle = keys and all(key in holders and key not in written for key in keys)
            if idle and watch.calls.call_of(module) is None:
                layers.append(f"{name}.{path}" if path else name)
        if layers:
            yield Finding(
                "unused_layers",
                "note",
                f"in an optimiser, and never called {_span(watch)}: {shown(layers)}",
                "leave it out, if it is not for later",
            )
