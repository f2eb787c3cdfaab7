"""The GAN recipe: its contract, its cuts bit for bit, its penalty, its losses."""

import math
from types import SimpleNamespace

import pytest
import torch

from conf_tests.helpers import ROOT, build_recipe, config, final, norms, result, train
from recipes.gan import BOUNDARIES, FLOW, GAN
from recipes.parts import frechet
from recipes.parts.averages import follow
from recipes.parts.batches import Batches
from recipes.parts.frechet import (
    Classifier,
    Features,
    FrechetDistance,
    SampleQuality,
    accuracy,
    cached_classifier,
)
from recipes.parts.images import Images, read_images

EQUIVALENT = ["detach", "no_grad", "freeze", "detach_", "data", "none"]
MLP = ["recipe=gan", "data=digits"]
DCGAN = ["recipe=gan", "data=mnist5k", "recipe.network=dcgan", "recipe.width=4", "recipe.use_spectral_norm=true"]
DCGAN += ["recipe.n_critic=1", "data.batch_size=32"]
NETWORKS = pytest.mark.parametrize("network", [MLP, DCGAN], ids=["mlp", "dcgan"])


def losses(recipe: GAN, reals: torch.Tensor) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {name: getattr(recipe, name)(reals) for name in FLOW}


def reals_for(network):
    return torch.rand(8, *config(*network).data.shape) * 2 - 1


def weights_after(steps, *overrides, seed=0):
    """All weights after ``steps`` steps of the very training_step, without Lightning around it."""
    recipe = build_recipe(*overrides, f"seed={seed}")
    g_optimizer, d_optimizer = recipe.configure_optimizers()
    d_optimizer.optimizer = d_optimizer  # as Lightning's wrapper holds it
    recipe.optimizers = lambda: (g_optimizer, d_optimizer)
    recipe.manual_backward = lambda loss: loss.backward()
    recipe.trainer = SimpleNamespace(log_every_n_steps=10**9, global_step=1)
    images = torch.rand(16, *config(*overrides).data.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    for k, reals in enumerate(Batches(images, batch_size=8, length=steps, seed=seed)):
        recipe.training_step(reals, k)
    return recipe.state_dict()


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


@NETWORKS
class TestFlow:
    @pytest.mark.parametrize(
        "strategy", [s for s in BOUNDARIES["fakes"] if s not in ("scale", "reverse", "inference_mode")]
    )
    def test_contract_by_gradients(self, network, strategy):
        recipe = build_recipe(*network, f"stop.fakes={strategy}")
        found = {
            name: norms(loss, recipe.parameter_groups()) for name, loss in losses(recipe, reals_for(network)).items()
        }
        assert found["d_loss"]["discriminator"] > 0
        assert found["g_loss"]["generator"] > 0
        assert found["g_loss"]["discriminator"] is None
        assert (found["d_loss"]["generator"] is None) == (strategy != "none")

    def test_discriminator_boundary(self, network):
        frozen, live = (build_recipe(*network, f"stop.discriminator={s}") for s in ("freeze", "none"))
        assert norms(losses(frozen, reals_for(network))["g_loss"], frozen.parameter_groups())["discriminator"] is None
        assert norms(losses(live, reals_for(network))["g_loss"], live.parameter_groups())["discriminator"] > 0

    @pytest.mark.parametrize(("strategy", "factor"), [("scale:0.5", 0.5), ("reverse:2", -2.0), ("scale:0", 0.0)])
    def test_gate_scales_what_reaches_the_generator(self, network, strategy, factor):
        gradients = []
        for choice in ("none", strategy):
            recipe = build_recipe(*network, f"stop.fakes={choice}", "recipe.penalty=none")
            torch.manual_seed(1)
            loss = recipe.d_loss(reals_for(network) * 0)
            gradients.append(torch.autograd.grad(loss, list(recipe.generator.parameters())))
        for whole, gated in zip(*gradients, strict=True):
            torch.testing.assert_close(gated, whole * factor, rtol=1e-5, atol=1e-8)


@NETWORKS
class TestBitIdentity:
    def test_every_cut_gives_the_same_weights(self, network):
        steps = 6
        reference = weights_after(steps, *network)
        for strategy in EQUIVALENT[1:]:
            assert equal(reference, weights_after(steps, *network, f"stop.fakes={strategy}")), strategy
        assert not equal(reference, weights_after(steps, *network, seed=1))

    def test_zeroed_late_is_another_training(self, network):
        late = ["stop.zero_grad=late"]
        assert equal(weights_after(4, *network), weights_after(4, *network, *late))  # nothing is left behind
        assert not equal(weights_after(4, *network), weights_after(4, *network, *late, "stop.fakes=none"))

    def test_discriminator_frozen_or_zeroed_in_time(self, network):
        assert equal(weights_after(5, *network), weights_after(5, *network, "stop.discriminator=none"))


@NETWORKS
@pytest.mark.parametrize("penalty", ["r1", "interpolates"])
class TestPenalty:
    def gradient(self, network, penalty, choice):
        recipe = build_recipe(*network, f"recipe.penalty={penalty}", f"stop.penalty={choice}")
        reals = reals_for(network)
        torch.manual_seed(1)
        value = recipe.gradient_penalty(reals, torch.zeros_like(reals))
        return value, recipe

    def test_reaches_the_discriminator_only_when_kept(self, network, penalty):
        values = {}
        for choice in ("kept", "no_create_graph", "detached"):
            value, recipe = self.gradient(network, penalty, choice)
            values[choice] = value.item()
            assert value.requires_grad == (choice == "kept")
        assert values["kept"] == pytest.approx(values["detached"], rel=1e-5)
        assert values["kept"] == pytest.approx(values["no_create_graph"], rel=1e-5)
        assert norms(self.gradient(network, penalty, "kept")[0], recipe.parameter_groups() | {})["generator"] is None

    def test_points_are_leaves(self, network, penalty):
        recipe = build_recipe(*network, f"recipe.penalty={penalty}")
        reals = reals_for(network)
        fakes = recipe.generator(recipe.noise(8))
        found = norms(recipe.gradient_penalty(reals, fakes), recipe.parameter_groups())
        assert found["generator"] is None
        assert found["discriminator"] > 0


class Point(torch.nn.Module):
    """A generator that answers .25, whatever the noise."""

    def __init__(self):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.full((1,), 0.25))

    def forward(self, noise):
        return self.theta.expand(len(noise), 1)


