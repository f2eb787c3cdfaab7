"""``python -m stopgrad propose``: what it finds in scripts of all shapes, what it refuses, what it writes."""

from __future__ import annotations

import textwrap

import pytest

from conf_tests.propose.asking import propose
from conf_tests.watch.processes import python
from stopgrad.propose.edits import Source
from stopgrad.propose.graph import Choice

HEAD = """
import torch
from torch import nn

torch.manual_seed(0)
G, D, E = nn.Linear(4, 4), nn.Linear(4, 1), nn.Linear(4, 4)
g_opt = torch.optim.SGD([*G.parameters(), *E.parameters()], lr=0.1)
d_opt = torch.optim.SGD(D.parameters(), lr=0.1)
"""


@pytest.fixture
def script(tmp_path):
    """Write a script after ``HEAD``, which has the networks G, D and E; and ask about it."""

    def write(text: str, *arguments: str, head: str = HEAD):
        file = tmp_path / "train.py"
        file.write_text(head.lstrip() + textwrap.dedent(text))
        return propose(file, *arguments)

    return write


def answer(said) -> list[str]:
    """What each edit writes, without its place."""
    assert said.status == 0, said.out + said.err
    assert said.json["verified"], said.out
    return [line[1:].strip() for e in said.json["edits"] for line in e["diff"].splitlines()[2:] if line[0] == "+"]


STEP = """
for step in range(5):
    d_opt.zero_grad()
    d_loss = {d_loss}
    d_loss.backward()
    d_opt.step()
    g_opt.zero_grad()
    g_loss = {g_loss}
    g_loss.backward()
    g_opt.step()
"""


# ---- what is found


def test_a_value_that_two_losses_share_is_cut_where_the_one_uses_it(script):
    step = STEP.format(d_loss="D(fake).mean() - D(torch.randn(8, 4)).mean()", g_loss="-D(fake).mean()")
    step = step.replace("    d_opt.zero_grad()\n", "    fake = G(torch.randn(8, 4))\n    d_opt.zero_grad()\n")
    step = step.replace("d_loss.backward()", "d_loss.backward(retain_graph=True)")
    step = step.replace("    g_opt.zero_grad()\n", "").replace("    d_opt.step()\n", "")
    said = script(step, "--not", "d_loss:G")
    assert answer(said) == ["d_loss = D(fake.detach()).mean() - D(torch.randn(8, 4)).mean()"]
    assert said.json["equal"] == []  # what stands before, g_loss needs


def test_a_part_on_the_way_to_another_is_frozen_while_it_is_called(script):
    said = script(
        STEP.format(d_loss="D(torch.randn(8, 4)).mean()", g_loss="-D(G(torch.randn(8, 4))).mean()"), "--not", "g_loss:D"
    )
    assert answer(said)[0] == "D.requires_grad_(False)"
    assert answer(said)[1] == "D.requires_grad_(True)"
    assert [edit["kind"] for edit in said.json["edits"]] == ["freeze"]


def test_several_files_and_a_method_that_both_losses_call(tmp_path):
    (tmp_path / "nets.py").write_text(
        textwrap.dedent("""
        from torch import nn

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.trunk, self.head, self.probe = nn.Linear(4, 8), nn.Linear(8, 1), nn.Linear(8, 1)

            def forward(self, x):
                features = self.trunk(x)
                return self.head(features), self.probe(features)
        """)
    )
    (tmp_path / "train.py").write_text(
        textwrap.dedent("""
        import torch
        from nets import Net

        def main():
            net = Net()
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
            for _ in range(4):
                said, probed = net(torch.randn(8, 4))
                head_loss, probe_loss = said.mean(), probed.mean()
                loss = head_loss + probe_loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

        main()
        """)
    )
    said = propose(tmp_path / "train.py", "--not", "probe_loss:trunk", "--write")
    assert answer(said) == ["return self.head(features), self.probe(features.detach())"]
    assert "self.probe(features.detach())" in (tmp_path / "nets.py").read_text()
    again = propose(tmp_path / "train.py", "--not", "probe_loss:trunk")
    assert again.status == 0
    assert again.json["met"]
    assert again.json["edits"] == []


