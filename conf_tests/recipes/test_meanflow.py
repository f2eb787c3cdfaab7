"""MeanFlow: its target against the exact flow of a Gaussian, its derivative, the collapse in closed form."""

import math

import pytest
import torch

from conf_tests.helpers import build_recipe, final

RECIPE = "recipe=meanflow"
MEAN, STD = torch.tensor([1.5, -1.0], dtype=torch.float64), 0.5


def exact(z, r, t):
    """The mean velocity from t to r of N(MEAN, STD^2): the flow keeps a point's place in the Gaussian."""

    def spread(at):
        return (STD**2 * (1 - at).square() + at.square()).sqrt()[:, None]

    there = MEAN * (1 - r)[:, None] + (z - MEAN * (1 - t)[:, None]) * spread(r) / spread(t)
    apart = (t - r)[:, None]
    return torch.where(apart == 0, (MEAN * 0 + velocity(z, t)), (z - there) / apart.clamp_min(1e-12))


def velocity(z, t):
    """At r = t: E[e - x | z]."""
    t = t[:, None]
    slope = (t - STD**2 * (1 - t)) / (STD**2 * (1 - t).square() + t.square())
    return -MEAN + slope * (z - MEAN * (1 - t))


def drawn(n=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    points = MEAN + STD * torch.randn(n, 2, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    r, t = torch.rand(2, n, generator=generator, dtype=torch.float64).sort(0).values
    return points, noise, r, t


class Exact(torch.nn.Module):
    def forward(self, z, r, t):
        return exact(z, r, t)


def test_the_exact_mean_velocity_meets_its_own_target():
    """Along the mean velocity; along e - x it does on average alone."""
    recipe = build_recipe(RECIPE)
    recipe.velocity = Exact()
    points, noise, r, t = drawn()
    z = points + t[:, None] * (noise - points)
    v = velocity(z, t)
    u, target = recipe.meanflow(z, v, r, t)
    torch.testing.assert_close(u, target, rtol=1e-6, atol=1e-8)
    middle = (r + t) / 2
    step = z - (t - middle)[:, None] * exact(z, middle, t)
    halves = (exact(z, middle, t) + exact(step, r, middle)) / 2
    torch.testing.assert_close(halves, exact(z, r, t), rtol=1e-6, atol=1e-8)


def test_derivative_is_a_difference_quotient():
    recipe = build_recipe(RECIPE, "recipe.network=mlp").double()
    points, noise, r, t = drawn(8)
    z, v, h = points + t[:, None] * (noise - points), noise - points, 1e-5
    u, target = recipe.meanflow(z, v, r, t)
    ahead, behind = (recipe.velocity(z + s * v, r, t + s) for s in (h, -h))
    by_hand = v - (t - r)[:, None] * (ahead - behind) / (2 * h)
    torch.testing.assert_close(target, by_hand, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(u, recipe.velocity(z, r, t))


def test_shortcuts_target_is_the_mean_of_two_steps():
    recipe = build_recipe(RECIPE, "recipe.objective=shortcut").double()
    points, noise, r, t = drawn(8)
    r = torch.where(torch.arange(8) < 2, t, r)
    z, v = points + t[:, None] * (noise - points), noise - points
    u, target = recipe.shortcut(z, v, r, t)
    m = (r + t) / 2
    one = recipe.velocity(z, m, t)
    two = recipe.velocity(z - (t - m)[:, None] * one, r, m)
    torch.testing.assert_close(target[2:], ((one + two) / 2)[2:])
    torch.testing.assert_close(target[:2], v[:2])
    torch.testing.assert_close(u, recipe.velocity(z, r, t))


@pytest.mark.parametrize(
    ("strategy", "share"), [("detach", 0), ("data", 0), ("none", 1), ("scale:0.5", 0.5), ("reverse:1", -1)]
)
def test_gate_on_the_target(strategy, share):
    def gradient(*overrides):
        recipe = build_recipe(RECIPE, "recipe.width=8", *overrides).double()
        loss = recipe.distance(*drawn()).mean()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(recipe.velocity.parameters()))])

    cut, alive = gradient(), gradient("stop.target=none")
    assert (alive - cut).norm() > 0.1 * cut.norm()
    torch.testing.assert_close(gradient(f"stop.target={strategy}"), cut + share * (alive - cut))
    wrong_side = gradient("stop.prediction=detach", f"stop.target={strategy}") if share else torch.zeros_like(cut)
    torch.testing.assert_close(wrong_side, share * (alive - cut))


