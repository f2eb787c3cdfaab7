"""What a recipe, its configs and its comparisons declare is whole, true of the code, and legal."""

from __future__ import annotations

import importlib

import pytest

from conf_tests.conformance.catalogue import (
    CHECKS,
    COMPARES,
    CONFIGS,
    RECIPES,
    arms,
    composed,
    declared,
    recipe_of,
    refusal,
    stop_overrides,
)
from conf_tests.helpers import ROOT
from stopgrad.cuts.strategies import check_stop
from stopgrad.runner.build import check_arguments
from stopgrad.runner.check import check_compare
from stopgrad.runner.declared import LITERALS, Declaration, InputError, declared_in

VARIANTS = {name: [each for each, recipe in CONFIGS.items() if recipe == name] for name in RECIPES}


@pytest.mark.parametrize("recipe", RECIPES)
class TestRecipe:
    def test_declaration_read_without_running_is_what_python_sees(self, recipe):
        module = importlib.import_module(f"recipes.{recipe}")
        of, empty = declared_in(ROOT / "recipes" / f"{recipe}.py"), Declaration()
        for name, field in LITERALS.items():
            assert getattr(of, field) == getattr(module, name, getattr(empty, field)), name
        assert of.summary == (module.__doc__ or "").partition("\n")[0]

    def test_declaration_is_whole(self, recipe):
        of = declared_in(ROOT / "recipes" / f"{recipe}.py")
        named = {**of.boundaries, **of.switches}
        assert of.summary.partition(": ")[2], "the docstring's first line is no `Name: the pattern in one sentence`"
        assert of.paper, "PAPER is missing: short references, such as 'Goodfellow 2014'"
        assert named, "neither BOUNDARIES nor SWITCHES: there is nothing to switch"
        assert set(of.without) == set(named), "WITHOUT: one line for each boundary and switch"
        assert all(of.without.values())
        assert of.metrics, "METRICS is missing: what does a comparison judge by?"
        for name, rule in of.metrics.items():
            assert {"goal", "margin"} <= set(rule) <= {"goal", "margin", "broken_above", "broken_below"}, name
            assert rule["goal"] in ("min", "max", None), name
            assert rule["margin"] >= 0, name
        assert set(of.needs) <= {f"stop.{name}" for name in named}, "NEEDS: a key is stop.NAME"
        assert {check.partition(" ")[0] for check in of.exempt} <= set(CHECKS), (
            f"EXEMPT: choose from {', '.join(CHECKS)}"
        )
        for override in of.refuses:
            key, equals, choice = override.partition("=")
            assert equals, f"REFUSES: {override} is no override KEY=VALUE"
            if key.startswith("stop."):
                check_stop({key[5:]: choice}, of.boundaries, of.switches)

    def test_its_configs_carry_its_name_and_what_follows_it(self, recipe):
        assert recipe in VARIANTS[recipe], f"configs/recipe/{recipe}.yaml: missing, or its _target_ is another recipe's"


@pytest.mark.parametrize("name", CONFIGS)
class TestConfig:
    def test_default_stop_is_the_first_declared_choice(self, name):
        assert dict(composed(f"recipe={name}").stop) == declared(name).default_stop

    def test_arguments_fit_the_signatures(self, name):
        config = composed(f"recipe={name}", *declared(name).small)
        for section in ("recipe", "data", "trainer"):
            check_arguments(section, config[section])


@pytest.mark.parametrize("compare", COMPARES)
class TestCompare:
    def test_says_what_is_expected_of_each_arm(self, compare):
        config = composed(f"compare={compare}")
        assert config.compare.reference in config.compare.arms
        assert "expect" in config.compare, f"configs/compare/{compare}.yaml: add expect: ARM: VERDICT, for each arm"
        check_compare(config)
        of = declared(recipe_of(compare))
        for arm, each in arms(compare).items():
            if refusal(of, stop_overrides(each)):
                assert config.compare.expect[arm] == "raised", f"{arm} is in REFUSES: expect {arm}: raised"

    def test_every_arm_is_legal(self, compare):
        of = declared(recipe_of(compare))
        for config in arms(compare).values():
            check_stop(dict(config.stop), of.boundaries, of.switches)
            check_arguments("recipe", config.recipe)


class TestReading:
    """The reader itself, on files made up."""

    def test_every_literal_and_nothing_else(self, tmp_path):
        file = tmp_path / "made_up.py"
        file.write_text(
            '"""Made up: nothing is learnt.\n\nMore."""\nimport nowhere\nPAPER = "A 2000"\n'
            'SWITCHES: dict[str, list[str]] = {"a": ["b", "c"]}\nNEEDS: dict\nOTHER = f()\nx = y = {}\n'
        )
        found = declared_in(file)
        assert found == Declaration("Made up: nothing is learnt.", "A 2000", switches={"a": ["b", "c"]})
        assert found.default_stop == {"a": "b"}

    def test_what_is_no_literal_is_refused_in_one_line(self, tmp_path):
        file = tmp_path / "made_up.py"
        file.write_text("SMALL = [STEPS]\n")
        with pytest.raises(InputError) as refused:
            declared_in(file)
        assert str(refused.value) == f"{file}: SMALL is read without being run; write it as a literal"
