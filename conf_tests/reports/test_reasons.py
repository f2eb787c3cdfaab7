"""Reports of cuts that nobody wrote: a reentrant checkpoint's, one inside torch.func, a gradient that is all zeros."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from stopgrad import FlowContract, GradientStarved, audit

HERE = __file__.rpartition("/")[2]
X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


def _nets(*names: str, out: int = 4) -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({name: nn.Linear(4, out) for name in names})


def _told(lines: list[str], *words: str) -> bool:
    return any(all(word in line for word in (*words, HERE)) for line in lines)


# ---- a reentrant checkpoint without an input that requires grad


def _nested(block: nn.Sequential, x: Tensor) -> Any:
    def run(x: Tensor) -> Any:
        return block[1:](checkpoint(block[:1], x, use_reentrant=True))

    return checkpoint(run, x, use_reentrant=True)


def _each(block: nn.Sequential, x: Tensor) -> Any:
    for layer in block:
        x = checkpoint(layer, x.detach(), use_reentrant=True)  # pyright: ignore[reportAssignmentType]
    return x


REENTRANT: dict[str, Callable[[nn.Sequential, Tensor], Any]] = {
    "one": lambda block, x: checkpoint(block, x, use_reentrant=True),
    "each layer": _each,
    "nested": _nested,
}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("how", REENTRANT)
def test_a_reentrant_checkpoint_behind_frozen_embeddings(how: str) -> None:
    """https://github.com/huggingface/transformers/issues/21381, https://github.com/huggingface/trl/issues/2671 and
    https://github.com/huggingface/trl/issues/3089: it trains nothing, and the answer is ``use_reentrant=False``.
    """
    nets = _nets("embedding", "head")
    block = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    nets["embedding"].requires_grad_(False)
    parts = {"block": block, "head": nets["head"]}
    with audit(parts) as a:
        a.loss("loss", nets["head"](REENTRANT[how](block, nets["embedding"](X))).square().mean())
    lines = a.matrix().reasons()
    assert a.matrix()["loss", "block"].state == "blocked"
    assert _told(lines, "loss -> block: stopped by a checkpoint that needs use_reentrant=False at ")
    assert not any("no_grad" in line for line in lines)
    with pytest.raises(GradientStarved, match=r"pass use_reentrant=False to the checkpoint at .*test_reasons"):
        a.check(FlowContract({"loss": {"block": "open"}}))
    with audit(parts) as b:
        b.loss("loss", nets["head"](checkpoint(block, nets["embedding"](X), use_reentrant=False)).square().mean())
    assert b.matrix()["loss", "block"].state == "open"


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_of_a_sequence_the_first_piece_alone_is_cut() -> None:
    block = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    with audit(dict(block.named_children())) as a:
        a.loss("loss", checkpoint_sequential(block, 2, X, use_reentrant=True).sum())
    assert [a.matrix()["loss", name].state for name in "012"] == ["blocked", "open", "open"]
    assert _told(a.matrix().reasons(), "loss -> 0: stopped by a checkpoint that needs use_reentrant=False")


# ---- inside torch.func


def test_the_stacked_parameters_of_an_ensemble_are_others() -> None:
    """https://github.com/pytorch/pytorch/pull/92274: they are cut off from the members', on purpose.

    https://github.com/pytorch/pytorch/issues/120581 and
    https://github.com/TorchEnsemble-Community/Ensemble-Pytorch/issues/108: whoever wants to train the members wonders.
    """
    nets = _nets("one", "two", "three", out=1)
    with audit(nets) as a:
        stacked, buffers = stack_module_state([nets["one"], nets["two"]])  # pyright: ignore[reportArgumentType]

        def member(p: dict[str, Tensor], b: dict[str, Tensor]) -> Tensor:
            return functional_call(nets["one"], (p, b), (X,))

        a.loss("loss", vmap(member)(stacked, buffers).square().mean())
    matrix = a.matrix()
    for name in ("one", "two"):
        cell = matrix["loss", name]
        assert (cell.state, [cut.kind for cut in cell.cuts]) == ("blocked", ["detach"])
        assert HERE in str(cell.cuts[0])
    assert matrix["loss", "three"].state == "opaque"
    with audit(nets) as b:
        b.loss("loss", torch.stack([nets[name](X) for name in ("one", "two")]).square().mean())
    assert [b.matrix()["loss", name].state for name in nets] == ["open", "open", "independent"]


def test_what_a_transform_hides_is_told_once() -> None:
    nets = _nets(*"abcdef")
    with audit(nets) as a:
        a.loss("first", vmap(lambda row: nets["a"](row).sum())(X).sum())
        a.loss("second", nets["b"](X).sum())
    lines = a.matrix().reasons()
    (line,) = [line for line in lines if "functorch" in line]
    assert line.startswith("first -> b (and 9 more): functorch at ")
    assert str(a.matrix()).count("functorch") == 1


def test_a_loss_before_the_transform_is_not_hidden() -> None:
    nets = _nets("a", "b", "c")
    with audit(nets) as a:
        a.loss("early", nets["a"](X).sum())
        a.loss("late", grad(lambda x: nets["b"](x).sum())(X[0]).sum() + nets["a"](X).sum())
    assert [a.matrix()["early", part].state for part in nets] == ["open", "independent", "independent"]
    assert len([line for line in a.matrix().reasons() if "functorch" in line]) == 1


# ---- a gradient of zeros


def _clamped_std(nets: nn.ModuleDict, mend: bool) -> Tensor:
    raw = nets["it"](X) + 30
    std = raw.clamp(-5, 2)
    return (raw + (std - raw).detach() if mend else std).sum() + nets["other"](X).square().mean()


def _clipped_ratio(nets: nn.ModuleDict, mend: bool) -> Tensor:
    log_prob = F.log_softmax(nets["it"](X), -1)[:, 0]
    ratio = (log_prob - log_prob.detach() + (0.0 if mend else 1.0)).exp()
    return -torch.min(ratio, ratio.clamp(0.8, 1.2)).mean() + nets["other"](X).square().mean()


def _clamped_probability(nets: nn.ModuleDict, mend: bool) -> Tensor:
    certain = torch.where(torch.arange(4) == 0, 50.0, 0.0)
    probability = F.softmax(nets["it"](X) + (0.0 if mend else 1.0) * certain, -1)[:, 0].clamp(0.001, 0.99)
    return -probability.log().mean() + nets["other"](X).square().mean()


def _dead_relu(nets: nn.ModuleDict, mend: bool) -> Tensor:
    return (F.leaky_relu if mend else F.relu)(nets["it"](X) - 100).sum() + nets["other"](X).square().mean()


ZEROS = {
    "clamp": _clamped_std,
    "clamp of a ratio": _clipped_ratio,
    "clamp of a probability": _clamped_probability,
    "relu": _dead_relu,
}


@pytest.mark.parametrize("kind", ZEROS)
def test_zeros_have_a_line(kind: str) -> None:
    """https://github.com/pytorch/pytorch/issues/7002 and https://github.com/watchernyu/REDQ/issues/8: a standard
    deviation outside of its clamp; https://github.com/openai/baselines/issues/92: PPO's ratio, which may be meant;
    https://github.com/DigiRL-agent/digirl/issues/22: a probability clamped at 0.99, where nearly all of them are;
    https://github.com/ai2cm/ace/pull/1322 mends it by an estimator that passes straight through.
    """
    nets = _nets("it", "other")
    with audit(nets) as a:
        a.loss("loss", ZEROS[kind](nets, False))
    cell = a.matrix()["loss", "it"]
    assert cell.state == "zero"
    assert a.matrix()["loss", "other"].state == "open"
    (died,) = [line for line in cell.died if line.startswith(kind.split()[0])]
    assert HERE in died
    with audit(nets) as b:
        b.loss("loss", ZEROS[kind](nets, True))
    assert b.matrix()["loss", "it"].state == "open"
