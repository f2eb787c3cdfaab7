"""The recipe of policy weights: each sample's gradient by hand, exact expectations, 1 + log p, each cut bit for bit."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from conf_tests.helpers import build_recipe, final, train
from recipes.policy_weights import BOUNDARIES, Feedback, PolicyWeights

SMALL = ["recipe=policy_weights", "recipe.width=8"]
CUTS = ["detach", "no_grad", "detach_", "data"]
RATIO = ["stop.objective=ratio", "stop.weights=none"]
FACTOR = {**dict.fromkeys(CUTS, 0.0), "none": 1.0, "scale:0.25": 0.25, "reverse:0.5": -0.5}


class Table(nn.Module):
    """A policy over K arms, the same for every image: its logits are its only parameter."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.log_softmax(0).expand(len(images), -1)


def bandit(logits: Tensor, *overrides: str) -> PolicyWeights:
    """The recipe with a table in place of its network, in float64."""
    recipe = build_recipe(*SMALL, f"recipe.classes={len(logits)}", *overrides)
    recipe.policy = Table(logits.double())
    return recipe


def every_arm(rewards: Tensor, behaviour: Tensor) -> Feedback:
    arms = torch.arange(len(rewards))
    return Feedback(torch.zeros(len(rewards), 1), arms, rewards.double(), behaviour.double())


def gradient(loss: Tensor, recipe: PolicyWeights) -> Tensor:
    return torch.autograd.grad(loss, recipe.policy.logits)[0]


def random(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, 1, 8, 8, generator=generator), torch.randint(10, (16,), generator=generator))
        for _ in range(count)
    ]


def trained(steps: int, *overrides: str) -> PolicyWeights:
    """The recipe after ``steps`` of its own training_step, without Lightning around it."""
    recipe = build_recipe(*SMALL, *overrides)
    optimizer = recipe.configure_optimizers()
    recipe.optimizers = lambda: optimizer
    recipe.manual_backward = lambda loss: loss.backward()
    for k, batch in enumerate(batches(steps)):
        recipe.trainer = SimpleNamespace(log_every_n_steps=10**9, global_step=k + 1)
        recipe.training_step(batch, k)
    return recipe


def equal(a: nn.Module, b: nn.Module) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in a.state_dict().items())


class TestGradient:
    @pytest.mark.parametrize("strategy", FACTOR)
    def test_of_each_sample_by_hand(self, strategy):
        """-w A (1 + a log pi) (e_a - pi), and the same loss whatever a is."""
        logits, behaviour, rewards = random(5), random(5, seed=1).log_softmax(0), random(5, seed=2)
        recipe = bandit(logits, f"stop.weights={strategy}", "recipe.baseline=0.3")
        probs = logits.softmax(0)
        losses = recipe.losses(every_arm(rewards, behaviour))
        for arm in range(5):
            gain = probs[arm] / behaviour[arm].exp() * (rewards[arm] - 0.3)
            torch.testing.assert_close(losses[arm], -gain * probs[arm].log())
            score = torch.eye(5, dtype=torch.float64)[arm] - probs
            expected = -gain * (1 + FACTOR[strategy] * probs[arm].log()) * score
            found = torch.autograd.grad(losses[arm], recipe.policy.logits, retain_graph=True)[0]
            torch.testing.assert_close(found, expected)

    def test_expected_one_is_exact_under_any_behaviour(self):
        """The mean under mu of the cut loss's gradient, and of the ratio's, is that of minus the expected reward."""
        logits, behaviour, rewards = random(6), random(6, seed=1).log_softmax(0), random(6, seed=2)
        probs = logits.softmax(0)
        exact = -probs * (rewards - (probs * rewards).sum())
        for overrides in ([], RATIO):
            recipe = bandit(logits, *overrides)
            losses = recipe.losses(every_arm(rewards, behaviour))
            torch.testing.assert_close(gradient((behaviour.exp() * losses).sum(), recipe), exact)

    def test_ratio_is_right_to_every_order_and_the_cut_to_the_first(self):
        """DiCE's point: the second derivative, of which meta-learning has need."""
        logits, rewards = random(4), random(4, seed=2)
        behaviour = logits.log_softmax(0)

        def hessian(*overrides):
            def loss(at):
                recipe = bandit(logits, *overrides)
                recipe.policy.forward = lambda images: at.log_softmax(0).expand(len(images), -1)
                return (behaviour.exp() * recipe.losses(every_arm(rewards, behaviour))).sum()

            return torch.autograd.functional.hessian(loss, logits)

        exact = torch.autograd.functional.hessian(lambda at: -(at.softmax(0) * rewards).sum(), logits)
        torch.testing.assert_close(hessian(*RATIO), exact)
        assert not torch.allclose(hessian(), exact, rtol=0.1)


