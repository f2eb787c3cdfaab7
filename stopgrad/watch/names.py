"""Names as the script gives them: a loss by the variable whose backward runs, a module by the one that holds it."""

from __future__ import annotations

import ast
import inspect
import itertools
import linecache
import os
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from functools import cache, lru_cache
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn

from stopgrad.audits.retention import Kept, measured
from stopgrad.audits.search import search
from stopgrad.flow.frames import is_library

# Calls that hand a loss on as it is: `scaler.scale(loss).backward()`, `accelerator.backward(loss)`.
_HANDS_ON = {"scale", "backward", "manual_backward", "mean", "sum", "float", "to", "_scale_loss"}
_TORCH_AND_US = tuple(os.path.dirname(os.path.abspath(f)) + os.sep for f in (torch.__file__, os.path.dirname(__file__)))
_LIBRARIES = {"transformers", "accelerate", "peft", "trl", "apex", "deepspeed", "ignite", "fastai"}

said: ContextVar[str | None] = ContextVar("stopgrad_loss_name", default=None)  # a loss's name, by loss_name()


@cache
def _is_library(file: str) -> bool:
    return is_library(file) or bool(_LIBRARIES & set(file.replace("\\", "/").split("/")))


_RUN = os.path.join("stopgrad", "watch", "run.py")
_IPYTHON = os.path.join("", "IPython", "core", "")
_CACHES = re.compile(r"In|Out|_+|_\d+|_i+|_i\d+|_[ido]h")  # where IPython keeps inputs and results


def user_frames() -> Iterator[FrameType]:
    """The frames of the script's own code, from the innermost out."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.endswith(_RUN) or _IPYTHON in file:  # what called us, or a notebook's cell, is not the script
            return
        if not _is_library(file):
            yield frame
        frame = frame.f_back


def loss_name(fallback: str = "loss") -> tuple[str, str, int]:
    """(name, file, line) of the loss whose backward runs: the variable, or expression, in the calling line.

    A helper's argument is named as its caller names it; what a trainer runs the backward of, as ``training_step``
    returns it. Where no name can be read: ``fallback``. What ``stopgrad.lightning.loss_name`` says comes first.
    """
    name, file, line = _step_returns() or _called_for(fallback)
    return said.get() or name or fallback, file, line


def _step_returns() -> tuple[str, str, int] | None:
    """The loss that the script's ``training_step`` returns; None where no trainer of its runs the backward."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and is_library(frame.f_code.co_filename):
        if frame.f_code.co_name == "backward":
            owner = frame.f_locals.get("self")
            automatic = getattr(owner, "automatic_optimization", False)
            step = getattr(type(owner), "training_step", None) if automatic else None
            code = getattr(inspect.unwrap(step), "__code__", None) if step is not None else None
            if code is not None and not is_library(code.co_filename):
                return returned(code)
        frame = frame.f_back
    return None


@lru_cache(maxsize=64)
def returned(code: CodeType) -> tuple[str, str, int]:
    """The variable that a function returns, also as ``{"loss": variable}``, and where it first does; "" for several."""
    first = code.co_firstlineno
    lines = linecache.getlines(code.co_filename)[first - 1 :]  # inspect would ask every module for its file
    try:
        tree = ast.parse(textwrap.dedent("".join(inspect.getblock(lines)))) if lines else None
    except SyntaxError:
        tree = None
    if tree is None:
        return "", code.co_filename, first
    inner = {n for f in ast.walk(tree.body[0]) if f is not tree.body[0] for n in ast.walk(f) if isinstance(f, _SCOPES)}
    returns = [n for n in ast.walk(tree) if isinstance(n, ast.Return) and n.value is not None and n not in inner]
    names = {}
    for value in (n.value for n in returns):
        if isinstance(value, ast.Dict):
            pairs = zip(value.keys, value.values, strict=True)
            value = next((v for k, v in pairs if isinstance(k, ast.Constant) and k.value == "loss"), value)
        if not (isinstance(value, ast.Constant) and value.value is None):
            plain = value is not None and all(isinstance(n, _PLAIN) for n in ast.walk(value))
            names[_spelled(value) if plain and value is not None else ""] = None
    line = first - 1 + min((n.lineno for n in returns), default=1)
    return (*names,)[0] if len(names) == 1 else "", code.co_filename, line


_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_PLAIN = (ast.Name, ast.Attribute, ast.BinOp, ast.operator, ast.Constant, ast.expr_context)


def _called_for(fallback: str) -> tuple[str, str, int]:
    frames = list(user_frames())
    if not frames:
        return fallback, "", 0
    place = frames[0].f_code.co_filename, frames[0].f_lineno
    name, called = _loss_in(_call_at(frames[0])), frames[0]
    for caller in frames[1:]:
        code = called.f_code
        if called.f_back is not caller or name not in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]:
            break
        argument = _argument(_call_at(caller), code, name)
        if argument is None:
            break
        name, called = argument, caller
    return (name or fallback, *place)


