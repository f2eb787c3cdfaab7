"""Denormal numbers are flushed in a fit, and nowhere else."""

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from stopgrad.runner.build import quiet
from stopgrad.runner.denormals import FlushDenormals, flushed

pytestmark = pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this processor cannot flush denormals")


class Asks(L.LightningModule):
    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight, self.fails, self.found = torch.nn.Parameter(torch.ones(1)), fails, []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.found.append(flushed())
        if self.fails:
            raise ArithmeticError

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_in_a_fit_and_as_it_was_afterwards(fails, before):
    quiet()
    module = Asks(fails)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[FlushDenormals()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    torch.set_flush_denormal(before)
    try:
        assert flushed() == before
        if fails:
            with pytest.raises(ArithmeticError):
                trainer.fit(module, DataLoader(torch.zeros(2, 1)))
        else:
            trainer.fit(module, DataLoader(torch.zeros(2, 1)))
        assert set(module.found) == {True}
        assert flushed() == before
    finally:
        torch.set_flush_denormal(False)


def test_weights_that_adam_makes_of_denormal_averages_are_the_same():
    ended = {}
    for flush in (False, True):
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 33))
        optimizer = torch.optim.Adam([weight], fused=True)
        torch.set_flush_denormal(flush)
        try:
            for step in range(1500):  # .9 ** 800 is denormal
                weight.grad = torch.full_like(weight, float(step == 0))
                optimizer.step()
        finally:
            torch.set_flush_denormal(False)
        ended[flush] = weight.detach().clone(), optimizer.state[weight]["exp_avg"]
    assert torch.equal(ended[False][0], ended[True][0])
    assert (ended[False][1] > 0).all()  # there were denormals
    assert (ended[True][1] == 0).all()
