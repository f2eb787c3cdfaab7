"""Any stop of any script, done otherwise in memory: what comes of it is what the edited source gives, bit for bit."""

from __future__ import annotations

import ast
import json
import re
import sys
import threading

import pytest
import torch
from torch import nn

from conf_tests.ablate.scripts import gan
from conf_tests.watch.processes import failures, python
from stopgrad.rewrite.source import execute, finished
from stopgrad.rewrite.stops import named, stops_in, stops_of
from stopgrad.rewrite.switches import Switches, chosen

# A script, the stop that is switched, and the edit of the source that it stands for: (old, new).
HEAD = """\
import torch
from torch import nn
from stopgrad import Boundary

torch.manual_seed(0)
net, head = nn.Linear(4, 4), nn.Linear(4, 1)
optimizer = torch.optim.SGD([*net.parameters(), *head.parameters()], 0.1)


def update(loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


"""
TAIL = """
for tensor in (*net.parameters(), *head.parameters()):
    print(tensor.tolist(), tensor.requires_grad)
"""
SCALED = "(lambda t: t.detach() + 0.5 * (t - t.detach()))"
EDITS = {
    "detach": ("update(head(net(torch.ones(2, 4)).detach()).sum())", "detach", "none", ".detach()", ""),
    "detach under no_grad": (
        "update(head(net(torch.ones(2, 4)).detach()).sum())",
        "detach",
        "no_grad",
        "net(torch.ones(2, 4)).detach()",
        "torch.no_grad()(net)(torch.ones(2, 4))",
    ),
    "detach of a variable": (
        "x = net(torch.ones(2, 4))\nupdate((head(x) * x.detach()).sum())",
        "detach",
        "none",
        "x.detach()",
        "x",
    ),
    "torch.detach": ("update(head(torch.detach(net(torch.ones(2, 4)))).sum())", "detach", "none", "torch.detach", ""),
    "detach_": ("x = net(torch.ones(2, 4))\nx.detach_()\nupdate(head(x).sum())", "detach_", "none", "x.detach_()", ""),
    "data": ("update(head(net(torch.ones(2, 4)).data).sum())", "data", "none", ".data", ""),
    "no_grad": (
        "with torch.no_grad():\n    x = net(torch.ones(2, 4))\nupdate(head(x).sum())",
        "no_grad",
        "none",
        "with torch.no_grad()",
        "if True",
    ),
    "a decorator": (
        "@torch.no_grad()\ndef f(x): return net(x)\nupdate(head(f(torch.ones(2, 4))).sum())",
        "no_grad",
        "none",
        "@torch.no_grad()",
        "",
    ),
    "a bare decorator": (
        "@torch.no_grad\ndef f(x): return net(x)\nupdate(head(f(torch.ones(2, 4))).sum())",
        "no_grad",
        "none",
        "@torch.no_grad",
        "",
    ),
    "a decorated generator": (
        "@torch.no_grad()\ndef f(x): yield net(x)\nupdate(head([*f(torch.ones(2, 4))][0]).sum())",
        "no_grad",
        "none",
        "@torch.no_grad()",
        "",
    ),
    "a recursion": (
        "@torch.no_grad()\ndef f(x, n): return f(net(x), n - 1) if n else x\n"
        "update(head(f(torch.ones(2, 4), 3)).sum())",
        "no_grad",
        "none",
        "@torch.no_grad()",
        "",
    ),
    "a context that is kept": (
        "context = torch.no_grad\nwith context():\n    x = net(torch.ones(2, 4))\nupdate(head(x).sum())",
        "no_grad",
        "none",
        "context = torch.no_grad",
        "import contextlib; context = contextlib.nullcontext",
    ),
    "set_grad_enabled": (
        "torch.set_grad_enabled(False)\nx = net(torch.ones(2, 4))\ntorch.set_grad_enabled(True)\nupdate(head(x).sum())",
        "set_grad_enabled",
        "none",
        "torch.set_grad_enabled(False)",
        "",
    ),
    "set_grad_enabled as a decorator": (
        "@torch.set_grad_enabled(False)\ndef f(x): return net(x)\nupdate(head(f(torch.ones(2, 4))).sum())",
        "set_grad_enabled",
        "none",
        "@torch.set_grad_enabled(False)",
        "",
    ),
    "a decorator of a name alone": (
        "from torch import no_grad\n@no_grad\ndef f(x): return net(x)\nupdate(head(f(torch.ones(2, 4))).sum())",
        "no_grad",
        "none",
        "@no_grad",
        "",
    ),
    "requires_grad_": (
        "net.requires_grad_(False)\nupdate(head(net(torch.ones(2, 4))).sum())",
        "requires_grad_",
        "none",
        "net.requires_grad_(False)",
        "",
    ),
    "a flag": (
        "for p in net.parameters():\n    p.requires_grad = False\nupdate(head(net(torch.ones(2, 4))).sum())",
        "requires_grad",
        "none",
        "p.requires_grad = False",
        "pass",
    ),
    "zero_grad never": (
        "for _ in range(3): update(head(net(torch.ones(2, 4))).square().sum())",
        "zero_grad",
        "never",
        "optimizer.zero_grad()",
        "",
    ),
    "zero_grad late": (
        "head(net(torch.ones(2, 4))).sum().backward()\n"
        "for _ in range(3): update(head(net(torch.ones(2, 4))).square().sum())",
        "zero_grad",
        "late",
        "optimizer.zero_grad()\n    loss.backward()\n    optimizer.step()",
        "loss.backward()\n    optimizer.step()\n    optimizer.zero_grad()",
    ),
    "autograd.grad": (
        "x = torch.ones(2, 4, requires_grad=True)\n"
        "g, = torch.autograd.grad(head(net(x).tanh()).sum(), x)\nupdate(head(net(x)).sum() + g.square().sum())",
        "autograd.grad",
        "none",
        ".sum(), x)",
        ".sum(), x, create_graph=True)",
    ),
    "scale": (
        "update(head(net(torch.ones(2, 4)).detach()).sum())",
        "detach",
        "scale:0.5",
        "net(torch.ones(2, 4)).detach()",
        f"{SCALED}(net(torch.ones(2, 4)))",
    ),
    "a comprehension": (
        "update(sum(head(x.detach()).sum() for x in [net(torch.ones(2, 4))]))",
        "detach",
        "none",
        "x.detach()",
        "x",
    ),
    "a lambda": (
        "f = lambda x: net(x).detach()\nupdate(head(f(torch.ones(2, 4))).sum())",
        "detach",
        "none",
        ".detach()",
        "",
    ),
    "a class": (
        "class Both(nn.Module):\n"
        "    def __init__(self): super().__init__(); self.net, self.head = net, head\n"
        "    def forward(self, x): return self.head(self.net(x).detach())\n"
        "update(Both()(torch.ones(2, 4)).sum())",
        "detach",
        "none",
        ".detach()",
        "",
    ),
    "compiled": (
        "def backend(graph, inputs): raise KeyError('compiled')\n"
        "f = torch.compile(lambda x: head(net(x).detach()), backend=backend)\nupdate(f(torch.ones(2, 4)).sum())",
        "detach",
        "none",
        "head(net(x).detach()), backend=backend",
        "head(net(x)), backend='eager'",
    ),
    "a thread": (
        "import threading\n"
        "def work(): update(head(net(torch.ones(2, 4)).detach()).sum())\n"
        "thread = threading.Thread(target=work); thread.start(); thread.join()",
        "detach",
        "none",
        ".detach()",
        "",
    ),
}  # fmt: skip