@pytest.mark.parametrize(
    ("made", "cut"),
    [
        ("[D(G(x)) for x in torch.randn(3, 8, 4)]", "[D(G(x).detach()) for x in torch.randn(3, 8, 4)]"),
        (
            "list(map(lambda x: D(G(x)), torch.randn(3, 8, 4)))",
            "list(map(lambda x: D(G(x).detach()), torch.randn(3, 8, 4)))",
        ),
        (
            "[D(f) for f in {'a': G(torch.randn(8, 4))}.values()]",
            "[D(f) for f in {'a': G(torch.randn(8, 4)).detach()}.values()]",
        ),
        ("[D(fake := G(torch.randn(8, 4)))]", "[D(fake := G(torch.randn(8, 4)).detach())]"),
        ("[D((G(torch.randn(8, 4)) * 2))]", "[D((G(torch.randn(8, 4)).detach() * 2))]"),
    ],
)
def test_comprehensions_lambdas_and_what_stands_in_an_expression(script, made, cut):
    said = script(
        STEP.format(d_loss=f"torch.stack({made}).mean()", g_loss="-G(torch.randn(8, 4)).mean()"), "--not", "d_loss:G"
    )
    written = [edit["diff"] for edits in (said.json["edits"], *said.json["equal"]) for edit in edits]
    assert said.status == 0, said.err
    assert any(cut in diff for diff in written), said.out


def test_a_loop_and_decorators(script):
    said = script(
        """
        def logged(function):
            def wrapper(*args):
                return function(*args)
            return wrapper

        @logged
        def loss_of(x):
            total = 0.0
            for scale in (0.5, 1.0, 2.0):
                total = total + D(scale * G(x)).mean()
            return total

        for step in range(4):
            loss = loss_of(torch.randn(8, 4))
            g_opt.zero_grad(), d_opt.zero_grad()
            loss.backward()
            d_opt.step(), g_opt.step()
        """,
        "--not",
        "loss:G",
    )
    assert len(said.json["edits"]) == 1
    assert "total = total + D(scale * G(x).detach()).mean()" in "".join(
        edit["diff"] for edits in (said.json["edits"], *said.json["equal"]) for edit in edits
    )


def test_two_edits_where_one_does_not_do_it(script):
    text = STEP.format(
        d_loss="D(G(x)).mean() + D(G(x) * 2).mean() + G.bias.sum() * E(x).sum()", g_loss="-G(torch.randn(8, 4)).mean()"
    )
    said = script(text.replace("    d_loss =", "    x = torch.randn(8, 4)\n    d_loss ="), "--not", "d_loss:G")
    assert said.status == 0, said.out
    assert len(said.json["edits"]) == 1  # G frozen during the statement
    text = text.replace("D(G(x)).mean() + D(G(x) * 2).mean()", "first").replace("d_loss =", "d_loss =", 1)
    text = text.replace("    d_loss =", "    x = torch.randn(8, 4)\n    first = D(G(x)).mean()\n    d_loss =")
    said = script(text, "--not", "d_loss:G")
    assert len(said.json["edits"]) == 2
    assert "no single one does it" in said.out


def test_the_edit_that_weakens_least_where_none_is_harmless(script):
    said = script(
        STEP.format(d_loss="D(G(E(x))).mean() + E(x).mean()", g_loss="-G(x).mean()").replace(
            "    d_opt.z", "    x = torch.randn(8, 4)\n    d_opt.z"
        ),
        "--not",
        "d_loss:G",
    )
    assert [edit["kind"] for edit in said.json["edits"]] == ["freeze"]  # what runs through G to E stays


