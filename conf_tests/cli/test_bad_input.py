"""Wrong input: one line with key, value and choices; exit status 1 or 2; no traceback; no run directory."""

import importlib.util
import re
import shutil
import subprocess
import sys

import pytest
import torch

from conf_tests.helpers import ROOT, train

SWEEP = "-m compare=gan arm=none seed=0"
CASES = {
    "recipe=gann": "recipe=gann: choose one of .*dirac_gan, .*gan, .*; did you mean gan?",
    "stop.fake=none": "stop.fake=none: no such key; choose one of fakes, .*; did you mean fakes?",
    "stop.fakes=detatch": "stop.fakes=detatch: choose one of detach, no_grad, .*; did you mean detach?",
    "stop.fakes=scale": "stop.fakes=scale: scale needs a finite number; .*",
    "stop.discriminator=detach": "stop.discriminator=detach: choose one of freeze, none",
    "stop.zero_grad=latte": "stop.zero_grad=latte: choose one of timely, late; did you mean late?",
    "data=digitz": "data=digitz: choose one of .*cifar10, .*digits, .*; did you mean digits?",
    "data.name=digitz": "data.name=digitz: input should be 'digits', .*",
    "data.shape=[1,9,9]": r"data.shape=\[1, 9, 9\]: digits has images of \[1, 8, 8\]",
    "data.batch_size=0": "data.batch_size=0: input should be greater than 0",
    "data.batch_size=-3": "data.batch_size=-3: input should be greater than 0",
    "data.batch_size=abc": "data.batch_size=abc: input should be a valid integer.*",
    "data.batch_size=5000": "data.batch_size=5000: each rank has 1437 samples; choose at most 1437",
    "recipe.latent=0": "recipe.latent=0: input should be greater than 0",
    "recipe.loss=hing": "recipe.loss=hing: input should be 'non_saturating', 'hinge' or 'wasserstein'",
    "recipe.los=hinge": "recipe.los=hinge: no such key; choose one of .*; did you mean loss?",
    "recipe.network=dcgan": r"recipe.network=dcgan: images of \[1, 8, 8\]; choose 28x28 or 32x32 images, or mlp",
    "recipe=dirac_gan recipe.updates=simultaneous stop.discriminator=none": "stop.discriminator=none: with .*",
    "recipe.g_optimizer.lr=abc": "recipe.g_optimizer.lr=abc: input should be a valid number.*",
    "recipe.g_optimizer.lr=-1": "recipe=gan: Invalid learning rate: -1",
    "recipe._target_=recipes.gan.GANN": "recipe._target_=recipes.gan.GANN: module .* has no attribute 'GANN'",
    "trainer.max_steps=0": "trainer.max_steps=0: input should be greater than 0",
    "trainer.max_stepz=3": "trainer.max_stepz=3: no such key; choose one of max_steps, .*; did you mean max_steps?",
    "trainer.max_epochs=1": "trainer.max_epochs=1: does nothing; a run is trainer.max_steps long",
    "trainer.log_every_n_steps=0": "trainer.log_every_n_steps=0: input should be greater than 0",
    "trainer.precision=16-mixed": "trainer.precision=16-mixed: fp16 with a scaler needs a GPU; choose bf16-mixed or .*",
    "trainer=tpu": "trainer=tpu: choose one of .*; did you mean .*?",
    "seed=-1": "seed=-1: input should be greater than or equal to 0",
    "seed=x": "seed=x: input should be a valid integer.*",
    "compile=maybe": "compile=maybe: choose one of false, true, update",
    "mode=evalute": "mode=evalute: choose one of train, evaluate; did you mean evaluate?",
    "mode=evaluate": "ckpt_path=null: mode=evaluate needs a checkpoint; write ckpt_path=FILE",
    "ckpt_path=nope.ckpt": "ckpt_path=nope.ckpt: no such file",
    "arm=none": "arm=none: an arm belongs to a comparison; add compare=NAME",
    "compare=gan": "compare=gan: a comparison is many runs; write python train.py -m compare=gan",
    "compare=gan arm=nome": "arm=nome: choose one of detach, .*; did you mean none?",
    "recipe=actor_critic data.id=Nope-v0": "data.id=Nope-v0: Environment `Nope` doesn't exist.*",
    "recipe=actor_critic data.id=CartPole-v9": "data.id=CartPole-v9: Environment version `v9` .* doesn't exist.*",
    "recipe=actor_critic data.id=LunarLander-v3": "data.id=LunarLander-v3: Box2D is not installed, .*",
    "recipe=actor_critic data.id=Ant-v5": "data.id=Ant-v5: MuJoCo is not installed, .*",
    "recipe=actor_critic data.id=ALE/Pong-v5": "data.id=ALE/Pong-v5: Namespace ALE not found. .*",
    "recipe=actor_critic data.id=json:X-v0": "data.id=json:...: refused, it could run anything; .*",
    "recipe=actor_critic data.id=json:X-v0 allow=[json]": "data.id=json:X-v0: Environment `X` doesn't exist.*",
    "recipe=actor_critic data.id=Blackjack-v1": "data.id=Blackjack-v1: observations are Tuple; choose .* with Box",
    "recipe=actor_critic data.num_envs=4": "recipe.minibatch=512: a rollout has 64 x 4 = 256 steps; .*",
    "recipe=actor_critic recipe.rollout=1": "recipe.rollout=1: input should be greater than or equal to 2",
    "recipe=actor_critic recipe.gae_lambda=1.1": "recipe.gae_lambda=1.1: input should be less than or equal to 1",
    "recipe=actor_critic stop.trunk=detach": "stop.trunk=detach: no trunk is shared with recipe.network=separate; .*",
    "recipe=actor_critic stop.target=detach_": "stop.target=detach_: choose one of no_grad, .*; did you mean detach?",
    "recipe=actor_critic data=digits": "Interpolation key .data.id. not found .* recipe.environment .*",
    "-m compare=gann": "compare=gann: choose one of .*gan.*; did you mean gan?",
    "lr=0.1": "lr=0.1: no such key; did you mean recipe.g_optimizer.lr or recipe.d_optimizer.lr?",
    "recipe.batchsize=3": "recipe.batchsize=3: no such key; did you mean data.batch_size?",
    "logger=tensorbord": "logger=tensorbord: choose one of csv, none, tensorboard, wandb; did you mean tensorboard?",
    f"{SWEEP} compare.expect.none=identicle": "compare.expect.none=identicle: choose .*; did you mean identical?",
    f"{SWEEP} +compare.expect.nome=broken": "compare.expect=nome: choose one of no_grad, .*; did you mean none?",
    f"{SWEEP} +compare.expect.detach=broken": "compare.expect=detach: choose one of no_grad, .*",  # the reference
    f"{SWEEP} compare.expect=broken": "compare.expect=broken: give each arm a verdict; write ARM: VERDICT",
    f"{SWEEP} ~compare.expect.none": "compare.expect: says nothing of the arm none; write none: raised|broken|.*",
    "foo=1": "foo=1: no such key; choose one of mode, .*",
    "stop.fakes": "Error parsing override 'stop.fakes' missing EQUAL.*; write key=value",
    "hydra.run.dir=/proc/x": "hydra.run.dir=/proc/x: cannot be written: .*",
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A good checkpoint and bad ones: truncated, text, of another program, with code in it."""
    folder = tmp_path_factory.mktemp("checkpoints")
    train("trainer=smoke", "hydra.run.dir=run", cwd=folder)
    good = folder / "run" / "checkpoints" / "last.ckpt"
    (folder / "truncated.ckpt").write_bytes(good.read_bytes()[:5000])
    (folder / "text.ckpt").write_text("hello")
    torch.save({"model": torch.zeros(1)}, folder / "foreign.ckpt")
    torch.save({"state_dict": print}, folder / "code.ckpt")
    return folder


def refused(ran, folder, message):
    assert ran.returncode in (1, 2)
    (line,) = ran.stderr.splitlines()
    assert re.fullmatch("error: " + message.replace("?", r"\?"), line), line
    assert ran.stdout == ""
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(("overrides", "message"), CASES.items(), ids=CASES.keys())
def test_one_line(overrides, message, tmp_path):
    refused(train(*overrides.split(" "), cwd=tmp_path), tmp_path, message)


def test_a_callback_of_the_second_arm_alone(tmp_path):
    """What was built for the first arm is not built again; what is otherwise is."""
    ran = train("-m", "recipe=dirac_gan", "callbacks.ranks.every_n_steps=5,0", cwd=tmp_path)
    assert ran.returncode == 2
    assert ran.stderr.splitlines() == [
        "error: every_n_steps=0: choose a number from 1, or None for the first batch alone"
    ]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("truncated", "cannot be read; it is truncated, or no checkpoint"),
        ("text", "cannot be read; it is truncated, or no checkpoint"),
        ("foreign", r"no checkpoint of a run; choose one of its checkpoints/\*.ckpt"),
        ("code", "refused, it holds more than tensors and plain values"),
    ],
)
def test_bad_checkpoint(name, message, checkpoints, tmp_path):
    file = checkpoints / f"{name}.ckpt"
    refused(train(f"ckpt_path={file}", cwd=tmp_path), tmp_path, f"ckpt_path={file}: {message}")


def test_checkpoint_of_another_size(checkpoints, tmp_path):
    file = checkpoints / "run" / "checkpoints" / "last.ckpt"
    message = (
        rf"ckpt_path={file}: written by another recipe or size: average.0.bias is \[256\] there and \[64\] here; .*"
    )
    refused(train(f"ckpt_path={file}", "recipe.width=64", cwd=tmp_path), tmp_path, message)


def test_data_that_needs_torchvision_or_network(tmp_path):
    message = "data.name=mnist: (needs torchvision; .*|could not be downloaded .*)"
    refused(train("data=mnist", f"cache={tmp_path / 'c'}", cwd=tmp_path), tmp_path, message)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_a_logger_that_is_not_installed(tmp_path):
    refused(train("logger=wandb", cwd=tmp_path), tmp_path, "logger=wandb: Requirement 'wandb.*' not met. .*")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project of its own, without ``gan.yaml``, and with recipes that cannot be used."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "configs", folder / "configs")
    shutil.copytree(ROOT / "recipes", folder / "recipes", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", folder)
    recipes = folder / "configs" / "recipe"
    gan = (recipes / "gan.yaml").read_text()
    (recipes / "gan.yaml").unlink()
    (recipes / "gone.yaml").write_text(gan.replace("recipes.gan.GAN", "recipes.gone.Gone"))
    (recipes / "broken.yaml").write_text(gan.replace("recipes.gan.GAN", "recipes.broken.Broken"))
    (recipes / "computed.yaml").write_text(gan.replace("recipes.gan.GAN", "recipes.computed.Computed"))
    (recipes / "odd.yaml").write_text("x: [")
    (recipes / "empty.yaml").write_text("")
    (folder / "recipes" / "broken.py").write_text("def (:")
    (folder / "recipes" / "computed.py").write_text("BOUNDARIES = dict(fakes=['detach'])")
    return folder


class TestLeftovers:
    """A recipe's config whose module is gone or broken stops that recipe alone."""

    def start(self, *arguments, cwd):
        command = [sys.executable, "train.py", *arguments]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=100)

    @pytest.mark.parametrize("option", ["--help", "-h"])
    def test_help_names_them_and_goes_on(self, option, project):
        ran = self.start(option, cwd=project)
        assert (ran.returncode, ran.stderr) == (0, "")
        said = " ".join(ran.stdout.split())
        for recipe, why in {
            "gone": "recipe._target_=recipes.gone.Gone: no module 'recipes.gone'; write package.module.Class",
            "broken": f"{project}/recipes/broken.py: cannot be read: invalid syntax (broken.py, line 1)",
            "computed": f"{project}/recipes/computed.py: BOUNDARIES is read without being run; write it as a literal",
            "odd": "while parsing a flow node expected the node content, ",
            "empty": "recipe._target_=None: no module ''; ",
        }.items():
            assert f" {recipe} cannot be used: {why}" in said
        assert " td should the gradient follow the bootstrap target? " in said
        examples = ran.stdout.partition("Examples:\n")[2].splitlines()
        assert examples[0] == "  python train.py recipe=actor_critic stop.target=none"
        assert examples[3] == "  python train.py -m compare=actor_critic"

    def test_other_recipes_go_on(self, project):
        assert self.start("recipe=dirac_gan", "trainer=smoke", cwd=project).returncode == 0

    def test_each_is_one_line_where_it_is_asked_for(self, project):
        line = "error: recipe._target_=recipes.gone.Gone: No module named 'recipes.gone'\n"
        assert self.start("recipe=gone", cwd=project).stderr == line
        assert self.start(cwd=project).stderr.startswith("error: recipe=gan: choose one of actor_critic, ")


def test_traceback_on_request(tmp_path):
    ran = train("stop.fakes=detatch", cwd=tmp_path, HYDRA_FULL_ERROR="1")
    assert ran.returncode != 0
    assert "Traceback" in ran.stderr


def test_allow_null_allows_nothing(tmp_path):
    ran = train("recipe=dirac_gan", "allow=null", "recipe._target_=shutil.rmtree", cwd=tmp_path)
    assert ran.returncode == 2
    assert "Traceback" not in ran.stderr
    ran = train("recipe=dirac_gan", "allow=null", "trainer=smoke", "logger=none", "trainer.max_steps=2", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
