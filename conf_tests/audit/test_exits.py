"""An exception at any line of an audit's exit leaves nothing behind, or nothing that a second exit does not remove."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import lightning as L
import pytest
from torch import nn
from torch.optim import SGD

from conf_tests.audit.test_lightning import Gan
from conf_tests.installed import global_hooks, hooks_on, modes, packs_saved_tensors, step_hooks
from stopgrad import audit
from stopgrad.cuts.watcher import watcher
from stopgrad.freeze import FreezeWatch
from stopgrad.lightning import FlowAudit, FreezeAudit
from stopgrad.retention import guard_saved
from stopgrad.steps import StepWatch


class Interrupt(BaseException):
    """What Ctrl-C does, at a chosen line."""


SUBMIT = ThreadPoolExecutor.submit


def _leaves(net: nn.Module) -> list[str]:
    """What is still on."""
    state = {
        "modes": modes(),
        "watcher": watcher() is not None,
        "hooks on steps": step_hooks(),
        "hooks on all modules": global_hooks(),
        "hooks": hooks_on(net),
        "hooks on saved tensors": packs_saved_tensors(),
        "profiles of new threads": threading.getprofile() is not None,
        "executors": ThreadPoolExecutor.submit is not SUBMIT,
    }
    return [name for name, value in state.items() if value]


def _interrupted(leave: Callable[[], Any], at: int) -> bool:
    """Whether ``leave`` has a line of ours with this number, at which it was interrupted."""
    count = 0

    def trace(frame: Any, event: str, arg: Any) -> Any:
        nonlocal count
        if "/stopgrad/" not in frame.f_code.co_filename:
            return None
        if event == "line":
            count += 1
            if count > at:
                raise Interrupt  # Python switches tracing off
        return trace

    sys.settrace(trace)
    try:
        leave()
    except Interrupt:
        return True
    finally:
        sys.settrace(None)
    return False


def _audit(net: nn.Module) -> Callable[[], Any]:
    on = audit(net, draw=True).__enter__()
    return lambda: on.__exit__(None, None, None)


def _freeze(net: nn.Module) -> Callable[[], Any]:
    on = FreezeWatch(net, [SGD(net.parameters(), 0.1)]).__enter__()
    return lambda: on.__exit__(None, None, None)


def _steps(net: nn.Module) -> Callable[[], Any]:
    on = StepWatch(net, [SGD(net.parameters(), 0.1)]).__enter__()
    return lambda: on.__exit__(None, None, None)


def _guard(net: nn.Module) -> Callable[[], Any]:
    on = guard_saved().__enter__()
    return lambda: on.__exit__(None, None, None)


def _callback(kind: type[L.Callback], end: str) -> Callable[[Any], Callable[[], Any]]:
    def build(net: L.LightningModule) -> Callable[[], Any]:
        trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
        trainer.strategy.optimizers = [SGD(net.parameters(), 0.1)]
        callback = kind()
        callback.on_train_start(trainer, net)
        callback.on_train_batch_start(trainer, net, None, 0)
        arguments = (KeyboardInterrupt(),) if end == "on_exception" else ("fit",)
        return lambda: getattr(callback, end)(trainer, net, *arguments)

    return build


def test_what_was_audited_goes_with_its_last_reference() -> None:
    """Without a collection: who notes when a model ends looks at nothing else."""
    net = nn.Linear(2, 1)
    ref = weakref.ref(net.weight)
    gc.disable()
    try:
        _audit(net)()
        del net
        assert ref() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("build", "unprotected"),
    [
        (_audit, 1),
        (_freeze, 1),
        (_steps, 1),
        (_guard, 1),
        (_callback(FlowAudit, "on_exception"), 2),
        (_callback(FlowAudit, "teardown"), 1),
        (_callback(FreezeAudit, "on_exception"), 2),
        (_callback(FreezeAudit, "teardown"), 2),
    ],
    ids=[
        "audit",
        "FreezeWatch",
        "StepWatch",
        "guard_saved",
        "FlowAudit",
        "FlowAudit.end",
        "FreezeAudit",
        "FreezeAudit.end",
    ],
)
def test_an_exception_at_any_line_of_the_exit(build: Callable[[Any], Callable[[], Any]], unprotected: int) -> None:
    """The first line cannot protect itself: Lightning calls a second exit, and so may the user."""
    net = Gan()
    net.generator.requires_grad_(False)
    for line in range(1000):
        leave = build(net)
        assert _leaves(net)
        if not _interrupted(leave, line):
            break
        if line >= unprotected:
            assert _leaves(net) == [], f"line {line}"
        leave()
        assert _leaves(net) == [], f"line {line}, and again"
    assert line > unprotected + 3
    assert _leaves(net) == []