def _call_at(frame: FrameType) -> ast.Call | None:
    """The call that the frame is in."""
    calls = _calls(frame.f_code.co_filename, frame.f_lineno)
    positions = getattr(frame.f_code, "co_positions", None)  # from Python 3.11 on
    if positions is not None:
        position = next(itertools.islice(positions(), frame.f_lasti // 2, None))
        exact = [c for c in calls if (c.lineno, c.end_lineno, c.col_offset, c.end_col_offset) == position]
        if exact:
            return exact[0]
    named = [c for c in calls if _called_name(c) in ("backward", "manual_backward", "grad")]
    return (named or calls or [None])[0]


@lru_cache(maxsize=512)
def _calls(file: str, line: int) -> list[ast.Call]:
    """The calls of a file that cover a line, the outermost first."""
    return [c for c in _all_calls(file) if c.lineno <= line <= (c.end_lineno or c.lineno)]


@lru_cache(maxsize=64)
def _nodes(file: str) -> list[ast.AST]:
    """Of a file's source; none where it is not Python alone, as a notebook's cell with its own commands."""
    try:
        return list(ast.walk(ast.parse("".join(linecache.getlines(file)))))
    except (SyntaxError, ValueError):
        return []


@lru_cache(maxsize=64)
def _all_calls(file: str) -> list[ast.Call]:
    return [node for node in _nodes(file) if isinstance(node, ast.Call)]


def _called_name(call: ast.Call) -> str:
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def _loss_in(call: ast.Call | None) -> str | None:
    """``d_loss`` of ``d_loss.backward()``, ``scaler.scale(d_loss).backward()`` and ``accelerator.backward(d_loss)``."""
    if call is None or _called_name(call) not in ("manual_backward", "backward", "grad"):
        return None
    if call.args:
        return _spelled(call.args[0])
    return _spelled(call.func.value) if isinstance(call.func, ast.Attribute) else None


def _spelled(node: ast.expr) -> str:
    """The expression as a person would name it: without what only hands it on."""
    while True:
        if isinstance(node, ast.Call) and _called_name(node) in _HANDS_ON:
            if node.args and _called_name(node) in ("scale", "backward", "_scale_loss"):
                node = node.args[0]
            elif isinstance(node.func, ast.Attribute):
                node = node.func.value
            else:
                break
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div | ast.Mult) and _is_factor(node.right):
            node = node.left
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult) and _is_factor(node.left):
            node = node.right
        else:
            break
    text = ast.unparse(node).removeprefix("self.")
    return text if len(text) <= 40 else f"{text[:37]}..."


def _is_factor(node: ast.expr) -> bool:
    """Whether an expression is a number that scales a loss, such as the steps of an accumulation."""
    return not any(
        isinstance(n, ast.Name | ast.Attribute) and "loss" in ast.unparse(n).lower() for n in ast.walk(node)
    ) and isinstance(node, ast.Constant | ast.Name | ast.Attribute)


def _argument(call: ast.Call | None, called: CodeType, parameter: str) -> str | None:
    """What ``call`` gives for the parameter of the function that it calls."""
    if call is None:
        return None
    for keyword in call.keywords:
        if keyword.arg == parameter:
            return _spelled(keyword.value)
    names = called.co_varnames[: called.co_argcount]
    if parameter not in names:
        return None
    place = names.index(parameter)
    if names and names[0] in ("self", "cls") and isinstance(call.func, ast.Attribute):
        place -= 1
    if 0 <= place < len(call.args) and not any(isinstance(a, ast.Starred) for a in call.args):
        return _spelled(call.args[place])
    return None


def assigned_name() -> str:
    """The variable that gets what is being made: where the script itself makes it, or calls what does; "" for none."""
    maker: FrameType | None = sys._getframe(1)
    while maker is not None and maker.f_code.co_filename.startswith(_TORCH_AND_US):
        maker = maker.f_back
    frames = list(user_frames())
    if not frames or maker is not frames[0]:
        return ""
    for frame, caller in zip(frames, [None, *frames], strict=False):
        if caller is not None and caller.f_back is not frame:
            return ""
        for node in _assignments(frame.f_code.co_filename, frame.f_lineno):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            target, value = targets[0], node.value
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
                inside = [
                    t
                    for t, v in zip(target.elts, value.elts, strict=True)
                    if v.lineno <= frame.f_lineno <= (v.end_lineno or 0)
                ]
                target = inside[0] if len(inside) == 1 else target
            if isinstance(target, ast.Name | ast.Attribute):
                return ast.unparse(target).removeprefix("self.")
    return ""


@lru_cache(maxsize=256)
def loop_variables(file: str) -> frozenset[str]:
    """The names that a ``for`` of a file gives to one thing after the other."""
    targets = [node.target for node in _nodes(file) if isinstance(node, ast.For | ast.comprehension)]
    return frozenset(n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name))


@lru_cache(maxsize=256)
def _assignments(file: str, line: int) -> list[ast.Assign | ast.AnnAssign]:
    """The assignments whose value covers a line, the innermost first."""
    found = [
        node
        for node in _nodes(file)
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
        if node.value.lineno <= line <= (node.value.end_lineno or node.value.lineno)
    ]
    return sorted(found, key=lambda node: -node.lineno)


