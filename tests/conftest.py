"""What all tests share: profiles of random examples, the order of the rooms, and tests that need a device.

The profile is chosen with PAWL_HYPOTHESIS:

    ci        (default) the same examples in every run: a red build means the change is wrong, not the dice
    nightly   many more, new ones each time; what fails is kept in .hypothesis/examples
    replay    only what is kept there: run it after a nightly failure, with the same working tree
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.util
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, Phase, settings
from hypothesis.database import DirectoryBasedExampleDatabase

ROOT = Path(__file__).parent.parent
# Triton decides once, when it is first imported (by transformers, it may be), whether its kernels are interpreted.
if not any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg")):
    os.environ.setdefault("TRITON_INTERPRET", "1")
# Tests start a hundred interpreters. Where the environment forbids compiled files, as in many containers, each of them
# would compile PyTorch again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
EXAMPLES = DirectoryBasedExampleDatabase(ROOT / ".hypothesis" / "examples")
# A shared machine makes any single example slow at times: time limits belong to the whole run, not to an example.
UNTIMED = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile(
    "ci", derandomize=True, database=None, deadline=None, max_examples=100, suppress_health_check=UNTIMED
)
settings.register_profile(
    "nightly", database=EXAMPLES, deadline=None, max_examples=2000, print_blob=True, suppress_health_check=UNTIMED
)
settings.register_profile(
    "replay",
    database=EXAMPLES,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.shrink),
    print_blob=True,
    suppress_health_check=UNTIMED,
)
settings.load_profile(os.environ.get("PAWL_HYPOTHESIS", "ci"))

UNCACHED: dict[str, Any] = {"cache_logger_on_first_use": False}
structlog.configure(**UNCACHED)  # so that no engine does, and fixtures of modules cache no logger

ROOMS = (
    "test_tidy.py",
    "lifecycle",
    "memory",
    "loops",
    "actors",
    "mutants",
    "mutation",
    "test_wheel.py",
    "pawl",
    "gpu",
)
"""Pure and fast first: a broken rule of memory shows in a second, not behind a model that is loading. The mutants and
the wheel are long files, which must not be what one process does while the other has nothing left."""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported stays: garbage is not looked for among it, now or later. It is most of all objects there are."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the rooms, and skip what needs a device that is not here."""
    tests = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        first = item.path.relative_to(tests).parts[0]
        return ROOMS.index(first) if first in ROOMS else len(ROOMS)

    items.sort(key=place)  # stable: the order within a room stays
    for_device = [item for item in items if item.get_closest_marker("gpu")]
    if for_device and not _cuda():
        for item in for_device:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


COMPILERS = (os.environ["CXX"],) if os.environ.get("CXX") else ("c++", "g++", "clang++")
COMPILER = next(filter(None, map(shutil.which, COMPILERS)), None)
"""What compiles the CPU kernels; None: tests that want these are skipped."""


@contextlib.contextmanager
def _skipped_for_want_of_a_compiler() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if COMPILER is not None or "no C++ compiler found" not in str(error):
            raise
        pytest.skip(f"needs a C++ compiler: {error}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Iterator[None]:
    with _skipped_for_want_of_a_compiler():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    with _skipped_for_want_of_a_compiler():
        return (yield)


@pytest.fixture
def compiler() -> str:
    """For tests whose kernels are compiled in another process, where nobody sees why it fails."""
    if COMPILER is None:
        pytest.skip("needs a C++ compiler")
    return COMPILER


def _cuda() -> bool:
    """Whether PyTorch sees a CUDA device. Imported only here: most rooms must run without torch."""
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return bool(torch.cuda.is_available())


def give_memory_back() -> None:
    """Free engines that are gone but for their cycles, and return their memory to the system: a model is hundreds of
    megabytes, and the allocator keeps what is freed for the next one."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="module", autouse=True)
def _bounded_memory() -> Iterator[None]:
    """What the tests of one file have loaded is gone before the next file."""
    yield
    give_memory_back()
    gc.freeze()  # what is left stays, as what is imported does


@pytest.fixture(autouse=True)
def logs_apart(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The logging that a command or an engine sets up for its process ends with the test.

    A logger that was cached would keep writing to the test's captured stream, so within the test none is.
    """
    configure, root = structlog.configure, logging.getLogger()
    handlers, level = list(root.handlers), root.level

    def uncached(**settings: Any) -> None:
        configure(**settings | UNCACHED)

    monkeypatch.setattr(structlog, "configure", uncached)
    yield
    structlog.reset_defaults()
    configure(**UNCACHED)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def sums_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that compare bits of interpreted kernels: their sums have one order, on every processor."""
    from tests.gpu.kernel_tools import sum_in_order

    sum_in_order(monkeypatch)
