"""What SECURITY.md promises: a config runs no code of others and writes inside its run, a checkpoint holds no code."""

from __future__ import annotations

import pickle
import re
import time

import pytest
import torch
from hydra import compose, initialize_config_dir

from conf_tests.helpers import PROCESSES, ROOT, train
from recipes.parts.cache import cached
from stopgrad.runner.check import as_run_in
from stopgrad.runner.checkpoints import WholeCheckpoints
from stopgrad.runner.declared import recipe_configs
from stopgrad.runner.errors import InputError
from stopgrad.runner.hydra_internals import PLUGINS
from stopgrad.runner.names import register
from stopgrad.runner.safety import allowed_by, check_target, targets

RUNS_CODE = [
    "os.system",
    "builtins.eval",
    "builtins.exec",
    "subprocess.run",
    "pickle.loads",
    "runpy.run_path",
    "importlib.import_module",
    "torch.hub.load",
    "torch.load",
    "torch.jit.load",
    "torch.os.system",
    "torch.serialization.os.system",
    "torch.utils.cpp_extension.load_inline",
    "torch.utils.collect_env.run",
    "torch.package.PackageImporter",
    "torch.fx.GraphModule",
    "torch.jit.ScriptModule",
    "torch.nn.Module.__init__",
    "torch.nn.Module.load_state_dict",
    "torch.nn.modules.module.torch.hub.load",
    "lightning.pytorch.trainer.trainer.os.system",
    "lightning.pytorch.cli.LightningCLI",
    "lightning.pytorch.loggers.logger.os.system",
    "stopgrad.runner.record.subprocess.run",
    "stopgrad.runner.record.write_whole",
    "stopgrad.runner.launch.follow",
    "stopgrad.runner.safety.importlib.import_module",
    "stopgrad.museum.run",
    "hydra.utils.get_method",
    "hydra.utils.call",
    "hydra.utils.instantiate",
    "hydra.core.utils.run_job",
    "functools.partial",
    "numpy.load",
    "yaml.unsafe_load",
    "conf_tests.helpers.train",
]
COMPOSES = [
    "torch.optim.SGD",
    "torch.optim.adamw.AdamW",
    "torch.optim.lr_scheduler.CosineAnnealingLR",
    "torch.nn.Linear",
    "lightning.pytorch.callbacks.EarlyStopping",
    "lightning.pytorch.loggers.CSVLogger",
    "recipes.gan.GAN",
    "stopgrad.runner.terminal.progress_bar",
    "stopgrad.lightning.FreezeAudit",
    f"{PLUGINS}.basic_launcher.BasicLauncher",
]


@pytest.mark.parametrize("target", RUNS_CODE)
def test_target_that_could_run_anything_is_refused(target):
    with pytest.raises(InputError, match=rf"^recipe\.x\._target_={re.escape(target)}: "):
        check_target("recipe.x._target_", target)


@pytest.mark.parametrize("target", COMPOSES)
def test_target_that_configs_compose_is_not(target):
    check_target("x", target)


@pytest.mark.parametrize("recipe", list(recipe_configs()))
def test_all_targets_of_our_own_configs_pass(recipe):
    register()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        composed = compose("train", [f"recipe={recipe}"], return_hydra_config=True)
    with as_run_in(composed, "run"):
        found = list(targets(composed))
    assert len(found) > 10
    for key, target in found:
        check_target(key, target)


def test_allowed_by_name_alone():
    assert allowed_by(["seed=1", "+allow=[mine,other.part]"]) == ["mine", "other.part"]
    assert allowed_by(["allow=mine"]) == ["mine"]
    check_target("x", "other.part.f", ["other.part"])
    for target in ("other.f", "mineral.f", "other.party.f"):
        with pytest.raises(InputError):
            check_target("x", target, ["mine", "other.part"])


EVIL = "touch {}"
CASES = {
    "recipe.g_optimizer._target_=os.system": "recipe.g_optimizer._target_=os.system: refused, .* allow=[os]",
    "+callbacks.x={a:{b:[{_target_:os.system}]}}": "callbacks.x.a.b[0]._target_=os.system: refused, .*",
    "+logger.x._target_=subprocess.run": "logger.x._target_=subprocess.run: refused, .*",
    "+hydra.callbacks.x._target_=os.system": "hydra.callbacks.x._target_=os.system: refused, .*",
    "+hydra.job.env_set.LD_PRELOAD=x": "hydra.job.env_set: refused, it could run anything; .*",
    "logger.save_dir=/etc": "logger.save_dir=/etc: leads out of the run directory .*",
    "callbacks.last.dirpath=../../x": "callbacks.last.dirpath=../../x: leads out of the run directory .*",
    "callbacks.best.filename=../../../x": "callbacks.best.filename=../../../x: leads out of the run directory .*",
    "+trainer.default_root_dir='~/x'": "trainer.default_root_dir=~/x: leads out of the run directory .*",
    "+trainer.default_root_dir=s3://x/y": "trainer.default_root_dir=s3://x/y: leads out of the run directory .*",
}


