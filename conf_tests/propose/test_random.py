"""Contracts on random networks, against brute force over all single and double edits, judged by autograd alone.

A network is a list of statements, which is rendered as a script for ``propose`` and evaluated here for the brute force.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from stopgrad.__main__ import main

PARTS = "ABCD"
VALUES = 12


@dataclass(frozen=True)
class Node:
    """An expression: a name, or an operation on others. ``at`` tells it from all others, but not in calls of ``f``."""

    op: str
    args: tuple[Node, ...] = ()
    at: int = 0

    def __str__(self) -> str:
        a = [str(arg) for arg in self.args]
        return {"add": "({0} + {1})", "mul": "({0} * {1})", "tanh": "torch.tanh({0})", "sum": "{0}.sum()"}.get(
            self.op, f"{self.op}({{0}})" if a else self.op
        ).format(*a)


@dataclass
class Network:
    """A random one: 12 values, four parts that may be used several times, a function that is called, three losses."""

    seed: int
    body: list[tuple[str, Node]] = field(default_factory=list)
    helper: list[tuple[str, Node]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random, self._count = random.Random(self.seed), itertools.count(1)
        self.helper = [
            ("h", self._node(self._random.choice(PARTS), self._node("u"))),
            ("", self._node("tanh", self._node("h"))),
        ]
        for i in range(VALUES):
            self.body.append((f"v{i}", self._expression(i)))
        for i in range(3):
            terms = [self._node("sum", self._node(f"v{self._random.randrange(4, VALUES)}")) for _ in range(2)]
            self.body.append((f"loss{i}", self._node("add", *terms)))

    def _node(self, op: str, *args: Node) -> Node:
        return Node(op, args, next(self._count))

    def _expression(self, i: int) -> Node:
        pick = lambda: self._node(f"v{self._random.randrange(max(0, i - 5), i)}" if i else "x")  # noqa: E731
        part = self._random.choice(PARTS)
        match self._random.randrange(6):
            case 0:
                return self._node("f", pick())
            case 1:
                return self._node("add", pick(), self._node(part, pick()))
            case 2:
                return self._node("mul", self._node("tanh", pick()), pick())
            case 3:
                return self._node("add", pick(), pick())
            case _:
                return self._node(part, pick())

    def script(self) -> str:
        """A script that trains it for two steps."""
        lines = ["import torch", "from torch import nn", "", "torch.manual_seed(0)"]
        lines += [f"{part} = nn.Linear(3, 3).double()" for part in PARTS] + ["x = torch.randn(2, 3).double()", "", ""]
        (name, made), (_, given) = self.helper
        lines += ["def f(u):", f"    {name} = {made}", f"    return {given}", "", "", "def losses():"]
        lines += [f"    {name} = {expression}" for name, expression in self.body] + [
            "    return loss0, loss1, loss2",
            "",
            "",
        ]
        held = ", ".join(f"*{part}.parameters()" for part in PARTS)
        lines += [f"optimizer = torch.optim.SGD([{held}], lr=0.01)", "for step in range(2):"]
        lines += ["    loss0, loss1, loss2 = losses()", "    optimizer.zero_grad()"]
        lines += [f"    loss{i}.backward(retain_graph=True)" for i in range(3)] + ["    optimizer.step()", ""]
        return "\n".join(lines)

    def edits(self) -> list[tuple[str, object, str]]:
        """All that one edit can be: detach an expression, no_grad around a statement, freeze a part during one."""
        found: list[tuple[str, object, str]] = []
        for name, expression in [*self.body, *self.helper]:
            stack = [expression]
            while stack:
                node = stack.pop()
                found.append(("detach", node.at, ""))
                stack += node.args
            found.append(("no_grad", name, ""))
            found += [("freeze", name, part) for part in PARTS if name]
        return found + [("freeze", "losses", part) for part in PARTS]


class Evaluated:
    """The gradients of a network, with some edits in it."""

    def __init__(self, network: Network) -> None:
        torch.manual_seed(0)
        self.parts = {part: nn.Linear(3, 3).double() for part in PARTS}
        self.x = torch.randn(2, 3).double()
        self.network = network

    def gradients(self, edits):
        """The gradient of each loss at each part, a vector; None where nothing arrives."""
        self._edits = set(edits)
        values = {"x": self.x}
        frozen = [part for kind, name, part in self._edits if kind == "freeze" and name == "losses"]
        self._set(frozen, False)
        self._run(self.network.body, values)
        self._set(frozen, True)
        return gradients_of([values[f"loss{i}"] for i in range(3)], self.parts)

    def _set(self, parts, requires_grad):
        for part in parts:
            self.parts[part].requires_grad_(requires_grad)

    def _run(self, body, values):
        for name, expression in body:
            frozen = [p for kind, at, p in self._edits if kind == "freeze" and at == name]
            frozen = [p for p in frozen if self.parts[p].weight.requires_grad]
            self._set(frozen, False)
            with torch.set_grad_enabled(torch.is_grad_enabled() and ("no_grad", name, "") not in self._edits):
                values[name] = self._value(expression, values)
            self._set(frozen, True)
        return values[name]

    def _value(self, node, values):
        a = [self._value(arg, values) for arg in node.args]
        match node.op:
            case "add":
                made = a[0] + a[1]
            case "mul":
                made = a[0] * a[1]
            case "tanh":
                made = torch.tanh(*a)
            case "sum":
                made = a[0].sum()
            case "f":
                made = self._run(self.network.helper, {"u": a[0]})
            case op:
                made = self.parts[op](*a) if a else values[op]
        return made.detach() if ("detach", node.at, "") in self._edits else made


def gradients_of(losses, parts):
    parameters = [p for module in parts.values() for p in module.parameters()]
    found = {}
    for i, loss in enumerate(losses):
        each = [None] * len(parameters)
        if loss.requires_grad:
            each = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        for k, part in enumerate(parts):  # of each a weight and a bias
            got = [g for g in each[2 * k : 2 * k + 2] if g is not None]
            found[f"loss{i}", part] = nn.utils.parameters_to_vector(got) if got else None
    return found


def meets(after, before, barred, whole=True):
    """Nothing arrives where it must not, and elsewhere what did before; or, not ``whole``, anything."""
    for cell, gradient in before.items():
        now = after[cell]
        if gradient is None:
            continue
        if (now is None) != (cell in barred):
            return False
        if now is not None and whole and not torch.allclose(now, gradient, rtol=1e-9, atol=1e-12):
            return False
    return True


def contract(seed):
    """A random network, and one or two cells that are open in it."""
    for attempt in itertools.count():
        network = Network(1000 * seed + attempt)
        evaluated = Evaluated(network)
        before = evaluated.gradients([])
        reached = [cell for cell, gradient in before.items() if gradient is not None]
        barred = random.Random(seed).sample(reached, min(len(reached), 1 + seed % 2))
        if len(reached) >= 6 and {loss for loss, _ in barred} <= {loss for loss, _ in {*reached} - {*barred}}:
            return network, evaluated, before, barred  # a loss that reaches nothing has no backward


def smallest(network, evaluated, before, barred, whole):
    """The size of the smallest set of one or two edits that meets the contract; 3 where none does.

    A cut takes ways away, and no other gives them back: what does harm alone is in no set, nor is what does nothing.
    """
    harmless = []
    for edit in network.edits():
        after = evaluated.gradients([edit])
        if meets(after, before, barred, whole):
            return 1
        same = (after[c] is not None and after[c].equal(before[c]) for c in barred)
        if meets({**after, **dict.fromkeys(barred)}, before, barred, whole) and not all(same):
            harmless.append(edit)
    pairs = itertools.combinations(harmless, 2)
    return 2 if any(meets(evaluated.gradients(pair), before, barred, whole) for pair in pairs) else 3


def run_of(text):
    """The gradients of a script's losses in its first step, by autograd."""
    space = {"__name__": "__main__"}
    exec(compile(text.replace("optimizer.step()", "break"), "generated", "exec"), space)
    return gradients_of([space[f"loss{i}"] for i in range(3)], {part: space[part] for part in PARTS})


