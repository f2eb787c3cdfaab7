"""Mixture of experts: the router's gradient under each gate over 40 seeds, the balance loss by hand, where it ends."""

import pytest
import torch

from conf_tests.helpers import build_recipe, final, train, trained
from recipes.parts.tokens import Tokens

RECIPE, BALANCE = "recipe=moe", "recipe=moe_balance"
RENORMALISED = "recipe.norm_topk_prob=true"
CUT = [RENORMALISED, "stop.denominator=detach"]


def batch(seed=0, n=64):
    data = Tokens(tokens=n, batch_size=n, seed=seed)
    return [tensor.clone() for tensor in data.train_tensors()]


def router_gradient(seed, *overrides):
    recipe = build_recipe(RECIPE, f"seed={seed}", *overrides)
    found = torch.autograd.grad(recipe.task_loss(batch(seed)), [recipe.router.weight], allow_unused=True)[0]
    return torch.zeros_like(recipe.router.weight) if found is None else found


class TestRouterGradient:
    @pytest.mark.parametrize("seed", range(40))
    def test_by_gate(self, seed):
        """p / p: 0 to rounding; cut: exactly 0; of all others there is one."""
        norm = {
            name: router_gradient(seed, *overrides).norm().item()
            for name, overrides in {
                "probability": [],
                "renormalised": [RENORMALISED],
                "detached": ["stop.gate=detach"],
                "denominator": CUT,
                "one": ["stop.value=one"],
                "two": [RENORMALISED, "recipe.num_experts_per_tok=2"],
            }.items()
        }
        assert norm["renormalised"] <= 1e-15
        assert norm["detached"] == 0
        assert min(norm[name] for name in ("probability", "denominator", "one", "two")) >= 0.005

    @pytest.mark.parametrize(
        ("overrides", "gate", "slope"),
        [
            ([], lambda p: p, lambda p: 1),
            ([RENORMALISED], lambda p: 1, lambda p: 0),
            (CUT, lambda p: 1, lambda p: 1 / p),
            (["stop.value=one"], lambda p: 1, lambda p: 1),
            (["stop.gate=scale:0.5"], lambda p: p, lambda p: 0.5),
            (["stop.gate=reverse:1"], lambda p: p, lambda p: -1),
        ],
    )
    def test_value_and_slope_of_the_gate(self, overrides, gate, slope):
        recipe = build_recipe(RECIPE, *overrides)
        p = torch.tensor([[0.1, 0.6, 0.05, 0.25]], dtype=torch.float64, requires_grad=True)
        gates = recipe.gates(p)
        expected = torch.zeros(1, 4, dtype=torch.float64)
        expected[0, 1] = gate(0.6)
        torch.testing.assert_close(gates, expected)
        (found,) = torch.autograd.grad(gates.sum(), p)
        expected[0, 1] = slope(0.6)
        torch.testing.assert_close(found, expected)

    def test_loss_by_hand(self):
        recipe, (inputs, labels, _) = build_recipe(RECIPE), batch()
        p = recipe.router(inputs).softmax(1)
        total = 0.0
        for x, label, each in zip(inputs, labels, p, strict=True):
            best = int(each.argmax())
            total += (each[best] * (recipe.experts.weight[best] @ x) - label.item()) ** 2 / 2
        torch.testing.assert_close(recipe.task_loss(batch()), total / len(inputs))