def test_a_module_that_could_not_be_thawed_as_it_was_is_not_frozen(script):
    step = STEP.format(d_loss="D(torch.randn(8, 4)).mean()", g_loss="-D(G(torch.randn(8, 4))).mean()")
    said = script("D.bias.requires_grad_(False)\n" + step, "--not", "g_loss:D")
    assert said.status == 1
    assert "g_loss -> D" in said.out


def test_an_edit_that_does_not_do_it_is_not_told(script):
    """A reentrant checkpoint gives no gradient at all where its input carries none: the values cannot tell."""
    said = script(
        """
        from torch.utils.checkpoint import checkpoint

        for step in range(4):
            loss = D(checkpoint(G, E(torch.randn(8, 4)), use_reentrant=True)).mean()
            g_opt.zero_grad(), d_opt.zero_grad()
            loss.backward()
            g_opt.step(), d_opt.step()
        """,
        "--not",
        "loss:E",
    )
    assert said.status == 1
    assert "detach E(torch.randn(8, 4)): with it, loss -> G is " in said.out
    assert said.json["edits"] == []


# ---- values and boundaries as parts


def test_a_value_is_a_part(script):
    said = script(
        """
        for step in range(4):
            x = torch.randn(8, 4)
            target = 1 + 0.9 * D(x + 1)
            loss = (D(x) - target).square().mean()
            d_opt.zero_grad()
            loss.backward()
            d_opt.step()
        """,
        "--not",
        "loss:target@train.py:11",
    )
    assert answer(said) == ["with torch.no_grad():", "target = 1 + 0.9 * D(x + 1)"]
    assert "by fewer ways" not in said.out  # what leads to D through the target is not to stay
    places = {(edits[0]["line"], edits[0]["kind"]) for edits in said.json["equal"]}
    assert {(12, "detach"), (11, "freeze"), (11, "detach")} <= places


def test_a_value_in_a_tuple_and_an_attribute(script):
    said = script(
        """
        class Agent:
            def learn(self):
                x = torch.randn(8, 4)
                self.target, now = 0.9 * D(x + 1), D(x)
                return (now - self.target).square().mean()

        agent = Agent()
        for step in range(4):
            loss = agent.learn()
            d_opt.zero_grad()
            loss.backward()
            d_opt.step()
        """,
        "--not",
        "loss:self.target@train.py:12",
    )
    assert answer(said) == ["self.target, now = 0.9 * D(x + 1).detach(), D(x)"]
    assert "(now - self.target.detach()).square()" in "".join(e["diff"] for edits in said.json["equal"] for e in edits)


def test_an_argument_is_a_part(script):
    """SimSiam: both sides are of one encoder, and what a prediction is compared with is to stand still."""
    said = script(
        """
        def distance(p, z):
            return -torch.cosine_similarity(p, z).mean()

        for step in range(4):
            left, right = torch.randn(8, 4), torch.randn(8, 4)
            z_left, z_right = E(left), E(right)
            loss = distance(G(z_left), z_right) / 2 + distance(G(z_right), z_left) / 2
            g_opt.zero_grad()
            loss.backward()
            g_opt.step()
        """,
        "--not",
        "loss:z@train.py:9",
    )
    assert answer(said) == ["return -torch.cosine_similarity(p, z.detach()).mean()"]
    assert said.json["equal"] == []


def test_boundaries_are_parts(script):
    text = """
        from stopgrad import Boundary

        fakes, codes = Boundary("fakes", "none"), Boundary("codes")
        for step in range(4):
            code = codes.cross(E(torch.randn(8, 4)))
            fake = fakes(G, code)
            loss = D(fake).mean() + G(code).mean()
            g_opt.zero_grad(), d_opt.zero_grad()
            loss.backward()
            g_opt.step(), d_opt.step()
        """
    said = script(text, "--not", "loss:stop.fakes")
    assert answer(said) == ['fakes, codes = Boundary("fakes", "detach"), Boundary("codes")']
    said = script(text, "--reach", "loss:E")
    assert answer(said) == ['fakes, codes = Boundary("fakes", "none"), Boundary("codes", "none")']


