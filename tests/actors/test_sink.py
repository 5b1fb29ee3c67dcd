"""What a client's reader finds: all that came since it looked last, once, as one."""

from __future__ import annotations

import numpy as np
import pytest

from pawl.actors.messages.generate import Accepted, Done, Output, Refused, Timing, TokenLogprob, Usage
from pawl.actors.sink import Delta, Inbox, Span
from pawl.lifecycle.states import Cause

DONE = Done(Cause.LENGTH, Usage(5, 1, 2), Timing(0.0))
ONE, OTHER = TokenLogprob(7, -0.5, 1, ()), TokenLogprob(8, -1.5, 2, ())


class Counting(Inbox):
    """Counts how often its reader is woken."""

    def __init__(self, whole: bool = False) -> None:
        super().__init__(whole)
        self.num_ready = 0

    def ready(self) -> None:
        self.num_ready += 1


def test_what_came_is_taken_once_and_in_its_order() -> None:
    inbox = Counting()
    assert (inbox.take(), inbox.num_prompt, inbox.final) == (None, None, False)
    inbox.accepted(Accepted(1, 5))
    assert (inbox.take(), inbox.num_prompt, inbox.num_ready) == (None, 5, 0)
    inbox.push(Output(1, "a", (7,), logprobs=(ONE,), prompt_logprobs=(OTHER,)))
    inbox.push(Output(1, "", (8,), logprobs=(OTHER,)))
    inbox.push(Output(1, "b", ()))
    assert inbox.num_ready == 3
    assert inbox.take() == Delta("ab", (7, 8), (ONE, OTHER), (OTHER,))
    assert inbox.take() is None
    vector = np.ones(2, np.float32)
    inbox.push(Output(1, "c", (9,), done=DONE, embedding=vector))
    assert inbox.final
    last = inbox.take()
    assert last is not None
    assert (last.text, last.tokens, last.logprobs, last.prompt_logprobs) == ("c", (9,), (), ())
    assert (last.done, last.refusal, last.embedding is vector, last.final) == (DONE, None, True, True)
    assert inbox.take() is None


@pytest.mark.parametrize(("whole", "woken"), [(False, [1, 2, 3]), (True, [0, 0, 1])])
def test_a_reader_of_the_whole_is_woken_by_the_end_and_any_other_by_all(whole: bool, woken: list[int]) -> None:
    inbox, counts = Counting(whole), []
    for done in (None, None, DONE):
        inbox.push(Output(1, "x", (7,), done=done))
        counts.append(inbox.num_ready)
    assert counts == woken
    refused = Counting(whole)
    refusal = Refused(1, Cause.OVERLOADED, "full", 503)
    refused.refused(refusal)
    delta = refused.take()
    assert delta is not None
    assert (refused.num_ready, refused.final, delta.refusal, delta.final, delta.done) == (1, True, refusal, True, None)


def test_tokens_are_of_the_version_that_drew_them_and_the_last_one_told_is_kept() -> None:
    inbox = Inbox()
    for version, tokens in (("a", (1, 2)), ("", ()), ("a", (3,)), ("b", ()), ("b", (4,)), ("a", (5,))):
        inbox.push(Output(1, "", tokens, version=version))
    assert inbox.spans == [Span("a", 0, 3), Span("b", 3, 4), Span("a", 4, 5)]
    assert inbox.version == "a"
    inbox.push(Output(1, "x", ()))
    assert inbox.version == "a"
