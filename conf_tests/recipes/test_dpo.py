"""DPO: the margin that each reference leads to, in closed form, and the loss that does not tell them apart."""

import math

import pytest
import torch
from hydra.utils import instantiate

from conf_tests.helpers import build_recipe, config, final, norms
from recipes.dpo import BOUNDARIES, KTO
from recipes.parts.preferences import Preferences

RIGHT = math.log(4) / 0.5  # logit(.8) / beta
ARMS = {  # overrides: margin from where the policy began, how far h is, the loss
    "frozen": ([], RIGHT, RIGHT),
    "trained": (["stop.reference=none"], RIGHT / 2, RIGHT),
    "itself, live": (["stop.model=policy", "stop.reference=none"], 0, 0),
    "adapter": (["stop.model=base"], RIGHT, RIGHT),
    "adapter, shared": (["stop.model=base", "stop.base=none"], 2 * RIGHT, RIGHT),
    "adapter, shared, live": (["stop.model=base", "stop.base=none", "stop.reference=none"], RIGHT, RIGHT),
}


def trained(steps, *overrides, seed=0):
    """The recipe after so many steps, and the pairs that it was told of."""
    recipe = build_recipe("recipe=dpo", f"seed={seed}", *overrides)
    batch = Preferences(seed=seed).train_tensors()
    optimizer = recipe.configure_optimizers()
    for _ in range(steps):
        optimizer.zero_grad()
        recipe.dpo_loss(batch).backward()
        optimizer.step()
    return recipe, batch


def scores(recipe, batch):
    """What a validation logs."""
    found = {}
    recipe.log = lambda name, value, **kwargs: found.update({name: value.item()})
    with torch.no_grad():
        recipe.validation_step(batch, 0)
    return found


class TestMargins:
    @pytest.mark.parametrize("arm", ARMS)
    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_in_closed_form(self, arm, seed):
        overrides, margin, h = ARMS[arm]
        found = scores(*trained(500, *overrides, seed=seed))
        assert found["margin"] == pytest.approx(margin, abs=1e-3)
        assert found["health/h"] == pytest.approx(h, abs=1e-3)
        loss = 0.8 * math.log1p(math.exp(-h / 2)) + 0.2 * math.log1p(math.exp(h / 2))
        assert found["loss"] == pytest.approx(loss, abs=1e-6)
        assert (found["health/base_moved"] > 0.1) == (arm == "adapter, shared")

    def test_itself_cut_goes_on_in_equal_steps(self):
        """At a loss of log 2: the gradient is a constant, .3 in each margin's two logits, and the margin is linear."""
        ends = [scores(*trained(n, "stop.model=policy")) for n in (100, 200, 300)]
        assert [end["loss"] for end in ends] == pytest.approx([math.log(2)] * 3, abs=1e-12)
        assert [end["margin"] for end in ends] == pytest.approx([15, 30, 45], rel=1e-9)  # .15 a step
        recipe, batch = trained(0, "stop.model=policy")
        recipe.dpo_loss(batch).backward()
        one_by_one = recipe.adapter.logits.grad.norm(dim=1) * 4  # the mean is over four prompts
        torch.testing.assert_close(one_by_one.tolist(), [0.3 * 0.5 * math.sqrt(2)] * 4)

    def test_itself_live_has_no_gradient(self):
        recipe, batch = trained(0, "stop.model=policy", "stop.reference=none")
        recipe.dpo_loss(batch).backward()
        assert recipe.adapter.logits.grad.count_nonzero() == 0

    def test_two_live_ways_to_the_base_cancel_bit_for_bit(self):
        live, _ = trained(50, "stop.model=base", "stop.base=none", "stop.reference=none")
        frozen, _ = trained(50, "stop.model=base")
        assert torch.equal(live.base.logits, live.start)
        assert torch.equal(live.adapter.logits, frozen.adapter.logits)


