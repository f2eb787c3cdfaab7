"""Verdicts, their precedence and their sentences, on made-up runs whose truth is known; and what cannot be read."""

import json
import math
import re
import shutil
import subprocess
import sys

import pytest
from lightning.pytorch.loggers import CSVLogger
from torch.utils.tensorboard.writer import SummaryWriter

from conf_tests.compare.runs import CLOSED, METRICS, nudge, write_run
from stopgrad.__main__ import main
from stopgrad.compare import compare
from stopgrad.compare.picture import together
from stopgrad.compare.verdict import VERDICTS

OPEN = {"state": "open", "norm": 0.5, "cuts": []}


def two(tmp_path, scores, *, base=(1.0, 1.1, 0.9), start=8, **result):
    """The verdict on an arm with these scores against a reference with ``base``."""
    for seed, score in enumerate(base):
        write_run(tmp_path, "detach", seed, score)
    for seed, score in enumerate(scores):
        write_run(tmp_path, "arm", seed, score, alter=nudge(start) if start is not None else None, **result)
    return compare([tmp_path])


class TestVerdict:
    def test_equal_weights_are_identical(self, tmp_path):
        found = two(tmp_path, (1.0, 1.1, 0.9), start=None)
        assert found["arm"]["verdict"] == "identical"
        assert found["arm"]["first_difference"] is None
        assert found["arm"]["same_weights_as"] == ["detach"]
        assert found["arm"]["paired"] == {"weights": True, "data": True, "random": True}
        assert found["detach"]["verdict"] == "reference"

    def test_one_seed_with_other_weights_is_not(self, tmp_path):
        for seed in range(3):
            write_run(tmp_path, "detach", seed)
            write_run(tmp_path, "arm", seed, alter=nudge(100) if seed == 2 else None)
        found = compare([tmp_path])["arm"]
        assert found["verdict"] == "same_result"
        assert found["first_difference"]["seed"] == 2

    @pytest.mark.parametrize(
        ("scores", "verdict"),
        [
            ((1.01, 1.09, 0.9), "same_result"),
            ((3.0, 3.2, 2.8), "different_training"),
            ((1.3, 0.9, 1.0), "cannot_tell"),  # an effect smaller than the spread
            ((9.0,), "cannot_tell"),  # one seed, however far
            ((1.0,), "cannot_tell"),  # one seed, however near
            ((1.0, 1.1, -0.5), "broken"),  # one of three is beyond the line
            ((1.0, 1.1, math.nan), "broken"),
            ((1.0, 1.1, math.inf), "broken"),
        ],
    )
    def test_by_the_metric(self, tmp_path, scores, verdict):
        assert two(tmp_path, scores)["arm"]["verdict"] == verdict

    def test_a_small_planted_effect_in_three_seeds_is_not_called_different(self, tmp_path):
        found = two(tmp_path, (1.25, 1.05, 1.2))["arm"]  # + .13 on average, spread .14
        assert found["verdict"] == "cannot_tell"
        assert "seeds would tell" in found["because"][0]

    def test_raised_comes_before_broken_and_broken_before_identical(self, tmp_path):
        assert VERDICTS[:3] == ("raised", "broken", "identical")
        gone = two(tmp_path / "a", (-1.0, -1.0), start=None, status="raised", message="no", error="RuntimeError")
        assert gone["arm"]["verdict"] == "raised"
        assert two(tmp_path / "b", (-1.0, -1.0, -1.0), start=None)["arm"]["verdict"] == "broken"

    def test_loss_that_is_no_number(self, tmp_path):
        found = two(tmp_path, (1.0,) * 3, metrics={"score": 1.0, "loss/probe": math.nan})["arm"]
        assert found["verdict"] == "broken"
        assert found["because"][0] == "seed 0: loss/probe is nan"

    def test_a_line_above(self, tmp_path):
        rule = {"score": {"goal": "min", "margin": 0.1, "broken_above": 2.0}}
        for seed in range(2):
            write_run(tmp_path, "detach", seed, -5.0, metrics_declared=rule)
            write_run(tmp_path, "arm", seed, 2.5 - seed, metrics_declared=rule)
        found = compare([tmp_path])
        assert found["arm"]["because"] == ["seed 0: score 2.5 is above the line 2"]
        assert found["detach"]["verdict"] == "reference"

    def test_no_declared_metric(self, tmp_path):
        for arm in ("detach", "arm"):
            for seed in range(3):
                write_run(tmp_path, arm, seed, alter=nudge(4) if arm == "arm" else None, metrics_declared={})
        assert compare([tmp_path])["arm"]["because"] == [
            "the weights differ; the recipe declares no metric to judge by"
        ]

    def test_interrupted_runs_are_not_judged(self, tmp_path):
        found = two(tmp_path, (1.0, 1.0, 1.0), status="interrupted")["arm"]
        assert (found["verdict"], found["because"]) == ("cannot_tell", ["no seed has finished in both arms"])

    def test_arms_that_share_no_seed(self, tmp_path):
        write_run(tmp_path, "detach", 0)
        write_run(tmp_path, "arm", 1)
        (reason,) = compare([tmp_path])["arm"]["because"]
        assert reason == "shares no seed with the reference: seeds 1 here, seeds 0 there"