@pytest.mark.parametrize(("overrides", "message"), CASES.items(), ids=CASES.keys())
def test_refused_in_one_line_before_anything_is_written(overrides, message, tmp_path):
    ran = train(overrides, cwd=tmp_path)
    assert ran.returncode in (1, 2)
    (line,) = ran.stderr.splitlines()
    assert re.fullmatch("error: " + message.replace("[", r"\[").replace("]", r"\]"), line), line
    assert list(tmp_path.iterdir()) == []


def foreign(tmp_path, text):
    (tmp_path / "compare").mkdir()
    (tmp_path / "compare" / "foreign.yaml").write_text(f"# @package _global_\n{text}")
    arguments = ["--config-dir", str(tmp_path), "-m", "compare=foreign", "arm=a", "trainer=smoke", "hydra.sweep.dir=s"]
    return train(*arguments, cwd=tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "compare: {reference: a, arms: {a: {callbacks: {meter: {_target_: os.system}}}}}",
            "compare.arms.a.callbacks.meter._target_=os.system: refused",
        ),
        (
            "hydra: {callbacks: {x: {_target_: os.system, command: touch evil}}}\n"
            "compare: {reference: a, arms: {a: {}}}",
            "hydra.callbacks.x._target_=os.system: refused",
        ),
        (
            "allow: [os]\ncallbacks: {x: {_target_: os.system, command: touch evil}}\n"
            "compare: {reference: a, arms: {a: {}}}",
            "allow=['os']: a file cannot allow anything",
        ),
        (
            "name: os.system\ncallbacks: {x: {_target_: '${name}', command: touch evil}}\n"
            "compare: {reference: a, arms: {a: {}}}",
            "callbacks.x._target_=os.system: refused",
        ),
    ],
    ids=["in an arm", "in Hydra's section", "allows itself", "by interpolation"],
)
def test_config_from_someone_else_runs_nothing(text, message, tmp_path):
    ran = foreign(tmp_path, text)
    assert ran.returncode in (1, 2)
    assert ran.stderr.splitlines()[-1].startswith(f"error: {message}")
    assert not (tmp_path / "evil").exists()
    assert not (tmp_path / "s").exists()


def test_package_that_is_allowed_runs(tmp_path):
    target = "callbacks.x={_target_:conf_tests.distributed.pair.SharedNoise}"
    refused = train(f"+{target}", "trainer=smoke", "hydra.run.dir=a", cwd=tmp_path)
    assert "allow=[conf_tests]" in refused.stderr
    assert train(f"+{target}", "allow=[conf_tests]", "trainer=smoke", "hydra.run.dir=b", cwd=tmp_path).returncode == 0


class Evil:
    def __reduce__(self):
        return exec, ("open('evil', 'w')",)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("zip.ckpt", "refused, it holds more than tensors and plain values"),
        ("pickle.ckpt", "cannot be read; it is truncated, or no checkpoint"),  # torch's format before 1.6
    ],
)
def test_checkpoint_with_code_runs_nothing(name, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": Evil(), "loops": {}}
    torch.save(content, tmp_path / "zip.ckpt")
    (tmp_path / "pickle.ckpt").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(pickle.UnpicklingError):
        WholeCheckpoints().load_checkpoint(tmp_path / name)
    ran = train(f"ckpt_path={tmp_path / name}", cwd=tmp_path)
    assert ran.stderr == f"error: ckpt_path={tmp_path / name}: {reason}\n"
    assert not (tmp_path / "evil").exists()


def ask(file, number, at_once, told):
    """Say whose number is kept in ``file``."""

    def make():
        time.sleep(0.2)
        return {"x": torch.tensor(number)}

    at_once.wait(60)
    told.put(cached(file, make)["x"].item())


class TestCache:
    def make(self):
        self.made = getattr(self, "made", 0) + 1
        return {"x": torch.arange(3)}

    def test_made_once_and_read_again(self, tmp_path):
        for _ in range(2):
            assert cached(tmp_path / "c" / "x.pt", self.make)["x"].tolist() == [0, 1, 2]
        assert self.made == 1
        assert {file.name for file in (tmp_path / "c").iterdir()} == {"x.pt", ".x.pt.lock"}

    def test_made_once_by_all_who_ask_at_once(self, tmp_path):
        told, at_once = PROCESSES.Queue(), PROCESSES.Barrier(3)
        asking = [PROCESSES.Process(target=ask, args=(tmp_path / "x.pt", n, at_once, told)) for n in range(3)]
        for process in asking:
            process.start()
        numbers = [told.get(timeout=60) for _ in asking]
        for process in asking:
            process.join(60)
        assert len(set(numbers)) == 1

    @pytest.mark.parametrize(
        "damage", [lambda b: b[:-3], lambda b: b[:100] + b"?" + b[101:], lambda b: b"", lambda b: b"x"]
    )
    def test_damaged_is_made_again(self, tmp_path, damage):
        file = tmp_path / "x.pt"
        cached(file, self.make)
        whole = file.read_bytes()
        file.write_bytes(damage(whole))
        assert cached(file, self.make)["x"].tolist() == [0, 1, 2]
        assert self.made == 2
        assert file.read_bytes() == whole

    def test_code_in_it_is_not_run(self, tmp_path):
        import hashlib

        content = pickle.dumps(Evil(), protocol=2)
        (tmp_path / "x.pt").write_bytes(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
        with pytest.raises(pickle.UnpicklingError):
            cached(tmp_path / "x.pt", self.make)
