"""What each thing that a chat template can do is charged: nothing that makes text is free."""

from __future__ import annotations

from typing import Any

import pytest
from jinja2 import TemplateError

from pawl.actors.text.sandbox import MAX_BITS, MAX_CHARACTERS, MAX_OPERATIONS, Sandbox, TemplateBudgetExceeded

GIVEN: dict[str, Any] = {
    "a": {"b": 1},
    "abc": "abc",
    "n": 3,
    "x": ["p", "qq", "r"],
    "y": [1],
    "d": {"k": "vv", "l": ["m"]},
    "t": ("u", ["vw"]),
    "spaced": "a b\tc",
    "nested": [["z", "u"], {"k": "vvv"}],
}


def spent(source: str, **given: Any) -> tuple[int, int]:
    """Operations and characters of one rendering."""
    sandbox = Sandbox()
    template = sandbox.from_string(source)
    sandbox.refill()
    "".join(template.generate(**GIVEN | given))
    return MAX_OPERATIONS - sandbox._operations_left, MAX_CHARACTERS - sandbox._characters_left


@pytest.mark.parametrize(
    ("source", "operations", "characters"),
    [
        ("text alone {# is free #}", 0, 0),
        ("{{ a.b }}", 1, 0),
        ("{{ a['b'] }}", 1, 0),
        ("{{ abc[1:] }}{{ x[:2] }}", 3, 3 + 3 + (3 + 2)),
        ("{{ y[n:] }}", 2, 1),
        ("{{ abc ~ x ~ n }}", 1, 3 + (4 + 3) + 24),
        ("{{ abc + 'c' }}", 1, 3 + 1),
        ("{{ x + y }}", 2, 3 + 1 + (4 + 24 + 4)),
        ("{{ n + 2 }}", 1, 24 + 24),
        ("{{ abc * n }}", 9, 0),
        ("{{ n * abc }}", 9, 0),
        ("{{ x * 2 }}", 6 + 1, 2 * (4 + 3)),
        ("{{ abc * -n }}", 0, 0),
        ("{{ n * 2 }}", 0, 0),
        ("{{ n % 2 }}", 0, 0),
        ("{{ '%s-%s' % (abc, 'c') }}", 1, 2 * (3 + 1 + 2 + 5)),
        ("{{ '%s' % abc }}", 1, 2 * (3 + 1 + 2)),
        ("{{ '%9d' % n }}", 1, 2 * (24 + 1 + 3) + 9 + 3 * (1 + 3 // 2)),
        ("{{ '%d%%' % n }}", 1, 2 * (24 + 1 + 4) + 3 * (1 + 4 // 2)),
        ("{{ 'a{}b{:5}'.format(abc, n) }}", 3, 2 * (3 + 24 + 2 + 8) + 5 + 3 * (1 + 2 + 8 // 2)),
        ("{{ range(5) is defined }}", 2, 5 * 24),
        ("{{ range(2, 5) is defined }}", 2, 3 * 24),
        ("{% for i in x %}{% endfor %}", 3, 0),
        ("{% for i in range(3) %}{% endfor %}", 2 + 3, 3 * 24),
        ("{% for i in x | map('upper') %}{% endfor %}", 1 + 3 * 2, (4 + 3) + 5 + 1 + 2 + 1),
        ("{{ abc.upper() }}", 2, 3),
        ("{{ abc | upper }}", 1, 3),
        ("{{ abc.center(10) }}", 2, 3 + 10),
        ("{{ abc.ljust(10, 'x') }}", 2, 3 + 10 + 1),
        ("{{ abc.rjust(-9) }}", 2, 3),
        ("{{ abc.replace('b', 'xx') }}", 2, 3 * (3 + 8)),
        ("{{ abc | replace('b', 'xx') }}", 1, 3 * (3 + 8)),
        ("{{ spaced.expandtabs(4) }}", 2, 5 * (4 + 8)),
        ("{{ spaced | indent(2) }}", 1, 5 * (2 + 8)),
        ("{{ spaced | indent(width=2) }}", 1, 5 * (2 + 8)),
        ("{{ spaced | wordwrap(9) }}", 1, 5 * (9 + 8)),
        ("{{ spaced.split(' ') }}", 2 + 1, 5 + 1 + (4 + 2)),
        ("{{ ', '.join(x) }}", 2, (4 + 3) + 2 * 3),
        ("{{ x | join(', ') }}", 1, (4 + 3) + 2 * 3),
        ("{{ x | join }}", 1, 4 + 3),
        ("{{ abc | join }}", 1, 3),
        ("{{ abc | join('') }}", 1, 3),
        ("{{ abc | join(', ') }}", 1, 3 + 3 * 2),
        ("{{ abc | join(nested | first) }}", 2, 2 + (2 + 2) + 3 * 2),
        ("{{ nested | upper }}", 1, (2 + 2) + (2 + 1 + 3) + 2),
        ("{{ nested | length }}", 1, 2),
        ("{{ nested }}{{ abc }}{{ n }}", 1, (2 + 2) + (2 + 1 + 3) + 2),
        ("{{ nested ~ abc }}", 1, (2 + 2) + (2 + 1 + 3) + 2 + 3),
        ("{{ x == x }}{{ n in y }}{{ abc == abc }}", 3, 2 * (4 + 3) + 24 + 1),
        ("{% set s %}{{ abc }}--{{ n }}{% endset %}", 0, 3 + 2 + 1),
        ("{% macro m() %}{{ abc }}{{ x }}{% endmacro %}{{ m() }}", 2, (4 + 3) + 3 + len("['p', 'qq', 'r']")),
        ("{{ x | list }}{{ x | string }}{{ x | sort }}", 3 + 2, (3 + 2) * (4 + 3)),
        ("{{ y | sum }}", 1, 24 + 1),
        ("{{ d | tojson }}", 1, 8 * 8),
        ("{{ d | tojson(indent=2) }}", 1, 8 * (2 + 8)),
        ("{{ t | tojson }}", 1, 6 * 8),
        ("{{ d | length }}", 1, 2),
        ("{{ d.items() | list }}", 3 + 1, 2 + 24 + 2 * (2 + 1) + 2 + (1 + 1) + 2),
        ("{{ namespace(b=1).b }}", 2, 0),
    ],
)
def test_every_operation_has_its_price(source: str, operations: int, characters: int) -> None:
    assert spent(source) == (operations, characters)


def test_parts_of_a_long_text_cannot_be_taken_again_and_again() -> None:
    with pytest.raises(TemplateBudgetExceeded, match="too much work"):
        spent("{% for i in range(99) %}{% set part = long[1:] %}{% endfor %}", long="x" * (MAX_CHARACTERS // 90))


def test_the_last_operation_and_the_last_character_of_a_budget_may_be_spent() -> None:
    for operations, characters in ((MAX_OPERATIONS, 0), (1, MAX_CHARACTERS)):
        sandbox = Sandbox()
        sandbox.spend(operations, characters)
        assert (sandbox._operations_left, sandbox._characters_left).count(0) == 1
        with pytest.raises(TemplateBudgetExceeded):
            sandbox.spend(1, 1)
    sandbox = Sandbox()
    sandbox.spend()
    assert (sandbox._operations_left, sandbox._characters_left) == (MAX_OPERATIONS - 1, MAX_CHARACTERS)


@pytest.mark.parametrize("source", ["{{ big * 2 }}", "{{ 2 * big }}"])
def test_numbers_of_so_many_bits_may_be_multiplied_and_no_longer_ones(source: str) -> None:
    assert spent(source, big=(1 << MAX_BITS) - 1) == (0, 0)
    with pytest.raises(TemplateBudgetExceeded, match="very large"):
        spent(source, big=1 << MAX_BITS)


HELD = "text " * 1000
CONTAINERS: dict[str, Any] = {
    "a text": HELD,
    "a list": [HELD, "a"],
    "lists of one": [[HELD], [HELD]],
    "a table": {"k": HELD, "l": [HELD]},
    "tables": [{"a": HELD, "b": 1}, {"a": "y", "b": 2}],
}
ASKED = {
    "batch": ("(1)",),
    "center": ("(10)",),
    "default": ("('d')", "('d', true)"),
    "groupby": ("('a')",),
    "join": ("", "('')", "(', ')"),
    "map": ("('upper')", "('string')", "(attribute='a')"),
    "replace": ("('t', 'tt')", "('text', '')"),
    "slice": ("(2)",),
    "sum": ("", "(start='')"),
    "truncate": ("(99999)",),
    "wordwrap": ("(3)",),
}
"""What a filter is given, where it needs something."""
PARTS = ("default", "d", "first", "last", "max", "min", "random", "turns")
"""Filters that give what is there already."""


@pytest.mark.parametrize("name", sorted(Sandbox().filters))
def test_no_filter_makes_a_text_for_a_sixth_of_its_price(name: str) -> None:
    """Escapes make five characters of one."""
    for value in CONTAINERS.values():
        for given in ASKED.get(name, ("",)):
            made: list[Any] = []
            try:
                _, characters = spent(f"{{{{ keep(value | {name}{given}) }}}}", value=value, keep=made.append)
            except (TypeError, ValueError, LookupError, AttributeError, TemplateError):
                continue  # it is for other values
            texts = [text for text in made if isinstance(text, str) and name not in PARTS]
            assert all(len(text) <= 6 * characters for text in texts), (name, given)


DOUBLED = "{% set s = ['text'] %}" + "{% set s = [s, s] %}" * 40
BOTH = DOUBLED + DOUBLED.replace("set s", "set r").replace("[s, s]", "[r, r]")


@pytest.mark.parametrize(
    "source",
    [
        "{% set s = 'text' %}" + "{% set s %}{{ s }}{{ s }}{% endset %}" * 40,
        "{% macro m(s) %}{{ s }}{{ s }}{% endmacro %}{% set s = 'text' %}" + "{% set s = m(s) %}" * 40,
        "{% set s = 'text' %}" + "{% set s %}{% filter upper %}{{ s }}{{ s }}{% endfilter %}{% endset %}" * 40,
        *(
            DOUBLED + use
            for use in ("{{ s }}", "{{ s | string }}", "{{ s | tojson }}", "{{ '' ~ s }}", "{{ '%s' % s }}")
        ),
        BOTH + "{{ s == r }}",
        BOTH + "{{ s in [r] }}",
        BOTH + "{{ [r].index(s) }}",
        "{% for i in range(2000) %}{% set s = [long] | upper %}{% endfor %}",
        "{% for i in range(2000) %}{% set s = long | join('') %}{% endfor %}",
        "{% for i in range(2000) %}{% set s %}{{ [long] }}{% endset %}{% endfor %}",
    ],
)
def test_what_doubles_or_is_made_again_and_again_ends(source: str) -> None:
    with pytest.raises(TemplateBudgetExceeded, match="too much work"):
        spent(source, long="x" * 100_000)
