"""What each thing that a chat template can do is charged: nothing that makes text is free."""

from __future__ import annotations

from typing import Any

import pytest

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
        ("{{ abc[1:] }}{{ x[:2] }}", 2, 3 + 3),
        ("{{ y[n:] }}", 1, 1),
        ("{{ abc ~ x ~ n }}", 1, 3 + 3 + 24),
        ("{{ abc + 'c' }}", 1, 3 + 1),
        ("{{ x + y }}", 1, 3 + 1),
        ("{{ n + 2 }}", 1, 24 + 24),
        ("{{ abc * n }}", 9, 0),
        ("{{ n * abc }}", 9, 0),
        ("{{ x * 2 }}", 6, 0),
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
        ("{% for i in x | map('upper') %}{% endfor %}", 1 + 3 * 2, (4 + 3) + 1 + 2 + 1),
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
        ("{{ spaced.split(' ') }}", 2, 5 + 1),
        ("{{ ', '.join(x) }}", 2, (4 + 3) + 2 * 3),
        ("{{ x | join(', ') }}", 1, (4 + 3) + 2 * 3),
        ("{{ x | join }}", 1, 4 + 3),
        ("{{ x | list }}{{ x | string }}{{ x | sort }}", 3, 3 * (4 + 3)),
        ("{{ y | sum }}", 1, 24 + 1),
        ("{{ d | tojson }}", 1, 8 * 8),
        ("{{ d | tojson(indent=2) }}", 1, 8 * (2 + 8)),
        ("{{ t | tojson }}", 1, 6 * 8),
        ("{{ d | length }}", 1, 2),
        ("{{ d.items() | list }}", 3, 2 + 24),
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
