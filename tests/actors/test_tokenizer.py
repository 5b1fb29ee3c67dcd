"""The tokenizer answers every request within one message: a valid `Generate`, or a refusal that says what to change."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pawl.actors.messages.generate import Generate, Refused, Submit, TextOptions
from pawl.actors.runtime.actor import Lane
from pawl.actors.simulation.manual import ManualContext
from pawl.actors.text.invalid import InvalidRequest
from pawl.actors.text.vocabulary import Vocabulary
from pawl.actors.tokenizer import Tokenizer, _within_reasoning
from pawl.lifecycle.grammar import Grammar, GrammarKind, Reasoning
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.states import Cause
from tests.actors.vocabularies import byte_level, byte_level_metadata, smollm2, untimed

CONTEXT_LENGTH = 20


def tokenizer(seed: int = 0, vocabulary: Vocabulary | None = None, context_length: int = CONTEXT_LENGTH) -> Tokenizer:
    actor = Tokenizer(vocabulary or byte_level(), context_length)
    ManualContext(actor, "tokenizer", seed=seed)
    return actor


def sent(actor: Tokenizer) -> ManualContext:
    assert isinstance(actor.context, ManualContext)
    return actor.context


def submit(**fields: Any) -> Submit:
    return Submit(**{"request": 1, "rid": "r", "text": "hello world", "sampling": limited(3)} | fields)


def limited(max_new_tokens: int) -> SamplingParameters:
    return SamplingParameters(max_new_tokens=max_new_tokens)


def accepted(request: Submit) -> Generate:
    actor = tokenizer()
    actor.receive(request)
    [generate] = sent(actor).take("scheduler")
    assert sent(actor).take("gateway") == []
    assert isinstance(generate, Generate)
    return generate


def refused(request: Submit) -> Refused:
    actor = tokenizer()
    actor.receive(request)
    assert sent(actor).take("scheduler") == []
    [sending] = sent(actor).sent
    assert (sending.to, sending.lane) == ("gateway", Lane.CONTROL)
    assert isinstance(sending.message, Refused)
    assert sending.message.request == request.request
    return sending.message


def test_text_becomes_token_ids_with_everything_the_scheduler_needs() -> None:
    options = TextOptions(stop=("x",))
    request = submit(
        request=7,
        rid="mine",
        sampling=SamplingParameters(seed=3),
        fill_context=True,
        text_options=options,
        priority=2,
        timeout_s=1.5,
        cache_salt="s",
    )
    generate = accepted(request)
    assert generate.tokens.tolist() == byte_level().encode("hello world").tolist()
    assert generate.tokens.dtype == np.int32
    assert (generate.request, generate.rid, generate.priority, generate.timeout_s) == (7, "mine", 2, 1.5)
    assert (generate.namespace, generate.text_options) == ("s", options)
    assert generate.sampling.seed == 3
    assert generate.sampling.max_new_tokens == CONTEXT_LENGTH - 2


def test_a_chat_is_rendered_without_a_second_beginning_token() -> None:
    vocabulary = Vocabulary.from_gguf(byte_level_metadata(**{"tokenizer.ggml.add_bos_token": True}))
    actor = tokenizer(vocabulary=vocabulary, context_length=100)
    actor.receive(submit(text=None, chat=({"role": "user", "content": "hello"},)))
    actor.receive(submit(text="hello"))
    chat, text = (generate.tokens.tolist() for generate in sent(actor).take("scheduler"))
    bos = vocabulary.tokenizer.token_to_id("<|im_start|>")
    assert text[0] == bos
    assert chat[0] == bos
    assert chat[1] != bos


def test_what_is_asked_must_fit_the_context() -> None:
    ids = tuple(range(15))
    assert accepted(submit(text=None, token_ids=ids, sampling=limited(5))).sampling.max_new_tokens == 5
    answer = refused(submit(text=None, token_ids=ids, sampling=limited(6)))
    assert (answer.cause, answer.status, answer.param) == (Cause.TOO_LONG, 400, "max_new_tokens")
    assert "maximum context length is 20 tokens" in answer.message
    assert "requested 21 tokens (15 in the prompt, 6 for the completion)" in answer.message


@pytest.mark.parametrize("num_prompt", [CONTEXT_LENGTH, CONTEXT_LENGTH + 1, 5000])
def test_a_prompt_that_fills_the_context_is_too_long(num_prompt: int) -> None:
    answer = refused(submit(text=None, token_ids=(5,) * num_prompt, fill_context=True))
    assert (answer.cause, answer.status, answer.param) == (Cause.TOO_LONG, 400, "prompt")
    assert f"maximum context length is 20 tokens. However, your prompt has {num_prompt} tokens" in answer.message


class Counting(Vocabulary):
    """Counts the characters it is given."""

    num_encoded = 0

    def encode(self, text: str, add_special: bool = True) -> Any:
        self.num_encoded += len(text)
        return super().encode(text, add_special)


def test_text_that_is_clearly_too_long_is_refused_by_its_first_slices() -> None:
    vocabulary = Counting(smollm2().tokenizer)
    actor = tokenizer(vocabulary=vocabulary, context_length=4_000)
    actor.receive(submit(text="0123456789 " * 25_000))
    [answer] = sent(actor).take("gateway")
    assert (answer.cause, answer.param) == (Cause.TOO_LONG, "prompt")
    assert vocabulary.num_encoded <= 20_000


def test_the_choices_of_one_call_are_read_once() -> None:
    for prompt in ({"text": "a few words"}, {"text": None, "chat": ({"role": "user", "content": "hi"},)}):
        vocabulary = Counting(smollm2().tokenizer, chat_templates=smollm2().chat_templates)
        actor = tokenizer(vocabulary=vocabulary, context_length=100)
        first = submit(**prompt)
        actor.receive(first)
        once = vocabulary.num_encoded
        assert once > 0
        for request in (2, 3):
            actor.receive(msgspec.structs.replace(first, request=request))
        assert vocabulary.num_encoded == once
        assert len({tuple(generate.tokens.tolist()) for generate in sent(actor).take("scheduler")}) == 1
        actor.receive(submit(**prompt))
        assert vocabulary.num_encoded == 2 * once, "of another call"


def test_a_long_text_of_long_tokens_still_fits() -> None:
    vocabulary = smollm2()
    text = " " * 60_000
    assert len(vocabulary.encode(text)) < 2_000
    actor = tokenizer(vocabulary=vocabulary, context_length=2_000)
    actor.receive(submit(text=text))
    [generate] = sent(actor).take("scheduler")
    assert generate.tokens.tolist() == vocabulary.encode(text).tolist()


def test_text_that_no_context_holds_is_refused_before_it_is_encoded() -> None:
    vocabulary = Counting(byte_level().tokenizer)
    most = CONTEXT_LENGTH * vocabulary.longest_token
    for text in ("x" * (most + 1), "\u20ac" * (most // 3 + 1)):
        actor = tokenizer(vocabulary=vocabulary)
        actor.receive(submit(text=text))
        [answer] = sent(actor).take("gateway")
        assert (answer.cause, answer.param) == (Cause.TOO_LONG, "prompt")
        assert "at least" in answer.message
    assert vocabulary.num_encoded == 0


def test_tokens_that_the_tokenizer_knows_and_the_model_does_not_are_refused() -> None:
    size = byte_level().size
    vocabulary = Vocabulary(byte_level().tokenizer, num_embeddings=size - 1, eos_ids=(size - 1,))
    assert vocabulary.eos_ids == ()
    for request in (submit(text=None, token_ids=(1, size - 1)), submit(text="hello <|im_end|>")):
        actor = tokenizer(vocabulary=vocabulary)
        actor.receive(request)
        [answer] = sent(actor).take("gateway")
        assert (answer.status, answer.param) == (400, "prompt")
        assert "not in the model's vocabulary" in answer.message


def test_a_full_context_can_still_be_scored() -> None:
    sampling = SamplingParameters(max_new_tokens=0, prompt_logprobs=True)
    scored = submit(text=None, token_ids=(5,) * CONTEXT_LENGTH, sampling=sampling)
    assert accepted(scored).sampling.max_new_tokens == 0


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"text": ""}, "prompt"),
        ({"text": None, "token_ids": ()}, "prompt"),
        ({"text": None, "token_ids": (-1,)}, "prompt"),
        ({"text": None, "token_ids": (1, -1)}, "prompt"),
        ({"text": None, "token_ids": (1, byte_level().size, 2)}, "prompt"),
        ({"text": None, "token_ids": (2**80,)}, "prompt"),
        ({"text": None}, "prompt"),
        ({"token_ids": (1,)}, "prompt"),
        ({"text": "\ud800"}, "prompt"),
        ({"text": None, "chat": ()}, "messages"),
        ({"text": None, "chat": ({"role": "user"},), "template_options": {"tools": [1]}}, "tools"),
        ({"sampling": SamplingParameters(min_new_tokens=30), "fill_context": True}, "min_new_tokens"),
    ],
)
def test_bad_input_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    answer = refused(submit(**fields))
    assert (answer.cause, answer.status, answer.param) == (Cause.INVALID, 400, param)
    assert answer.message


def test_a_full_scheduler_is_an_overload_and_still_one_terminal_reply() -> None:
    actor = tokenizer()
    sent(actor).full.add("scheduler")
    actor.receive(submit(request=9))
    [reply] = sent(actor).take("gateway")
    assert isinstance(reply, Refused)
    assert (reply.request, reply.cause, reply.status) == (9, Cause.OVERLOADED, 503)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
MESSAGE = st.dictionaries(st.sampled_from(["role", "content", "tool_calls", "name"]), JSON, max_size=4)


@untimed
@given(chat=st.none() | st.lists(MESSAGE, max_size=3))
def test_no_input_stops_the_actor_or_goes_unanswered(chat: list[dict[str, Any]] | None) -> None:
    actor = tokenizer()
    actor.receive(submit(text=None if chat else "hello", chat=tuple(chat) if chat else None))
    answers = sent(actor).take("scheduler") + [r for r in sent(actor).take("gateway") if isinstance(r, Refused)]
    assert len(answers) == 1


@pytest.mark.parametrize(("mark", "ends_in_it"), [("assistant", True), ("<think>", False), ("", False)])
def test_a_prompt_that_ends_with_the_mark_of_reasoning_is_known_to(mark: str, ends_in_it: bool) -> None:
    actor = tokenizer(vocabulary=smollm2(), context_length=200)
    chat = ({"role": "user", "content": "hi"},)
    grammar = Grammar(GrammarKind.REGEX, "a", Reasoning(end=5))
    sampling = SamplingParameters(grammar=grammar, max_new_tokens=3)
    actor.receive(submit(text=None, chat=chat, reasoning_mark=mark, sampling=sampling))
    [generate] = sent(actor).take("scheduler")
    assert isinstance(generate, Generate)
    # The template ends with a line break behind its last word.
    assert generate.text_options.in_reasoning == ends_in_it
    assert generate.sampling.grammar == Grammar(GrammarKind.REGEX, "a", Reasoning(end=5, inside=ends_in_it))


def test_a_text_of_as_many_of_the_longest_token_as_fit_is_read_and_one_character_more_is_not() -> None:
    longest = "<|im_start|>"
    assert byte_level().longest_token == len(longest)
    text = longest * CONTEXT_LENGTH
    assert len(accepted(submit(text=text, sampling=limited(0))).tokens) == CONTEXT_LENGTH
    for more in ("x", "é"):  # whose last character has two bytes
        assert "at least" in refused(submit(text=text + more, sampling=limited(0))).message
    assert "at least" in refused(submit(text=text[:-1] + "é", sampling=limited(0))).message


class Letters:
    """A vocabulary of which each letter is a token."""

    longest_token, num_embeddings = 1, 128

    def __init__(self) -> None:
        self.num_read = 0

    def encode(self, text: str, add_special: bool) -> Any:
        assert not add_special, "what stands around the text is counted once, if at all"
        self.num_read += len(text)
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)


@pytest.mark.parametrize(("length", "refused_after"), [(36, None), (40, 40), (39, 39), (38, None), (4000, 40)])
def test_of_a_text_that_is_too_long_no_more_is_read_than_shows_it(
    length: int, refused_after: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of each slice of 4 two tokens are due to the cuts: after ten of them 40 tokens are more than 16 + 2 + 20.
    monkeypatch.setattr("pawl.actors.tokenizer.SLICE_CHARACTERS", 4)
    actor, letters = tokenizer(context_length=16), Letters()
    actor._vocabulary = letters  # type: ignore[assignment]
    if refused_after is None:
        actor._check_slices("x" * length)
    else:
        with pytest.raises(InvalidRequest, match=rf"is 16 tokens\..* at least {refused_after} tokens") as caught:
            actor._check_slices("x" * length)
        assert (caught.value.cause, caught.value.param) == (Cause.TOO_LONG, "prompt")
    assert letters.num_read == (refused_after or length)


def test_a_prompt_of_too_many_ids_is_too_long_whichever_they_are() -> None:
    for ids in ((3,) * (CONTEXT_LENGTH + 1), (1 << 20,) * (CONTEXT_LENGTH + 1)):
        assert refused(submit(text=None, token_ids=ids)).cause is Cause.TOO_LONG
    assert refused(submit(text=None, token_ids=(1 << 20,) * CONTEXT_LENGTH)).cause is Cause.INVALID


@pytest.mark.parametrize("grammar", [None, Grammar(GrammarKind.REGEX, "a")])
def test_a_grammar_that_waits_for_no_reasoning_stays_as_it_is_within_one(grammar: Grammar | None) -> None:
    assert _within_reasoning(SamplingParameters(grammar=grammar)).grammar is grammar
