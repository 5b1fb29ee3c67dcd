"""docs/testing-your-scheduler.md, as somebody reads it who has a scheduler."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pawl.cli import main
from pawl.testing.subject.exploring import explore_subject
from pawl.testing.subject.port import Offers
from pawl.testing.subject.properties import PROPERTIES
from pawl.testing.subject.registry import load_subject
from pawl.testing.subject.workload import Workload

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "testing-your-scheduler.md").read_text()
TOY, ADAPTER, SCRIPTED, CONTRACT, HYPOTHESIS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
ENVIRONMENT = os.environ | {"PYTHONPATH": str(DOCS.parent)}
MODULES = ("toy", "adapter", "scripted", "test_toy", "test_hypothesis")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A stranger's folder, with the files of the page."""
    for name, text in zip(MODULES, (TOY, ADAPTER, SCRIPTED, CONTRACT, HYPOTHESIS), strict=True):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield tmp_path
    for name in MODULES:
        sys.modules.pop(name, None)


def explore(subject: str, schedules: int, *words: str) -> int:
    fixed = ["--seconds", "600", "--seed", "1", "--schedules", str(schedules)]
    return main(["explore", "--subject", subject, *fixed, *words])


def test_nothing_is_wrong_with_the_toy(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explore("adapter.py:ToyScheduler", 200) == 0
    told = capsys.readouterr().out
    assert "violations: 0" in told
    for event in ("preemption", "cached prefix", "abort in flight"):
        assert f"{event} " in told


def test_the_first_counterexample_is_the_one_on_the_page(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "toy.py").write_text(
        TOY.replace("queue.remove(sequence)\n                self.release(sequence)", "queue.remove(sequence)")
    )
    assert explore("adapter.py:ToyScheduler", 100) == 1
    told = capsys.readouterr().out
    shown = next(block for block in re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL) if "conservation" in block)
    assert shown in told
    assert main(["replay", "schedule-conservation.json"]) == 0
    sys.modules.pop("toy")
    sys.modules.pop("adapter", None)
    (folder / "toy.py").write_text(TOY)
    capsys.readouterr()
    assert main(["replay", "schedule-conservation.json"]) == 1
    assert "no property failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("                del self.cache[tokens]\n", ""),
        ("            self.users[page] += 1\n", ""),
        ("self.waiting.insert(0, victim)", "self.waiting.append(victim)"),
        ("< len(sequence.tokens):\n            if not", "< len(sequence.tokens) - 1:\n            if not"),
    ],
)
def test_the_defects_that_the_page_proposes_are_found(folder: Path, old: str, new: str) -> None:
    assert TOY.count(old) == 1
    (folder / "toy.py").write_text(TOY.replace(old, new))
    kind = load_subject("adapter.py:ToyScheduler")
    workloads = (Workload.random(seed, kind.offers) for seed in range(40))
    assert any(explore_subject(kind, workload, schedules=10)[1] for workload in workloads)


def test_a_counterexample_is_also_a_script_that_knows_nothing_of_pawl(folder: Path) -> None:
    (folder / "toy.py").write_text(
        TOY.replace("if self.users[page] == 0 and page not in self.cache.values()", "if True")
    )
    assert explore("scripted.py:ScriptedToy", 100) == 1
    (script,) = folder.glob("schedule-*.py")
    assert "import pawl" not in script.read_text()
    assert "from pawl" not in script.read_text()
    assert "# FAULT: " in script.read_text()
    program = f"import sys; sys.path[:0] = [{str(folder)!r}]\n{script.read_text()}"
    ran = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert "free: " in ran.stdout


def run_tests(*files: str) -> str:
    """What pytest prints in a stranger's folder."""
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--pawl-schedules", "2", *files]
    return subprocess.run(words, capture_output=True, text=True, check=False, env=ENVIRONMENT).stdout


@pytest.mark.slow
def test_the_contract_of_the_page_passes_and_fails(folder: Path) -> None:
    assert "5 passed" in run_tests("test_toy.py")
    (folder / "toy.py").write_text(TOY.replace("self.users[page] -= 1", "self.users[page] -= 2"))
    told = run_tests("test_toy.py")
    assert "5 failed" in told
    assert "pawl replay" in told


@pytest.mark.slow
def test_the_hypothesis_test_of_the_page_passes_and_fails(folder: Path) -> None:
    assert "1 passed" in run_tests("test_hypothesis.py")
    (folder / "toy.py").write_text(TOY.replace("self.users[page] -= 1", "self.users[page] -= 2"))
    told = run_tests("test_hypothesis.py")
    assert "1 failed" in told
    assert "PropertyFailed: " in told
    assert "step 1 is scheduled" in told


def test_the_page_names_all_properties_and_all_that_can_be_offered() -> None:
    page = PAGE.replace("[properties.md](properties.md)", "docs/properties.md")
    for each in PROPERTIES:
        assert f"| `{each.name}` | {each.statement}" in page
    for name in Offers.__struct_fields__:
        assert f"`{name}`" in PAGE


def test_the_events_of_the_page_are_audited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = re.search(r"```json\n(.*?)```", (DOCS / "checking.md").read_text(), re.DOTALL)
    assert lines is not None
    (tmp_path / "run.jsonl").write_text(lines[1])
    assert main(["audit", str(tmp_path / "run.jsonl"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "PASS"
