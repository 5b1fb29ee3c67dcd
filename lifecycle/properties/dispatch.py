"""Methods that take records, each those of its own kinds: found in a table instead of asked one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, TypeAlias, TypeVar

from pawl.lifecycle.records import RECORD_TYPES, Record, Transition
from pawl.lifecycle.states import Event

Kind: TypeAlias = type[Any] | Event
"""The class of a record; of a Transition its event."""
Method = TypeVar("Method", bound=Callable[..., Any])

KINDS: frozenset[Kind] = frozenset({*RECORD_TYPES, *Event}) - {Transition}
"""Every kind that a record may be of."""
_NO_METHODS: Mapping[Kind, Callable[..., Any]] = MappingProxyType({})


def kind_of(record: Record) -> Kind:
    """By what the method for a record is found."""
    return record.event if type(record) is Transition else type(record)


def on(*kinds: Kind) -> Callable[[Method], Method]:
    """The method takes records of these kinds. `Transition` stands for all events."""
    expanded = {each for kind in kinds for each in (Event if kind is Transition else (kind,))}

    def marked(method: Method) -> Method:
        method.__dict__["takes"] = expanded
        return method

    return marked


class Dispatch:
    """Has methods that are marked by `on`, at the most one for a kind. What overrides such a method in a subclass takes
    the same kinds."""

    methods: ClassVar[Mapping[Kind, Callable[..., Any]]] = _NO_METHODS
    """By the kind of record that each takes."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        names: dict[Kind, str] = {}
        for base in reversed(cls.__mro__):
            own = [(kind, name) for name, method in vars(base).items() for kind in getattr(method, "takes", ())]
            if len(dict(own)) < len(own):
                raise TypeError(f"{base.__qualname__} has two methods for one kind of record")
            names.update(own)
        cls.methods = {kind: getattr(cls, name) for kind, name in names.items()}