class TestExpected:
    """What the comparison's config declares of an arm, told only where the arm came out otherwise."""

    COMPARED = {"reference": "detach", "arms": ["detach", "arm"]}  # noqa: RUF012

    @pytest.mark.parametrize(("word", "told"), [("identical", "same_result (expected identical)"), ("same_result", "")])
    def test_is_told_in_table_and_markdown_where_it_is_not_met(self, tmp_path, word, told):
        found = two(tmp_path, (1.0, 1.1, 0.9), compare=self.COMPARED | {"expect": {"arm": word}})
        assert (found["arm"]["verdict"], found["arm"]["expected"]) == ("same_result", word)
        assert found["detach"]["expected"] is None
        found.write(tmp_path)
        for text in (str(found), (tmp_path / "comparison.md").read_text()):
            assert ("(expected" in text) == bool(told)
            assert told in text
        assert json.loads((tmp_path / "comparison.json").read_text())["arms"][1]["expected"] == word

    def test_holds_against_the_declared_reference_alone(self, tmp_path):
        two(tmp_path, (1.0, 1.1, 0.9), compare=self.COMPARED | {"expect": {"arm": "identical", "detach": "broken"}})
        assert compare([tmp_path], "arm")["detach"]["expected"] is None

    def test_is_found_where_folders_are_compared_and_in_old_runs_is_none(self, tmp_path):
        expect = {"expect": {"arm": "identical"}}
        for folder, more in (("a", expect), ("b", {"expect": None}), ("c", {})):
            for arm in ("detach", "arm"):
                write_run(tmp_path / folder, arm, 0, compare=self.COMPARED | more)
        found = compare([tmp_path / folder for folder in "abc"], "a/detach")
        assert [found[f"{folder}/arm"]["expected"] for folder in "abc"] == ["identical", None, None]


class TestFirstDifference:
    @pytest.mark.parametrize(
        ("start", "after", "step", "exact"), [(1, 0, 1, True), (0, None, 0, True), (3, 2, 4, False)]
    )
    def test_step_and_tensor(self, tmp_path, start, after, step, exact):
        first = two(tmp_path, (1.0,) * 3, start=start)["arm"]["first_difference"]
        assert (first["after"], first["step"], first["exact"]) == (after, step, exact)
        assert (first["tensor"], first["tensors"], first["of"]) == ("head.weight", 1, 3)

    def test_distance_grows_from_zero(self, tmp_path):
        distance = dict(two(tmp_path, (1.0,) * 3)["arm"]["distance"])
        assert distance[4] == 0 < distance[8]

    def test_unfair_pair_is_noticed(self, tmp_path):
        write_run(tmp_path, "detach", 0)
        write_run(tmp_path, "arm", 0, alter=nudge(0))
        assert compare([tmp_path])["arm"]["paired"]["weights"] is False


