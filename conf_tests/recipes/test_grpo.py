"""GRPO: over forty policies, references and rewards, each estimator's expected gradient by listing every completion."""

import functools

import pytest
import torch
from hydra.utils import instantiate
from torch.nn.functional import cosine_similarity

from conf_tests.helpers import build_recipe, config, final
from recipes.grpo import GRPO
from recipes.parts.enumerable import Tree, boltzmann, completions, rational
from recipes.parts.gpt import GPT
from recipes.parts.sorting import Digits, SortedShare

SEEDS = range(40)
ALONE = ["recipe.reward.highest=0", "recipe.beta=1"]  # nothing is earned: the loss is of the KL divergence alone
IN_LOSS = [*ALONE, "recipe.kl_in=loss"]
WEIGHED = [*IN_LOSS, "recipe.use_bias_correction_kl=true"]
OLDER = "recipe.steps_per_generation=2"
EARNED = ["recipe.beta=0", "recipe.kl_in=loss"]  # no divergence
K1, K2, K3 = (f"recipe.kl_estimator=k{n}" for n in (1, 2, 3))
CUT_WEIGHT = "stop.kl_weight=detach"
PROMPTS = torch.zeros(1, 1)


@functools.cache
def made(*overrides: str) -> GRPO:
    composed = config("recipe=grpo_exact", *overrides)
    return instantiate(composed.recipe, stop=composed.stop, _convert_="all")


def drawn(seed: int, *overrides: str, apart: float = 0.5) -> GRPO:
    """The recipe with policy, reference and rewards of this seed, the policy that wrote ``apart`` in its logits."""
    recipe, generator = made(*overrides), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for network in (recipe.policy, recipe.reference, recipe.behaviour):
            network.logits.copy_(torch.randn(network.logits.shape, generator=generator, dtype=torch.float64))
        recipe.behaviour.logits.mul_(apart).add_(recipe.policy.logits)
        if recipe.reward.rewards.any():
            recipe.reward.rewards.copy_(torch.rand(recipe.reward.rewards.shape, generator=generator))
    return recipe


def gradient(loss, recipe):
    return torch.autograd.grad(loss, recipe.policy.logits)[0].flatten()


def found(recipe):
    """Minus the expected gradient of the recipe's loss."""
    return -gradient(recipe.grpo_loss(recipe.collect(PROMPTS)), recipe)


def truths(recipe):
    """The exact gradients, by autograd, of E[R], and of minus KL(pi, ref) and KL(ref, pi)."""
    logp, ref, rewards = recipe.exactly(PROMPTS)
    exact = ((logp.exp() * rewards).sum(), -(logp.exp() * (logp - ref)).sum(), -(ref.exp() * (ref - logp)).sum())
    return [torch.autograd.grad(each, recipe.policy.logits, retain_graph=True)[0].flatten() for each in exact]


def error(vector, exact):
    return float((vector - exact).norm() / exact.norm())


def cosine(a, b):
    return float(cosine_similarity(a, b, dim=0))


class TestDivergence:
    """1a: from the policy that learns. 1d: from an older one."""

    @pytest.mark.parametrize(
        "overrides",
        [ALONE, [*IN_LOSS, K2], [*WEIGHED, K1], [*WEIGHED, K3], [*WEIGHED, K2, CUT_WEIGHT]],
        ids=["k1 in the reward", "k2", "k1 weighed", "k3 weighed", "k2 weighed, cut"],
    )
    def test_is_right(self, overrides):
        for seed in SEEDS:
            recipe = drawn(seed, *overrides)
            assert error(found(recipe), truths(recipe)[1]) < 1e-9

    def test_k1_in_the_loss_is_none(self):
        for seed in SEEDS:
            assert found(drawn(seed, *IN_LOSS, K1)).norm() < 1e-9

    @pytest.mark.parametrize("overrides", [[*IN_LOSS, K3], [*WEIGHED, K3, CUT_WEIGHT]], ids=["k3", "k3 weighed, cut"])
    def test_k3_is_the_other_direction(self, overrides):
        for seed in SEEDS:
            recipe = drawn(seed, *overrides)
            _, reverse, forward = truths(recipe)
            assert error(found(recipe), forward) < 1e-9
            assert cosine(found(recipe), reverse) < 0.999

    @pytest.mark.parametrize(
        "overrides",
        [ALONE, [*WEIGHED, K1], [*WEIGHED, K3], [*WEIGHED, K2, CUT_WEIGHT]],
        ids=["k1 in the reward", "k1", "k3", "k2, cut"],
    )
    def test_off_policy_is_right_with_its_weight(self, overrides):
        for seed in SEEDS:
            recipe = drawn(seed, *overrides, OLDER)
            assert error(found(recipe), truths(recipe)[1]) < 1e-9

    @pytest.mark.parametrize(
        "overrides",
        [[*WEIGHED, K1, CUT_WEIGHT], [*WEIGHED, K3, CUT_WEIGHT], [*WEIGHED, K2], [*IN_LOSS, K2], [*IN_LOSS, K3]],
        ids=["k1, cut", "k3, cut", "k2, live", "k2 alone", "k3 alone"],
    )
    def test_off_policy_is_wrong_otherwise(self, overrides):
        for seed in SEEDS:
            recipe = drawn(seed, *overrides, OLDER)
            assert error(found(recipe), truths(recipe)[1]) >= (0.2 if overrides[: len(WEIGHED)] == WEIGHED else 0.1)
            if overrides == [*WEIGHED, K3, CUT_WEIGHT]:
                assert error(found(recipe), truths(recipe)[2]) < 1e-9


