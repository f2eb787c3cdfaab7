"""train.py as a user runs it: what a run leaves, exact resume, evaluation, sweeps."""

from collections import defaultdict

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conf_tests.controlled import FEW_IMAGES, PAUSED
from conf_tests.helpers import result, start, train, wait_for

SHORT = ["trainer.max_steps=120", "trainer.val_check_interval=50", "trainer.log_every_n_steps=10"]


def test_every_axis_counts_batches_and_samples_are_drawn(tmp_path):
    train("recipe=gan", *SHORT, "recipe.n_critic=3", "hydra.run.dir=run", cwd=tmp_path)
    steps = defaultdict(list)
    for file in sorted((tmp_path / "run").glob("events.out.tfevents.*")):
        events = EventAccumulator(str(file)).Reload()
        for tag in events.Tags()["scalars"]:
            steps[tag] += [event.step for event in events.Scalars(tag)]
        for tag in events.Tags()["images"]:
            steps[tag] += [event.step for event in events.Images(tag)]
    assert steps["loss/d"] == [9 + 10 * k for k in range(12)]  # Lightning's axis begins at 0
    assert steps["loss/g"] == steps["loss/d"]
    assert steps["Metrics/frechet"] == [49, 99, 120]  # two validations and the test
    assert "epoch" not in steps
    assert steps["samples"] == [50, 100, 120]
    assert result(tmp_path / "run")["steps"] == 120