def two_parameters(slope, *overrides):
    """A GAN in one dimension: a generator at .25, a discriminator ``slope * x``."""
    recipe = build_recipe(*MLP, *overrides)
    recipe.generator, recipe.discriminator = Point(), torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(recipe.discriminator.weight, slope)
    return recipe


def test_penalty_of_a_linear_discriminator_is_known():
    recipe = two_parameters(3.0, "recipe.penalty=r1")
    assert recipe.gradient_penalty(torch.zeros(4, 1), torch.ones(4, 1)).item() == 4.5  # 3^2 / 2
    recipe.penalty = "interpolates"
    assert recipe.gradient_penalty(torch.zeros(4, 1), torch.ones(4, 1)).item() == 4.0  # (3 - 1)^2
    assert recipe.terms["health/slope"].item() == 3.0


@pytest.mark.parametrize(
    ("loss", "d", "g"),
    [
        ("non_saturating", math.log(1 + math.exp(-2)) + math.log(1 + math.exp(0.5)), math.log(1 + math.exp(-0.5))),
        ("hinge", 0 + 1.5, -0.5),
        ("wasserstein", 0.5 - 2, -0.5),
    ],
)
def test_losses_at_known_scores(loss, d, g):
    """At D(real) = 2 and D(fake) = 0.5, by the formulas of the papers."""
    recipe = two_parameters(2.0, f"recipe.loss={loss}", "recipe.penalty=none")
    assert recipe.d_loss(torch.ones(3, 1)).item() == pytest.approx(d, abs=1e-6)
    assert recipe.g_loss(torch.ones(3, 1)).item() == pytest.approx(g, abs=1e-6)


def test_each_loss_draws_its_own_fakes_and_sampling_draws_none():
    recipe = build_recipe(*MLP)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    samples = recipe.sample(4)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(samples, recipe.sample(4))
    recipe.d_loss(torch.zeros(2, 1, 8, 8))
    after_d = torch.get_rng_state()
    recipe.g_loss(torch.zeros(2, 1, 8, 8))
    assert not torch.equal(after_d, torch.get_rng_state())


@NETWORKS
def test_average_follows_every_step_of_the_generator(network):
    weights = weights_after(3, *network, "recipe.ema_decay=0")
    averaged = {name.removeprefix("average."): w for name, w in weights.items() if name.startswith("average.")}
    assert averaged
    assert all(torch.equal(w, weights[f"generator.{name}"]) for name, w in averaged.items())


def test_average_is_the_exponential_one():
    average, network = torch.nn.BatchNorm1d(1), torch.nn.BatchNorm1d(1)
    torch.nn.init.constant_(network.weight, 2.0)
    network.running_mean.fill_(5.0)
    follow(average, network, 0.9)
    assert average.weight.item() == pytest.approx(0.9 * 1 + 0.1 * 2)
    assert average.running_mean.item() == 5.0


