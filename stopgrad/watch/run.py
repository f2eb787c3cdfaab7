"""``python -m stopgrad run SCRIPT ARGUMENTS``: the script as it stands, and at its end what its gradients did."""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from stopgrad.rewrite.source import execute, module_file
from stopgrad.rewrite.steps import Enough
from stopgrad.rewrite.switches import Switches, chosen
from stopgrad.watch.children import Child, watched_children
from stopgrad.watch.findings import SEVERITIES
from stopgrad.watch.hooks import overhear
from stopgrad.watch.options import Options, writable
from stopgrad.watch.page import write
from stopgrad.watch.report import Report, changes, for_a_terminal, read, save
from stopgrad.watch.settings import silenced
from stopgrad.watch.tracebacks import without_ours
from stopgrad.watch.watch import Watch


def run(options: argparse.Namespace) -> int:
    """Run the script and report on stderr.

    Returns:
        The script's own exit status; else 1 where ``--check`` found a change or ``--fail-on`` a finding.

    Raises:
        ValueError: no such script; a file of ``--save`` or ``--check`` that will not do. Before the script runs.
    """
    saved, silent = _prepare(options)
    switches = chosen(options.stop, script_file(options))
    watch = Watch(cycles=options.cycles, every=options.every, options=Options.of(options))
    template = partial(
        Child,
        script=options.script,
        cycles=options.cycles,
        every=options.every,
        options=Options.of(options),
        silenced=(*silent,),
        json=options.json,
        html=options.html,
    )
    with watched_children(watch, template, switches=bool(switches.chosen)):
        status, error = follow(options, watch, switches)
    if not watch.ranks.is_first:
        return status
    for note in switches.notes():
        watch.note(note)
    report = Report.of(watch, options.script, silent, error)
    sys.stdout.flush()
    print(f"\n{for_a_terminal(str(report), sys.stderr)}", file=sys.stderr)
    if options.json:
        save(report, Path(options.json), force=True)
    if options.html:
        write(report, Path(options.html))
    if options.save:
        save(report, Path(options.save), force=options.force)
    differ = changes(saved, report) if saved is not None else []
    if differ:
        print("\n".join([f"\nthe flow differs from {options.check}:", *differ]), file=sys.stderr)
    wanted = SEVERITIES[: SEVERITIES.index(options.fail_on) + 1] if options.fail_on != "never" else ()
    return status or int(bool(differ) or report.worst in wanted)


def follow(options: argparse.Namespace, watch: Watch, switches: Switches) -> tuple[int, BaseException | None]:
    """Run the script, watched, with its stops switched; its exit status, and the error that ended it, already shown."""
    status, error = 0, None
    with overhear(watch), switches.on() as rewrite:
        try:
            execute(options.script, options.arguments, module=options.module, rewrite=rewrite)
        except Enough as enough:
            error = enough
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        except BaseException as raised:
            error = raised
        finally:
            watch.close(ended=error is None or isinstance(error, AssertionError))  # a check of the script's own
    if error is not None and not isinstance(error, Enough):
        error.__traceback__ = without_ours(error.__traceback__)
        sys.excepthook(type(error), error, error.__traceback__)
        status = 130 if isinstance(error, KeyboardInterrupt) else 1
    return status, error


def _prepare(options: argparse.Namespace) -> tuple[dict[str, Any] | None, dict[str, str]]:
    """Refuse what can be refused before the script runs; the flow that ``--check`` names, and what is silenced."""
    check_script(options)
    writable(save=options.save, json=options.json, html=options.html)
    if options.save and Path(options.save).exists() and not options.force:
        raise ValueError(f"--save {options.save}: is there already; --force replaces it")
    for option in ("save", "json", "html"):  # the script may go elsewhere
        setattr(options, option, (file := getattr(options, option)) and os.path.abspath(file))
    silent = silenced(Path.cwd(), options.silence)
    return (read(Path(options.check)) if options.check else None), silent


def check_script(options: argparse.Namespace) -> None:
    """Refuse a script, or with ``-m`` a module, that is not there.

    Raises:
        ValueError: there is none.
    """
    if not options.module and not os.path.isfile(options.script):
        raise ValueError(f"{options.script}: no such script")
    if options.module and module_file(options.script) is None:
        raise ValueError(f"-m {options.script}: no such module")


def script_file(options: argparse.Namespace) -> str:
    """The script's file, also where it is named as a module; "" of a module that has none."""
    return (module_file(options.script) or "") if options.module else options.script
