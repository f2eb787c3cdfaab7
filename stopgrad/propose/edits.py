"""Edits of a source: what each writes, as text, so that what is tried is what is told."""

from __future__ import annotations

import ast
import difflib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stopgrad.flow.values import place
from stopgrad.propose.graph import Choice
from stopgrad.propose.places import Site, assigned, mode_of, sites_of

_ATOMS = (ast.Name, ast.Attribute, ast.Call, ast.Subscript)
Change = tuple[int, int, str]  # the bytes from the one to before the other become this text


@dataclass(frozen=True)
class Edit:
    """One edit of a file.

    Attributes:
        kind: ``detach``, ``no_grad``, ``freeze`` or ``remove``.
        value: what it is done to, as the source spells it.
        during: of a freeze, the statement.
    """

    file: str
    line: int
    kind: str
    value: str
    changes: tuple[Change, ...]
    during: str = ""

    def __str__(self) -> str:
        strategy = "none" if self.kind == "remove" else self.kind
        what = {
            "detach": f"detach {self.value}",
            "no_grad": f"torch.no_grad() around {self.value}",
            "freeze": f"freeze {self.value} during {self.during}",
            "remove": f"remove {self.value}",
        }[self.kind]
        what = f"set {self.value}={strategy}" if self.value.startswith("stop.") else what
        return f"{place(self.file, self.line)}: {what}"


