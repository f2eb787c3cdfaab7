"""MAML: its gradients by the chain rule in hand-made matrices, the fixed points of two parabolas, what it learns."""

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from conf_tests.helpers import build_recipe, config, final, train
from recipes.maml import JOINT
from recipes.parts.tasks import RegressionTasks, Tasks, lines, sinusoids

LINES = "recipe=maml_lines"
CURVATURE, TARGET, ALPHA = np.array([1.0, 0.1]), np.array([1.0, -1.0]), 0.9


def fixed_point(weights: np.ndarray) -> float:
    return float((weights * TARGET).sum() / weights.sum())


def weights_of(s: float) -> np.ndarray:
    """w of each task where g counts s times: the recipe's docstring."""
    return CURVATURE * (1 - ALPHA * CURVATURE) * (1 - s * ALPHA * CURVATURE)


ARMS = {
    "none": ([], weights_of(1), -0.7845),
    "detach": (["stop.inner=detach"], weights_of(0), 0.0471),
    "data": (["stop.inner=data"], weights_of(0), 0.0471),
    "scale:0.5": (["stop.inner=scale:0.5"], weights_of(0.5), None),
    "reverse:1": (["stop.inner=reverse:1"], weights_of(-1), None),
    "joint": (["recipe.inner_steps=0"], CURVATURE, 0.8182),
}


def trained(steps, *overrides):
    """The recipe after so many steps by its loss and its optimiser, without Lightning around them."""
    recipe = build_recipe(*overrides)
    optimizer, data = recipe.configure_optimizers(), instantiate(config(*overrides).data, _convert_="all")
    for k in range(steps):
        loss = recipe.meta_loss(data.train_dataloader().batch(k))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return recipe


def scores(recipe, tasks):
    """What a validation logs, as Lightning calls it: without gradients, in inference mode."""
    found = {}
    recipe.log = lambda name, value, **kwargs: found.update({name: value.item()})
    with torch.inference_mode():
        recipe.validation_step([part.clone() for part in tasks], 0)
    return found


class TestLines:
    @pytest.mark.parametrize("arm", ARMS)
    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_fixed_points(self, arm, seed):
        overrides, weights, published = ARMS[arm]
        theta = trained(300, LINES, f"seed={seed}", *overrides).network.weights[0].item()
        assert theta == pytest.approx(fixed_point(weights), abs=1e-5)
        assert published is None or theta == pytest.approx(published, abs=1e-4)

    @pytest.mark.parametrize("arm", ARMS)
    def test_gradient_at_a_point(self, arm):
        """sum w (theta - c), the losses being a (theta - c)^2 of which the mean is taken."""
        overrides, weights, _ = ARMS[arm]
        recipe = build_recipe(LINES, *overrides)
        torch.nn.init.constant_(recipe.network.weights[0], 3.0)
        recipe.meta_loss(lines()).backward()
        assert recipe.network.weights[0].grad.item() == pytest.approx((weights * (3 - TARGET)).sum(), rel=1e-5)

    def test_with_theta_cut_the_rest_of_the_gradient_climbs(self):
        recipe = build_recipe(LINES, "stop.theta=detach")
        torch.nn.init.constant_(recipe.network.weights[0], 3.0)
        recipe.meta_loss(lines()).backward()
        climbs = weights_of(1) - weights_of(0)  # -alpha a of each
        assert recipe.network.weights[0].grad.item() == pytest.approx((climbs * (3 - TARGET)).sum(), rel=1e-5)
        assert (climbs < 0).all()
        ends = [trained(n, LINES, "stop.theta=detach").network.weights[0].item() for n in (100, 101)]
        factor = 1 - 0.5 * climbs.sum()  # of one step of SGD at a rate of .5
        away = [end - fixed_point(climbs) for end in ends]
        assert away[1] / away[0] == pytest.approx(factor, rel=1e-5)
        assert factor > 1

    def test_no_start_adapts_better_than_mamls(self):
        def after_a_step(theta):
            recipe = build_recipe(LINES)
            torch.nn.init.constant_(recipe.network.weights[0], theta)
            return scores(recipe, lines())["adapted_error"]

        best = fixed_point(weights_of(1))
        others = [after_a_step(theta) for theta in (fixed_point(weights_of(0)), fixed_point(CURVATURE), best + 0.1)]
        assert after_a_step(best) == pytest.approx((weights_of(1) * (best - TARGET) ** 2).sum() / 2, rel=1e-4)
        assert min(others) > after_a_step(best) * 1.001