class TestFrechet:
    def test_the_real_images_are_looked_at_once_a_process(self, monkeypatch):
        """Runs on the same images share what belongs to these; another set of images has its own."""
        data, other = (Images(name="digits", shape=(1, 8, 8), cache=str(ROOT / ".cache")) for _ in range(2))
        for each in (data, other):
            each.setup("fit")
        frechet.KEPT.clear()
        first = SampleQuality(data, None)
        trained = []
        monkeypatch.setattr(frechet, "cached_classifier", lambda *a: trained.append(a) or cached_classifier(*a))
        again = SampleQuality(data, lambda n: data.images[:n])
        assert not trained
        assert first.yardsticks["frechet_floor"] == again.yardsticks["frechet_floor"]
        assert first(data.held_out_images) == {"frechet": again.distance(data.held_out_images)} | first.yardsticks
        other.images = other.images.flip(0)
        SampleQuality(other, None)
        assert len(trained) == 1

    def test_of_itself_is_zero_and_of_a_shift_is_its_square(self):
        class Identity(Classifier):
            def __init__(self):
                super().__init__((1, 8, 8), 10)
                self.features = Features(torch.nn.Flatten())

        reals = torch.randn(500, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        distance = FrechetDistance(Identity(), reals)
        assert distance(reals) == pytest.approx(0, abs=1e-3)
        assert distance(reals + 0.5) == pytest.approx(64 * 0.25, rel=1e-3)
        assert distance(reals) == pytest.approx(0, abs=1e-3)  # the one before left nothing behind

    def test_classifier_is_good_and_draws_nothing(self, tmp_path):
        images, labels = read_images("digits", tmp_path)
        before = torch.get_rng_state()
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        (images, held_out), (labels, answers) = images[order].split([1437, 360]), labels[order].split([1437, 360])
        trained, loaded = (cached_classifier(images, labels, tmp_path) for _ in range(2))
        assert torch.equal(before, torch.get_rng_state())
        assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), loaded.parameters(), strict=True))
        right = accuracy(trained, held_out, answers)
        assert right >= 0.97


def test_inference_mode_raises_and_says_what_to_use(tmp_path):
    ran = train("recipe=gan", "trainer=smoke", "stop.fakes=inference_mode", "hydra.run.dir=run", cwd=tmp_path)
    assert ran.returncode == 1
    (line,) = ran.stderr.splitlines()
    assert line.startswith("error: stop.fakes=inference_mode: Inference tensors cannot be saved for backward")
    assert line.endswith("Use no_grad, which costs the same")
    recorded = result(tmp_path / "run")
    assert recorded["status"] == "raised"
    assert recorded["message"] in line


@pytest.mark.long
@NETWORKS
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_500_steps_through_train_py(network, seed, tmp_path):
    choices = ",".join(EQUIVALENT)
    train(
        "-m",
        *network,
        f"stop.fakes={choices}",
        "trainer.max_steps=500",
        f"seed={seed}",
        "hydra.sweep.dir=s",
        cwd=tmp_path,
    )
    runs = [result(file.parent) for file in tmp_path.glob("s/*/*/result.json")]
    found = {run["stop"]["fakes"]: run["weights_sha256"] for run in runs if run["steps"] == 500}
    assert set(found) == set(EQUIVALENT)
    assert len(set(found.values())) == 1, found


def test_discriminator_steps_n_critic_times_also_where_the_batch_does_not_divide():
    recipe = build_recipe(*MLP, "recipe.n_critic=3")
    g_optimizer, d_optimizer = recipe.configure_optimizers()
    d_optimizer.optimizer = d_optimizer
    recipe.optimizers = lambda: (g_optimizer, d_optimizer)
    recipe.manual_backward = lambda loss: loss.backward()
    recipe.trainer = SimpleNamespace(log_every_n_steps=10**9, global_step=1)
    recipe.training_step(torch.zeros(4, 1, 8, 8), 0)  # chunk(3) would give two
    assert {state["step"].item() for state in d_optimizer.state.values()} == {3}
    assert {state["step"].item() for state in g_optimizer.state.values()} == {1}


@pytest.mark.long
def test_a_leak_trains_the_generator_to_help_the_discriminator():
    def frechet(arm):
        return zip(final("gan", arm, "frechet_start"), final("gan", arm, "frechet"), strict=True)

    assert all(end < 0.05 * start for start, end in frechet("detach"))
    assert all(end > start for start, end in frechet("none-late"))
    assert all(0.8 < slope < 1.2 for slope in final("gan", "detach", "health/slope"))
    assert all(slope > 20 for slope in final("gan", "penalty-detached", "health/slope"))
