"""What each logger is told of a run, and that the comparison draws its curves from whichever it was."""

import json
import sys
from types import SimpleNamespace

import pytest
from lightning.pytorch.loggers import WandbLogger
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from conf_tests.helpers import result, train
from stopgrad.compare import compare
from stopgrad.runner.errors import RunFailed
from stopgrad.runner.loggers import close, log_settings

RUN = ["recipe=dirac_gan", "stop.fakes=none", "trainer.max_steps=40", "trainer.val_check_interval=20"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for logger in ("tensorboard", "csv"):
        ran = train(
            *RUN, f"logger={logger}", "trainer.log_every_n_steps=10", f"hydra.run.dir={logger}/seed-0", cwd=folder
        )
        assert (ran.returncode, ran.stderr) == (0, "")
    return folder


def test_a_plain_run_is_in_the_hparams_of_tensorboard(runs):
    events = EventAccumulator(str(runs / "tensorboard/seed-0"), size_guidance={"tensors": 0}).Reload()
    plugin = events.PluginTagToContent("hparams")
    session = HParamsPluginData.FromString(plugin["_hparams_/session_start_info"]).session_start_info
    assert session.hparams["stop.fakes"].string_value == "none"
    assert session.hparams["recipe.g_optimizer.lr"].number_value == 0.1
    assert session.hparams["seed"].number_value == 0
    experiment = HParamsPluginData.FromString(plugin["_hparams_/experiment"]).experiment
    shown = [metric.name.tag for metric in experiment.metric_infos]
    assert shown == [f"Metrics/{name}" for name in result(runs / "tensorboard/seed-0")["metrics_declared"]]
    assert "Metrics/radius" in shown
    tags = events.Tags()["scalars"]
    assert set(shown) <= set(tags)  # the last value of each is what HParams shows
    assert not {"hp_metric", "epoch", "radius"} & set(tags)
    assert min(tags) in shown  # the first group of the first screen


def test_the_table_keeps_names_as_they_are(runs):
    heading = (runs / "csv/seed-0/csv/metrics.csv").read_text().partition("\n")[0].split(",")
    assert {"epoch", "radius"} <= set(heading)
    assert not [name for name in heading if name.startswith("Metrics/")]


@pytest.mark.parametrize("file", ["tensorboard/seed-0/hparams.yaml", "csv/seed-0/csv/hparams.yaml"])
def test_settings_are_written_as_the_command_line_has_them(runs, file):
    written = OmegaConf.to_container(OmegaConf.load(runs / file))
    assert isinstance(written, dict)
    assert {"stop.fakes": "none", "recipe.updates": "alternating", "trainer.max_steps": 40, "seed": 0}.items() <= (
        written.items()
    )
    assert not any(key.endswith("_") for key in written)


def test_settings_in_the_result_leave_out_what_follows_from_others(runs):
    settings = result(runs / "csv/seed-0")["settings"]
    assert settings["trainer.max_steps"] == 40
    assert "data.steps" not in settings  # it is trainer.max_steps
    assert not any(key.startswith("stop.") for key in settings)


def test_curves_of_both_are_the_same(runs):
    found = compare([runs])
    assert {tag for tag, arms in found.content["curves"].items() if len(arms) == 2} >= {"radius", "loss/d", "loss/g"}
    for arms in found.content["curves"].values():
        tensorboard, table = arms["tensorboard"], arms["csv"]
        assert tensorboard["steps"] == table["steps"]
        assert tensorboard["mean"] == pytest.approx(table["mean"])
    assert found.content["curves"]["radius"]["csv"]["steps"] == [20, 40]
    assert json.loads(json.dumps(found["csv"]["settings"])) == {}


class Refused(Exception):
    """What Weights & Biases raises without a key."""


def wandb_logger(monkeypatch, experiment):
    """A logger whose run at Weights & Biases is made by ``experiment()``."""
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(errors=SimpleNamespace(Error=Refused)))
    monkeypatch.setattr(WandbLogger, "experiment", property(lambda self: experiment()))
    monkeypatch.setenv("WANDB_QUIET", "")
    logger = WandbLogger.__new__(WandbLogger)
    monkeypatch.setattr(logger, "_experiment", None, raising=False)
    return logger


def test_weights_and_biases_without_a_key_is_one_line(monkeypatch):
    def refuse():
        raise Refused("api_key not configured\n  (no-tty)")

    logger = wandb_logger(monkeypatch, refuse)
    with pytest.raises(RunFailed, match=r"^logger=wandb: api_key not configured \(no-tty\)$"):
        log_settings([logger], {}, [])


def test_each_run_of_a_sweep_is_one_of_its_own_at_weights_and_biases(monkeypatch):
    ended = []
    logger = wandb_logger(monkeypatch, lambda: SimpleNamespace(finish=lambda: ended.append(True)))
    close([logger])
    assert ended == []  # it had not begun
    monkeypatch.setattr(logger, "_experiment", SimpleNamespace())
    close([logger, object()])
    assert ended == [True]
