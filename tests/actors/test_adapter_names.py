"""What the gateway remembers of adapters."""

from __future__ import annotations

from pawl.actors.adapter_names import MOST_UNLOADED, renamed
from pawl.loops.adapter import Named


def named(name: str, number: int = 1) -> Named:
    return Named(name, number, f"ghost:{name}", False)


def test_a_name_that_none_bears_any_more_is_remembered_until_one_bears_it_again() -> None:
    adapters, unloaded = renamed({}, {}, [named("a"), named("b")])
    assert (list(adapters), unloaded) == (["a", "b"], {})
    adapters, unloaded = renamed(adapters, unloaded, [named("b")])
    assert (list(adapters), unloaded) == (["b"], {"a": named("a")})
    adapters, unloaded = renamed(adapters, unloaded, [named("a", 3)])
    assert (adapters, unloaded) == ({"a": named("a", 3)}, {"b": named("b")})


def test_the_one_that_was_unloaded_first_is_forgotten_first() -> None:
    names = [named(str(number)) for number in range(MOST_UNLOADED + 1)]
    adapters, unloaded = renamed({}, {}, names)
    for _ in names:
        adapters, unloaded = renamed(adapters, unloaded, list(adapters.values())[1:])
    assert list(unloaded) == [str(number) for number in range(1, MOST_UNLOADED + 1)]
