"""A watch over one training of a program, which a trainer's callback begins and ends."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn
from torch.optim import Optimizer

from stopgrad.watch import hooks
from stopgrad.watch.report import Report
from stopgrad.watch.settings import silenced
from stopgrad.watch.tracebacks import without_ours
from stopgrad.watch.watch import Watch


class Session:
    """Watches from here on, as ``python -m stopgrad run`` does, until :meth:`end`; inside of that, it reads its watch.

    Args:
        name: of the module, where no variable of the script holds it.
        module: what is trained.
        every: measure every so many cycles, after the first ones.
        parts: of the module, in place of its children.

    Attributes:
        is_outer: no other watch was on: this one has to tell what it found.

    Raises:
        ValueError: a silenced finding of pyproject.toml that does not exist, or a reason that is none.
    """

    def __init__(
        self, name: str, module: nn.Module, every: int = 100, parts: Mapping[str, Sequence[Tensor]] | None = None
    ) -> None:
        self._silenced = silenced(Path.cwd(), [])
        around = hooks.listening()
        self.is_outer = not isinstance(around, Watch)
        self.watch = around if isinstance(around, Watch) else Watch(every=every)
        if self.is_outer:
            self._hooks = hooks.overhear(self.watch)
            self._hooks.__enter__()
        self.watch.parts.look()  # the script's own name for the module comes first
        self.watch.parts.add(name, module, weak=True)
        self.watch.parts.declared = dict(parts or {})

    def meet(self, optimizer: Optimizer) -> None:
        """An optimiser that was made before the watch began."""
        if all(known.optimizer() is not optimizer for known in self.watch.ledger.optimizers.values()):
            self.watch.made(optimizer)

    def end(self, error: BaseException | None = None, broken: bool = False) -> Report:
        """What was seen; an outer watch goes on.

        Args:
            error: what ended the training. Its traceback loses our frames.
            broken: it was ended by what is not known any more.
        """
        try:
            self.watch.close(ended=error is None and not broken)
            return Report.of(self.watch, sys.argv[0], self._silenced, error)
        finally:
            if self.is_outer:
                self._hooks.__exit__(None, None, None)
            if error is not None:
                error.__traceback__ = without_ours(error.__traceback__)
