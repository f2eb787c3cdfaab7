"""What docs/generate.py makes is fresh, and says when it is not; what it keeps of a sweep is what that has measured."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys

import pytest

from conf_tests.helpers import ROOT, train


def loaded(root):
    """docs/generate.py of the checkout at ``root``, with the modules beside it."""
    for name in ("which", "decision", "exhibits", "flows"):
        sys.modules.pop(name, None)
    sys.path.insert(0, str(root / "docs"))
    spec = importlib.util.spec_from_file_location("generate", root / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    sys.path.remove(str(root / "docs"))
    return module


@pytest.fixture
def copy(tmp_path):
    """The tool in a copy of what it reads and writes."""
    for folder in ("recipes", "configs", "docs"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "README.md", tmp_path)
    return loaded(tmp_path)


def test_pages_are_fresh():
    generate = loaded(ROOT)
    assert generate.stale() == [], "run: python docs/generate.py"
    assert generate.doubts() == []


def test_every_recipe_has_one_row_and_one_section():
    generate = loaded(ROOT)
    rows, index = generate.readme_rows().splitlines()[2:], generate.index()
    files = sorted(file.stem for file in (ROOT / "recipes").glob("*.py") if file.stem != "__init__")
    assert [row.split("`")[1] for row in rows] == files
    for heading, folder in (("## `{}`", "recipes"), ("### `compare={}`", "configs/compare")):
        for file in (ROOT / folder).glob("[!_]*.*"):
            assert index.count(f"\n{heading.format(file.stem)}\n") == 1, file
    for file in (ROOT / "configs" / "recipe").glob("*.yaml"):
        assert index.count(f"`recipe={file.stem}`") == 1, file


@pytest.mark.parametrize(
    ("file", "old", "new", "stale"),
    [
        (
            "recipes/td.py",
            '"cut, no reward is learnt"',
            '"cut, nothing is learnt"',
            ["docs/recipes/index.md", "docs/which.md", "docs/zh/which.md"],
        ),
        ("recipes/td.py", 'r"""TD learning: ', 'r"""TD learning: oh, ', ["README.md", "docs/recipes/index.md"]),
        ("README.md", "the bootstrap target?", "the target?", ["README.md"]),
        ("docs/decision.py", '"Who makes the target?"', '"Who made the target?"', ["docs/which.md"]),
        ("docs/decision.py", '"`retain_graph=True`")', '"`retain_graph`")', ["docs/zh/which.md"]),
        ("docs/zh/which.md", "<summary>目标", "<summary>标", ["docs/zh/which.md"]),
        ("docs/zh/museum.toml", '"损失没有计算图"', '"没有计算图"', ["docs/zh/museum/index.md"]),
    ],
)
def test_a_change_of_either_side_makes_pages_stale(copy, capsys, file, old, new, stale):
    assert copy.stale() == []
    path = copy.ROOT / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    copy = loaded(copy.ROOT)
    assert copy.main(["--check"]) == 1
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == stale
    assert copy.main([]) == 0
    assert copy.main(["--check"]) == 0
    assert copy.main([]) == 0
    assert copy.stale() == []


def test_a_translation_of_an_older_text_is_not_shown(copy, capsys):
    """The English stands in its place, and the command tells; the rest of the page stays Chinese."""
    file = copy.ROOT / "docs" / "zh" / "museum.toml"
    text = file.read_text()
    assert copy.exhibits.untranslated() == []
    exhibit = copy.exhibits.exhibits()["no_graph"]
    assert "损失没有计算图" in copy.exhibits.page(exhibit, 1)
    file.write_text(text.replace(copy.exhibits.hashed(exhibit), "00000000"))
    copy = loaded(copy.ROOT)
    assert copy.main([]) == 0
    assert "docs/zh/museum.toml: no_graph: no Chinese, or of an older English text" in capsys.readouterr().out
    page = copy.exhibits.page(exhibit, 1)
    assert page.startswith("# The loss has no graph\n")
    assert "## 原因\n\nEvery path" in page
    assert "| [The loss has no graph](" in copy.MUSEUM[1].read_text()


def test_a_sentence_without_chinese_is_shown_in_english_and_named(copy):
    file = copy.ROOT / "recipes" / "td.py"
    file.write_text(file.read_text().replace("cut, no reward is learnt", "cut, nothing is learnt"))
    copy = loaded(copy.ROOT)
    missing = [each for _, each in copy.untranslated()]
    assert missing == ["cut, no reward is learnt", "cut, nothing is learnt"], "the old one is left over"
    assert "| cut, nothing is learnt | [`td`]" in copy.pages()[copy.WHICH[1]]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"td.target", ', "", "no leaf leads to td.target"),
        ('"td.target", ', '"td.target", "td.tarmac", ', "no recipe declares td.tarmac"),
        ('Leaf(["scaled"]))', 'Leaf(["scale"]))', "there is no way 'scale'"),
    ],
)
def test_the_questions_fit_the_recipes(copy, capsys, old, new, said):
    """A new boundary has no place among the questions until somebody gives it one, and a name that is gone has none."""
    file = copy.ROOT / "docs" / "decision.py"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    before = copy.WHICH[0].read_text()
    assert loaded(copy.ROOT).main([]) == 2
    assert capsys.readouterr().err == f"error: docs/decision.py: {said}\n"
    assert copy.WHICH[0].read_text() == before


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A short one over the arms of td_asplit."""
    folder = tmp_path_factory.mktemp("sweep")
    small = ["trainer=smoke", "hydra.sweeper.params.seed='0,1'", "hydra.sweep.dir=runs"]
    ran = train("-m", "compare=td_asplit", *small, cwd=folder)
    assert ran.returncode == 0, ran.stderr
    return folder / "runs"


