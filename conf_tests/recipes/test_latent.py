"""Latent diffusion: both losses against samples and against their best denoiser, and the width that is left."""

import pytest
import torch

from conf_tests.helpers import build_recipe, final, norms, trained

RECIPE = "recipe=latent"


def test_losses_are_expectations():
    """Against a million samples."""
    recipe = build_recipe(RECIPE)
    torch.nn.init.uniform_(recipe.denoiser.scale, -1, 1)
    generator = torch.Generator().manual_seed(0)
    x, n, e = torch.randn(3, 1_000_000, generator=generator, dtype=torch.float64)
    z = recipe.encoder(x) + recipe.noise * n
    assert recipe.reconstruction_loss(None).item() == pytest.approx(
        (recipe.decoder(z) - x).square().mean().item(), abs=0.01
    )
    for k in (0, 25, 49):
        t, scale = recipe.t[k], recipe.denoiser.scale[k]
        wanted = (scale * ((1 - t) * z + t * e) - (e - z)).square().mean().item()
        alone = build_recipe(RECIPE)
        alone.encoder = recipe.encoder
        alone.t, alone.denoiser.scale = t[None], torch.nn.Parameter(scale[None].detach())
        assert alone.diffusion_loss(None).item() == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize(("strategy", "factor"), [("none", 1.0), ("scale:0.1", 0.1), ("reverse:1", -1.0)])
def test_gate_on_the_encoder(strategy, factor):
    def gradient(choice):
        recipe = build_recipe(RECIPE, f"stop.latent={choice}")
        return torch.autograd.grad(recipe.diffusion_loss(None), [recipe.encoder.scale])[0]

    torch.testing.assert_close(gradient(strategy), factor * gradient("none"))


def test_cut_the_encoder_and_decoder_train_as_if_there_were_no_diffusion():
    for strategy in ("detach", "data"):
        recipe = build_recipe(RECIPE, f"stop.latent={strategy}")
        assert norms(recipe.diffusion_loss(None), recipe.parameter_groups())["encoder"] is None
        here, alone = (
            trained(50, RECIPE, f"stop.latent={strategy}", *more) for more in ([], ["recipe.diffusion_weight=0.5"])
        )
        assert torch.equal(here.encoder.scale, alone.encoder.scale)


def test_where_it_ends():
    """The width: above 1 behind the cut; without it the same from every start; the denoiser is the best one."""
    cut = [trained(1500, RECIPE, f"seed={seed}") for seed in range(3)]
    live = [trained(1500, RECIPE, f"seed={seed}", "stop.latent=none") for seed in range(3)]
    widths = [recipe.variance().sqrt().item() for recipe in live]
    assert min(recipe.variance().sqrt().item() for recipe in cut) >= 1
    assert max(widths) <= 0.3
    assert max(widths) - min(widths) <= 0.01
    assert max(recipe.reconstruction_loss(None).item() for recipe in cut) <= 0.01
    assert min(recipe.reconstruction_loss(None).item() for recipe in live) >= 0.15
    for recipe in live:
        v, t = recipe.variance().detach(), recipe.t
        best = (t - (1 - t) * v) / ((1 - t).square() * v + t.square())
        torch.testing.assert_close(recipe.denoiser.scale.detach(), best, rtol=0, atol=0.02)


@pytest.mark.long
def test_the_latent_collapses_without_the_cut():
    assert min(final("latent", "detach", "latent_std")) >= 1
    assert max(final("latent", "none", "latent_std")) <= 0.3
