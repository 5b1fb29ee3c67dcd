"""What is computed again of a recorded request."""

from __future__ import annotations

import numpy as np

from pawl.lifecycle.recompute import Computed
from pawl.lifecycle.step import StepLogprobs


def test_scores_of_a_step_with_fewer_rivals_than_a_request_asked_for_stand_first() -> None:
    columns = np.zeros((3, 4), np.int32), np.full((3, 4), np.nan, np.float32)
    computed = Computed(np.empty(0, np.int32), np.full(3, np.nan, np.float32), *columns, [])
    rivals = np.array([[7, 8]], np.int32)
    computed.score(np.array([1]), StepLogprobs(np.float32([-1]), rivals, np.float32([[-2, -3]])))
    assert computed.chosen.tolist()[1] == -1
    assert computed.top_tokens.tolist() == [[0] * 4, [7, 8, 0, 0], [0] * 4]
    assert computed.top[1, :2].tolist() == [-2, -3]
    assert np.isnan(computed.top[1, 2:]).all()