# ---- what is to be reached


@pytest.mark.parametrize(
    ("made", "removed"),
    [
        ("fake = G(x).detach()", ["fake = G(x)"]),
        ("fake = torch.detach(G(x))", ["fake = G(x)"]),
        ("fake = G(x).data", ["fake = G(x)"]),
        ("with torch.no_grad():\n        fake = G(x)", ["fake = G(x)"]),
        ("fake = generated(x)", []),
        ("fake = frozen(x)", ["fake = frozen(x)"]),
    ],
)
def test_the_cut_that_keeps_a_loss_from_a_part_is_removed(script, made, removed):
    functions = """
@torch.no_grad()
def generated(x):
    return G(x)


F = nn.Linear(4, 4)
for p in F.parameters():
    p.requires_grad_(False)
"""
    body = STEP.format(d_loss="D(fake).mean()", g_loss="-G(x).mean()")
    body = functions + body.replace("    d_opt.z", f"    x = torch.randn(8, 4)\n    {made}\n    d_opt.z", 1)
    if "frozen" in made:
        body = body.replace("frozen(x)", "F(x)")
    said = script(body, "--reach", f"d_loss:{'F' if 'frozen' in made else 'G'}")
    assert said.status == 0, said.out + said.err
    assert said.json["verified"]
    assert [edit["kind"] for edit in said.json["edits"]] == ["remove"]
    assert answer(said) == ([] if "frozen" in made else removed)
    gone = "".join(line[1:] for e in said.json["edits"] for line in e["diff"].splitlines(True)[2:] if line[0] == "-")
    if "generated" in made:
        assert gone == "@torch.no_grad()\n"
    if "frozen" in made:
        assert gone == "for p in F.parameters():\n    p.requires_grad_(False)\n"


def test_what_no_line_of_the_script_can_open(script):
    said = script(
        STEP.format(d_loss="(D(x) * G(x).argmax()).mean()", g_loss="-G(x).mean()").replace(
            "    d_opt.z", "    x = torch.randn(8, 4)\n    d_opt.z"
        ),
        "--reach",
        "d_loss:G",
    )
    assert said.status == 1
    assert "no_derivative (argmax) at train.py" in said.out
    said = script(
        STEP.format(d_loss="D(x).mean()", g_loss="-G(x).mean()").replace(
            "    d_opt.z", "    x = torch.randn(8, 4)\n    d_opt.z"
        ),
        "--reach",
        "d_loss:G",
    )
    assert said.status == 1
    assert "does not depend on it" in said.out


def test_a_gradient_that_arrives_and_is_zero(script):
    said = script(
        STEP.format(d_loss="(D(x) + 0 * G(x)).mean()", g_loss="-G(x).mean()").replace(
            "    d_opt.z", "    x = torch.randn(8, 4)\n    d_opt.z"
        ),
        "--reach",
        "d_loss:G",
    )
    assert said.status == 1
    assert "it arrives, and is zero: d_loss -> G" in said.out


def test_an_edit_with_which_the_script_never_ends(script):
    """It is tried, ended, and not told."""
    step = STEP.format(d_loss="D(fake).mean()", g_loss="-G(x).mean()")
    step = step.replace(
        "    d_opt.z",
        "    x = torch.randn(8, 4)\n    fake = G(x)\n    while not fake.requires_grad:\n        pass\n    d_opt.z",
        1,
    )
    said = script(step, "--not", "d_loss:G", "--timeout", "8")
    assert said.status == 0
    assert answer(said) == ["d_loss = D(fake.detach()).mean()"]


