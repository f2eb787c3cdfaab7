"""Whether a module that should answer the same to the same input does: dropout that is on, and by how much."""

from __future__ import annotations

import weakref
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from stopgrad.audits.tree import joined, walk
from stopgrad.audits.writes import moved, remove
from stopgrad.cuts.torch_internals import tree_leaves, tree_map
from stopgrad.flow.measure import as_found
from stopgrad.flow.sites import recorder

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_COPIED = (list, dict, OrderedDict, set, deque)


def train_eval_gap(module: nn.Module, *args: Any, **kwargs: Any) -> float:
    """The largest difference between a module's features in train mode and in eval mode, for the same input.

    0.0 means that freezing the parameters freezes the features. The module is left as it was.
    """
    with untouched(module), unrecorded(), torch.no_grad():
        train = _outputs(module.train(), args, kwargs)
        return _difference(train, _outputs(module.eval(), args, kwargs))


class _Hook:
    """Calls a method of ``Calls`` while that lives. A copy of the module, or its pickle, has one that does nothing."""

    def __init__(self, calls: Calls | None, method: str = "", *names: str) -> None:
        self.calls = weakref.ref(calls) if calls is not None else None
        self.method, self.names = method, names

    def __call__(self, *given: Any) -> None:
        if not torch.compiler.is_compiling() and self.calls is not None and (alive := self.calls()) is not None:
            getattr(alive, self.method)(*self.names, *given)

    def __reduce__(self) -> tuple[type[_Hook], tuple[None]]:
        return _Hook, (None,)


