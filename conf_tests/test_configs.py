"""Every YAML composes, and the defaults are the declared ones."""

import subprocess
import sys

import pytest
from hydra.utils import get_class
from omegaconf import OmegaConf

from conf_tests.helpers import ROOT, config
from stopgrad.cuts.strategies import check_stop
from stopgrad.runner.build import check_arguments
from stopgrad.runner.check import pinned
from stopgrad.runner.declared import declaration, recipe_configs

CONFIGS = [ROOT / "configs", ROOT / "stopgrad" / "runner" / "configs"]
FILES = sorted(file.relative_to(folder).with_suffix("") for folder in CONFIGS for file in folder.rglob("*.yaml"))
GROUPED = [file for file in FILES if file.parent.name]
RECIPES = list(recipe_configs())
COMPARISONS = [file.name for file in GROUPED if file.parent.name == "compare"]


def test_files_are_found():
    assert {"train", "recipe/gan", "data/digits", "compare/gan", "hydra/default"} <= {str(file) for file in FILES}


@pytest.mark.parametrize("file", GROUPED, ids=str)
def test_every_file_composes(file):
    composed = config(f"{file.parent}={file.name}") if str(file.parent) != "hydra" else config()
    # data need not fit the default recipe; what is in no section here needs a run directory
    for section in ["data"] if file.parent.name == "data" else ["recipe", "data", "trainer", "stop"]:
        OmegaConf.to_container(composed[section], resolve=True, throw_on_missing=True)


@pytest.mark.parametrize("name", RECIPES)
class TestRecipe:
    def test_default_stop_is_the_first_declared_choice(self, name):
        composed = config(f"recipe={name}")
        declared = declaration(composed.recipe._target_)
        assert dict(composed.stop) == {k: v[0] for k, v in {**declared.boundaries, **declared.switches}.items()}

    def test_arguments_fit_the_signatures(self, name):
        composed = config(f"recipe={name}")
        check_arguments("recipe", composed.recipe)
        check_arguments("data", composed.data)
        check_arguments("trainer", composed.trainer)

    def test_declaration_read_without_running_is_what_python_sees(self, name):
        target = config(f"recipe={name}").recipe._target_
        module = sys.modules[get_class(target).__module__]
        declared = declaration(target)
        assert (declared.boundaries, declared.switches) == (module.BOUNDARIES, module.SWITCHES)
        assert declared.metrics == getattr(module, "METRICS", {})
        for rule in declared.metrics.values():
            assert rule["goal"] in ("min", "max", None)
            assert rule["margin"] >= 0
            assert set(rule) <= {"goal", "margin", "broken_above", "broken_below"}

    def test_header_holds_the_command_that_runs_it(self, name):
        header = (ROOT / "configs" / "recipe" / f"{name}.yaml").read_text().partition("defaults:")[0]
        assert f"# python train.py recipe={name}" in header


@pytest.mark.parametrize("name", COMPARISONS)
def test_every_arm_of_a_comparison_is_legal(name):
    composed = config(f"compare={name}")
    assert composed.compare.reference in composed.compare.arms
    for arm in composed.compare.arms:
        one = pinned(config(f"compare={name}", f"arm={arm}"))
        declared = declaration(one.recipe._target_)
        check_stop(dict(one.stop), declared.boundaries, declared.switches)
        check_arguments("recipe", one.recipe)


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


def test_help_lists_recipes_boundaries_and_switches():
    text = subprocess.run(
        [sys.executable, "train.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for line in (
        "recipe=gan",
        "stop.fakes=detach|no_grad|freeze|detach_|data|inference_mode|none|scale:a|reverse:l",
        "stop.discriminator=freeze|none",
        "stop.zero_grad=timely|late",
        "stop.penalty=kept|no_create_graph|detached",
        "trainer: cpu, ddp, gpu, smoke",
    ):
        assert line in text
