"""Wrong input: one line with key, value and choices; exit status 1 or 2; no traceback; no run directory."""

import re

import pytest
import torch

from conf_tests.helpers import train

CASES = {
    "recipe=gann": "recipe=gann: choose one of .*dirac_gan, .*gan, .*; did you mean gan?",
    "stop.fake=none": "stop.fake=none: no such key; choose one of fakes, .*; did you mean fakes?",
    "stop.fakes=detatch": "stop.fakes=detatch: choose one of detach, no_grad, .*; did you mean detach?",
    "stop.fakes=scale": "stop.fakes=scale: scale needs a finite number; .*",
    "stop.discriminator=detach": "stop.discriminator=detach: choose one of freeze, none",
    "stop.zero_grad=latte": "stop.zero_grad=latte: choose one of timely, late; did you mean late?",
    "data=digitz": "data=digitz: choose one of .*cifar10, digits, .*; did you mean digits?",
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
    "recipe.updates=simultaneous": "recipe.updates=simultaneous: needs recipe.n_critic=1, here it is 3",
    "recipe.updates=simultaneous recipe.n_critic=1 stop.discriminator=none": "stop.discriminator=none: with .*",
    "recipe.g_optimizer.lr=abc": "recipe.g_optimizer.lr=abc: input should be a valid number.*",
    "recipe.g_optimizer.lr=-1": "recipe=gan: Invalid learning rate: -1",
    "recipe._target_=recipes.gan.GANN": "recipe._target_=recipes.gan.GANN: module .* has no attribute 'GANN'",
    "trainer.max_steps=0": "trainer.max_steps=0: input should be greater than 0",
    "trainer.max_stepz=3": "trainer.max_stepz=3: no such key; choose one of max_steps, .*; did you mean max_steps?",
    "trainer=tpu": "trainer=tpu: choose one of .*; did you mean .*?",
    "seed=-1": "seed=-1: input should be greater than or equal to 0",
    "seed=x": "seed=x: input should be a valid integer.*",
    "compile=maybe": "compile=maybe: input should be a valid boolean.*",
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
    "-m compare=gan compare.expect.none=identicle": "compare.expect.none=identicle: choose .*; did you mean identical?",
    "-m compare=gan +compare.expect.nome=broken": "compare.expect=nome: choose one of no_grad, .*; did you mean none?",
    "-m compare=gan +compare.expect.detach=broken": "compare.expect=detach: choose one of no_grad, .*",  # the reference
    "-m compare=gan compare.expect=broken": "compare.expect=broken: give each arm a verdict; write ARM: VERDICT",
    "-m compare=gan ~compare.expect.none": "compare.expect: says nothing of the arm none; write none: raised|broken|.*",
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


def test_traceback_on_request(tmp_path):
    ran = train("stop.fakes=detatch", cwd=tmp_path, HYDRA_FULL_ERROR="1")
    assert ran.returncode != 0
    assert "Traceback" in ran.stderr
