"""``sites`` and ``ablate``: on scripts whose cuts are known to be worth something, or nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from conf_tests.ablate.scripts import gan
from conf_tests.watch.processes import python
from stopgrad.ablate.arm import Spec, begun


def sites(tmp_path, *arguments):
    ran = python("-m", "stopgrad", "sites", "--json", "sites.json", *arguments, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    return ran, json.loads((tmp_path / "sites.json").read_text())["sites"]


def ablate(tmp_path, *arguments, status=0):
    ran = python("-m", "stopgrad", "ablate", "--json", "arms.json", *arguments, cwd=tmp_path)
    assert ran.returncode == status, ran.stderr
    return ran, {arm["name"]: arm for arm in json.loads((tmp_path / "arms.json").read_text())["arms"]}


@pytest.fixture
def script(tmp_path):
    (tmp_path / "gan.py").write_text(gan())
    return tmp_path


def test_every_stop_that_ran_and_what_it_stands_between(script):
    ran, found = sites(script, "gan.py")
    told = [(s["id"], s["kind"], s["value"], s["ran"], s["losses"], s["parts"]) for s in found]
    assert told == [
        ("gan.py:13", "detach", "fake", 6, ["d_loss"], ["G"]),
        ("gan.py:14", "zero_grad", "d_opt", 6, ["d_loss", "g_loss"], ["D"]),
        ("gan.py:19", "zero_grad", "g_opt", 6, ["g_loss"], ["G"]),
        ("gan.py:22", "no_grad", "print('score:', D(G(torch.randn(32, 4...", 1, [], []),
    ]
    assert {s["file"] for s in found} == {str(script / "gan.py")}
    assert "gan.py:13  detach     fake" in ran.stderr
    assert ran.stdout.startswith("score: ")


def test_two_cuts_on_one_line_a_flag_and_what_cannot_be_switched(tmp_path):
    (tmp_path / "two.py").write_text(
        "import torch\nfrom torch import nn\n"
        "a, b, c, d = (nn.Linear(2, 2) for _ in range(4))\nd.requires_grad_(False)\n"
        "opt = torch.optim.SGD([*a.parameters(), *b.parameters(), *c.parameters()], 0.1)\n"
        "x = torch.ones(3, 2)\n"
        "p, q = a(x), b(x)\n"
        "loss = (p.detach() * q.detach() * d(c(x))).sum() + c(x).argmax(1).sum()\n"
        "loss.backward()\nopt.step()\n"
    )
    _, found = sites(tmp_path, "two.py")
    told = {s["id"]: (s["kind"], s["losses"], s["parts"]) for s in found}
    assert told["two.py:8:p"] == ("detach", ["loss"], ["a"])
    assert told["two.py:8:q"] == ("detach", ["loss"], ["b"])
    assert told["two.py:4"] == ("requires_grad_", ["loss"], ["d"])
    fixed = [s for s in found if not s["legal"]]
    assert [(s["kind"], s["value"], s["parts"]) for s in fixed] == [("no_derivative", "argmax", ["c"])]


def test_a_boundary_is_a_site_with_its_own_name(tmp_path):
    body = gan().replace("fake.detach()", "stop.cross(fake)").replace("for step", "stop = Boundary('fakes')\nfor step")
    (tmp_path / "gan.py").write_text("from stopgrad import Boundary\n" + body)
    _, found = sites(tmp_path, "gan.py")
    (boundary,) = (s for s in found if s["kind"] == "boundary")
    assert (boundary["id"], boundary["losses"], boundary["parts"]) == ("fakes", ["d_loss"], ["G"])
    _, arms = ablate(tmp_path, "--arm", "open: fakes=none", "gan.py")
    assert arms["open"]["verdict"] == "identical"
    _, arms = ablate(tmp_path, "--steps", "4", "gan.py")
    assert arms["fakes=none"]["verdict"] == "identical"


def test_the_reference_and_an_arm_for_each_cut(script):
    ran, arms = ablate(script, "gan.py")
    assert {name: arm["verdict"] for name, arm in arms.items()} == {
        "reference": "reference",
        "13=none": "identical",
        "14=late": "cannot_tell",  # one seed
        "19=late": "identical",
        "22=none": "identical",
    }
    late = arms["14=late"]
    assert late["changes"] == {"gan.py:14": "late"}
    assert (late["step"], late["tensor"]) == (3, "D.0.weight")  # D's second step is the first with G's gradient in it
    assert -1 < late["cosine"]["D"] < 0.99
    assert late["norm_ratio"]["D"] > 0
    assert set(late["metrics"]) == {"d_loss", "g_loss", "score"}
    assert "the script, run twice alike" not in ran.stdout
    out = script / "runs" / "ablate" / "gan"
    assert (out / "comparison.html").exists()
    assert (out / "13=none" / "seed-0" / "output.txt").read_text().startswith("score: ")
    _, same = ablate(script, "gan.py")  # nothing is run again
    assert same == arms


def test_the_exact_step_is_found_by_running_again(tmp_path):
    late = gan(steps=60).replace("fake.detach()", "(fake.detach() if step == 45 else fake.data)")
    (tmp_path / "gan.py").write_text(late.replace("g_opt.zero_grad()", "g_opt.zero_grad() if step != 45 else None"))
    ran, arms = ablate(tmp_path, "--arm", "half: 13:fake#1=scale:0.5", "gan.py")
    assert arms["half"]["step"] == 100
    assert "weights differ between steps 64 and 100" in ran.stdout
    for _ in range(2):
        ran = python("-m", "stopgrad", "compare", "--replay", "runs/ablate/gan", cwd=tmp_path)
        assert ran.returncode == 0, ran.stderr
    table, told = ran.stdout.rpartition("\narm ")[2].split("\n\n")[:2]
    assert "half       cannot_tell  " in table
    assert "half: weights differ from step 92 (" in told
    assert "1 seed cannot tell: score " in told


def test_the_cut_that_a_shared_graph_needs_raises(tmp_path):
    (tmp_path / "gan.py").write_text(gan().replace("D(G(torch.randn(32, 4)))", "D(fake)", 1))
    _, arms = ablate(tmp_path, "--arm", "open: 13=none", "--arm", "both: 13=none, 19=late", "gan.py")
    assert set(arms) == {"reference", "open", "both"}
    assert {arms["open"]["verdict"], arms["both"]["verdict"]} == {"raised"}
    assert arms["both"]["changes"] == {"gan.py:13": "none", "gan.py:19": "late"}


def test_seeds_margins_and_lines(tmp_path):
    (tmp_path / "gan.py").write_text(gan(seed="int(__import__('sys').argv[1])"))
    asked = ("--seeds", "0,1,2", "--arm", "late: 14=late", "--arm", "same: 19=late")
    ran, arms = ablate(tmp_path, *asked, "--margin", "score=10", "gan.py", "{seed}")
    assert arms["late"]["verdict"] == "same_result"
    assert set(arms["late"]["metrics"]["score"]) == {"0", "1", "2"}
    assert "seeds itself" not in ran.stdout
    ran, arms = ablate(tmp_path, *asked, "--broken", "score>-10", "gan.py", "{seed}")
    assert {arm["verdict"] for arm in arms.values()} == {"broken"}


def test_options_may_stand_after_the_script(tmp_path):
    text = gan(seed="int(sys.argv[1])").replace("import torch\n", "import sys\nimport torch\n", 1)
    (tmp_path / "gan.py").write_text(text + "assert sys.argv[2:] in (['--steps', '3'], [])\n")
    _, arms = ablate(tmp_path, "gan.py", "3", "--arm", "same: 20=late", "--", "--steps", "3")
    assert arms["same"]["verdict"] == "identical"
    python("-m", "stopgrad", "sites", "gan.py", "3", "--steps", "2", "--json", "sites.json", cwd=tmp_path)
    assert [s["ran"] for s in json.loads((tmp_path / "sites.json").read_text())["sites"]] == [1, 1, 1]


def test_arms_of_other_arguments_are_left_out(tmp_path):
    (tmp_path / "gan.py").write_text(gan(seed="int(__import__('sys').argv[1])"))
    _, arms = ablate(tmp_path, "--arm", "old: 19=late", "gan.py", "3")
    assert set(arms) == {"reference", "old"}
    ran, arms = ablate(tmp_path, "--arm", "new: 19=late", "gan.py", "4")
    assert set(arms) == {"reference", "new"}
    assert "old/seed-0: of another version of the script, or other arguments" in ran.stdout
    ran, arms = ablate(tmp_path, "--arm", "more: 14=late", "gan.py", "4")
    assert set(arms) == {"reference", "new", "more"}


def test_arms_are_run_again_when_what_they_read_has_changed(tmp_path):
    """Modules that lie deep or elsewhere, and settings; an arm that had too little time."""
    (tmp_path / "src" / "a" / "b").mkdir(parents=True)
    (tmp_path / "src" / "a" / "b" / "deep.py").write_text("lr = 1.0\n")
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "set.json").write_text("1.0")
    head = "import json, sys; sys.path.append('src')\nfrom a.b.deep import lr\n"
    tail = "print('lr:', lr, 'set:', json.load(open('conf/set.json')))\n"
    (tmp_path / "gan.py").write_text(head + gan() + tail)

    def told():
        return ablate(tmp_path, "--arm", "same: 21=late", "gan.py")[1]["same"]["metrics"]

    assert (told()["lr"], told()["set"]) == ({"0": 1.0}, {"0": 1.0})
    (tmp_path / "src" / "a" / "b" / "deep.py").write_text("lr = 2.0\n")
    assert (told()["lr"], told()["set"]) == ({"0": 2.0}, {"0": 1.0})
    (tmp_path / "conf" / "set.json").write_text("3.0")
    assert (told()["lr"], told()["set"]) == ({"0": 2.0}, {"0": 3.0})


def test_an_arm_that_had_too_little_time_is_run_again(tmp_path):
    (tmp_path / "gan.py").write_text(gan() + "\nif fake.detach().requires_grad:\n    __import__('time').sleep(6)\n")
    asked = ("--arm", "slow: 25=none", "gan.py")
    assert ablate(tmp_path, "--timeout", "5", *asked)[1]["slow"]["verdict"] == "raised"
    assert ablate(tmp_path, "--timeout", "60", *asked)[1]["slow"]["verdict"] == "identical"


def test_a_script_that_seeds_itself_is_told(script):
    ran, arms = ablate(script, "--seeds", "0,1", "--arm", "late: 14=late", "gan.py")
    assert "note: the script seeds itself, so that all seeds are one" in ran.stdout
    assert set(arms["late"]["metrics"]["score"]) == {"0"}


def test_seeds_are_set_for_a_script_that_sets_none(tmp_path):
    text = gan().replace("torch.manual_seed(0)\n", "import random\n").replace("+ 3", "+ random.random()")
    (tmp_path / "gan.py").write_text(text)
    ran, arms = ablate(tmp_path, "--seeds", "0,1", "--arm", "same: 19=late", "gan.py")
    assert arms["same"]["verdict"] == "identical"
    assert len({*arms["same"]["metrics"]["score"].values()}) == 2
    assert "does not equal itself" not in ran.stdout


def test_a_script_that_does_not_equal_itself_is_judged_by_its_spread(tmp_path):
    text = gan().replace("torch.manual_seed(0)", "import os; torch.manual_seed(int.from_bytes(os.urandom(4)))")
    (tmp_path / "gan.py").write_text(text)
    ran, arms = ablate(tmp_path, "--arm", "same: 19=late", "gan.py")
    assert "note: the script, run twice alike, does not equal itself from step 0 on, in G.0.weight" in ran.stdout
    assert arms["same"]["verdict"] == "cannot_tell"
    content = json.loads((tmp_path / "runs" / "ablate" / "gan" / "comparison.json").read_text())
    assert content["metrics_declared"]["score"]["margin"] > 0
    assert content["metrics_declared"]["score"]["margin"] < 10


def test_all_arms_of_a_script_that_compiles_run_eagerly(tmp_path):
    text = gan().replace("for step", "def wrong(graph, inputs): return lambda *x: [1.5 * y for y in graph(*x)]\n"
                         "C = torch.compile(D, backend=wrong)\nfor step", 1).replace("D(real)", "C(real)")  # fmt: skip
    (tmp_path / "gan.py").write_text(text)
    ran, arms = ablate(tmp_path, "--arm", "same: 15=none", "gan.py")
    assert arms["same"]["verdict"] == "identical"
    assert "does not equal itself" not in ran.stdout
    assert "the script compiles: it ran eagerly" in ran.stdout


def test_numbers_that_are_logged_and_losses_that_are_none(tmp_path):
    body = gan().replace(
        "with torch.no_grad():",
        "from torch.utils.tensorboard import SummaryWriter\n"
        "with SummaryWriter('runs') as writer:\n"
        "    for each in (('quality', 3.5), ('epoch', 1)): writer.add_scalar(*each, 7)\n"
        "with torch.no_grad():",
    )
    (tmp_path / "gan.py").write_text(body)
    _, arms = ablate(tmp_path, "--arm", "nan: 13=scale:1e38", "gan.py")
    assert arms["reference"]["metrics"]["quality"] == {"0": 3.5}
    assert "epoch" not in arms["reference"]["metrics"]
    assert not (tmp_path / "runs" / "gan").exists()
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["ablate"]


def test_a_loss_that_is_no_number_is_broken(tmp_path):
    text = gan().replace("fake.detach()", "fake.detach() * (1 if not fake.detach().requires_grad else float('nan'))")
    (tmp_path / "gan.py").write_text(text + "\nprint('fine: 1')\n")
    _, arms = ablate(tmp_path, "--metric", "fine", "--arm", "13=none: 13:fake#2=none", "gan.py")
    assert arms["13=none"]["verdict"] == "broken"


def test_an_arm_that_never_ends_is_ended(tmp_path):
    text = gan() + "\nif fake.detach().requires_grad:\n    __import__('time').sleep(600)\n"
    (tmp_path / "gan.py").write_text(text)
    began = time.monotonic()
    _, arms = ablate(tmp_path, "--timeout", "8", "--arm", "hang: 25=none", "--arm", "late: 19=late", "gan.py")
    assert time.monotonic() - began < 100
    assert arms["hang"]["verdict"] == "raised"
    assert arms["late"]["verdict"] == "identical"


def test_ctrl_c_leaves_a_comparison_of_what_is_finished(tmp_path):
    (tmp_path / "gan.py").write_text(gan() + "\nif fake.detach().requires_grad:\n    __import__('time').sleep(600)\n")
    command = [sys.executable, "-m", "stopgrad", "ablate", "--arm", "same: 19=late", "--arm", "hang: 25=none", "gan.py"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "same, seed 0: finished" in line:
            time.sleep(1)
            os.kill(process.pid, signal.SIGINT)
            break
    out, _ = process.communicate(timeout=180)
    assert process.returncode == 130
    assert "same: identical weights." in out
    out = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True).stdout
    assert not out.strip()


def test_ctrl_c_before_the_reference_has_ended(tmp_path):
    (tmp_path / "gan.py").write_text("import time\nprint('begun', flush=True)\ntime.sleep(600)\n")
    command = [sys.executable, "-m", "stopgrad", "ablate", "gan.py"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    output = tmp_path / "runs" / "ablate" / "gan" / "reference" / "seed-0" / "output.txt"
    while not (output.exists() and output.read_text()):
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=180)
    assert (process.returncode, out) == (130, "")
    assert err == "interrupted: nothing is finished that could be compared\n"


def test_several_at_once(script):
    _, arms = ablate(script, "--jobs", "2", "gan.py")
    _, alone = ablate(script, "--out", "alone", "gan.py")
    assert {n: (a["verdict"], a["metrics"]) for n, a in arms.items()} == {
        n: (a["verdict"], a["metrics"]) for n, a in alone.items()
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere.py",), "nowhere.py: no such script"),
        (("--seeds", "a", "gan.py"), "--seeds a: write whole numbers, such as 0,1,2"),
        (("--seeds", "0,-1", "gan.py"), "--seeds 0,-1: write whole numbers, such as 0,1,2"),
        (("--jobs", "0", "gan.py"), "--jobs 0: choose a number from 1"),
        (("--steps", "0", "gan.py"), "--steps 0: choose a number from 1"),
        (("--timeout", "0", "gan.py"), "--timeout 0: choose a number of seconds"),
        (("--margin", "a=nan", "gan.py"), "--margin a=nan: write NAME=NUMBER, such as loss=.1"),
        (("--arm", "13=none", "gan.py"), '--arm 13=none: write "NAME: SITE=STRATEGY, SITE=STRATEGY"'),
        (("--arm", "a: 9=none", "gan.py"), "--arm a: 9=none: line 9 has no stop; the nearest is 13 (detach of fake)"),
        (("--arm", "a: 13=none", "--arm", "a: 14=late", "gan.py"), "--arm a: the name is taken; give each arm its own"),
        (("--arm", "reference: 13=none", "gan.py"), "--arm reference: the name is taken; give each arm its own"),
        (("--margin", "a", "gan.py"), "--margin a: write NAME=NUMBER, such as loss=.1"),
        (("--broken", "a=1", "gan.py"), "--broken a=1: write NAME>NUMBER or NAME<NUMBER, such as loss>10"),
        (("--json", "no/arms.json", "gan.py"), "--json no/arms.json: the folder cannot be written"),
        (("--metric", "nothing", "gan.py"), "--metric nothing: the script tells d_loss, g_loss, score"),
    ],
)  # fmt: skip
def test_what_is_refused_in_one_line(arguments, said, script):
    ran = python("-m", "stopgrad", "ablate", *arguments, cwd=script)
    assert ran.returncode == 2
    assert ran.stderr.splitlines()[-1] == f"error: {said}"
    assert "Traceback" not in ran.stderr


def test_a_loss_is_what_it_was_at_its_backward(tmp_path):
    text = gan().replace("    g_opt.step()", "    g_opt.step()\n    with torch.no_grad(): d_loss.mul_(0)")
    (tmp_path / "gan.py").write_text(text)
    _, arms = ablate(tmp_path, "--arm", "same: 19=late", "gan.py")
    assert arms["reference"]["metrics"]["d_loss"]["0"] > 0.1


def test_a_bare_except_does_not_carry_on_beyond_the_last_step(tmp_path):
    caught = "    try: g_opt.step()\n    except: pass\n    print('done:', step)"
    (tmp_path / "gan.py").write_text(gan().replace("    g_opt.step()", caught))
    ablate(tmp_path, "--steps", "4", "--arm", "same: 19=late", "gan.py")
    output = tmp_path / "runs" / "ablate" / "gan" / "reference" / "seed-0" / "output.txt"
    assert output.read_text() == "done: 0\ndone: 1\n"


def test_sites_of_no_step_are_refused(script):
    ran = python("-m", "stopgrad", "sites", "--steps", "0", "gan.py", cwd=script)
    assert (ran.returncode, ran.stdout, ran.stderr) == (2, "", "error: --steps 0: choose a number from 1\n")


def test_a_script_that_makes_no_step_is_not_ablated(script):
    (script / "gan.py").write_text("import torch\nprint(torch.ones(1).detach())\n")
    ran = python("-m", "stopgrad", "ablate", "gan.py", cwd=script)
    assert ran.returncode == 2
    said = "error: the script as it stands makes no step of a torch.optim.Optimizer: nothing can be compared"
    assert ran.stderr.splitlines()[-1] == said


def test_a_folder_of_something_else_is_not_cleared(script):
    (script / "kept" / "reference" / "seed-0").mkdir(parents=True)
    (script / "kept" / "reference" / "seed-0" / "mine.txt").write_text("mine")
    ran = python("-m", "stopgrad", "ablate", "--out", "kept", "gan.py", cwd=script)
    assert ran.returncode == 2
    folder = script / "kept" / "reference" / "seed-0"
    assert ran.stderr.splitlines()[-1] == f"error: {folder}: holds what is no arm's; choose another --out"
    assert [path.name for path in (script / "kept").rglob("*.*")] == ["mine.txt"]


def test_numbers_are_named_without_the_count_before_them_and_json_is_strict(tmp_path):
    text = gan().replace(
        "    g_opt.step()", "    g_opt.step()\n    print(f'Epoch {step}/6 - top1 loss: {step}\\rstep 3')"
    )
    (tmp_path / "gan.py").write_text(text + "\nprint('Train epoch 3, none: nan, top5 loss=2 step: 9')\n")
    python("-m", "stopgrad", "ablate", "--json", "arms.json", "--arm", "same: 19=late", "gan.py", cwd=tmp_path)
    (arm, _) = json.loads((tmp_path / "arms.json").read_text(), parse_constant=pytest.fail)["arms"]
    told = {name: values["0"] for name, values in arm["metrics"].items() if name not in ("d_loss", "g_loss", "score")}
    assert told == {"top1 loss": 5, "none": "nan", "top5 loss": 2}


def test_a_script_that_raises_as_it_stands_is_not_ablated(script):
    (script / "gan.py").write_text("import torch\n1 / 0\n")
    ran = python("-m", "stopgrad", "ablate", "gan.py", cwd=script)
    assert ran.returncode == 2
    last = ran.stderr.splitlines()[-1]
    assert last.startswith("error: the script as it stands raised: division by zero (")
    with open(last.partition(" (")[2].removesuffix(")")) as output:
        assert "ZeroDivisionError" in output.read()


def test_writing_elsewhere_is_refused(script):
    target = script / "elsewhere.txt"
    (script / "gan.py").write_text(gan() + f"\nopen({str(target)!r}, 'w')\n")
    ran = python("-m", "stopgrad", "ablate", "gan.py", cwd=script)
    assert ran.returncode == 2
    assert f"error: the script writes {target}, outside of its arm's folder: --allow-writes lets it" in ran.stderr
    assert not target.exists()
    _, arms = ablate(script, "--allow-writes", "--arm", "same: 19=late", "gan.py")
    assert arms["same"]["verdict"] == "identical"


def test_arms_stand_in_the_order_in_which_they_were_asked_for(tmp_path):
    """Those that run side by side begin in any order."""
    specs = [Spec("a.py", [], False, "a", str(tmp_path), arm=arm, folder=str(tmp_path / arm)) for arm in ("one", "two")]
    for number, spec in enumerate(specs):
        os.utime(spec.write(), (number, number))
    late, early = (begun(spec)["started"] for spec in reversed(specs))
    assert early < late
