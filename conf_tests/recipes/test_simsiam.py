"""The simsiam recipe: its losses by hand, each cut bit for bit, teachers, centring, views, pictures."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from conf_tests.helpers import build_recipe, final, norms, train
from recipes.parts.plots import COLOURS, in_the_plane, scatter
from recipes.parts.views import nearest_label, warped
from recipes.simsiam import BOUNDARIES, FLOW

SMALL = ["recipe=simsiam", "recipe.hidden=16", "recipe.outputs=6"]
BYOL = ["recipe=byol", *SMALL[1:]]
DINO = ["recipe=dino", *SMALL[1:]]
CUTS = ["detach", "no_grad", "freeze", "data"]


def batch(size=12, seed=0):
    return torch.rand(size, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def built(*overrides):
    """The recipe in double precision."""
    return build_recipe(*overrides).double()


def loss_of(recipe, images):
    torch.manual_seed(1)
    return recipe.view_loss(images.to(recipe.centre.dtype))


def views_of(recipe, images):
    torch.manual_seed(1)
    return [recipe.view(images.to(recipe.centre.dtype)) for _ in range(2)]


def gradients(*overrides):
    recipe = built(*overrides)
    return torch.autograd.grad(loss_of(recipe, batch()), [*recipe.encoder.parameters(), *recipe.predictor.parameters()])


def trained(steps, *overrides):
    """The recipe after ``steps`` steps of its own training_step."""
    recipe = build_recipe(*overrides)
    optimizer = recipe.configure_optimizers()
    recipe.optimizers = lambda: optimizer
    recipe.manual_backward = lambda loss: loss.backward()
    recipe.trainer = SimpleNamespace(log_every_n_steps=10**9, global_step=1)
    torch.manual_seed(2)
    for k in range(steps):
        recipe.training_step(batch(seed=k), k)
    return recipe


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class TestLoss:
    def test_cosine_by_hand(self):
        """-(cos(p1, z2) + cos(p2, z1)) / 2; BatchNorm sees both views at once."""
        recipe = built(*SMALL)
        z = recipe.encoder(torch.cat(views_of(recipe, batch())))
        (z1, z2), (p1, p2) = z.chunk(2), recipe.predictor(z).chunk(2)
        cosines = [(p * z).sum(1) / p.norm(dim=1) / z.norm(dim=1) for p, z in ((p1, z2), (p2, z1))]
        torch.testing.assert_close(loss_of(recipe, batch()), -sum(c.mean() for c in cosines) / 2)

    def test_cross_entropy_by_hand(self):
        recipe = built(*DINO)
        recipe.centre += torch.arange(6)
        nn.init.normal_(recipe.average[-1].weight)
        views = torch.cat(views_of(recipe, batch()))
        taught = ((recipe.average(views) - torch.arange(6)) / 0.04).softmax(1)
        (t1, t2), (s1, s2) = taught.chunk(2), (recipe.encoder(views) / 0.1).softmax(1).log().chunk(2)
        torch.testing.assert_close(loss_of(recipe, batch()), -((t1 * s2).sum(1) + (t2 * s1).sum(1)).mean() / 2)

    @pytest.mark.parametrize("switch", ["centring", "sharpening"])
    def test_without_the_switch(self, switch):
        """Without centring the centre does nothing; without sharpening both temperatures are one."""
        kept, without = built(*DINO), built(*DINO, f"stop.{switch}=none")
        for recipe in (kept, without):
            recipe.centre += torch.arange(6) * (switch == "centring")
        plain = built(*DINO, *(["recipe.teacher_temperature=0.1"] if switch == "sharpening" else []))
        assert loss_of(without, batch()) == loss_of(plain, batch()) != loss_of(kept, batch())

    @pytest.mark.parametrize("switch", ["centring=none", "sharpening=none"])
    def test_switches_of_dino_do_nothing_to_a_cosine(self, switch):
        assert same(trained(2, *SMALL), trained(2, *SMALL, f"stop.{switch}"))

    def test_one_representation_for_all_is_the_lowest_loss(self):
        recipe = built(*SMALL, "recipe.predictor=null", "stop.target=none")
        nn.init.zeros_(recipe.encoder[-1].weight)
        loss = loss_of(recipe, batch())
        assert loss.item() == pytest.approx(-1, abs=1e-12)
        assert torch.autograd.grad(loss, recipe.encoder[-1].bias)[0].abs().max() < 1e-12


class TestCut:
    def test_leaves_the_gradient_with_the_target_held_fixed(self):
        recipe = built(*SMALL)
        z = recipe.encoder(torch.cat(views_of(recipe, batch())))
        constant = torch.tensor(z.tolist(), dtype=z.dtype).roll(12, 0)
        parameters = [*recipe.encoder.parameters(), *recipe.predictor.parameters()]
        expected = torch.autograd.grad(-F.cosine_similarity(recipe.predictor(z), constant).mean(), parameters)
        for strategy in CUTS:
            found = gradients(*SMALL, f"stop.target={strategy}")
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), strategy

    def test_both_sides_add_up_to_the_whole(self):
        whole, cut = gradients(*SMALL, "stop.target=none"), gradients(*SMALL)
        recipe = built(*SMALL, "stop.target=none", "stop.prediction=detach")
        other = torch.autograd.grad(loss_of(recipe, batch()), list(recipe.encoder.parameters()))
        for a, b, c in zip(whole[: len(other)], cut, other, strict=False):
            torch.testing.assert_close(a, b + c)
        assert all(torch.equal(a, b) for a, b in zip(whole[len(other) :], cut[len(other) :], strict=True))
        assert all(gradient.abs().max() > 1e-6 for gradient in other[:2])

    @pytest.mark.parametrize("config", [SMALL, BYOL, DINO])
    def test_every_way_to_cut_trains_alike(self, config):
        kept = trained(4, *config)
        for strategy in CUTS[1:]:
            assert same(kept, trained(4, *config, f"stop.target={strategy}")), strategy

    @pytest.mark.parametrize("strategy", [s for s in BOUNDARIES["target"] if s not in ("scale", "reverse")])
    @pytest.mark.parametrize("config", [SMALL, BYOL])
    def test_contract_by_gradients(self, config, strategy):
        recipe = built(*config, f"stop.target={strategy}")
        found = norms(loss_of(recipe, batch()), {"encoder": recipe.encoder, "teacher": recipe.teacher})
        assert set(FLOW) == {"view_loss"}
        assert found["encoder"] > 0
        if config is BYOL:
            assert (found["teacher"] is None) == (strategy != "none")

    def test_nothing_to_learn_is_refused(self, tmp_path):
        ran = train("recipe=simsiam", "stop.prediction=detach", cwd=tmp_path)
        assert ran.stderr == (
            "error: stop.prediction=detach: with stop.target=detach nothing learns; add stop.target=none\n"
        )


class TestTeacher:
    def test_average_follows_the_encoder(self):
        recipe = build_recipe(*BYOL)
        expected = [parameter.detach().clone() for parameter in recipe.encoder.parameters()]
        after = [trained(k, *BYOL) for k in (1, 2)]
        for step in after:
            expected = [0.99 * a + 0.01 * b.detach() for a, b in zip(expected, step.encoder.parameters(), strict=True)]
        for found, wanted in zip(after[-1].average.parameters(), expected, strict=True):
            torch.testing.assert_close(found, wanted)

    def test_gradients_that_reach_an_average_move_nothing(self):
        cut, live = trained(3, *BYOL), trained(3, *BYOL, "stop.target=none")
        assert same(cut, live)
        assert all(parameter.grad is None for parameter in cut.average.parameters())
        assert any(parameter.grad.abs().max() > 0 for parameter in live.average.parameters())

    def test_without_decay_it_is_the_encoder(self):
        """An average that decays at once teaches what the encoder itself would."""
        own, copied = trained(5, *SMALL), trained(5, *BYOL, "recipe.decay=0")
        assert own.average is None
        for parameter, copy in zip(own.encoder.parameters(), copied.encoder.parameters(), strict=True):
            assert torch.equal(parameter, copy)
            assert parameter is not copy

    def test_centre_is_the_running_mean_of_what_the_teacher_said(self):
        recipe = build_recipe(*DINO)
        torch.manual_seed(2)
        said = recipe.average(torch.cat([recipe.view(batch()), recipe.view(batch())])).mean(0)
        torch.testing.assert_close(trained(1, *DINO).centre, 0.1 * said.detach())
        assert not trained(1, *SMALL).centre.any()


@pytest.fixture
def utmost(monkeypatch):
    """Every draw is the largest."""
    monkeypatch.setattr(torch, "rand", lambda *size, generator=None: torch.ones(size))


class TestViews:
    images = batch(8)

    def test_at_rest_and_by_a_quarter_turn(self, utmost):
        torch.testing.assert_close(warped(self.images, 0, 0, 0), self.images)
        turned = warped(self.images, torch.pi / 2, 0, 0)
        torch.testing.assert_close(turned, self.images.rot90(1, (2, 3)), atol=1e-5, rtol=0)

    def test_shift_brings_in_the_background(self, utmost):
        shifted = warped(self.images, 0, 0.25, 0)  # a pixel of eight, both ways
        torch.testing.assert_close(shifted[..., :-1, :-1], self.images[..., 1:, 1:])
        assert torch.equal(shifted[..., -1, :], -torch.ones(8, 1, 8))

    def test_scale_takes_the_middle(self, utmost):
        smaller = warped(torch.ones(1, 1, 8, 8), 0, 0, 0.5)
        assert smaller[0, 0, 2:6, 2:6].min() == 1
        assert smaller[0, 0, 0].max() == -1

    def test_each_image_has_its_own(self):
        same_image = self.images[:1].expand(8, -1, -1, -1)
        found = warped(same_image, 0.5, 0.25, 0.2, generator=torch.Generator().manual_seed(0))
        assert len(found.flatten(1).unique(dim=0)) == 8
        assert torch.equal(found, warped(same_image, 0.5, 0.25, 0.2, generator=torch.Generator().manual_seed(0)))


class TestNeighbours:
    def test_the_commonest_label_of_the_nearest(self):
        known = torch.tensor([[1.0, 0], [0.9, 0.1], [0.8, 0.2], [0, 1], [0, 2], [-1, 0]])
        labels = torch.tensor([3, 7, 7, 4, 4, 9])
        asked = torch.tensor([[5.0, 0.1], [0.1, 0.5]])
        assert nearest_label(asked, known, labels, neighbours=3).tolist() == [7, 4]
        assert nearest_label(asked, known, labels, neighbours=1).tolist() == [3, 4]


class TestPicture:
    def test_points_lie_where_they_are(self):
        picture = scatter(torch.tensor([[-1.0, 1], [0, 0], [5, -5]]), torch.tensor([0, 1, 12]), pixels=21)
        assert picture.shape == (1, 3, 21, 21)
        colours = torch.tensor([[c >> 16, c >> 8 & 255, c & 255] for c in COLOURS]) / 127.5 - 1
        for (row, column), colour in (((1, 1), 0), ((10, 10), 1), ((19, 19), 2)):
            square = picture[0, :, row - 1 : row + 2, column - 1 : column + 2]
            assert torch.equal(square, colours[colour][:, None, None].expand(3, 3, 3))
        assert (picture != 1).any(1).sum() == 27

    def test_principal_axes(self):
        generator = torch.Generator().manual_seed(0)
        flat = torch.randn(50, 2, generator=generator, dtype=torch.double) * torch.tensor([3.0, 0.5])
        turn = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.double)).Q[:2]
        found = in_the_plane(flat @ turn + 7)
        assert found.var(0)[0] > found.var(0)[1]
        torch.testing.assert_close(torch.cdist(found, found), torch.cdist(flat, flat))  # nothing is stretched
        assert in_the_plane(torch.ones(9, 4)).abs().max() == 0


@pytest.mark.long
class TestPublished:
    def test_collapse_without_the_cut_and_without_the_predictor(self):
        assert min(final("simsiam", "detach", "spread")) >= 0.7
        for arm in ("none", "no_predictor"):
            assert max(final("simsiam", arm, "spread")) <= 0.1, arm
        pairs = zip(*(final("simsiam", arm, "knn_accuracy") for arm in ("detach", "none")), strict=True)
        assert all(kept >= collapsed + 0.15 for kept, collapsed in pairs)

    def test_dino_needs_both_and_the_cut(self):
        entropies = {
            arm: [final("dino_linear", arm, f"{of}_entropy") for of in ("batch", "sample")]
            for arm in ("detach", "no_centring", "no_sharpening", "live")
        }
        assert min(entropies["detach"][0]) >= 0.99
        assert min(entropies["detach"][1]) >= 0.15
        assert max(entropies["no_centring"][0]) <= 0.6
        assert min(entropies["no_sharpening"][1]) >= 0.99
        assert max(entropies["live"][1]) <= 0.01