def test_a_cut_is_removed_and_another_made(script):
    text = STEP.format(d_loss="D(G(E(x)).detach()).mean()", g_loss="-G(E(x)).mean()").replace(
        "    d_opt.z", "    x = torch.randn(8, 4)\n    d_opt.z"
    )
    said = script(text, "--reach", "d_loss:G", "--not", "d_loss:E")
    assert sorted(edit["kind"] for edit in said.json["edits"]) == ["detach", "remove"], said.out
    assert said.json["verified"]


def test_a_contract_in_a_file(script, tmp_path):
    (tmp_path / "flow.yaml").write_text("d_loss: {D: open, G: blocked}\ng_loss: {G: open}\n")
    said = script(
        STEP.format(d_loss="D(G(torch.randn(8, 4))).mean()", g_loss="-G(torch.randn(8, 4)).mean()"),
        "--contract",
        "flow.yaml",
    )
    assert said.status == 0, said.err
    assert len(said.json["edits"]) == 1


# ---- where there is none


def test_wishes_that_contradict_each_other_on_a_way(script):
    step = STEP.format(d_loss="D(fake).mean()", g_loss="-G(torch.randn(8, 4)).mean()")
    step = step.replace("    d_opt.z", "    fake = G(torch.randn(8, 4))\n    d_opt.z", 1)
    said = script(step, "--not", "d_loss:G", "--reach", "d_loss:fake@train.py:10")
    assert said.status == 1
    assert said.out.startswith(
        "none\nd_loss -> G is not to be reached, and d_loss -> fake@train.py:10 is to be: they contradict"
    )
    assert said.json["edits"] == []
    assert not said.json["verified"]


def test_a_way_on_which_everything_carries_what_must_stay(script):
    """One operation takes both: no value of the script's lies between."""
    said = script(
        """
        pair = [nn.Linear(4, 4), nn.Linear(4, 4)]
        optimizer = torch.optim.SGD([p for net in pair for p in net.parameters()], lr=0.1)

        def total():
            return torch.nn.utils.parameters_to_vector([p for net in pair for p in net.parameters()]).sum()

        for step in range(4):
            optimizer.zero_grad()
            total().backward()
            optimizer.step()
        """,
        "--not",
        "total():pair[0]",
    )
    assert said.status == 1, said.out
    assert (
        "total() -> pair[0] is not to be reached, and total() -> pair[1] is open and must stay so: they contradict"
        in said.out
    )
    assert " <- cat (train.py:13) <- " in said.out


def test_a_loss_that_would_reach_nothing(script):
    said = script(
        STEP.format(d_loss="D(torch.randn(8, 4)).mean()", g_loss="-G(torch.randn(8, 4)).mean()"), "--not", "d_loss:D"
    )
    assert said.status == 1
    assert "d_loss would reach nothing at all: leave its backward out" in said.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--not", "d_los:G"], "no loss 'd_los'; there is d_loss, g_loss; did you mean d_loss?"),
        (["--not", "d_loss:H"], "no part 'H'; there is"),
        (["--not", "d_loss"], "write LOSS:PART"),
        (["--not", "d_loss:G", "--reach", "d_loss:G"], "--not d_loss:G and --reach d_loss:G contradict each other"),
        ([], "nothing is asked for"),
        (["--not", "d_loss:fake@train.py:3"], "fake gets no value in train.py:3; it does in 10"),
        (["--not", "d_loss:fake@none.py:3"], "no such file as none.py"),
        (["--contract", "none.yaml"], "--contract none.yaml: no such file"),
        (["--not", "d_loss:G", "--json", "none/a.json"], "--json none/a.json"),
    ],
)
def test_bad_input_is_told_in_one_line(script, arguments, words):
    step = STEP.format(d_loss="D(fake).mean()", g_loss="-G(torch.randn(8, 4)).mean()")
    said = script(step.replace("    d_opt.z", "    fake = G(torch.randn(8, 4))\n    d_opt.z", 1), *arguments)
    assert said.status == 2
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert words in said.err