class TestSentence:
    def test_leak_zeroed_in_time(self, tmp_path):
        for seed, time in enumerate((0.014, 0.0138)):
            write_run(tmp_path, "detach", seed)
            write_run(tmp_path, "none", seed, cells=OPEN, step_time=time, graph_nodes=66)
        found = compare([tmp_path])
        assert found["none"]["sentence"] == (
            "probe reaches encoder; no step uses it; identical weights; 1.39x time, 1.32x graph nodes."
        )
        assert found["none"]["flow"]["changed"] == [
            {"loss": "probe", "part": "encoder", "was": "blocked", "is": "open"}
        ]

    @pytest.mark.parametrize(
        ("times", "words"),
        [
            ((0.014,), ""),  # one run is no measurement
            ((0.014, 0.009), ""),  # nor are two that disagree
            ((0.0101, 0.0099), ""),  # the same time
            ((0.006, 0.007), "; 0.65x time"),
        ],
    )
    def test_step_time_of_separate_runs_is_told_where_they_agree(self, tmp_path, times, words):
        for seed, time in enumerate(times):
            write_run(tmp_path, "detach", seed)
            write_run(tmp_path, "arm", seed, step_time=time)
        assert compare([tmp_path])["arm"]["sentence"] == f"identical weights{words}."

    def test_step_times_measured_in_one_process_take_their_place(self, tmp_path):
        write_run(tmp_path, "detach", 0)
        write_run(tmp_path, "arm", 0, step_time=0.03)
        arms = {"arm": {"step_time": 0.011, "ratio": 1.1, "ratios": [1.1]}}
        measured = {"reference": "detach", "steps": 40, "repeats": 5, "arms": arms}
        (tmp_path / "step_times.json").write_text(json.dumps(measured))
        found = compare([tmp_path])["arm"]
        assert (found["cost"]["step_time"], found["cost"]["step_time_ratio"]) == (0.011, 1.1)
        assert found["cost"]["step_time_is"] == "medians of 5 interleaved turns of 40 steps in one process"
        assert found["sentence"].endswith("; 1.10x time.")

    def test_starved(self, tmp_path):
        write_run(tmp_path, "detach", 0, cells=OPEN)
        write_run(tmp_path, "cut", 0, cells=CLOSED, alter=nudge(1))
        sentence = compare([tmp_path])["cut"]["sentence"]
        assert sentence.startswith(
            "probe no longer reaches encoder; weights differ from step 1, in head.weight alone; "
        )

    def test_share_of_the_gradient(self, tmp_path):
        write_run(tmp_path, "detach", 0)
        folder = write_run(tmp_path, "none", 0, cells=OPEN)
        result = json.loads((folder / "result.json").read_text())
        result["flow"]["task"] = {"encoder": {"state": "open", "norm": 1.5, "cuts": []}}
        (folder / "result.json").write_text(json.dumps(result))
        assert "probe reaches encoder (25% of its gradient)" in compare([tmp_path])["none"]["sentence"]

    def test_broken_names_the_line(self, tmp_path):
        sentence = two(tmp_path, (-1.0, -2.0, 0.5))["arm"]["sentence"]
        assert sentence.endswith("; broken: score -1 -2 0.5, below 0.")

    def test_broken_with_equal_weights(self, tmp_path):
        sentence = two(tmp_path, (-1.0, -2.0, 0.5), start=None)["arm"]["sentence"]
        assert sentence == "identical weights; broken: score -1 -2 0.5, below 0."

    def test_broken_as_the_reference(self, tmp_path):
        sentence = two(tmp_path, (-1.0, -2.0, 0.5), base=(-1.0, -2.0, 0.5), start=None)["arm"]["sentence"]
        assert sentence == "identical weights; broken as the reference did."

    def test_raised_gives_the_message(self, tmp_path):
        write_run(tmp_path, "detach", 0)
        write_run(tmp_path, "arm", 0, status="raised", message="Inference tensors", error="RuntimeError", metrics={})
        assert compare([tmp_path])["arm"]["sentence"] == "raised: Inference tensors."

    def test_a_gradient_that_begins_weaker(self, tmp_path):
        write_run(tmp_path, "detach", 0, cells=OPEN)
        write_run(tmp_path, "arm", 0, cells={**OPEN, "norm": 0.1}, alter=nudge(1))
        assert "probe's gradient at encoder begins 0.2x as strong" in compare([tmp_path])["arm"]["sentence"]

    def test_of_identical_weights_no_gradient_is_said_to_begin_weaker(self, tmp_path):
        write_run(tmp_path, "detach", 0, cells=OPEN)
        write_run(tmp_path, "arm", 0, cells={**OPEN, "norm": 0.1})
        arm = compare([tmp_path])["arm"]
        assert arm["verdict"] == "identical"
        assert "begins" not in arm["sentence"]

    @pytest.mark.parametrize(
        ("scores", "words"),
        [
            ((3.0, 3.2, 2.8), "score +2 ± 0.25."),  # differences 2, 2.1, 1.9: t(95%, 2) = 4.303, times .1 / sqrt 3
            ((1.01, 1.09, 0.9), "same result: score +0 ± 0.017."),  # .01, -.01, 0: t(90%, 2) = 2.920
            ((1.3, 0.9, 1.0), "3 seeds cannot tell: score +0.0667 ± 0.63."),  # nor would a hundred
            ((1.25, 1.05, 1.2), "3 seeds cannot tell: score +0.167 ± 0.47; about 34 would."),
            ((9.0,), "1 seed cannot tell: score +8."),
        ],
    )
    def test_an_interval_is_half_its_width(self, tmp_path, scores, words):
        assert (
            two(tmp_path, scores)["arm"]["sentence"]
            == f"weights differ between steps 4 and 8, in head.weight alone; {words}"
        )

    def test_at_most_two_metrics_are_named(self, tmp_path):
        rule = {name: {"goal": "max", "margin": 0.1} for name in ("a", "b", "c", "d")}
        for seed in range(2):
            write_run(tmp_path, "detach", seed, metrics=dict.fromkeys(rule, 0.0), metrics_declared=rule)
            metrics = dict.fromkeys(rule, 1234.5)
            write_run(tmp_path, "arm", seed, metrics=metrics, metrics_declared=rule, alter=nudge(1))
        assert compare([tmp_path])["arm"]["sentence"].endswith("alone; a +1230 ± 0, b +1230 ± 0 and 2 more.")

    def test_many_seeds_are_a_range(self, tmp_path):
        found = two(tmp_path, (-1.0, -2.0, 0.5, 0.1, 7.0), base=(1.0,) * 5)["arm"]
        assert found["sentence"].endswith("broken: score -2 to 7, below 0.")

    def test_other_settings_are_said(self, tmp_path):
        write_run(tmp_path, "detach", 0, settings={"recipe.width": 8, "recipe.lr": 0.1, "data.noise": 0})
        write_run(tmp_path, "arm", 0, settings={"recipe.width": 9, "recipe.lr": 0.1, "data.noise": 1, "data.more": 2})
        found = compare([tmp_path])["arm"]
        assert found["settings"] == {"recipe.width": [9, 8], "data.noise": [1, 0], "data.more": [2, None]}
        assert found["sentence"] == "with recipe.width=9, data.noise=1 and 1 more; identical weights."


