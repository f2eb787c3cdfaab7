"""Local learning: each block bit for bit as it learns alone, and what is saved for backward, to the byte."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from conf_tests.helpers import build_recipe, final
from recipes.local import FINAL

RECIPE = "recipe=local"
TOGETHER = ["stop.backward=together"]
UNCUT = ["stop.blocks=none", *TOGETHER]
END_TO_END = [*UNCUT, "stop.losses=last"]


def batch(size=8):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(size, 1, 8, 8, generator=generator) * 2 - 1, torch.arange(size) % 10


def stepped(*overrides, steps=1):
    """The recipe after so many of the very training_step on one batch, without Lightning around it."""
    recipe = build_recipe(RECIPE, *overrides)
    optimizer = recipe.configure_optimizers()
    recipe.optimizers = lambda: optimizer
    recipe.manual_backward = lambda loss, **kwargs: loss.backward(**kwargs)
    recipe.trainer = SimpleNamespace(log_every_n_steps=10**9, global_step=1)
    for k in range(steps):
        recipe.training_step(batch(), k)
    return recipe


def gradients(recipe):
    return {name: parameter.grad for name, parameter in recipe.named_parameters()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in {**a, **b})


class TestGradient:
    def test_each_block_learns_as_if_it_were_alone(self):
        learnt, (images, labels) = gradients(stepped()), batch()
        fresh = build_recipe(RECIPE)
        features = images.flatten(1)
        for number, (block, head) in enumerate(zip(fresh.blocks, fresh.heads, strict=True)):
            alone = block(features.clone())  # a value, from nowhere
            F.cross_entropy(head(alone), labels).backward()
            for name, parameter in block.named_parameters():
                assert torch.equal(parameter.grad, learnt[f"blocks.{number}.{name}"])
            for name, parameter in head.named_parameters():
                assert torch.equal(parameter.grad, learnt[f"heads.{number}.{name}"])
            features = alone.detach()

    @pytest.mark.parametrize("arm", [["stop.blocks=data"], TOGETHER])
    def test_every_cut_and_one_backward_for_all_are_the_same_training(self, arm):
        assert same(stepped(steps=5).state_dict(), stepped(*arm, steps=5).state_dict())
        assert not same(stepped(steps=5).state_dict(), stepped(*UNCUT, steps=5).state_dict())

    def test_from_end_to_end_is_one_network(self):
        learnt, (images, labels) = stepped(*END_TO_END), batch()
        whole = build_recipe(RECIPE)
        network = torch.nn.Sequential(torch.nn.Flatten(), *whole.blocks, whole.heads[-1])
        F.cross_entropy(network(images), labels).backward()
        expected, found = gradients(whole), gradients(learnt)
        assert {name for name, gradient in found.items() if gradient is None} == {
            f"heads.{number}.{part}" for number in range(3) for part in ("weight", "bias")
        }
        assert all(torch.equal(g, expected[name]) for name, g in found.items() if g is not None)
        assert learnt.FLOW is FINAL

    def test_deep_supervision_is_the_sum_of_all_losses(self):
        learnt, whole = gradients(stepped(*UNCUT)), build_recipe(RECIPE, *UNCUT)
        sum(loss for _, loss in whole.losses(batch())).backward()
        for name, gradient in gradients(whole).items():
            torch.testing.assert_close(learnt[name], gradient, rtol=1e-5, atol=1e-8)

    @pytest.mark.parametrize(("strategy", "factor"), [("scale:0.5", 0.5**3), ("reverse:2", (-2.0) ** 3)])
    def test_a_gate_counts_once_a_boundary(self, strategy, factor):
        found = []
        for arm in ("none", strategy):
            recipe = build_recipe(RECIPE, f"stop.blocks={arm}", *TOGETHER)
            recipe.final_loss(batch()).backward()
            found.append(recipe.blocks[0][0].weight.grad)
        torch.testing.assert_close(found[1], factor * found[0])

    def test_random_features_stay_random(self):
        before, after = build_recipe(RECIPE).state_dict(), stepped("stop.losses=last").state_dict()
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert moved == {"blocks.3.0.weight", "blocks.3.0.bias", "heads.3.weight", "heads.3.bias"}

    def test_without_the_cut_a_backward_at_once_is_refused_by_pytorch(self):
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            stepped("stop.blocks=none")


class TestBytes:
    """Of an image float32 inputs (64), features (128) and scores (10), an int64 label; of each loss one weight more."""

    def held(self, losses, *overrides):
        """Bytes an image, without the weights of so many losses."""
        return (build_recipe(RECIPE, *overrides).held_bytes(batch(16)) - 4 * losses) / 16

    def test_a_backward_a_block_keeps_one_block(self):
        one = 4 * (128 + 128 + 10) + 8
        assert self.held(1) == one
        assert self.held(1, "recipe.depth=8") == one

    @pytest.mark.parametrize("depth", [4, 8])
    def test_together_the_cut_saves_nothing(self, depth):
        whole = 4 * (64 + depth * 128 + depth * 10) + 8
        assert self.held(depth, *TOGETHER, f"recipe.depth={depth}") == whole
        assert self.held(depth, *UNCUT, f"recipe.depth={depth}") == whole
        assert self.held(1, *END_TO_END, f"recipe.depth={depth}") == 4 * (64 + depth * 128 + 10) + 8

    @pytest.mark.parametrize(
        ("arm", "order"),
        [([], "0b1b2b3b"), (TOGETHER, "0123bb"), (["stop.losses=last"], "0123b"), (END_TO_END, "0123b")],
    )
    def test_when_each_backward_comes_in_a_step(self, arm, order):
        recipe, seen = build_recipe(RECIPE, *arm), []
        optimizer = recipe.configure_optimizers()
        recipe.optimizers = lambda: optimizer
        recipe.manual_backward = lambda loss, **kwargs: (seen.append("b"), loss.backward(**kwargs))
        recipe.trainer = SimpleNamespace(log_every_n_steps=10**9, global_step=1)
        for number, block in enumerate(recipe.blocks):
            block.register_forward_hook(lambda *_, number=number: seen.append(str(number)))
        recipe.training_step(batch(), 0)
        assert "".join(seen) == order

    def test_no_graph_of_an_earlier_block_is_alive_in_a_step(self):
        recipe = build_recipe(RECIPE)
        losses, depths = [], []
        for _, loss in recipe.losses(batch()):
            losses.append(loss.grad_fn)
            depths.append(len(reach(loss.grad_fn)))
        assert depths == [depths[0]] * 4  # each has the nodes of one block
        assert not set.intersection(*(reach(node) for node in losses))


def reach(node):
    """All nodes of the graph behind a node."""
    found, stack = {node}, [node]
    while stack:
        for following, _ in stack.pop().next_functions:
            if following is not None and following not in found:
                found.add(following)
                stack.append(following)
    return found


def test_too_few_blocks_are_refused():
    with pytest.raises(Exception, match=r"recipe.depth=2: choose 3 or more"):
        build_recipe(RECIPE, "recipe.depth=2")


@pytest.mark.long
def test_local_losses_do_nearly_as_well_for_fewer_bytes():
    local, whole, fixed = (final("local", arm, "accuracy") for arm in ("local", "end-to-end", "random-features"))
    assert all(abs(a - b) <= 0.02 and c < a - 0.03 for a, b, c in zip(local, whole, fixed, strict=True))
    held, more = (final("local", arm, "held_bytes") for arm in ("local", "end-to-end"))
    assert held == [pytest.approx(1072, abs=0.1)] * 3
    assert more == [pytest.approx(2352, abs=0.1)] * 3