# What only looks like a stop: each prints the same where all stops are noted. ``y`` carries a gradient.
LOOKALIKES = """\
## a method detach
class A:
    def detach(self, *x): return len(x)
print(A().detach(y), A().detach((y, y)), A().detach())
## detach by a keyword
print(torch.detach(input=y))
## super
class T(torch.Tensor):
    def detach(self): return super().detach() + 1
print(y.detach().as_subclass(T).detach())
## what looks at its frame
def f():
    local = y
    return eval('local').detach()
print(f())
## an option
import argparse
args = argparse.Namespace(no_grad=False, data='d')
print(args.no_grad, args.data)
## a method no_grad
class A:
    def no_grad(self): return 3
print(A().no_grad())
## a method set_grad_enabled
class A:
    def set_grad_enabled(self, nets, on): return on
print(A().set_grad_enabled([], 1))
## a method requires_grad_
class A:
    def requires_grad_(self, a, b=2): return a, b
print(A().requires_grad_(1, b=3))
## an attribute requires_grad
class A: pass
a = A()
a.requires_grad = False
print(vars(a))
## the value of a flag first
at = []
def f(x): at.append(x); return x
f(y.clone().detach()).requires_grad = f(False)
print(at[0])
## another grad
class autograd:
    def grad(f): return f
print(autograd.grad(3))
## a class of it
class Mine(torch.no_grad): pass
with Mine(): print(torch.is_grad_enabled())
## a pattern
class A: data, no_grad = 1, 2
match 1:
    case A.data: print('data')
    case A.no_grad: print('no')
## inference that is off
with torch.inference_mode(False): print(torch.is_inference_mode_enabled(), torch.is_grad_enabled())
## its own file
import os; os.chdir('/'); print(len(open(__file__).read()), __file__, (lambda: 0).__code__.co_filename)
## its own source
import inspect
def f(): return y.detach()
print(inspect.getsource(f))
## f-strings and a walrus
print(f'{(z := y.detach()).sum()} {z.data!r:>40}')
## dataclasses of later names
import dataclasses
@dataclasses.dataclass
class A:
    x: int = 1
print(A(), A.__annotations__)
"""
BODIES = {name: body for name, _, body in (each.partition("\n") for each in LOOKALIKES.split("## ")[1:])}


