"""The deep equilibrium recipe: gradients against the series and the solved system, bytes by the audit's own count."""

import pytest
import torch
from hydra.utils import instantiate

from conf_tests.helpers import build_recipe, comparison, config, final, norms
from recipes.parts.labelled import LabelledImages
from stopgrad.runner.meter import SavedBytes

RECIPE = "recipe=deq"
SMALL = [RECIPE, "recipe.width=6", "recipe.solver_steps=400"]


def batch(size=5):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(size, 1, 8, 8, generator=generator) * 2 - 1, torch.arange(size) % 10


def exact(*overrides):
    """A recipe in float64, with a contraction that is not far from its bound, and a batch."""
    recipe = build_recipe(*SMALL, *overrides).double()
    with torch.no_grad():
        recipe.cell.recurrent.weight.mul_(5)
    images, labels = batch()
    return recipe, (images.double(), labels)


def by_hand(recipe, images, labels, steps):
    """Gradients of U and its bias: v (1 + J + ... + J^(steps-1)) D, or with ``steps=None`` v (1 - J)^-1 D."""
    with torch.no_grad():
        x, weight = images.flatten(1), recipe.cell.weight()
        drive = recipe.cell.input(x)
        z = recipe.cell(torch.zeros_like(drive), drive, weight, 400)
        slope = 1 - z.square()  # D, of tanh
        jacobian = slope[:, :, None] * weight  # (B, width, width)
        wrong = recipe.head(z).softmax(1) - torch.nn.functional.one_hot(labels, 10)
        v = wrong @ recipe.head.weight / len(images)
        if steps is None:
            series = torch.linalg.solve((torch.eye(z.shape[1]) - jacobian).mT, v)
        else:
            series, term = torch.zeros_like(v), v
            for _ in range(steps):
                series, term = series + term, (term[:, None] @ jacobian).squeeze(1)
        arriving = series * slope
        return arriving.T @ x, arriving.sum(0)


class TestGradient:
    @pytest.mark.parametrize("steps", [1, 2, 5])
    def test_of_the_last_steps_is_the_beginning_of_the_series(self, steps):
        recipe, (images, labels) = exact(f"recipe.last_steps={steps}")
        recipe.label_loss((images, labels)).backward()
        weight, bias = by_hand(recipe, images, labels, steps)
        torch.testing.assert_close(recipe.cell.input.weight.grad, weight, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(recipe.cell.input.bias.grad, bias, rtol=1e-9, atol=1e-12)
        other = by_hand(recipe, images, labels, steps + 1)[1]
        assert not torch.allclose(recipe.cell.input.bias.grad, other, rtol=1e-4)

    @pytest.mark.parametrize("arm", ["stop.iterates=none", "stop.backward=implicit"])
    def test_of_all_steps_and_the_implicit_one_are_the_solved_system(self, arm):
        recipe, (images, labels) = exact(arm)
        recipe.label_loss((images, labels)).backward()
        weight, bias = by_hand(recipe, images, labels, None)
        torch.testing.assert_close(recipe.cell.input.weight.grad, weight, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(recipe.cell.input.bias.grad, bias, rtol=1e-9, atol=1e-12)

    def test_implicit_reaches_the_recurrent_weights_as_all_steps_do(self):
        found = []
        for arm in ("stop.iterates=none", "stop.backward=implicit", "stop.iterates=no_grad"):
            recipe, images = exact(arm)
            recipe.label_loss(images).backward()
            found.append(recipe.cell.recurrent.weight.grad)
        torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-12)
        assert not torch.allclose(found[0], found[2], rtol=1e-2)

    def test_without_gradients_implicit_finds_the_same_point(self):
        images, _ = batch()
        with torch.no_grad():
            scores = [build_recipe(RECIPE, f"stop.backward={each}")(images) for each in ("steps", "implicit")]
        assert torch.equal(*scores)

    @pytest.mark.parametrize("cut", ["detach", "data"])
    def test_every_cut_is_the_same_bit_for_bit(self, cut):
        gradients = []
        for strategy in ("no_grad", cut, "none"):
            recipe = build_recipe(RECIPE, f"stop.iterates={strategy}")
            recipe.label_loss(batch()).backward()
            gradients.append([parameter.grad for parameter in recipe.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], gradients[1], strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(gradients[0], gradients[2], strict=True))

    @pytest.mark.parametrize("backward", ["steps", "implicit"])
    def test_with_the_solution_cut_the_head_learns_alone(self, backward):
        recipe = build_recipe(RECIPE, "stop.solution=detach", f"stop.backward={backward}")
        found = norms(recipe.label_loss(batch()), recipe.parameter_groups())
        assert found["cell"] is None
        assert found["head"] > 0


def direction(steps, seed):
    """(cosine, norm) of the cell's gradient through the last step and through five, over the implicit one.

    On the first batch, after so many batches of training.
    """
    recipe = build_recipe(RECIPE, f"seed={seed}")
    data = instantiate(config(RECIPE, f"seed={seed}").data, _convert_="all")
    data.setup("fit")
    optimizer, batches = recipe.configure_optimizers(), data.train_dataloader()
    for k in range(steps):
        loss = recipe.label_loss(batches.batch(k))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = []
    for arm in ("stop.backward=implicit", "recipe.last_steps=1", "recipe.last_steps=5"):
        other = build_recipe(RECIPE, arm)
        other.load_state_dict(recipe.state_dict())
        other.label_loss(batches.batch(0)).backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in other.cell.parameters()]))
    exact, *others = found
    return [(float(torch.cosine_similarity(g, exact, dim=0)), float(g.norm() / exact.norm())) for g in others]


