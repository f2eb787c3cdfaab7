"""Reports of gradients where none may be: what to do is told, and never the cut that stands there already."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stopgrad import Boundary, FlowContract, GradientLeak, audit

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


def _leak(a: audit, rows: dict[str, str], *frozen: str) -> str:
    with pytest.raises(GradientLeak) as error:
        a.check(FlowContract({"loss": rows}, frozen=list(frozen)))
    return str(error.value)


def test_a_target_that_is_the_online_network() -> None:
    """https://github.com/datawhalechina/easy-rl/pull/117: the target was made without ``deepcopy``."""
    torch.manual_seed(0)
    online = nn.Linear(4, 2)
    for target in (online, copy.copy(online), copy.deepcopy(online)):
        with audit({"online": online, "target": target}) as a:
            following = Boundary("target", "detach")(target, X).amax(1)
            a.loss("loss", (online(X).amax(1) - 0.9 * following).square().mean())
        rows = {"online": "open", "target": "blocked", "stop.target": "blocked"}
        if target is not online and target.weight is not online.weight:
            a.check(FlowContract({"loss": rows}))
            continue
        words = _leak(a, rows)
        assert "untie them (copy.deepcopy, or a parameter of its own)" in words
        assert "Boundary('target', 'detach')" not in words


def test_a_frozen_embedding_that_is_tied_to_the_head() -> None:
    """https://github.com/huggingface/transformers/issues/11903: what is frozen is one and the same with what trains."""
    torch.manual_seed(0)
    embedding, head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
    tokens = torch.arange(7)
    for tied in (True, False):
        head.weight = embedding.weight if tied else nn.Parameter(embedding.weight.detach().clone())
        with audit({"embedding": embedding, "head": head}) as a:
            hidden = Boundary("embedding", "detach")(embedding, tokens)
            a.loss("loss", F.cross_entropy(head(hidden), tokens))
        if tied:
            words = _leak(a, {"head": "open"}, "embedding")
            assert "embedding.weight = head.weight is one and the same" in words
            assert "Boundary('embedding'" not in words
        else:
            a.check(FlowContract({"loss": {"head": "open"}}, frozen=["embedding"]))


@pytest.mark.parametrize("behind", [False, True])
def test_what_the_contract_calls_frozen_is_not(behind: bool) -> None:
    """https://github.com/ultralytics/yolov5/issues/1213: layers that were thought to be frozen get gradients."""
    torch.manual_seed(0)
    stem, backbone, head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1)
    parts = {"stem": stem, "backbone": backbone, "head": head}
    rows = {"head": "open", **({"stem": "open"} if behind else {})}
    with audit(parts) as a:
        a.loss("loss", head(backbone(stem(X))).square().mean())
    words = _leak(a, rows, "backbone")
    assert "set backbone.requires_grad_(False), or leave it out of the optimiser's groups" in words
    assert "detach" not in words  # a cut would starve the stem
    backbone.requires_grad_(False)
    with audit(parts) as b:
        b.loss("loss", head(backbone(stem(X))).square().mean())
    b.check(FlowContract({"loss": rows}, frozen=["backbone"]))


def test_a_critic_that_the_actor_must_see_through() -> None:
    """https://github.com/pytorch/pytorch/issues/2655 and https://github.com/facebookresearch/higher/issues/10: the
    critic may not be moved by the actor's loss, whose gradient passes through it. So it is frozen, not cut.
    """
    torch.manual_seed(0)
    actor, critic = nn.Linear(4, 2), nn.Linear(2, 1)
    rows = {"actor": "open", "critic": "blocked"}
    for strategy in ("none", "freeze"):
        with audit({"actor": actor, "critic": critic}) as a:
            a.loss("loss", -Boundary("critic", strategy)(critic, actor(X)).mean())
        if strategy == "freeze":
            a.check(FlowContract({"loss": rows}))
        else:
            words = _leak(a, rows)
            assert "set stop.critic=freeze" in words
            assert "critic.requires_grad_(False) before the call and (True) after it" in words
            assert "detach" not in words
