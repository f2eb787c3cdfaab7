"""The loss-logging recipe: what each choice keeps, counted; the same training in all; how often the host reads."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from conf_tests.helpers import build_recipe, final, norms, result, train
from recipes.loss_logging import SWITCHES, History

SMALL = ["recipe=loss_logging", "data.name=digits", "data.shape=[1,8,8]"]
LOOPED = [kind for kind in SWITCHES["history"] if kind != "self_log"]  # that one needs a Trainer
FLAT = {"item", "detach", "deferred"}


def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(16, 1, 8, 8, generator=generator), torch.randint(10, (16,), generator=generator)


def trained(recipe, steps, probe=lambda step: None):
    """``steps`` steps of the recipe's own training_step, on one batch."""
    recipe.trainer = SimpleNamespace(logged_metrics={}, callback_metrics={})
    optimizer = recipe.configure_optimizers()
    found = []
    for step in range(steps):
        loss = recipe.training_step(batch(), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        del loss
        found.append(probe(step))
    return found


class TestKept:
    @pytest.mark.parametrize("kind", LOOPED)
    def test_flat_or_linear_by_the_audits_count(self, kind):
        recipe = build_recipe(*SMALL, f"stop.history={kind}")
        sizes = trained(recipe, 12, lambda step: recipe.graphs())[3:]
        nodes, kept_bytes = ([now[i] - before[i] for before, now in pairwise(sizes)] for i in (0, 1))
        assert len(set(nodes)) == len(set(kept_bytes)) == 1  # the same growth at every step
        assert (nodes[0] > 0) == (kind not in FLAT)
        assert (kept_bytes[0] > 0) == (kind == "before_backward")
        if kind in FLAT:
            assert sizes[-1] == (0, 0)

    def test_a_running_sum_adds_one_node_to_what_a_list_keeps(self):
        found = {}
        for kind in ("running_sum", "after_backward"):
            recipe = build_recipe(*SMALL, f"stop.history={kind}")
            sizes = trained(recipe, 6, lambda step, recipe=recipe: recipe.graphs()[0])
            found[kind] = sizes[-1] - sizes[-2]
        assert found["running_sum"] == found["after_backward"] + 1

    def test_a_live_graph_keeps_the_activations_of_its_images(self):
        growth = {}
        for monitored in (4, 8):
            recipe = build_recipe(*SMALL, "stop.history=before_backward", f"recipe.monitored={monitored}")
            sizes = trained(recipe, 3, lambda step, recipe=recipe: recipe.graphs()[1])
            growth[monitored] = sizes[-1] - sizes[-2]
        assert 1.8 < growth[8] / growth[4] < 2.2

    def test_values_are_those_of_the_losses(self):
        kept = {}
        for kind in LOOPED:
            recipe = build_recipe(*SMALL, f"stop.history={kind}")
            trained(recipe, 5)
            recipe.history.read()
            kept[kind] = torch.tensor(
                [float(torch.as_tensor(value).detach()) for value in recipe.history.kept]
            ).tolist()
            if kind == "running_sum":
                assert recipe.history.total.item() == pytest.approx(sum(kept["item"]), rel=1e-5)
        assert kept["item"] == kept["detach"] == kept["deferred"] == kept["after_backward"]
        assert len(kept["item"]) == len(kept["before_backward"]) == 5
        assert kept["before_backward"] != kept["item"]

    def test_deferred_reads_a_hundred_at_once(self):
        history = History("deferred")
        for number in range(250):
            history.keep(torch.tensor(float(number)))
        assert history.kept == [float(number) for number in range(200)]
        assert len(history.waiting) == 50
        history.read()
        assert history.kept == [float(number) for number in range(250)]


class Reads(TorchFunctionMode):
    """Counts what makes the host wait for a device."""

    NAMES = ("item", "tolist", "cpu", "numpy", "__float__", "__bool__", "__int__", "__index__")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += getattr(func, "__name__", "") in self.NAMES
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("kind", "reads"), [("item", 200), ("deferred", 2), ("detach", 0), ("after_backward", 0)])
def test_synchronisations(kind, reads):
    history = History(kind)
    with Reads() as counted:
        for _ in range(200):
            history.keep(torch.ones(()))
    assert counted.count == reads


def test_the_training_is_the_same_whatever_is_kept():
    reference: dict[str, Tensor] = {}
    for kind in LOOPED:
        recipe = build_recipe(*SMALL, f"stop.history={kind}")
        trained(recipe, 4)
        weights = recipe.state_dict()
        reference = reference or weights
        assert all(torch.equal(reference[name], weights[name]) for name in weights), kind


def test_the_loss_reaches_the_network():
    recipe = build_recipe(*SMALL)
    assert norms(recipe.training_loss(batch()), recipe.parameter_groups())["network"] > 0
    assert not [m for m in recipe.network.modules() if not m.training]
    recipe.validation_loss(batch())
    assert not [m for m in recipe.network.modules() if not m.training]


class TestThroughTrainPy:
    RUN = (
        "trainer.max_steps=24",
        "trainer.val_check_interval=12",
        "callbacks.retention.every_n_steps=8",
        "logger=none",
    )

    def test_the_retention_audit_names_the_place(self, tmp_path):
        ran = train(*SMALL, *self.RUN, "stop.history=running_sum", "hydra.run.dir=run", cwd=tmp_path)
        assert ran.returncode == 0
        assert "module.history.total keeps" in ran.stdout
        assert "add loss.detach() or loss.item()" in ran.stdout
        assert result(tmp_path / "run")["metrics"]["nodes_a_step"] > 10

    def test_self_log_keeps_nothing_and_trains_the_same(self, tmp_path):
        found = {}
        for kind in ("self_log", "item"):
            ran = train(*SMALL, *self.RUN, f"stop.history={kind}", f"hydra.run.dir={kind}", cwd=tmp_path)
            assert (ran.returncode, ran.stderr) == (0, "")
            found[kind] = result(tmp_path / kind)
        assert found["self_log"]["metrics"]["nodes_a_step"] == found["self_log"]["metrics"]["bytes_a_step"] == 0
        assert found["self_log"]["weights_sha256"] == found["item"]["weights_sha256"]
        assert "loss/training_epoch" in found["self_log"]["metrics"]

    def test_labels_beyond_the_network_are_refused(self, tmp_path):
        ran = train(*SMALL, "recipe.classes=4", cwd=tmp_path)
        assert ran.stderr == "error: recipe.classes=4: the data has labels up to 9; choose 10\n"
        assert not (tmp_path / "runs").exists()


@pytest.mark.long
def test_what_is_kept_of_a_step_through_train_py():
    for arm in FLAT:
        for metric in ("nodes_a_step", "bytes_a_step"):
            assert final("loss_logging", arm, metric) == [0.0] * 3, (arm, metric)
    assert min(final("loss_logging", "running_sum", "nodes_a_step")) > 30
    assert min(final("loss_logging", "before_backward", "bytes_a_step")) > 100