class TestPolicyGradient:
    def test_of_the_ratio(self):
        """1e: on-policy, off-policy, and with the other policy's logarithm left live: 1, whose gradient is 0."""
        for seed in SEEDS:
            for overrides in (EARNED, [*EARNED, OLDER], [*EARNED, "recipe.loss_type=cispo"]):
                recipe = drawn(seed, *overrides)
                assert error(found(recipe), truths(recipe)[0]) < 1e-9, overrides
            assert found(drawn(seed, *EARNED, "stop.old_logp=none")).count_nonzero() == 0

    def test_of_token_ratios_on_policy_alone(self):
        """Summed over tokens it is exact, as mean over them not; and off-policy no more."""
        for seed in SEEDS:
            token = [*EARNED, "recipe.importance_sampling_level=token"]
            summed = drawn(seed, *token, "recipe.loss_type=dr_grpo")
            assert error(4 * found(summed), truths(summed)[0]) < 1e-9
            for overrides in ([*token, "recipe.loss_type=dr_grpo", OLDER], token):
                recipe = drawn(seed, *overrides)
                assert cosine(found(recipe), truths(recipe)[0]) < 0.9999, overrides

    def test_of_the_baseline(self):
        """1g: taken as a number it changes nothing; left live it takes everything."""
        for seed in SEEDS:
            policy = [*EARNED, "recipe.baseline=policy"]
            for overrides in (policy, [*policy, OLDER]):
                recipe = drawn(seed, *overrides)
                assert error(found(recipe), truths(recipe)[0]) < 1e-9
            assert found(drawn(seed, *policy, "stop.baseline=none")).norm() < 1e-12 * truths(recipe)[0].norm() + 1e-14

    def test_of_sequence_ratios(self):
        """1h: GSPO's token form is GSPO; its sequence ratio live is twice it, its inner quotient live nothing."""
        for seed in SEEDS:
            level = "recipe.importance_sampling_level"
            gspo = found(drawn(seed, *EARNED, OLDER, f"{level}=sequence"))
            token = [*EARNED, OLDER, f"{level}=sequence_token"]
            assert error(found(drawn(seed, *token)), gspo) < 1e-9
            assert error(found(drawn(seed, *token, "stop.seq_ratio=none")), 2 * gspo) < 1e-9
            assert found(drawn(seed, *token, "stop.inner=none")).count_nonzero() == 0
            assert cosine(found(drawn(seed, *EARNED, OLDER, f"{level}=token")), gspo) < 0.999999

    @pytest.mark.parametrize("arms", [12, 256])
    def test_of_a_weight_beside_a_logarithm(self, arms):
        """1f: live it is the gradient of sum pi log pi A, and goes the wrong way."""
        for seed in SEEDS:
            bandit = [f"recipe.policy.vocabulary={arms}", "recipe.policy.length=1", f"recipe.reward.vocabulary={arms}"]
            bandit += ["recipe.reward.length=1", "recipe.loss_type=cispo", OLDER, *EARNED]
            right = drawn(seed, *bandit, apart=1.0)
            exact = truths(right)[0]
            assert error(found(right), exact) < 1e-9
            live = drawn(seed, *bandit, "stop.is_weight=none", apart=1.0)
            rollout, (logp, _, rewards) = live.collect(PROMPTS), live.exactly(PROMPTS)
            gains = rewards - (rollout.weights * rewards).sum()
            assert error(found(live), gradient((logp.exp() * logp * gains).sum(), live)) < 1e-9
            assert cosine(found(live), exact) < (-0.5 if arms == 256 else 0.0)


