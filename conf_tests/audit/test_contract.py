"""Contracts: what meets them, what breaks them, and what the error says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stopgrad import FlowContract, FlowMatrix, GradientLeak, GradientStarved, assert_flow
from stopgrad.flow.matrix import Cell
from stopgrad.flow.values import CutSite

DETACH = CutSite("detach", "/models/gan.py", 3)


def _matrix(**states: str) -> FlowMatrix:
    """``_matrix(loss__part="open")``."""
    cells = {}
    for key, state in states.items():
        loss, part = key.split("__")
        norm, cuts = (2.0, ()) if state == "open" else (0.0, (DETACH,) if state == "blocked" else ())
        cells[loss, part] = Cell(state, norm, cuts, path=("mean (a.py:1)", part), note="compiled")
    return FlowMatrix(tuple(dict.fromkeys(part for _, part in cells)), cells)


@pytest.mark.parametrize(
    ("wanted", "state", "error"),
    [
        ("open", "open", None),
        ("open", "zero", GradientStarved),
        ("open", "blocked", GradientStarved),
        ("open", "independent", GradientStarved),
        ("attached", "open", None),
        ("attached", "zero", None),
        ("attached", "blocked", GradientStarved),
        ("attached", "independent", GradientStarved),
        ("blocked", "open", GradientLeak),
        ("blocked", "zero", GradientLeak),
        ("blocked", "blocked", None),
        ("blocked", "independent", None),
    ],
)
def test_what_meets_a_contract(wanted: str, state: str, error: type[AssertionError] | None) -> None:
    contract = FlowContract({"loss": {"part": wanted}})
    if error is None:
        contract.check(_matrix(loss__part=state))
    else:
        with pytest.raises(error):
            contract.check(_matrix(loss__part=state))


def test_opaque_warns_and_fails_when_strict() -> None:
    with pytest.warns(UserWarning, match="loss -> part: cannot tell whether it is open: compiled"):
        FlowContract({"loss": {"part": "open"}}).check(_matrix(loss__part="opaque"))
    with pytest.raises(GradientLeak, match="cannot tell"):
        FlowContract({"loss": {"part": "open"}}, strict=True).check(_matrix(loss__part="opaque"))


def test_the_error_names_strength_share_path_and_advice() -> None:
    matrix = _matrix(d_loss__g="open", g_loss__g="open")
    with pytest.raises(GradientLeak) as error:
        FlowContract({"d_loss": {"g": "blocked"}}).check(matrix)
    message = str(error.value)
    for words in ("d_loss reaches g", "norm 2", "50%", "mean (a.py:1) <- g", "to stop it"):
        assert words in message
    assert [v.kind for v in error.value.violations] == ["leak"]


def test_all_violations_are_in_one_error() -> None:
    with pytest.raises(
        GradientLeak, match=r"(?s)l reaches a.*l does not reach b.*stopped by detach at /models/gan.py:3"
    ):
        FlowContract({"l": {"a": "blocked", "b": "open"}}).check(_matrix(l__a="open", l__b="blocked"))


def test_wildcards_and_exact_names() -> None:
    matrix = _matrix(d_loss__g1="blocked", d_loss__g2="open", g_loss__g1="open", g_loss__g2="open")
    FlowContract({"d_loss": {"g*": "blocked", "g2": "open"}, "*_loss": {"g2": "open"}}).check(matrix)
    with pytest.raises(GradientLeak, match="g_loss reaches g1"):
        FlowContract({"*": {"g1": "blocked"}}).check(matrix)
    with pytest.raises(ValueError, match="wildcards say both"):
        FlowContract({"*": {"g*": "open", "*1": "blocked"}}).check(matrix)


def test_frozen_parts_are_blocked_for_every_loss() -> None:
    contract = FlowContract({"l": {"a": "open"}}, frozen=["b"])
    contract.check(_matrix(l__a="open", l__b="blocked"))
    with pytest.raises(GradientLeak, match="other reaches b"):
        contract.check(_matrix(l__a="open", l__b="blocked", other__a="open", other__b="open"))
    with pytest.raises(ValueError, match="contract l -> b: 'open', but b is frozen"):
        FlowContract({"l": {"b": "open"}}, frozen=["b"])


def test_strict_reports_cuts_that_are_not_allowed() -> None:
    matrix = _matrix(l__a="blocked")
    contract = FlowContract({"l": {"a": "blocked"}}, strict=True)
    with pytest.raises(GradientLeak, match=r"unexpected detach at /models/gan.py:3.*allow_cut\('/models/gan.py'\)"):
        contract.check(matrix)
    contract.allow_cut("models/gan.py").check(matrix)
    contract.allow_cut("models").check(matrix)
    with pytest.raises(GradientLeak):
        contract.allow_cut("an.py", "odels").check(matrix)


def test_unknown_names_are_refused() -> None:
    matrix = _matrix(d_loss__generator="open")
    with pytest.raises(ValueError, match=r"names loss 'd_los'; there is d_loss; did you mean d_loss\?"):
        FlowContract({"d_los": {"generator": "open"}}).check(matrix)
    with pytest.raises(ValueError, match=r"names part 'genrator'; there is generator; did you mean generator\?"):
        FlowContract({"d_loss": {"genrator": "open"}}).check(matrix)
    with pytest.raises(ValueError, match=r"'opne' is none of open, attached, blocked; did you mean open\?"):
        FlowContract({"d_loss": {"generator": "opne"}})
    with pytest.raises(ValueError, match="is no mapping"):
        FlowContract({"d_loss": "open"})  # pyright: ignore[reportArgumentType]
    with pytest.raises(KeyError, match="no loss 'x'; there is d_loss"):
        matrix["x", "generator"]


def test_yaml_is_the_same_contract(tmp_path: Path) -> None:
    text = """
    losses:
      d_loss: {discriminator: open, generator: blocked}
    frozen: [backbone]
    allow_cut: [models/ema.py]
    strict: true
    """
    file = tmp_path / "flow.yaml"
    file.write_text(text)
    for contract in (FlowContract.from_yaml(text), FlowContract.from_yaml(file), FlowContract.from_yaml(str(file))):
        assert dict(contract) == {"d_loss": {"discriminator": "open", "generator": "blocked"}}
        assert (contract.frozen, contract.allowed, contract.strict) == (("backbone",), ("models/ema.py",), True)
    assert dict(FlowContract.from_yaml("l: {a: open}")) == {"l": {"a": "open"}}
    with pytest.raises(ValueError, match=r"unknown key 'frozn'.*did you mean frozen"):
        FlowContract.from_yaml("losses: {}\nfrozn: []")


def test_yaml_without_pyyaml_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ImportError, match="pip install pyyaml"):
        FlowContract.from_yaml("l: {a: open}")


# ---- what a message tells to do, and that it helps


def _actor(frozen: bool = False, standing: bool = False) -> tuple[dict[str, nn.Module], Any]:
    """An actor that is trained through its critic, and the function that computes its loss."""
    torch.manual_seed(0)
    actor, critic, x = nn.Linear(3, 2), nn.Linear(2, 1), torch.ones(4, 3)
    actor.requires_grad_(not standing)

    def loss() -> Tensor:
        action = actor(x)
        if not frozen:
            return -critic(action).mean()
        critic.requires_grad_(False)
        try:
            return -critic(action).mean()
        finally:
            critic.requires_grad_(True)

    return {"actor": actor, "critic": critic}, loss


def test_an_actor_that_learns_through_its_critic_is_told_to_freeze_and_not_to_cut() -> None:
    parts, loss = _actor()
    with pytest.raises(GradientLeak) as leak:
        assert_flow(loss, parts, reaches="actor", not_reaches="critic")
    told = str(leak.value)
    assert "to stop it, freeze critic while it is called, since the gradient of actor passes through it" in told
    assert "critic.requires_grad_(False) before the call and (True) after it" in told  # plain PyTorch
    assert "Boundary('critic', 'freeze')" in told
    assert "detach" not in told
    parts, loss = _actor(frozen=True)  # as it says
    assert_flow(loss, parts, reaches="actor", not_reaches="critic")
    parts, loss = _actor()
    with pytest.raises(
        GradientLeak, match=r"cut the value that leaves it at .*test_contract\.py:\d+: \.detach\(\), or torch"
    ):
        assert_flow(loss, parts, not_reaches="critic")  # nobody needs what passes through it


def test_a_part_that_stands_still_is_told_to_require_grad() -> None:
    parts, loss = _actor(standing=True)
    with pytest.raises(GradientStarved) as starved:
        assert_flow(loss, parts, reaches="actor")
    assert "none of its parameters requires grad: set actor.requires_grad_(True)" in str(starved.value)
    parts["actor"].requires_grad_(True)  # as it says
    assert_flow(loss, parts, reaches="actor")
    unused = {**parts, "spare": nn.Linear(1, 1).requires_grad_(False)}
    with pytest.raises(
        GradientStarved, match=r"none of its parameters requires grad; set spare\.requires_grad_\(True\)"
    ):
        assert_flow(loss, unused, reaches="spare")