class TestGradient:
    def tasks(self):
        return sinusoids(3, 4, 5, np.random.default_rng(7))

    def exact(self, recipe, tasks, s):
        """(1 - s alpha H) g' of each task, H by autograd over one flat vector; their mean."""
        parameters = list(recipe.network.parameters())
        start = torch.cat([p.detach().flatten() for p in parameters])

        def error(flat, inputs, targets):
            parts, at = [], 0
            for parameter in parameters:
                parts.append(flat[at : at + parameter.numel()].view(1, *parameter.shape))
                at += parameter.numel()
            return recipe.errors(parts, inputs[None], targets[None]).sum()

        total = torch.zeros_like(start)
        for support, labels, query, answers in zip(*tasks, strict=True):
            inner = torch.autograd.functional.jacobian(lambda w: error(w, support, labels), start)  # noqa: B023
            hessian = torch.autograd.functional.hessian(lambda w: error(w, support, labels), start)  # noqa: B023
            after = start - recipe.alpha * inner
            outer = torch.autograd.functional.jacobian(lambda w: error(w, query, answers), after)  # noqa: B023
            total += outer - s * recipe.alpha * hessian @ outer
        return total / len(tasks.query_inputs)

    @pytest.mark.parametrize(("strategy", "s"), [("none", 1), ("detach", 0), ("scale:0.5", 0.5), ("reverse:2", -2)])
    def test_is_the_chain_rule(self, strategy, s):
        recipe = build_recipe(
            "recipe=maml", f"stop.inner={strategy}", "recipe.hidden=[6,5]", "recipe.alpha=0.1"
        ).double()
        tasks = Tasks(*(part.double() for part in self.tasks()))
        recipe.meta_loss(tasks).backward()
        found = torch.cat([p.grad.flatten() for p in recipe.network.parameters()])
        torch.testing.assert_close(found, self.exact(recipe, tasks, s), rtol=1e-9, atol=1e-12)

    def test_every_cut_gives_the_same_weights(self):
        small = ["recipe=maml", "recipe.hidden=[8]", "data.pool=100", "recipe.inner_steps=2"]
        arms = {each: trained(5, *small, f"stop.inner={each}").state_dict() for each in ("detach", "data", "none")}
        for name, weight in arms["detach"].items():
            assert torch.equal(weight, arms["data"][name]), name
        assert any(not torch.equal(weight, arms["none"][name]) for name, weight in arms["detach"].items())

    @pytest.mark.parametrize(("strategy", "graph"), [("none", True), ("detach", False)])
    def test_a_gradient_that_is_cut_is_made_without_a_graph(self, strategy, graph):
        recipe = build_recipe("recipe=maml", f"stop.inner={strategy}")
        tasks = self.tasks()
        found = recipe.inner_gradient(recipe.network.copies(3), tasks)
        assert [g.requires_grad for g in found] == [graph] * len(found)

    def test_joint_training_is_one_network_for_all_tasks(self):
        recipe, tasks = build_recipe("recipe=maml", "recipe.inner_steps=0"), self.tasks()
        x, y = tasks.query_inputs.flatten()[:, None], tasks.query_targets.flatten()[:, None]
        (w1, w2, w3), (b1, b2, b3) = recipe.network.weights, recipe.network.biases
        by_hand = (((x @ w1 + b1).relu() @ w2 + b2).relu() @ w3 + b3 - y).square().mean()
        torch.testing.assert_close(recipe.meta_loss(tasks), by_hand)
        assert recipe.FLOW is JOINT

    def test_a_validation_leaves_weights_and_gradients_alone(self):
        recipe = build_recipe("recipe=maml")
        before = [p.detach().clone() for p in recipe.parameters()]
        found = scores(recipe, self.tasks())
        assert set(found) == {"error", "adapted_error"}
        assert found["adapted_error"] != found["error"]
        assert all(torch.equal(a, b) for a, b in zip(before, recipe.parameters(), strict=True))
        assert all(p.grad is None for p in recipe.parameters())


class TestTasks:
    def test_are_sinusoids_of_the_paper(self):
        tasks = sinusoids(2000, 10, 5, np.random.default_rng(0))
        assert [part.shape[1] for part in tasks] == [10, 10, 5, 5]
        x = torch.cat([tasks.support_inputs, tasks.query_inputs], 1).squeeze(-1).double()
        y = torch.cat([tasks.support_targets, tasks.query_targets], 1).double()
        basis = torch.stack([x.sin(), x.cos()], dim=-1)  # A sin(x - p) = A cos p sin x - A sin p cos x
        solved = torch.linalg.lstsq(basis, y, driver="gelsd").solution.squeeze(-1)
        assert (basis @ solved[..., None] - y).abs().max() < 1e-4
        amplitude, phase = solved.norm(dim=1), torch.atan2(-solved[:, 1], solved[:, 0])
        assert 0.1 <= amplitude.min() < 0.2 < 4.9 < amplitude.max() <= 5 + 1e-5
        assert -1e-3 <= phase.min() < 0.1 < 3.0 < phase.max() <= np.pi + 1e-3

    def test_the_same_judge_for_every_seed(self):
        one, other = (RegressionTasks(pool=30, seed=seed) for seed in (0, 1))
        assert all(torch.equal(a, b) for a, b in zip(one.held_out, other.held_out, strict=True))
        assert not torch.equal(one.tasks.support_inputs, other.tasks.support_inputs)
        first = next(iter(one.val_dataloader()))
        assert [len(part) for part in first] == [600] * 4


def test_nothing_left_to_learn_is_refused(tmp_path):
    ran = train("recipe=maml", "stop.inner=detach", "stop.theta=detach", cwd=tmp_path)
    assert ran.returncode == 2
    assert ran.stderr == "error: stop.theta=detach: with stop.inner=detach nothing learns; choose stop.theta=none\n"
    assert not (tmp_path / "runs").exists()


@pytest.mark.long
def test_second_order_adapts_best_and_joint_training_hardly():
    second, first, joint = (final("maml", arm, "adapted_error") for arm in ("second-order", "first-order", "joint"))
    assert all(a + 0.15 < b < 1.2 < 2.4 < c for a, b, c in zip(second, first, joint, strict=True))
    for arm, theta in (("second-order", -0.7845), ("first-order", 0.0471), ("joint", 0.8182)):
        assert final("maml_lines", arm, "theta") == [pytest.approx(theta, abs=1e-3)] * 3
