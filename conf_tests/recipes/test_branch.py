"""The branch recipe: the trunk bit for bit with a probe on it, the clip that couples them, the gate's arithmetic."""

from types import SimpleNamespace

import pytest
import torch

from conf_tests.helpers import build_recipe, final, norms, train
from recipes.branch import BOUNDARIES, FLOW
from recipes.parts.batches import Batches
from recipes.parts.domains import Domains, inverted, textured

SMALL = ["recipe=branch", "data.name=digits", "data.shape=[1,8,8]", "recipe.width=4", "recipe.hidden=16"]
CUTS = ["detach", "no_grad", "freeze", "data"]


def batch(size=12):
    generator = torch.Generator().manual_seed(0)
    source, target = torch.randn(2, size, 1, 8, 8, generator=generator)
    return source, torch.randint(10, (size,), generator=generator), target


def trained(steps, *overrides):
    """All weights after ``steps`` steps of the recipe's own training_step."""
    recipe = build_recipe(*SMALL, *overrides)
    optimizer = recipe.configure_optimizers()
    recipe.optimizers = lambda: optimizer
    recipe.manual_backward = lambda loss: loss.backward()
    recipe.trainer = SimpleNamespace(log_every_n_steps=10**9, global_step=1)
    for k, tensors in enumerate(Batches(*batch(64), batch_size=16, length=steps)):
        recipe.training_step(tensors, k)
    return recipe.state_dict()


def same(a, b, *groups):
    return all(torch.equal(a[name], b[name]) for name in a if name.split(".")[0] in groups)


class TestProbe:
    def test_trunk_and_classifier_are_those_of_a_training_without_it(self):
        alone = trained(12, "recipe.domain_weight=0")
        for strategy in CUTS:
            probed = trained(12, f"stop.features={strategy}")
            assert same(alone, probed, "trunk", "classifier"), strategy
            assert not same(alone, probed, "branch")
        for strategy in ("none", "reverse:0.1", "scale:0.5"):
            assert not same(alone, trained(12, f"stop.features={strategy}"), "trunk"), strategy

    def test_one_clip_for_all_gradients_lets_it_move_the_trunk(self):
        tight = ["recipe.max_norm=0.05", "recipe.domain_weight=10", "recipe.optimizer.lr=0.5"]
        alone = trained(12, *tight, "recipe.domain_weight=0")
        assert same(alone, trained(12, *tight), "trunk", "classifier")
        moved = trained(12, *tight, "stop.clip=global")
        assert max((alone[n] - moved[n]).abs().max() for n in alone if n.startswith("trunk")) > 1e-3

    def test_clip_takes_each_group_by_its_own_norm(self):
        for choice, wanted in (("group", [1.0, 1.0]), ("global", None)):
            recipe = build_recipe(*SMALL, f"stop.clip={choice}", "recipe.max_norm=1")
            for parameter in recipe.parameters():
                parameter.grad = torch.ones_like(parameter)
            recipe.trainer = SimpleNamespace()
            recipe.clip(recipe.configure_optimizers())
            main = [p for group in (recipe.trunk, recipe.classifier) for p in group.parameters()]
            found = [
                torch.cat([p.grad.flatten() for p in ps]).norm().item() for ps in (main, recipe.branch.parameters())
            ]
            if wanted:
                assert found == pytest.approx(wanted, rel=1e-4)
            else:
                assert sum(norm**2 for norm in found) == pytest.approx(1, rel=1e-4)


class TestGate:
    @pytest.mark.parametrize(
        ("strategy", "factor"),
        [("none", 1.0), ("scale:0.25", 0.25), ("scale:0", 0.0), ("reverse:0.1", -0.1), *((cut, None) for cut in CUTS)],
    )
    def test_multiplies_what_reaches_the_trunk_and_not_the_branch(self, strategy, factor):
        def gradients(choice):
            recipe = build_recipe(*SMALL, f"stop.features={choice}")
            loss = recipe.branch_loss(batch())
            parts = [list(recipe.trunk.parameters()), list(recipe.branch.parameters())]
            return [torch.autograd.grad(loss, part, retain_graph=True, allow_unused=True) for part in parts]

        (trunk, branch), (gated, branch_gated) = gradients("none"), gradients(strategy)
        assert all(torch.equal(a, b) for a, b in zip(branch, branch_gated, strict=True))
        if factor is None:
            assert set(gated) == {None}
        else:
            for whole, part in zip(trunk, gated, strict=True):
                torch.testing.assert_close(part, factor * whole, rtol=1e-5, atol=1e-9)

    @pytest.mark.parametrize("strategy", [s for s in BOUNDARIES["features"] if s not in ("scale", "reverse")])
    def test_contract_by_gradients(self, strategy):
        recipe = build_recipe(*SMALL, f"stop.features={strategy}")
        found = {name: norms(getattr(recipe, name)(batch()), recipe.parameter_groups()) for name in FLOW}
        assert found["label_loss"]["trunk"] > 0
        assert found["label_loss"]["branch"] is None
        assert found["branch_loss"]["branch"] > 0
        assert found["branch_loss"]["classifier"] is None
        assert (found["branch_loss"]["trunk"] is None) == (strategy != "none")


