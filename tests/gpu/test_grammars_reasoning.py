"""A grammar may begin where a model's reasoning ends; until then everything may be said, but not the end."""

from __future__ import annotations

import pytest

from pawl.gpu.ghost.language import END_TOKEN
from pawl.gpu.grammars.base import Matcher
from pawl.gpu.grammars.cache import Grammars
from pawl.gpu.grammars.plain import Plain
from pawl.lifecycle.grammar import Grammar, GrammarKind, Reasoning
from tests.gpu.grammar_tools import allowed, ghost_words

A, B, THINK, DONE = (ord(letter) for letter in "ab<>")
ALL = len(ghost_words().entries)


def grammars() -> Grammars:
    return Grammars("plain", Plain, ghost_words())


def matcher(pattern: str = "ab", **reasoning: object) -> Matcher:
    grammar = Grammar(GrammarKind.REGEX, pattern, Reasoning(end=DONE, **reasoning))  # type: ignore[arg-type]
    return grammars().get(grammar).matcher()


def said(matcher: Matcher, *tokens: int) -> Matcher:
    assert all(map(matcher.accept, tokens))
    return matcher


def options(matcher: Matcher) -> list[int]:
    return [int(token) for token in allowed(matcher, ghost_words())]


def test_within_the_reasoning_everything_may_come_but_the_end() -> None:
    thinking = said(matcher(inside=True), B, B, A)
    assert set(range(ALL)) - set(options(thinking)) == {END_TOKEN}
    assert not thinking.accept(END_TOKEN)
    assert options(said(thinking, DONE)) == [A]
    assert options(said(thinking, A, B)) == [END_TOKEN]
    assert not thinking.terminated
    assert said(thinking, END_TOKEN).terminated


def test_a_model_may_begin_to_reason_or_with_the_grammar() -> None:
    assert options(matcher(begin=THINK)) == [THINK, A]
    assert options(said(matcher(begin=THINK), THINK, THINK, B, DONE)) == [A]
    assert options(said(matcher(begin=THINK), A)) == [B]
    assert not matcher(begin=THINK).accept(DONE)
    assert options(matcher()) == [A]


@pytest.mark.parametrize("inside", [False, True])
def test_what_is_taken_back_is_as_if_it_had_not_been(inside: bool) -> None:
    output = [*([] if inside else [THINK]), B, DONE, A, B]
    for length in range(len(output) + 1):
        for count in range(length + 1):
            back = said(matcher(begin=THINK, inside=inside), *output[:length])
            fork = back.fork()
            back.rollback(count)
            fresh = said(matcher(begin=THINK, inside=inside), *output[: length - count])
            assert options(back) == options(fresh)
            assert options(said(back, *output[length - count : length])) == options(fork)
    begun = said(matcher(begin=THINK), A)
    begun.rollback(1)
    assert options(begun) == [THINK, A]


def test_grammars_that_differ_in_reasoning_alone_are_compiled_and_held_as_one() -> None:
    found = grammars()
    plain = Grammar(GrammarKind.REGEX, "ab")
    after = Grammar(GrammarKind.REGEX, "ab", Reasoning(end=DONE))
    found.hold(plain)
    found.hold(after)
    assert found.num_held == 2
    found.release(plain)
    found.release(after)
    assert found.num_held == 0
