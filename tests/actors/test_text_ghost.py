"""The ghost's vocabulary: any text goes in and comes out the same, and characters arrive in parts."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pawl.actors.text.ghost import ghost_vocabulary
from pawl.actors.text.incremental import decoder_for
from pawl.actors.text.template import ChatTemplate
from pawl.actors.text.vocabulary import Vocabulary
from pawl.gpu.ghost.language import END_TOKEN, PIECES, START_TOKEN, VOCABULARY_SIZE
from pawl.gpu.ghost.oracle import expected
from tests.actors.vocabularies import untimed


@cache
def vocabulary() -> Vocabulary:
    return ghost_vocabulary()


@untimed
@given(st.text())
def test_any_text_comes_back_as_it_was(text: str) -> None:
    tokens = vocabulary().encode(text).tolist()
    assert vocabulary().decode(tokens, skip_special=False) == text
    decoder = decoder_for(vocabulary(), skip_special=False)
    assert "".join(map(decoder.push, tokens)) + decoder.flush() == text


def test_ids_are_those_of_the_language() -> None:
    words = vocabulary()
    assert words.size == VOCABULARY_SIZE
    assert words.special_ids == {START_TOKEN, END_TOKEN}
    assert words.eos_ids == (END_TOKEN,)
    assert words.byte_table is not None
    assert words.byte_table.entries[:START_TOKEN] == [*(bytes([byte]) for byte in range(256)), *PIECES]
    assert words.encode("aé😀€").tolist() == [0x61, 0xC3, 0xA9, 257, 0x80, 258, 0xAC]


def test_a_conversation_becomes_turns_and_begins_the_answer() -> None:
    template = ChatTemplate(vocabulary())
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    prompt = template.render(messages, {}, datetime(2026, 1, 1, tzinfo=UTC))
    assert prompt == "<|start|>system\nBe brief.<|end|>\n<|start|>user\nWhy?<|end|>\n<|start|>assistant\n"
    tokens = vocabulary().encode(prompt, add_special=False).tolist()
    assert (tokens.count(START_TOKEN), tokens.count(END_TOKEN)) == (3, 2)
    assert vocabulary().decode(tokens) == prompt.replace("<|start|>", "").replace("<|end|>", "")


@pytest.mark.parametrize("prompt", ["a", "Tell me about rivers."])
def test_what_the_ghost_says_arrives_in_parts_and_whole(prompt: str) -> None:
    tokens = expected(vocabulary().encode(prompt).tolist(), 1500)
    decoder = decoder_for(vocabulary())
    parts = [decoder.push(token) for token in tokens]
    text = "".join(parts) + decoder.flush()
    assert text == vocabulary().decode(tokens)
    assert "�" not in text[:-1]
    assert parts.count("") > 20, "tokens that only begin a character"