def test_a_sweep_is_kept(sweep, copy):
    assert copy.main(["--measured", str(sweep)]) == 0
    kept = json.loads((copy.MEASURED / "td_asplit.json").read_text())
    assert kept["command"] == "python train.py -m compare=td_asplit trainer=smoke seed=0,1"
    assert (kept["seeds"], kept["runs"], kept["threads"]) == ([0, 1], 12, 1)
    assert list(kept["arms"]) == ["detach", "no_grad", "freeze", "none", "scale-0.5", "prediction"]
    assert [arm["weights"] for arm in kept["arms"].values()] == ["A", "A", "A", "B", "C", "D"]
    assert kept["arms"]["prediction"]["changes"] == "stop.target=none stop.prediction=detach"
    for name, arm in kept["arms"].items():
        results = [json.loads((sweep / name / f"seed-{seed}" / "result.json").read_text()) for seed in (0, 1)]
        for metric in ("value_error", "weight_norm"):
            assert arm["metrics"][metric] == pytest.approx([r["metrics"][metric] for r in results], rel=1e-4)
        assert arm["contract"] == results[0]["contract"]["broken"]
    assert "td_loss reaches stop.target" in kept["arms"]["none"]["contract"]
    assert copy.stale() == []
    assert "\n| none | stop.target=none |" in copy.INDEX.read_text()


def test_a_digest_that_no_longer_fits_is_named(sweep, copy):
    copy.main(["--measured", str(sweep)])
    file = copy.ROOT / "configs" / "compare" / "td_asplit.yaml"
    said = file.read_text()
    file.write_text(said.replace("target: none, prediction: detach", "target: data, prediction: detach"))
    assert "docs/measured/td_asplit.json: measured other arms: prediction" in copy.doubts()
    file.write_text(said.replace("no_grad: identical", "no_grad: broken"))
    assert "docs/measured/td_asplit.json: no_grad came out identical; expected was broken" in copy.doubts()
    file.unlink()
    assert "docs/measured/td_asplit.json: there is no configs/compare/td_asplit.yaml" in copy.doubts()


def test_what_is_no_whole_sweep_is_refused(sweep, copy, tmp_path, capsys):
    cut = tmp_path / "cut"
    shutil.copytree(sweep, cut)
    (cut / "none" / "seed-1" / "result.json").unlink()
    before = copy.INDEX.read_text()
    assert copy.main(["--measured", str(cut)]) == 2
    assert "no end of none/seed-1; run the sweep again with hydra.sweep.dir=" in capsys.readouterr().err
    result = cut / "none" / "seed-0" / "result.json"
    result.write_text(json.dumps(json.loads(result.read_text()) | {"compare": None}))
    assert copy.main(["--measured", str(cut)]) == 2
    assert "no sweep over one comparison" in capsys.readouterr().err
    assert copy.INDEX.read_text() == before


def test_seeds_and_overrides_stand_in_the_command(copy):
    class Run:
        def __init__(self, *arguments):
            self.result = {"replay": {"arguments": ["train.py", *arguments]}}

    run = Run("arm=none", "seed=7", "compare=td", "recipe.discount=0.9", "cache=c", "logger=none", "hydra.run.dir=x")
    assert copy.command("td", [run], [7, 8]) == "python train.py -m compare=td recipe.discount=0.9 seed=7,8"
