"""The TD recipe: its updates against hand-made matrices, its limits against solved ones, each cut bit for bit."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conf_tests.helpers import build_recipe, comparison, config, final, norms, result, train
from recipes.parts.transitions import Chain, Draws, Transition, Transitions, a_split, star
from recipes.td import BOUNDARIES, TD

EQUIVALENT = ["detach", "no_grad", "freeze", "detach_", "data", "inference_mode"]
RESIDUAL = ["stop.target=none"]
CUT_PREDICTION = ["stop.target=none", "stop.prediction=detach"]
ARMS = {"detach": [], "none": RESIDUAL, "scale:0.2": ["stop.target=scale:0.2"], "prediction": CUT_PREDICTION}


def trained(updates: int, *overrides: str) -> TD:
    """The recipe after ``updates`` updates of the very training_step, 10 at a time, without Lightning around it."""
    recipe = build_recipe(*overrides)
    optimizer = recipe.configure_optimizers()
    optimizer.optimizer = optimizer  # as Lightning's wrapper holds it
    recipe.optimizers = lambda: optimizer
    recipe.manual_backward = lambda loss: loss.backward()
    recipe.trainer = SimpleNamespace(log_every_n_steps=10**9, global_step=1)
    data = config(*overrides).data
    arrows = Transitions(chain=data.chain).chain.transitions()
    for k, batch in enumerate(Draws(arrows, updates=10, batch_size=data.batch_size, length=updates // 10)):
        recipe.training_step(batch, k)
    return recipe


def expected_update(chain: Chain, discount: float, arm: str) -> tuple[np.ndarray, np.ndarray]:
    """A and b of the expected step, alpha (b + A w), by the books: E delta (own grad V - follow gamma grad V')."""
    own, follow = {"detach": (1, 0), "none": (1, 1), "scale:0.2": (1, 0.2), "prediction": (0, 1)}[arm]
    A, b = 0.0, 0.0
    for state, reward, following in chain.arrows:
        x = chain.features[state].numpy()
        y = np.zeros_like(x) if following is None else discount * chain.features[following].numpy()
        direction = own * x - follow * y
        A = A + np.outer(direction, y - x) / len(chain.arrows)
        b = b + direction * reward / len(chain.arrows)
    return np.asarray(A), np.asarray(b)


class TestUpdate:
    @pytest.mark.parametrize("arm", ARMS)
    @pytest.mark.parametrize(("recipe", "chain"), [("td", star()), ("td_asplit", a_split())], ids=["star", "asplit"])
    def test_is_the_expected_one(self, recipe, chain, arm):
        """200 updates through autograd against powers of a matrix: the star's are not even bounded."""
        overrides = [f"recipe={recipe}", "data.batch_size=null", *ARMS[arm]]
        start = build_recipe(*overrides)
        A, b = expected_update(chain, start.discount, arm)
        w, rate = start.value.weight.detach().numpy()[0].copy(), config(*overrides).recipe.optimizer.lr
        for _ in range(200):
            w += rate * (b + A @ w)
        np.testing.assert_allclose(trained(200, *overrides).value.weight.detach().numpy()[0], w, rtol=1e-11, atol=1e-13)

    def test_one_drawn_transition(self):
        """From the third state of the star: V = 2 + 1, V' = 10 + 2, delta = .99 * 12 - 3."""
        batch = Transition(*(part[2:3] for part in star().transitions()))
        delta = 0.99 * 12 - 3
        for arm, gradient in (("detach", [0, 0, 2, 0, 0, 0, 0, 1]), ("none", [0, 0, 2, 0, 0, 0, -0.99, 1 - 2 * 0.99])):
            recipe = build_recipe("recipe=td", *ARMS[arm])
            loss = recipe.td_loss(batch)
            assert loss.item() == pytest.approx(delta**2 / 2)
            loss.backward()
            expected = -delta * torch.tensor([gradient], dtype=torch.float64)
            torch.testing.assert_close(recipe.value.weight.grad, expected)

    def test_every_cut_gives_the_same_weights(self):
        reference = trained(200, "recipe=td").value.weight
        for strategy in EQUIVALENT[1:]:
            assert torch.equal(reference, trained(200, "recipe=td", f"stop.target={strategy}").value.weight), strategy
        for arm in ("none", "scale:0.2", "prediction"):
            assert not torch.equal(reference, trained(200, "recipe=td", *ARMS[arm]).value.weight), arm

    def test_scale_reaches_from_semi_to_residual_gradient(self):
        for chain in ("td", "td_asplit"):
            ends = [trained(50, f"recipe={chain}", f"stop.target={s}").value.weight for s in ("detach", "none")]
            gates = [trained(50, f"recipe={chain}", f"stop.target={s}").value.weight for s in ("scale:0", "scale:1")]
            for end, gate in zip(ends, gates, strict=True):
                torch.testing.assert_close(end, gate, rtol=1e-13, atol=1e-13)


class TestStar:
    def radius(self, a: float, discount: float = 0.99) -> float:
        """Of the matrix by which one expected update multiplies the weights (alpha = .01)."""
        x, _, y = (part.numpy() for part in star().transitions())
        matrix = np.eye(8) + 0.01 * (x - a * discount * y).T @ (discount * y - x) / 7
        return np.abs(np.linalg.eigvals(matrix)).max()

    def test_spectral_radius_decides(self):
        assert self.radius(0) == pytest.approx(1.0023925)  # 2.6e22 is 1.0023925^20000 times a part of the start
        assert self.radius(0.05) > 1.0006
        assert self.radius(0.104) > 1 + 1e-6
        for a in (0.106, 0.2, 1):
            assert self.radius(a) == pytest.approx(1, abs=1e-12)  # eight weights, seven states: one direction is free
        assert self.radius(0, discount=0.8) == pytest.approx(1, abs=1e-12)  # with a shorter horizon it does not diverge

    @pytest.mark.parametrize("sampled", [1, "null"])
    def test_semi_gradient_grows_at_that_rate(self, sampled):
        overrides = ["recipe=td", f"data.batch_size={sampled}"]
        early, late = (trained(n, *overrides).value.weight.norm().item() for n in (2000, 4000))
        assert np.log(late / early) / 2000 == pytest.approx(np.log(self.radius(0)), rel=0.03)
        assert early > 1e3

    @pytest.mark.parametrize("sampled", [1, "null"])
    def test_residual_gradient_stays_below_its_start(self, sampled):
        weights = trained(2000, "recipe=td", f"data.batch_size={sampled}", *RESIDUAL).value.weight
        assert weights.norm().item() == pytest.approx(8.76, abs=0.01)

    def test_what_neither_loss_sees_never_moves(self):
        """The one direction that no value depends on keeps the start's part: the norm cannot come below it."""
        _, _, v = np.linalg.svd(star().features.numpy())
        start, end = (trained(n, "recipe=td", *RESIDUAL).value.weight.detach().numpy()[0] for n in (0, 1000))
        assert v[-1] @ end == pytest.approx(v[-1] @ start, abs=1e-9)


FAST = ["recipe=td_asplit", "recipe.optimizer.lr=0.1"]
LIMITS = {"detach": (0.5, 1, 0), "none": (0.5, 0.75, 0.25), "scale:0.2": (0.5, 11 / 12, 1 / 12)}


class TestASplit:
    def test_truth_is_solved(self):
        assert a_split().values(1.0).tolist() == [0.5, 1.0, 0.0]
        assert a_split().values(0.5).tolist() == [0.25, 1.0, 0.0]
        assert star().values(0.99).tolist() == [0.0] * 7

    @pytest.mark.parametrize("arm", LIMITS)
    def test_limits(self, arm):
        """Where the expected update is 0; with scale:a, V(B) = (1 + a / 2) / (1 + a)."""
        A, b = expected_update(a_split(), 1.0, arm)
        np.testing.assert_allclose(np.linalg.solve(A, -b), LIMITS[arm], atol=1e-12)
        weights = trained(3000, *FAST, *ARMS[arm]).value.weight
        np.testing.assert_allclose(weights.detach().numpy()[0], LIMITS[arm], atol=1e-9)

    def test_without_the_prediction_no_reward_arrives(self):
        start, end = (trained(n, *FAST, *CUT_PREDICTION).value.weight[0] for n in (0, 3000))
        assert end[0] == start[0]  # nothing leads to A
        torch.testing.assert_close(end, start[0].expand(3), rtol=0, atol=1e-9)


class TestFlow:
    @pytest.mark.parametrize("strategy", [s for s in BOUNDARIES["target"] if s not in ("scale", "reverse")])
    def test_target(self, strategy):
        recipe = build_recipe("recipe=td", f"stop.target={strategy}")
        crossing = recipe.stop.target(recipe.discounted_value, star().transitions().next_features)
        assert crossing.requires_grad == (strategy == "none")
        assert norms(recipe.td_loss(star().transitions()), recipe.parameter_groups())["value"] > 0

    def test_nothing_left_to_learn_is_refused(self, tmp_path):
        ran = train("recipe=td", "stop.prediction=detach", cwd=tmp_path)
        assert ran.returncode == 2
        assert (
            ran.stderr
            == "error: stop.prediction=detach: with stop.target=detach nothing learns; add stop.target=none\n"
        )
        assert not (tmp_path / "runs").exists()


class TestDraws:
    def test_a_batch_depends_on_seed_rank_and_number(self):
        arrows = star().transitions()
        draws = Draws(arrows, updates=5, batch_size=2, length=4, seed=1)
        batches = list(draws)
        again = Draws(arrows, updates=5, batch_size=2, length=2, seed=1)
        again.load_state_dict({"position": 2})
        for batch, same in zip(batches[2:], again, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(batch, same, strict=True))
        assert batches[0].features.shape == (5, 2, 8)
        for other in (
            Draws(arrows, updates=5, batch_size=2, seed=2),
            Draws(arrows, updates=5, batch_size=2, seed=1, rank=1),
        ):
            assert not torch.equal(other.batch(0).features, batches[0].features)

    def test_evenly(self):
        drawn = Draws(star().transitions(), updates=100, batch_size=70, seed=0).batch(0).features
        share = (drawn[..., :7].argmax(-1).flatten().bincount() / 7000).numpy()
        np.testing.assert_allclose(share, 1 / 7, atol=0.02)

    def test_expected_update_has_every_transition_once(self):
        batch = Draws(a_split().transitions(), updates=3).batch(9)
        assert batch.rewards.tolist() == [[0, 0, 1, 0]] * 3


def test_overflow_ends_with_a_result(tmp_path):
    run = ["recipe=td", "recipe.optimizer.lr=1", "trainer.max_steps=300", "trainer.val_check_interval=100"]
    ran = train(*run, "hydra.run.dir=run", cwd=tmp_path)
    assert ran.returncode == 1
    assert ran.stderr == "error: td_loss is inf at step 125\n"
    recorded = result(tmp_path / "run")
    assert (recorded["status"], recorded["message"]) == ("raised", "td_loss is inf at step 125")
    text = (tmp_path / "run" / "result.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text


@pytest.mark.long
def test_the_star_diverges_with_the_cut_and_the_split_is_wrong_without():
    assert min(final("td", "detach", "weight_norm")) > 1e10
    assert comparison("td")["arms"]["detach"]["same_weights_as"] == ["no_grad", "freeze"]
    assert max(final("td", "none", "weight_norm")) < 10
    assert min(final("td_asplit", "detach", "value/B")) >= 0.95
    assert final("td_asplit", "none", "value/B") == [pytest.approx(0.75, abs=0.03)] * 3
