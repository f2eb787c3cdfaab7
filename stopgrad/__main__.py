"""``python -m stopgrad COMMAND``: the instrument from a shell. Each command imports what it needs when it runs."""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def audit_command(options: argparse.Namespace) -> int:
    """Audit the step that a generator function yields; 0, or 1 if the contract is broken."""
    from stopgrad.flow.audit import audit
    from stopgrad.flow.contract import FlowContract, FlowViolation
    from stopgrad.flow.pictures import html_page, matrix_svg

    steps: Any = _function(options.target)()
    if not inspect.isgenerator(steps):
        raise ValueError(f"{options.target}: expected a generator: yield the model, then each loss as (name, loss)")
    contract = None if options.contract is None else FlowContract.from_yaml(Path(options.contract))
    modules: Any = next(steps)
    with audit(modules, contract=contract, draw=options.html is not None) as a:
        for step in steps:
            if not (isinstance(step, tuple) and len(step) == 2):
                raise ValueError(f"{options.target}: yielded a {type(step).__name__}; yield (name, loss)")
            a.loss(*step)
    broken = [] if contract is None else contract.violations(a.matrix())
    print(a.matrix().text([(v.loss, v.part) for v in broken]))
    if options.html is not None:
        from stopgrad.flow.drawing import flow_svg

        page = html_page(f"Gradient flow of {options.target}", matrix_svg(a.matrix()), flow_svg(a))
        Path(options.html).write_text(page, encoding="utf-8")
    if contract is not None:
        try:
            contract.check(a.matrix())
        except FlowViolation as violation:
            print(f"\n{violation}", file=sys.stderr)
            return 1
    return 0


def _function(target: str) -> Callable[[], Any]:
    """The function that ``FILE:FUNCTION`` names."""
    path, colon, name = target.rpartition(":")
    if not colon or not Path(path).is_file():
        raise ValueError(f"{target}: no such file; write FILE:FUNCTION, such as model.py:step")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(Path(path).parent.resolve()))
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{target}: {path} has no function {name!r}")
    return function


def explain_command(options: argparse.Namespace) -> int:
    """Print cause and fix of an error message; 1 when it is not known."""
    from stopgrad.museum.explain import answer, tee

    piped = not options.message
    if piped and sys.stdin.isatty():
        raise ValueError('give a message: explain "MESSAGE"; or pipe: python my.py 2>&1 | python -m stopgrad explain')
    found = answer(tee(sys.stdin) if piped else " ".join(options.message))
    if piped:
        print("\n--- stopgrad explain ---")
    print(found or "not known: no message in it is about stopped gradients. `museum` lists what is known")
    return 0 if found else 1


def museum_command(options: argparse.Namespace) -> int:
    """List the exhibits, print a script, or run one; 1 when it did not do what its page says."""
    from stopgrad.museum import exhibit, listing, show

    if options.script:
        print(exhibit(options.name).script(fixed=options.script == "fixed"), end="")
        return 0
    if options.name:
        return show(exhibit(options.name))
    print(listing())
    return 0


def compare_command(options: argparse.Namespace) -> int:
    """Compare run directories, print the table, write the comparison and say where."""
    from stopgrad.compare import compare

    folders = [Path(folder) for folder in options.folders]
    compared = compare(folders, options.reference)
    print(compared)
    if options.replay:
        from stopgrad.compare.replay import replay

        if replay(compared):
            compared = compare(folders, options.reference)
            print(f"\n{compared}")
    out = Path(options.out) if options.out else _place(folders)
    compared.write(out)
    if options.picture:
        from stopgrad.compare.picture import draw

        draw(compared, Path(options.picture), options.arms)
    print(f"\n{out / 'comparison.html'}")
    return 0


