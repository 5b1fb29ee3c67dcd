"""What has a bound may reach it, and not go beyond."""

from __future__ import annotations

import math

import pytest

from pawl.actors import weight_questions
from pawl.actors.sampling import GREEDY_BELOW
from pawl.actors.stager import LONGEST_REASON, shortened
from pawl.actors.text import sandbox, vocabulary
from pawl.actors.text.conversion import UnsupportedVocabulary
from pawl.actors.text.invalid import MAX_ECHO, clipped, quoted
from pawl.actors.text.sandbox import TemplateBudgetExceeded, bounded
from pawl.actors.text.vocabulary import Vocabulary
from pawl.actors.weight_questions import GetWeights
from pawl.gpu.ghost.runner import Ghost
from tests.actors.test_sampling import sampling_of
from tests.actors.vocabularies import byte_level_metadata


def test_words_of_a_client_are_cut_behind_so_many_characters() -> None:
    for cut, most in ((clipped, 2 * MAX_ECHO), (shortened, LONGEST_REASON)):
        whole = "x" * most
        assert cut(whole) == whole
        assert cut(f"{whole}y").startswith(whole)
        assert "y" not in cut(f"{whole}y")
    assert quoted("x" * MAX_ECHO) == repr("x" * MAX_ECHO)
    assert quoted("x" * MAX_ECHO + "y") == f"{'x' * MAX_ECHO!r}… ({MAX_ECHO + 1} characters)"


def test_a_rendering_and_a_template_have_so_many_characters_at_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_TEXT", 5)
    assert bounded(["abc", "", "de"]) == "abcde"
    with pytest.raises(TemplateBudgetExceeded):
        bounded(["abc", "def"])
    monkeypatch.setattr(vocabulary, "MOST_TEMPLATE_BYTES", 9)
    templates = {"tokenizer.chat_template": "x" * 9, "tokenizer.chat_template.tools": ""}
    assert len(Vocabulary.from_gguf(byte_level_metadata(**templates)).chat_templates["default"]) == 9
    for name in templates:
        with pytest.raises(UnsupportedVocabulary, match="a chat template has more than"):
            Vocabulary.from_gguf(byte_level_metadata(**templates | {name: "x" * 10}))


def test_a_temperature_is_greedy_just_below_what_logits_can_be_divided_by() -> None:
    assert sampling_of({"temperature": GREEDY_BELOW}).temperature == GREEDY_BELOW
    assert sampling_of({"temperature": math.nextafter(GREEDY_BELOW, 0.0)}).temperature == 0.0


def test_so_many_numbers_of_a_weight_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ghost = Ghost(num_pages=4, page_size=2, num_slots=2, max_context=8)
    questions = weight_questions.WeightQuestions(ghost)
    told = []
    for most in (1, 0):
        monkeypatch.setattr(weight_questions, "MOST_VALUES", most)
        told.append(questions.answer(GetWeights(name="ghost.first")))
    assert [(outcome.ok, len(outcome.facts.get("values", ()))) for outcome in told] == [(True, 1), (False, 0)]
    assert told[1].message == "1 numbers are more than the 0 of a reply: lower truncate_size"
