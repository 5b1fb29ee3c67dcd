"""Parts of the engine that are a user's own: an order of admission, a prefix cache, a scheduler.

Each has a name, `FILE.py:CLASS` or `MODULE:CLASS`. A workload carries the names, so that what was found with these
parts is run again with them.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pawl.actors.scheduler import Scheduler
from pawl.loops.policy import POLICIES, Policy
from pawl.memory.prefix.base import PrefixCache
from pawl.memory.prefix.select import CACHES, KINDS, Kind, Wish
from pawl.testing.checked_cache import CheckedCache
from pawl.testing.parts import CheckedPolicy

if TYPE_CHECKING:
    from pawl.testing.shape import Shape

FILES: dict[str, Path] = {}
"""Name of a part -> the file where its class stands."""
SCHEDULERS: dict[str, type[Scheduler]] = {"": Scheduler}
"""By name; the engine's own has none."""


def know_policy(policy: type[Policy], name: str = "") -> str:
    """Make a class of policies known, which takes no arguments. Gives its name, for `Shape.policy`."""
    name = named(policy, name)
    POLICIES[name] = lambda seed: CheckedPolicy(policy(), name)
    return name


def know_cache(cache: type[PrefixCache], name: str = "") -> str:
    """Make a class of prefix caches known, which takes the page size. Gives its name, for `Shape.cache`."""
    name = named(cache, name)
    # A protocol says nothing about how it is made.
    own: Any = cache

    def make(wish: Wish) -> Any:
        return CheckedCache(own(wish.page_size), name)

    KINDS[name] = Kind(f"`--cache {name}`", cache.__name__, make, "", ordered=False)
    return name


def know_scheduler(scheduler: type[Scheduler], name: str = "") -> str:
    """Make a subclass of Scheduler known, which takes what that takes. Gives its name, for `Shape.scheduler`."""
    name = named(scheduler, name)
    if not (inspect.isclass(scheduler) and issubclass(scheduler, Scheduler)):
        raise TypeError(f"{name} is no subclass of actors.scheduler.Scheduler")
    SCHEDULERS[name] = scheduler
    return name


class KeptPart(msgspec.Struct, frozen=True):
    """A part as it was when a schedule was saved."""

    file: str
    """Where it was; what is there now is taken, so that a repaired part can be tried."""
    source: str
    """Taken where that file is not there any more."""


def kept_parts(shape: Shape) -> dict[str, KeptPart]:
    """The parts of the user's own that the shape names, with what is needed to load them anywhere."""
    found = {name: kept_part(name) for name in (shape.policy, shape.cache, shape.scheduler)}
    return {name: part for name, part in found.items() if part is not None}


def kept_part(name: str) -> KeptPart | None:
    """A part of the user's own, with what is needed to load it anywhere; None for one that has no file of its own."""
    file = FILES.get(name)
    return KeptPart(str(file), file.read_text()) if file is not None and file.is_file() else None


def know_all(shape: Shape, kept: Mapping[str, KeptPart] | None = None) -> None:
    """Load every class that the shape names, from where it was `kept` if so. Raises ValueError, saying which cannot be
    had, or TypeError."""
    kept = kept or {}
    if shape.policy not in POLICIES:
        policy = load(shape.policy, POLICIES, kept.get(shape.policy))
        _can_be_made(shape.policy, policy)
        if not callable(getattr(policy, "order", None)):
            raise ValueError(f"{shape.policy} is no policy: it has no method `order(rows, waiting)`")
        know_policy(policy, shape.policy)
    if shape.cache not in KINDS:
        cache = load(shape.cache, CACHES, kept.get(shape.cache))
        _can_be_made(shape.cache, cache, 1)
        know_cache(cache, shape.cache)
    if shape.scheduler not in SCHEDULERS:
        know_scheduler(load(shape.scheduler, (), kept.get(shape.scheduler)), shape.scheduler)


def _can_be_made(name: str, kind: Any, *arguments: int) -> None:
    """Raises ValueError, in one line, for what cannot be made as a policy or a cache is."""
    try:
        kind(*arguments)
    except (Exception, SystemExit) as error:  # it is the user's own
        given = "the page size" if arguments else "nothing"
        words = " ".join(f"{error!s:.300}".split())
        raise ValueError(f"{name} cannot be made, given {given}: {type(error).__name__}: {words}") from error


def names_of(fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a shape in which parts of the user's own may stand as classes, with their names in place of them."""
    know: dict[str, Callable[[Any], str]] = {"policy": know_policy, "cache": know_cache, "scheduler": know_scheduler}
    return {name: know[name](value) if isinstance(value, type) else value for name, value in fixed.items()}


def named(kind: type, name: str = "") -> str:
    """The name of a class, whose file is remembered."""
    name = name or place_of(kind)
    if name not in FILES:
        with contextlib.suppress(TypeError, OSError):  # what was typed in has no file
            FILES[name] = Path(inspect.getfile(kind)).absolute()
    return name


def place_of(kind: type) -> str:
    """Where a class can be loaded from. What stands inside of a function cannot."""
    return f"{inspect.getfile(kind)}:{kind.__qualname__}"


def load(name: str, built_in: Any, kept: KeptPart | None = None) -> Any:
    """The class called `name`. Raises ValueError, in one line, where there is none; `built_in` are the names that would
    have done."""
    if kept is not None:
        return _kept_class(name, kept)
    place, _, attribute = name.rpartition(":")
    if not place:
        raise ValueError(f"{name!r} is none of {', '.join([*built_in, 'FILE.py:CLASS', 'MODULE:CLASS'])}")
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            if spec is None or spec.loader is None:
                raise ImportError(f"{place} is no Python file")
            folder = str(Path(place).absolute().parent)
            if folder not in sys.path:  # what stands beside it can be imported, as by a program
                sys.path.insert(0, folder)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            FILES[name] = Path(place).absolute()
        else:
            module = importlib.import_module(place)
        return getattr(module, attribute)
    except (ImportError, AttributeError, OSError, SyntaxError) as error:
        raise ValueError(f"{name}: {error}") from error
    except (Exception, SystemExit) as error:  # whatever its module does when it is imported
        words = " ".join(f"{error!s:.300}".split())
        raise ValueError(f"{name}: {type(error).__name__}: {words}") from error


def _kept_class(name: str, kept: KeptPart) -> Any:
    attribute = name.rpartition(":")[2]
    FILES[name] = Path(kept.file)
    if Path(kept.file).is_file():
        return load(f"{kept.file}:{attribute}", ())
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / Path(kept.file).name
        copy.write_text(kept.source)
        return load(f"{copy}:{attribute}", ())
