"""One thread a process: small networks gain nothing from more, and workers share the cores."""

import os
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # of torch too, which is not imported yet; and in the processes that tests start

import pytest

from conf_tests.browser import running_browser


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """The whole suite is shared by as many workers as there are cores; a part of it runs at once, in this process."""
    whole = {Path(argument).name for argument in config.args} == {"conf_tests"}
    return None if whole and (os.cpu_count() or 1) > 1 else 0


@pytest.fixture(scope="session")
def browser():
    """One headless Chromium for all tests that are marked ``in_a_browser``."""
    with running_browser() as running:
        yield running
