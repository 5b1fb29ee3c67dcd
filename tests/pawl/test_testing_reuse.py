"""What a row of the table, or a slot of the ghost, keeps of the request before is found when it is used again."""

from __future__ import annotations

from typing import Any

import numpy as np

from pawl.gpu.ghost.runner import Ghost
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.requests import RequestInfo, RequestTable
from pawl.lifecycle.step import SlotAssignment
from pawl.testing.reuse import WatchedGhost, left_in_row

PROMPT = np.array([97, 98], np.int32)
PLAIN = SamplingParameters()
DEMANDING = SamplingParameters(logit_bias={98: 2.0}, stop_token_ids=(99,), presence_penalty=1.0, top_logprobs=2)


def opened(table: RequestTable, number: int, sampling: SamplingParameters) -> int:
    return table.open(RequestInfo(number, str(number), sampling, "", 0.0), PROMPT, number, float(number))


def test_a_row_that_is_used_again_is_like_one_of_a_new_table() -> None:
    table = RequestTable(2, 16)
    row = opened(table, 1, DEMANDING)
    table.close(row)
    table.free(row)
    assert opened(table, 2, PLAIN) == row
    assert list(left_in_row(table, row, PROMPT)) == []
    table.stop_tokens[row, 0] = 99
    table.num_computed[row] = 1
    assert sorted(left_in_row(table, row, PROMPT)) == ["num_computed", "stop_tokens"]


def test_a_slot_that_is_used_again_is_like_one_of_a_new_ghost() -> None:
    ghost: Any = WatchedGhost(num_pages=4, page_size=2, num_slots=2, max_context=8)
    assert isinstance(ghost, Ghost)
    for sampling in (DEMANDING, PLAIN):
        ghost._admit([SlotAssignment(1, sampling, 2, PROMPT, 0)])
    assert ghost.carried == []
    admit = ghost._draws.admit

    def forgetful(admissions: list[SlotAssignment]) -> None:
        before = ghost._draws._bias.copy()
        admit(admissions)
        ghost._draws._bias[:] = before

    ghost._draws.admit = forgetful
    ghost._admit([SlotAssignment(1, DEMANDING, 2, PROMPT, 0)])
    assert ghost.carried == ["slot 1 keeps bias of the request before"]
