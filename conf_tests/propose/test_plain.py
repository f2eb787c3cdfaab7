"""Each plain script of a recipe with its cut taken out: an edit of that size is found and tried, the cut among them."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from conf_tests.helpers import ROOT
from conf_tests.propose.asking import propose


@dataclass(frozen=True)
class Case:
    """A cut that is taken out, and what is then asked for.

    Attributes:
        cut: what stands in the script, and what stands there without the cut.
        wishes: with LINE for the line of the cut.
        lines: on so many lines, from that one of them on, an edit is the script's own cut.
        also: what makes the script quick.
    """

    name: str
    cut: tuple[str, str]
    wishes: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    lines: tuple[int, int] = (0, 1)
    also: tuple[tuple[str, str], ...] = field(default=())


FREEZE = "{0}.requires_grad_(False)  # the cut"
CASES = {
    "td": Case("td", ("value(following).detach()", "value(following)"), ("loss:target@td.py:LINE",), ("--steps", "3")),
    "dirac_gan d": Case("dirac_gan", ("fake = theta.detach()", "fake = theta"), ("d_loss:theta",), ("--steps", "3")),
    "dirac_gan g": Case("dirac_gan", ("slope = psi.detach()", "slope = psi"), ("g_loss:psi",), ("--steps", "3")),
    "finetune_linear": Case(
        "finetune_linear", ("backbone(inputs).detach()", "backbone(inputs)"), ("loss:backbone",), ("--steps", "3")
    ),
    "finetune": Case(
        "finetune",
        ("backbone(new_images[here]).detach()", "backbone(new_images[here])"),
        ("loss:backbone",),
        ("--steps", "3", "--pretrain_steps", "2"),
    ),
    "branch": Case("branch", ("trunk(both).detach()", "trunk(both)"), ("domain_loss:trunk",), ("--steps", "3")),
    "actor_critic": Case(
        "actor_critic",
        (
            "        with torch.no_grad():  # the cut: neither loss may teach the critic "
            "through its own estimates\n    ",
            "",
        ),
        ("policy_loss + VALUE_WEIGHT * value_loss:values@actor_critic.py:LINE",),
        ("--steps", "1"),
    ),
    "td3 critic": Case(
        "td3",
        ("with torch.no_grad():  # the cut: the target stays put", "if True:"),
        ("critic_loss:target_actor", "critic_loss:target_critic"),
        ("--steps", "2"),
        (1, 3),
    ),
    "td3 actor": Case(
        "td3",
        ("            critic.requires_grad_(False)  # the cut", "            # the cut"),
        ("actor_loss:critic",),
        ("--steps", "2"),
        (1, 1),
    ),
    "gan d": Case(
        "gan",
        (
            "generator(torch.randn(BATCH, LATENT)).detach()  # the cut",
            "generator(torch.randn(BATCH, LATENT))  # the cut",
        ),
        ("d_loss + PENALTY * penalty:generator",),
        ("--steps", "2"),
        also=(("for _ in range(30):", "for _ in range(1):"),),
    ),
    "gan g": Case(
        "gan",
        ("        discriminator.requires_grad_(False)  # the cut", "        # the cut"),
        ("g_loss:discriminator",),
        ("--steps", "2"),
        (1, 1),
        also=(("for _ in range(30):", "for _ in range(1):"),),
    ),
    "simsiam": Case(
        "simsiam", ("target = z.detach()", "target = z"), ("loss:target@simsiam.py:LINE",), ("--steps", "3")
    ),
    "consistency": Case(
        "consistency",
        ("f(points[here] + less * z, less).detach()", "f(points[here] + less * z, less)"),
        ("loss:target@consistency.py:LINE",),
        ("--steps", "3"),
    ),
    "vqvae decoder": Case("vqvae", ("(e - z).detach()", "(e - z)"), ("reconstruction:codebook",), ("--steps", "3")),
    "vqvae codes": Case("vqvae", ("(e - z.detach())", "(e - z)"), ("codes:encoder",), ("--steps", "3")),
    "vqvae encoder": Case("vqvae", ("(z - e.detach())", "(z - e)"), ("commitment:codebook",), ("--steps", "3")),
    "policy_weights": Case(
        "policy_weights",
        ("squeeze(1)).exp().detach()", "squeeze(1)).exp()"),
        ("loss:weights@policy_weights.py:LINE",),
        ("--steps", "3"),
    ),
    "dqn": Case(
        "dqn",
        ("            with torch.no_grad():  # the cut: the target stays put\n    ", ""),
        ("loss:target_network",),
        ("--steps", "1"),
    ),
    "deq": Case(
        "deq",
        ("with torch.no_grad():  # the cut: how", "if True:  # the cut: how"),
        ("loss:z@deq.py:45",),
        ("--steps", "3"),
        (0, 4),
    ),
    "variational mean": Case(  # without the cut mean is mu, another name for it: cut where it is used, one line on
        "variational", ("= mu.detach(),", "= mu,"), ("loss:mean@variational.py:LINE",), ("--steps", "3"), (1, 1)
    ),
    "variational scale": Case(
        "variational", (", factor.detach()", ", factor"), ("loss:scale@variational.py:LINE",), ("--steps", "3")
    ),
    "darts": Case("darts", ("(w - alpha.detach())", "(w - alpha)"), ("train_loss:alpha",), ("--steps", "3")),
    "meanflow": Case(
        "meanflow",
        ("* derivative).detach()", "* derivative)"),
        ("loss:target@meanflow.py:LINE",),
        ("--steps", "2"),
    ),
    "sac actor": Case("sac", ("(alpha.detach() *", "(alpha *"), ("actor:log_alpha",), ("--steps", "3")),
    "sac temperature": Case(
        "sac",
        ("(log_prob + TARGET).detach()", "(log_prob + TARGET)"),
        ("temperature:log_std", "temperature:mean"),
        ("--steps", "3"),
    ),
    "sac_pendulum critic": Case(
        "sac_pendulum",
        ("            critic.requires_grad_(False)  # the cut", "            # the cut"),
        ("actor_loss:critic",),
        ("--steps", "1"),
        (1, 1),
    ),
    "sac_pendulum temperature": Case(
        "sac_pendulum",
        ("act(actor, seen)[1].detach()", "act(actor, seen)[1]"),
        ("alpha_loss:actor",),
        ("--steps", "1"),
    ),
    "dreamer_kl dyn": Case("dreamer_kl", ("(posterior.detach() -", "(posterior -"), ("dyn:a",), ("--steps", "3")),
    "dreamer_kl rep": Case("dreamer_kl", ("- prior.detach()", "- prior"), ("rep:b",), ("--steps", "3")),
    "distill": Case(
        "distill",
        ("[before, after].detach()", "[before, after]"),
        ("loss:advantages@distill.py:LINE",),
        ("--steps", "2"),
    ),
    "latent": Case("latent", ("+ NOISE**2).detach()", "+ NOISE**2)"), ("diffusion:encoder",), ("--steps", "3")),
}
# Of these the cut keeps no loss from a part: it keeps graphs from being kept, or from being gone through twice;
OTHERS = {"loss_logging", "local", "tbptt"}
# it is one of two ways to the same parameter, or a value has no name of its own;
OTHERS |= {
    "attribution",
    "dmd",
    "grpo",
    "pushforward",
    "quantise",
    "refine",
    "sinkhorn",
    "straight_through",
    "weighting",
}
# or nothing lies behind it.
OTHERS |= {"dpo"}
SAMPLE = ("td", "dirac_gan g", "finetune_linear")


def without(script: str, before: str, after: str) -> str:
    assert script.count(before) == 1, before
    return script.replace(before, after)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.full, *([pytest.mark.sample] if name in SAMPLE else [])]) for name in CASES],
)
def test_the_cut_of_the_script_is_found(name, tmp_path):
    case = CASES[name]
    text = (ROOT / "benchmarks" / "plain" / f"{case.name}.py").read_text()
    for change in case.also:
        text = without(text, *change)
    at = text[: text.index(case.cut[0])].count("\n") + 1
    script = tmp_path / f"{case.name}.py"
    script.write_text(without(text, *case.cut))
    wishes = [word for wish in case.wishes for word in ("--not", wish.replace("LINE", str(at)))]
    said = propose(script, *wishes, "--", *case.arguments)
    assert said.status == 0, said.err
    assert said.json["verified"]
    assert len(said.json["edits"]) == 1
    own = set(range(at + case.lines[0], at + sum(case.lines)))
    assert any(lines & own for lines in said.lines), said.out
    if case.name == "dirac_gan":  # to name a parameter is no operation that no_grad could keep from having a graph
        assert {edit["kind"] for edits in (said.json["edits"], *said.json["equal"]) for edit in edits} == {"detach"}


def test_every_script_with_a_cut_has_a_case():
    scripts = (file for file in (ROOT / "benchmarks" / "plain").glob("*.py") if "the cut" in file.read_text())
    assert {file.stem for file in scripts} == {case.name for case in CASES.values()} | OTHERS