class TestContract:
    """Whether what a contract forbids was to be expected: where the arm flips a boundary."""

    def test_table_note_and_page(self, tmp_path):
        for arm, broken, flipped in (("detach", "", []), ("none", "a reaches b", ["f"]), ("arm", "a reaches b", [])):
            write_run(tmp_path, arm, 0, contract={"broken": broken, "flipped": flipped})
        found = compare([tmp_path])
        rows = [line.split()[:3] for line in str(found).splitlines()[1:4]]
        assert sorted(rows) == [
            ["arm", "identical", "unexpected"], ["detach", "reference", "kept"], ["none", "identical", "broken"],
        ]  # fmt: skip
        assert found.content["notes"] == ["arm: contract broken, though no boundary is flipped: a reaches b"]


LINE = {"score": {"goal": "min", "margin": 0.1, "broken_above": 2.0}}


class TestDiverged:
    """An arm's ``score`` is logged as a power of ``factor``, and ends where it is said to."""

    def arm(self, tmp_path, score, factor=1.0, seeds=1, curve=50, **result):
        for seed in range(seeds):
            write_run(tmp_path, "detach", seed, metrics_declared=LINE)
            folder = write_run(tmp_path, "arm", seed, score, metrics_declared=LINE, alter=nudge(1), **result)
            if curve:
                with SummaryWriter(folder) as writer:
                    for step in range(curve):
                        writer.add_scalar("score", factor if factor > 2 else factor ** (step - seed), step)
        return compare([tmp_path])["arm"]

    def test_step_by_which_it_had_in_all_seeds(self, tmp_path):
        found = self.arm(tmp_path, 1000.0, factor=1.15, seeds=2)  # 1.15^4 < 2 < 1.15^5, logged at 5 as batch 6
        assert found["diverged"] == {
            0: {"metric": "score", "step": 6, "exact": False}, 1: {"metric": "score", "step": 7, "exact": False},
        }  # fmt: skip
        assert found["verdict"] == "broken"
        assert found["sentence"].endswith("; score diverged by step 7.")

    def test_in_some_seeds(self, tmp_path):
        self.arm(tmp_path, 1000.0, factor=1.15)
        write_run(tmp_path, "arm", 1, 1.0, metrics_declared=LINE)
        assert compare([tmp_path])["arm"]["sentence"].endswith("; score diverged by step 6 in 1 of 2 seeds.")

    @pytest.mark.parametrize(
        ("score", "factor"),
        [(150.0, 1.15), (1000.0, 1000.0)],
        ids=["too near its line", "as large from the beginning"],
    )
    def test_far_and_grown_or_it_is_only_broken(self, tmp_path, score, factor):
        found = self.arm(tmp_path, score, factor)
        assert (found["verdict"], found["diverged"]) == ("broken", {})
        assert "; broken: score" in found["sentence"]

    def test_without_a_curve_only_what_leaves_no_doubt(self, tmp_path):
        assert self.arm(tmp_path / "far", 1e9, curve=0)["sentence"].endswith("; score diverged.")
        assert self.arm(tmp_path / "near", 1e4, curve=0)["sentence"].endswith("; broken: score 10000, above 2.")
        assert self.arm(tmp_path / "nan", math.nan, curve=0)["sentence"].endswith("; score diverged.")

    def test_a_loss_that_ended_the_run_gives_the_very_step(self, tmp_path):
        ended = {"status": "raised", "error": "NonFiniteLoss", "message": "d_loss is nan at step 812"}
        found = self.arm(tmp_path, 1.0, curve=0, **ended)
        assert (found["verdict"], found["because"]) == ("broken", ["seed 0: d_loss is nan at step 812"])
        assert found["sentence"].endswith("; d_loss diverged at step 812.")

    def test_a_reference_that_diverges_needs_no_interval(self, tmp_path):
        for seed in range(3):
            write_run(tmp_path, "detach", seed, 4e22 * (seed + 1), metrics_declared=LINE)
            write_run(tmp_path, "arm", seed, 1.0, metrics_declared=LINE, alter=nudge(1))
        found = compare([tmp_path])["arm"]
        assert (found["verdict"], found["because"]) == ("cannot_tell", found["because"])
        for seed in range(3, 9):
            write_run(tmp_path, "detach", seed, 4e22, metrics_declared=LINE)
            write_run(tmp_path, "arm", seed, 1.0, metrics_declared=LINE, alter=nudge(1))
        found = compare([tmp_path])["arm"]
        assert (found["verdict"], found["because"]) == ("different_training", ["the reference's score diverged"])
        assert found["sentence"].endswith("; does not diverge: score 1.")