class TestCut:
    """What each cut keeps from hearing of the loss, which an optimiser that does not hold it would not tell."""

    @pytest.mark.parametrize(
        ("overrides", "of", "boundary"),
        [([], "base", "base"), ([], "copy", "reference"), (["stop.model=base", "stop.base=none"], "base", "reference")],
    )
    def test_of_base_and_reference(self, overrides, of, boundary):
        batch = Preferences().train_tensors()
        found = {}
        for choice in ("detach", "none"):
            recipe = build_recipe("recipe=dpo", *overrides, f"stop.{boundary}={choice}")
            group = {of: getattr(recipe, of).requires_grad_()}
            found[choice] = norms(recipe.dpo_loss(batch), group)[of]
        if overrides:  # the policy's own way to the base is live: both ways together cancel
            assert found["detach"] > 0.1
            assert found["none"] == pytest.approx(0, abs=1e-12)
        else:
            assert found["detach"] is None
            assert found["none"] > 0.1

    def test_of_ktos_reference_point(self):
        """By hand: with z0 a number, and with it live."""
        for choice in ("detach", "none"):
            recipe, (prompts, chosen, rejected) = trained(5, "recipe.loss_type=kto", f"stop.kl={choice}")
            policy, reference = recipe.log_policy(), recipe.start.log_softmax(-1)
            ratios = policy - reference
            z0 = (policy.exp() * ratios).sum(1)
            z0 = (z0.detach() if choice == "detach" else z0)[prompts]
            good, bad = (0.5 * (ratios[prompts, each] - z0) for each in (chosen, rejected))
            right = 0.8 * (good.sigmoid() + (-bad).sigmoid()) + 0.2 * ((-good).sigmoid() + bad.sigmoid())
            parameters = [recipe.adapter.logits]
            wanted = torch.autograd.grad((1 - right / 2).mean(), parameters)
            found = torch.autograd.grad(recipe.dpo_loss((prompts, chosen, rejected)), parameters)
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


class TestLoss:
    def test_by_hand(self):
        recipe, (prompts, chosen, rejected) = trained(5)
        policy, reference = recipe.log_policy(), recipe.start.log_softmax(-1)
        by_hand = 0.0
        for p, good, bad in zip(prompts, chosen, rejected, strict=True):
            h = policy[p, good] - reference[p, good] - policy[p, bad] + reference[p, bad]
            by_hand -= (0.8 * torch.sigmoid(0.5 * h).log() + 0.2 * torch.sigmoid(-0.5 * h).log()) / 4
        torch.testing.assert_close(recipe.dpo_loss((prompts, chosen, rejected)), by_hand)

    def test_of_kto_by_hand(self):
        recipe, (prompts, chosen, rejected) = trained(5, "recipe.loss_type=kto", "recipe.label_smoothing=0")
        assert recipe.FLOW is KTO
        policy, reference = recipe.log_policy().double(), recipe.start.log_softmax(-1)
        z0 = (policy.exp() * (policy - reference)).sum(1)
        ratios = policy - reference
        good = [torch.sigmoid(0.5 * (ratios[p, y] - z0[p])) for p, y in zip(prompts, chosen, strict=True)]
        bad = [torch.sigmoid(0.5 * (z0[p] - ratios[p, y])) for p, y in zip(prompts, rejected, strict=True)]
        torch.testing.assert_close(recipe.dpo_loss((prompts, chosen, rejected)), 1 - torch.stack(good + bad).mean())

    def test_of_kto_learns_with_its_reference_point_live_as_well(self):
        """No clear effect: both put nearly all on the chosen answer."""
        for kl in BOUNDARIES["kl"]:
            recipe, (prompts, chosen, _) = trained(1500, "recipe.loss_type=kto", f"stop.kl={kl}")
            assert (recipe.log_policy()[prompts, chosen] > recipe.start.log_softmax(-1)[prompts, chosen]).all()

    def test_every_cut_gives_the_same_weights(self):
        whole = [trained(20, f"stop.reference={cut}")[0].adapter.logits for cut in ("no_grad", "detach", "data")]
        assert torch.equal(whole[0], whole[1])
        assert torch.equal(whole[0], whole[2])


def test_pairs_are_two_answers_of_each_prompt():
    data = instantiate(config("recipe=dpo").data, _convert_="all")
    assert (data.chosen != data.rejected).all()
    assert sorted(next(iter(data.train_dataloader()))[0].tolist()) == [0, 1, 2, 3]


@pytest.mark.long
def test_the_margin_tells_what_the_loss_does_not():
    for arm, margin in (("frozen", 1), ("trained", 0.5), ("adapter-shared", 2), ("adapter-shared-live", 1)):
        assert final("dpo", arm, "margin") == pytest.approx([margin * RIGHT] * 3, abs=1e-3), arm
        assert final("dpo", arm, "loss") == pytest.approx([0.5004] * 3, abs=1e-4), arm
    for arm in ("itself-live", "itself-cut"):
        assert final("dpo", arm, "loss") == pytest.approx([math.log(2)] * 3, abs=1e-4), arm
