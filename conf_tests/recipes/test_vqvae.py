"""The vqvae recipe: the estimators' gradients and cuts, the losses by hand, running means, scalar codes, usage."""

from types import SimpleNamespace

import pytest
import torch

from conf_tests.helpers import build_recipe, final
from recipes.parts.plots import bars
from recipes.vqvae import BOUNDARIES, FLOW, bounded, rotated, rotation

SMALL = ["recipe=vqvae", "recipe.width=16", "recipe.codes=6", "recipe.dimensions=3"]
CUTS = ["detach", "detach_", "data"]


def images(size=10, seed=0):
    return (torch.rand(size, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1).double()


def built(*overrides):
    """The recipe in double precision, its codes far enough apart to be told."""
    recipe = build_recipe(*SMALL, *overrides).double()
    torch.manual_seed(1)
    torch.nn.init.normal_(recipe.codebook.weight)
    recipe.sums.copy_(recipe.codebook.weight)
    return recipe


def reached(loss, *tensors):
    return torch.autograd.grad(loss, tensors, allow_unused=True, retain_graph=True)


def trained(steps, *overrides):
    """The recipe after ``steps`` steps of its own training_step."""
    recipe = build_recipe(*SMALL, *overrides)
    optimizer = recipe.configure_optimizers()
    recipe.optimizers = lambda: optimizer
    recipe.manual_backward = lambda loss, **options: loss.backward(**options)
    recipe.trainer = SimpleNamespace(log_every_n_steps=10**9, global_step=1)
    for k in range(steps):
        recipe.training_step(images(seed=k).float(), k)
    return recipe.state_dict()


class TestEstimator:
    """z_q is e in value; with the cut its gradient arrives at z, without it at e."""

    @staticmethod
    def gradients(*overrides):
        recipe = built(*overrides)
        z, e = (
            torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(s), dtype=torch.double).requires_grad_()
            for s in (0, 1)
        )
        quantised = recipe.quantised(z, e)
        torch.testing.assert_close(quantised, e)
        arriving = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.double)
        return arriving, *reached((quantised * arriving).sum(), z, e), z.detach(), e.detach()

    @pytest.mark.parametrize("strategy", CUTS)
    def test_straight_through_hands_on_the_gradient_as_it_is(self, strategy):
        arriving, at_z, at_e, *_ = self.gradients(f"stop.quantised={strategy}")
        assert torch.equal(at_z, arriving)
        assert at_e is None

    @pytest.mark.parametrize("strategy", CUTS)
    def test_rotation_turns_the_gradient_as_it_turns_the_code(self, strategy):
        """The gradient stands to z as it stood to e, its length times |e| / |z|."""
        arriving, at_z, at_e, z, e = self.gradients("stop.estimator=rotation", f"stop.quantised={strategy}")
        assert at_e is None
        factor = (e.norm(dim=-1) / z.norm(dim=-1)).detach()
        torch.testing.assert_close(at_z.norm(dim=-1), factor * arriving.norm(dim=-1))
        angles = [torch.nn.functional.cosine_similarity(a, b, dim=-1).detach() for a, b in ((at_z, z), (arriving, e))]
        torch.testing.assert_close(*angles)
        assert not torch.allclose(at_z, arriving)

    @pytest.mark.parametrize("estimator", ["straight_through", "rotation"])
    def test_without_the_cut_it_is_e_and_nothing_of_z(self, estimator):
        arriving, at_z, at_e, *_ = self.gradients(f"stop.estimator={estimator}", "stop.quantised=none")
        torch.testing.assert_close(at_e, arriving)
        assert at_z.abs().max() < 1e-12

    def test_reversed_it_pushes_the_codes_away(self):
        arriving, at_z, at_e, *_ = self.gradients("stop.quantised=reverse:1")
        assert torch.equal(at_e, -arriving)
        assert torch.equal(at_z, 2 * arriving)

    def test_rotation_is_one(self):
        z, e = torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double)
        other = torch.randn(7, 3, generator=torch.Generator().manual_seed(1), dtype=torch.double)
        factor, *axes = rotation(z, e)
        turned = rotated(other, torch.ones_like(factor), *axes)
        torch.testing.assert_close(turned.norm(dim=-1), other.norm(dim=-1))
        torch.testing.assert_close(rotated(z, factor, *axes), e)