def check(seed, tmp_path, capsys, monkeypatch):
    network, evaluated, before, barred = contract(seed)
    script = tmp_path / f"net{seed}.py"
    script.write_text(network.script())
    monkeypatch.chdir(tmp_path)
    same = run_of(script.read_text())
    assert all((same[c] is None) == (g is None) and (g is None or torch.equal(same[c], g)) for c, g in before.items())
    wishes = [word for loss, part in barred for word in ("--not", f"{loss}:{part}")]
    status = main(["propose", *wishes, "--json", "answer.json", "--write", script.name])
    said = capsys.readouterr()
    answer = json.loads((tmp_path / "answer.json").read_text())
    size = smallest(network, evaluated, before, barred, whole=True)
    if size <= 2:
        assert status == 0, said
        assert len(answer["edits"]) == size, said.out
        assert answer["verified"]
        assert meets(run_of(script.read_text()), before, barred), said.out
        return size
    if status == 0:
        weaker = "by fewer ways than before" in said.out
        assert meets(run_of(script.read_text()), before, barred, whole=not weaker), said.out
        if weaker:
            least = smallest(network, evaluated, before, barred, whole=False)
            assert len(answer["edits"]) == least or least == 3, said.out
        else:
            assert len(answer["edits"]) >= 3
    else:
        assert smallest(network, evaluated, before, barred, whole=False) == 3, said.out
        assert re.search(r"contradict|lies on its way", said.out)
    return 0


@pytest.mark.parametrize("seed", range(6))
def test_a_contract(seed, tmp_path, capsys, monkeypatch):
    check(seed, tmp_path, capsys, monkeypatch)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(6, 200))
def test_more_contracts(seed, tmp_path, capsys, monkeypatch):
    check(seed, tmp_path, capsys, monkeypatch)
