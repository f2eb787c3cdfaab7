"""Distillation: each divergence's expected gradient by listing all, closed forms of where student and teacher rest."""

import itertools

import pytest
import torch
from hydra.errors import InstantiationException

from conf_tests.helpers import build_recipe, final, norms
from recipes.parts.enumerable import Tree

PROMPTS = torch.zeros(1, 1)
SEEDS = range(40)
VALUE = ["stop.advantage=none", "stop.objective=value"]


def drawn(recipe, seed):
    """The recipe with student and teacher of this seed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for network in (recipe.student, recipe.teacher):
            network.logits.copy_(torch.randn(network.logits.shape, generator=generator, dtype=torch.float64))
    return recipe


def gradient(loss, network):
    return torch.autograd.grad(loss, network.logits)[0]


def laws(recipe):
    """log s and log t (31,)."""
    return recipe.every(recipe.student), recipe.every(recipe.teacher).detach()


def trained(steps, *overrides, seed=0):
    recipe = build_recipe(*overrides, f"seed={seed}")
    optimizer = recipe.configure_optimizers()
    for _ in range(steps):
        optimizer.zero_grad()
        recipe.distill_loss(PROMPTS).backward()
        optimizer.step()
    return recipe


class TestGradient:
    def test_on_policy_is_that_of_the_divergence(self):
        """1c. Cut, the same as reverse KL, whose value the other one is."""
        cut, reverse = (build_recipe("recipe=distill", *o) for o in ([], ["recipe.divergence=reverse"]))
        for seed in SEEDS:
            found, exact = (gradient(drawn(each, seed).distill_loss(PROMPTS), each.student) for each in (cut, reverse))
            torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("divergence", ["on_policy", "reverse", "forward"])
    def test_cut_the_teacher_has_none(self, divergence):
        """On-policy with the advantage live as well, which would cut it else."""
        of = ["recipe=distill", f"recipe.divergence={divergence}", "stop.advantage=none", "recipe.lam=0"]
        for choice in ("no_grad", "none"):
            recipe = drawn(build_recipe(*of, f"stop.teacher={choice}"), 0)
            recipe.teacher.requires_grad_()
            found = norms(recipe.distill_loss(PROMPTS), {"teacher": recipe.teacher})["teacher"]
            assert (found is None) == (choice == "no_grad")

    def test_the_divergence_itself_has_none(self):
        recipe = build_recipe("recipe=distill", *VALUE)
        for seed in SEEDS:
            log_s, log_t = laws(drawn(recipe, seed))
            loss = recipe.distill_loss(PROMPTS)
            torch.testing.assert_close(loss, (log_s.exp() * (log_s - log_t)).sum())
            assert gradient(loss, recipe.student).abs().max() < 1e-14

    def test_live_beside_a_logarithm_it_is_that_of_the_root(self):
        """KL(s, t) + E[log s], whose lowest is at sqrt(t) / Z."""
        recipe = build_recipe("recipe=distill", "stop.advantage=none")
        for seed in SEEDS:
            log_s, log_t = laws(drawn(recipe, seed))
            exact = gradient((log_s.exp() * (2 * log_s - log_t)).sum(), recipe.student)
            torch.testing.assert_close(
                gradient(recipe.distill_loss(PROMPTS), recipe.student), exact, rtol=1e-9, atol=1e-12
            )

    def test_forward_by_hand(self):
        recipe = drawn(build_recipe("recipe=distill", "recipe.divergence=forward"), 0)
        log_s, log_t = laws(recipe)
        by_hand = sum(t.exp() * (t - s) for s, t in zip(log_s, log_t, strict=True))
        torch.testing.assert_close(recipe.distill_loss(PROMPTS), by_hand)

    def test_of_samples_is_right_on_average(self):
        recipe = drawn(build_recipe("recipe=distill", "recipe.num_generations=50000"), 0)
        exact = drawn(build_recipe("recipe=distill"), 0)
        torch.manual_seed(0)
        found, mean = (gradient(each.distill_loss(PROMPTS), each.student) for each in (recipe, exact))
        torch.testing.assert_close(found, mean, rtol=0, atol=0.02)


class TestEnds:
    def test_student_at_its_teacher_and_at_the_root_of_it(self):
        log_s, log_t = laws(trained(400, "recipe=distill"))
        assert float((log_s.exp() * (log_s - log_t)).sum().detach()) < 1e-6
        log_s, log_t = laws(trained(400, "recipe=distill", "stop.advantage=none"))
        torch.testing.assert_close(log_s.exp().detach(), (log_t / 2).softmax(0), rtol=0, atol=1e-3)

    @pytest.mark.parametrize(
        ("overrides", "slope"),
        [([], 1), (["stop.teacher=none"], 0.5), (["stop.teacher=none", "recipe.lam=3"], 0.75)],
    )
    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_teacher_on_its_labels(self, overrides, slope, seed):
        """7b: t = (lam q + s) / (1 + lam), for every completion."""
        recipe = trained(400, "recipe=distill_online", *overrides, seed=seed)
        log_s, log_t = laws(recipe)
        between = slope * recipe.labels.exp() + (1 - slope) * log_s.exp()
        torch.testing.assert_close(log_t.exp(), between.detach(), rtol=0, atol=1e-3)

    @pytest.mark.parametrize(("divergence", "mean"), [("forward", "arithmetic"), ("reverse", "geometric")])
    def test_teacher_in_training_mode_teaches_a_mean(self, divergence, mean):
        """Of one symbol: over the eight ways to drop its logits, the mean gradient is 0 there and nowhere else."""
        one = ["recipe.student.length=1", "recipe.teacher.length=1", f"recipe.divergence={divergence}"]
        recipe = build_recipe("recipe=distill", *one, "stop.teacher_mode=train")
        logits, kept = recipe.teacher.logits.detach().clone(), 0.7
        ways = [torch.tensor(way, dtype=torch.float64) for way in itertools.product((0, 1), repeat=3)]
        weights = torch.stack([kept ** way.sum() * 0.3 ** (3 - way.sum()) for way in ways])
        dropped = torch.stack([(logits[0] * way / kept).log_softmax(0) for way in ways])
        arithmetic, geometric = (weights @ dropped.exp()).log(), (weights @ dropped).log_softmax(0)

        def mean_gradient(student):
            recipe.student.logits.data.copy_(student)
            total = torch.zeros_like(logits)
            recipe.teacher.eval()
            for way, weight in zip(ways, weights, strict=True):
                recipe.teacher.logits.data.copy_(logits * way / kept)
                total += weight * gradient(recipe.distill_loss(PROMPTS), recipe.student)
            return total.norm()

        assert mean_gradient({"arithmetic": arithmetic, "geometric": geometric}[mean]) < 1e-12
        assert (mean_gradient(logits[0]) > 1e-3) == (mean == "arithmetic")  # the geometric mean is the teacher itself
        assert mean_gradient({"arithmetic": geometric, "geometric": arithmetic}[mean]) > 1e-4


class TestMode:
    def test_teacher_stays_in_the_mode_that_was_chosen(self):
        for mode in ("eval", "train"):
            recipe = build_recipe("recipe=distill", f"stop.teacher_mode={mode}")
            assert recipe.train().teacher.training == (mode == "train")
            assert not recipe.eval().teacher.training

    def test_dropout_is_of_logits(self):
        torch.manual_seed(0)
        tree = Tree(vocabulary=3, length=1, dropout=0.5)
        seen = {tuple(tree(PROMPTS, *tree.everything(PROMPTS)).flatten().tolist()) for _ in range(100)}
        assert len(seen) == 8
        tree.eval()
        torch.testing.assert_close(
            tree(PROMPTS, *tree.everything(PROMPTS)).flatten(), tree.logits[0].log_softmax(0)[tree.tokens[:, 0]]
        )

    def test_a_tied_student_knows_no_prefix(self):
        tree = Tree(vocabulary=3, length=4, tied=True)
        tokens, mask = tree.everything(PROMPTS)
        logs = tree(PROMPTS, tokens, mask)
        torch.testing.assert_close(logs, tree.logits[0].log_softmax(0)[tokens].where(mask, 0))
        assert float(logs.sum(-1).exp().sum().detach()) == pytest.approx(1)


def test_what_has_no_sense_is_refused():
    with pytest.raises(ValueError, match=r"stop.objective=value: with stop.advantage=detach nothing learns"):
        build_recipe("recipe=distill", "stop.objective=value").configure_optimizers()
    with pytest.raises(InstantiationException, match=r"recipe.num_generations=8: samples are on_policy's"):
        build_recipe("recipe=distill", "recipe.num_generations=8", "recipe.divergence=reverse")


@pytest.mark.long
def test_a_live_divergence_teaches_nothing_and_a_live_teacher_gives_way():
    for arm in ("on-policy", "sampled", "reverse", "forward"):
        assert max(final("distill", arm, "kl")) <= 0.01, arm
    start = [0.7647, 1.451, 1.65]
    assert final("distill", "value", "kl") == pytest.approx(start, rel=1e-3)
    assert final("distill_online", "live", "slope") == pytest.approx([0.5] * 3, abs=1e-3)
    assert final("distill_online", "cut", "slope") == pytest.approx([1] * 3, abs=1e-3)
