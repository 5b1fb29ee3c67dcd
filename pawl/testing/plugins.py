"""Parts of the engine that are a user's own: an order of admission, a prefix cache, a scheduler.

Each has a name, `FILE.py:CLASS` or `MODULE:CLASS`. A workload carries the names, so that what was found with these
parts is run again with them.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from pathlib import Path
from typing import Any

from pawl.actors.scheduler import Scheduler
from pawl.loops.policy import POLICIES, Policy
from pawl.memory.prefix.base import PrefixCache
from pawl.memory.prefix.select import CACHES, KINDS, Kind
from pawl.testing.workload import Shape

SCHEDULERS: dict[str, type[Scheduler]] = {"": Scheduler}
"""By name; the engine's own has none."""


def know_policy(policy: type[Policy], name: str = "") -> str:
    """Make a class of policies known, which takes no arguments. Gives its name, for `Shape.policy`."""
    name = name or place_of(policy)
    POLICIES[name] = lambda seed: policy()
    return name


def know_cache(cache: type[PrefixCache], name: str = "") -> str:
    """Make a class of prefix caches known, which takes the page size. Gives its name, for `Shape.cache`."""
    name = name or place_of(cache)
    # A protocol says nothing about how it is made.
    made: Any = cache
    KINDS[name] = Kind(f"`--cache {name}`", cache.__name__, lambda wish: made(wish.page_size), "", ordered=False)
    return name


def know_scheduler(scheduler: type[Scheduler], name: str = "") -> str:
    """Make a subclass of Scheduler known, which takes what that takes. Gives its name, for `Shape.scheduler`."""
    name = name or place_of(scheduler)
    if not (inspect.isclass(scheduler) and issubclass(scheduler, Scheduler)):
        raise TypeError(f"{name} is no subclass of actors.scheduler.Scheduler")
    SCHEDULERS[name] = scheduler
    return name


def know_all(shape: Shape) -> None:
    """Load every class that the shape names. Raises ValueError, saying which cannot be had, or TypeError."""
    if shape.policy not in POLICIES:
        know_policy(load(shape.policy, POLICIES), shape.policy)
    if shape.cache not in KINDS:
        know_cache(load(shape.cache, CACHES), shape.cache)
    if shape.scheduler not in SCHEDULERS:
        know_scheduler(load(shape.scheduler, ()), shape.scheduler)


def place_of(kind: type) -> str:
    """Where a class can be loaded from. What stands inside of a function cannot."""
    return f"{inspect.getfile(kind)}:{kind.__qualname__}"


def load(name: str, built_in: Any) -> Any:
    """The class called `name`. Raises ValueError where there is none; `built_in` are the names that would have done."""
    place, _, attribute = name.rpartition(":")
    if not place:
        raise ValueError(f"{name!r} is none of {', '.join([*built_in, 'FILE.py:CLASS', 'MODULE:CLASS'])}")
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            if spec is None or spec.loader is None:
                raise ImportError(f"{place} is no Python file")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
        return getattr(module, attribute)
    except (ImportError, AttributeError, OSError, SyntaxError) as error:
        raise ValueError(f"{name}: {error}") from error
