"""Each request opened at the detokenizer gets its text once, whole, and exactly one terminal record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pawl.actors.detokenizer import UNREADABLE, Detokenizer, OutputsRefused, RowInUse
from pawl.actors.messages.generate import (
    Accepted,
    Admitted,
    Done,
    Ended,
    Opened,
    Output,
    Outputs,
    StepTokens,
    TextOptions,
    Timing,
    TokenLogprob,
    Usage,
)
from pawl.actors.runtime.actor import Lane
from pawl.actors.simulation.manual import ManualContext, Sent
from pawl.actors.text.stream import Stream
from pawl.actors.text.vocabulary import Vocabulary
from pawl.lifecycle.states import Cause
from pawl.lifecycle.step import PromptLogprobs, StepLogprobs
from pawl.loops.orders.requests import Abort, Finish
from tests.actors.vocabularies import byte_level, sentencepiece, untimed

TIMING = Timing(submitted=1.0, admitted=2.0, first_token=3.0, ended=4.0)


class Bench:
    """A detokenizer with a scheduler played by the test and a gateway that collects."""

    def __init__(self, vocabulary: Vocabulary | None = None) -> None:
        self.vocabulary = vocabulary or byte_level()
        self.actor = Detokenizer(self.vocabulary)
        self.context = ManualContext(self.actor, "detokenizer", time_s=100.0)

    def ids(self, text: str) -> list[int]:
        return self.vocabulary.encode(text, add_special=False).tolist()

    def open(
        self,
        row: int,
        request: int,
        prompt: Sequence[int] = (1, 2),
        num_rivals: int | None = None,
        scores_prompt: bool = False,
        **options: Any,
    ) -> None:
        tokens = np.array(prompt, dtype=np.int32)
        asked = Opened(row, request, TextOptions(**options), len(prompt), tokens, num_rivals, 0, scores_prompt)
        self.actor.receive(asked)
        assert self.context.sent.pop() == Sent("gateway", Accepted(request, len(prompt)), Lane.DATA)

    def step(self, tokens: Sequence[tuple[int, int]] = (), ended: Sequence[Ended] = (), **rest: Any) -> list[Output]:
        """One message with (row, token) pairs; the outputs it gave."""
        pairs = np.array(tokens, dtype=np.int32).reshape(-1, 2)
        self.actor.receive(StepTokens(pairs[:, 0], pairs[:, 1], ended=tuple(ended), **rest))
        messages = self.context.take("gateway")
        assert len(messages) <= 1
        return list(messages[0].outputs) if messages else []

    def finishes(self) -> list[Finish]:
        assert all(sent.lane is Lane.CONTROL for sent in self.context.sent if sent.to == "scheduler")
        return self.context.take("scheduler")


def ended(row: int, request: int, cause: Cause = Cause.LENGTH, num_output: int = 0, **rest: Any) -> Ended:
    return Ended(row, request, cause, Usage(2, num_output, 1), TIMING, **rest)


def test_a_step_is_one_message_with_the_text_of_every_request() -> None:
    bench = Bench()
    bench.open(0, 10)
    bench.open(5, 11)
    [hello], [world] = bench.ids("hello"), bench.ids(" world")
    outputs = bench.step([(5, hello), (0, world)])
    assert [(o.request, o.text, o.tokens) for o in outputs] == [(11, "hello", (hello,)), (10, " world", (world,))]


def test_the_end_comes_with_the_last_token_and_frees_the_row() -> None:
    bench = Bench()
    bench.open(0, 10)
    [hello] = bench.ids("hello")
    end = ended(0, 10, num_output=1)
    [output] = bench.step([(0, hello)], [end])
    assert (output.text, output.tokens) == ("hello", (hello,))
    assert output.done == Done(Cause.LENGTH, end.usage, TIMING)
    assert bench.actor.num_open == 0
    bench.open(0, 11)
    [output] = bench.step([(0, hello)])
    assert output.request == 11


def test_an_abort_between_steps_is_a_terminal_record_by_itself() -> None:
    bench = Bench()
    bench.open(0, 10)
    [output] = bench.step(ended=[ended(0, 10, Cause.TIMEOUT, message="too late")])
    assert output.done is not None
    assert (output.text, output.tokens) == ("", ())
    assert (output.done.cause, output.done.message) == (Cause.TIMEOUT, "too late")


def test_a_request_that_never_took_a_row_still_gets_its_terminal_record() -> None:
    bench = Bench()
    bench.open(0, 10)
    [output] = bench.step(ended=[ended(0, 9, Cause.NEVER_FITS)])
    assert output.request == 9
    assert output.done is not None
    assert bench.actor.num_open == 1


@pytest.mark.parametrize("include_stop", [False, True])
def test_a_stop_token_has_no_text_unless_kept(include_stop: bool) -> None:
    bench = Bench()
    [hello], eos = bench.ids("hello"), bench.vocabulary.eos_ids[0]
    bench.open(0, 10, skip_special_tokens=False, include_stop=include_stop)
    [output] = bench.step([(0, eos)])
    assert output.text == "<|im_end|>"
    bench.open(1, 11, skip_special_tokens=False)
    outputs = bench.step([(0, hello), (1, hello)])
    assert [output.text for output in outputs] == ["hello", "hello"]
    stopped = ended(0, 10, Cause.EOS, 3, matched=eos)
    outputs = bench.step([(0, eos), (1, eos)], [stopped])
    assert [output.text for output in outputs] == ["<|im_end|>" if include_stop else "", "<|im_end|>"]
    assert outputs[0].tokens == (eos,)
    assert outputs[0].done is not None
    assert outputs[0].done.matched == eos


def test_an_unfinished_character_is_flushed_at_the_end() -> None:
    bench = Bench(sentencepiece())
    bench.open(0, 10)
    half = bench.vocabulary.tokenizer.token_to_id("<0xE2>")
    [output] = bench.step([(0, half)])
    assert output.text == ""
    [output] = bench.step([(0, bench.vocabulary.eos_ids[0])], [ended(0, 10, Cause.EOS, 2, matched=2)])
    assert output.text == "\ufffd"


def test_a_stop_string_answers_the_client_tells_the_scheduler_and_swallows_the_rest() -> None:
    bench = Bench()
    bench.open(0, 10, stop=("o w",))
    hello, world = bench.ids("hello world")
    bench.context.time_s = 103.0
    [output] = bench.step([(0, hello)], admitted=(Admitted(0, 1, Timing(submitted=90.0, admitted=95.0)),))
    assert (output.text, output.tokens, output.done) == ("hell", (hello,), None)
    bench.context.time_s = 105.0
    [output] = bench.step([(0, world)])
    assert (output.text, output.tokens) == ("", (world,))
    timing = Timing(submitted=90.0, admitted=95.0, first_token=103.0, ended=105.0)
    assert output.done == Done(Cause.STOP_STRING, Usage(2, 2, 1), timing, matched="o w")
    assert bench.finishes() == [Finish(10, 2)]
    assert bench.step([(0, hello)]) == []
    assert bench.step([(0, hello)], [ended(0, 10, Cause.STOP_STRING, 2)]) == []
    assert bench.actor.num_open == 0


def test_a_stop_string_within_the_last_token_uses_the_schedulers_record() -> None:
    bench = Bench()
    bench.open(0, 10, stop=("llo",), include_stop=True)
    [hello] = bench.ids("hello")
    [output] = bench.step([(0, hello)], [ended(0, 10, Cause.LENGTH, 1)])
    assert output.text == "hello"
    assert output.done == Done(Cause.STOP_STRING, Usage(2, 1, 1), TIMING, matched="llo")
    assert bench.finishes() == []
    assert bench.actor.num_open == 0


def test_tokens_behind_a_stop_string_in_the_same_step_are_not_counted() -> None:
    bench = Bench()
    bench.open(0, 10, stop=("llo",))
    hello, world = bench.ids("hello world")
    [output] = bench.step([(0, hello), (0, world)], [ended(0, 10, Cause.LENGTH, 2)])
    assert (output.text, output.tokens) == ("he", (hello,))
    assert output.done == Done(Cause.STOP_STRING, Usage(2, 1, 1), TIMING, matched="llo")


def test_a_second_admission_does_not_move_the_first_token() -> None:
    bench = Bench()
    bench.open(0, 10, stop=("world",))
    hello, world = bench.ids("hello world")
    bench.context.time_s = 103.0
    bench.step([(0, hello)], admitted=(Admitted(0, 1, Timing(submitted=90.0, admitted=95.0)),))
    [output] = bench.step([(0, world)], admitted=(Admitted(0, 2, Timing(submitted=90.0, admitted=95.0)),))
    assert output.done is not None
    assert output.done.timing.first_token == 103.0
    assert output.done.usage.cached_tokens == 2


def test_text_held_back_for_a_stop_string_is_released_at_the_end() -> None:
    bench = Bench()
    bench.open(0, 10, stop=("hello!",))
    [output] = bench.step([(0, bench.ids("hello")[0])])
    assert output.text == ""
    [output] = bench.step(ended=[ended(0, 10, Cause.CLIENT, 1)])
    assert output.text == "hello"


def test_a_character_that_never_completed_can_complete_a_stop_string() -> None:
    bench = Bench(sentencepiece())
    bench.open(0, 10, stop=("\ufffd",))
    bench.step([(0, bench.vocabulary.tokenizer.token_to_id("<0xE2>"))])
    [output] = bench.step(ended=[ended(0, 10, Cause.LENGTH, 1)])
    assert output.text == ""
    assert output.done is not None
    assert (output.done.cause, output.done.matched) == (Cause.STOP_STRING, "\ufffd")


def test_ids_alone_come_without_text() -> None:
    bench = Bench()
    bench.open(0, 10, detokenize=False)
    [output] = bench.step([(0, bench.ids("hello")[0])])
    assert (output.text, output.tokens) == ("", (bench.ids("hello")[0],))


def test_scores_come_to_those_who_asked_with_the_text_of_each_token() -> None:
    bench = Bench()
    bench.open(0, 10, num_rivals=1)
    bench.open(1, 11)
    bench.open(2, 12, num_rivals=0)
    bench.open(3, 13)
    bench.open(4, 14, num_rivals=0)
    hello, world = bench.ids("hello world")
    scores = StepLogprobs(
        np.array([-0.5, math.nan, -0.25, -0.75, math.nan], dtype=np.float32),
        np.array([[world, hello]] * 5, dtype=np.int32),
        np.array([[-0.125, -0.5]] * 5, dtype=np.float32),
    )
    drawn = [(0, hello), (1, hello), (2, world), (3, hello), (4, hello)]
    first, second, third, *others = bench.step(drawn, logprobs=scores)
    assert first.logprobs == (TokenLogprob(hello, -0.5, "hello", ((world, -0.125, " world"),)),)
    assert second.logprobs == ()
    assert third.logprobs == (TokenLogprob(world, -0.25, " world"),)
    assert [other.logprobs for other in others] == [(), ()], "nobody asked, or there is none"


def prompt_scores(start: int, values: list[float]) -> PromptLogprobs:
    chosen, ranks = np.array(values, dtype=np.float32), np.arange(1, len(values) + 1, dtype=np.int32)
    return PromptLogprobs(0, start, chosen, np.full((len(values), 1), 7, np.int32), chosen[:, None] + 1, start + ranks)


def test_prompt_scores_are_assembled_over_chunks_and_come_once_with_the_first_output() -> None:
    bench = Bench()
    prompt = bench.ids("hello world hello")
    bench.open(0, 10, prompt=prompt, num_rivals=1, scores_prompt=True)
    assert bench.step(prompt_logprobs=((0, prompt_scores(0, [-1.0])),)) == []
    assert bench.step(prompt_logprobs=((0, prompt_scores(0, [-1.0])),)) == []  # computed again after a retraction
    chosen = np.array([-9.0], dtype=np.float32)
    sampled = StepLogprobs(chosen, np.full((1, 1), 7, np.int32), chosen[:, None])
    rest = prompt_scores(1, [-float(place) for place in range(2, len(prompt))])
    [output] = bench.step([(0, prompt[0])], prompt_logprobs=((0, rest),), logprobs=sampled)
    assert [entry.token for entry in output.prompt_logprobs] == prompt
    assert [entry.logprob for entry in output.prompt_logprobs] == [None, *(-float(n) for n in range(1, len(prompt)))]
    assert [entry.rank for entry in output.prompt_logprobs] == [None, *range(1, len(prompt))]
    assert output.prompt_logprobs[0].top == ()
    assert output.prompt_logprobs[1].top == ((7, 0.0, bench.vocabulary.token_text(7)),)
    [output] = bench.step([(0, prompt[0])], logprobs=sampled)
    assert output.prompt_logprobs == ()


def test_prompt_scores_without_any_output_come_with_the_end() -> None:
    bench = Bench()
    prompt = bench.ids("hello world")
    bench.open(0, 10, prompt=prompt, scores_prompt=True)
    scores = prompt_scores(0, [-1.0])
    [output] = bench.step(ended=[ended(0, 10)], prompt_logprobs=((0, scores),))
    assert [entry.logprob for entry in output.prompt_logprobs] == [None, -1.0]
    bench.open(0, 11, prompt=[*prompt, *prompt], scores_prompt=True)
    [output] = bench.step(ended=[ended(0, 11, Cause.CLIENT)], prompt_logprobs=((0, scores),))
    assert output.prompt_logprobs == ()


@pytest.mark.parametrize("first", ["an output", "the end"])
def test_a_prompt_of_one_token_has_that_token_without_a_score(first: str) -> None:
    bench = Bench()
    (hello,) = prompt = bench.ids("hello")[:1]
    bench.open(0, 10, prompt=prompt, scores_prompt=True)
    step = {"tokens": [(0, hello)]} if first == "an output" else {"ended": [ended(0, 10)]}
    [output] = bench.step(**step)  # type: ignore[arg-type]
    assert output.prompt_logprobs == (TokenLogprob(hello, None, bench.vocabulary.token_text(hello)),)
    bench.open(1, 11, prompt=prompt)
    [output] = bench.step([(1, hello)])
    assert output.prompt_logprobs == ()


def test_a_step_whose_outputs_could_not_be_sent_at_first_is_told_once_and_whole() -> None:
    bench = Bench()
    prompt = bench.ids("hello world hello")
    for row in range(3):
        bench.open(row, 10 + row, prompt=prompt, scores_prompt=not row)
    vector = np.array([0.5, 1.5], np.float32)
    tokens = np.array([prompt[0]] * 2, np.int32)
    message = StepTokens(
        np.array([0, 1], np.int32),
        tokens,
        prompt_logprobs=((0, prompt_scores(0, [-1.0, -2.0, -3.0])),),
        embeddings=((2, vector),),
        admitted=(Admitted(0, 3, TIMING),),
        ended=(ended(1, 11, num_output=1), ended(2, 12)),
    )
    bench.context.full.add("gateway")
    with pytest.raises(OutputsRefused) as refused:
        bench.actor.receive(message)
    bench.context.full.clear()
    assert bench.actor.spares(message, refused.value)
    [told] = bench.context.take("gateway")
    assert [(each.request, each.tokens, each.done is not None) for each in told.outputs] == [
        (10, (prompt[0],), False),
        (11, (prompt[0],), True),
        (12, (), True),
    ]
    assert [len(each.prompt_logprobs) for each in told.outputs] == [len(prompt), 0, 0]
    assert told.outputs[2].embedding is vector
    [output] = bench.step([(0, prompt[1])])
    assert (output.tokens, output.prompt_logprobs) == ((prompt[1],), ())
    [output] = bench.step(ended=[ended(0, 10, num_output=2)])
    assert output.done is not None


def test_stopping_drains_what_is_open() -> None:
    bench = Bench()
    bench.open(0, 10)
    bench.open(1, 11, stop=("hello",))
    bench.open(2, 12, stop=("hello!",))
    [hello] = bench.ids("hello")
    bench.step([(0, hello), (1, hello), (2, hello)])
    bench.actor.stopped("shutdown")
    [message] = bench.context.take("gateway")
    assert isinstance(message, Outputs)
    records = [(o.request, o.text, o.done.cause, o.done.usage.completion_tokens) for o in message.outputs if o.done]
    assert records == [(10, "", Cause.DRAINED, 1), (12, "hello", Cause.DRAINED, 1)]
    assert bench.actor.num_open == 0


def test_who_ends_before_anything_was_told_of_it_has_had_nothing() -> None:
    bench = Bench()
    bench.open(0, 10, prompt=(1, 2, 3))
    bench.actor.stopped("shutdown")
    [message] = bench.context.take("gateway")
    [output] = message.outputs
    assert (output.text, output.tokens, output.logprobs, output.embedding) == ("", (), (), None)
    assert output.done == Done(Cause.DRAINED, Usage(3, 0, 0), Timing(100.0, ended=100.0), "shutdown")


def test_a_row_is_not_opened_twice_and_outputs_are_not_lost_silently() -> None:
    bench = Bench()
    bench.open(0, 10)
    with pytest.raises(RowInUse, match="request 11 while request 10"):
        bench.open(0, 11)
    bench.context.full.add("gateway")
    with pytest.raises(OutputsRefused):
        bench.step([(0, 5)])


@untimed
@given(data=st.data())
def test_whatever_happens_text_is_whole_and_each_request_ends_once(data: st.DataObject) -> None:
    """Requests with and without stop strings over a few rows, ended by the scheduler at any moment, drained at last."""
    bench = Bench(sentencepiece())
    vocabulary = bench.vocabulary
    open_rows: dict[int, int] = {}
    stops: dict[int, tuple[str, ...]] = {}
    fed: dict[int, list[int]] = {}
    outputs: list[Output] = []
    for _ in range(data.draw(st.integers(1, 12))):
        for row in data.draw(st.sets(st.integers(0, 2))) - open_rows.keys():
            request = len(stops)
            open_rows[row], fed[request] = request, []
            stops[request] = data.draw(st.sampled_from([(), ("ab",), ("ca", "abc"), ("\n\n",)]))
            bench.open(row, request, stop=stops[request])
        active = data.draw(st.lists(st.sampled_from(sorted(open_rows)), unique=True)) if open_rows else []
        pairs = [(row, data.draw(st.integers(0, vocabulary.size - 1))) for row in active]
        for row, token in pairs:
            fed[open_rows[row]].append(token)
        leaving = data.draw(st.sets(st.sampled_from(sorted(open_rows)))) if open_rows else set()
        ends = [ended(row, open_rows[row], num_output=len(fed[open_rows[row]])) for row in sorted(leaving)]
        outputs += bench.step(pairs, ends)
        for row in leaving:
            del open_rows[row]
    bench.actor.stopped("end")
    outputs += [output for message in bench.context.take("gateway") for output in message.outputs]
    for request, tokens in fed.items():
        mine = [output for output in outputs if output.request == request]
        assert [output.done is not None for output in mine] == [False] * (len(mine) - 1) + [True]
        text, done = "".join(output.text for output in mine), mine[-1].done
        assert done is not None
        if done.cause is Cause.STOP_STRING:
            whole = vocabulary.decode(tokens[: done.usage.completion_tokens])
            assert text + str(done.matched) == whole[: len(text) + len(str(done.matched))]
        else:
            assert text == vocabulary.decode(tokens)
        assert not any(stop in text for stop in stops[request])
        assert sum(len(output.tokens) for output in mine) == done.usage.completion_tokens


def test_stop_strings_wait_for_the_least_number_of_tokens() -> None:
    bench = Bench()
    [hello] = bench.ids("hello")
    bench.open(0, 10, stop=("hello",), min_tokens=3)
    texts = [output.text for _ in range(2) for output in bench.step([(0, hello)])]
    assert texts == ["hello", "hello"]
    [third] = bench.step([(0, hello)])
    assert third.done is not None
    assert (third.text, third.done.cause, third.done.matched) == ("", Cause.STOP_STRING, "hello")


def test_the_gateway_learns_the_prompt_where_it_was_asked_for_and_where_the_reply_begins() -> None:
    bench = Bench()
    for options, prompt in ((TextOptions(return_prompt=True), (5, 6)), (TextOptions(in_reasoning=True), ())):
        tokens = np.array([5, 6], dtype=np.int32)
        bench.actor.receive(Opened(len(prompt), 1, options, 2, tokens))
        assert bench.context.sent.pop().message == Accepted(1, 2, options.in_reasoning, prompt)


def fails_once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """What `owner` calls `name` raises the first time."""

    def raises(*what: Any) -> None:
        monkeypatch.undo()
        raise RuntimeError("a defect")

    monkeypatch.setattr(owner, name, raises)


@pytest.mark.parametrize(
    ("name", "rest"),
    [
        ("admit", {"admitted": (Admitted(0, 3, TIMING),)}),
        ("add_prompt_scores", {"prompt_logprobs": ((0, prompt_scores(0, [-1.0])),)}),
        ("add_embedding", {"embeddings": ((0, np.zeros(2, np.float32)),)}),
    ],
)
def test_what_one_stream_cannot_be_told_ends_its_request_alone(
    name: str, rest: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench()
    bench.open(0, 10)
    bench.open(1, 11)
    fails_once(monkeypatch, Stream, name)
    [output] = bench.step([(0, 5), (1, 6)], **rest)
    assert (output.request, output.tokens, bench.actor.num_open) == (11, (6,), 1)
    assert bench.context.take("scheduler") == [Abort((10,), Cause.INTERNAL, UNREADABLE)]
    [output] = bench.step(ended=[ended(0, 10, message=UNREADABLE)])
    assert output.done is not None
    assert (output.done.cause, output.done.message) == (Cause.INTERNAL, UNREADABLE)


def test_a_step_that_cannot_be_read_at_all_ends_all_that_it_names_and_nobody_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()
    for row in range(4):
        bench.open(row, 10 + row, stop=("hello",) if row == 0 else ())
    [hello] = bench.ids("hello")
    bench.step([(0, hello)])
    assert bench.finishes() == [Finish(10, 1)], "it has had its end"
    rows = np.array([2, 8], np.int32)
    message = StepTokens(rows, rows, ended=(ended(0, 10), ended(1, 11), ended(3, 9), ended(7, 17)))
    fails_once(monkeypatch, bench.actor, "_outputs_of")
    assert bench.actor.spares(message, RuntimeError("a defect"))
    [told] = bench.context.take("gateway")
    assert [(each.request, each.done.cause, each.done.message) for each in told.outputs] == [
        (request, Cause.INTERNAL, UNREADABLE) for request in (11, 9, 17)
    ]
    assert bench.context.take("scheduler") == [Abort((12,), Cause.INTERNAL, UNREADABLE)]
    assert [stream.request for stream in bench.actor._streams.values()] == [13]
    [output] = bench.step([(2, hello), (3, hello)])
    assert (output.request, output.text) == (13, "hello")


def test_what_is_held_back_and_cannot_be_made_text_of_is_left_out_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    for row in range(2):
        bench.open(row, 10 + row, stop=("hello!",))
    [hello] = bench.ids("hello")
    bench.step([(0, hello), (1, hello)])
    fails_once(monkeypatch, Stream, "flush")
    bench.actor.stopped("shutdown")
    [told] = bench.context.take("gateway")
    assert [(each.request, each.text, each.done.cause) for each in told.outputs] == [
        (10, "", Cause.DRAINED),
        (11, "hello", Cause.DRAINED),
    ]
    assert bench.actor.num_contained == 1