class TestLaws:
    """1b: where each estimator comes to rest."""

    ARMS = (
        ([], boltzmann),
        (["recipe.kl_in=loss", K2], boltzmann),
        (["recipe.kl_in=loss", "recipe.use_bias_correction_kl=true"], boltzmann),
        (["recipe.kl_in=loss"], rational),
        (["recipe.kl_in=loss", "recipe.use_bias_correction_kl=true", CUT_WEIGHT], rational),
    )

    @pytest.mark.parametrize(("overrides", "law"), ARMS)
    def test_rests_at_its_own_and_not_at_the_other(self, overrides, law):
        for seed in SEEDS:
            recipe = drawn(seed, *overrides)
            _, ref, rewards = recipe.exactly(PROMPTS)
            for each in (boltzmann, rational):
                probs = each(ref.exp(), rewards, recipe.beta)
                assert float(probs.sum()) == pytest.approx(1, abs=1e-9)
                place(recipe.policy, probs)
                assert float(found(recipe).norm()) < 1e-9 if each is law else float(found(recipe).norm()) > 1e-3

    @pytest.mark.parametrize(("overrides", "law"), [ARMS[0], ARMS[3]])
    def test_comes_there(self, overrides, law):
        recipe = drawn(0, *overrides)
        optimizer = recipe.configure_optimizers()
        for _ in range(300):
            optimizer.zero_grad()
            recipe.grpo_loss(recipe.collect(PROMPTS)).backward()
            optimizer.step()
        logp, ref, rewards = (each.detach() for each in recipe.exactly(PROMPTS))
        laws = {each: each(ref.exp(), rewards, 0.3) for each in (boltzmann, rational)}
        apart = {each: float((logp.exp() - probs).abs().sum()) / 2 for each, probs in laws.items()}
        assert apart.pop(law) <= 1e-3
        assert min(apart.values()) >= 0.03


def place(tree, probs):
    """Give the tree the distribution (N,) over its completions."""
    nodes = tree.prefixes(tree.tokens[None], tree.mask[None])[0]
    mass = torch.zeros_like(tree.logits)
    with torch.no_grad():
        for column in range(tree.tokens.shape[1]):
            there = tree.mask[:, column]
            mass.index_put_((nodes[there, column], tree.tokens[there, column]), probs[there], accumulate=True)
        tree.logits.copy_(mass.log())


class TestTree:
    def test_lists_every_completion_once(self):
        tokens, mask = completions(3, 4)
        assert tokens.shape == (31, 4)
        assert len({tuple(row[there].tolist()) for row, there in zip(tokens, mask, strict=True)}) == 31
        ends = (tokens == 2) & mask
        assert (ends.sum(1) == (mask.sum(1) < 4) + (mask.all(1) & (tokens[:, 3] == 2))).all()

    def test_is_a_distribution_over_them_and_samples_from_it(self):
        torch.manual_seed(0)
        tree = Tree(3, 3)
        probs = tree(PROMPTS, *tree.everything(PROMPTS)).sum(-1).exp()[0].detach()
        assert float(probs.sum()) == pytest.approx(1, abs=1e-12)
        tokens, mask = tree.generate(torch.zeros(2, 1), 20_000)
        assert mask.shape == (2, 20_000, 3)
        first = (tokens[..., 0].flatten().bincount(minlength=3) / 40_000).double()
        torch.testing.assert_close(first, tree.logits[0].softmax(0).detach(), atol=0.01, rtol=0)