class TestReference:
    def test_by_the_config_then_the_papers_cuts_then_the_first(self, tmp_path):
        for arm in ("aaa", "detach", "zzz"):
            write_run(tmp_path / "paper", arm, 0)
            write_run(tmp_path / "config", arm, 0, compare={"reference": "zzz", "arms": ["detach", "zzz", "aaa"]})
            write_run(tmp_path / "none", arm, 0, stop={}, started=arm)
        assert compare([tmp_path / "paper"]).content["reference"] == "detach"
        configured = compare([tmp_path / "config"]).content
        assert [arm["name"] for arm in configured["arms"]] == ["zzz", "detach", "aaa"]
        assert compare([tmp_path / "none"]).content["reference"] == "aaa"
        assert compare([tmp_path / "paper"], "zzz").content["reference"] == "zzz"

    def test_two_equal_arms_under_other_names(self, tmp_path):
        for arm in ("detach", "left", "right"):
            for seed in range(2):
                write_run(tmp_path, arm, seed, alter=None if arm == "detach" else nudge(4))
        found = compare([tmp_path], "left")
        assert found["right"]["verdict"] == "identical"
        assert found["right"]["same_weights_as"] == ["left"]


class TestBadInput:
    def refused(self, capsys, *arguments):
        assert main(["compare", *map(str, arguments)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    def test_empty_directory(self, tmp_path, capsys):
        assert self.refused(capsys, tmp_path) == f"error: {tmp_path}: no run to compare below it: no result.json"

    def test_no_directory(self, tmp_path, capsys):
        line = self.refused(capsys, tmp_path / "nope")
        assert line == f"error: {tmp_path / 'nope'}: no such directory; choose run directories, or that of a sweep"

    def test_unknown_reference_and_arm(self, tmp_path, capsys):
        two(tmp_path, (1.0,))
        line = self.refused(capsys, tmp_path, "--reference", "detatch")
        assert line == "error: reference=detatch: choose one of arm, detach; did you mean detach?"
        line = self.refused(capsys, tmp_path, "--picture", tmp_path / "p.png", "--arms", "nope")
        assert line == "error: arms=nope: choose from detach, arm"

    def test_only_unreadable_runs(self, tmp_path, capsys):
        folder = write_run(tmp_path, "a", 0)
        (folder / "result.json").write_text("{")
        assert re.fullmatch(
            rf"error: {tmp_path}: no run to compare below it \({folder}: damaged result.json: .*\)",
            self.refused(capsys, tmp_path),
        )

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ('{"recipe": "x"', "damaged result.json: .*delimiter.*"),
            ("[]", "damaged result.json: .*"),
            ('{"recipe": "x", "arm": "a", "seed": 0, "status": "finished"}', "damaged result.json: no 'metrics'"),
            ('{"recipe": "x", "arm": "a", "seed": "0"}', "damaged result.json: seed is '0'"),
            ('{"recipe": "x", "arm": "a", "seed": 0, "status": "odd", "metrics": {}}', ".*: status is 'odd'"),
            (None, "still going, or killed: it has no result.json"),
        ],
    )
    def test_what_cannot_be_read_is_listed_and_the_rest_compared(self, tmp_path, text, reason):
        two(tmp_path, (1.0, 1.1, 0.9))
        bad = tmp_path / "arm" / "seed-3"
        bad.mkdir()
        (bad / "config.yaml").write_text("seed: 3")
        if text is not None:
            (bad / "result.json").write_text(text)
        found = compare([tmp_path])
        (left,) = found.content["left_out"]
        assert left["path"] == str(bad)
        assert re.fullmatch(reason, left["reason"])
        assert found["arm"]["verdict"] == "same_result"
        assert f"left out: {bad}" in str(found)

    def test_damaged_fingerprints_and_events(self, tmp_path):
        for arm in ("detach", "arm"):
            write_run(tmp_path, arm, 0, curve=5)
        (tmp_path / "arm/seed-0/fingerprints.pt").write_bytes(b"damaged")
        (events,) = tmp_path.glob("arm/seed-0/events*")
        events.write_bytes(events.read_bytes()[:-30])
        found = compare([tmp_path])
        assert found["arm"]["verdict"] == "identical"  # by the hashes in result.json
        assert found["arm"]["paired"] is None
        assert len(found.content["curves"]["loss/probe"]["arm"]["steps"]) >= 3
        notes = "\n".join(found.content["notes"])
        assert "no fingerprints: " in notes
        assert "damaged or cut short; the curves end there" in notes

    @pytest.mark.parametrize("place", [9, 40])
    def test_a_flipped_byte_in_the_events(self, tmp_path, place):
        write_run(tmp_path, "detach", 0, curve=5)
        (events,) = tmp_path.glob("detach/seed-0/events*")
        content = bytearray(events.read_bytes())
        content[place] ^= 0xFF
        events.write_bytes(content)
        compare([tmp_path])  # no exception, whatever could be read


