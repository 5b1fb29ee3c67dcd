"""What no trace can hold is refused where it is written, and a table with two answers where it is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pawl.lifecycle import machine
from pawl.lifecycle.columns import Embedded, Scores, digests_of, encode_column
from pawl.lifecycle.properties.logprobs import _places
from pawl.lifecycle.states import Cause
from pawl.lifecycle.step import DIGEST_BYTES


def _digests(count: int) -> list[bytes]:
    return digests_of(Embedded(np.arange(2, dtype=np.int32), bytes(count)))


def _scores(chosen: int, tokens: int, top: int) -> Any:
    integers, floats = np.zeros(9, np.int32), np.zeros(9, np.float32)
    return _places(
        Scores(
            integers[:2], integers[:2], floats[:chosen], np.array([1, 2], np.int32), integers[:tokens], floats[:top]
        ),
        {},
    )


REFUSALS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a digest too few": (lambda: _digests(DIGEST_BYTES), ValueError, "bytes of digests for 2 vectors"),
    "half a digest": (lambda: _digests(2 * DIGEST_BYTES - 1), ValueError, "bytes of digests for 2 vectors"),
    "a list as a column": (lambda: encode_column([1]), TypeError, "cannot hold a list"),
    "a column of long integers": (lambda: encode_column(np.zeros(1, np.int64)), TypeError, "not int64"),
    "a score too few": (lambda: _scores(1, 3, 3), ValueError, "differ in length"),
    "a token too few": (lambda: _scores(2, 2, 3), ValueError, "differ in length"),
    "a likely one's score too many": (lambda: _scores(2, 3, 4), ValueError, "differ in length"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_what_cannot_be_written_or_read_is_refused(what: str) -> None:
    make, error, words = REFUSALS[what]
    with pytest.raises(error, match=words):
        make()


def test_what_can_be_is_not_refused() -> None:
    assert _digests(2 * DIGEST_BYTES) == [bytes(DIGEST_BYTES)] * 2
    assert len(_scores(2, 3, 3)) == 2
    assert encode_column(np.ones(2, np.uint8)) == b"\1\1"


def test_a_table_has_one_target_for_each_state_and_event(monkeypatch: pytest.MonkeyPatch) -> None:
    edge = next(edge for edge in machine.TABLE if len(edge.causes) == 1)
    other = next(state for state in type(edge.target) if state != edge.target)
    monkeypatch.setattr(machine, "TABLE", (*machine.TABLE, edge))
    with pytest.raises(ValueError, match="two edges for"):
        machine._compile()
    cause = next(cause for cause in Cause if cause not in edge.causes)
    table = (*machine.TABLE[:-1], edge._replace(target=other, causes=frozenset({cause})))
    monkeypatch.setattr(machine, "TABLE", table)
    with pytest.raises(ValueError, match="a pair of state and event has two targets"):
        machine._compile()
