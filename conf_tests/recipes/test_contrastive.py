"""Contrastive: what is gathered from other shards, cut and not, against the gradient of the whole batch."""

import lightning as L
import numpy as np
import pytest
import torch
import torch.distributed as dist
from hydra.utils import instantiate
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector

from conf_tests.distributed.pair import on_two_ranks, trainer
from conf_tests.helpers import build_recipe, config, final
from stopgrad.audits.retention import graph_size
from stopgrad.runner.averaging import AveragedGradients
from stopgrad.runner.build import build_recipe as build_from
from stopgrad.runner.build import share
from stopgrad.runner.sharding import FullyShard

SEEDS, PAIRS, FEATURES, TEMPERATURE, SHARDS = range(40), 32, 16, 0.2, 4
CUT, LOCAL, OWN, CACHED = "stop.gathered=detach", "stop.loss=local", "stop.negatives=own", "stop.memory=cached"


def pairs(seed):
    """Independent of each other, so that every pair is a hard one."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(PAIRS, FEATURES, generator=generator, dtype=torch.float64) for _ in range(2))


def gradient(recipe, loss):
    return parameters_to_vector(torch.autograd.grad(loss, list(recipe.parameters())))


def by_hand(recipe, images, texts):
    """CLIP's figure 3: the loss of the whole matrix in one graph."""
    logits = F.normalize(recipe.image(images), dim=1) @ F.normalize(recipe.text(texts), dim=1).T / TEMPERATURE
    diagonal = torch.arange(len(images))
    return (F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2


def against_the_whole_batch(*overrides):
    """Of 40 seeds: cosine, ratio of norms and relative error of the gradient; and the difference of the losses."""
    recipe, found = build_recipe("recipe=contrastive", *overrides), []
    for seed in SEEDS:
        torch.manual_seed(seed)
        for layer in (recipe.image[0], recipe.text[0]):
            layer.reset_parameters()
        batch = pairs(seed)
        loss, whole = recipe.contrastive_loss(batch), by_hand(recipe, *batch)
        got, exact = gradient(recipe, loss), gradient(recipe, whole)
        error = (got - exact).norm() / exact.norm()
        found.append(
            (torch.cosine_similarity(got, exact, dim=0), got.norm() / exact.norm(), error, (loss - whole).detach())
        )
    return torch.tensor(found, dtype=torch.float64).T


def assert_all(values, expected):
    assert (values - expected).abs().max() <= 1e-9


@pytest.mark.parametrize(
    "overrides", [[], [LOCAL], [CACHED], [CACHED, LOCAL], [CACHED, "recipe.chunk_size=5"]], ids=str
)
def test_with_gradient_it_is_the_whole_batch_s(overrides):
    cosine, ratio, error, loss = against_the_whole_batch(*overrides)
    assert_all(cosine, 1)
    assert_all(ratio, 1)
    assert_all(error, 0)
    assert_all(loss, 0)


@pytest.mark.parametrize("shards", [2, 4, 8])
@pytest.mark.parametrize("cut", ["detach", "no_grad", "data"])
def test_without_gradient_the_global_loss_has_one_part_in_W(cut, shards):
    cosine, ratio, _, loss = against_the_whole_batch(f"stop.gathered={cut}", f"recipe.shards={shards}")
    assert_all(cosine, 1)
    assert_all(ratio, 1 / shards)
    assert_all(loss, 0)


def test_a_gate_of_a_lets_1_plus_a_times_W_minus_1_through():
    cosine, ratio, *_ = against_the_whole_batch("stop.gathered=scale:0.5")
    assert_all(cosine, 1)
    assert_all(ratio, (1 + 0.5 * (SHARDS - 1)) / SHARDS)


def test_without_gradient_the_local_loss_goes_another_way_at_the_same_value():
    cosine, _, error, loss = against_the_whole_batch(CUT, LOCAL)
    assert cosine.max() <= 0.992
    assert error.min() >= 0.1
    assert_all(loss, 0)


def test_own_negatives_are_another_loss():
    cosine, _, error, loss = against_the_whole_batch(OWN)
    assert cosine.min() >= 0.64
    assert cosine.max() <= 0.95
    assert error.min() >= 0.1
    assert loss.max() < 0  # fewer to be told apart


def test_live_chunks_differentiate_the_cached_gradient_too():
    _, ratio, error, loss = against_the_whole_batch(CACHED, "stop.chunks=none")
    assert ratio.min() >= 1.8
    assert error.min() >= 1
    assert_all(loss, 0)


@pytest.mark.parametrize("size", [4, 8])
def test_a_chunk_at_a_time_holds_the_towers_graph_of_one_chunk(size):
    recipe, batch = build_recipe("recipe=contrastive", CACHED, f"recipe.chunk_size={size}"), pairs(0)
    known = [*recipe.parameters(), *batch]
    whole = graph_size(recipe.embed(*batch), exclude=known).bytes
    cache = 2 * PAIRS * 8 * 8  # of both towers' features, 8 doubles a pair
    held = [graph_size(part, exclude=known).bytes - cache for part in recipe.parts(*batch, 1)]
    assert held == [whole * size / PAIRS] * (PAIRS // size)


# ---- real ranks

ARMS = [[], [LOCAL], [CUT], [CUT, LOCAL], [OWN], [CACHED], [CACHED, LOCAL], [CACHED, "stop.chunks=none"]]
ENGINES = {"averaged": AveragedGradients, "fsdp": lambda: FullyShard(shard=None), "sharded": FullyShard}


def module_and_data(overrides, ranks):
    shared = share(config("recipe=contrastive", "trainer.max_steps=5", *overrides), ranks)
    torch.manual_seed(shared.seed)
    return build_from(shared), instantiate(shared.data, _convert_="all")


def weights_on_a_rank():
    """After five steps, by engine and arm."""
    found = {}
    for name, engine in ENGINES.items():
        for number, overrides in enumerate(ARMS):
            recipe, data = module_and_data(overrides, 2)
            trainer(engine(), max_steps=5, limit_val_batches=0, precision="64-true").fit(recipe, data)
            found[name, number] = parameters_to_vector(recipe.parameters()).detach().numpy()
    return found


@pytest.mark.filterwarnings("ignore:.*LeafSpec", "ignore:.*does not have many workers")
def test_two_ranks_train_as_one_process_does_by_every_engine():
    ranks, expected = on_two_ranks(weights_on_a_rank), []
    for overrides in ARMS:
        recipe, data = module_and_data(overrides, 1)
        quiet = {
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
        L.Trainer(accelerator="cpu", devices=1, max_steps=5, limit_val_batches=0, **quiet).fit(recipe, data)
        expected.append(parameters_to_vector(recipe.parameters()).detach().numpy())
    for found in ranks:
        for (engine, number), weights in found.items():
            assert np.abs(weights - expected[number]).max() <= 1e-6, (engine, ARMS[number])
    assert np.abs(expected[2] - expected[0]).max() > 1e-3  # and the arms are not all alike


def gradients_on_a_rank():
    """The mean over ranks of the loss's gradient, each rank with half of the pairs, by arm; and the whole batch's."""
    found, (images, texts) = [], pairs(0)
    rank = dist.get_rank()
    for overrides in ARMS:
        recipe = build_recipe("recipe=contrastive", "recipe.shards=2", *overrides)
        mean = gradient(recipe, recipe.contrastive_loss((images[rank::2], texts[rank::2])))
        dist.all_reduce(mean)
        found.append((mean / 2).numpy())
    return found, gradient(recipe, by_hand(recipe, images, texts)).numpy()


def test_the_gradient_through_all_gather_needs_no_factor():
    for found, exact in on_two_ranks(gradients_on_a_rank):
        for number in (0, 1, 5, 6):  # with gradient
            assert np.abs(found[number] - exact).max() <= 1e-9, ARMS[number]
        assert np.abs(found[2] - exact / 2).max() <= 1e-9  # without, global: 1 / W
        assert np.linalg.norm(found[3] - exact) > 0.1 * np.linalg.norm(exact)


def test_shards_that_ranks_or_pairs_cannot_share():
    recipe, (images, texts) = build_recipe("recipe=contrastive", "recipe.shards=5"), pairs(0)
    with pytest.raises(ValueError, match=r"recipe.shards=5: 1 ranks of 32 pairs cannot share them"):
        recipe.contrastive_loss((images, texts))


@pytest.mark.long
def test_published_effect():
    for arm, ratio in (("gathered", 1), ("local", 1), ("cached", 1), ("cut", 0.25), ("no_grad", 0.25)):
        assert final("contrastive", arm, "gradient_ratio") == pytest.approx([ratio] * 3, abs=1e-9)
        assert final("contrastive", arm, "gradient_cosine") == pytest.approx([1] * 3, abs=1e-9)
