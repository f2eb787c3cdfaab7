"""What recipes share: batches in memory, the hash of weights, saved bytes, random states, picture grids."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from conf_tests.helpers import build_recipe
from recipes.parts.batches import Batches
from recipes.parts.images import Images, read_images
from recipes.parts.labels import check_labels
from stopgrad.runner.meter import SavedBytes
from stopgrad.runner.record import explained, weights_sha256
from stopgrad.runner.samples import image_grid, save_grid
from stopgrad.runner.streams import RandomStreams

NUMBERS = torch.arange(10)


class TestBatches:
    def test_a_pass_shows_each_sample_once_in_a_fresh_order(self):
        first, second = (
            torch.cat([Batches(NUMBERS, batch_size=5).batch(k) for k in range(2 * p, 2 * p + 2)]) for p in (0, 1)
        )
        assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(10))
        assert first.tolist() != second.tolist()

    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_the_order_of_a_pass_is_numpys_by_seed_and_pass(self, count):
        """However few there are: of one sample no order is drawn."""
        for a_pass, batch in enumerate(Batches(NUMBERS[:count], batch_size=count, length=6, seed=4)):
            assert batch.tolist() == np.random.default_rng((4, a_pass)).permutation(count).tolist()

    def test_every_batch_is_whole(self):
        assert [len(b) for b in Batches(NUMBERS, batch_size=4, length=7)] == [4] * 7

    def test_order_depends_on_the_seed(self):
        a, b, c = (torch.stack(list(Batches(NUMBERS, batch_size=5, length=6, seed=s))) for s in (1, 1, 2))
        assert torch.equal(a, b)
        assert not torch.equal(a, c)

    @pytest.mark.parametrize("at", [0, 1, 2, 5])
    def test_state_is_the_position(self, at):
        whole = list(Batches(NUMBERS, batch_size=4, length=7))
        begun = Batches(NUMBERS, batch_size=4, length=7)
        for _, _ in zip(range(at), begun, strict=False):
            pass
        continued = Batches(NUMBERS, batch_size=4, length=7)
        continued.load_state_dict({"position": at})
        for expected, found in zip(whole[at:], continued, strict=False):
            assert torch.equal(expected, found)

    def test_position_counts_what_was_yielded(self):
        batches = Batches(NUMBERS, batch_size=2, length=5)
        iterator = iter(batches)
        next(iterator), next(iterator)
        assert batches.state_dict() == {"position": 2}

    def test_ranks_share_each_pass(self):
        ranks = [Batches(NUMBERS, batch_size=5, rank=r, world_size=2) for r in (0, 1)]
        assert sorted(torch.cat([rank.batch(0) for rank in ranks]).tolist()) == list(range(10))

    def test_tensors_stay_together(self):
        for x, y in Batches(NUMBERS, NUMBERS * 10, batch_size=3, length=4):
            assert torch.equal(x * 10, y)

    def test_draws_nothing_from_the_global_stream(self):
        before = torch.get_rng_state()
        list(Batches(NUMBERS, batch_size=5, length=4))
        assert torch.equal(before, torch.get_rng_state())

    def test_too_few_samples(self):
        with pytest.raises(ValueError, match=r"data\.batch_size=6: each rank has 5 samples; choose at most 5"):
            Batches(NUMBERS, batch_size=6, world_size=2)


def test_images_are_split_and_scaled(tmp_path):
    data = Images(name="digits", cache=str(tmp_path))
    data.setup("fit")
    assert data.images.shape == (1437, 1, 8, 8)
    assert data.held_out_images.shape == (360, 1, 8, 8)
    assert (data.images.min(), data.images.max()) == (-1, 1)
    assert torch.bincount(data.labels).min() > 100


def test_download_without_network_is_one_line(tmp_path, monkeypatch):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "datasets.py").write_text(
        "from urllib.error import URLError\n"
        "def MNIST(root, train, download): raise URLError('no route to host')\n"
        "def CIFAR10(root, train, download): raise RuntimeError('File not found or corrupted.')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"data.name=mnist: could not be downloaded .*no route.*choose digits"):
        read_images("mnist", tmp_path)
    with pytest.raises(ValueError, match=r"data.name=cifar10: could not be downloaded \(File not found"):
        read_images("cifar10", tmp_path)


class TestLabels:
    DOMAINS = SimpleNamespace(train_labels=NUMBERS, domain="source")

    def test_those_that_fit_pass(self):
        check_labels(self.DOMAINS, 10, "source", "target")
        check_labels(SimpleNamespace(train_labels=NUMBERS), 10, "both")  # of one domain alone

    @pytest.mark.parametrize(
        ("data", "classes", "domains", "message"),
        [
            (Images(), 10, ["source"], "needs labels, and batches of Images have none; choose data=shifted_mnist5k"),
            (DOMAINS, 10, ["both"], "data.domain=source: its batches do not fit the recipe; choose both"),
            (DOMAINS, 10, ["target", "both"], "data.domain=source: .*; choose target or both"),
            (DOMAINS, 9, ["source"], "recipe.classes=9: the data has labels up to 9; choose 10"),
        ],
    )
    def test_those_that_do_not_say_what_to_choose(self, data, classes, domains, message):
        with pytest.raises(ValueError, match=message):
            check_labels(data, classes, *domains)

    @pytest.mark.parametrize("recipe", ["branch", "finetune", "loss_logging"])
    def test_are_asked_for_before_a_run(self, recipe):
        wrong = "target" if recipe == "branch" else "both"
        built = build_recipe(f"recipe={recipe}")
        with pytest.raises(ValueError, match="needs labels, and batches of Images have none"):
            built.check_data(Images())
        with pytest.raises(ValueError, match=f"data.domain={wrong}: its batches do not fit"):
            built.check_data(SimpleNamespace(train_labels=NUMBERS, domain=wrong))


class TestWeightsHash:
    def test_equal_weights_equal_hash(self):
        net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        twin = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        twin.load_state_dict(net.state_dict())
        assert weights_sha256(net) == weights_sha256(twin)

    @pytest.mark.parametrize("change", ["one ulp", "buffer", "name", "shape", "dtype"])
    def test_any_change_shows(self, change):
        net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        before = weights_sha256(net)
        with torch.no_grad():
            if change == "one ulp":
                net[0].weight[0, 0] = torch.nextafter(net[0].weight[0, 0], torch.tensor(9.0))
            elif change == "buffer":
                net[1].running_mean[0] += 1
            elif change == "name":
                net = nn.ModuleDict({"a": net[0], "b": net[1]})
            elif change == "shape":
                net[0].weight.data = net[0].weight.data.reshape(1, 4)
            else:
                net[1].num_batches_tracked = net[1].num_batches_tracked.double()
        assert weights_sha256(net) != before


class TestSavedBytes:
    def test_counts_distinct_storage_beyond_the_weights(self):
        net = nn.Linear(3, 5)
        x = torch.randn(7, 3, requires_grad=True)
        saved = SavedBytes(net)
        with saved.hooks:
            y = net(x)  # saves x (and the weight, which does not count)
            loss = (y * y.view(7, 5)).sum()  # saves y twice: one storage
        assert saved.total == 4 * (7 * 3 + 7 * 5)
        loss.backward()
        assert torch.equal(x.grad, 2 * (y @ net.weight).detach())

    def test_write_in_place_is_still_refused(self):
        x = torch.ones(3, requires_grad=True)
        with SavedBytes(nn.Identity()).hooks:
            y = x * 2
            loss = (y * y).sum()
        y.detach().zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_random_states_are_restored_and_plain():
    def draw():
        return random.random(), np.random.rand(), np.random.randn(), torch.rand(1).item()

    np.random.randn()  # leaves a cached Gaussian behind
    streams = RandomStreams()
    checkpoint = {"loops": {"fit_loop": {"state_dict": {"combined_loader": [{"position": 3}]}}}}
    streams.on_save_checkpoint(trainer := SimpleNamespace(global_rank=0, world_size=1), None, checkpoint)
    expected = draw()
    checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"] = ["of another rank"]
    streams.on_load_checkpoint(trainer, None, checkpoint)
    assert checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"] == [{"position": 3}]
    streams.on_train_batch_start(trainer)
    assert draw() == expected
    assert draw() != expected
    streams.on_train_batch_start(trainer)  # restored once only
    assert draw() != expected


def test_grid_is_square_and_enlarged(tmp_path):
    images = torch.linspace(-1, 1, 5).reshape(5, 1, 1, 1).expand(5, 1, 8, 8)
    grid = image_grid(images)
    assert grid.shape == (1, 2 * 34, 3 * 34)
    assert [grid[0, 17, 17].item(), grid[0, 17, 85].item(), grid[0, 51, 51].item()] == [0, 0.5, 1]
    save_grid(tmp_path / "grid.png", images)
    assert (tmp_path / "grid.png").stat().st_size > 50


def test_only_inference_errors_are_explained():
    stop = {"fakes": "inference_mode", "d": "freeze"}
    said = explained(RuntimeError("Inference tensors cannot be saved for backward. To work around ..."), stop)
    assert said.startswith("stop.fakes=inference_mode: Inference tensors cannot be saved for backward,")
    assert explained(RuntimeError("shapes differ\nmore"), stop) == "shapes differ"
