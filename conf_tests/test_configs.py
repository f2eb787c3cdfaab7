"""Every YAML composes, and --help answers without torch."""

import re
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from conf_tests.helpers import ROOT, config
from stopgrad.runner.declared import recipe_configs

CONFIGS = [ROOT / "configs", ROOT / "stopgrad" / "runner" / "configs"]
FILES = sorted(file.relative_to(folder).with_suffix("") for folder in CONFIGS for file in folder.rglob("*.yaml"))
GROUPED = [file for file in FILES if file.parent.name]


def test_files_are_found():
    assert {"train", "recipe/gan", "data/digits", "compare/gan", "hydra/default"} <= {str(file) for file in FILES}


@pytest.mark.parametrize("file", GROUPED, ids=str)
def test_every_file_composes(file):
    composed = config(f"{file.parent}={file.name}") if str(file.parent) != "hydra" else config()
    # data need not fit the default recipe; what is in no section here needs a run directory
    for section in ["data"] if file.parent.name == "data" else ["recipe", "data", "trainer", "stop"]:
        OmegaConf.to_container(composed[section], resolve=True, throw_on_missing=True)


def test_help_and_cfg_do_not_import_torch():
    program = (
        "import runpy, sys\n"
        "sys.argv = ['train.py', *sys.argv[1:]]\n"
        "try: runpy.run_path('train.py', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules, 'numpy' in sys.modules, file=sys.stderr)"
    )
    for argument in ("--help", "--cfg=job"):
        ran = subprocess.run([sys.executable, "-c", program, argument], cwd=ROOT, capture_output=True, text=True)
        assert ran.stderr.split() == ["False", "False"], ran.stderr


def helped(*arguments):
    return subprocess.run(
        [sys.executable, "train.py", *arguments, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


def test_help_has_a_line_for_each_recipe():
    text = helped()
    for name in recipe_configs():
        assert len(re.findall(rf"^  {name}  +\S", text, re.M)) == 1
    assert max(map(len, text.partition("Other choices")[0].splitlines())) <= 120
    assert "stop.penalty" not in text
    assert "trainer: cpu, ddp, fsdp, gpu, smoke" in text


def test_help_on_a_recipe_lists_its_boundaries_and_switches():
    text = helped("recipe=gan")
    for line in (
        "recipe=gan",
        "boundary stop.fakes=detach|no_grad|freeze|detach_|data|inference_mode|none|scale:a|reverse:l\n",
        "boundary stop.discriminator=freeze|none\n",
        "switch   stop.zero_grad=timely|late\n             late, G steps on what D's loss left in it\n",
        "switch   stop.penalty=kept|no_create_graph|detached\n",
        "trainer: cpu, ddp, fsdp, gpu, smoke",
    ):
        assert line in text
    assert "stop.advantage" not in text
