"""Threads that walk through the phases of a step: whoever does not run, its part is done by the others."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pawl.gpu.native import build

TASKS = (1, 7, 64, 5)
"""Of each phase of `native_pool.cpp`."""


@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pool") / "walks"
    sources = [str(build.SOURCES / "pool.cpp"), str(Path(__file__).with_name("native_pool.cpp"))]
    options = ["-std=c++17", "-O1", "-pthread", f"-I{build.SOURCES}", "-o", str(path)]
    subprocess.run([build.find_compiler(), *sources, *options], check=True)
    return path


@pytest.mark.parametrize(
    ("threads", "absent"), [(1, 0), (2, 0), (2, 1), (3, 1), (5, 0), (5, 4), (9, 3)], ids=lambda value: str(value)
)
@pytest.mark.parametrize("later", [0, 1], ids=["from-the-beginning", "from-the-third-phase"])
def test_each_task_is_run_once_whoever_is_away(walks: Path, threads: int, absent: int, later: int) -> None:
    command = [str(walks), str(threads), str(absent), str(later)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    # Of two walks.
    assert [line.split() for line in told.splitlines()] == [["2"] * tasks for tasks in TASKS]
