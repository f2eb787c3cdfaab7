"""The places of a source where an edit can stand: values as they are made and used, statements, and stops."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# What is asked of a tensor here concerns the tensor itself, not its value: an alias would not do.
_OWN = {"grad", "requires_grad", "is_leaf", "grad_fn", "shape", "dtype", "device", "ndim", "layout", "data", "names"}
_OWN |= {"backward", "retain_grad", "register_hook", "size", "dim", "numel", "stride", "item", "tolist", "numpy"}
_OWN |= {"detach", "cpu_data", "data_ptr", "storage", "untyped_storage", "element_size", "is_contiguous"}
_CALLS = {"grad", "backward", "isinstance", "id", "type", "len", "print", "hasattr", "getattr", "setattr", "super"}
_CALLS |= {"repr", "str", "float", "int", "bool", "range", "Parameter", "register_parameter", "append", "add"}
_VALUES = (ast.Call, ast.Name, ast.Attribute, ast.Subscript, ast.BinOp, ast.UnaryOp)
_MODES = ("no_grad", "inference_mode")
_STOPS = {"detach", "detach_"}
_COPIES = {"tensor", "new_tensor"}

Statement = (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Expr, ast.Return)


@dataclass(frozen=True, eq=False)
class Site:
    """A place in a source.

    Attributes:
        index: its number in the file.
        kind: ``value``; ``statement``; ``block``, which runs in a mode without gradients; ``stop``, an expression that
            cuts; ``flag``, which sets ``requires_grad`` to False.
        node: of a block, the ``with`` or the function.
        inside: the innermost statement around it, by its number; -1 where there is none.
        leaf: of a value: a parameter may pass through an alias here.
        stop: of a block, its mode; of a stop, its kind.
    """

    index: int
    kind: str
    node: ast.expr | ast.stmt
    inside: int = -1
    leaf: bool = True
    stop: str = ""


def sites_of(tree: ast.Module) -> list[Site]:
    """All sites of a source, by their numbers."""
    finder = _Finder(tree)
    finder.body(tree.body)
    return finder.found


class _Finder:
    def __init__(self, tree: ast.Module) -> None:
        self.found: list[Site] = []
        self._inside = -1
        self._imported = {"self", "cls"}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                self._imported |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}

    def _add(self, kind: str, node: ast.expr | ast.stmt, *, leaf: bool = True, stop: str = "") -> Site:
        self.found.append(Site(len(self.found), kind, node, self._inside, leaf, stop))
        return self.found[-1]

    # ---- statements

    def body(self, statements: Iterable[ast.stmt]) -> None:
        for statement in statements:
            self._statement(statement)

    def _statement(self, node: ast.stmt) -> None:
        before = self._inside
        if isinstance(node, Statement) and node.value is not None and not isinstance(node.value, ast.Constant):
            self._inside = self._add("statement", node).index
            self._simple(node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            mode = next(filter(None, map(mode_of, node.decorator_list)), "")
            if mode:
                self._add("block", node, stop=mode)
            self._inside = -1
            self.body(node.body)
        elif isinstance(node, ast.ClassDef):
            self._inside = -1
            self.body(n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef))
        elif isinstance(node, ast.With | ast.AsyncWith):
            mode = next(filter(None, (mode_of(item.context_expr) for item in node.items)), "")
            if mode:
                self._add("block", node, stop=mode)
            for item in node.items:
                self._expr(item.context_expr, wrap=False)
            self.body(node.body)
        else:
            for _, value in ast.iter_fields(node):
                for child in value if isinstance(value, list) else [value]:
                    if isinstance(child, ast.stmt):
                        self._statement(child)
                    elif isinstance(child, ast.ExceptHandler | ast.match_case):
                        self.body(child.body)
                    elif isinstance(child, ast.expr) and not isinstance(getattr(child, "ctx", None), ast.Store):
                        self._expr(child, wrap=False)
        self._inside = before

    def _simple(self, node: ast.stmt) -> None:
        match node:
            case ast.Assign(targets=[target, *_], value=value):
                names = target.elts if isinstance(target, ast.Tuple) else [target]
                flag = isinstance(target, ast.Attribute) and target.attr == "requires_grad"
                if flag and isinstance(value, ast.Constant) and value.value is False:
                    self._add("flag", node)
                self._expr(value, leaf=all(isinstance(n, ast.Name) for n in names))
            case ast.AnnAssign(value=ast.expr() as value) | ast.AugAssign(value=value):
                self._expr(value, leaf=False)
            case ast.Return(value=ast.expr() as value):
                self._expr(value, leaf=False)
            case ast.Expr(value=value):
                self._expr(value, wrap=False)

    # ---- expressions

    def _expr(self, node: ast.expr, *, wrap: bool = True, leaf: bool = True) -> None:
        """Find the sites of an expression; ``wrap`` says whether its own value may be one."""
        is_number = isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant)
        if wrap and isinstance(node, _VALUES) and not is_number and not self._is_imported(node):
            self._add("value", node, leaf=leaf and isinstance(node, ast.Name | ast.Attribute))
        match node:
            case ast.Call(func=func, args=args, keywords=keywords):
                self._call(node, func, args, keywords)
            case ast.Attribute(value=of, attr=attr):
                if attr == "data":
                    self._add("stop", node, stop="data")
                self._expr(of, wrap=_is_of_value(attr))
            case ast.Subscript(value=of, slice=at):
                self._expr(of)
                self._expr(at, wrap=False)
            case ast.BinOp(left=left, right=right):
                self._expr(left)
                self._expr(right)
            case ast.UnaryOp(operand=operand):
                self._expr(operand)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                self._expr(test, wrap=False)
                self._expr(body, leaf=leaf)
                self._expr(orelse, leaf=leaf)
            case ast.Tuple(elts=items) | ast.List(elts=items) | ast.Set(elts=items):
                for item in items:
                    self._expr(item, wrap=wrap and not isinstance(item, ast.Starred), leaf=False)
            case ast.Dict(keys=keys, values=values):
                for key, value in zip(keys, values, strict=True):
                    if key is not None:
                        self._expr(key, wrap=False)
                    self._expr(value, wrap=key is not None, leaf=False)
            case ast.ListComp(elt=elt, generators=each) | ast.SetComp(elt=elt, generators=each):
                self._comprehension([elt], each)
            case ast.GeneratorExp(elt=elt, generators=each):
                self._comprehension([elt], each)
            case ast.DictComp(key=key, value=value, generators=each):
                self._comprehension([key, value], each)
            case ast.Lambda(body=body):
                self._expr(body, leaf=False)
            case ast.NamedExpr(value=value) | ast.Starred(value=value) | ast.Await(value=value):
                self._expr(value, wrap=isinstance(node, ast.NamedExpr))
            case ast.Yield(value=ast.expr() as value):
                self._expr(value, leaf=False)
            case ast.Compare() | ast.BoolOp() | ast.YieldFrom() | ast.Slice():
                for child in ast.iter_child_nodes(node):
                    if isinstance(child, ast.expr):
                        self._expr(child, wrap=False)

    def _call(self, node: ast.Call, func: ast.expr, args: list[ast.expr], keywords: list[ast.keyword]) -> None:
        name = getattr(func, "attr", getattr(func, "id", ""))
        if name in _STOPS or (name in _COPIES and args):
            self._add("stop", node, stop=name if name in _STOPS else "torch.tensor")
        if name == "requires_grad_" and args and isinstance(args[0], ast.Constant) and args[0].value is False:
            self._add("flag", node)
        if isinstance(func, ast.Attribute):
            self._expr(func.value, wrap=_is_of_value(name) and not isinstance(func.value, ast.Constant))
        elif not isinstance(func, ast.Name):
            self._expr(func, wrap=False)
        wrap = name not in _CALLS
        for value in [*args, *(keyword.value for keyword in keywords)]:
            self._expr(value, wrap=wrap and not isinstance(value, ast.Starred))

    def _comprehension(self, values: list[ast.expr], each: list[ast.comprehension]) -> None:
        for value in values:
            self._expr(value, leaf=False)
        for one in each:
            for part in (one.iter, *one.ifs):
                self._expr(part, wrap=False)

    def _is_imported(self, node: ast.expr) -> bool:
        root = node
        while isinstance(root, ast.Attribute):
            root = root.value
        is_module = isinstance(root, ast.Name) and root.id in self._imported
        return is_module and (root is node or (isinstance(root, ast.Name) and root.id not in ("self", "cls")))


def _is_of_value(attribute: str) -> bool:
    """What is asked for concerns the value, and changes nothing in place."""
    return attribute not in _OWN and not (attribute.endswith("_") and not attribute.endswith("__"))


def mode_of(node: ast.expr) -> str:
    """``no_grad`` of ``torch.no_grad()`` and ``torch.no_grad``."""
    func = node.func if isinstance(node, ast.Call) else node
    name = getattr(func, "attr", getattr(func, "id", ""))
    if isinstance(node, ast.Call) and name == "set_grad_enabled":
        return "no_grad" if node.args and isinstance(node.args[0], ast.Constant) and not node.args[0].value else ""
    return name if name in _MODES else ""


def dotted(node: ast.AST) -> Iterator[str]:
    """The names in a statement, also dotted: ``self``, ``self.critic``, ``self.critic.head``."""
    for inner in ast.walk(node):
        root = inner
        while isinstance(root, ast.Attribute):
            root = root.value
        if isinstance(inner, ast.Name | ast.Attribute) and isinstance(root, ast.Name):
            yield ast.unparse(inner)


def assigned(tree: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    """(name, statement) of all that gets a value in a simple statement, a ``for`` or a ``with``, or as an argument."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
                yield argument.arg, node
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign | ast.AugAssign | ast.For):
            targets = [node.target]
        elif isinstance(node, ast.With):
            targets = [item.optional_vars for item in node.items if item.optional_vars is not None]
        for target in targets:
            for inner in ast.walk(target):
                stores = isinstance(getattr(inner, "ctx", None), ast.Store)
                if isinstance(node, ast.stmt) and isinstance(inner, ast.Name | ast.Attribute) and stores:
                    yield ast.unparse(inner), node