class TestLosses:
    def test_by_hand(self):
        recipe = built()
        codes = recipe.collect(images())
        distances = (codes.z[:, :, None] - recipe.codebook.weight).square().sum(-1)
        assert torch.equal(codes.index, distances.argmin(-1))
        torch.testing.assert_close(recipe.codebook_loss(codes), distances.min(-1).values.mean())
        torch.testing.assert_close(recipe.commitment_loss(codes), distances.min(-1).values.mean() / 4)
        in_unit = (recipe.decoder(codes.e) + 1) / 2 - (images() + 1) / 2
        torch.testing.assert_close(recipe.reconstruction_loss(codes), in_unit.square().sum((1, 2, 3)).mean())
        assert len(codes.index.unique()) > 1

    def test_each_moves_one_side(self):
        """d|e - z|^2 = 2 (e - z) at one of them, and nothing at the other."""
        recipe = built()
        codes = recipe.collect(images())
        apart = 2 * (codes.e - codes.z).detach() / codes.index.numel()
        at_z, at_e = reached(recipe.codebook_loss(codes), codes.z, codes.e)
        assert at_z is None
        torch.testing.assert_close(at_e, apart)
        at_z, at_e = reached(recipe.commitment_loss(codes), codes.z, codes.e)
        torch.testing.assert_close(at_z, -apart / 4)
        assert at_e is None

    @pytest.mark.parametrize("boundary", ["codebook", "commitment"])
    def test_open_it_moves_both(self, boundary):
        recipe = built(f"stop.{boundary}=none")
        codes = recipe.collect(images())
        at_z, at_e = reached(getattr(recipe, f"{boundary}_loss")(codes), codes.z, codes.e)
        assert torch.equal(at_z, -at_e)

    @pytest.mark.parametrize("boundary", BOUNDARIES)
    def test_every_way_to_cut_trains_alike(self, boundary):
        kept = trained(4)
        for strategy in BOUNDARIES[boundary][1:]:
            if strategy in CUTS:
                other = trained(4, f"stop.{boundary}={strategy}")
                assert all(torch.equal(kept[name], other[name]) for name in kept), strategy

    def test_contract_holds_only_what_there_is(self):
        """Of codes that are means, or scalars, no loss moves a codebook."""
        assert set(built().FLOW) == set(FLOW)
        assert dict(built().FLOW["codebook_loss"]) == FLOW["codebook_loss"]
        average = built("stop.update=average")
        assert set(average.FLOW) == {"reconstruction_loss", "commitment_loss"}
        assert all("codebook" not in row for row in average.FLOW.values())
        assert set(built("recipe.levels=[8,4]").FLOW) == {"reconstruction_loss"}
        assert set(built("recipe.commitment_weight=0").FLOW) == {"reconstruction_loss", "codebook_loss"}


class TestAverage:
    def test_codes_are_the_means_of_what_they_stand_for(self):
        recipe = built("stop.update=average", "recipe.decay=0")
        codes = recipe.collect(images())
        recipe.average(codes)
        for k in codes.index.unique():
            torch.testing.assert_close(recipe.vectors()[k], codes.z[codes.index == k].mean(0))

    def test_running(self):
        recipe = built("stop.update=average")
        before, codes = recipe.vectors().clone(), recipe.collect(images())
        recipe.average(codes)
        chosen = codes.z[codes.index == codes.index[0, 0]]
        expected = 0.99 * before[codes.index[0, 0]] + 0.01 * chosen.sum(0)
        torch.testing.assert_close(recipe.vectors()[codes.index[0, 0]], expected / (0.99 + 0.01 * len(chosen)))

    def test_gradients_move_none_of_them(self):
        averaged = trained(3, "stop.update=average")
        assert torch.equal(averaged["codebook.weight"], build_recipe(*SMALL).codebook.weight)
        assert not torch.equal(averaged["sums"], averaged["codebook.weight"])


class TestScalar:
    @pytest.mark.parametrize("levels", [3, 4, 5, 8])
    def test_so_many_levels_around_zero(self, levels):
        z = torch.linspace(-9, 9, 2001, dtype=torch.double)[:, None]
        found = bounded(z, torch.tensor([levels], dtype=torch.double)).round().unique().long().tolist()
        assert found == list(range(-(levels // 2), (levels - 1) // 2 + 1))
        assert bounded(torch.zeros(1, 1), torch.tensor([levels])).abs() < 1e-6

    def test_index_counts_every_code_once(self):
        recipe = built("recipe.levels=[4,3,5]")
        assert recipe.codes == 60
        recipe.encoder = torch.nn.Identity()
        codes = recipe.collect(torch.randn(999, 4, 3, generator=torch.Generator().manual_seed(0)).double())
        known = {}
        for e, k in zip(codes.e.flatten(0, 1).tolist(), codes.index.flatten().tolist(), strict=True):
            assert known.setdefault(k, e) == e
        assert set(known) == set(range(60))

    def test_gradient_passes_the_rounding(self):
        for strategy, passes in (("detach", True), ("none", False)):
            recipe = built("recipe.levels=[4,3,5]", f"stop.quantised={strategy}")
            (at_first,) = reached(recipe.reconstruction_loss(recipe.collect(images())), recipe.encoder[1][0].weight)
            assert bool(at_first.abs().max() > 1e-12) == passes


def test_bars():
    picture = bars(torch.tensor([0.0, 1, 0.5]), pixels=10)
    assert picture.shape == (1, 1, 10, 12)
    filled = picture[0, 0] == -1
    assert filled.sum(0).tolist() == [0, 0, 0, 0, 10, 10, 10, 0, 5, 5, 5, 0]
    assert filled[5:, 8].all()


@pytest.mark.long
def test_the_estimator_and_the_commitment_are_needed():
    assert max(final("vqvae", "detach", "squared_error")) <= 2
    assert min(final("vqvae", "detach", "perplexity")) >= 20
    assert min(final("vqvae", "none", "squared_error")) >= 4
    assert max(final("vqvae", "none", "perplexity")) <= 5
    held, free = (final("vqvae", arm, "encoder_norm") for arm in ("detach", "no_commitment"))
    assert all(after > 10 * before for before, after in zip(held, free, strict=True))