class Calls:
    """Notes a call of each module in train mode in which random numbers were drawn, to measure their effect later.

    Until :meth:`close`, or until such a call came, each module has two hooks, and each dropout in it one.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = dict(modules)
        self._count = dict.fromkeys(modules, 0)
        self._before: dict[str, tuple[Any, ...]] = {}
        self._drawn: dict[str, tuple[Any, Any, list[Any]]] = {}
        self._found: dict[str, tuple[float, str]] = {}
        self._local: dict[str, dict[str, float]] = {name: {} for name in modules}
        self._handles: dict[str, list[Any]] = {}
        for name, module in modules.items():
            self._handles[name] = [
                module.register_forward_pre_hook(_Hook(self, "_enter", name), with_kwargs=True),
                module.register_forward_hook(_Hook(self, "_leave", name), with_kwargs=True),
                *(
                    inner.register_forward_hook(_Hook(self, "_dropped", name, path), with_kwargs=True)
                    for path, inner in walk(module)
                    if isinstance(inner, _DROPOUTS)
                ),
            ]
        self._finalizer = weakref.finalize(self, _remove_all, self._handles)

    def close(self) -> None:
        """Remove the hooks."""
        _remove_all(self._handles)
        self._finalizer.detach()

    def _enter(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._count[name] += 1
        count = self._count[name]
        if (count & (count - 1) == 0 or module.training) and any(m.training for _, m in walk(module)):
            self._before[name] = _random_states()

    def _leave(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        before = self._before.pop(name, None)
        if before is not None and not all(map(torch.equal, before, _random_states())):
            remove(self._handles[name])
            with unrecorded():
                self._drawn[name] = (*tree_map(_detached, (args, kwargs)), _autocasts())

    def _dropped(self, name: str, path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """A dropout ran: how much it changed what passed, for modules that are entered by another method."""
        if module.training and path not in self._local[name] and isinstance(output, Tensor) and args:
            with unrecorded(), torch.no_grad():
                share = torch.linalg.vector_norm(output - args[0]) / torch.linalg.vector_norm(args[0])
                if share > 0:
                    self._local[name][path] = float(share)

    def noises(self) -> list[tuple[str, float, str]]:
        """``(module, how much, in words)`` of those that answer at random. Each call is measured once."""
        for name, module in self._modules.items():
            if name in self._found or not (name in self._drawn or self._local[name]):
                continue
            found = self._measured(module, *self._drawn.pop(name)) if name in self._drawn else None
            if found is None and self._local[name]:
                path, share = max(self._local[name].items(), key=lambda item: item[1])
                found = share, f"changes what passes {joined(name, path)} by {share:.0%} of its size"
            amount, how = found or (0.0, "")
            drops = [joined(name, path) for path, m in walk(module) if _drops(m)]
            what = f"its dropout is on ({', '.join(drops[:3])}{', ...' if len(drops) > 3 else ''})"
            what = what if drops else "its forward draws random numbers, as F.dropout does"
            self._found[name] = (amount, f"{what}, for it is in train mode, and {how}; call .eval() on it")
        return [(name, *found) for name, found in self._found.items() if found[0]]

    @staticmethod
    def _measured(module: nn.Module, args: Any, kwargs: Any, autocasts: Sequence[Any]) -> tuple[float, str] | None:
        """How far two answers lie apart; 0.0 where eval mode draws too, and no dropout is known; None: unknown."""
        if not all(isinstance(leaf, _PLAIN) for leaf in tree_leaves((args, kwargs))):
            return None  # a cache, or another object that a second call would change
        with ExitStack() as stack:
            stack.enter_context(untouched(module))
            stack.enter_context(unrecorded())
            stack.enter_context(torch.no_grad())
            for device, dtype in autocasts:
                stack.enter_context(torch.autocast(device, dtype))
            pair = [_outputs(module, args, kwargs) for _ in range(2)]
            known = any(_drops(m) for _, m in walk(module))
            for _, inner in walk(module):
                inner.training = False
            calm = [_outputs(module, args, kwargs) for _ in range(2)]
        apart = _difference(*pair)
        if not apart or not (known or _difference(*calm) == 0):
            return 0.0, ""
        size = sum(float(torch.linalg.vector_norm(t.double())) ** 2 for t in calm[0]) ** 0.5
        change = sum(float(torch.linalg.vector_norm(a.double() - b.double())) ** 2 for a, b in zip(*pair, strict=True))
        share = f", {change**0.5 / size:.0%} of their size" if size else ""
        return apart, f"two answers to one input differ by up to {apart:.2g}{share}"


_PLAIN = (Tensor, int, float, str, type(None), torch.dtype, torch.device)


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """What calls inside change of the module is put back: buffers, modes, random state, attributes, lists and dicts."""
    attributes = [(m, dict(vars(m))) for _, m in walk(module)]
    held = [v for _, values in attributes for v in values.values() if type(v) in _COPIED]
    copies = [(v, v.copy()) for v in held]
    with as_found([module]):
        try:
            yield
        finally:
            for m, values in attributes:
                vars(m).clear()
                vars(m).update(values)
            for container, copy in copies:
                container.clear()
                container.extend(copy) if isinstance(container, list | deque) else container.update(copy)


def unrecorded() -> AbstractContextManager[None]:
    """What runs inside is no part of the step that an audit follows."""
    following = recorder()
    return following.pause() if following else nullcontext()


def _outputs(module: nn.Module, args: Any, kwargs: Any) -> list[Tensor]:
    args, kwargs = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, (args, kwargs))
    return [leaf for leaf in tree_leaves(module(*args, **kwargs)) if isinstance(leaf, Tensor)]


def _difference(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return max((moved(x, y) for x, y in zip(a, b, strict=True)), default=0.0)


def _drops(module: nn.Module) -> bool:
    return isinstance(module, _DROPOUTS) and module.training and module.p > 0


def _detached(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def _random_states() -> tuple[Tensor, ...]:
    on_device = torch.cuda.is_available() and torch.cuda.is_initialized()
    return (torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if on_device else ()))


def _autocasts() -> list[tuple[str, torch.dtype]]:
    return [(d, torch.get_autocast_dtype(d)) for d in ("cpu", "cuda") if torch.is_autocast_enabled(d)]


def _remove_all(handles: Mapping[str, list[Any]]) -> None:
    for each in handles.values():
        remove(each)
