"""`pawl node`, and `pawl serve` as torchrun starts it: who is the head, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pawl.actors.runtime.processes.keys import make_keys
from pawl.cli import main
from pawl.commands.failures import UsageError
from pawl.commands.torchrun import Launched, launched_by

OF_RANK_1 = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}


def test_the_head_waits_at_the_port_behind_that_of_torchrun() -> None:
    assert launched_by(OF_RANK_1) == Launched(1, 2, "tcp://10.0.0.1:29501")
    assert launched_by(OF_RANK_1 | {"MASTER_ADDR": "fd00::1"}) == Launched(1, 2, "tcp://[fd00::1]:29501")


@pytest.mark.parametrize("environment", [{}, {"RANK": "1", "WORLD_SIZE": "2"}, OF_RANK_1 | {"WORLD_SIZE": "1"}])
def test_who_is_started_alone_is_no_head_and_no_node(environment: dict[str, str]) -> None:
    assert launched_by(environment) is None


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("LOCAL_WORLD_SIZE", "2", "--nproc-per-node 1, not 2"), ("MASTER_PORT", "many", "hold no numbers")],
)
def test_what_torchrun_may_not_say_is_refused(name: str, value: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        launched_by(OF_RANK_1 | {name: value})


def told(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The status of a command, and its last line."""
    status = main(words)
    return status, capsys.readouterr().err.strip().splitlines()[-1]


JOIN = ["node", "--join", "tcp://127.0.0.1:1", "--keys", "KEYS"]


@pytest.mark.parametrize(
    ("words", "status", "line"),
    [
        (["node", "--join", "127.0.0.1", "--keys", "KEYS"], 2, "pawl: --join: tcp://HOST:PORT, not '127.0.0.1'"),
        (
            ["node", "--join", "tcp://127.0.0.1:1", "--keys", "/no"],
            1,
            "pawl: /no/link.public: No such file or directory",
        ),
        ([*JOIN, "--node-timeout-s", "0.1"], 1, "pawl: nobody with these keys answers at tcp://127.0.0.1:1, for 0.1 s"),
        (
            ["node", "--join", "tcp://none.invalid:1", *JOIN[3:], "--node-timeout-s", "0.1"],
            1,
            "pawl: tcp://none.invalid:1:",
        ),
        (["serve", "ghost", "--nodes", "2", "--dp", "2"], 2, "pawl: nodes: say where the head waits"),
    ],
)
def test_a_node_that_cannot_be_says_why_in_one_line(
    words: list[str],
    status: int,
    line: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pawl.build.hosts.door.ASK_S", 0.1)
    make_keys(tmp_path / "keys")
    found = told([str(tmp_path / "keys") if word == "KEYS" else word for word in words], capsys)
    assert found[0] == status
    assert found[1].startswith(line)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--dp", "2"], "pawl: keys: links between hosts go with keys only"),
        (["--dp", "2", "--nodes", "3"], "pawl: --nodes 3: torchrun has started 2"),
        (["--no-head-serves", "--nodes", "2"], "pawl: --nodes 2: torchrun has started 2 with the head"),
    ],
)
def test_a_node_of_torchrun_is_refused_in_one_line(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in OF_RANK_1.items():
        monkeypatch.setenv(name, value)
    status, found = told(["serve", "ghost", *words], capsys)
    assert status == 2
    assert found.startswith(line)


def test_a_node_of_torchrun_takes_the_place_of_its_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So roles are where the ranks are, in whichever order these come."""
    joined: list[Any] = []
    monkeypatch.setattr("pawl.build.hosts.agent.serve", lambda *words: joined.append(words) or 0)
    for rank, head in ((1, []), (2, ["--no-head-serves"])):
        for name, value in (OF_RANK_1 | {"RANK": str(rank), "WORLD_SIZE": "3"}).items():
            monkeypatch.setenv(name, value)
        assert main(["serve", "ghost", "--disaggregate", "2p1d", "--keys", str(tmp_path), *head]) == 0
    places = [(address, place, role) for address, _, _, place, role in joined]
    assert places == [("tcp://10.0.0.1:29501", 0, None), ("tcp://10.0.0.1:29501", 1, None)]
