"""A sandbox for chat templates, which come with the model and are a stranger's programs: Jinja's immutable sandbox, on
a budget.

A rendering pays for what it does: one operation for each look-up, call and turn of a loop, and one character for each
that an operation makes. What it is about to make is paid before it is made, so no operation can take more memory than
the budget has characters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import wraps
from typing import Any

import jinja2
import jinja2.compiler
import jinja2.exceptions
import jinja2.ext
import jinja2.sandbox

MAX_OPERATIONS = 2_000_000
MAX_CHARACTERS = 50_000_000
MAX_TEXT = 8_000_000
"""Characters of a rendering."""
MAX_BITS = 4000
"""Of an integer that is multiplied: a prompt has no use for longer ones."""

OF_PARTS = frozenset(
    {
        *("attr", "batch", "count", "d", "default", "first", "get", "items", "keys", "last", "length"),
        *("random", "reject", "rejectattr", "reverse", "select", "selectattr", "slice", "values"),
    }
)
"""Filters and methods that give parts of a container as they are. Every other one may make a text of all of it."""


class TemplateBudgetExceeded(jinja2.exceptions.SecurityError):
    """The template asked for more work or more text than it may have."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}` marks what an assistant wrote, for training; here only its content
    counts."""

    tags = {"generation"}  # noqa: RUF012 - the base class declares it like this

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Compiler(jinja2.compiler.CodeGenerator):
    """Compiles `~`, slices and comparisons to what pays for them."""

    def visit_Concat(self, node: jinja2.nodes.Concat, frame: jinja2.compiler.Frame) -> None:  # noqa: N802 - theirs
        self.write("environment.concatenate((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Getitem(self, node: jinja2.nodes.Getitem, frame: jinja2.compiler.Frame) -> None:  # noqa: N802
        if not isinstance(node.arg, jinja2.nodes.Slice):
            super().visit_Getitem(node, frame)
            return
        self.write("environment.cut(")
        self.visit(node.node, frame)
        self.write(")[")
        self.visit(node.arg, frame)
        self.write("]")

    def visit_Compare(self, node: jinja2.nodes.Compare, frame: jinja2.compiler.Frame) -> None:  # noqa: N802
        self.write("(environment.weighed(")
        self.visit(node.expr, frame)
        self.write(")")
        for operand in node.ops:
            self.write(f" {jinja2.compiler.operators[operand.op]} environment.weighed(")
            self.visit(operand.expr, frame)
            self.write(")")
        self.write(")")


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Counts what a template does. The counts belong to one rendering at a time: `refill` begins the next."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})
    code_generator_class = _Compiler

    def __init__(self) -> None:
        self.refill()
        extensions = [jinja2.ext.loopcontrols, _Generation]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions, finalize=self.weighed)
        self.filters["tojson"] = to_json
        self.filters = {name: self._paying(name, apply) for name, apply in self.filters.items()}
        # With the context: else Jinja would go over constants once, when it compiles, and their turns were free.
        self.filters["turns"] = jinja2.pass_context(lambda context, iterable: self._turns(iterable))
        self.globals["raise_exception"] = _raise_exception
        self.globals["range"] = self._range
        for name in ("lipsum", "cycler", "joiner"):
            del self.globals[name]

    def refill(self) -> None:
        self._operations_left = MAX_OPERATIONS
        self._characters_left = MAX_CHARACTERS

    def spend(self, operations: int = 1, characters: int = 0) -> None:
        self._operations_left -= operations
        self._characters_left -= characters
        if self._operations_left < 0 or self._characters_left < 0:
            raise TemplateBudgetExceeded("the chat template does too much work for these messages")

    # ---- what Jinja calls ----

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        """Has each loop go over what `_turns` lets it."""
        template = super()._parse(source, name, filename)
        for loop in template.find_all(jinja2.nodes.For):
            loop.iter = jinja2.nodes.Filter(loop.iter, "turns", [], [], None, None, lineno=loop.lineno)
        return template

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def paying(*arguments: Any, **keywords: Any) -> str:
            self.spend(characters=_price("format", value.__self__, (*arguments, *keywords.values())))
            return wrapped(*arguments, **keywords)

        return paying

    def getattr(self, obj: Any, attribute: str) -> Any:
        self.spend()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.spend()
        return super().getitem(obj, argument)

    def cut(self, value: Any) -> Any:
        """A part of `value` is taken, at the most all of it."""
        self.spend(characters=_size(value))
        return value

    def call(self, context: Any, function: Any, *arguments: Any, **keywords: Any) -> Any:
        owner = getattr(function, "__self__", None)
        price = 0
        if isinstance(owner, str | list | tuple | dict):
            price = _price(function.__name__, owner, (*arguments, *keywords.values()))
        self.spend(characters=price)
        return super().call(context, function, *arguments, **keywords)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """`+`, `*` and `%` pay for their results; powers of large numbers have no place in a prompt."""
        if operator == "**":
            raise TemplateBudgetExceeded("the chat template raises to a power")
        if operator == "+":
            self.spend(characters=_size(left) + _size(right))
        elif operator == "%" and isinstance(left, str):
            self.spend(characters=_price("format", left, right if isinstance(right, tuple) else (right,)))
        elif operator == "*":
            for sized, times in ((left, right), (right, left)):
                if isinstance(sized, str | list | tuple) and isinstance(times, int):
                    self.spend(operations=len(sized) * max(times, 0))
            if isinstance(left, int) and isinstance(right, int) and max(left, right).bit_length() > MAX_BITS:
                raise TemplateBudgetExceeded("the chat template multiplies very large numbers")
        return super().call_binop(context, operator, left, right)

    def concatenate(self, parts: Sequence[Any]) -> str:
        """What `~` does."""
        self.spend(characters=sum(map(_deep_size, parts)))
        return "".join(map(str, parts))

    def concat(self, pieces: Iterable[str]) -> str:
        """What a block that is set to a name comes to, or the call of a macro."""
        texts: list[str] = []
        for piece in pieces:
            self.spend(0, len(piece))
            texts.append(piece)
        return "".join(texts)

    def weighed(self, value: Any) -> Any:
        """What is printed or compared: of a container all that it holds is gone through."""
        if isinstance(value, list | tuple | dict):
            self.spend(characters=_deep_size(value))
        return value

    # ---- what templates call ----

    def _range(self, *bounds: int) -> range:
        steps = range(*bounds)
        self.spend(characters=24 * len(steps))
        return steps

    def _paying(self, name: str, apply: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that pays before it works. Jinja may pass its context or environment first."""
        num_passed = 1 if hasattr(apply, "jinja_pass_arg") else 0

        @wraps(apply)
        def paying(*arguments: Any, **keywords: Any) -> Any:
            value, *rest = arguments[num_passed:] or (None,)
            self.spend(characters=_price(name, value, (*rest, *keywords.values())))
            return apply(*arguments, **keywords)

        return paying

    def _turns(self, iterable: Any) -> Any:
        """What a loop goes over: each turn is paid."""
        if not isinstance(iterable, Iterator):
            self.spend(operations=len(iterable))
            return iterable
        return self._paid_turns(iterable)

    def _paid_turns(self, iterator: Iterator[Any]) -> Iterator[Any]:
        for item in iterator:
            self.spend()
            yield item


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple | dict | range) else 24


