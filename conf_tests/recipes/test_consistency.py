"""The consistency recipe: exact at the least level, its loss by hand, each cut bit for bit, levels, distances, data."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from conf_tests.helpers import build_recipe, final, norms, train
from recipes.consistency import BOUNDARIES, ConsistencyFunction, noise_levels
from recipes.parts.points import Cloud, eight_gaussians, energy_distance

SMALL = ["recipe=consistency", "recipe.width=8"]
AVERAGE = [*SMALL, "recipe.decay=0.9"]
CUTS = ["detach", "no_grad", "freeze", "data"]


def points(size=20, seed=0):
    return torch.randn(size, 2, generator=torch.Generator().manual_seed(seed)).double()


def built(*overrides):
    """The recipe in double precision."""
    return build_recipe(*overrides).double()


def loss_of(recipe):
    torch.manual_seed(1)
    return recipe.consistency_loss(points().to(recipe.levels.dtype))


def drawn(recipe):
    """The noise and the levels that :func:`loss_of` meets."""
    torch.manual_seed(1)
    return torch.randn_like(points()), torch.randint(len(recipe.levels) - 1, (20,))


def gradients(*overrides):
    recipe = built(*overrides)
    return torch.autograd.grad(loss_of(recipe), list(recipe.function.parameters()))


def trained(steps, *overrides):
    """The recipe after ``steps`` steps of its own training_step."""
    recipe = build_recipe(*overrides)
    optimizer = recipe.configure_optimizers()
    recipe.optimizers = lambda: optimizer
    recipe.manual_backward = lambda loss: loss.backward()
    recipe.trainer = SimpleNamespace(log_every_n_steps=10**9, global_step=1)
    torch.manual_seed(2)
    for k in range(steps):
        recipe.training_step(points(seed=k).float(), k)
    return recipe


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class TestFunction:
    def test_without_noise_it_is_the_point_itself(self):
        """Whatever the network says: c_skip = 1 and c_out = 0, exactly."""
        function = ConsistencyFunction(2, 8, least=0.002, spread=0.5)
        nn.init.constant_(function.network[-1].bias, 1e6)
        x = points().float()
        assert torch.equal(function(x, torch.full((20, 1), 0.002)), x)
        assert (function(x, torch.full((20, 1), 0.01)) - x).abs().min() > 1

    def test_scales_by_hand(self):
        function = ConsistencyFunction(2, 8, least=0.002, spread=0.5).double()
        x, t = points(), 3.0
        said = function.network(torch.cat([x / math.hypot(t, 0.5), torch.full((20, 1), math.log(t) / 4)], 1))
        expected = 0.25 / (2.998**2 + 0.25) * x + 0.5 * 2.998 / math.hypot(t, 0.5) * said
        torch.testing.assert_close(function(x, torch.full((20, 1), t).double()), expected)

    def test_levels(self):
        levels = noise_levels(18, 0.002, 80.0)
        assert levels[[0, -1]].tolist() == pytest.approx([0.002, 80], rel=1e-6)
        roots = levels.double() ** (1 / 7)
        torch.testing.assert_close(roots.diff(), roots.diff().mean().expand(17), rtol=1e-5, atol=0)


class TestLoss:
    @pytest.mark.parametrize("distance", ["squared", "pseudo_huber"])
    @pytest.mark.parametrize("config", [SMALL, AVERAGE])
    def test_by_hand(self, config, distance):
        recipe = built(*config, f"recipe.distance={distance}")
        teacher = recipe.function if config is SMALL else recipe.average
        if config is AVERAGE:
            nn.init.normal_(teacher.network[-1].bias)
        z, n = drawn(recipe)
        more, less = recipe.levels[n + 1, None], recipe.levels[n, None]
        apart = (recipe.function(points() + more * z, more) - teacher(points() + less * z, less)).norm(dim=1)
        c = 0.00054 * math.sqrt(2)
        each = apart**2 if distance == "squared" else (apart**2 + c**2).sqrt() - c
        torch.testing.assert_close(loss_of(recipe), each.mean())

    def test_cut_leaves_the_gradient_with_the_target_held_fixed(self):
        recipe = built(*SMALL)
        z, n = drawn(recipe)
        more, less = recipe.levels[n + 1, None], recipe.levels[n, None]
        constant = torch.tensor(recipe.function(points() + less * z, less).tolist(), dtype=torch.double)
        loss = (recipe.function(points() + more * z, more) - constant).square().sum(1).mean()
        expected = torch.autograd.grad(loss, list(recipe.function.parameters()))
        for strategy in CUTS:
            found = gradients(*SMALL, f"stop.target={strategy}")
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), strategy

    def test_both_sides_add_up_to_the_whole(self):
        cut, whole = gradients(*SMALL), gradients(*SMALL, "stop.target=none")
        other = gradients(*SMALL, "stop.target=none", "stop.prediction=detach")
        for a, b, c in zip(whole, cut, other, strict=True):
            torch.testing.assert_close(a, b + c)
            assert c.abs().max() > 1e-9

    @pytest.mark.parametrize("config", [SMALL, AVERAGE])
    def test_every_way_to_cut_trains_alike(self, config):
        kept = trained(4, *config)
        for strategy in CUTS[1:]:
            assert same(kept, trained(4, *config, f"stop.target={strategy}")), strategy

    @pytest.mark.parametrize("strategy", [s for s in BOUNDARIES["target"] if s not in ("scale", "reverse")])
    def test_contract_of_a_teacher_of_its_own_by_gradients(self, strategy):
        recipe = built(*AVERAGE, f"stop.target={strategy}")
        found = norms(loss_of(recipe), {"network": recipe.function, "teacher": recipe.average})
        assert found["network"] > 0
        assert (found["teacher"] is None) == (strategy != "none")

    def test_gradients_that_reach_an_average_move_nothing(self):
        assert same(trained(3, *AVERAGE), trained(3, *AVERAGE, "stop.target=none"))
        assert not same(trained(3, *SMALL), trained(3, *SMALL, "stop.target=none"))

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            (
                ["stop.prediction=detach"],
                "stop.prediction=detach: with stop.target=detach nothing learns; add stop.target=none",
            ),
            (["recipe.least=20"], "recipe.least=20: must lie below recipe.most=10.0"),
            (["data.shape=[3]"], "data.shape=[3]: eight_gaussians lie in the plane; choose [2]"),
        ],
    )
    def test_refused(self, overrides, message, tmp_path):
        ran = train("recipe=consistency", *overrides, cwd=tmp_path)
        assert ran.stderr == f"error: {message}\n"


class Linear(nn.Module):
    """At level n the answer factors[n] x."""

    def __init__(self, levels, factors):
        super().__init__()
        self.levels, self.factors = levels, nn.Parameter(factors)

    def forward(self, x, t):
        return self.factors[torch.searchsorted(self.levels, t.contiguous())] * x


class TestLinear:
    """Data of variance 1 and an answer a_n x at each level, a_0 = 1: where training ends is known exactly.

    The loss is the sum over n of E (a_n+1 (x + t_n+1 z) - a_n (x + t_n z))^2 = a_n+1^2 v_n+1 - 2 a_n a_n+1 w_n + a_n^2
    v_n, with v_n = 1 + t_n^2 and w_n = 1 + t_n t_n+1. With the cut each a_n+1 fits a_n: a_n+1 = a_n w_n / v_n+1.
    Without it all are fitted at once: 2 v_n a_n = w_n a_n+1 + w_n-1 a_n-1, and v_N a_N = w_N-1 a_N-1 at the end.
    """

    levels = noise_levels(6, 0.1, 2.0).double()
    variance, between = 1 + levels**2, 1 + levels[1:] * levels[:-1]

    def with_the_cut(self):
        return torch.cat([torch.ones(1), self.between / self.variance[1:]]).double().cumprod(0)

    def without(self):
        system = torch.diag(torch.cat([2 * self.variance[1:-1], self.variance[-1:]]))
        system -= torch.diag(self.between[1:], 1) + torch.diag(self.between[1:], -1)
        right = torch.zeros(5, dtype=torch.double)
        right[0] = self.between[0]
        return torch.cat([torch.ones(1).double(), torch.linalg.solve(system, right)])

    def loss_and_slope(self, factors, strategy):
        """The recipe's, at these factors; the slope by all but a_0, which holds what is known."""
        recipe = built(*SMALL, f"stop.target={strategy}")
        recipe.levels, recipe.function = self.levels, Linear(self.levels, factors)
        signs = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.double)  # their mean is exact
        x, z = (signs[:, k].repeat(5)[:, None].expand(20, 2) for k in (0, 1))
        loss = recipe.disagreement(x, z, torch.arange(5).repeat_interleave(4)).mean()
        (slope,) = torch.autograd.grad(loss, list(recipe.function.parameters()))
        return loss.item(), slope[1:].abs().max().item()

    def test_each_ends_at_its_own_fixed_point(self):
        for factors, here, there in ((self.with_the_cut(), "detach", "none"), (self.without(), "none", "detach")):
            assert self.loss_and_slope(factors, here)[1] < 1e-12
            assert self.loss_and_slope(factors, there)[1] > 1e-3

    def test_without_the_cut_the_loss_is_lower_and_samples_are_smaller(self):
        (cut, _), (whole, _) = (self.loss_and_slope(f, "none") for f in (self.with_the_cut(), self.without()))
        assert whole < cut
        sampled = [(f[-1] ** 2 * self.variance[-1]).item() for f in (self.with_the_cut(), self.without())]
        assert sampled[1] < sampled[0] < 1


