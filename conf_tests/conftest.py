"""One thread a process: small networks gain nothing from more, and workers share the cores."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # also in the processes that tests start

import pytest
import torch

from conf_tests.browser import running_browser

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def browser():
    """One headless Chromium for all tests that are marked ``in_a_browser``."""
    with running_browser() as running:
        yield running