class TestBalance:
    P = torch.tensor([[0.6, 0.4], [0.7, 0.3], [0.2, 0.8], [0.9, 0.1]], dtype=torch.float64)

    def gradient(self, *overrides):
        """Of the loss, at p: N f / B where P is live, and the same of P again where f is soft and live."""
        recipe = build_recipe(BALANCE, "recipe.num_experts=2", "recipe.features=2", *overrides)
        logits = self.P.log().requires_grad_()
        torch.nn.init.zeros_(recipe.router.bias)
        loss = recipe.balance_loss([logits])
        return loss, torch.autograd.grad(loss, logits)[0]

    @pytest.mark.parametrize(
        ("overrides", "f", "times"),
        [
            ([], [0.75, 0.25], 1),
            (["stop.assignment=soft"], [0.6, 0.4], 1),
            (["stop.assignment=soft", "stop.load=none"], [0.6, 0.4], 2),
            (["stop.assignment=soft", "stop.load=none", "stop.probability=detach"], [0.6, 0.4], 1),
        ],
    )
    def test_by_hand(self, overrides, f, times):
        f = torch.tensor(f, dtype=torch.float64)
        loss, found = self.gradient(*overrides)
        torch.testing.assert_close(loss.item(), 2 * (f @ torch.tensor([0.6, 0.4], dtype=torch.float64)).item())
        at_p = (2 * times * f / 4).expand(4, 2)
        torch.testing.assert_close(found, self.P * (at_p - (self.P * at_p).sum(1, keepdim=True)))

    def test_counted_and_with_probability_cut_nothing_is_left(self):
        recipe = build_recipe(BALANCE, "stop.probability=detach")
        assert not recipe.balance_loss(next(iter(Tokens(kind="unequal", features=4).val_dataloader()))).requires_grad
        with pytest.raises(ValueError, match=r"stop.probability=detach: nothing is left of the balance loss"):
            recipe.configure_optimizers()

    @pytest.mark.parametrize("seed", range(3))
    def test_where_it_ends(self, seed):
        """The fullest expert's load, and probability, in shares; the loss is 1 in both."""
        data = Tokens(kind="unequal", tokens=2048, features=4, batch_size=2048, seed=seed)
        found = {}
        for arm in ("hard", "soft"):
            recipe = trained(1500, BALANCE, f"seed={seed}", f"stop.assignment={arm}")
            p = recipe.router(data.held_out[0]).softmax(1)
            found[arm] = (4 * recipe.load(p).max().item(), 4 * p.mean(0).max().item())
            assert recipe.balance_loss(data.held_out).item() == pytest.approx(1, abs=0.01)
        assert found["hard"][0] <= 1.05
        assert found["soft"][0] >= 2.5
        assert found["soft"][1] == pytest.approx(1, abs=1e-3)

    def test_loss_free_bias_steps_against_the_load_and_has_no_gradient(self):
        recipe = build_recipe(BALANCE, "recipe.router_aux_loss_coef=0", "recipe.bias_update_speed=0.1")
        p = torch.tensor([[0.7, 0.1, 0.1, 0.1]] * 3 + [[0.1, 0.7, 0.1, 0.1]], dtype=torch.float64)
        recipe.balance(p)
        assert recipe.choice_bias.tolist() == pytest.approx([-0.1, 0, 0.1, 0.1])
        recipe.balance(p)
        recipe.balance(p)
        recipe.balance(p)
        assert recipe.load(p)[0] < 0.75  # the choice follows, and the gate does not
        assert list(recipe.losses()) == ["task_loss"]


def test_tokens():
    inputs, labels, which = Tokens(tokens=2000, seed=1).train_tensors()
    for k in range(4):
        x, y = inputs[which == k], labels[which == k]
        assert x.mean(0).norm() == pytest.approx(4, abs=0.3)
        solved = torch.linalg.lstsq(x, y).solution
        torch.testing.assert_close(x @ solved, y)
        assert solved.norm() == pytest.approx(1)
    logits = Tokens(kind="unequal", tokens=2048, features=4).train_tensors()[0]
    assert ((logits > 7).sum(0) / 2048).tolist() == pytest.approx([0, 1 / 12, 1 / 12, 1 / 12], abs=1e-3)


def test_features_that_do_not_fit_are_refused(tmp_path):
    ran = train("recipe=moe_balance", "data.features=8", cwd=tmp_path)
    assert ran.returncode == 2
    assert "data.features=8: unequal of 4 experts; choose 4" in ran.stderr


@pytest.mark.long
def test_the_router_that_hears_nothing_sorts_nothing():
    for arm in ("renormalised", "gate"):
        assert min(final("moe", arm, "task_error")) >= 0.5
        assert max(final("moe", arm, "router_gradient")) <= 1e-15
    assert max(final("moe", "probability", "task_error")) <= 0.3