class TestData:
    def test_eight_on_a_ring(self):
        found = eight_gaussians(8000, 2, torch.Generator().manual_seed(0))
        nearest = (torch.atan2(found[:, 1], found[:, 0]) / (math.pi / 4)).round().long() % 8
        assert nearest.bincount().min() > 850
        angles = nearest * math.pi / 4
        off = found - math.sqrt(2) * torch.stack([angles.cos(), angles.sin()], 1)
        assert off.std(0).tolist() == pytest.approx([0.1, 0.1], rel=0.05)

    def test_train_and_held_out_points_are_others_and_of_the_seed(self):
        data, again, other = (Cloud(kind="normal", shape=[3], points=40, held_out=60, seed=s) for s in (1, 1, 2))
        assert (data.points.shape, data.held_out_points.shape) == ((40, 3), (60, 3))
        assert torch.equal(data.points, again.points)
        assert not torch.equal(data.points, other.points)
        assert not torch.isin(data.points, data.held_out_points).any()

    def test_energy_distance_by_hand(self):
        a, b = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [4.0]])
        assert energy_distance(a, b).item() == pytest.approx(2 * (1 + 4 + 1 + 2) / 4 - 2 - 3)
        near, far = points(500, 1), points(500, 2)
        assert energy_distance(near, far).abs() < 0.02
        assert energy_distance(near, far + 3) > 2


@pytest.mark.long
def test_without_the_cut_the_loss_is_lower_and_the_samples_are_wrong():
    assert max(final("consistency", "detach", "energy_distance")) <= 0.15
    assert min(final("consistency", "none", "energy_distance")) >= 0.5
    losses = (final("consistency", arm, "disagreement") for arm in ("detach", "none"))
    assert all(without < with_cut for with_cut, without in zip(*losses, strict=True))
