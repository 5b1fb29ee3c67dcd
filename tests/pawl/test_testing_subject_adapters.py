"""The adapters that come with Pawl. What needs a peer is skipped where that is not installed; docs/subjects.md says how
it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pawl.exploration.subjects import SUBJECTS
from pawl.testing.subject.port import Subject
from pawl.testing.subject.registry import load_subject
from pawl.testing.subject.search import search
from pawl.testing.subject.telling import script_of
from tests.peers.hunting import hunted, tables, with_repairs
from tests.peers.public import PUBLIC, Public
from tests.peers.today import TODAY, Today

PACKAGES = {"vllm": "vllm", "vllm-pipeline": "vllm", "nano-vllm": "nanovllm", "mini-sglang": "minisgl"}
PEERS = ("vllm", "nano-vllm", "mini-sglang")


def peer_of(name: str) -> type[Subject]:
    try:
        return load_subject(name)
    except ValueError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_peer_that_is_not_installed_is_named_with_what_to_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # None in sys.modules: it cannot be imported.
    monkeypatch.setitem(sys.modules, PACKAGES[name], None)
    for module in [module for module in sys.modules if module.startswith("pawl.testing.subject.adapters.")]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(ValueError, match=r"cannot be imported by this Python .* see docs/subjects.md"):
        load_subject(name)


@pytest.mark.parametrize("name", SUBJECTS)
def test_nothing_is_found_in_a_peer_but_what_the_page_says(name: str) -> None:
    kind = peer_of(name)
    with with_repairs(name):
        done = search(kind, name, seed=0, schedules=400)
    assert not done.violations, "\n".join(map(str, done.found.values()))
    assert {"chunk", "several run", "cached prefix"} <= done.seen.reached.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", PEERS)
def test_defects_that_are_planted_in_a_peer_are_found_with_few_requests(name: str) -> None:
    peer_of(name)
    found = [hunted(name, mutant) for mutant in tables(name)[1]]
    missed = [one.mutant.name for one in found if not one.property]
    assert len(missed) <= len(found) // 10, missed
    assert max(one.requests for one in found) <= 3


@pytest.mark.parametrize("name", PEERS)
def test_a_counterexample_is_a_script_that_shows_the_fault_without_pawl(name: str, tmp_path: Path) -> None:
    kind = peer_of(name)
    leak = tables(name)[1][0]
    with with_repairs(name, leak):
        found = next(iter(search(kind, name, seed=0, schedules=20).found.values()))
        script = script_of(kind, found.run().subject.calls, str(found.error))
    assert script is not None
    assert "import pawl" not in script
    assert "from pawl" not in script
    path = tmp_path / "counterexample.py"
    path.write_text(script)
    # Without the planting it is a run in which all is well, but it must be one.
    came = subprocess.run([sys.executable, path], cwd=tmp_path, env=_without_pawl(), capture_output=True, text=True)
    assert came.returncode == 0 or "Error" in came.stderr.splitlines()[-1], came.stderr
    assert "told:" in came.stdout


def _without_pawl() -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path and path != root)}


@pytest.mark.parametrize("case", PUBLIC, ids=lambda case: case.name)
def test_a_public_defect_is_in_the_releases_that_had_it_and_gone_from_those_that_repaired_it(case: Public) -> None:
    peer_of("vllm")
    verdict = case.verdict()
    if verdict is None:
        pytest.skip("this release is neither one that had it nor one that repaired it")
    assert verdict, case


@pytest.mark.parametrize("case", TODAY, ids=lambda case: case.name)
def test_what_the_page_says_of_mini_sglang_shows_in_it(case: Today) -> None:
    peer_of("mini-sglang")
    found = case.found()
    assert found is not None
    assert len(found.workload.arrivals) <= 2
