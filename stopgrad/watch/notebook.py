"""``%load_ext stopgrad``, then ``%%flow``: a notebook's cell under the same watch as a script, and its report below it.

The first line of the cell becomes a call that starts the watch; the rest is compiled and run by IPython like any cell.
So its names, its last value, its lines and its traceback are what they always are.
"""

from __future__ import annotations

import argparse
import ast
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

from stopgrad.flow.values import name_cells
from stopgrad.rewrite.source import finished
from stopgrad.rewrite.stops import named, stops_in
from stopgrad.rewrite.switches import Switches, read
from stopgrad.watch.hooks import overhear
from stopgrad.watch.options import Options, add_options, writable
from stopgrad.watch.page import write
from stopgrad.watch.report import Report, save
from stopgrad.watch.settings import silenced
from stopgrad.watch.tracebacks import without_ours
from stopgrad.watch.watch import Watch

_FIRST_LINE = re.compile(r"%%flow(?=\s|$)")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


class Flow:
    """``%%flow [--stop LINE=STRATEGY] [--cycles N] [--every N] [--silence NAME ...] [--json FILE] [--html FILE]``

    Run the cell, and tell what its gradients did; the options are those of ``python -m stopgrad run``.
    """

    def __init__(self, shell: Any) -> None:
        self.shell = shell
        self.watches = False
        self.switches = Switches({}, {})  # of the cell that runs next

    def __call__(self, line: str, cell: str | None = None) -> None:
        from IPython.core.error import UsageError  # pyright: ignore[reportMissingImports]

        try:
            options, silent = _options(line)
            if self.watches:
                raise ValueError("the cell is watched already")
        except ValueError as error:
            raise UsageError(f"%%flow: {error}") from None
        self._watch(options, silent)
        if cell is not None:  # called by name: what stands in a cell has come without its first line
            self.shell.run_cell(cell).raise_error()

    def _watch(self, options: argparse.Namespace, silent: dict[str, str]) -> None:
        """Watch what runs from here on, until the cell has ended."""
        watch, running = Watch(options.cycles, options.every, options=Options.of(options)), ExitStack()

        def ended(result: Any) -> None:
            self.shell.events.unregister("post_run_cell", ended)
            self.watches = False
            running.close()
            error = result.error_in_exec
            watch.close(ended=error is None or isinstance(error, AssertionError))
            for note in switches.notes():
                watch.note(note)
            number = result.execution_count
            report = Report.of(watch, "the cell" if number is None else f"In[{number}]", silent, error)
            self.shell.display_pub.publish(*self.shell.display_formatter.format(report))
            if options.json:
                save(report, Path(options.json), force=True)
            if options.html:
                write(report, Path(options.html))

        self.shell.events.register("post_run_cell", ended)
        self.watches = True
        switches, self.switches = self.switches, Switches({}, {})
        running.enter_context(switches.on())
        running.enter_context(overhear(watch))
        running.enter_context(_own_tracebacks(self.shell))


def _options(line: str) -> tuple[argparse.Namespace, dict[str, str]]:
    """The options, and the findings that are silenced.

    Raises:
        ValueError: an option that is none, a file that cannot be written, a finding that there is not.
    """
    parser = _Parser(prog="%%flow", add_help=False)
    add_options(parser)
    parser.add_argument("--stop", action="append", default=[])
    options = parser.parse_args(shlex.split(line))
    writable(json=options.json, html=options.html)
    return options, silenced(Path.cwd(), options.silence)


@contextmanager
def _own_tracebacks(shell: Any) -> Iterator[None]:
    """What the cell raises is shown without our frames; unless somebody else shows it in a way of his own."""

    def show(shell: Any, kind: Any, error: Any, traceback: Any, tb_offset: int | None = None) -> None:
        error.__traceback__ = without_ours(traceback)
        shell.showtraceback((kind, error, error.__traceback__), tb_offset=tb_offset)

    if shell.custom_exceptions:
        yield
        return
    before = shell.CustomTB
    shell.set_custom_exc((Exception,), show)
    try:
        yield
    finally:
        shell.custom_exceptions, shell.CustomTB = (), before


def _first_line(lines: list[str]) -> list[str]:
    """``%%flow`` at the head of a cell as the line magic ``%flow``."""
    if not lines or "".join(lines[1:]).lstrip().startswith("%%"):  # another cell's magic, which takes it as a text
        return lines
    return [_FIRST_LINE.sub("%flow", lines[0]), *lines[1:]]


_first_line.has_side_effects = True  # pyright: ignore[reportFunctionMemberAccess]  # IPython in a terminal is to see a cell that goes on to an empty line


class _CellStops(ast.NodeTransformer):
    """Switches the stops of a cell that begins with ``%%flow --stop LINE=STRATEGY``, as IPython compiles it."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow

    def visit(self, node: ast.AST) -> ast.AST:
        match node:
            case ast.Module(body=[ast.Expr(ast.Call(ast.Attribute(attr="run_line_magic"), args=magic)), *_]):
                name, line = (part.value if isinstance(part, ast.Constant) else "" for part in magic[:2])
                if name == "flow" and "--stop" in str(line):
                    return self._switched(node, str(line))
        return node

    def _switched(self, tree: ast.Module, line: str) -> ast.Module:
        from IPython.core.error import InputRejected  # pyright: ignore[reportMissingImports]

        stops = named(stops_in(tree, ""))
        try:
            self._flow.switches = read(_options(line)[0].stop, lambda file: stops)
        except ValueError as error:
            raise InputRejected(f"%%flow: {error}") from None
        return finished(self._flow.switches.switch(tree, [*self._flow.switches.chosen]))


def load_ipython_extension(shell: Any) -> None:
    """``%load_ext stopgrad``"""
    flow = Flow(shell)
    shell.register_magic_function(flow, "line_cell", "flow")
    shell.ast_transformers.append(_CellStops(flow))
    shell.input_transformers_cleanup.append(_first_line)
    name_cells(_cell_name(shell))


def unload_ipython_extension(shell: Any) -> None:
    """``%unload_ext stopgrad``"""
    for kind in ("line", "cell"):
        shell.magics_manager.magics[kind].pop("flow", None)
    if _first_line in shell.input_transformers_cleanup:
        shell.input_transformers_cleanup.remove(_first_line)
    shell.ast_transformers[:] = [each for each in shell.ast_transformers if not isinstance(each, _CellStops)]
    name_cells()


def _cell_name(shell: Any) -> Callable[[str], str | None]:
    def name(file: str) -> str | None:
        known = shell.compile.format_code_name(file)
        return known[1] if known else None

    return name