def new_command(options: argparse.Namespace) -> int:
    """Begin a project of one's own."""
    try:
        from stopgrad.runner.new import begin
    except ModuleNotFoundError as missing:
        raise ValueError(f'new: {missing.name} is not installed: pip install "stopgrad[recipes]"') from None

    files = begin(Path(options.folder), options.recipe)
    print(f"{options.folder}: {len(files)} files; README.md tells what is where\n")
    steps = ["python train.py trainer=smoke", "pytest"]
    if Path(options.folder).resolve() != Path.cwd():
        steps.insert(0, f"cd {options.folder}")
    print("\n".join(f"    {step}" for step in steps))
    return 0


def _place(folders: list[Path]) -> Path:
    """Where a comparison of ``folders`` goes: into the one, or beside them all, into ``comparison``."""
    if len(folders) == 1:
        return folders[0]
    above = Path(os.path.commonpath([folder.resolve() for folder in folders]))
    if above == Path(above.anchor):
        raise ValueError(f"{', '.join(map(str, folders))}: have no folder in common; say where to write: --out DIR")
    here = Path.cwd()
    return (above.relative_to(here) if above.is_relative_to(here) else above) / "comparison"


def _add_audit(commands: Any) -> None:
    parser = commands.add_parser(
        "audit",
        help="which loss of a model reaches which part, and which line stopped it",
        description="FUNCTION takes no arguments; it yields the model (or {name: part}), then each (name, loss).",
    )
    parser.add_argument("target", metavar="FILE:FUNCTION")
    parser.add_argument("--contract", metavar="YAML", help="exit with 1 if the flow breaks this contract")
    parser.add_argument("--html", metavar="FILE", help="also write the matrix and the value flow as a page")
    parser.set_defaults(run=audit_command)


def _add_explain(commands: Any) -> None:
    parser = commands.add_parser("explain", help="cause and fix of an error message")
    parser.add_argument("message", nargs="*", help="the message, or nothing to read a program's output from a pipe")
    parser.set_defaults(run=explain_command)


def _add_museum(commands: Any) -> None:
    parser = commands.add_parser("museum", help="failures to run, with and without their fix")
    parser.add_argument("name", nargs="?", help="an exhibit; nothing lists them all")
    parser.add_argument("--script", choices=("broken", "fixed"), help="print that script instead of running it")
    parser.set_defaults(run=museum_command)


def _add_compare(commands: Any) -> None:
    parser = commands.add_parser(
        "compare",
        help="what a cut changed: run directories compared, arm by arm",
        description="Writes comparison.json, .md and .html from what the runs left: result.json, fingerprints, events.",
    )
    parser.add_argument("folders", nargs="+", metavar="DIR", help="run directories, or that of a sweep")
    parser.add_argument("--reference", metavar="ARM", help="the arm that the others are held against")
    parser.add_argument("--replay", action="store_true", help="run arms again to find the very step at which they part")
    parser.add_argument(
        "--out", metavar="DIR", help="where to write; by default into the one DIR, or into comparison/ beside all"
    )
    parser.add_argument(
        "--picture", metavar="FILE", help="also draw the arms' curves, with samples where there are any"
    )
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="which arms the picture shows; by default all")
    parser.set_defaults(run=compare_command)


def run_command(options: argparse.Namespace) -> int:
    """Run a script as it stands, and tell what its gradients did."""
    from stopgrad.watch.run import run

    return run(options)


def _add_run(commands: Any) -> None:
    from stopgrad.rewrite.options import add_script
    from stopgrad.watch.options import add_options

    parser = commands.add_parser("run", help="any training script, unchanged: what its gradients do")
    add_options(parser)
    parser.add_argument("--save", metavar="FILE", help="keep the flow for a later --check")
    parser.add_argument("--force", action="store_true", help="let --save replace a file")
    parser.add_argument("--check", metavar="FILE", help="exit with 1 where a loss reaches something new, or no longer")
    parser.add_argument(
        "--stop", metavar="LINE=STRATEGY", action="append", default=[], help="do the stop of that line otherwise"
    )
    parser.add_argument("--fail-on", choices=("error", "warning", "note", "never"), default="never")
    add_script(parser)
    parser.set_defaults(run=run_command)


