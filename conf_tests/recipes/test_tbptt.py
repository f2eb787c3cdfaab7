"""The TBPTT recipe: its gradient against a hand-made one, how far it reaches, each cut bit for bit, what raises."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from conf_tests.helpers import build_recipe, final, result, train
from recipes.parts.batches import Batches
from recipes.parts.recall import UNANSWERABLE, Recall
from recipes.tbptt import BOUNDARIES, TBPTT

SMALL = ["recipe=tbptt", "recipe.width=8", "recipe.chunk=5"]
CUTS = [strategy for strategy in BOUNDARIES["hidden"] if strategy != "none"]


def batches(count: int, length: int = 20) -> Batches:
    data = Recall(delay=3, length=length, sequences=64, batch_size=8, steps=count, seed=1)
    return data.train_dataloader()


def trained(steps: int, *overrides: str) -> TBPTT:
    """The recipe after ``steps`` batches of the very training_step, without Lightning around it."""
    recipe = build_recipe(*SMALL, *overrides)
    optimizer = recipe.configure_optimizers()
    optimizer.optimizer = optimizer  # as Lightning's wrapper holds it
    recipe.optimizers = lambda: optimizer
    recipe.manual_backward = lambda loss: loss.backward()
    recipe.trainer = SimpleNamespace(log_every_n_steps=10**9, global_step=1)
    for k, batch in enumerate(batches(steps)):
        recipe.training_step(batch, k)
    return recipe


def equal(a: TBPTT, b: TBPTT) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in a.state_dict().items())


def reach(*overrides: str, steps: int = 20) -> torch.Tensor:
    """(t, s), bool: does a gradient reach the input of step s from the logits of step t?"""
    return build_recipe(*SMALL, *overrides).sample(steps)[0, 0] > 0


class TestLoss:
    def test_is_the_networks_own_over_the_whole_sequence(self):
        """Chunks whose state is carried compute what one pass does; unanswerable steps count as 0."""
        recipe, (symbols, targets) = build_recipe(*SMALL), next(iter(batches(1)))
        logits, _ = recipe.network(F.one_hot(symbols, 4).float())
        answerable = targets != UNANSWERABLE
        expected = -logits.log_softmax(-1)[answerable].gather(1, targets[answerable][:, None]).sum() / targets.numel()
        torch.testing.assert_close(recipe.recall_loss((symbols, targets)), expected)

    def test_gradient_holds_the_state_at_the_border_fixed(self):
        """dL_i/dw by hand: one pass for the states, then each chunk alone from its state, a constant."""
        recipe, (symbols, targets) = build_recipe(*SMALL), next(iter(batches(1)))
        found = torch.autograd.grad(recipe.recall_loss((symbols, targets)), list(recipe.parameters()))
        inputs, expected = F.one_hot(symbols, 4).float(), []
        for start in range(0, 20, 5):
            with torch.no_grad():
                state = recipe.network(inputs[:, :start])[1] if start else torch.zeros(1, 8, 8)
            logits, _ = recipe.network(inputs[:, start : start + 5], state)
            loss = F.cross_entropy(logits.flatten(0, 1), targets[:, start : start + 5].flatten(), reduction="sum")
            expected.append(torch.autograd.grad(loss / targets.numel(), list(recipe.parameters())))
        for gradient, parts in zip(found, zip(*expected, strict=True), strict=True):
            torch.testing.assert_close(gradient, torch.stack(parts).sum(0))

    def test_without_the_cut_it_is_that_of_the_whole_sequence(self):
        batch = next(iter(batches(1)))
        whole, live, cut = (
            torch.autograd.grad(recipe.recall_loss(batch), list(recipe.parameters()))
            for recipe in (build_recipe(*SMALL, *o) for o in (["recipe.chunk=20"], ["stop.hidden=none"], []))
        )
        for a, b in zip(whole, live, strict=True):
            torch.testing.assert_close(a, b)
        assert not torch.allclose(whole[0], cut[0], rtol=1e-2)


class TestReach:
    """A staircase: within the chunk, and never ahead."""

    @pytest.mark.parametrize("strategy", CUTS)
    def test_ends_at_the_border(self, strategy):
        step = torch.arange(20)
        expected = (step[:, None] // 5 == step // 5) & (step[:, None] >= step)
        assert torch.equal(reach(f"stop.hidden={strategy}"), expected)
        assert torch.equal(reach("stop.state=reset"), expected)

    def test_without_the_cut_it_goes_to_the_beginning(self):
        expected = torch.ones(20, 20).tril().bool()
        assert torch.equal(reach("stop.hidden=none"), expected)
        assert torch.equal(reach("recipe.chunk=20"), expected)
        assert torch.equal(reach("recipe.chunk=50"), expected)

    def test_a_last_chunk_may_be_shorter(self):
        assert reach("recipe.chunk=8")[19].nonzero().flatten().tolist() == [16, 17, 18, 19]


class TestValue:
    def test_of_the_state_crosses_the_border_unless_it_is_reset(self):
        inputs = torch.eye(4)[torch.randint(4, (2, 1, 20), generator=torch.Generator().manual_seed(0))]
        inputs[1, :, 5:] = inputs[0, :, 5:]  # two pasts, the same from the border on
        for state, same in (("carried", False), ("reset", True)):
            recipe = build_recipe(*SMALL, f"stop.state={state}")
            one, other = (torch.cat(list(recipe.chunks(each)), dim=1)[0, 5:] for each in inputs)
            assert torch.equal(one, other) == same


class TestTraining:
    def test_every_cut_gives_the_same_weights(self):
        reference = trained(3)
        for strategy in CUTS[1:]:
            assert equal(reference, trained(3, f"stop.hidden={strategy}")), strategy
        assert not equal(reference, trained(3, "stop.state=reset"))
        assert not equal(reference, trained(3, "recipe.chunk=10"))

    def test_each_update_is_by_the_loss_of_its_chunk_alone(self):
        by_hand, (symbols, targets) = build_recipe(*SMALL), next(iter(batches(1)))
        optimizer, state, parameters = by_hand.configure_optimizers(), None, list(by_hand.parameters())
        for start in range(0, 20, 5):
            here = slice(start, start + 5)
            logits, state = by_hand.network(F.one_hot(symbols[:, here], 4).float(), state)
            loss = F.cross_entropy(logits.flatten(0, 1), targets[:, here].flatten(), reduction="sum") / 40
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.grad = gradient
            optimizer.step()
            state = state.detach()
        assert equal(by_hand, trained(1))

    def test_each_chunk_is_an_update(self):
        optimizer = trained(3).optimizers()
        assert {int(state["step"]) for state in optimizer.state.values()} == {3 * 4}

    def test_without_the_cut_the_second_chunk_raises(self, tmp_path):
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            trained(1, "stop.hidden=none")
        trained(1, "stop.hidden=none", "recipe.chunk=20")  # one chunk: there is no border
        ran = train(*SMALL, "stop.hidden=none", "trainer=smoke", "hydra.run.dir=run", cwd=tmp_path)
        assert ran.returncode == 1
        recorded = result(tmp_path / "run")
        assert recorded["status"] == "raised"
        assert recorded["message"].startswith("Trying to backward through the graph a second time")


@pytest.mark.parametrize("fused", [False, True])
def test_retaining_the_graph_raises_next_or_is_silent(fused):
    """The update has changed the weights that the first chunk's graph saved. A fused one does not count its writes."""
    recipe = build_recipe(*SMALL, "stop.hidden=none", f"recipe.optimizer.fused={fused}")
    optimizer = recipe.configure_optimizers()
    losses = recipe.chunk_losses(next(iter(batches(1))))
    next(losses).backward(retain_graph=True)
    optimizer.step()
    if fused:
        next(losses).backward()
    else:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            next(losses).backward()


def test_data():
    data = Recall(delay=3, length=10, sequences=6, batch_size=6)
    symbols, targets = next(iter(data.train_dataloader()))
    assert torch.equal(targets[:, 3:], symbols[:, :-3])
    assert (targets[:, :3] == UNANSWERABLE).all()
    held_out, _ = next(iter(data.val_dataloader()))
    assert held_out.shape == (500, 10)
    assert not torch.equal(Recall(seed=1).sequences, Recall(seed=2).sequences)
    with pytest.raises(ValueError, match=r"^data.length=12: choose more than data.delay=12$"):
        Recall(length=12)


@pytest.mark.long
def test_only_chunks_longer_than_the_delay_learn_it():
    assert min(final("tbptt", "k-20", "accuracy")) >= 0.85
    for arm in ("k-10", "k-5", "k-2"):
        assert max(final("tbptt", arm, "accuracy")) <= 0.4, arm
    best = 48 / 108 + 60 / 108 / 4  # the answers that lie in the same chunk, and a quarter of the rest
    assert max(final("tbptt", "reset", "accuracy")) <= best + 0.01
