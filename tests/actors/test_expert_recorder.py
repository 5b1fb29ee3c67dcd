"""A record of experts: what is counted from a start on, until it is taken or stopped, and what cannot be asked for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pawl.actors.expert_recorder import ExpertRecorder, NoExperts, WrongState, encoded


class Counts:
    """Experts of a model whose second layer has some."""

    chosen, layers = 2, (False, True)

    def __init__(self) -> None:
        self.did: list[str] = []

    def start(self) -> None:
        self.did.append("start")

    def stop(self) -> None:
        self.did.append("stop")

    def take(self) -> Any:
        self.did.append("take")
        return np.array([[0, 0], [4, 2]])


def computed(recorder: ExpertRecorder, *lengths: int) -> None:
    recorder.computed(SimpleNamespace(lengths=np.array(lengths)))  # type: ignore[arg-type]


def test_a_record_has_what_was_computed_since_its_start_or_since_the_one_before() -> None:
    counts = Counts()
    recorder = ExpertRecorder(counts)  # type: ignore[arg-type]

    def takes(num_tokens: int, failed_steps: int) -> None:
        record = recorder.take()
        assert record == {
            "num_tokens": num_tokens,
            "num_experts_per_token": 2,
            "layers_with_experts": [1],
            "failed_steps": failed_steps,
            "logical_count": [[0, 0], [4, 2]],
        }
        assert encoded(record).startswith(b'{"num_tokens":')

    computed(recorder, 9)
    recorder.failed()
    recorder.start()
    computed(recorder, 2, 1)
    recorder.failed()
    takes(3, 1)
    computed(recorder, 4)
    takes(4, 0)
    computed(recorder, 5)
    recorder.stop()
    computed(recorder, 7)
    recorder.failed()
    takes(5, 0)
    recorder.start()
    computed(recorder, 1)
    recorder.stop()
    recorder.start()
    takes(0, 0)
    assert counts.did == ["start", "take", "take", "stop", "take", "start", "stop", "start", "take"]


def test_what_cannot_be_asked_for_now_is_refused_and_changes_nothing() -> None:
    counts = Counts()
    recorder = ExpertRecorder(counts)  # type: ignore[arg-type]
    with pytest.raises(WrongState, match="are not being recorded"):
        recorder.stop()
    with pytest.raises(WrongState, match="no experts have been recorded"):
        recorder.take()
    recorder.start()
    with pytest.raises(WrongState, match="are recorded already"):
        recorder.start()
    recorder.stop()
    with pytest.raises(WrongState, match="are not being recorded"):
        recorder.stop()
    recorder.take()
    with pytest.raises(WrongState, match="no experts have been recorded"):
        recorder.take()
    assert counts.did == ["start", "stop", "take"]
    nobody = ExpertRecorder(None)
    for ask in (nobody.start, nobody.stop, nobody.take):
        with pytest.raises(NoExperts):
            ask()
