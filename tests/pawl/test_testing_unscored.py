"""What is expected of the scores of a prompt whose request is never computed."""

from __future__ import annotations

import pytest

from pawl.actors.simulation.faults import Faults
from pawl.testing import Arrival, Workload, explore_workload
from pawl.testing.expectations import BAD_GRAMMAR


@pytest.mark.parametrize("prompt", [(97,), (97, 98)])
def test_a_request_whose_grammar_is_none_has_the_scores_that_need_no_computing(prompt: tuple[int, ...]) -> None:
    """Its first token has none, and a prompt may have no other: that was told, and taken for too much."""
    arrival = Arrival(prompt=prompt, max_new_tokens=1, grammar=BAD_GRAMMAR, prompt_logprobs=True)
    outcome = explore_workload(Workload(arrivals=(arrival,)), "fair", 2, seed=0, faults=Faults(), shrink=False)
    assert outcome.found is None, str(outcome.result.failure)
