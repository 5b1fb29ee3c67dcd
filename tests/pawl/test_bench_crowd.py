"""Many clients in a closed loop, in simulated time (`benchmarks/crowd.py`)."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.crowd import Crowd, Imagined, Load
from pawl.lifecycle.step_times import MOST_SHARE
from pawl.loops.select import LoopConfig

DEVICE = Imagined(base_s=0.006, row_s=0.00085, token_s=0.0006, reach_s=1.5e-7)
ALONE_S = DEVICE.base_s + 24 * DEVICE.row_s
"""A step in which all 24 clients decode."""


@pytest.mark.parametrize(("prompt", "steps"), [(32, 14), (64, 20)])
def test_whatever_the_lengths_of_prompts_few_wait_to_begin_and_gaps_have_a_bound(prompt: int, steps: float) -> None:
    config = LoopConfig(num_pages=1 << 10, page_size=16, max_context=128, prefill_chunk=512, max_step_s=0.001)
    seen = Crowd(config, DEVICE, Load(clients=24, requests=3, prompt=prompt, output=32, long=0)).run()
    assert (len(seen.firsts), len(seen.gaps)) == (24 * 3, 24 * 3 * 31)
    assert np.percentile(seen.firsts[24:], 50) < steps * ALONE_S
    assert max(seen.gaps) < (1 + MOST_SHARE) * ALONE_S


def test_first_tokens_beside_a_long_prompt_do_not_wait_for_its_end_and_it_takes_three_times_as_long_at_the_most() -> (
    None
):
    config = LoopConfig(num_pages=1 << 9, page_size=16, max_context=2048, prefill_chunk=128, max_step_s=0.05)
    seen = Crowd(config, DEVICE, Load(clients=8, requests=4, prompt=32, output=16, long=2000)).run()
    alone = Crowd(config, DEVICE, Load(clients=1, requests=2, prompt=32, output=2, long=2000)).run()
    assert max(seen.firsts) < seen.long[0] / 5
    assert seen.long[0] < 3 * alone.long[0]