class TestUnequalRuns:
    @pytest.mark.parametrize(
        ("change", "word"),
        [
            ({"commit": "b" * 40}, "code version"),
            ({"versions": {"torch": "2.14.0"}}, "torch version"),
            ({"threads": 4}, "number of threads"),
            ({"recipe": "other"}, "recipe"),
        ],
    )
    def test_is_said(self, tmp_path, change, word):
        write_run(tmp_path, "detach", 0)
        write_run(tmp_path, "arm", 0, **change)
        found = compare([tmp_path])
        assert [note.partition(" (")[0] for note in found.content["notes"]] == [f"runs of more than one {word}"]
        assert found["arm"]["verdict"] == "identical"

    def test_metrics_that_only_one_has(self, tmp_path):
        for seed in range(3):
            write_run(tmp_path, "detach", seed)
            write_run(tmp_path, "arm", seed, alter=nudge(1), metrics={"other": 1.0})
        assert compare([tmp_path])["arm"]["because"] == ["the weights differ; no declared metric is in both arms"]

    def test_the_same_arms_from_two_sweeps(self, tmp_path):
        for sweep in ("old", "new"):
            for arm in ("detach", "arm"):
                write_run(tmp_path / sweep, arm, 0)
        found = compare([tmp_path / "old", tmp_path / "new"])
        assert {arm["name"] for arm in found.content["arms"]} == {"old/detach", "old/arm", "new/detach", "new/arm"}

    def test_a_part_that_only_one_has_is_no_change(self, tmp_path):
        write_run(tmp_path, "detach", 0)
        folder = write_run(tmp_path, "arm", 0)
        result = json.loads((folder / "result.json").read_text())
        result["flow"]["probe"]["target"] = OPEN
        (folder / "result.json").write_text(json.dumps(result))
        assert compare([tmp_path])["arm"]["flow"]["changed"] == []

    def test_a_replay_within_a_run_is_no_run(self, tmp_path):
        folder = write_run(tmp_path, "detach", 0)
        shutil.copytree(folder, tmp_path / "copy")
        shutil.move(tmp_path / "copy", folder / "replay")
        found = compare([tmp_path]).content
        assert (len(found["arms"]), found["left_out"]) == (1, [])

    def test_a_run_twice_below_one_directory(self, tmp_path):
        folder = write_run(tmp_path, "detach", 0)
        shutil.copytree(folder, folder.with_name("seed-0_2"))
        found = compare([tmp_path])
        assert found.content["left_out"] == [
            {"path": str(folder), "reason": f"{folder}_2 is taken, the newest finished run of this arm and seed"}
        ]

    def test_of_several_runs_the_newest_finished_one_is_taken(self, tmp_path):
        for k, (status, score) in enumerate([("finished", 1.0), ("finished", 2.0), ("interrupted", 3.0)]):
            folder = write_run(tmp_path, "a", 0, score, status=status, started=f"2026-01-0{[2, 1, 3][k]}")
            folder.rename(folder.with_name(f"seed-0_{k}"))
        found = compare([tmp_path])
        assert found["a"]["metrics"]["score"]["values"] == {0: 1.0}
        assert len(found.content["left_out"]) == 2
        write_run(tmp_path, "a", 0, 4.0, started="2026-01-04")
        assert compare([tmp_path])["a"]["metrics"]["score"]["values"] == {0: 4.0}

    def test_of_other_lengths_are_not_judged(self, tmp_path):
        for seed in range(3):
            write_run(tmp_path, "detach", seed, 1.0 + 0.1 * seed)
            folder = write_run(tmp_path, "arm", seed, 3.0 + 0.1 * seed, weights_sha256="another")
            longer = json.loads((folder / "result.json").read_text()) | {"steps": 300}
            (folder / "result.json").write_text(json.dumps(longer))
        found = compare([tmp_path])["arm"]
        assert (found["verdict"], found["because"]) == ("cannot_tell", ["300 steps here, 100 in the reference"])
        assert "difference" not in found["metrics"]["score"]
        assert found["sentence"] == (
            "equal weights up to step 100; cannot be told: 300 steps here, 100 in the reference."
        )

    def test_seeds_that_share_no_step(self, tmp_path):
        for seed in range(2):
            folder = write_run(tmp_path, "detach", seed)
            with SummaryWriter(folder) as writer:
                for step in range(3):
                    writer.add_scalar("score", 1.0, 10 * step + seed)
                    writer.add_scalar("loss/probe", 1.0, 10 * step)
        found = compare([tmp_path])
        found.write(tmp_path)
        assert list(found.content["curves"]) == ["loss/probe"]
        assert found.content["notes"] == ["detach: its seeds were logged at no common step: score not drawn"]


