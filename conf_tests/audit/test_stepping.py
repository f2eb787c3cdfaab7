"""The audit looks away while an optimiser of PyTorch's steps: from its own operations, and from nothing else."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adafactor, AdamW, Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from conf_tests.audit.test_lightning import Gan, fit
from conf_tests.installed import hooks_on, modes
from stopgrad import audit
from stopgrad.flow.sites import Recorder
from stopgrad.flow.stepping import pass_by
from stopgrad.lightning import FlowAudit

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore:.*does not have many workers")

HOOKS: dict[str, Callable[[Optimizer, Any], Any]] = {
    "own, before": lambda optimizer, hook: optimizer.register_step_pre_hook(hook),
    "own, after": lambda optimizer, hook: optimizer.register_step_post_hook(hook),
    "of all, before": lambda _, hook: register_optimizer_step_pre_hook(hook),
    "of all, after": lambda _, hook: register_optimizer_step_post_hook(hook),
}


class Step:
    """A step during which something copies the student, and a second loss that is computed from the copy."""

    def __init__(self, kind: type[Optimizer] = SGD) -> None:
        torch.manual_seed(0)
        self.student, self.head = nn.Linear(2, 2), nn.Linear(2, 2)
        self.parts = {"student": self.student, "head": self.head}
        self.copied = torch.zeros(2, 2)
        self.optimizer = kind([*self.student.parameters(), *self.head.parameters()], lr=0.1)  # pyright: ignore[reportCallIssue]

    def copy(self, *_: Any) -> None:
        with torch.no_grad():
            self.copied.copy_(self.student.weight)

    def backward(self) -> Tensor:
        loss = self.head(self.student(torch.ones(1, 2))).square().sum()
        loss.backward()
        return loss

    def after(self) -> Tensor:
        return (self.head(torch.ones(1, 2)) @ self.copied).sum()


def told(step: Step, run: Callable[[Step], object], *, passes_by: bool = True, late: Any = None) -> Any:
    """The cells of the second loss."""
    with audit(step.parts) as a, ExitStack() as stack:
        for handle in pass_by(step.optimizer) if passes_by else ():
            stack.callback(handle.remove)
        if late is not None:
            late()
        run(step)
        a.loss("after", step.after())
        return {part: a.matrix()["after", part] for part in step.parts}


@pytest.mark.parametrize("late", [False, True], ids=["hooked before", "hooked inside the audit"])
@pytest.mark.parametrize("kind", HOOKS)
def test_what_hooks_of_the_step_do_is_seen(kind: str, late: bool) -> None:
    def cells(passes_by: bool) -> Any:
        step = Step()
        handles = []

        def hook() -> None:
            handles.append(HOOKS[kind](step.optimizer, step.copy))

        if not late:
            hook()
        try:
            run = lambda step: (step.backward(), step.optimizer.step())  # noqa: E731
            return told(step, run, passes_by=passes_by, late=hook if late else None)
        finally:
            handles[0].remove()

    found = cells(passes_by=True)
    assert found == cells(passes_by=False)
    assert found["student"].state == "blocked"
    assert [cut.kind for cut in found["student"].cuts] == ["no_grad"]


@pytest.mark.parametrize("by_name", [False, True])
def test_what_a_closure_does_is_seen(by_name: bool) -> None:
    def run(step: Step) -> None:
        def closure() -> Any:
            step.optimizer.zero_grad()
            step.copy()
            return step.backward()

        step.optimizer.step(closure=closure) if by_name else step.optimizer.step(closure)

    found = told(Step(), run)
    assert found == told(Step(), run, passes_by=False)
    assert found["student"].state == "blocked"


@pytest.mark.parametrize("closure", [None, lambda: 0.0], ids=["plain", "with a closure"])
@pytest.mark.parametrize("kind", [SGD, AdamW, Adafactor])
def test_none_of_the_steps_own_operations_is_seen(
    kind: type[Optimizer], closure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    whole = Recorder.__torch_function__

    def noted(self: Recorder, func: Any, *args: Any) -> Any:
        seen.append(func)
        return whole(self, func, *args)

    def count(passes_by: bool) -> tuple[int, list[Tensor]]:
        step = Step(kind)
        step.backward()
        with audit(step.parts), ExitStack() as stack:
            for handle in pass_by(step.optimizer) if passes_by else ():
                stack.callback(handle.remove)
            seen.clear()
            step.optimizer.step(closure)
            return len(seen), [*step.student.parameters(), *step.head.parameters()]

    monkeypatch.setattr(Recorder, "__torch_function__", noted)
    (some, after), (most, before) = count(passes_by=True), count(passes_by=False)
    assert some <= 4 < most  # the step begins and ends with a profiler's
    assert all(map(torch.equal, after, before))


class Raises(RuntimeError):
    pass


@pytest.mark.parametrize("where", ["closure", "step"])
def test_a_step_that_raises(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(*_: Any, **__: Any) -> Any:
        raise Raises

    def run(step: Step) -> None:
        step.backward()
        if where == "step":
            monkeypatch.setattr(inspect.getmodule(SGD), "sgd", raising)
        with pytest.raises(Raises):
            step.optimizer.step(raising if where == "closure" else None)
        step.copy()

    found = told(Step(), run)["student"]
    assert not modes()
    if where == "closure":
        assert found.state == "blocked"
    else:  # the copy was not seen, and that is said
        assert found.state == "opaque"
        assert "an optimiser's step that raised" in found.note


def test_an_optimiser_that_is_not_pytorchs_is_watched() -> None:
    class Own(SGD):
        pass

    step = Step(Own)
    with audit(step.parts):
        assert pass_by(step.optimizer) == []
    assert pass_by(Step().optimizer) == []  # no audit is on


def test_no_hook_stays_on_an_optimiser() -> None:
    module = Gan()
    found = []

    class Looks(FlowAudit):
        def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
            found.append(hooks_on(*trainer.optimizers))
            super().on_train_batch_end(trainer, *args, **kwargs)
            found.append(hooks_on(*trainer.optimizers))

    fit(module, Looks(2), batches=2)
    assert found == [4, 0, 0, 0]  # two on each optimiser, in the first batch