def test_same_seed_same_weights_and_another_seed_others(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train("recipe=gan", "trainer=smoke", f"seed={seed}", f"hydra.run.dir={name}", cwd=tmp_path)
    a, b, c = (result(tmp_path / name)["weights_sha256"] for name in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    "overrides",
    [
        ["data=digits", "recipe.loss=wasserstein", "recipe.penalty=interpolates", "recipe.n_critic=3"],
        [
            "data=mnist5k",
            *FEW_IMAGES,
            "data.batch_size=48",
            "recipe.network=dcgan",
            "recipe.width=4",
            "recipe.use_spectral_norm=true",
        ],
    ],
    ids=["mlp", "dcgan"],
)
def test_killed_in_mid_epoch_and_resumed_is_bit_exact(overrides, tmp_path):
    run = ["recipe=gan", *overrides, *PAUSED, "trainer.max_steps=20", "trainer.val_check_interval=8"]
    run += ["callbacks.last.every_n_train_steps=5"]
    train(*run, "hydra.run.dir=whole", cwd=tmp_path)
    folder = tmp_path / "killed"
    killed = start(*run, "hydra.run.dir=killed", cwd=tmp_path, out=tmp_path / "out", err=tmp_path / "err", PAUSE="12")
    assert wait_for((folder / "paused").exists, killed), (tmp_path / "err").read_text()
    killed.kill()
    killed.join()
    assert not (folder / "result.json").exists()
    last = folder / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 10
    train(*run, f"ckpt_path={last}", "hydra.run.dir=resumed", cwd=tmp_path)
    whole, resumed = result(tmp_path / "whole"), result(tmp_path / "resumed")
    assert resumed["steps"] == whole["steps"] == 20
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    assert resumed["metrics"] == whole["metrics"]


def test_finished_run_can_be_made_longer_bit_exactly(tmp_path):
    train("recipe=gan", "trainer.max_steps=40", "trainer.val_check_interval=40", "hydra.run.dir=short", cwd=tmp_path)
    longer = ["recipe=gan", "trainer.max_steps=60", "trainer.val_check_interval=40"]
    train(*longer, "hydra.run.dir=whole", cwd=tmp_path)
    ran = train(*longer, "ckpt_path=short/checkpoints/last.ckpt", "hydra.run.dir=longer", cwd=tmp_path)
    assert ran.stderr == ""
    whole, continued = result(tmp_path / "whole"), result(tmp_path / "longer")
    assert continued["steps"] == 60
    assert continued["weights_sha256"] == whole["weights_sha256"]


def test_evaluate_gives_the_metrics_of_the_checkpoint(tmp_path):
    train("recipe=gan", "trainer=smoke", cwd=tmp_path)
    last = "runs/gan/default/seed-0/checkpoints/last.ckpt"
    ran = train("recipe=gan", "mode=evaluate", f"ckpt_path={last}", cwd=tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")
    trained = result(tmp_path / "runs/gan/default/seed-0")
    evaluated = result(tmp_path / "runs/gan/evaluate-default-seed-0-last/seed-0")
    assert evaluated["metrics"]["frechet"] == trained["metrics"]["frechet"]
    assert evaluated["weights_sha256"] == trained["weights_sha256"]
    assert (tmp_path / "runs/gan/evaluate-default-seed-0-last/seed-0/samples.png").read_bytes().startswith(b"\x89PNG")


class TestSweep:
    def test_arms_that_cut_are_identical_and_one_that_raises_is_a_result(self, tmp_path):
        ran = train(
            "-m", "trainer=smoke", "stop.fakes=detach,inference_mode,no_grad", "hydra.sweep.dir=s", cwd=tmp_path
        )
        assert ran.returncode == 0, ran.stderr
        detach, inference, no_grad = (
            result(tmp_path / "s" / f"fakes-{name}" / "seed-0") for name in ("detach", "inference_mode", "no_grad")
        )
        assert detach["weights_sha256"] == no_grad["weights_sha256"]
        assert no_grad["saved_bytes"] < detach["saved_bytes"]
        assert (inference["status"], no_grad["status"]) == ("raised", "finished")
        assert "Use no_grad" in inference["message"]

    def test_named_arms(self, tmp_path):
        ran = train(
            "-m", "compare=gan", "arm=detach,none-late", "seed=0,1", "trainer=smoke", "hydra.sweep.dir=s", cwd=tmp_path
        )
        assert ran.returncode == 0, ran.stderr
        recorded = {
            (arm, seed): result(tmp_path / "s" / arm / f"seed-{seed}")
            for arm in ("detach", "none-late")
            for seed in (0, 1)
        }
        assert recorded["none-late", 1]["stop"]["fakes"] == "none"
        assert recorded["none-late", 1]["stop"]["zero_grad"] == "late"
        assert len({r["weights_sha256"] for r in recorded.values()}) == 4

    def test_all_arms_are_checked_before_the_first_starts(self, tmp_path):
        ran = train("-m", "trainer=smoke", "stop.fakes=detach,detatch", cwd=tmp_path)
        assert ran.returncode == 2
        assert ran.stderr.splitlines()[-1].startswith("error: stop.fakes=detatch: choose one of detach")
        assert not (tmp_path / "runs").exists()


def test_second_run_does_not_touch_the_first(tmp_path):
    for _ in range(2):
        train("recipe=dirac_gan", "trainer=smoke", cwd=tmp_path)
    assert {file.name for file in (tmp_path / "runs/dirac_gan/default").iterdir()} == {"seed-0", "seed-0_2"}


def test_leak_that_the_config_asks_for_is_recorded_and_told_at_the_end(tmp_path):
    ran = train("recipe=gan", "trainer=smoke", "stop.fakes=none", "hydra.run.dir=run", cwd=tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "\ncontract broken by stop.fakes=none: d_loss reaches generator and stop.fakes\n" in ran.stdout
    recorded = result(tmp_path / "run")
    assert recorded["contract"] == {"broken": "d_loss reaches generator and stop.fakes", "flipped": ["fakes"]}
    assert recorded["flow"]["d_loss"]["generator"]["state"] == "open"
    assert recorded["violations"][0].startswith("d_loss reaches generator, which the contract calls blocked: norm ")
    assert "recipes/gan.py" in recorded["violations"][0]


def test_violation_can_stop_the_run(tmp_path):
    raises = "callbacks.flow.on_violation=raise"
    ran = train("recipe=gan", "trainer=smoke", "stop.fakes=none", raises, "hydra.run.dir=run", cwd=tmp_path)
    assert ran.returncode == 1
    recorded = result(tmp_path / "run")
    assert (recorded["status"], recorded["error"], recorded["steps"]) == ("raised", "GradientLeak", 1)
