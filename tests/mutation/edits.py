"""All small edits of a source file that leave it a program: one place of one function is written differently.

An edit is found in the syntax tree and made in the text, so that it reads as a person would have written it. What only
a log, an error message, an annotation or an `assert` says is left alone: none of them decides anything.
"""

from __future__ import annotations

import ast
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from tests.mutation.statements import (
    acts,
    bound,
    fills_apart,
    is_a_part,
    moves_apart,
    only_names,
    places,
    read,
    stores,
    uses,
)

ROOMS = ("lifecycle", "memory", "loops", "actors")

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
Enums = Mapping[str, Sequence[str]]
"""Name of an enum -> its members in their order."""

WRITTEN: dict[type[ast.cmpop], str] = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.In: "in",
    ast.NotIn: "not in",
    ast.Is: "is",
    ast.IsNot: "is not",
}
OPPOSITES = (("<", ">="), (">", "<="), ("==", "!="), ("in", "not in"), ("is", "is not"))
OPPOSITE = {old: new for pair in OPPOSITES for old, new in (pair, pair[::-1])}
BOUNDARY = {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}
OPERATORS: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
    ast.FloorDiv: ("//", "*"),
}
CALLS = {"min": "max", "max": "min", "any": "all", "all": "any"}
COMMUTATIVE = {"np.minimum", "np.maximum", "np.array_equal", "np.union1d", "suppress"}
ORDER_IS_A_TYPE = {"isinstance", "getattr", "setattr", "hasattr", "cast", "issubclass", "zip"}
"""Calls whose first two arguments cannot be swapped: their types differ, or the pairs only change sides."""


class Edit(NamedTuple):
    """One place of one function, written differently."""

    file: str
    """From the root of the repository."""
    function: str
    """Qualified by its classes, and by the function that it is nested in."""
    kind: str
    line: int
    last: int
    """First and last line of the statement that it is in, without the statements inside."""
    start: int
    end: int
    """The bytes of the file that it replaces."""
    new: str
    before: str
    after: str
    """The lines concerned, without and with it, on one line each."""
    number: int = 1
    """Among those of this function that read the same."""

    @property
    def key(self) -> str:
        """What stays when lines above it come or go."""
        again = f" ({self.number})" if self.number > 1 else ""
        return f"{self.before} => {self.after}{again}"

    @property
    def place(self) -> str:
        """File and line."""
        return f"{self.file}:{self.line}"

    def applied(self, source: bytes) -> bytes:
        """The file with this edit."""
        return source[: self.start] + self.new.encode() + source[self.end :]

    def rank(self, seed: int) -> str:
        """Places edits in an order that has nothing to do with where they are, and that new ones do not change."""
        return hashlib.sha256(f"{seed}/{self.file}/{self.function}/{self.key}".encode()).hexdigest()