@pytest.mark.parametrize("s", [0.3, 0.5, 1.0])
def test_alive_the_least_loss_lies_at_a_collapse(s):
    """X = c(t) z with c(0) = 1 and a free end: the action E |dX/dt|^2 along straight paths is least for this c(1).

    (With R = c sqrt(s^2 (1 - t)^2 + t^2) it is least where R'' = R phi'^2, phi the angle of (s (1 - t), t).)
    """
    n = 2000
    t = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    spread, moved = s**2 * (1 - t) ** 2 + t**2, t - s**2 * (1 - t)  # E z^2 and E z v, about the mean
    c = torch.ones(n + 1, dtype=torch.float64, requires_grad=True)
    before, after = c[:-1], c[1:]
    middle, slope = (before + after) / 2, (after - before) * n
    action = (slope.square() * spread + 2 * slope * middle * moved + middle.square() * (1 + s**2)).mean()
    (linear,) = torch.autograd.grad(action, c, create_graph=True)
    # the action is a quadratic form in c, tridiagonal: its minimum with c_0 = 1
    main, off = torch.zeros(n + 1, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    a, b, d = spread * n * n, moved * n / 2, torch.full_like(t, (1 + s**2) / 4)
    main[1:] += a + 2 * b + d
    main[:-1] += a - 2 * b + d
    off += d - a
    matrix = torch.diag(main) + torch.diag(off, 1) + torch.diag(off, -1)
    torch.testing.assert_close(linear.detach(), 2 * (matrix @ c.detach()) / n)
    solved = torch.linalg.solve(matrix[1:, 1:], -matrix[1:, 0])
    assert solved[-1].item() == pytest.approx(s / (math.pi / 2 + s), rel=1e-3)


def test_nothing_left_to_learn_is_refused():
    with pytest.raises(ValueError, match=r"stop.prediction=detach: with stop.target=detach nothing learns"):
        build_recipe(RECIPE, "stop.prediction=detach").configure_optimizers()


@pytest.mark.long
def test_alive_it_collapses_at_a_lower_loss():
    ratio, loss = (
        {arm: final("meanflow", arm, m) for arm in ("detach", "none")} for m in ("std_ratio", "held_out_loss")
    )
    assert ratio["detach"] == pytest.approx([1] * 3, abs=0.06)
    assert ratio["none"] == pytest.approx([1 / (math.pi / 2 + STD)] * 3, rel=0.08)
    assert all(alive < cut for alive, cut in zip(loss["none"], loss["detach"], strict=True))


@pytest.mark.parametrize("cut", [True, False])
def test_self_conditioning_in_a_linear_toy_is_the_same_cut_or_not(cut):
    """x ~ N(0, 1), z = x + e; half of the time the estimate a z + b y has the first one, a z, for y: a = .5, b = 0."""
    a, b = (torch.tensor(start, dtype=torch.float64, requires_grad=True) for start in (0.1, 0.4))
    optimizer = torch.optim.SGD([a, b], lr=0.2)
    for _ in range(3000):
        first = a.detach() if cut else a
        slopes = torch.stack([a, a + b * first])
        loss = ((slopes - 1).square() + slopes.square()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert a.item() == pytest.approx(0.5, abs=1e-3)
    assert b.item() == pytest.approx(0, abs=2e-3)