class Source:
    """A file as it was read once."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.name = place(file, 0).rpartition(":")[0]
        self.text = Path(file).read_bytes()
        self.tree = ast.parse(self.text, file)
        self.sites: list[Site] = sites_of(self.tree)
        self._starts = [0]
        for line in self.text.splitlines(True):
            self._starts.append(self._starts[-1] + len(line))
        self.parents = {child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)}
        self._torch = next((n for n in (_torch(node) for node in ast.walk(self.tree)) if n), "")

    # ---- where

    def start(self, node: ast.expr | ast.stmt) -> int:
        return self._starts[node.lineno - 1] + node.col_offset

    def end(self, node: ast.expr | ast.stmt) -> int:
        return self._starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)

    def spelled(self, node: ast.expr | ast.stmt, most: int = 60) -> str:
        first, *more = self.text[self.start(node) : self.end(node)].decode().splitlines()
        text = f"{first} ..." if more else first
        return text if len(text) <= most else f"{text[: most - 3]}..."

    def _line_at(self, number: int) -> bytes:
        return self.text[self._starts[number - 1] : self._starts[number]]

    def _has_own_lines(self, node: ast.stmt) -> bool:
        """Nothing else stands on the lines of a statement, and no text goes over several of them."""
        before = self._line_at(node.lineno)[: node.col_offset]
        after = self._line_at(node.end_lineno or node.lineno)[node.end_col_offset or 0 :].strip()
        texts = [n for n in ast.walk(node) if isinstance(n, ast.Constant | ast.JoinedStr) and n.end_lineno != n.lineno]
        return not before.strip() and (not after or after.startswith(b"#")) and not texts

    def _indent(self, node: ast.stmt) -> str:
        return self._line_at(node.lineno)[: node.col_offset].decode()

    # ---- what

    def edit(self, choice: Choice) -> Edit | None:
        """The edit that a choice comes to; None where the source cannot be written so."""
        site = self.sites[choice.key[1]]
        changes: list[Change] | None
        value, during = self.spelled(site.node), ""
        if choice.kind == "detach":
            changes = self._detach(site.node)
        elif choice.kind == "no_grad":
            changes = self._no_grad(site.node)
        elif choice.kind == "freeze":
            changes, value, during = self._freeze(site.node, choice.module), choice.module, value
        else:
            changes, value = self._remove(site)
        if not changes:
            return None
        return Edit(self.file, site.node.lineno, choice.kind, value, tuple(changes), during)

    def _detach(self, node: ast.AST) -> list[Change] | None:
        assert isinstance(node, ast.expr)
        start, end = self.start(node), self.end(node)
        if isinstance(node, _ATOMS):
            return [(end, end, ".detach()")]
        around = self.text[:start].rstrip()[-2:], self.text[end : end + 1]
        if around[0][-1:] == b"(" and around[1] == b")" and not (around[0][:1].isalnum() or around[0][:1] in b"_)]"):
            return [(end + 1, end + 1, ".detach()")]  # it stands in brackets of its own
        return [(start, start, "("), (end, end, ").detach()")]

    def _no_grad(self, node: ast.AST) -> list[Change] | None:
        assert isinstance(node, ast.stmt)
        if not self._torch or not self._has_own_lines(node):
            return None
        indent = self._indent(node)
        further = "\t" if "\t" in indent else "    "
        first, *rest = range(node.lineno, (node.end_lineno or node.lineno) + 1)
        at = self._starts[first - 1]
        changes = [(at, at, f"{indent}with {self._torch}.no_grad():\n{further}")]
        return changes + [(self._starts[n - 1], self._starts[n - 1], further) for n in rest if self._line_at(n).strip()]

    def _freeze(self, node: ast.AST, module: str) -> list[Change] | None:
        assert isinstance(node, ast.stmt)
        if isinstance(node, ast.Return) or not self._has_own_lines(node):
            return None
        at, after = self._starts[node.lineno - 1], self._starts[node.end_lineno or node.lineno]
        line = f"{self._indent(node)}{module}.requires_grad_"
        ending = "" if self.text[:after].endswith(b"\n") else "\n"
        return [(at, at, f"{line}(False)\n"), (after, after, f"{ending}{line}(True)\n")]

    def _remove(self, site: Site) -> tuple[list[Change] | None, str]:
        node = site.node
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                mode = next(d for d in node.decorator_list if mode_of(d))
                lines = range(mode.lineno, (mode.end_lineno or mode.lineno) + 1)
                return [self._without_lines(lines)], f"@{self.spelled(mode)} of {node.name}"
            case ast.With() | ast.AsyncWith():
                return self._without_with(node), self.spelled(node)
            case ast.Attribute(value=of):  # .data
                return [(self.end(of), self.end(node), "")], self.spelled(node)
            case ast.Assign():
                return self._without_statement(node), self.spelled(node)
            case ast.Call(func=ast.Attribute(value=of), args=args):
                parent = self.parents.get(node)
                name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
                if isinstance(parent, ast.Expr):
                    return self._without_statement(parent), self.spelled(node)
                if name in ("tensor", "new_tensor") or (name == "detach" and args):
                    of = args[0]
                    if not isinstance(of, _ATOMS):
                        return None, ""
                    return [(self.start(node), self.start(of), ""), (self.end(of), self.end(node), "")], self.spelled(
                        node
                    )
                return [(self.end(of), self.end(node), "")], self.spelled(node)
        return None, ""

    def _without_lines(self, lines: Sequence[int]) -> Change:
        return self._starts[lines[0] - 1], self._starts[lines[-1]], ""

    def _without_statement(self, node: ast.stmt) -> list[Change] | None:
        if not self._has_own_lines(node):
            return None
        parent = self.parents.get(node)
        if isinstance(parent, ast.For) and parent.body == [node] and not parent.orelse:
            node = parent
        body = next(v for _, v in ast.iter_fields(self.parents[node]) if isinstance(v, list) and node in v)
        if len(body) == 1:
            return [(self.start(node), self.end(node), "pass")]
        return [self._without_lines(range(node.lineno, (node.end_lineno or node.lineno) + 1))]

    def _without_with(self, node: ast.With | ast.AsyncWith) -> list[Change] | None:
        if len(node.items) != 1 or not all(map(self._has_own_lines, [node, *node.body])):
            return None
        first, last = node.body[0].lineno, node.end_lineno or node.lineno
        if first == node.lineno:
            return None
        width = node.body[0].col_offset - node.col_offset
        changes = [self._without_lines(range(node.lineno, first))]
        for number in range(first, last + 1):
            at = self._starts[number - 1]
            if self._line_at(number)[:width].strip():
                return None
            if self._line_at(number).strip():
                changes.append((at, at + width, ""))
        return changes

    def boundary(self, name: str, strategy: str) -> Edit | None:
        """The edit that gives a boundary another strategy, where the source makes it."""
        for node in ast.walk(self.tree):
            if not (
                isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "Boundary"
            ):
                continue
            if node.args and isinstance(node.args[0], ast.Constant) and node.args[0].value == name:
                at = (self.end(node.args[0]), self.end(node.args[0]), f', "{strategy}"')
                if len(node.args) > 1:
                    at = self.start(node.args[1]), self.end(node.args[1]), f'"{strategy}"'
                kind = "remove" if strategy == "none" else strategy
                return Edit(self.file, node.lineno, kind, f"stop.{name}", (at,))
        return None

    # ---- the whole

    def with_edits(self, edits: Iterable[Edit]) -> bytes:
        changes = sorted({change for edit in edits for change in edit.changes if edit.file == self.file}, reverse=True)
        text = self.text
        for start, end, new in changes:
            text = text[:start] + new.encode() + text[end:]
        return text

    def line_of(self, line: int, variable: str, edits: Iterable[Edit]) -> int:
        """The line on which a variable gets its value once the edits are made, and which is ``line`` now."""
        node = next(by for name, by in assigned(self.tree) if name == variable and by.lineno == line)
        at = self.start(node)
        for start, end, new in {change for edit in edits for change in edit.changes if edit.file == self.file}:
            if start <= at:
                line += new.count("\n") - self.text[start:end].count(b"\n")
        return line

    def diff(self, edits: Iterable[Edit]) -> str:
        """A unified diff."""
        before, after = (text.decode().splitlines(True) for text in (self.text, self.with_edits(edits)))
        lines = difflib.unified_diff(before, after, self.name, self.name)
        return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)

    def write(self, edits: Iterable[Edit]) -> None:
        """Put the edited source in the place of the file, at once.

        Raises:
            ValueError: the file is not what was read.
        """
        if Path(self.file).read_bytes() != self.text:
            raise ValueError(f"--write {self.name}: the file was changed meanwhile; nothing is written")
        half = Path(f"{self.file}.stopgrad.tmp")
        half.write_bytes(self.with_edits(edits))
        half.chmod(os.stat(self.file).st_mode & 0o7777)
        half.replace(self.file)


def _torch(node: ast.AST) -> str:
    """The name under which a source knows torch."""
    if isinstance(node, ast.Import):
        return next((a.asname or a.name for a in node.names if a.name == "torch"), "")
    return ""
