"""``python -m stopgrad run``: the script is the same with and without it, and what is told is what happened."""

from __future__ import annotations

import inspect
import json
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

from conf_tests.helpers import Ran
from conf_tests.watch.processes import failures, python
from stopgrad.watch.names import returned

GAN = """
    import torch
    from torch import nn

    torch.manual_seed(0)
    G = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    D = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
    g_opt, d_opt = torch.optim.Adam(G.parameters()), torch.optim.Adam(D.parameters())
    bce = nn.functional.binary_cross_entropy_with_logits
    for step in range(8):
        real = torch.randn(16, 2) + 3
        fake = G(torch.randn(16, 4))
        d_opt.zero_grad()
        d_loss = bce(D(real), torch.ones(16, 1)) + bce(D(CUT), torch.zeros(16, 1))
        d_loss.backward()
        d_opt.step()
        EARLY
        g_loss = bce(D(G(torch.randn(16, 4))), torch.ones(16, 1))
        g_loss.backward()
        g_opt.step()
        LATE
    print(sum(p.double().sum().item() for p in [*G.parameters(), *D.parameters()]), torch.rand(1).item())
"""
RIGHT = GAN.replace("CUT", "fake.detach()").replace("EARLY", "g_opt.zero_grad()").replace("LATE", "pass")
LEAK = GAN.replace("CUT", "fake").replace("EARLY", "pass").replace("LATE", "g_opt.zero_grad()")


def write(folder: Path, source: str) -> Path:
    script = folder / "train.py"
    script.write_text(textwrap.dedent(source))
    return script


def run(*arguments: object, cwd: Path) -> Ran:
    return python("-m", "stopgrad", "run", *arguments, cwd=cwd)


def report(source: str, folder: Path) -> dict:
    ran = run("--json", "report.json", write(folder, source), cwd=folder)
    assert ran.returncode == 0, ran.stderr
    return json.loads((folder / "report.json").read_text())


def names(content: dict, severity: str) -> list[str]:
    return [finding["name"] for finding in content["findings"] if finding["severity"] == severity]


@pytest.mark.parametrize("source", [RIGHT, LEAK], ids=["right", "leak"])
def test_the_script_prints_what_it_prints_without_it(source, tmp_path):
    script = write(tmp_path, source)
    alone = python(script, cwd=tmp_path)
    watched = run(script, cwd=tmp_path)
    assert watched.stdout == alone.stdout  # the weights and the next random number, to the last digit
    assert watched.returncode == 0


def test_a_right_script_has_no_finding(tmp_path):
    content = report(RIGHT, tmp_path)
    assert names(content, "error") + names(content, "warning") == []
    states = {(loss, part): cell["state"] for loss, row in content["matrix"].items() for part, cell in row.items()}
    assert states == {
        ("d_loss", "D"): "open",
        ("d_loss", "G"): "blocked",
        ("g_loss", "D"): "open",
        ("g_loss", "G"): "open",
    }
    assert {row["name"]: (row["parts"], row["losses"], row["steps"]) for row in content["optimizers"]} == {
        "g_opt": (["G"], ["g_loss"], 8),
        "d_opt": (["D"], ["d_loss"], 8),
    }
    assert content["cycles"] == {"seen": 8, "books": 8}


def test_a_leak_that_a_step_used(tmp_path):
    content = report(LEAK, tmp_path)
    (finding,) = (f for f in content["findings"] if f["severity"] != "note")
    assert (finding["name"], finding["severity"], finding["line"]) == ("late_zero_grad", "error", 15)
    assert finding["message"] == "g_opt stepped G on d_loss's gradient as well, in 8 of 8 steps"