def sites_command(options: argparse.Namespace) -> int:
    """Run a script, and list the stops that ran."""
    from stopgrad.ablate.sites import sites_command

    return sites_command(options)


def _add_sites(commands: Any) -> None:
    from stopgrad.ablate.options import add_site_options
    from stopgrad.rewrite.options import add_script

    parser = commands.add_parser("sites", help="every stop of a script that ran, and what it stands between")
    add_site_options(parser)
    add_script(parser)
    parser.set_defaults(run=sites_command)


def ablate_command(options: argparse.Namespace) -> int:
    """Run a script with each of its cuts done otherwise, and compare."""
    from stopgrad.ablate.command import ablate_command

    return ablate_command(options)


def _add_ablate(commands: Any) -> None:
    from stopgrad.ablate.options import add_options
    from stopgrad.rewrite.options import add_script

    parser = commands.add_parser(
        "ablate",
        help="what each cut of a script is worth: an arm without it, compared",
        description="{seed} in the script's own arguments stands for the arm's seed.",
    )
    add_options(parser)
    add_script(parser)
    parser.set_defaults(run=ablate_command)


def propose_command(options: argparse.Namespace) -> int:
    """Find the smallest set of edits that meets what is asked for, try it, and print it."""
    from stopgrad.propose.command import propose

    return propose(options)


def _add_propose(commands: Any) -> None:
    from stopgrad.propose.options import add_options
    from stopgrad.rewrite.options import add_script

    parser = commands.add_parser(
        "propose",
        help="the smallest set of edits that stops a loss from reaching a part, tried before it is told",
        description="A PART is one of run's matrix, a value such as target@train.py:40, or a boundary, stop.NAME.",
    )
    add_options(parser)
    add_script(parser)
    parser.set_defaults(run=propose_command)


def _add_new(commands: Any) -> None:
    parser = commands.add_parser(
        "new",
        help="begin a project of your own with one of the recipes",
        description="Writes a recipe with its parts and configs, a comparison, train.py, tests and a README.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="empty or new; its name is the project's")
    parser.add_argument("--from", dest="recipe", metavar="RECIPE", help="the recipe to begin with, such as td3")
    parser.set_defaults(run=new_command)


def board_command(options: argparse.Namespace) -> int:
    """Serve TensorBoard on the runs of a folder."""
    from stopgrad.compare.board import board

    return board(Path(options.folder), options.arguments)


def _add_board(commands: Any) -> None:
    parser = commands.add_parser(
        "board",
        help="TensorBoard on some runs: short names, one colour an arm, metrics and flow first",
        description="What follows FOLDER is TensorBoard's, such as --port 6007.",
    )
    parser.add_argument("folder", nargs="?", default="runs", metavar="FOLDER", help="a sweep, or runs (the default)")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.set_defaults(run=board_command)


def tour_command(options: argparse.Namespace) -> int:
    """Show what there is, on a tiny GAN."""
    try:
        from stopgrad.tour.screen import Screen
        from stopgrad.tour.tour import tour

        return tour(Screen(), Path(options.keep) if options.keep else None)
    except KeyboardInterrupt:  # before it has begun, or while it clears away
        return 130


def _add_tour(commands: Any) -> None:
    parser = commands.add_parser("tour", help="what this can do, shown on a tiny GAN, in less than two minutes")
    parser.add_argument("--keep", metavar="FOLDER", help="leave the scripts and the comparison there")
    parser.set_defaults(run=tour_command)


def main(arguments: list[str] | None = None) -> int:
    """Run a command. Exit status: 0 fine, 1 the answer is no, 2 the question was wrong."""
    parser = argparse.ArgumentParser(prog="python -m stopgrad", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    each = (
        _add_ablate,
        _add_audit,
        _add_board,
        _add_compare,
        _add_explain,
        _add_museum,
        _add_new,
        _add_propose,
        _add_run,
        _add_sites,
        _add_tour,
    )
    for add in each:
        add(commands)
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except BrokenPipeError:  # the reader, head or less, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
