"""What makes a start quick: imports that are not searched for garbage, workers that import while a sweep is checked."""

import importlib.util
import os
import signal
import subprocess
import sys

import pytest

from conf_tests.faults.processes import descendants, left_of
from conf_tests.helpers import ROOT

IMPORT = """
import gc, sys
gc.enable() if sys.argv[1] == "searched" else gc.disable()
from stopgrad.runner.imports import import_lightning
def searches():
    return sum(each["collections"] for each in gc.get_stats())
before = searches()
import_lightning()
print(searches() - before, gc.isenabled(), gc.get_freeze_count() > 200_000, "lightning.pytorch" in sys.modules)
gc.unfreeze()
import_lightning()
print(gc.get_freeze_count())
"""
WORKERS = """
import os, sys, time
from hydra_plugins.hydra_joblib_launcher.config import JobLibLauncherConf
from joblib import Parallel, delayed
from joblib.externals.loky import get_reusable_executor
from omegaconf import OmegaConf
from stopgrad.runner.workers import workers_import

def imported():
    found = "stopgrad.runner.record" in sys.modules, os.getpid()
    time.sleep(2)  # so that each has one
    return found

launcher = OmegaConf.structured(JobLibLauncherConf(n_jobs=2))
with workers_import(OmegaConf.create({"hydra": {"launcher": launcher}}), 2):
    if sys.argv[1] == "refused":
        for _ in range(2):
            get_reusable_executor(2, reuse=True).submit(time.sleep, 1000)
        print("ready", flush=True)
        input()
        sys.exit(2)
there = {key: value for key, value in launcher.items() if key != "_target_"} | {"backend": "loky"}
found = Parallel(**there)(delayed(imported)() for _ in range(2))
print([each for each, _ in found], len({pid for _, pid in found}))
"""
joblib = pytest.mark.skipif(
    importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher") is None,
    reason="no hydra-joblib-launcher: pip install -e '.[parallel]'",
)


def program(text, *arguments):
    return subprocess.run([sys.executable, "-c", text, *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(("how", "after"), [("searched", True), ("never searched", False)])
def test_lightning_is_imported_without_a_search_for_garbage_and_once(how, after):
    ran = program(IMPORT, how)
    assert (ran.stdout, ran.stderr) == (f"0 {after} True True\n0\n", "")


@joblib
def test_workers_have_imported_what_a_run_needs():
    ran = program(WORKERS, "passed")
    assert (ran.stdout, ran.stderr) == ("[True, True] 2\n", "")


@joblib
@pytest.mark.skipif(sys.platform != "linux", reason="processes are told by /proc")
def test_workers_of_a_refused_sweep_are_ended_at_once():
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", WORKERS, "refused"], cwd=ROOT, text=True, **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        workers = descendants(process.pid)
        assert len(workers) >= 2
        try:
            out, err = process.communicate("\n", timeout=30)
        finally:
            for pid in [process.pid, *left_of(workers, seconds=0)] if process.poll() is None else []:
                os.kill(pid, signal.SIGKILL)
    assert (process.returncode, out, err) == (2, "", "")
    assert left_of(workers, seconds=1) == []
