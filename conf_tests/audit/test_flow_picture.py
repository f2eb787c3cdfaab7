"""The flow picture: what is drawn is what was measured, and everything that was."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stopgrad import Boundary, audit
from stopgrad.flow.drawing import flow_figure, flow_svg
from stopgrad.flow.labels import MOST_NODES
from stopgrad.flow.layout import Layout, scale_of, width_of
from stopgrad.flow.routes import MOST_LOSSES, Record, flow_record, merged, written
from stopgrad.flow.sentences import flow_sentences

SVG = "{http://www.w3.org/2000/svg}"


def gan(fakes: str = "detach", discriminator: str = "freeze") -> audit:
    torch.manual_seed(0)
    g = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4), nn.Tanh())
    d = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    x = torch.randn(8, 4)
    with audit({"generator": g, "discriminator": d}, draw=True, boundaries=["fakes", "other"]) as a:
        made = Boundary("fakes", fakes)(g, x)
        a.loss("d_loss", F.softplus(d(made)).mean() + F.softplus(-d(x)).mean())
        a.loss("g_loss", F.softplus(-Boundary("discriminator", discriminator)(d, g(x))).mean())
    return a


def place(name: str) -> str:
    """What stands for a node, without the line of a boundary."""
    return name.partition("@")[0]


def groups(svg: str, kind: str) -> list[ET.Element]:
    return [e for e in ET.fromstring(svg).iter(f"{SVG}g") if kind in (e.get("class") or "").split()]


def arrows(svg: str) -> set[tuple[str, str, str, bool]]:
    """Loss, where its arrow ends, where it comes from, and whether a bar stops it."""
    return {
        (
            e.get("data-loss", ""),
            place(e.get("data-from", "")),
            place(e.get("data-to", "")),
            "stopped" in e.get("class", ""),
        )
        for e in groups(svg, "edge")
    }


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter(f"{SVG}text")]


ALWAYS = {
    ("d_loss", "discriminator", "d_loss", False),
    ("g_loss", "generator", "discriminator", False),
    ("g_loss", "discriminator", "stop.discriminator", False),
    ("g_loss", "stop.discriminator", "g_loss", False),
}
STOPPED = {("d_loss", "stop.fakes", "discriminator", True)}
LEAK = {("d_loss", "stop.fakes", "discriminator", False), ("d_loss", "generator", "stop.fakes", False)}


@pytest.mark.parametrize("fakes", ["detach", "data", "detach_", "no_grad", "freeze"])
def test_an_arrow_ends_at_a_bar_whatever_cuts(fakes: str) -> None:
    svg = flow_svg(gan(fakes))
    assert arrows(svg) == ALWAYS | STOPPED
    (cut,) = [e for e in groups(svg, "cut") if e.get("data-boundary") == "fakes"]
    assert cut.get("class") == "cut closed"
    assert cut.get("data-where", "").partition(":")[0].endswith("test_flow_picture.py")
    assert "stop.fakes" in texts(svg)
    assert any(text.startswith(f"{fakes} · test") for text in texts(svg))
    values = {(place(e.get("data-from", "")), place(e.get("data-to", ""))) for e in groups(svg, "value")}
    assert values == {("generator", "stop.fakes")}
    held = [e.get("data-boundary") for e in groups(svg, "held")]
    assert held == ["discriminator"]  # what the bar of stop.fakes stops cannot come to the generator's weights


@pytest.mark.parametrize("fakes", ["none", "scale:0.5", "reverse:1"])
def test_an_open_switch_is_a_gate_through_which_arrows_go(fakes: str) -> None:
    svg = flow_svg(gan(fakes))
    assert arrows(svg) == ALWAYS | LEAK
    (cut,) = [e for e in groups(svg, "cut") if e.get("data-boundary") == "fakes"]
    assert cut.get("class") == "cut open"
    assert any(text.startswith(f"{fakes} · ") for text in texts(svg))


def test_freeze_lets_through_what_is_not_its_own_and_holds_the_weights() -> None:
    record = flow_record(gan())
    node = {n["id"]: n for n in record["nodes"]}["discriminator"]
    assert node["learns"].keys() == {"d_loss"}
    (cut,) = node["held"]
    assert (cut["boundary"], cut["strategy"], cut["losses"]) == ("discriminator", "freeze", ["g_loss"])
    svg = flow_svg(record)
    states = {(e.get("data-boundary"), e.get("class")) for e in groups(svg, "cut")}
    assert states == {("fakes", "cut closed"), ("discriminator", "cut open"), ("discriminator", "cut held")}
    free = flow_record(gan(discriminator="none"))
    assert {n["id"]: n for n in free["nodes"]}["discriminator"]["learns"].keys() == {"d_loss", "g_loss"}
    assert not any("held" in (e.get("class") or "") for e in groups(flow_svg(free), "cut"))


def test_all_strategies_have_the_same_places() -> None:
    """So that a page can flip one, and all else stays."""
    seen = set()
    for fakes in ("detach", "no_grad", "freeze", "none"):
        record = flow_record(gan(fakes))
        lay = Layout(record, (-3, 0))
        seen.add(tuple((id, p.rank, round(p.y) // 40) for id, p in sorted(lay.places.items())))
        assert {n["id"] for n in record["nodes"]} == {p[0] for p in next(iter(seen))}
    assert len(seen) == 1


# ---- norms


def edge(record: Record, start: str, end: str, loss: str) -> float:
    (norm,) = [e["losses"][loss]["norm"] for e in record["edges"] if (place(e["from"]), place(e["to"])) == (start, end)]
    return norm


def test_a_norm_is_that_of_the_gradient_at_what_the_arrow_ends_at() -> None:
    torch.manual_seed(0)
    net = nn.ModuleDict({"a": nn.Linear(3, 4), "b": nn.Linear(4, 2), "c": nn.Linear(4, 2)})
    x = torch.randn(5, 3)
    with audit(net, draw=True) as a:
        h = net["a"](x)
        b, c = net["b"](h) + net["b"](h * 2), net["c"](h)  # b uses h twice: its contributions are added, as vectors
        a.loss("loss", (b.square() + c).mean())
    record = flow_record(a)

    def loss(for_b: Tensor, for_c: Tensor) -> Tensor:
        return ((net["b"](for_b) + net["b"](for_b * 2)).square() + net["c"](for_c)).mean()

    by_b, by_c = (h.detach().clone().requires_grad_() for _ in range(2))
    grads = torch.autograd.grad(loss(by_b, by_c), [by_b, by_c])
    assert edge(record, "a", "b", "loss") == pytest.approx(grads[0].norm().item(), rel=1e-6)
    assert edge(record, "a", "c", "loss") == pytest.approx(grads[1].norm().item(), rel=1e-6)
    node = {n["id"]: n for n in record["nodes"]}["b"]
    weights = torch.autograd.grad(loss(h.detach(), h.detach()), [*net["b"].parameters()])
    assert node["learns"]["loss"] == pytest.approx(torch.cat([g.flatten() for g in weights]).norm().item(), rel=1e-6)


def test_a_norm_is_over_all_values_that_cross() -> None:
    net = nn.ModuleDict({"a": nn.Linear(3, 4)})
    with audit(net, draw=True) as a:
        a.loss("loss", net["a"](torch.ones(1, 3)).sum() + 2 * net["a"](torch.ones(1, 3)).sum())
    assert edge(flow_record(a), "a", "loss", "loss") == pytest.approx((4 * 1 + 4 * 4) ** 0.5)


def test_a_factor_scales_what_goes_on() -> None:
    whole, half = flow_record(gan("none")), flow_record(gan("scale:0.5"))
    assert edge(half, "stop.fakes", "discriminator", "d_loss") == edge(whole, "stop.fakes", "discriminator", "d_loss")
    assert edge(half, "generator", "stop.fakes", "d_loss") == edge(whole, "generator", "stop.fakes", "d_loss") / 2
    assert edge(half, "generator", "discriminator", "g_loss") == edge(whole, "generator", "discriminator", "g_loss")


def test_widths_grow_with_the_norm() -> None:
    widths = [width_of(10.0**power, (-4, 3)) for power in range(-4, 4)]
    assert all(low < high for low, high in pairwise(widths))
    assert width_of(0.0, (-4, 3)) < widths[0]
    assert width_of("inf", (-4, 3)) == widths[-1]
    svg = flow_svg(gan("none"))
    drawn = {}
    for e in groups(svg, "edge"):
        _, path = list(e.iter(f"{SVG}path"))[:2]  # the first keeps others off
        drawn[place(e.get("data-from", "")), e.get("data-loss")] = float(path.get("stroke-width", 1))
    record = flow_record(gan("none"))
    norms = {(place(e["from"]), loss): of["norm"] for e in record["edges"] for loss, of in e["losses"].items()}
    order = sorted(norms, key=lambda key: norms[key])
    assert [drawn[key] for key in order] == sorted(drawn.values())
    assert len({*drawn.values()}) > 2


def test_nothing_is_left_behind_and_nothing_changes() -> None:
    def step(draw: bool) -> tuple[list[Tensor], list[Tensor]]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        with audit(net, draw=draw) as a:
            out = net(torch.ones(5, 3))
            loss = a.loss("loss", out.square().mean())
        called = []
        loss.backward()
        assert called == []
        return [p.grad for p in net.parameters() if p.grad is not None], [out.detach()]

    for plain, drawn in zip(step(False), step(True), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(plain, drawn, strict=True))


def test_a_norm_that_is_no_number_is_told() -> None:
    net = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 1)})
    with audit(net, draw=True) as a:
        a.loss("loss", net["b"](net["a"](torch.ones(1, 2))).mean() * float("inf"))
    record = flow_record(a)
    assert edge(record, "a", "b", "loss") in ("inf", "nan")
    assert json.loads(written(record)) == record
    assert "inf" in flow_svg(record) or "nan" in flow_svg(record)


# ---- other graphs


def test_a_plain_cut_is_a_bar_with_its_line() -> None:
    net = nn.ModuleDict({"trunk": nn.Linear(2, 3), "head": nn.Linear(3, 1)})
    with audit(net, draw=True) as a:
        a.loss("probe", net["head"](net["trunk"](torch.ones(4, 2)).detach()).mean())
    record = flow_record(a)
    (stop,) = [n for n in record["nodes"] if n["kind"] == "stop"]
    assert (stop["boundary"], stop["strategy"], stop["open"]) == (None, "detach", False)
    svg = flow_svg(record)
    assert arrows(svg) == {("probe", "head", "probe", False), ("probe", "detach", "head", True)}
    assert any(text.startswith("test_flow_picture.py:") for text in texts(svg))
    assert f"probe is stopped before trunk by detach at {stop['where']}." in flow_sentences(record)


def test_a_way_round_a_part_is_drawn_above_it() -> None:
    cell = nn.GRUCell(2, 3)
    stop = Boundary("hidden", "detach")
    with audit({"cell": cell, "head": nn.Linear(3, 1)}, draw=True) as a:
        hidden = torch.zeros(1, 3)
        for _ in range(3):
            hidden = cell(torch.ones(1, 2), stop.cross(hidden))
        a.loss("loss", hidden.sum())
    record = flow_record(a)
    lay = Layout(record, (-2, 0))
    (above,) = lay.loops["cell"]
    assert place(above) == "stop.hidden"
    assert arrows(flow_svg(record)) == {("loss", "cell", "loss", False), ("loss", "stop.hidden", "cell", True)}


def test_a_boundary_on_two_ways_of_which_one_goes_round_is_drawn_twice() -> None:
    net = nn.ModuleDict({"block": nn.Linear(3, 3), "last": nn.Linear(3, 1)})
    stop = Boundary("blocks", "detach")
    with audit(net, draw=True) as a:
        hidden = net["block"](torch.ones(1, 3))
        for layer in (net["block"], net["last"]):
            hidden = layer(stop.cross(hidden))
        a.loss("loss", hidden.sum())
    record = flow_record(a)
    lay = Layout(record, (-2, 0))
    (above,) = lay.loops["block"]
    assert (place(above), above[-1]) == ("stop.blocks", "~")
    assert lay.under == {}  # nothing goes back below all else
    cuts = groups(flow_svg(record), "cut")
    assert [place(e.get("data-node", "")) for e in cuts] == ["stop.blocks"] * 2
    assert len({e.get("data-node") for e in cuts}) == 1


class Twin(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 1, 3))

    def first(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight[0]).tanh()


def test_a_method_of_a_module_is_the_modules_too() -> None:
    net = nn.ModuleDict({"actor": nn.Linear(2, 3), "critic": Twin()})
    with audit(net, draw=True) as a:
        critic: Twin = net["critic"]  # pyright: ignore[reportAssignmentType]
        values = Boundary("critic", "freeze").over(critic)(critic.first, net["actor"](torch.ones(1, 2)))
        penalty = torch.cat([p.flatten() for p in net["actor"].parameters()]).square().sum()
        a.loss("loss", values.sum() + 0.1 * penalty)  # which is no way through it
    record = flow_record(a)
    assert arrows(flow_svg(record)) == {
        ("loss", "actor", "critic", False),
        ("loss", "critic", "stop.critic", False),
        ("loss", "stop.critic", "loss", False),
        ("loss", "actor", "loss", False),
    }
    (node,) = [n for n in record["nodes"] if n["id"] == "critic"]
    assert node["learns"] == {}
    assert [cut["boundary"] for cut in node["held"]] == ["critic"]


def test_a_cut_stops_on_each_of_its_ways_what_comes_there() -> None:
    net = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 1), "c": nn.Linear(2, 1)})
    with audit(net, draw=True) as a:
        cut = net["a"](torch.ones(1, 2)).detach()
        a.loss("b_loss", net["b"](cut).sum())
        a.loss("c_loss", net["c"](cut).sum())
    assert {each for each in arrows(flow_svg(a)) if each[3]} == {
        ("b_loss", "detach", "b", True),
        ("c_loss", "detach", "c", True),
    }


def test_an_open_switch_that_nothing_comes_through_stops_nothing() -> None:
    layer = nn.Linear(2, 1).requires_grad_(False)
    head = nn.Linear(1, 1)
    with audit({"layer": layer, "head": head}, draw=True) as a:
        a.loss("loss", head(Boundary("features", "none").cross(layer(torch.ones(1, 2)))).sum())
    record = flow_record(a)
    (gate,) = [n for n in record["nodes"] if n["kind"] == "stop"]
    assert (gate["open"], gate["passes"]) == (True, [])
    assert arrows(flow_svg(record)) == {("loss", "head", "loss", False)}


@pytest.mark.parametrize(("fakes", "more"), [("none", LEAK), ("detach", STOPPED)])
def test_what_is_not_measured_has_no_width(fakes: str, more: set[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stopgrad.flow.folding.MOST_LOOKED", 0)
    record = flow_record(gan(fakes))
    assert {of["norm"] for e in record["edges"] for of in e["losses"].values()} == {None}
    assert arrows(flow_svg(record)) == ALWAYS | more
    assert "|g| where the arrow ends" not in "".join(texts(flow_svg(record)))


def test_parameters_that_no_module_uses_are_parts_too() -> None:
    theta = nn.Parameter(torch.ones(2))
    with audit({"theta": theta}, draw=True) as a:
        a.loss("loss", theta.square().sum())
    svg = flow_svg(a)
    assert arrows(svg) == {("loss", "theta", "loss", False)}
    assert edge(flow_record(a), "theta", "loss", "loss") == pytest.approx(8**0.5)


def test_a_loss_is_told_from_a_part_of_its_name() -> None:
    net = nn.ModuleDict({"trunk": nn.Linear(2, 3), "probe": nn.Linear(3, 1)})
    with audit(net, draw=True) as a:
        a.loss("probe", net["probe"](net["trunk"](torch.ones(4, 2))).mean())
    assert {"probe", "probe (loss)"} <= set(texts(flow_svg(a)))


def test_a_loss_without_a_name_keeps_its_norms_when_another_comes() -> None:
    net = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 1)})
    with audit(net, draw=True, backward="loss") as a:
        net["b"](net["a"](torch.ones(1, 2))).mean().backward()
        net["b"](net["a"](torch.ones(1, 2))).sum().backward()
    record = flow_record(a)
    assert len(record["losses"]) == 2
    (shared,) = [e for e in record["edges"] if (e["from"], e["to"]) == ("a", "b")]
    assert all(of["norm"] > 0 for of in shared["losses"].values())
    assert shared["losses"].keys() == {*record["losses"]}


def test_two_steps_are_one_picture() -> None:
    a, b = flow_record(gan()), flow_record(gan("none"))
    (first,) = [e for e in a["edges"] if e["to"] == "d_loss"]
    first["losses"]["d_loss"]["norm"] = 0.0
    both = merged(a, b)
    assert both["losses"] == ["d_loss", "g_loss"]
    assert edge(both, "discriminator", "d_loss", "d_loss") == edge(b, "discriminator", "d_loss", "d_loss") > 0
    (fakes,) = [n for n in both["nodes"] if n.get("boundary") == "fakes"]
    assert fakes["open"]
    assert fakes["passes"] == ["d_loss"]
    assert merged(None, b) is b


def chain(parts: int, losses: int) -> Record:
    net = nn.ModuleDict({f"layer{i}": nn.Linear(4, 4) for i in range(parts)})
    with audit(net, draw=True) as a:
        hidden, reported = torch.ones(2, 4), 0
        for i in range(parts):
            hidden = net[f"layer{i}"](hidden.detach() if i % 7 == 6 else hidden)
            if i >= parts - losses:
                a.loss(f"loss{reported}", hidden.sum())
                reported += 1
    return flow_record(a)


@pytest.mark.parametrize(("parts", "losses"), [(20, 3), (200, 30)])
def test_a_large_graph_is_folded(parts: int, losses: int) -> None:
    record = chain(parts, losses)
    kinds = [node["kind"] for node in record["nodes"]]
    assert kinds.count("module") == (parts if parts <= MOST_NODES else 23)
    assert len(record["losses"]) == (losses if losses <= MOST_LOSSES else 10)
    svg = flow_svg(record)
    assert len(svg) < 400_000
    if parts > MOST_NODES:
        assert "layer0 .. layer8 (9)" in {node["label"] for node in record["nodes"]}


@pytest.mark.parametrize("make", [gan, lambda: chain(20, 3), lambda: chain(200, 30)])
def test_nothing_lies_on_anything_else(make: Callable[[], audit | Record]) -> None:
    made = make()
    record = made if isinstance(made, dict) else flow_record(made)
    lay = Layout(record, scale_of([record]))
    boxes = [(p.x, p.y - p.above, p.x + p.width, p.y - p.above + p.height) for p in lay.places.values()]
    for a, b in combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    width, height = lay.size
    assert all(x1 >= 0 and y1 >= 0 and x2 <= width and y2 <= height for x1, y1, x2, y2 in boxes)


# ---- for everyone


def test_it_says_in_words_what_is_drawn() -> None:
    record = flow_record(gan())
    where = {n["boundary"]: n["where"] for n in record["nodes"] if n["kind"] == "stop"}
    learnt = {n["id"]: next(iter(n["learns"].values()), 0.0) for n in record["nodes"] if n["kind"] == "module"}
    assert flow_sentences(record) == [
        f"d_loss reaches discriminator (|g| {learnt['discriminator']:.2g}).",
        f"g_loss reaches generator (|g| {learnt['generator']:.2g}).",
        f"g_loss leaves the weights of discriminator alone: stop.discriminator (freeze, {where['discriminator']}).",
        f"d_loss is stopped before generator by stop.fakes (detach, {where['fakes']}).",
        f"stop.discriminator (freeze, {where['discriminator']}) lets g_loss through to discriminator.",
        "Not crossed: stop.other.",
    ]
    root = ET.fromstring(flow_svg(record))
    assert root.get("role") == "img"
    assert root.findtext(f"{SVG}title") == "Where the gradient of d_loss and g_loss goes"
    assert root.findtext(f"{SVG}desc") == " ".join(flow_sentences(record))


def test_losses_are_told_apart_without_colour() -> None:
    svg = flow_svg(gan("none"))
    letters, dashes = {}, {}
    for e in groups(svg, "edge"):
        letters.setdefault(e.get("data-loss"), set()).update(t.text for t in e.iter(f"{SVG}text"))
        dashes.setdefault(e.get("data-loss"), set()).update(
            bool(p.get("stroke-dasharray")) for p in list(e.iter(f"{SVG}path"))[1:2]
        )
    assert letters == {"d_loss": {"a"}, "g_loss": {"b"}}
    assert dashes == {"d_loss": {False}, "g_loss": {True}}


def test_it_has_a_flat_colour_beside_each_variable_and_needs_nothing_else() -> None:
    svg = flow_svg(gan())
    style = ET.fromstring(svg).findtext(f"{SVG}style") or ""
    used = {name for e in ET.fromstring(svg).iter() for name in (e.get("class") or "").split() if name[0] in "fs"}
    for name in used & {"f0", "f1", "s0", "s1", "fink", "fback", "sline"}:
        colour = {"f": "fill", "s": "stroke"}[name[0]]
        assert f".flow .{name}{{{colour}:#" in style
        assert f"{colour}:var(--flow-{name[1:]}," in style
    assert "prefers-color-scheme:dark" in style
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")


def test_names_are_escaped() -> None:
    net = nn.ModuleDict({"a<b&'\"": nn.Linear(2, 1)})
    with audit(net, draw=True) as a:
        a.loss("l<'\">", net["a<b&'\""](torch.ones(1, 2)).sum())
    svg = flow_svg(a)
    assert {"a<b&'\"", "l<'\">"} <= set(texts(svg))
    assert [e.get("data-loss") for e in groups(svg, "edge")] == ["l<'\">"]


def test_the_figure_for_tensorboard_shows_the_same() -> None:
    pytest.importorskip("matplotlib")
    record = flow_record(gan("none"))
    (axes,) = flow_figure(record).axes
    assert sorted(text.get_text() for text in axes.texts) == sorted(texts(flow_svg(record)))


def test_a_picture_needs_draw() -> None:
    with audit(nn.Linear(2, 1)) as a:
        a.loss("loss", torch.ones(1, requires_grad=True).sum() * 1)
    with pytest.raises(ValueError, match="draw=True"):
        flow_svg(a)
    with audit(nn.Linear(2, 1), draw=True) as a:
        pass
    with pytest.raises(ValueError, match="report a loss"):
        flow_svg(a)