_OF_MODULES = {"_modules", "_parameters", "_buffers"}


def modules_of(namespace: Mapping[str, Any]) -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of every module that a namespace holds, also in its lists, tuples and dicts."""
    for name, value in list(namespace.items()):
        if name.startswith("__") or name in _OF_MODULES:
            continue
        if isinstance(value, nn.Module):
            yield name, value
        elif isinstance(value, list | tuple) and 0 < len(value) <= 64:
            yield from ((f"{name}[{i}]", item) for i, item in enumerate(value) if isinstance(item, nn.Module))
        elif isinstance(value, dict) and 0 < len(value) <= 64:
            yield from ((f"{name}[{k!r}]", item) for k, item in value.items() if isinstance(item, nn.Module))


def variable_of(value: Any) -> str:
    """The name of the variable that holds a value, in the script's frames that run now; "" where none does."""
    for frame in user_frames():
        owner = frame.f_locals.get("self")
        spaces = [frame.f_locals, vars(owner) if hasattr(owner, "__dict__") else {}, frame.f_globals]
        for space in map(_own, spaces):
            for name, held in list(space.items()):
                if held is value and name != "self":
                    return name
    return ""


def spaces() -> Iterator[tuple[FrameType, Mapping[str, Any]]]:
    """The variables of the script's frames that run now, and what their ``self`` holds; each namespace once."""
    seen: set[int] = set()
    for frame in user_frames():
        owner = frame.f_locals.get("self")
        own = {**vars(owner), **vars(owner).get("_modules", {})} if hasattr(owner, "__dict__") else {}
        for space, key in ((frame.f_locals, id(frame)), (own, id(owner)), (frame.f_globals, id(frame.f_globals))):
            if key not in seen:
                seen.add(key)
                yield frame, _own(space)


def _own(space: Mapping[str, Any]) -> Mapping[str, Any]:
    """A namespace without what IPython adds to that of a notebook."""
    if "get_ipython" not in space:
        return space
    return {name: value for name, value in list(space.items()) if not _CACHES.fullmatch(name)}


def words(name: str) -> list[str]:
    """``["q", "target"]`` of ``qTarget``, ``q_target2`` and ``q_target``."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]


_COPIES = ("targ", "ema", "averag", "momentum", "shadow", "avg", "swa")
_TEACHERS = ("teacher", "ref", "reference", "old", "frozen")
_SOURCES = ("source", "src", "context")
_STANDS = ("target", "targets", "goal", "teacher", "ref", "label", "labels", "pseudo", "advantage", "advantages")
_POLICY = {"log", "logp", "logprob", "logprobs", "prob", "probs", "logits", "pi", "policy"}  # of an old policy
_STATES = ("prev", "previous")
_NOT_A_VALUE = ("loss", "pred", "predicted", "predictions", "output", "outputs", "err", "error", "grad")


def is_copy(name: str) -> bool:
    """Whether a network's name says that it follows another."""
    return any(word.startswith(_COPIES[:1]) or word in _COPIES or word.startswith("averag") for word in words(name))


def stands_still(name: str) -> bool:
    """Whether a network's name says that no optimiser is to step it."""
    return is_copy(name) or any(word in _TEACHERS for word in words(name))


def is_source(name: str) -> bool:
    """Whether the name is of what has a target beside it: of a translation, of another domain."""
    return any(word in _SOURCES for word in words(name))


def standing_values() -> Iterator[tuple[str, Tensor, bool]]:
    """(name, tensor, whether it is a state) of the variables whose name says that they stand still, with a graph."""
    for _, space in spaces():
        for name, value in list(space.items()):
            if isinstance(value, Tensor) and value.grad_fn is not None:
                said = words(name)
                is_state = any(word in _STATES for word in said)
                still = is_state or any(word in _STANDS for word in said) or ("old" in said and _POLICY & set(said))
                if still and not any(word in _NOT_A_VALUE for word in said):
                    yield name, value, is_state


def scalars() -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of the scalars with a graph that the script's variables hold, also in a dict by its keys."""
    for _, space in spaces():
        for name, value in list(space.items()):
            held = value.items() if isinstance(value, dict) and len(value) <= 64 else ((name, value),)
            for key, tensor in list(held):
                if isinstance(tensor, Tensor) and tensor.grad_fn is not None and tensor.numel() == 1:
                    yield str(key), tensor


def kept_in_frames(seconds: float = 0.2) -> list[Kept]:
    """What the script's variables keep of graphs, beyond what a step of it needs: lists and objects, not tensors."""
    roots: dict[str, Any] = {}
    for _, space in spaces():
        for name, value in list(space.items()):
            if isinstance(value, Tensor):
                if value.grad_fn is not None:
                    roots.setdefault(name, value)
            elif (
                not name.startswith("__")
                and not callable(value)
                and not isinstance(value, str | int | float | type(ast))
            ):
                roots.setdefault(name, value)
    return measured(search(roots, seconds=seconds).tensors)