def _price(name: str, value: Any, arguments: Sequence[Any]) -> int:
    """Characters that the method or filter `name` of `value` makes, at the most."""
    numbers = sum(argument for argument in arguments if isinstance(argument, int) and argument > 0)
    given = sum(_deep_size(argument) for argument in arguments if isinstance(argument, str | list | tuple | dict))
    size = _size(value) if name in OF_PARTS else _deep_size(value)
    match name:
        case "join":
            # The method joins its argument by its owner, the filter its value by its argument: of a text it is either.
            by_argument = size + _size(value) * sum(len(each) for each in arguments if isinstance(each, str))
            if not (isinstance(value, str) and arguments):
                return by_argument
            return max(by_argument, _deep_size(arguments[0]) + size * _size(arguments[0]))
        case "replace" | "translate" | "wordwrap" | "indent" | "expandtabs" | "tojson":
            return size * (given + numbers + 8)
        case "format":
            widths = sum(int(digits[:12]) for digits in re.findall(r"\d+", value)) if isinstance(value, str) else 0
            return (_deep_size(arguments) + size) * 2 + widths + numbers * (1 + str(value).count("{") + size // 2)
    return size + given + numbers


def _deep_size(value: Any, known: dict[int, int] | None = None) -> int:
    """Characters and entries of a value and what it holds, as often as it does. `known`: sizes by identity: of lists
    that hold one list twice, and that one the next, each is gone through once."""
    if not isinstance(value, list | tuple | Mapping):
        return _size(value)
    known = {} if known is None else known
    size = known.get(id(value))
    if size is None:
        if isinstance(value, Mapping):
            size = sum(_size(key) + _deep_size(item, known) for key, item in value.items()) + 2
        else:
            size = sum(_deep_size(item, known) for item in value) + len(value)
        known[id(value)] = size
    return size


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """Plain JSON: unlike Jinja's own filter it does not escape for HTML, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def bounded(pieces: Iterable[str]) -> str:
    """The text of a rendering."""
    texts: list[str] = []
    num_characters = 0
    for piece in pieces:
        num_characters += len(piece)
        if num_characters > MAX_TEXT:
            raise TemplateBudgetExceeded("the rendered chat is too long")
        texts.append(piece)
    return "".join(texts)
