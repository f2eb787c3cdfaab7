"""A contract that leaks ends with the smallest cut, found on the values of that very audit."""

from __future__ import annotations

import inspect

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from stopgrad import FlowContract, GradientLeak, audit
from stopgrad.lightning import FlowAudit, loss_name

pytest_plugins = ["pytester"]


def line_of(function, words):
    lines, first = inspect.getsourcelines(function)
    return first + next(i for i, line in enumerate(lines) if words in line)


def leaking(a, generator, discriminator):
    fake = generator(torch.randn(8, 4))
    score = discriminator(fake)
    a.loss("d_loss", score.mean() - discriminator(torch.randn(8, 4)).mean())
    a.loss("g_loss", -discriminator(generator(torch.randn(8, 4))).mean())


def test_it_names_the_line_that_carries_nothing_else():
    generator, discriminator = nn.Linear(4, 4), nn.Linear(4, 1)
    with audit({"G": generator, "D": discriminator}) as a:
        leaking(a, generator, discriminator)
    with pytest.raises(GradientLeak) as raised:
        a.check({"d_loss": {"D": "open", "G": "blocked"}})
    last = str(raised.value).splitlines()[-1]
    at = line_of(leaking, "fake = generator")
    assert last.startswith("the smallest cut that mends it, on the values of this audit: detach what linear gives at ")
    assert last.endswith(f"test_contract.py:{at}, in `fake = generator(torch.randn(8, 4))`")
    assert [v.text.splitlines()[-1] for v in raised.value.violations] == [last]


def test_nothing_is_claimed_where_every_value_carries_more():
    generator, discriminator = nn.Linear(4, 4), nn.Linear(4, 1)
    with audit({"G": generator, "D": discriminator}) as a:
        leaking(a, generator, discriminator)
    with pytest.raises(GradientLeak) as raised:
        a.check({"g_loss": {"D": "blocked", "G": "open"}})
    assert "smallest cut" not in str(raised.value)
    assert "freeze D while it is called" in str(raised.value)


def test_two_ways_take_two_cuts():
    first, second, head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1)
    x = torch.randn(8, 4)
    with audit({"first": first, "second": second, "head": head}) as a:
        one = first(x)
        other = first(x + 1)
        a.loss("loss", head(second(x) + one).mean() + head(other * second(x)).mean())
    with pytest.raises(GradientLeak) as raised:
        a.check({"loss": {"first": "blocked", "second": "open"}})
    last = str(raised.value).splitlines()[-1]
    assert last.count("detach what linear gives at") == 2
    assert "one = first(x)" in last
    assert "other = first(x + 1)" in last


class Leaking(LightningModule):
    FLOW = FlowContract({"loss": {"head": "open", "body": "blocked"}})

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 1)
        self.automatic_optimization = False

    def training_step(self, batch):
        features = self.body(batch)
        optimizer = self.optimizers()
        optimizer.zero_grad()
        with loss_name("loss"):
            self.manual_backward(self.head(features).mean())
        optimizer.step()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")
def test_flow_audit(tmp_path):
    callback = FlowAudit()
    trainer = Trainer(
        max_steps=1,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=tmp_path,
    )
    data = torch.utils.data.DataLoader(torch.randn(8, 4), batch_size=4)
    with pytest.raises(GradientLeak) as raised:
        trainer.fit(Leaking(), data)
    last = str(raised.value).splitlines()[-1]
    assert last.startswith("the smallest cut that mends it")
    assert last.endswith("in `features = self.body(batch)`")


def test_the_plugin(pytester):
    pytester.makepyfile("""
        import pytest, torch
        from torch import nn

        @pytest.mark.flow_contract({"loss": {"head": "open", "body": "blocked"}})
        def test_flow(flow_audit):
            body, head = nn.Linear(4, 4), nn.Linear(4, 1)
            a = flow_audit({"body": body, "head": head})
            features = body(torch.randn(8, 4))
            a.loss("loss", head(features).mean())
    """)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts=")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*the smallest cut that mends it*in `features = body(torch.randn(8, 4))`*"])
