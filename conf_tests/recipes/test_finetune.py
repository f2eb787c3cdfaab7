"""The fine-tuning recipe: the backbone bit for bit, where the cut stands, what is refused."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hydra.utils import instantiate
from torch import nn

from conf_tests.helpers import ROOT, build_recipe, config, final, norms, result, train
from recipes.finetune import BOUNDARIES, FineTune
from recipes.parts.backbones import backbone
from recipes.parts.batches import Batches
from recipes.parts.pretrained import kept_features, pretrained
from stopgrad.audits.freeze import FreezeWatch

CUTS = ["detach", "no_grad", "freeze", "freeze_params", "cached"]
DIGITS = ["recipe=finetune", "data.name=digits", "data.shape=[1,8,8]", f"cache={ROOT / '.cache'}"]
CHOICES = {"stop": {}, "shape": [1, 8, 8], "optimizer": torch.optim.SGD}


def ready(*overrides):
    """A recipe with its pretrained weights, and its data, as a Trainer would have them at the start of a fit."""
    recipe, data = build_recipe(*overrides), instantiate(config(*overrides).data, _convert_="all")
    data.setup("fit")
    recipe.trainer = SimpleNamespace(datamodule=data, global_step=0, log_every_n_steps=1)
    recipe.setup("fit")
    recipe.on_fit_start()
    return recipe, data


def trained(steps, *overrides, watch=None):
    recipe, data = ready(*overrides)
    optimizer = recipe.configure_optimizers()
    if watch is not None:
        watch.append(FreezeWatch(recipe.backbone, [optimizer]))
    batches = Batches(*train_tensors(data), batch_size=data.batch_size, length=steps, seed=data.seed)
    for recipe.trainer.global_step, batch in enumerate(batches):
        recipe.on_train_batch_start(batch, 0)
        optimizer.zero_grad()
        recipe.target_loss(batch).backward()
        optimizer.step()
    recipe.on_fit_end()
    return recipe.eval()


def train_tensors(data):
    return (data.train_inputs, data.train_labels)


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def scores(recipe):
    """What a validation logs."""
    found = {}
    recipe.log = lambda name, value, **kwargs: found.update({name: value.item()})
    with torch.no_grad():
        recipe.validation_step(next(iter(recipe.trainer.datamodule.val_dataloader())), 0)
    return found


class TestFlow:
    @pytest.mark.parametrize("strategy", [s for s in BOUNDARIES["features"] if s != "scale"])
    def test_contract_by_gradients(self, strategy):
        recipe, data = ready(*DIGITS, f"stop.features={strategy}")
        batch = next(iter(data.train_dataloader()))
        recipe.trainer = None
        recipe.backbone.requires_grad_(True)  # the question is what the crossing does
        found = norms(recipe.target_loss(batch), recipe.parameter_groups())
        assert found["head"] > 0
        assert (found["backbone"] is None) == (strategy != "none")

    def test_gate_scales_what_reaches_the_backbone(self):
        gradients = []
        for choice in ("none", "scale:0.25"):
            recipe, data = ready(*DIGITS, f"stop.features={choice}")
            loss = recipe.target_loss((data.train_inputs[:32], data.train_labels[:32]))
            gradients.append(torch.autograd.grad(loss, list(recipe.backbone.parameters())))
        for whole, gated in zip(*gradients, strict=True):
            torch.testing.assert_close(gated, whole / 4, rtol=1e-5, atol=1e-8)


class TestFrozen:
    def test_every_cut_gives_the_same_head_and_the_old_backbone(self):
        reference = trained(30, *DIGITS)
        for strategy in CUTS[1:]:
            assert equal(reference.state_dict(), trained(30, *DIGITS, f"stop.features={strategy}").state_dict()), (
                strategy
            )
        now = scores(reference)
        assert now["health/weights_moved"] == now["health/statistics_moved"] == 0.0
        assert equal({f"backbone.{k}": v for k, v in reference.backbone.state_dict().items()}, reference.origin)
        assert not equal(reference.state_dict(), trained(30, *DIGITS, "seed=1").state_dict())

    @pytest.mark.parametrize("strategy", ["detach", "no_grad"])
    def test_train_mode_loses_the_old_task_under_any_cut(self, strategy):
        before = scores(ready(*DIGITS)[0].eval())["old_task"]
        after = scores(trained(60, *DIGITS, f"stop.features={strategy}", "stop.batchnorm=train"))
        assert before > 0.9
        assert after["health/weights_moved"] == 0.0
        assert after["health/statistics_moved"] > 0.5
        assert after["old_task"] < before - 0.5

    def test_train_puts_the_backbone_back_into_eval(self):
        for choice in ("eval", "train"):
            recipe = build_recipe(*DIGITS, f"stop.batchnorm={choice}")
            recipe.train().eval().train()
            assert recipe.head.training
            assert {m.training for m in recipe.backbone.modules()} == {choice == "train"}

    def test_gradients_of_zero_let_weight_decay_move_the_backbone(self):
        watches = []
        decayed = trained(5, *DIGITS, "stop.features=scale:0", watch=watches)
        drift = watches[0].drifts()[0]
        assert drift.kind == "parameter"
        assert "its gradient is zeros and not None, so weight decay 0.01" in drift.reason
        factor = (1 - 0.01 * 0.01) ** 5  # 1 - lr * weight_decay at each step, and nothing else
        weight = decayed.origin["backbone.stem.0.weight"]
        torch.testing.assert_close(decayed.backbone.stem[0].weight.detach(), weight * factor, rtol=1e-5, atol=1e-8)
        for override in ("stop.features=detach", "recipe.optimizer.weight_decay=0"):
            assert scores(trained(5, *DIGITS, "stop.features=scale:0", override))["health/weights_moved"] == 0.0


class TestUnfreezing:
    @pytest.mark.parametrize(
        ("schedule", "cuts"),
        [("never", [5] * 7), ("at_once", [5, 0, 0, 0, 0, 0, 0]), ("gradual", [5, 4, 3, 2, 1, 0, 0])],
    )
    @pytest.mark.parametrize("strategy", ["detach", "freeze_params"])
    def test_what_is_below_the_cut_stays_and_what_is_above_learns(self, schedule, cuts, strategy):
        recipe, data = ready(*DIGITS, f"stop.unfreeze={schedule}", f"stop.features={strategy}")
        batch = [tensor[:16] for tensor in train_tensors(data)]
        for stage, cut in enumerate(cuts):
            recipe.trainer.global_step = 200 * stage
            assert recipe.cut == cut
            recipe.on_train_batch_start(batch, 0)
            recipe.zero_grad()
            recipe.target_loss(batch).backward()
            for number, part in enumerate(recipe.backbone):
                reached = {p.grad is not None for p in part.parameters()}
                assert reached <= {number >= cut}  # the pool has no parameters
                if strategy == "freeze_params":
                    assert {p.requires_grad for p in part.parameters()} <= {number >= cut}

    def test_gradual_ends_with_every_stage_moved(self):
        still = trained(5, *DIGITS, "stop.unfreeze=gradual", "recipe.unfreeze_after=1")
        assert torch.equal(still.backbone.stem[0].weight, still.origin["backbone.stem.0.weight"])
        moved = trained(6, *DIGITS, "stop.unfreeze=gradual", "recipe.unfreeze_after=1")
        assert not torch.equal(moved.backbone.stem[0].weight, moved.origin["backbone.stem.0.weight"])

    @pytest.mark.parametrize("strategy", ["detach", "freeze_params"])
    def test_resumed_across_an_unfreezing_is_bit_exact(self, strategy, tmp_path):
        run = [*DIGITS[:3], "stop.unfreeze=gradual", f"stop.features={strategy}", "recipe.unfreeze_after=4"]
        run += ["trainer.val_check_interval=10", "callbacks.last.every_n_train_steps=6", "logger=none"]
        train(*run, "trainer.max_steps=14", "hydra.run.dir=whole", cwd=tmp_path)
        train(*run, "trainer.max_steps=6", "hydra.run.dir=begun", cwd=tmp_path)  # unfrozen once, four to come
        last = tmp_path / "begun" / "checkpoints" / "last.ckpt"
        ran = train(*run, "trainer.max_steps=14", f"ckpt_path={last}", "hydra.run.dir=resumed", cwd=tmp_path)
        assert ran.stderr == ""
        whole, resumed = result(tmp_path / "whole"), result(tmp_path / "resumed")
        assert whole["metrics"]["health/weights_moved"] > 0
        assert resumed["weights_sha256"] == whole["weights_sha256"]


class TestCached:
    def test_batches_hold_features_and_the_backbone_is_not_run(self):
        recipe, data = ready(*DIGITS, "stop.features=cached")
        assert data.train_inputs.shape == (1437, 32)
        recipe.backbone.register_forward_hook(lambda *_: pytest.fail("the backbone ran"))
        recipe.target_loss((data.train_inputs[:8], data.train_labels[:8])).backward()

    def test_features_are_kept_under_what_made_them(self, tmp_path):
        torch.manual_seed(0)
        (stages, _), inputs = backbone("resnet", [1, 8, 8], 4), torch.randn(600, 1, 8, 8)
        stages.eval()
        before = torch.get_rng_state()
        computed, loaded = (kept_features(stages, inputs, None, tmp_path) for _ in range(2))
        assert torch.equal(before, torch.get_rng_state())
        assert torch.equal(computed, stages(inputs).detach())
        assert torch.equal(loaded, computed)
        (file,) = tmp_path.iterdir()
        kept_features(stages, inputs + 1, None, tmp_path)
        assert len(list(tmp_path.glob("*.pt"))) == 2
        for other_backbone, other_inputs in (
            (backbone("resnet", [1, 8, 8], 4)[0].eval(), inputs),
            (stages, inputs + 1),
        ):
            with pytest.raises(ValueError, match=r"feature_cache=.*: made by another backbone or from other data"):
                kept_features(other_backbone, other_inputs, file, tmp_path)
        file.write_text("hello")
        with pytest.raises(ValueError, match=r"feature_cache=.*: is no file of features; delete it"):
            kept_features(stages, inputs, file, tmp_path)

    @pytest.mark.parametrize(
        ("key", "choice"),
        [
            ("recipe.augment=True", {"augment": True}),
            ("stop.batchnorm=train", {"stop": {"batchnorm": "train"}}),
            ("stop.unfreeze=gradual", {"stop": {"unfreeze": "gradual"}}),
        ],
    )
    def test_refuses_what_would_change_the_features(self, key, choice):
        stop = {"features": "cached", **choice.get("stop", {})}
        with pytest.raises(ValueError, match=f"{key}: the features would change .*or stop.features=no_grad"):
            FineTune(**(CHOICES | choice | {"stop": stop}))

    @pytest.mark.parametrize("strategy", ["cached", "no_grad"])
    def test_several_updates_a_batch_are_those_of_smaller_batches(self, strategy):
        """20 batches of 64 with four updates each end with the weights of 80 batches of 16."""
        heads = []
        for updates in (4, 1):
            chosen = [f"stop.features={strategy}", f"recipe.updates={updates}", f"data.batch_size={16 * updates}"]
            recipe, data = ready(*DIGITS, *chosen, "recipe.pretrain_steps=5")
            made, steps, counted = recipe.configure_optimizers(), [], []
            made.register_step_post_hook(lambda *_, steps=steps: steps.append(1))
            wrapper = SimpleNamespace(optimizer=made, zero_grad=made.zero_grad)
            wrapper.step = lambda made=made, counted=counted: (counted.append(1), made.step())
            recipe.optimizers, recipe.manual_backward = lambda wrapper=wrapper: wrapper, lambda loss: loss.backward()
            recipe.log = lambda *args, **kwargs: None
            batches = Batches(*train_tensors(data), batch_size=data.batch_size, length=80 // updates)
            for recipe.trainer.global_step, batch in enumerate(batches):
                recipe.training_step(batch, 0)
            assert (len(steps), len(counted)) == (80, 80 // updates)
            heads.append(recipe.head.state_dict())
        assert equal(*heads)

    def test_of_another_backbone_is_refused_before_the_run(self, tmp_path):
        run = [*DIGITS[:3], "stop.features=cached", "recipe.feature_cache=features.pt", "trainer=smoke"]
        assert train(*run, "logger=none", cwd=tmp_path).returncode == 0
        ran = train(*run, "recipe.width=4", "hydra.run.dir=other", cwd=tmp_path)
        assert ran.returncode == 2
        assert ran.stderr.startswith("error: recipe.feature_cache=features.pt: made by another backbone or from other")
        assert len(ran.stderr.splitlines()) == 1
        assert not (tmp_path / "other").exists()


class TestPretrained:
    def test_is_trained_once_and_draws_nothing(self, tmp_path):
        torch.manual_seed(0)
        images, labels = torch.randn(200, 1, 8, 8), torch.randint(10, (200,))
        recipe = FineTune(**CHOICES)
        before = torch.get_rng_state()
        made, loaded = (pretrained(recipe.source_network(), images, labels, steps=3, cache=tmp_path) for _ in range(2))
        assert torch.equal(before, torch.get_rng_state())
        assert equal(made, loaded)
        assert not equal(made, recipe.source_network().state_dict())
        assert len(list(tmp_path.glob("*.pt"))) == 1
        for changed in ({"images": images + 1}, {"labels": 9 - labels}, {"steps": 2}):
            arguments = {"images": images, "labels": labels, "steps": 3} | changed
            pretrained(recipe.source_network(), **arguments, cache=tmp_path)
        assert len(list(tmp_path.glob("*.pt"))) == 4

    def test_does_not_depend_on_the_seed_but_the_head_does(self):
        (first, _), (second, _) = ready(*DIGITS), ready(*DIGITS, "seed=1")
        assert equal(first.backbone.state_dict(), second.backbone.state_dict())
        assert not equal(first.head.state_dict(), second.head.state_dict())


class TestBackbones:
    """torchvision and timm are not installed here: small modules in their place show what is asked of them."""

    def test_of_timm(self, monkeypatch):
        asked = {}

        def create_model(name, **options):
            asked.update(options, name=name)
            return nn.Sequential(nn.Flatten(), nn.Linear(options["in_chans"] * 64, 7))

        monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))
        stages, features = backbone("timm/resnet18.a1_in1k", [3, 8, 8], 8)
        assert (asked["name"], asked["pretrained"], asked["num_classes"]) == ("resnet18.a1_in1k", False, 0)
        assert (len(stages), features) == (1, 7)
        backbone("timm/resnet18", [3, 8, 8], 8, "DEFAULT")
        assert asked["pretrained"] is True

    @pytest.mark.parametrize("nested", [False, True])
    def test_of_torchvision_loses_its_last_layer(self, nested, monkeypatch):
        asked = []

        class Classifier(nn.Module):
            def __init__(self):
                super().__init__()
                self.features = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
                last = nn.Linear(5, 1000)
                self.classifier = nn.Sequential(nn.Dropout(), last) if nested else last

            def forward(self, images):
                return self.classifier(self.features(images))

        models = ModuleType("torchvision.models")
        models.get_model = lambda name, weights: (asked.append((name, weights)), Classifier())[1]
        monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
        monkeypatch.setitem(sys.modules, "torchvision.models", models)
        stages, features = backbone("torchvision/resnet18", [3, 8, 8], 8)
        assert asked == [("resnet18", None)]
        assert features == 5
        assert stages(torch.zeros(2, 3, 8, 8)).shape == (2, 5)
        with pytest.raises(ValueError, match=r"torchvision/resnet18: cannot take images of \[1, 8, 8\] \(mat1 and"):
            backbone("torchvision/resnet18", [1, 8, 8], 8)

    @pytest.mark.parametrize(("package", "name"), [("timm", "timm/resnet18"), ("torchvision", "torchvision/resnet18")])
    def test_that_is_not_installed_names_the_extra(self, package, name, monkeypatch):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ValueError, match=rf"recipe.backbone={name}: needs {package}; .*'stopgrad\[vision\]'"):
            backbone(name, [3, 8, 8], 8)

    @pytest.mark.parametrize(
        ("name", "weights", "message"),
        [
            ("resnett", None, "recipe.backbone=resnett: choose one of resnet, torchvision/NAME, timm/NAME"),
            ("resnet", "DEFAULT", "recipe.weights=DEFAULT: resnet has none to download; choose null"),
        ],
    )
    def test_that_is_not_there_or_does_not_fit(self, name, weights, message):
        with pytest.raises(ValueError, match=message):
            backbone(name, [3, 8, 8], 8, weights)


def test_labels_beyond_the_head_and_nothing_to_unfreeze_are_refused():
    data = instantiate(config(*DIGITS).data, _convert_="all")
    data.setup("fit")
    with pytest.raises(ValueError, match=r"recipe.classes=7: the data has labels up to 9; choose 10"):
        FineTune(**CHOICES, classes=7).check_data(data)
    FineTune(**CHOICES, classes=10).check_data(data)
    with pytest.raises(ValueError, match=r"data.batch_size=64: fewer than recipe.updates=65 steps, on each rank"):
        FineTune(**CHOICES, updates=65).check_data(data)
    with pytest.raises(ValueError, match=r"stop.unfreeze=gradual: with stop.features=none nothing is frozen"):
        FineTune(**(CHOICES | {"stop": {"features": "none", "unfreeze": "gradual"}}))


def test_augmentation_draws_within_the_loss_alone():
    recipe, data = ready(*DIGITS, "recipe.augment=true")
    before = torch.get_rng_state()
    batch = next(iter(data.train_dataloader()))
    assert torch.equal(before, torch.get_rng_state())
    recipe.target_loss(batch)
    assert not torch.equal(before, torch.get_rng_state())


@pytest.mark.long
def test_distorted_features_are_wrong_elsewhere_and_a_probe_first_is_not():
    assert min(final("finetune_linear", "full", "ood_error")) >= 0.3
    for arm in ("probe", "probe-then-full"):
        assert max(final("finetune_linear", arm, "ood_error")) <= 0.01, arm
