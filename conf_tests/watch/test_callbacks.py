"""Callbacks of Lightning and transformers: a fit tells what ``python -m stopgrad run`` tells, once, and is the same."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

GAN = """
    import sys
    import lightning as L
    import torch
    from torch import nn
    from torch.nn.functional import softplus
    from torch.utils.data import DataLoader
    from stopgrad.lightning import FlowAudit, loss_name

    class Gan(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.G, self.D = nn.Linear(4, 2), nn.Linear(2, 1)

        def training_step(self, batch, index):
            g_opt, d_opt = self.optimizers()
            d_loss = softplus(self.D(self.G(torch.randn(len(batch), 4)))).mean() + softplus(-self.D(batch)).mean()
            d_opt.zero_grad()
            self.manual_backward(d_loss)
            d_opt.step()
            g_loss = softplus(-self.D(self.G(torch.randn(len(batch), 4)))).mean()
            with NAMED:
                self.manual_backward(g_loss)
            g_opt.step()
            g_opt.zero_grad()
            if index == 3 and "raise" in sys.argv:
                g_loss.backward()

        def configure_optimizers(self):
            g_opt = torch.optim.SGD(self.G.parameters(), lr=0.1)
            d_opt = torch.optim.SGD(self.D.parameters(), lr=0.1)
            return g_opt, d_opt

    L.seed_everything(0, verbose=False)
    model = Gan()
    flow = [FlowAudit()] if "flow" in sys.argv else []
    options = dict(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    for _ in range(2 if "twice" in sys.argv else 1):
        trainer = L.Trainer(max_epochs=1, callbacks=flow, enable_model_summary=False, **options)
        trainer.fit(model, DataLoader(torch.randn(64, 2), batch_size=8))
    print("bits", sum(p.double().sum().item() for p in model.parameters()).hex(), torch.rand(1).item().hex())
    print("callback", [(f.name, f.severity) for f in flow[0].findings] if flow else None)
"""
LEAK = "g_opt stepped G on d_loss's gradient as well, in 8 of 8 steps"
FOUND = [("late_zero_grad", "error"), ("gradient_through", "note")]


def ran(folder: Path, source: str, *words: str, watched: bool = False) -> subprocess.CompletedProcess[str]:
    (folder / "train.py").write_text(textwrap.dedent(source))
    run = ["-m", "stopgrad", "run", "--json", "report.json"] if watched else []
    command = [sys.executable, "-W", "ignore", *run, "train.py", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def bits(text: str) -> list[str]:
    return re.findall(r"^bits .*$", text, re.M)


class TestLightning:
    SOURCE = GAN.replace("NAMED", "torch.enable_grad()")

    @pytest.fixture(autouse=True)
    def _needs(self) -> None:
        pytest.importorskip("lightning")

    def test_the_end_of_a_fit_tells_what_run_tells_and_not_a_bit_is_changed(self, tmp_path: Path) -> None:
        alone, fit = ran(tmp_path, self.SOURCE), ran(tmp_path, self.SOURCE, "flow")
        assert bits(fit.stdout) == bits(alone.stdout) != []
        assert fit.stdout.count("stopgrad: 8 cycles") == 1
        line = 1 + next(i for i, text in enumerate(self.SOURCE.splitlines()) if "self.manual_backward(d_loss)" in text)
        assert f"error: train.py:{line}: {LEAK}" in fit.stdout
        assert re.search(r"^d_loss  open .*  open .*\ng_loss  open", fit.stdout, re.M)
        assert f"callback {FOUND}" in fit.stdout
        run = ran(tmp_path, self.SOURCE, watched=True)
        told = run.stderr[run.stderr.index("stopgrad: 8 cycles") :].strip()
        assert told in fit.stdout  # to the letter

    def test_under_run_the_outer_one_tells_alone(self, tmp_path: Path) -> None:
        run = ran(tmp_path, self.SOURCE, "flow", watched=True)
        assert "cycles" not in run.stdout
        assert f"callback {FOUND}" in run.stdout
        assert run.stderr.count("stopgrad: 8 cycles") == 1
        found = json.loads((tmp_path / "report.json").read_text())["findings"]
        assert [(f["name"], f["severity"]) for f in found] == FOUND

    def test_each_of_two_fits_is_told(self, tmp_path: Path) -> None:
        assert ran(tmp_path, self.SOURCE, "flow", "twice").stdout.count(LEAK) == 2

    def test_an_exception_ends_with_the_report_and_its_own_traceback(self, tmp_path: Path) -> None:
        fit = ran(tmp_path, self.SOURCE, "flow", "raise")
        assert fit.returncode == 1
        assert fit.stdout.count("stopgrad: 4 cycles") == 1
        assert "[backward_twice]" in fit.stdout
        assert "Trying to backward through the graph a second time" in fit.stderr
        assert fit.stderr == ran(tmp_path, self.SOURCE, "raise").stderr

    def test_a_name_that_is_given_comes_first(self, tmp_path: Path) -> None:
        fit = ran(tmp_path, GAN.replace("NAMED", 'loss_name("generator_loss")'), "flow")
        assert re.search(r"^generator_loss  open", fit.stdout, re.M)
        assert "g_loss  " not in fit.stdout


RETURNS = {
    "return loss": "loss",
    'return {"loss": total, "log": 1}': "total",
    "return total / 2": "total",
    "return loss if index else total": "loss",
    "return self.net(batch).mean()": "loss",
    "if index: return loss\n        return total": "loss",
}


@pytest.mark.parametrize("returned", RETURNS)
@pytest.mark.filterwarnings("ignore")
def test_an_automatic_loss_is_called_as_training_step_returns_it(
    returned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    L = pytest.importorskip("lightning")
    from torch import nn, randn
    from torch.optim import SGD
    from torch.utils.data import DataLoader

    from stopgrad.lightning import FlowAudit

    (tmp_path / "automatic.py").write_text(
        f"def training_step(self, batch, index):\n    if True:\n"
        f"        loss = total = self.net(batch).square().mean()\n        {returned}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "automatic", raising=False)
    from automatic import training_step  # pyright: ignore[reportMissingImports]

    def optimizers(self: Any) -> SGD:
        return SGD(self.parameters(), lr=0.1)

    members = {"training_step": training_step, "configure_optimizers": optimizers}
    module = type("Automatic", (L.LightningModule,), members)()
    module.net = nn.Linear(2, 1)
    flow = FlowAudit(on_violation="record")
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    L.Trainer(max_steps=3, accelerator="cpu", callbacks=[flow], **options).fit(module, DataLoader(randn(24, 2), 8))
    assert flow.report is not None
    (row,) = flow.report.losses
    assert (row.name, row.file, row.line) == (RETURNS[returned], str(tmp_path / "automatic.py"), 4)


LORA = """
    import sys, tempfile
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
    from stopgrad.huggingface import FlowCallback

    def fit(callbacks, **options):
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=20, n_positions=16, n_embd=16, n_layer=2, n_head=2)
        lora = LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
        model = get_peft_model(GPT2LMHeadModel(config), lora)
        ids = torch.randint(0, 20, (64, 12))
        options = dict(max_steps=6, per_device_train_batch_size=4, learning_rate=0.1, logging_steps=1) | options
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(folder, report_to=[], save_strategy="no", use_cpu=True, **options)
            trainer = Trainer(model, arguments, train_dataset=[{"input_ids": i, "labels": i} for i in ids])
            for callback in callbacks:
                trainer.add_callback(callback)
            trainer.train()
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        return losses, [p.detach() for p in model.parameters()]
"""
SAME = """
    flow = FlowCallback()
    alone, watched = fit([], OPTIONS), fit([flow], OPTIONS)
    assert alone[0] == watched[0] and len(alone[0]) == 6
    assert all(map(torch.equal, alone[1], watched[1]))
    print("\\ncells", {key: cell.state for key, cell in flow.report.matrix.items()})
    print("findings", [f.name for f in flow.report.findings])
"""
CELLS = "cells {('loss', 'base (frozen)'): 'blocked', ('loss', 'lora (trained)'): 'open'}\nfindings []\n"


class TestTransformers:
    @pytest.fixture(autouse=True)
    def _needs(self) -> None:
        for package in ("transformers", "peft", "accelerate"):
            pytest.importorskip(package)

    @pytest.mark.parametrize(
        "options", ["", "gradient_accumulation_steps=2", "gradient_checkpointing=True", "bf16=True"]
    )
    def test_a_lora_is_told_once_and_not_a_bit_is_changed(self, options: str, tmp_path: Path) -> None:
        done = ran(tmp_path, LORA + SAME.replace("OPTIONS", options))
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith(CELLS)
        assert done.stdout.count("stopgrad: 6 cycles") == 1
        assert "stopped by" not in done.stdout  # one line for each layer would say what the part's name says

    def test_under_run_the_outer_one_tells_alone(self, tmp_path: Path) -> None:
        done = ran(tmp_path, LORA + SAME.replace("OPTIONS", ""), watched=True)
        assert "cycles" not in done.stdout
        assert done.stdout.endswith(CELLS)
        assert done.stderr.count("stopgrad: ") == 1

    def test_what_ends_by_an_exception_is_told_when_the_next_begins_or_the_process_ends(self, tmp_path: Path) -> None:
        broken = """
    class Broken(FlowCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise KeyError("broken")

    for _ in range(2):
        try:
            fit([Broken()])
        except KeyError:
            print("caught")
    """
        done = ran(tmp_path, LORA + broken)
        assert done.returncode == 0, done.stderr
        said = re.findall(r"caught|stopgrad: \d+ cycles", done.stdout)
        assert said == ["caught", "stopgrad: 3 cycles", "caught", "stopgrad: 3 cycles"]


def test_without_transformers_one_line_says_what_to_install(tmp_path: Path) -> None:
    done = ran(tmp_path, "import sys\nsys.modules['transformers'] = None\nimport stopgrad.huggingface")
    assert done.stderr.endswith(
        "ImportError: stopgrad.huggingface needs transformers: pip install 'stopgrad[clients]'\n"
    )