def enums_of(folders: Sequence[Path]) -> dict[str, tuple[str, ...]]:
    """The enums that are defined below these folders."""
    enums: dict[str, tuple[str, ...]] = {}
    for path in (path for folder in folders for path in sorted(folder.rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and any("Enum" in ast.unparse(base) for base in node.bases):
                assigns = [item for item in node.body if isinstance(item, ast.Assign)]
                enums[node.name] = tuple(
                    target.id for item in assigns for target in item.targets if isinstance(target, ast.Name)
                )
    return enums


def edits_of(file: str, source: bytes, enums: Enums) -> list[Edit]:
    """Every edit of every function of a file, in the order of the text."""
    finder = _Finder(file, source, enums)
    finder.look_into(ast.parse(source).body, ())
    return sorted(finder.found, key=lambda edit: (edit.start, edit.end, edit.new))


class _Finder:
    def __init__(self, file: str, source: bytes, enums: Enums) -> None:
        self.found: list[Edit] = []
        self._file = file
        self._source = source
        self._enums = enums
        self._line_starts = [0]
        for line in source.splitlines(keepends=True):
            self._line_starts.append(self._line_starts[-1] + len(line))
        self._seen: Counter[tuple[str, str]] = Counter()
        self._function = ""
        self._lines = 0, 0
        self._assigned: Counter[str] = Counter()

    def look_into(self, body: Sequence[ast.stmt], scope: tuple[str, ...]) -> None:
        """Find the functions among these statements of a module or class."""
        for node in body:
            if isinstance(node, ast.ClassDef):
                self.look_into(node.body, (*scope, node.name))
            elif isinstance(node, FunctionNode):
                self._in_function(node, (*scope, node.name))

    # ---- text ----

    def _span(self, node: ast.AST) -> tuple[int, int]:
        start = self._line_starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
        end = self._line_starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]
        return start, end

    def _text(self, node: ast.AST) -> str:
        start, end = self._span(node)
        return self._source[start:end].decode()

    def _add(self, kind: str, start: int, end: int, new: str) -> None:
        first = self._source.rfind(b"\n", 0, start) + 1
        last = self._source.find(b"\n", end)
        last = len(self._source) if last < 0 else last
        old = self._source[first:last].decode()
        changed = (self._source[first:start] + new.encode() + self._source[end:last]).decode()
        before, after = (" ".join(text.split()) for text in (old, changed))
        self._seen[self._function, f"{before} => {after}"] += 1
        number = self._seen[self._function, f"{before} => {after}"]
        self.found.append(Edit(self._file, self._function, kind, *self._lines, start, end, new, before, after, number))

    def _replace(self, kind: str, node: ast.AST, new: str) -> None:
        self._add(kind, *self._span(node), new)

    def _between(self, kind: str, left: ast.AST, right: ast.AST, old: str, new: str) -> None:
        """Replace an operator, which has no node of its own, between its operands."""
        begin, end = self._span(left)[1], self._span(right)[0]
        at = self._source.find(old.encode(), begin, end)
        if at >= 0:
            self._add(kind, at, at + len(old), new)

    # ---- statements ----

    def _in_function(self, node: FunctionNode, scope: tuple[str, ...]) -> None:
        outer = self._function, self._assigned
        self._function = ".".join(scope)
        self._assigned = Counter(
            part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
        )
        self._assigned.update(argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg))
        body = _without_docstring(node.body)
        self._in_block(body, node, scope)
        if _promised(node) == "None" and len(body) > 2:
            self._lines = _lines_of(body[len(body) // 2])
            self._insert_before("return early", body[len(body) // 2], "return")
        self._function, self._assigned = outer

    def _insert_before(self, kind: str, statement: ast.stmt, text: str) -> None:
        start, _ = self._span(statement)
        self._add(kind, start, start, text + "\n" + " " * statement.col_offset)

    def _in_block(self, body: Sequence[ast.stmt], function: FunctionNode, scope: tuple[str, ...]) -> None:
        for node in body:
            if isinstance(node, FunctionNode):
                self._in_function(node, (*scope, node.name))
                continue
            if _decides_nothing(node):
                continue
            self._lines = _lines_of(node)
            self._delete(node, function)
            self._in_statement(node, function)
            for name in ("body", "orelse", "finalbody"):
                self._in_block(getattr(node, name, []), function, scope)
            for part in (*getattr(node, "handlers", []), *getattr(node, "cases", [])):
                self._in_block(part.body, function, scope)
        for first, second in pairwise(body):
            self._swap_statements(first, second)

    def _delete(self, node: ast.stmt, function: FunctionNode) -> None:
        """Missing record, missing release, missing guard, …"""
        if isinstance(node, ast.Return):
            if node.value is None:
                self._replace("delete", node, "pass")
            elif ast.unparse(node.value) != "None" and "| None" in _promised(function):
                self._replace("return early", node, "return None")
            return
        if isinstance(node, ast.Try | ast.With | ast.AsyncWith | ast.Match | ast.Pass | ast.Import | ast.ImportFrom):
            return
        if isinstance(node, ast.AnnAssign) and node.value is None:
            return
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if isinstance(node, ast.Assign | ast.AnnAssign) and any(
            isinstance(part, ast.Name) and self._assigned[part.id] < 2
            for target in targets
            if target is not None and not isinstance(target, ast.Attribute | ast.Subscript)
            for part in ast.walk(target)
        ):
            return  # without its only value a name is an error at once
        if isinstance(node, ast.If) and node.orelse:
            return  # the negated condition says more
        self._replace("delete", node, "pass")

    def _in_statement(self, node: ast.stmt, function: FunctionNode) -> None:
        """Edits of what stands in the statement itself, not in its blocks."""
        if isinstance(node, ast.Raise):
            return
        if isinstance(node, ast.If | ast.While):
            self._negate(node.test)
        if isinstance(node, ast.For | ast.AsyncFor) and not isinstance(node.body[-1], ast.Return | ast.Raise):
            last = node.body[-1]
            _, end = self._span(last)
            self._add("return early", end, end, "\n" + " " * last.col_offset + "break")
        if isinstance(node, ast.Return) and node.value is not None and not isinstance(node.value, ast.Constant):
            if _promised(function) == "bool":
                self._negate(node.value)
            elif _promised(function) == "int":
                self._replace("off by one", node.value, f"({self._text(node.value)}) + 1")
        if isinstance(node, ast.AugAssign) and type(node.op) in OPERATORS:
            old, new = OPERATORS[type(node.op)]
            self._between("operator", node.target, node.value, old + "=", new + "=")
        for child in _expressions_of(node):
            self._in_expression(child)

    def _swap_statements(self, first: ast.stmt, second: ast.stmt) -> None:
        """Wrong order of two statements, where each could stand first."""
        simple = (ast.Expr, ast.Assign, ast.AugAssign)
        if not isinstance(first, simple) or not isinstance(second, simple):
            return
        if _decides_nothing(first) or _decides_nothing(second):
            return
        if bound(first) & read(second) or bound(second) & (read(first) | bound(first)):
            return
        if only_names(first) or only_names(second):
            return  # whatever the other does, the name stands for the same
        if self._function.endswith(".__init__") and is_a_part(first, second) and is_a_part(second, first):
            return  # of an object that nobody has yet
        if fills_apart(first, second) or fills_apart(second, first):
            return
        if moves_apart(first, second) and moves_apart(second, first):
            return
        if not (acts(first) or acts(second)) and not (places(first) & uses(second) or places(second) & uses(first)):
            return  # nothing that either does can be seen by the other
        if isinstance(first, ast.Assign) and isinstance(second, ast.Assign) and not (stores(first) or stores(second)):
            return
        self._lines = first.lineno, _lines_of(second)[1]
        start, first_end = self._span(first)
        second_start, end = self._span(second)
        between = self._source[first_end:second_start].decode()
        self._add("wrong order", start, end, self._text(second) + between + self._text(first))

    # ---- expressions ----

    def _negate(self, node: ast.expr) -> None:
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            self._replace("negate", node, self._text(node.operand))
        elif isinstance(node, ast.Compare) and len(node.ops) == 1:
            old = WRITTEN[type(node.ops[0])]
            self._between("negate", node.left, node.comparators[0], old, OPPOSITE[old])
        else:
            self._replace("negate", node, f"not ({self._text(node)})")

    def _in_expression(self, node: ast.AST) -> None:
        if isinstance(node, ast.JoinedStr | ast.Lambda):
            if isinstance(node, ast.Lambda):
                self._in_expression(node.body)
            return
        if isinstance(node, ast.keyword) and node.arg == "strict":
            return  # an assertion
        self._edit(node)
        for child in ast.iter_child_nodes(node):
            self._in_expression(child)

    def _edit(self, node: ast.AST) -> None:
        match node:
            case ast.IfExp():
                self._negate(node.test)
            case ast.comprehension():
                for condition in node.ifs:
                    self._negate(condition)
            case ast.BoolOp():
                self._logic(node)
            case ast.Compare(ops=[ast.Lt() | ast.LtE() | ast.Gt() | ast.GtE() as operator]):
                old = WRITTEN[type(operator)]
                self._between("boundary", node.left, node.comparators[0], old, BOUNDARY[old])
            case ast.BinOp() if type(node.op) in OPERATORS and not _is_text(node):
                self._between("operator", node.left, node.right, *OPERATORS[type(node.op)])
            case ast.Constant(value=bool()):
                self._replace("constant", node, str(not node.value))
            case ast.Constant(value=int()):
                self._replace("constant", node, str(node.value + 1))
            case ast.Slice():
                for end in (node.lower, node.upper):
                    if end is not None and not isinstance(end, ast.Constant | ast.UnaryOp):
                        self._replace("off by one", end, f"{self._text(end)} + 1")
            case ast.Attribute(value=ast.Name(id=enum)) if node.attr in self._enums.get(enum, ()):
                members = self._enums[enum]
                other = members[(members.index(node.attr) + 1) % len(members)]
                if other != node.attr:
                    self._replace("enum member", node, f"{enum}.{other}")
            case ast.Call():
                self._call(node)

    def _logic(self, node: ast.BoolOp) -> None:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in pairwise(node.values):
            self._between("logic", left, right, old, new)
        if len(node.values) > 2:
            return
        for kept in node.values:
            self._replace("logic", node, self._text(kept))

    def _call(self, node: ast.Call) -> None:
        name = ast.unparse(node.func)
        if name in CALLS:
            self._replace("call", node.func, CALLS[name])
        if name in ORDER_IS_A_TYPE or name in CALLS or name in COMMUTATIVE:
            return
        for first, second in pairwise(node.args):
            starred = isinstance(first, ast.Starred) or isinstance(second, ast.Starred)
            constant = isinstance(first, ast.Constant) and isinstance(second, ast.Constant)
            if not starred and not constant and self._text(first) != self._text(second):
                (start, first_end), (second_start, end) = self._span(first), self._span(second)
                between = self._source[first_end:second_start].decode()
                self._add("swap arguments", start, end, self._text(second) + between + self._text(first))


def _promised(function: FunctionNode) -> str:
    """What the signature says is returned."""
    return ast.unparse(function.returns) if function.returns is not None else ""


def _lines_of(node: ast.stmt) -> tuple[int, int]:
    """First and last line of a statement, without the statements inside."""
    inside = getattr(node, "body", None) or getattr(node, "cases", None)
    if not inside:
        return node.lineno, node.end_lineno or node.lineno
    first = inside[0].pattern.lineno if isinstance(inside[0], ast.match_case) else inside[0].lineno
    return node.lineno, max(node.lineno, first - 1)


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    return body[1:] if body and _is_docstring(body[0]) else body


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _decides_nothing(node: ast.stmt) -> bool:
    """Docstrings and `...`, assertions in either form, what is only logged, whatever for, and methods that are only
    declared."""
    if isinstance(node, ast.Assert) or _is_docstring(node):
        return True
    if isinstance(node, ast.If) and not node.orelse and len(node.body) == 1:
        only = node.body[0]
        if isinstance(only, ast.Expr):
            return _decides_nothing(only)
        return isinstance(only, ast.Raise) and only.exc is not None and "AssertionError" in ast.unparse(only.exc)
    if isinstance(node, ast.Raise):
        return node.exc is not None and "NotImplementedError" in ast.unparse(node.exc)
    called = node.value if isinstance(node, ast.Expr) else None
    return isinstance(called, ast.Call) and ast.unparse(called.func).startswith("log.")


def _expressions_of(node: ast.stmt) -> Iterator[ast.AST]:
    for name, value in ast.iter_fields(node):
        if name in ("body", "orelse", "finalbody", "handlers", "annotation", "targets", "target"):
            if name in ("targets", "target"):
                parts = value if isinstance(value, list) else [value]
                yield from (part for part in parts if isinstance(part, ast.Subscript))
            continue
        if name == "cases":
            yield from (case.guard for case in value if case.guard is not None)
            continue
        parts = value if isinstance(value, list) else [value]
        yield from (part for part in parts if isinstance(part, ast.AST))


def _is_text(node: ast.BinOp) -> bool:
    return any(
        isinstance(side, ast.JoinedStr) or (isinstance(side, ast.Constant) and isinstance(side.value, str | bytes))
        for side in (node.left, node.right)
    )