class TestWriting:
    def gpt(self):
        torch.manual_seed(0)
        gpt = GPT(vocabulary=5, prompt=3, length=3, width=8, depth=1, heads=2)
        torch.nn.init.normal_(gpt.head.weight)
        return gpt

    def test_logarithms_are_those_it_writes_by(self):
        """Greedily written symbols are the likeliest given all before them; changing a later one changes no earlier."""
        gpt, prompts = self.gpt(), torch.tensor([[0, 1, 2], [4, 4, 0]])
        tokens, mask = gpt.generate(prompts, 1, greedily=True)
        logs = gpt(prompts, tokens, mask)
        for place in range(3):
            for symbol in range(5):
                other = tokens.clone()
                other[..., place] = symbol
                changed = gpt(prompts, other, mask)
                assert (changed[..., place] <= logs[..., place] + 1e-6).all()
                assert torch.equal(changed[..., :place], logs[..., :place])
        every = torch.cartesian_prod(*[torch.arange(5)] * 3)[None].expand(2, -1, -1)
        torch.testing.assert_close(gpt(prompts, every, every >= 0).sum(-1).exp().sum(-1), torch.ones(2))

    def test_samples_are_drawn_by_them(self):
        gpt, prompts = self.gpt(), torch.tensor([[0, 1, 2]])
        torch.manual_seed(1)
        tokens, _ = gpt.generate(prompts, 20_000)
        shares = tokens[0, :, 0].bincount(minlength=5) / 20_000
        probs = gpt.following(gpt.opened(prompts, 1))[0, -1].exp()
        torch.testing.assert_close(shares, probs, atol=0.015, rtol=0)

    def test_the_score(self):
        prompts, written = torch.tensor([[3, 1, 2]]), torch.tensor([[[1, 2, 3], [1, 3, 2], [3, 1, 2]]])
        torch.testing.assert_close(SortedShare()(prompts, written, written > 0)[0], torch.tensor([1, 1 / 3, 0]))

    def test_held_out_prompts_are_not_trained_on(self):
        data = Digits(vocabulary=4, length=5, prompts=500)
        assert not {tuple(row) for row in data.prompts.tolist()} & {tuple(row) for row in data.held_out.tolist()}
        with pytest.raises(ValueError, match=r"data.prompts=600: there are 1024, of which 500 are held out"):
            Digits(vocabulary=4, length=5, prompts=600)


class TestLoss:
    SMALL = ("recipe=grpo", "recipe.policy.width=8", "recipe.policy.depth=1", "recipe.num_generations=4")

    def test_by_hand(self):
        """Clipped token ratios, advantages over the group's deviation, the mean over tokens."""
        recipe = build_recipe(*self.SMALL, OLDER)
        with torch.no_grad():
            torch.nn.init.normal_(recipe.policy.head.weight)
        rollout = recipe.collect(torch.tensor([[3, 1, 2, 0], [5, 5, 1, 9]]))
        ratio = (recipe.policy(*rollout[:3]) - rollout.old).exp()
        gains = rollout.rewards - rollout.rewards.mean(1, keepdim=True)
        gains = (gains / (rollout.rewards.std(1, keepdim=True, correction=0) + 1e-4))[..., None]
        by_hand = -torch.minimum(ratio * gains, ratio.clamp(0.8, 1.2) * gains).mean(-1).mean()
        torch.testing.assert_close(recipe.grpo_loss(rollout), by_hand)
        assert (ratio > 1.2).any()

    def test_older_policy_writes_until_it_is_renewed(self):
        recipe = build_recipe(*self.SMALL, OLDER)
        with torch.no_grad():
            recipe.policy.head.bias.fill_(1)
        rollout = recipe.collect(torch.tensor([[3, 1, 2, 0]]))
        torch.testing.assert_close(rollout.old, recipe.behaviour(*rollout[:3]))
        assert not any(parameter.requires_grad for parameter in [*recipe.behaviour.parameters(), rollout.old])


@pytest.mark.long
def test_estimators_end_at_their_own_laws():
    for arm in ("reward", "reward-live", "k2-loss", "k3-weighed", "k2-weighed-cut", "baseline", "cispo"):
        assert max(final("grpo_exact", arm, "boltzmann")) <= 1e-3, arm
        assert final("grpo_exact", arm, "gradient_cosine") == pytest.approx([1] * 3, abs=1e-6), arm
    for arm in ("k3-loss", "k3-weighed-cut"):
        assert max(final("grpo_exact", arm, "rational")) <= 1e-3, arm
        assert min(final("grpo_exact", arm, "boltzmann")) >= 0.03, arm
    assert min(final("grpo_exact", "k1-loss", "boltzmann")) >= 0.29
    assert final("grpo_exact", "old-live", "gradient_ratio") == [0] * 3
    assert max(final("grpo_exact", "cispo-live", "gradient_cosine")) <= -0.5


@pytest.mark.long
def test_a_transformer_learns_to_sort_unless_a_cut_is_missing():
    for arm in ("grpo", "data", "cispo", "gspo", "gspo-token"):
        assert min(final("grpo", arm, "reward")) > 0.8, arm
    for arm in ("old-live", "cispo-live", "gspo-token-inner"):
        assert max(final("grpo", arm, "reward")) < 0.4, arm