@pytest.mark.parametrize("name", BODIES)
def test_what_only_looks_like_a_stop_does_what_it_does(name, tmp_path):
    head = "from __future__ import annotations\nimport torch\ny = torch.ones(2, requires_grad=True) * 2\n"
    (tmp_path / "script.py").write_text(head + BODIES[name])
    plain = python(tmp_path / "script.py", cwd=tmp_path)
    assert plain.returncode == 0, plain.stderr
    ran = python("-m", "stopgrad", "sites", "script.py", cwd=tmp_path)
    assert (ran.stdout, ran.returncode) == (plain.stdout, 0), ran.stderr
    alone = python("-m", "stopgrad", "run", "script.py", cwd=tmp_path)
    assert (alone.stdout, alone.returncode) == (plain.stdout, 0), alone.stderr


@pytest.mark.parametrize(
    "head", [b"\xef\xbb\xbf", b"# -*- coding: latin-1 -*-\r\nprint('\xe9')\r\n", b"if 1:\tprint('tab')\n"]
)
def test_bytes_of_a_source_as_python_reads_them(head, tmp_path):
    body = b"import torch\r\nprint(torch.ones(1, requires_grad=True).detach())\r\n"
    (tmp_path / "script.py").write_bytes(head + body)
    plain = python("script.py", cwd=tmp_path)
    ran = python("-m", "stopgrad", "sites", "script.py", cwd=tmp_path)
    assert (ran.stdout, ran.returncode) == (plain.stdout, 0), ran.stderr
    assert f"script.py:{2 + head.count(10)}  detach" in ran.stderr