LOOP = """
    import torch
    from torch import nn

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    opt = torch.optim.SGD(PARAMETERS, lr=0.1)
    for step in range(6):
        loss = net(torch.randn(16, 4)).square().mean()
        BODY
"""
BODIES = {
    "in order": ("opt.zero_grad(); loss.backward(); opt.step()", "net.parameters()", []),
    "cleared after the step": ("loss.backward(); opt.step(); opt.zero_grad()", "net.parameters()", []),
    "cleared by the module": ("net.zero_grad(); loss.backward(); opt.step()", "net.parameters()", []),
    "cleared by hand": (
        "loss.backward(); opt.step(); [setattr(p, 'grad', None) for p in net.parameters()]",
        "net.parameters()",
        [],
    ),
    "cleared to zeros": ("opt.zero_grad(set_to_none=False); loss.backward(); opt.step()", "net.parameters()", []),
    "clipped": (
        "opt.zero_grad(); loss.backward(); nn.utils.clip_grad_norm_(net.parameters(), 0.1); opt.step()",
        "net.parameters()",
        [],
    ),
    "accumulated": (
        "(loss / 2).backward()\n        if step % 2: opt.step(); opt.zero_grad()",
        "net.parameters()",
        [],
    ),
    "never cleared": ("loss.backward(); opt.step()", "net.parameters()", ["never_zeroed"]),
    "cleared in between": ("loss.backward(); opt.zero_grad(); opt.step()", "net.parameters()", ["empty_step"]),
    "listed twice": (
        "opt.zero_grad(); loss.backward(); opt.step()",
        "[*net.parameters(), *net[0].parameters()]",
        ["listed_twice"],
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_loop(name, tmp_path):
    body, parameters, expected = BODIES[name]
    content = report(LOOP.replace("BODY", body).replace("PARAMETERS", parameters), tmp_path)
    assert names(content, "error") == expected
    assert list(content["matrix"]) == ["loss"]
    assert {cell["state"] for cell in content["matrix"]["loss"].values()} == {"open"}


class TestCommand:
    def test_arguments_exit_status_and_main_are_the_script_s(self, tmp_path):
        script = write(tmp_path, "import sys\nprint(__name__, sys.argv)\nsys.exit(7)")
        ran = run(script, "--lr", "1", "-m", cwd=tmp_path)
        assert ran.returncode == 7
        assert ran.stdout == f"__main__ ['{script}', '--lr', '1', '-m']\n"
        assert "nothing to report: no backward ran" in ran.stderr

    def test_its_traceback_has_no_frame_of_ours(self, tmp_path):
        broken = LOOP.replace("BODY", "loss.backward(); loss.backward()").replace("PARAMETERS", "net.parameters()")
        ran = run(write(tmp_path, broken), cwd=tmp_path)
        assert ran.returncode == 1
        assert "Trying to backward through the graph a second time" in ran.stderr
        assert "stopgrad/watch" not in ran.stderr
        assert "runpy" not in ran.stderr

    def test_a_script_that_is_no_python(self, tmp_path):
        """Its traceback has no frame at all."""
        ran = run(write(tmp_path, "print 'as it was'"), cwd=tmp_path)
        assert ran.returncode == 1
        assert "SyntaxError" in ran.stderr
        assert "nothing to report: no backward ran" in ran.stderr

    def test_check_passes_and_fails(self, tmp_path):
        script = write(tmp_path, RIGHT)
        assert run("--save", "flow.json", script, cwd=tmp_path).returncode == 0
        again = run("--save", "flow.json", script, cwd=tmp_path)
        assert again.returncode == 2
        assert again.stderr == "error: --save flow.json: is there already; --force replaces it\n"
        assert run("--check", "flow.json", script, cwd=tmp_path).returncode == 0
        write(tmp_path, LEAK)
        ran = run("--check", "flow.json", script, cwd=tmp_path)
        assert ran.returncode == 1
        assert ran.stderr.endswith("the flow differs from flow.json:\n+ d_loss reaches G\n")

    def test_fail_on(self, tmp_path):
        script = write(tmp_path, LEAK)
        assert run("--fail-on", "error", script, cwd=tmp_path).returncode == 1
        assert run("--fail-on", "error", "--silence", "late_zero_grad", "--", script, cwd=tmp_path).returncode == 0

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["nowhere.py"], "nowhere.py: no such script"),
            (["-m", "nowhere"], "-m nowhere: no such module"),
            (["--check", "nowhere.json", "train.py"], "--check nowhere.json: No such file or directory"),
            (["--check", "train.py", "train.py"], "--check train.py: no flow that --save has written"),
            (["--json", "no/where.json", "train.py"], "--json no/where.json: the folder cannot be written"),
        ],
    )
    def test_what_is_refused(self, arguments, said, tmp_path):
        write(tmp_path, "print('ran')")
        ran = run(*arguments, cwd=tmp_path)
        assert (ran.returncode, ran.stdout, ran.stderr) == (2, "", f"error: {said}\n")