class TestHeads:
    @pytest.mark.parametrize("head", ["domain", "confidence", "ahead", "draft"])
    @pytest.mark.parametrize("seed", range(3))
    def test_live_a_head_moves_the_trunk_and_cut_not_at_all(self, head, seed):
        """The trunk's gradient with the head and without: apart by exactly 0, or by a good part of its norm.

        A draft is behind two networks, so that at random weights less of it comes through.
        """
        trunk, own = {}, {}
        for choice in ("alone", "detach", "none"):
            recipe = build_recipe(
                *SMALL, f"seed={seed}", f"recipe.head={head}", f"stop.features={choice}".replace("alone", "detach")
            )
            losses = [recipe.label_loss(batch())] + ([recipe.branch_loss(batch())] if choice != "alone" else [])
            parameters = [list(recipe.trunk.parameters()), list(recipe.branch.parameters())]
            for kept, part in ((trunk, parameters[0]), (own, parameters[1])):
                found = torch.autograd.grad(torch.stack(losses).sum(), part, retain_graph=True, allow_unused=True)
                kept[choice] = torch.cat([g.flatten() for g in found if g is not None] or [torch.zeros(1)])
        assert torch.equal(trunk["detach"], trunk["alone"])
        assert (trunk["none"] - trunk["alone"]).norm() >= (0.1 if head == "draft" else 0.2) * trunk["alone"].norm()
        assert torch.equal(own["detach"], own["none"])

    @pytest.mark.parametrize("seed", range(3))
    def test_a_draft_is_read_by_a_classifier_that_does_not_hear_of_it(self, seed):
        """Cut, its weights get exactly nothing; the draft's own gradient, which passes through them, is the same."""
        found = {}
        for choice in ("freeze", "none"):
            recipe = build_recipe(*SMALL, f"seed={seed}", "recipe.head=draft", f"stop.classifier={choice}")
            loss = recipe.branch_loss(batch())
            found[choice] = (
                norms(loss, {"classifier": recipe.classifier})["classifier"],
                torch.autograd.grad(loss, list(recipe.branch.parameters())),
            )
        assert found["freeze"][0] is None
        assert found["none"][0] > 0.1
        assert all(torch.equal(a, b) for a, b in zip(found["freeze"][1], found["none"][1], strict=True))

    @pytest.mark.parametrize("head", ["confidence", "ahead", "draft"])
    def test_cut_a_head_changes_nothing_but_itself(self, head):
        alone, beside = (trained(12, f"recipe.head={head}", f"recipe.domain_weight={w}") for w in (0, 1))
        assert same(alone, beside, "trunk", "classifier")
        assert not same(alone, beside, "branch")

    def test_what_each_is_asked(self):
        source, labels, _ = batch()
        ahead = build_recipe(*SMALL, "recipe.head=ahead")
        by_hand = -ahead.branch(ahead.trunk(source)).log_softmax(1)[range(12), [(k + 1) % 10 for k in labels.tolist()]]
        torch.testing.assert_close(ahead.branch_loss(batch()), by_hand.mean())
        draft = build_recipe(*SMALL, "recipe.head=draft")
        said = draft.classifier(draft.branch(draft.trunk(source))).log_softmax(1)
        by_hand = -said[range(12), [(k + 1) % 10 for k in labels.tolist()]]
        torch.testing.assert_close(draft.branch_loss(batch()), by_hand.mean())
        sure = build_recipe(*SMALL, "recipe.head=confidence")
        right = torch.tensor([k == j for k, j in zip(sure(source).argmax(1).tolist(), labels.tolist(), strict=True)])
        said = sure.branch(sure.trunk(source)).squeeze(1).sigmoid()
        torch.testing.assert_close(sure.branch_loss(batch()), -torch.where(right, said, 1 - said).log().mean())


class TestDomains:
    def test_target_images_are_the_shifted_others(self, tmp_path):
        data = Domains(name="digits", shape=(1, 8, 8), shift="inverted", domain="both", cache=str(tmp_path))
        data.setup("fit")
        source, labels, target = data.train_tensors()
        assert torch.equal(source, data.images)
        assert torch.equal(labels, data.labels)
        assert not torch.equal(target, inverted(source))
        assert torch.equal(target.flatten(1).sum(1).sort().values, inverted(source).flatten(1).sum(1).sort().values)

    @pytest.mark.parametrize("shift", [inverted, textured])
    def test_shifts_stay_in_range_draw_nothing_and_repeat(self, shift):
        images = torch.rand(40, 1, 28, 28, generator=torch.Generator().manual_seed(0)) ** 4 * 2 - 1
        before = torch.get_rng_state()
        shifted = shift(images)
        assert torch.equal(before, torch.get_rng_state())
        assert torch.equal(shifted, shift(images))
        assert shifted.min() >= -1
        assert shifted.max() <= 1
        assert (shifted - images).abs().mean() > 0.2

    def test_textures_lie_behind_the_ink(self):
        ink = torch.zeros(40, 1, 28, 28).bernoulli_(0.3, generator=torch.Generator().manual_seed(0)) * 2 - 1
        shifted = textured(ink)
        assert torch.equal(shifted[ink > 0], ink[ink > 0])
        assert (shifted[ink < 0] > -1).float().mean() > 0.99


def test_labels_beyond_the_classifier_are_refused(tmp_path):
    ran = train(*SMALL, "recipe.classes=4", cwd=tmp_path)
    assert ran.stderr == "error: recipe.classes=4: the data has labels up to 9; choose 10\n"
    assert not (tmp_path / "runs").exists()


@pytest.mark.long
def test_reversed_the_gate_gains_and_open_it_costs():
    reverse, alone, joint = (final("branch", arm, "target_accuracy") for arm in ("reverse", "alone", "none"))
    assert all(r >= a + 0.05 and a >= j + 0.05 for r, a, j in zip(reverse, alone, joint, strict=True))
