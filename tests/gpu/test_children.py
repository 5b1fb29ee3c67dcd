"""Processes of our own find our modules, and nobody else's in their place; and only their parent ends them."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pawl.gpu.children import TO_END, OwnFolder, python, remove_left, start

READS_FIRST = """
import sys
sys.stdin.read(1)
from pawl.gpu.children import ended_by_parent
ended_by_parent()
print("goes on", flush=True)
print(sys.stdin.read(), end="")
"""
"""It takes its time until it says that only its parent ends it."""


def test_a_file_in_the_folder_of_the_caller_is_not_taken_for_a_module(tmp_path: Path) -> None:
    for name in ("msgspec", "json", "pawl"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a file of the user')")
    with start(python("pawl.gpu.parallel.topology"), cwd=tmp_path) as child:
        assert child.wait() == 0


def test_signals_to_end_change_nothing_from_the_start_of_a_child_on_and_its_input_ends_it() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    child = start([sys.executable, "-c", READS_FIRST], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    assert child.stdin is not None
    assert child.stdout is not None
    for number in TO_END:
        child.send_signal(number)
    child.stdin.write(b"1")
    child.stdin.flush()
    assert child.stdout.readline() == b"goes on\n"
    for number in TO_END:
        child.send_signal(number)
    assert child.communicate(b"the end") == (b"the end", None)
    assert child.returncode == 0


MAKES_ONE = """
import os
from pawl.gpu.children import OwnFolder
folder = OwnFolder("test")
(folder.path / "socket").touch()
os.kill(os.getpid(), 9)
"""


def test_what_a_killed_process_has_left_goes_with_the_next_start_and_nobody_else_s_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    mine, other = OwnFolder("test"), tmp_path / "pawl-other-1"
    other.mkdir()
    assert start([sys.executable, "-c", MAKES_ONE]).wait() == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 3
    next_one = OwnFolder("next")
    remove_left()
    assert set(tmp_path.iterdir()) == {mine.path, next_one.path, other}
    for folder in (mine, next_one, next_one):
        folder.close()
    assert list(tmp_path.iterdir()) == [other]