class TestWritten:
    def test_json_is_strict_and_complete_and_can_be_made_again(self, tmp_path, capsys):
        two(tmp_path, (1.0, 1.1, math.inf))
        assert main(["compare", str(tmp_path)]) == 0
        text = (tmp_path / "comparison.json").read_text()
        content = json.loads(text, parse_constant=lambda word: pytest.fail(f"not strict JSON: {word}"))
        assert content["schema"] == "stopgrad.comparison/1"
        assert content["metrics_declared"] == METRICS
        reference, arm = content["arms"]
        assert set(reference) == set(arm)
        assert arm["metrics"]["score"]["values"] == {"0": 1.0, "1": 1.1, "2": "inf"}
        assert main(["compare", str(tmp_path)]) == 0
        assert (tmp_path / "comparison.json").read_text() == text
        assert capsys.readouterr().out.count("arm     broken") == 2

    def test_markdown_marks_the_cells_that_differ(self, tmp_path):
        write_run(tmp_path, "detach", 0)
        write_run(tmp_path, "none", 0, cells=OPEN)
        compare([tmp_path]).write(tmp_path)
        assert "| probe | **open 0.5** (was blocked) | open 2 |" in (tmp_path / "comparison.md").read_text()

    def test_several_directories_are_written_beside_them(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        for arm in ("detach", "arm"):
            write_run(tmp_path / arm, arm, 0)
        assert main(["compare", "detach", "arm"]) == 0
        assert (tmp_path / "comparison" / "comparison.html").exists()
        assert capsys.readouterr().out.endswith("\n\ncomparison/comparison.html\n")
        monkeypatch.chdir("/")
        assert main(["compare", str(tmp_path / "detach"), str(tmp_path / "arm")]) == 0
        assert capsys.readouterr().out.endswith(f"\n{str(tmp_path)[1:]}/comparison/comparison.html\n")
        monkeypatch.chdir(tmp_path)
        assert main(["compare", "detach", "arm", "--out", "here"]) == 0
        assert (tmp_path / "here" / "comparison.json").exists()

    def test_picture(self, tmp_path):
        for arm in ("detach", "arm"):
            write_run(tmp_path, arm, 0, curve=4)
        assert main(["compare", str(tmp_path), "--picture", str(tmp_path / "p.png")]) == 0
        assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")

    def test_arms_with_equal_weights_are_drawn_apart_where_what_was_measured_differs(self, tmp_path):
        for arm, score in (("detach", 1.0), ("same", 1.0), ("other", 2.0)):
            write_run(tmp_path, arm, 0, score=score, curve=4)
        compared = compare([tmp_path])
        by_name = {arm["name"]: arm for arm in compared.content["arms"]}
        assert by_name["other"]["same_weights_as"]
        groups = {frozenset(group) for group in together(compared, None)}
        assert groups == {frozenset({"detach", "same"}), frozenset({"other"})}

    def test_curves_are_means_with_their_spread(self, tmp_path):
        for seed in range(3):
            write_run(tmp_path, "detach", seed, score=1.0, curve=3)
        curve = compare([tmp_path]).content["curves"]["score"]["detach"]
        assert curve["steps"] == [1, 2, 3]
        assert curve["mean"] == pytest.approx([1.1, 1.11, 1.12])
        assert (curve["low"][0], curve["high"][0]) == pytest.approx((1.0, 1.2))


class TestCurves:
    def test_one_evaluation_is_one_point(self, tmp_path):
        """The last validation, which Lightning logs at 99, and the test at 100 are of the same network."""
        folder = write_run(tmp_path, "detach", 0)
        with SummaryWriter(folder) as writer:
            for step, value in ((49, 1.0), (99, 2.0), (100, 2.0)):
                writer.add_scalar("score", value, step)
        (curve,) = compare([tmp_path]).content["curves"]["score"].values()
        assert (curve["steps"], curve["mean"]) == ([50, 100], [1.0, 2.0])

    def test_from_a_csv_logger(self, tmp_path):
        folder = write_run(tmp_path, "detach", 0)
        logger = CSVLogger(folder, name="", version="csv")
        for step in (9, 19):
            logger.log_metrics({"score": step / 10, "epoch": 0}, step)
            logger.log_metrics({"loss/probe": 1.0}, step)
        logger.save()
        curves = compare([tmp_path]).content["curves"]
        assert {tag: curve["detach"]["steps"] for tag, curve in curves.items()} == {
            "score": [10, 20], "loss/probe": [10, 20],
        }  # fmt: skip
        assert curves["score"]["detach"]["mean"] == [0.9, 1.9]


def test_torch_alone_is_enough(tmp_path):
    """Without TensorBoard and matplotlib the verdicts are the same; only the curves are missing, and it says so."""
    for arm in ("detach", "arm"):
        write_run(tmp_path, arm, 0, curve=3)
    program = (
        "import sys; sys.modules.update(dict.fromkeys(['tensorboard', 'matplotlib', 'lightning', 'hydra']))\n"
        "from stopgrad.__main__ import main; sys.exit(main(['compare', sys.argv[1]]))"
    )
    ran = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert "arm     identical" in ran.stdout
    assert "no curves: they need tensorboard; pip install 'stopgrad[compare]'" in ran.stdout
    assert (tmp_path / "comparison.html").exists()
