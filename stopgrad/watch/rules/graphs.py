"""Values that should stand still and carry a gradient, graphs kept for nothing, values that were written to."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from stopgrad.watch.findings import Finding, counted, rule, shown
from stopgrad.watch.names import words
from stopgrad.watch.seen import Seen

GROWING = 4  # graphs of one line, each holding all of the ones before it


@rule
def standing_values(watch: Seen) -> Iterator[Finding]:
    """A value whose name says that it stands still, with a gradient to parameters that are stepped."""
    train = set(watch.to_train()) | {key for key, count in watch.ledger.piled().items() if count > 1}
    for (loss, variable), ((file, line), parameters) in watch.standing.items():
        reached = parameters & train
        if not reached:
            continue
        said = words(variable)
        name = "live_target"
        if "advantage" in said or "advantages" in said:
            name = "live_advantage"
        elif {"label", "labels", "pseudo"} & set(said):
            name = "soft_pseudo_labels"
        elif {"prev", "previous"} & set(said):
            name = "rnn_state"
        yield Finding(
            name,
            "warning",
            f"{variable} carries {loss}'s gradient to {watch.parts_of(reached)}",
            f"if it is to stand still: {variable}.detach(), or compute it under torch.no_grad()",
            file,
            line,
        )


@rule
def changed(watch: Seen) -> Iterator[Finding]:
    """A value that a backward needed was written to where autograd does not see it."""
    for how, (file, line) in watch.changed:
        through = "NumPy" if how == "numpy" else f".{how}{'()' if how == 'detach' else ''}"
        yield Finding(
            "numpy_alias" if how == "numpy" else "data_write",
            "error",
            f"a value that backward needs was written to through {through}: the gradient is wrong",
            "write to a copy: .clone(), or .numpy().copy()",
            file,
            line,
        )


@rule
def retained(watch: Seen) -> Iterator[Finding]:
    """``retain_graph=True`` that nothing needed, or that keeps the whole past."""
    for (file, line), found in watch.graphs.retained.items():
        if len(found.sizes) >= GROWING:
            yield Finding(
                "rnn_past",
                "warning",
                f"each backward of {found.loss} runs through all the ones before: {found.sizes[0]} nodes, "
                f"then {found.sizes[-1]}",
                "detach the state that is carried on, and leave retain_graph out",
                file,
                line,
            )
        elif found.times > 1 and not found.needed:
            yield Finding(
                "retained_graph",
                "warning",
                f"no other backward has used the graph that {found.loss}'s keeps, {counted(found.times, 'time')}",
                "leave retain_graph out: the graph is freed as backward goes",
                file,
                line,
            )


@rule
def kept(watch: Seen) -> Iterator[Finding]:
    """Something holds the graphs of more and more steps."""
    if len(watch.kept) < 3:
        return
    looks = [{each.path: each for each in look if each.spent} for look in watch.kept]
    for path, last in looks[-1].items():
        sizes = [look[path].nodes for look in looks if path in look]
        if len(sizes) > 2 and all(one < other for one, other in pairwise(sizes)):
            count = f"{last.tensors} tensors, with graphs" if last.tensors > 1 else "a graph"
            yield Finding(
                "loss_list",
                "warning",
                f"{path} keeps {count} of {last.nodes} nodes, and more with each step",
                "keep numbers: .item(), or .detach()",
            )


@rule
def clipped(watch: Seen) -> Iterator[Finding]:
    """One clip over a part and what only looks at it: the probe's gradient scales the other's."""
    for (file, line), parts in watch.clips:
        for found in watch.evidence.values():
            for (upstream, downstream), cut in found.fed.items():
                both = upstream in parts and downstream in parts
                if both and not any((upstream, downstream) in each.crossings for each in watch.evidence.values()):
                    yield Finding(
                        "clipped_probe",
                        "warning",
                        f"{downstream} is cut off from {upstream} ({cut}), and one clip scales the gradients of both",
                        f"clip {upstream} and {downstream} apart",
                        file,
                        line,
                    )


@rule
def probes(watch: Seen) -> Iterator[Finding]:
    """A part that is named a probe, whose loss reaches what it is to look at."""
    wrote: dict[str, set[str]] = {}
    for loss, parameter in watch.ledger.wrote:
        wrote.setdefault(loss, set()).add(watch.home.get(parameter, "others"))
    for loss, parts in wrote.items():
        probes = [part for part in parts if "probe" in words(part)]
        others = {p for other, reached in wrote.items() if other != loss for p in reached}
        moved = sorted(part for part in parts if part in others and part not in probes)
        if probes and moved and not others & set(probes):
            yield Finding(
                "shared_trunk_step",
                "warning",
                f"{loss} trains {shown(moved)}, at which {shown(probes)} is to look",
                f"give {shown(probes)} a detached input",
                *watch.ledger.losses[loss][:2],
            )
