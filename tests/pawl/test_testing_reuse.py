"""What a row of the table, or a slot of the ghost, keeps of the request before is found when it is used again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pawl.gpu.ghost.runner import Ghost
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.requests import RequestInfo, RequestTable
from pawl.lifecycle.step import SlotAssignment
from pawl.memory.arrays import Int32s
from pawl.testing.reuse import WatchedGhost, left_in_row

PROMPT = np.array([97, 98], np.int32)
PLAIN = SamplingParameters()
DEMANDING = SamplingParameters(logit_bias={98: 2.0}, stop_token_ids=(99,), presence_penalty=1.0, top_logprobs=2)


def opened(
    table: RequestTable, number: int, sampling: SamplingParameters, prompt: Int32s = PROMPT, num_output: int = 0
) -> int:
    return table.open(RequestInfo(number, str(number), sampling, "", 0.0), prompt, number, float(number), num_output)


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


@pytest.mark.parametrize("length", [2, 17, 18, 40], ids=["short", "as wide as the table", "one wider", "far wider"])
def test_a_prompt_that_the_table_is_too_narrow_for_leaves_nothing_either(length: int) -> None:
    table, prompt = RequestTable(1, 16), np.full(length, 97, np.int32)
    row = opened(table, 1, PLAIN, prompt)
    assert list(left_in_row(table, row, prompt)) == []
    table.num_tokens[row] = 1
    assert list(left_in_row(table, row, prompt)) == ["num_tokens"]


def test_output_from_elsewhere_is_not_of_the_request_before() -> None:
    table = RequestTable(1, 16)
    row = opened(table, 1, PLAIN, np.array([97, 98, 99, 99], np.int32), num_output=2)
    assert list(left_in_row(table, row, PROMPT)) == []


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