class TestColumnsAndRows:
    SCRIPT = """
        import torch
        from torch import nn

        torch.manual_seed(0)
        body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8))
        left, right = nn.Linear(8, 1), nn.Linear(8, 1)
        parameters = [*body.parameters(), *left.parameters(), *right.parameters()]
        opt = torch.optim.SGD(parameters, lr=0.1)
        for step in range(3):
            hidden = body(torch.randn(16, 4))
            one, two = left(hidden).square().mean(), right(hidden.detach()).square().mean()
            loss = one + 0.5 * two
            opt.zero_grad()
            loss.backward()
            opt.step()
        print(sum(p.double().sum().item() for p in parameters))
    """

    def test_terms_have_rows_and_norms_where_they_are_asked_for(self, tmp_path):
        script = write(tmp_path, self.SCRIPT)
        told = {}
        for name, more in (("without", []), ("with", ["--terms"])):
            ran = run("--cycles", "1", "--every", "0", *more, "--json", f"{name}.json", script, cwd=tmp_path)
            assert ran.returncode == 0, ran.stderr
            told[name] = json.loads((tmp_path / f"{name}.json").read_text())["matrix"], ran.stdout
        assert told["with"][1] == told["without"][1], "no weight differs"
        for matrix, _ in told.values():
            states = {term: {part: cell["state"] for part, cell in matrix[term].items()} for term in ("one", "two")}
            assert states["one"] == {"body": "open", "left": "open", "right": "independent"}
            assert states["two"] == {"body": "blocked", "left": "independent", "right": "open"}
        matrix = told["with"][0]
        assert matrix["one"]["left"]["norm"] == pytest.approx(matrix["loss"]["left"]["norm"], rel=1e-6)
        assert matrix["two"]["right"]["norm"] == pytest.approx(2 * matrix["loss"]["right"]["norm"], rel=1e-6)
        assert told["without"][0]["one"]["left"]["norm"] == 0

    def test_depth_and_parts_choose_the_columns(self, tmp_path):
        script = write(tmp_path, self.SCRIPT)
        ran = run("--depth", "2", "--parts", r"^body\.", "--json", "report.json", script, cwd=tmp_path)
        assert ran.returncode == 0, ran.stderr
        assert json.loads((tmp_path / "report.json").read_text())["parts"] == ["body.0", "body.2"]

    @pytest.mark.parametrize(
        ("options", "line"),
        [
            (["--depth", "0"], "error: --depth 0: choose a number from 1"),
            (["--parts", "("], "error: --parts (: no regular expression: "),
            (["--silence", "late_zero_gard"], "error: --silence: no finding is named 'late_zero_gard'"),
        ],
    )
    def test_bad_options_are_one_line_before_the_script_runs(self, options, line, tmp_path):
        ran = run(*options, "--json", "report.json", write(tmp_path, "print('ran')"), cwd=tmp_path)
        assert (ran.returncode, ran.stdout) == (2, "")
        assert ran.stderr.startswith(line)
        assert ran.stderr.count("\n") == 1


def test_colour_is_for_terminals_alone(monkeypatch):
    import io

    from stopgrad.watch.report import for_a_terminal

    text = "        G             D\nd_loss  open 1.0e+00  blocked\n\nerror: gan.py:8: zero gradients  [x]\n    open it"
    terminal = io.StringIO()
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert for_a_terminal(text, terminal) == text
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    coloured = for_a_terminal(text, terminal)
    assert coloured.count("\033[32mopen\033[0m") == 1
    assert "\n\033[31merror\033[0m: gan.py:8: zero gradients" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert for_a_terminal(text, terminal) == text


@pytest.mark.parametrize(("between", "expected"), [("one.zero_grad()", ["note"]), ("pass", ["error"])])
def test_two_optimisers_of_one_network_are_noted_where_they_share_no_gradient(between, expected, tmp_path):
    content = report(
        f"""
        import torch
        from torch import nn

        torch.manual_seed(0)
        net = nn.Linear(4, 1)
        one, two = torch.optim.SGD(net.parameters(), lr=0.1), torch.optim.Adam(net.parameters())
        for step in range(6):
            loss = net(torch.randn(16, 4)).square().mean()
            one.zero_grad()
            loss.backward()
            one.step()
            {between}
            if {between!r} != "pass":
                net(torch.randn(16, 4)).abs().mean().backward()
            two.step()
        """,
        tmp_path,
    )
    found = [(f["name"], f["severity"]) for f in content["findings"]]
    assert found == [("stepped_by_two", grade) for grade in expected]


