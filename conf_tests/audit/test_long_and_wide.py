"""The audit of graphs that are very long, of models with very many parts and losses, and of very large tensors."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from conf_tests.installed import modes
from stopgrad import Boundary, FlowContract, GradientLeak, audit
from stopgrad.cuts.watcher import watcher
from stopgrad.flow import graph
from stopgrad.flow.fold import LINES, WIDTH
from stopgrad.flow.matrix import Cell, FlowMatrix
from stopgrad.flow.pictures import matrix_figure, matrix_svg
from stopgrad.flow.values import CutSite

CHAIN = """
import resource, sys
import torch
from stopgrad import audit

w = torch.ones(1, requires_grad=True)

def chain(times):
    y = w
    for _ in range(times):
        {step}
    return (y * w).sum()

def memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

chain(100)
before, audited = memory(), sys.argv[1] == "audited"
if audited:
    with audit({{"w": w}}) as a:
        loss = a.loss("loss", chain({times}))
        state = a.matrix()["loss", "w"].state
else:
    loss, state = chain({times}), None
    torch.autograd.grad(loss, w, retain_graph=True)
used = memory() - before
del loss
print(state, used // {times})
"""


def _chain(step: str, times: int, how: str) -> tuple[str, int]:
    """The state, and bytes an operation, of a chain in a process of its own."""
    program = CHAIN.format(step=step, times=times)
    done = subprocess.run([sys.executable, "-c", program, how], capture_output=True, text=True)
    assert done.returncode == 0, f"it ended with {done.returncode}: {done.stderr[-500:]}"
    state, used = done.stdout.split()
    return state, int(used)


STEPS = ["y = y + 1.0", "y = y * w", "y = y.tanh()", "y = (y * w).detach()", "y = y[:1] + w\n        y += 1.0"]


@pytest.mark.full
@pytest.mark.parametrize("step", STEPS)
def test_two_hundred_thousand_operations_in_a_row(step: str) -> None:
    """Neither measuring them nor freeing them ends the process, nor do they take 400 bytes each."""
    state, audited = _chain(step, 200_000, "audited")
    _, plain = _chain(step, 200_000, "plain")
    assert state == "open"
    assert audited - plain < 400 * (1 + step.count("\n"))


def test_sixty_thousand_operations_in_a_row() -> None:
    assert _chain("y = y * w", 60_000, "audited")[0] == "open"


def test_of_a_graph_made_before_no_more_is_looked_at_than_can_be_freed() -> None:
    program = """
        import torch
        from stopgrad import assert_flow
        from stopgrad.flow.graph import Walk
        w, v = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
        loss = w
        for _ in range(100_000):
            loss = loss + 1.0
        assert not Walk(loss).whole
        assert_flow(loss, {"w": w, "v": v}, reaches=["w"], not_reaches=["v"])
        del loss
        print("freed")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert done.stdout == "freed\n", done.stderr[-500:]


def _fan(width: int, losses: int) -> tuple[dict[str, nn.Module], Tensor]:
    torch.manual_seed(0)
    trunk = nn.Sequential(*(m for _ in range(3) for m in (nn.Linear(width, width), nn.Tanh())))
    return {"trunk": trunk, **{f"head{i}": nn.Linear(width, 1) for i in range(losses)}}, torch.randn(4, width)


@pytest.mark.parametrize("most", [graph.MOST_NODES, 5])
def test_shared_or_too_large_to_look_at_each_norm_is_exact(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What losses share is walked once, and a graph that is not walked is asked for every parameter: the same cells."""
    monkeypatch.setattr(graph, "MOST_NODES", most)
    parts, x = _fan(4, 6)
    with audit(parts) as a:
        h = parts["trunk"](x)
        losses = {f"loss{i}": parts[f"head{i}"](h if i != 2 else h.detach()).square().mean() for i in range(6)}
        for name, loss in losses.items():
            a.loss(name, loss)
    for i, (name, loss) in enumerate(losses.items()):
        for part, module in parts.items():
            grads = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True)
            cell = a.matrix()[name, part]
            if grads[0] is None:
                assert cell.state == ("blocked" if (part, i) == ("trunk", 2) else "independent")
            else:
                norm = torch.cat([g.flatten() for g in grads if g is not None]).double().norm().item()
                assert cell.norm == pytest.approx(norm, rel=1e-6)


def test_a_boundary_of_each_head_is_measured_at_its_own_losses() -> None:
    parts, x = _fan(4, 5)
    with audit(parts) as a:
        h = parts["trunk"](x)
        for i in range(5):
            crossed = Boundary(f"b{i}", "scale:2" if i else "detach").cross(h)
            a.loss(f"loss{i}", parts[f"head{i}"](crossed).square().mean())
    matrix = a.matrix()
    for i in range(5):
        states = [matrix[f"loss{i}", f"stop.b{j}"].state for j in range(5)]
        assert states == ["independent"] * i + ["open" if i else "blocked"] + ["independent"] * (4 - i)
        crossing = matrix[f"loss{i}", f"stop.b{i}"].norm
        assert (crossing > 0) == (i > 0)


@pytest.mark.full
def test_a_thousand_parts_and_a_thousand_losses() -> None:
    parts, x = _fan(4, 1000)
    with audit(parts) as a:
        h = parts["trunk"](x)
        for i in range(1000):
            a.loss(f"loss{i}", parts[f"head{i}"](h).square().mean())
    matrix = a.matrix()
    assert matrix.counts() == {"open": 2000, "zero": 0, "opaque": 0, "blocked": 0, "independent": 999_000}
    assert len(matrix.text().splitlines()) < 10


# ---- its text


DETACH = Cell("blocked", cuts=(CutSite("detach", "/a/model.py", 3),))


def _diagonal(size: int) -> dict[tuple[str, str], Cell]:
    cells = {}
    for i in range(size):
        cells[f"loss{i}", "trunk"] = Cell("open", 1 + i)
        cells[f"loss{i}", f"head{i}"] = Cell("open", 2 + i)
    return cells


def _matrix(cells: dict[tuple[str, str], Cell], size: int = 256) -> FlowMatrix:
    return FlowMatrix(["trunk", *(f"head{i}" for i in range(size))], cells, [f"loss{i}" for i in range(size)])


def test_what_fits_a_screen_is_told_as_a_table() -> None:
    lines = _matrix(_diagonal(8), 8).text().splitlines()
    assert lines[0].split() == ["trunk", *(f"head{i}" for i in range(8))]
    assert len(lines) == 9


def test_what_goes_on_in_the_same_way_is_told_once() -> None:
    first, *rest = _matrix(_diagonal(256)).text().splitlines()
    assert first.startswith("256 losses, 257 parts: 512 open, 65,280 independent")
    assert rest == [
        "loss0  open trunk 1.0e+00, head0 2.0e+00; independent 255 more",
        "  ... 254 more in the same way, up to",
        "loss255  open trunk 2.6e+02, head255 2.6e+02; independent 255 more",
    ]


@pytest.mark.parametrize("where", [1, 17, 254])
@pytest.mark.parametrize("how", ["blocked", "elsewhere", "missing"])
def test_what_differs_from_its_neighbours_is_told(where: int, how: str) -> None:
    cells = _diagonal(256)
    if how == "blocked":
        cells[f"loss{where}", f"head{where}"] = DETACH
    else:
        del cells[f"loss{where}", f"head{where}"]
    if how == "elsewhere":
        cells[f"loss{where}", "head99"] = Cell("open", 1)
    text = _matrix(cells).text()
    assert any(line.startswith(f"loss{where}  ") for line in text.splitlines())
    assert ("stopped by detach" in text) == (how == "blocked")
    assert len(text.splitlines()) <= LINES


def test_what_breaks_a_contract_is_told_however_much_is_folded() -> None:
    cells = {(f"loss{i}", f"head{i * 89 % 256}"): Cell("open", 1) for i in range(256)}  # no two rows go on alike
    matrix = _matrix(cells)
    assert "loss200" not in matrix.text()
    text = matrix.text([("loss200", "head136")])
    assert "loss200  open head136" in text
    assert "loss200 -> head136: open 1.0e+00 breaks the contract" in text
    assert len(text.splitlines()) <= LINES
    contract = FlowContract({"*": {"head*": "blocked"}})
    with pytest.raises(GradientLeak, match=r"(?s)loss0 reaches head0.*and 244 more: leak") as error:
        contract.check(matrix)
    assert len(error.value.violations) == 256


def test_alike_columns_and_rows_are_one_with_the_span_of_their_norms() -> None:
    names = [f"p{i}" for i in range(1000)]
    cells = {(loss, p): DETACH if i < 400 else Cell("open", 1 + i) for loss in "xyz" for i, p in enumerate(names)}
    table = FlowMatrix(names, cells).text().splitlines()
    assert table[1].split() == ["p0", "..", "p399", "(400)", "p400", "..", "p999", "(600)"]
    assert table[2].startswith("x .. z (3)  blocked")
    assert table[2].endswith("open 4.0e+02..1.0e+03")
    assert table[3] == "  x -> p0 (and 1,199 more): stopped by detach at /a/model.py:3"
    assert len(table) == 4


def test_json_has_every_cell() -> None:
    matrix = _matrix(_diagonal(256))
    told = json.loads(json.dumps(matrix.to_dict()))
    assert sum(len(row) for row in told.values()) == 256 * 257
    assert told["loss3"]["head3"]["state"] == "open"
    assert told["loss3"]["head4"] == {"state": "independent", "norm": 0.0, "cuts": []}


def test_long_lines_do_not_make_a_table_wider_than_a_screen() -> None:
    names = [f"model.layers.{i}.attention.self.query.adapter" for i in range(8)]
    text = FlowMatrix(names, {("loss", name): Cell("open", 1) for name in names[:7]}).text()
    assert max(map(len, text.splitlines())) <= WIDTH


def test_a_picture_has_at_most_forty_rows_and_columns() -> None:
    matrix = _matrix(_diagonal(256))
    assert max(matrix_figure(matrix).get_size_inches()) < 80
    svg = matrix_svg(matrix)
    assert svg.count("<title>") == 40 * 40
    assert "216 more losses and 217 more parts are not drawn" in svg


# ---- large, deep, abandoned


@pytest.mark.full
def test_a_tensor_of_two_gigabytes_is_not_copied() -> None:
    size = 2 << 30
    net = nn.Linear(1, 1)
    net.register_buffer("table", torch.ones(size // 4))
    data = torch.ones(size // 4)
    frozen = nn.Parameter(torch.ones(size // 2, dtype=torch.bfloat16), requires_grad=False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with audit({"net": net, "frozen": frozen}) as a:
        picked = data[:4, None] + net.get_buffer("table")[:4, None] + frozen[:4, None].float()
        a.loss("loss", net(picked).mean()).backward()
    assert {part: a.matrix()["loss", part].state for part in ("net", "frozen")} == {"net": "open", "frozen": "blocked"}
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < size // 4


def test_the_norm_of_a_half_precision_gradient_is_taken_without_a_copy() -> None:
    from stopgrad.flow.measure import norms_of

    grad = torch.ones(1 << 26, dtype=torch.bfloat16)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert norms_of([grad, None]) == [float(1 << 13), None]
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < grad.nbytes // 2


def test_modules_nested_two_thousand_deep() -> None:
    net: nn.Module = nn.Linear(2, 2)
    inner = net
    for _ in range(2000):
        outer = nn.Module()
        outer.inner, outer.scale = net, nn.Parameter(torch.ones(1))
        net = outer
    with audit({"net": net}, draw=True) as a:
        a.loss("loss", inner(torch.ones(1, 2)).sum() * net.get_parameter("scale"))
    assert a.matrix()["loss", "net"].state == "open"
    assert a.matrix()["loss", "net"].path[-1] == "net.scale"


def _steps(net: nn.Module) -> Iterator[audit]:
    with audit(net) as a:
        while True:
            a.loss("loss", net(torch.ones(1, 2)).sum())
            yield a


def test_a_generator_that_is_abandoned_half_way() -> None:
    net = nn.Linear(2, 1)
    steps = _steps(net)
    next(steps)
    assert watcher() is not None
    steps.close()
    assert watcher() is None
    assert modes() == 0
    steps = _steps(net)
    next(steps)
    del steps  # forgotten, not closed
    assert watcher() is None
    with audit(net) as a:
        a.loss("loss", net(torch.ones(1, 2)).sum())
    assert a.matrix()["loss", "weight"].state == "open"