def test_a_script_that_raises_after_a_cycle_and_one_that_raises_before(script):
    step = STEP.format(d_loss="D(G(torch.randn(8, 4))).mean()", g_loss="-G(torch.randn(8, 4)).mean()")
    said = script(step + "    raise KeyError('over')\n", "--not", "d_loss:G")
    assert len(said.json["edits"]) == 1
    assert said.json["verified"]
    said = script("raise KeyError('at once')\n" + step, "--not", "d_loss:G")
    assert said.status == 2
    assert said.err.count("\n") == 1
    assert "KeyError: 'at once'" in said.err


def test_a_script_that_never_ends_is_ended(script):
    said = script("while True:\n    pass\n", "--not", "d_loss:G", "--timeout", "1")
    assert said.status == 2
    assert "had not shown d_loss after 1 s; --timeout SECONDS" in said.err


def test_the_scripts_own_arguments(script):
    step = STEP.format(d_loss="D(G(torch.randn(8, 4))).mean()", g_loss="-G(torch.randn(8, 4)).mean()")
    checked = "import sys\nassert sys.argv[1:] == ['--steps', '3', '--json', 'mine'], sys.argv\n"
    said = script(checked + step, "--not", "d_loss:G", "--", "--steps", "3", "--json", "mine")
    assert len(said.json["edits"]) == 1


# ---- what is written


def test_a_file_that_was_changed_meanwhile_is_left_alone(tmp_path):
    file = tmp_path / "a.py"
    file.write_text("y = f(x)\n")
    source = Source(str(file))
    site = next(site for site in source.sites if site.kind == "value")
    edit = source.edit(Choice("detach", (str(file), site.index)))
    assert edit is not None
    file.write_text("y = f(x)  # mine\n")
    with pytest.raises(ValueError, match="changed meanwhile"):
        source.write([edit])
    assert file.read_text() == "y = f(x)  # mine\n"


# ---- the probe


def test_the_probed_script_gives_its_own_numbers(tmp_path):
    """What it prints until it is stopped is what it prints alone: in-place writes, views, hooks and own gradients."""
    text = """
        from torch.nn import functional as F
        from torch.utils.checkpoint import checkpoint

        def gradient(y, x):
            return torch.autograd.grad(y, x, torch.ones_like(y), create_graph=True)[0]

        for step in range(6):
            x = torch.randn(8, 4)
            h = F.leaky_relu(G(x) * 2, 0.1).clone()
            h += 1
            h[0] = 0.5 * h[1]
            h.mul_(2)
            h.retain_grad()
            inner = G(torch.randn(8, 4))
            energy = D(inner).sin().sum()
            slope = gradient(energy, inner)
            first, *rest = h.unbind(1)
            kept = checkpoint(E, h, use_reentrant=False)
            loss = (D(h) + slope.norm() + first.exp().mean() + kept.mean()).square().mean()
            g_opt.zero_grad(), d_opt.zero_grad()
            loss.backward()
            print(step, loss.item(), h.grad.norm().item())
            g_opt.step(), d_opt.step()
    """
    import pickle

    file = tmp_path / "train.py"
    file.write_text(HEAD.lstrip() + textwrap.dedent(text))
    alone = python(file, cwd=tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr
    (tmp_path / "probe.py").write_text(
        "import sys\nfrom pathlib import Path\nfrom stopgrad.propose.record import Job, record\n"
        "record(Job(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    probed = python(tmp_path / "probe.py", file, tmp_path, cwd=tmp_path / "probed")
    assert probed.stderr == ""
    assert len(probed.stdout.splitlines()) == 3
    assert alone.stdout.startswith(probed.stdout)
    record = pickle.loads((tmp_path / "record.pickle").read_bytes())
    assert not record.error
    assert {"G", "D", "E"} <= set(record.matrix.parts)
    assert sum(len(span.notes.uses) for span in record.spans) > 20