class TestOnePlusLogP:
    @pytest.mark.parametrize("arms", [2, 10, 1000])
    def test_at_even_choices(self, arms):
        """Ten arms: the wrong way, 1.30 times as far; two: the right way, .31 times; a thousand: 5.9 times."""
        recipes = [bandit(torch.zeros(arms), *o) for o in ([], ["stop.weights=none"])]
        feedback = every_arm(random(arms), torch.full((arms,), -math.log(arms)))
        cut, live = (gradient(recipe.policy_loss(feedback), recipe) for recipe in recipes)
        torch.testing.assert_close(live, (1 - math.log(arms)) * cut)

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize(
        ("overrides", "cosine", "ratio"),
        [
            ([], 1, 1),
            (RATIO, 1, 1),
            (["stop.weights=none"], -1, math.log(10) - 1),
            (["stop.weights=scale:0.2"], 1, 1 - 0.2 * math.log(10)),
            (["stop.weights=scale:0.6"], -1, 0.6 * math.log(10) - 1),
        ],
    )
    def test_of_the_network_on_images(self, seed, overrides, cosine, ratio):
        recipe = build_recipe(*SMALL, f"seed={seed}", *overrides)
        assert recipe.aligned(batches(1)[0]).tolist() == pytest.approx([cosine, ratio], abs=1e-4)

    def test_turns_at_one_over_e(self):
        """One step up the live objective, of the arm that pays: away from it below 1/e, towards it above."""
        for prob, up in ((1 / math.e - 0.01, False), (1 / math.e + 0.01, True)):
            logits = torch.tensor([prob, (1 - prob) / 2, (1 - prob) / 2]).log()
            recipe = bandit(logits, "stop.weights=none", "recipe.baseline=0")
            feedback = every_arm(torch.tensor([1.0, 0.0, 0.0]), logits.log_softmax(0))
            assert (-gradient(recipe.policy_loss(feedback), recipe)[0] > 0) == up


class TestCap:
    def test_bounds_the_weight_and_keeps_the_sample(self):
        """V-trace and CISPO: a capped sample still teaches. PPO's ratio: it does not, its weight is a constant."""
        logits, rewards = torch.zeros(2), torch.tensor([1.0, 1.0])
        behaviour = torch.tensor([0.1, 0.9]).log()  # weights 5 and .56
        cut = bandit(logits, "recipe.cap=2", "recipe.baseline=0")
        losses = cut.losses(every_arm(rewards, behaviour))
        torch.testing.assert_close(losses.tolist(), [2 * math.log(2), 0.5 / 0.9 * math.log(2)], rtol=1e-6, atol=0)
        assert gradient(losses[0], cut)[0].item() == pytest.approx(-2 * 0.5)
        ratio = bandit(logits, "recipe.cap=2", "recipe.baseline=0", *RATIO)
        losses = ratio.losses(every_arm(rewards, behaviour))
        assert torch.autograd.grad(losses[0], ratio.policy.logits, retain_graph=True)[0].tolist() == [0, 0]
        assert torch.autograd.grad(losses[1], ratio.policy.logits)[0].abs().max() > 0


class TestTraining:
    def test_every_cut_gives_the_same_weights(self):
        torch.manual_seed(0)
        reference = trained(3)
        for strategy in CUTS[1:]:
            assert equal(reference, trained(3, f"stop.weights={strategy}")), strategy
        for strategy in (s for s in BOUNDARIES["weights"] if s not in CUTS):
            chosen = {"scale": "scale:0.2", "reverse": "reverse:0.2"}.get(strategy, strategy)
            assert not equal(reference, trained(3, f"stop.weights={chosen}")), strategy

    def test_each_update_is_by_its_own_loss_alone(self):
        by_hand = build_recipe(*SMALL)
        optimizer, parameters = by_hand.configure_optimizers(), list(by_hand.policy.parameters())
        for batch in batches(3):
            loss = by_hand.policy_loss(by_hand.collect(batch))
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.grad = gradient
            optimizer.step()
        assert equal(by_hand, trained(3))

    def test_older_policy_acts_until_it_is_refreshed(self):
        recipe = trained(3, "recipe.refresh=3")  # refreshed before the third step
        assert equal(recipe.behaviour, trained(2, "recipe.refresh=3").policy)
        assert not equal(recipe.behaviour, recipe.policy)
        assert not any(parameter.requires_grad for parameter in recipe.behaviour.parameters())

    def test_actions_are_samples_of_the_older_policy(self):
        recipe = bandit(torch.zeros(3))
        recipe.behaviour = Table(torch.tensor([0.5, 0.3, 0.2]).log())
        torch.manual_seed(0)
        feedback = recipe.collect((torch.zeros(20_000, 1), torch.zeros(20_000, dtype=torch.long)))
        shares = feedback.actions.bincount(minlength=3) / 20_000
        torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.2]), atol=0.015, rtol=0)
        assert torch.equal(feedback.rewards, (feedback.actions == 0).float())
        torch.testing.assert_close(feedback.behaviour.exp(), torch.tensor([0.5, 0.3, 0.2])[feedback.actions])


def test_nothing_left_to_learn_is_refused(tmp_path):
    ran = train("recipe=policy_weights", "stop.objective=ratio", cwd=tmp_path)
    assert ran.returncode == 2
    assert ran.stderr == (
        "error: stop.objective=ratio: with stop.weights=detach nothing learns; add stop.weights=none\n"
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.long
def test_live_beside_a_logarithm_the_weight_teaches_the_wrong_way():
    for arm, cosine, ratio in (("detach", 1, 1), ("ratio", 1, 1), ("none", -1, math.log(10) - 1)):
        assert final("policy_weights", arm, "gradient_cosine") == pytest.approx([cosine] * 3, abs=0.01), arm
        assert final("policy_weights", arm, "gradient_ratio") == pytest.approx([ratio] * 3, abs=0.03), arm
    assert min(final("policy_weights", "detach", "reward")) > 0.8  # one digit is never found by seed 1
    assert max(final("policy_weights", "none", "reward")) < 0.05