class TestItsOwnFailures:
    """They never reach the script, and are told."""

    def broken(self, patch: str, folder: Path) -> tuple[Ran, Ran]:
        script = write(folder, RIGHT)
        alone = python(script, cwd=folder)
        start = "import sys\nfrom stopgrad.__main__ import main\nsys.exit(main(sys.argv[1:]))"
        (folder / "broken.py").write_text(f"{patch}\n{start}")
        return alone, python(folder / "broken.py", "run", "--json", "report.json", script, cwd=folder)

    @pytest.mark.parametrize(
        ("module", "patch", "note"),
        [
            ("ledger", "Ledger.step", "the watch failed in cycle 1 ("),
            ("span", "Span.end", "the watch failed in cycle 1 ("),
            ("span", "audit.__enter__", "the watch failed in cycle 1 ("),
            ("ranks", "Ranks.compare", "the watch failed in cycle 8 ("),
            ("findings", "RULES[0]", "the rule <lambda> failed: "),
        ],
    )
    def test_the_script_is_what_it_is_alone(self, module, patch, note, tmp_path):
        load = "import stopgrad.watch.rules\n" if module == "findings" else ""
        alone, watched = self.broken(
            f"{load}import stopgrad.watch.{module} as at\nat.{patch} = lambda *_: 1 / 0", tmp_path
        )
        assert (watched.returncode, watched.stdout) == (0, alone.stdout)
        (told,) = failures(json.loads((tmp_path / "report.json").read_text()))
        assert told.startswith(f"{note}ZeroDivisionError: ")


RANKS = """
    import sys

    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

    rank, folder = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    net = nn.Linear(4, 1)
    model = WRAPPED
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(rank)
    for step in range(10):
        loss = model(torch.randn(8, 4)).square().mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    dist.destroy_process_group()
"""


@pytest.mark.parametrize(("wrapped", "expected"), [("DistributedDataParallel(net)", []), ("net", ["ranks_drift"])])
def test_of_two_ranks_the_first_tells_whether_they_drift(wrapped, expected, tmp_path):
    script = write(tmp_path, RANKS.replace("WRAPPED", wrapped))
    arguments = ["-m", "stopgrad", "run", "--json", "report.json", script]
    with ThreadPoolExecutor(2) as pool:  # how they exit is torch's: 2.13 aborts one of gloo's ranks now and then
        ranks = [pool.submit(python, *arguments, rank, tmp_path, cwd=tmp_path / f"rank{rank}") for rank in range(2)]
    told = [rank.result().stderr.count("stopgrad: 10 cycles") for rank in ranks]
    assert told == [1, 0], "rank 0 reports"
    content = json.loads((tmp_path / "rank0" / "report.json").read_text())
    assert not failures(content)
    assert [f["name"] for f in content["findings"]] == expected
    assert content["parts"] == ["net"]


def test_a_returned_loss_is_named_whatever_else_is_imported(monkeypatch):
    """A lazy module of something that is not installed raises when it is asked for its file."""

    class Lazy(ModuleType):
        def __getattr__(self, name: str) -> None:
            raise ImportError(name)

    def training_step(batch: int) -> dict[str, int]:
        q_loss = 2 * batch
        return {"loss": q_loss, "steps": 1}

    monkeypatch.setattr(inspect, "modulesbyfile", {})  # it remembers
    monkeypatch.setitem(sys.modules, "lazy", Lazy("lazy"))
    line = training_step.__code__.co_firstlineno + 2
    assert returned(training_step.__code__) == ("q_loss", __file__, line)


def test_a_stop_is_switched_on_every_rank(tmp_path):
    cut = RANKS.replace(
        "model(torch.randn(8, 4))", "(model(torch.randn(8, 4)) + head(net(torch.randn(8, 4)).detach()))"
    )
    cut = cut.replace("    opt = ", "    head = nn.Linear(1, 1)\n    opt = ").replace(
        "WRAPPED", "DistributedDataParallel(net)"
    )
    script = write(tmp_path, cut + "    print(net.weight.tolist())\n")
    line = next(n for n, text in enumerate(Path(script).read_text().splitlines(), 1) if ".detach()" in text)
    said = {}
    for stop in ([], ["--stop", f"{line}=none"]):
        arguments = ["-m", "stopgrad", "run", "--json", "report.json", *stop, script]
        folder = tmp_path / f"run{len(stop)}"
        folder.mkdir()
        with ThreadPoolExecutor(2) as pool:
            ranks = [pool.submit(python, *arguments, rank, folder, cwd=folder / f"rank{rank}") for rank in range(2)]
        said[len(stop)] = [rank.result().stdout for rank in ranks]
        assert not failures(json.loads((folder / "rank0" / "report.json").read_text()))
    assert said[0][0] == said[0][1] != said[2][0] == said[2][1]  # in step, and otherwise