def test_direction_of_the_last_step_before_training():
    (cosine, norm), _ = direction(0, seed=0)
    assert cosine > 0.99
    assert 0.97 < norm < 1


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_direction_of_the_last_step_after_training(seed):
    (cosine, norm), (more, longer) = direction(600, seed)
    assert 0.95 < cosine < 0.99 < more
    assert 0.5 < norm < 0.65 < 0.97 < longer < 1


class TestBytes:
    def saved(self, *overrides):
        """Bytes that autograd keeps for backward, as a run's meter counts them."""
        recipe = build_recipe(RECIPE, *overrides)
        count = SavedBytes(recipe)
        with count.hooks:
            recipe.label_loss(batch(128)).backward()
        return count.total

    def test_a_tenth_and_less_at_full_size(self):
        assert self.saved("stop.iterates=none") >= 10 * self.saved()

    def test_of_the_last_step_do_not_grow_with_the_solver_and_of_all_by_one_z_a_step(self):
        last, unrolled = (
            [self.saved(arm, f"recipe.solver_steps={steps}") for steps in (20, 40)]
            for arm in ("stop.iterates=no_grad", "stop.iterates=none")
        )
        assert last[0] == last[1]
        assert unrolled[1] - unrolled[0] == 20 * 128 * 64 * 4
        assert self.saved("stop.backward=implicit", "recipe.solver_steps=20") < unrolled[0] / 2


class TestCell:
    def test_is_a_contraction_wherever_it_begins(self):
        recipe, (images, _) = exact()
        drive, weight = recipe.cell.input(images.flatten(1)), recipe.cell.weight()
        assert weight.abs().sum(1).max().item() == pytest.approx(0.9)
        generator = torch.Generator().manual_seed(1)
        a, b = torch.randn(2, 5, 6, generator=generator).double()
        for _ in range(5):
            before = (a - b).abs().max()
            a, b = (recipe.cell(z, drive, weight, 1) for z in (a, b))
            assert (a - b).abs().max() <= 0.9 * before
        a, b = (recipe.cell(z, drive, weight, 400) for z in (a, b))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
        torch.testing.assert_close(recipe.features(images), a, rtol=0, atol=1e-12)

    def test_rows_that_are_small_enough_stay_as_they_are(self):
        cell = build_recipe(*SMALL).cell
        torch.nn.init.constant_(cell.recurrent.weight, 0.1)
        with torch.no_grad():
            cell.recurrent.weight[0] = 1.0
        assert torch.equal(cell.weight()[1:], cell.recurrent.weight[1:])
        torch.testing.assert_close(cell.weight()[0], torch.full((6,), 0.15))

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            (["recipe.contraction=1"], r"recipe.contraction=1.*: there may be no fixed point; choose below 1"),
            (["recipe.last_steps=60"], r"recipe.last_steps=60: choose from 1 to 59"),
            (["stop.backward=implicit", "recipe.last_steps=2"], r"recipe.last_steps=2: with stop.backward=implicit"),
        ],
    )
    def test_refuses(self, overrides, message):
        with pytest.raises(Exception, match=message):
            build_recipe(RECIPE, *overrides)


def test_labelled_images_keep_their_labels(tmp_path):
    data = LabelledImages(name="digits", shape=(1, 8, 8), batch_size=32, cache=str(tmp_path))
    data.setup("fit")
    images, labels = next(iter(data.train_dataloader()))
    places = [int((data.images == image).flatten(1).all(1).nonzero()[0]) for image in images]
    assert torch.equal(labels, data.labels[places])
    held_out, answers = next(iter(data.val_dataloader()))
    assert len(held_out) == len(answers) == 360
    assert (held_out.flatten(1).sum(1).sort().values == data.held_out_images.flatten(1).sum(1).sort().values).all()


@pytest.mark.long
def test_one_step_does_as_well_as_all_and_the_head_alone_does_not():
    last, unroll, cut = (final("deq", arm, "accuracy") for arm in ("last", "unroll", "cut"))
    assert all(abs(a - b) <= 0.02 and c < a - 0.03 for a, b, c in zip(last, unroll, cut, strict=True))
    assert comparison("deq")["arms"]["unroll"]["cost"]["saved_bytes_ratio"] >= 10