@pytest.mark.parametrize("name", EDITS)
def test_switched_is_edited(name, tmp_path):
    body, kind, strategy, old, new = EDITS[name]
    script, edited = HEAD + body + TAIL, (HEAD + body).replace(old, new) + TAIL
    assert (HEAD + body).count(old) == 1
    (tmp_path / "script.py").write_text(script)
    (tmp_path / "edited.py").write_text(edited)
    (stop,) = (s for s in stops_of(str(tmp_path / "script.py"), "/") if s.kind == kind)
    switch = f"{stop.id}={strategy}"
    switched = python("-m", "stopgrad", "run", "--json", "r.json", "--stop", switch, "script.py", cwd=tmp_path)
    plain, alone = (python(each, cwd=tmp_path) for each in ("edited.py", "script.py"))
    assert switched.returncode == 0, switched.stderr
    expected = plain.stdout
    if strategy == "scale:0.5":  # the same in exact arithmetic
        numbers = (torch.tensor([float(n) for n in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", out)])
                   for out in (switched.stdout, expected))  # fmt: skip
        assert torch.allclose(*numbers, atol=1e-6)
    else:
        assert switched.stdout == expected
    if strategy == "no_grad":  # the same weights, and the graph is not built
        assert "stopped by no_grad at script.py" in switched.stderr
    else:
        assert switched.stdout != alone.stdout
    assert not failures(json.loads((tmp_path / "r.json").read_text()))
    assert (tmp_path / "script.py").read_text() == script
    assert ("ran eagerly" in switched.stderr) == (name == "compiled")


def test_a_file_that_is_imported(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("from .step import features\n")
    (tmp_path / "package" / "step.py").write_text("def features(net, x):\n    return net(x).detach()\n")
    body = "from package import features\nupdate(head(features(net, torch.ones(2, 4))).sum())"
    (tmp_path / "training.py").write_text(HEAD + body + TAIL)
    alone = python("-m", "stopgrad", "run", "training.py", cwd=tmp_path)
    ran = python("-m", "stopgrad", "run", "--stop", "package/step.py:2=none", "training.py", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "blocked" in alone.stderr
    assert "blocked" not in ran.stderr
    module = python("-m", "stopgrad", "run", "--stop", "package/step.py:2=none", "-m", "training", cwd=tmp_path)
    assert module.stdout == ran.stdout != alone.stdout
    module = python("-m", "stopgrad", "run", "--stop", "11=never", "-m", "training", cwd=tmp_path)
    assert module.returncode == 0, module.stderr
    (tmp_path / "package" / "__main__.py").write_text((tmp_path / "training.py").read_text().replace("package", "."))
    (tmp_path / "package" / "training.py").write_text((tmp_path / "package" / "__main__.py").read_text())
    for name in ("package", "package.training"):  # the package is imported with the module, and not before
        module = python("-m", "stopgrad", "run", "--stop", "package/step.py:2=none", "-m", name, cwd=tmp_path)
        assert module.stdout == ran.stdout
        module = python("-m", "stopgrad", "run", "--stop", "11=late", "-m", name, cwd=tmp_path)
        assert module.returncode == 0, module.stderr


def test_a_boundary(tmp_path):
    body = "stop = Boundary('features', 'detach')\nupdate(head(stop(net, torch.ones(2, 4))).sum())"
    (tmp_path / "script.py").write_text(HEAD + body + TAIL)
    ran = python("-m", "stopgrad", "run", "--stop", "features=none", "script.py", cwd=tmp_path)
    (tmp_path / "script.py").write_text(HEAD + body.replace("'detach'", "'none'") + TAIL)
    assert ran.stdout == python("script.py", cwd=tmp_path).stdout
    ran = python("-m", "stopgrad", "run", "--stop", "nowhere=none", "script.py", cwd=tmp_path)
    assert "note: nowhere=none: no boundary of this name was made" in ran.stderr


def test_a_line_that_never_ran_is_told(tmp_path):
    (tmp_path / "script.py").write_text(gan() + "\ndef unused(x):\n    return x.detach()\n")
    ran = python("-m", "stopgrad", "run", "--stop", "26=none", "script.py", cwd=tmp_path)
    assert "note: script.py:26=none: that line never ran" in ran.stderr


@pytest.mark.parametrize(
    ("stop", "said"),
    [
        ("12=none", "line 12 has no stop; the nearest is 13 (detach of fake)"),
        ("99=none", "line 99 has no stop; the nearest is 22 (no_grad of print('score:', D(G(torch.randn(32, 4...)"),
        ("13=no_grad", "this detach can be detach, detach_, data, none, scale:a, reverse:l"),
        ("22=scale:1", "this no_grad can be no_grad, inference_mode, none"),
        ("14=none", "this zero_grad can be timely, late, never"),
        ("other.py:3=none", "other.py: no such file"),
        ("none", "write LINE=STRATEGY, FILE:LINE=STRATEGY or BOUNDARY=STRATEGY"),
        ("empty.py:1=none", "there is no stop in the file"),
        ("broken.py:1=none", "broken.py: invalid syntax, line 1"),
        (f"{nn.__file__}:1=none", f"{nn.__file__}: installed code is left as it is"),
        ("two.py:1=none", "choose one of 1:x (detach), 1:y (detach)"),
    ],
)
def test_what_is_refused_in_one_line(stop, said, tmp_path):
    (tmp_path / "gan.py").write_text(gan())
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "broken.py").write_text("a b\n")
    (tmp_path / "two.py").write_text("def f(x, y): return x.detach() + y.detach()\n")
    ran = python("-m", "stopgrad", "run", "--stop", stop, "gan.py", cwd=tmp_path)
    assert ran.returncode == 2
    assert ran.stderr == f"error: --stop {stop}: {said}\n"
    assert ran.stdout == ""


@pytest.mark.parametrize(("strategy", "said"), [("scale", "needs a finite number"), ("bogus", "choose one of")])
def test_a_strategy_that_is_none(strategy, said, tmp_path):
    (tmp_path / "gan.py").write_text(gan())
    for stop in (f"13={strategy}", f"name={strategy}"):
        ran = python("-m", "stopgrad", "run", "--stop", stop, "gan.py", cwd=tmp_path)
        assert ran.returncode == 2
        assert ran.stderr.count("\n") == 1
        assert said in ran.stderr or "this detach can be" in ran.stderr


CHILD = """\
import multiprocessing
import torch


def child():
    net = torch.nn.Linear(1, 1)
    loss = net(torch.ones(1)).detach().sum() + net.bias.sum()
    print("live" if loss.grad_fn.next_functions[0][0] is not None else "cut", flush=True)
    loss.backward()


if __name__ == "__main__":
    process = multiprocessing.get_context("METHOD").Process(target=child)
    process.start()
    process.join()
"""


@pytest.mark.parametrize(("method", "said"), [("fork", "live"), ("spawn", "cut")])
def test_a_child_that_is_forked_is_switched_and_of_a_spawned_one_it_is_said(method, said, tmp_path):
    (tmp_path / "script.py").write_text(CHILD.replace("METHOD", method))
    ran = python("-m", "stopgrad", "run", "--stop", "7=none", tmp_path / "script.py", cwd=tmp_path)
    assert ran.stdout.split()[:1] == [said], ran.stderr
    told = "note: a child process that is spawned imports its files anew: in it no stop is switched"
    assert (told in ran.stderr) == (method == "spawn")


def test_a_file_that_is_found_by_links(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "step.py").write_text("def features(net, x):\n    return net(x).detach()\n")
    body = "import sys; sys.path.append('link')\nfrom step import features\n"
    body += "update(head(features(net, torch.ones(2, 4))).sum())"
    (tmp_path / "script.py").write_text(HEAD + body + TAIL)
    alone = python("-m", "stopgrad", "run", "script.py", cwd=tmp_path)
    for name in ("link", "real"):
        ran = python("-m", "stopgrad", "run", "--stop", f"{name}/step.py:2=none", "script.py", cwd=tmp_path)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout != alone.stdout


def test_a_switch_is_done_by_the_code_that_was_compiled_with_it(tmp_path):
    """As in a notebook, where the third line of every cell is called 3."""
    source = "def f(net, x, optimizer):\n    {}\n    return net(x)\n"
    net = nn.Linear(1, 1)
    optimizer, x = torch.optim.SGD(net.parameters(), 1.0), torch.ones(1, requires_grad=True)
    functions = []
    for line, strategy in (("return net(x).detach()", "none"), ("optimizer.zero_grad()", "late")):
        tree = ast.parse(source.format(line))
        (stop,) = named(stops_in(tree, ""))
        switches = Switches({stop: strategy}, {})
        with switches.on():
            space = {}
            exec(compile(finished(switches.switch(tree, [stop])), "cell", "exec"), space)
            functions.append(space["f"])
            assert functions[-1](net, x, optimizer).requires_grad
            net.bias.grad = torch.ones(1)
            optimizer.step()
            assert (net.bias.grad is None) == (strategy == "late")
            if strategy == "late":
                assert not functions[0](net, x, optimizer).requires_grad  # as it stands again, and by its own switch
    net.bias.grad = torch.ones(1)
    optimizer.step()
    assert net.bias.grad is not None  # nothing clears it any more
    functions[1](net, x, optimizer)
    assert net.bias.grad is None


def test_nothing_stays_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["test"])
    monkeypatch.setattr("sys.path", [*sys.path])
    script = tmp_path / "script.py"
    script.write_text("import helper\nhelper.kept.append(lambda x: x.detach())\nraise KeyError('the script')\n")
    (tmp_path / "helper.py").write_text("kept = []\ndef cut(x):\n    return x.detach()\n")
    switches = chosen(["script.py:2=none", "helper.py:3=none"], "script.py")
    compile_before, finders = torch.compile, [*sys.meta_path]
    with pytest.raises(KeyError, match="the script"), switches.on() as rewrite:
        execute("script.py", [], rewrite=rewrite)
    helper = sys.modules.pop("helper")
    x = torch.ones(1, requires_grad=True)
    results = []
    thread = threading.Thread(target=lambda: results.extend([helper.cut(x), helper.kept[0](x)]))
    thread.start()
    thread.join()
    assert [result.requires_grad for result in (helper.cut(x), helper.kept[0](x), *results)] == [False] * 4
    assert torch.compile is compile_before
    assert sys.meta_path == finders
    assert not list(tmp_path.rglob("*.pyc"))
