"""``python -m stopgrad run SCRIPT ARGUMENTS``: the script as it stands, and at its end what its gradients did."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from types import TracebackType

from stopgrad.watch.hooks import overhear
from stopgrad.watch.report import Report
from stopgrad.watch.watch import Watch

_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def run(options: argparse.Namespace) -> int:
    """Run the script and report. Returns the script's own exit status, or ours where ``--fail-on`` asks for it."""
    watch = Watch(cycles=options.cycles, every=options.every)
    status, error = 0, None
    with overhear(watch):
        try:
            _script(options)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        except BaseException as raised:
            error = raised
        finally:
            watch.close()
    if error is not None:
        sys.excepthook(type(error), error, _without_ours(error.__traceback__))
        status = 130 if isinstance(error, KeyboardInterrupt) else 1
    report = Report.of(watch)
    print(f"\n{report}", file=sys.stderr)
    return status


def _script(options: argparse.Namespace) -> None:
    sys.argv = [options.script, *options.arguments]
    if options.module:
        sys.path.insert(0, os.getcwd())
        runpy.run_module(options.script, run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, os.path.dirname(os.path.abspath(options.script)))
        runpy.run_path(options.script, run_name="__main__")


def _without_ours(traceback: TracebackType | None) -> TracebackType | None:
    """The script's traceback without the frames that carry it."""
    while traceback is not None and _is_ours(traceback):
        traceback = traceback.tb_next
    here = traceback
    while here is not None and here.tb_next is not None:
        while here.tb_next is not None and _is_ours(here.tb_next):
            here.tb_next = here.tb_next.tb_next
        here = here.tb_next
    return traceback


def _is_ours(traceback: TracebackType) -> bool:
    file = traceback.tb_frame.f_code.co_filename
    return file.startswith((_OWN, "<frozen runpy")) or file == runpy.__file__
