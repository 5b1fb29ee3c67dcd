"""Hostile grammars end at a limit, and cost the next grammar nothing but the start of another process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from pawl.gpu.grammars import child
from pawl.gpu.grammars.base import Compiled, GrammarRefused, NotCompiled, Words
from pawl.gpu.grammars.cache import AGAIN_S, Grammars
from pawl.gpu.grammars.compiling import TriedOut
from pawl.gpu.grammars.llguidance import LLCompiled, LLGuidance
from pawl.gpu.grammars.plain import Plain
from pawl.gpu.grammars.select import choose_backend
from pawl.gpu.grammars.xgrammar import XCompiled, XGrammar
from pawl.http.tool_fields import Tool, ToolFunction
from pawl.http.tool_grammar import MOST_CALLS, forced_calls
from pawl.lifecycle.grammar import Grammar, GrammarKind, Reasoning
from tests.gpu import fragile_library
from tests.gpu.grammar_tools import accepts, ghost_words

SOUND = Grammar(GrammarKind.REGEX, "ab")
SLOW = Grammar(
    GrammarKind.JSON_SCHEMA,
    json.dumps({"properties": {f"p{i}": {"type": "string", "pattern": f"^[a-z]{{1,{i}}}$"} for i in range(1, 2000)}}),
)
HOSTILE = {
    "nested": Grammar(GrammarKind.REGEX, "(" * 20_000 + "a" + ")" * 20_000),
    "deep": Grammar(GrammarKind.JSON_SCHEMA, '{"items":' * 5_000 + "{}" + "}" * 5_000),
    "many": SLOW,
    "large": Grammar(GrammarKind.JSON_SCHEMA, json.dumps({"enum": [f"{i}-{i * i}" for i in range(200_000)]})),
}
AWKWARD = {
    "back-tracking": (Grammar(GrammarKind.REGEX, "(a*)*(a*)*(a|a)*b"), b"aaaab"),
    "ambiguous": (Grammar(GrammarKind.EBNF, 'root ::= s\ns ::= s s | "a" | s s s | ""'), b"aaaa"),
    "left recursive": (Grammar(GrammarKind.EBNF, 'root ::= root "a" | "b"'), b"baaa"),
    "counted": (Grammar(GrammarKind.REGEX, "((a{1,50}){1,50}){1,50}"), b"aaaa"),
}


@pytest.fixture(scope="module", params=[XGrammar, LLGuidance])
def impatient(request: pytest.FixtureRequest) -> Iterator[TriedOut]:
    backend: TriedOut = request.param(ghost_words(), seconds=1)
    yield backend
    backend.close()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_grammar_is_refused_and_the_next_one_compiles(impatient: TriedOut, name: str) -> None:
    if impatient.name == "xgrammar":
        with pytest.raises(GrammarRefused):
            impatient.compile(HOSTILE[name])
    else:
        with suppress(GrammarRefused):  # there are some that it has no trouble with
            assert not impatient.compile(HOSTILE[name]).matcher().accept(ord("z"))
    assert accepts(impatient.compile(SOUND), ghost_words(), list(b"ab"))


def test_what_a_clock_ended_may_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = XGrammar(ghost_words())
    try:
        assert accepts(backend.compile(SOUND), ghost_words(), list(b"ab"))
        monkeypatch.setattr("pawl.gpu.grammars.compiling.WALL", 0)
        with pytest.raises(NotCompiled, match="takes more than 5 s"):
            backend.compile(SLOW)
    finally:
        backend.close()


@pytest.mark.parametrize("name", AWKWARD)
@pytest.mark.parametrize("backend", ["xgrammar", "llguidance"])
def test_a_grammar_that_others_stumble_over_is_followed(name: str, backend: str) -> None:
    grammar, text = AWKWARD[name]
    compiled = choose_backend(backend)[1](ghost_words()).compile(grammar)
    assert accepts(compiled, ghost_words(), list(text))
    assert not accepts(compiled, ghost_words(), list(text + b"z"))


def ordinary_tools(count: int) -> list[Tool]:
    """With five parameters each."""
    parameters: dict[str, Any] = {
        "path": {"type": "string", "description": "Where it lies, as an absolute path"},
        "limit": {"type": "integer", "minimum": 0, "maximum": 100},
        "mode": {"enum": ["read", "write"]},
        "recursive": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string"}},
    }
    schema = {"type": "object", "properties": parameters, "required": ["path", "mode"]}
    return [Tool("function", ToolFunction(f"tool_{number}", parameters=schema)) for number in range(count)]


@pytest.mark.parametrize("backend", ["xgrammar", "llguidance"])
def test_as_many_tools_as_a_call_may_have_make_a_grammar_that_can_be_had(backend: str) -> None:
    words = ghost_words()
    grammars = Grammars(backend, choose_backend(backend)[1], words)
    compiled = grammars.get(forced_calls(ordinary_tools(128), MOST_CALLS))
    assert compiled.num_bytes < 10 << 20
    for number in range(128):
        for mode in ("read", "move"):
            call = {"name": f"tool_{number}", "arguments": {"path": "/a", "mode": mode}}
            assert accepts(compiled, words, list(json.dumps([call]).encode())) == (mode == "read")
    assert not accepts(compiled, words, list(b'[{"name": "tool_128", "arguments": {"path": "/a", "mode": "read"}}]'))


def test_what_is_wrong_is_told_without_the_condition_that_did_not_hold() -> None:
    grammar = Grammar(GrammarKind.STRUCTURAL_TAG, '{"type": "structural_tag", "format": {"type": "nosuch"}}')
    with pytest.raises(GrammarRefused, match=r"^the structural_tag is not valid: Invalid structural tag error: "):
        choose_backend("xgrammar")[1](ghost_words()).compile(grammar)


@pytest.mark.parametrize("how", ["crash", "recurse"])
def test_a_library_that_crashes_does_so_where_it_is_tried_out(how: str) -> None:
    backend = TriedOut(fragile_library.Library, ghost_words(), seconds=5)
    try:
        for _ in range(2):
            with pytest.raises(GrammarRefused):
                backend.compile(Grammar(GrammarKind.REGEX, how))
            assert accepts(backend.compile(SOUND), ghost_words(), list(b"ab"))
    finally:
        backend.close()


class Reluctant(Plain):
    """Has no time until it is told to hurry, and takes no more than so many characters."""

    hurries = False
    most = 100
    num_compiled = 0

    def compile(self, grammar: Grammar) -> Compiled:
        self.num_compiled += 1
        if not self.hurries:
            raise NotCompiled("too slow")
        if len(grammar.text) > self.most:
            raise GrammarRefused(f"{len(grammar.text)} characters")
        return super().compile(grammar)


def cache(limit_bytes: int = 1 << 30, clock: Callable[[], float] = float) -> tuple[Grammars, Reluctant]:
    backend = Reluctant(ghost_words())
    return Grammars("plain", lambda words: backend, ghost_words(), limit_bytes, clock=clock), backend


def test_a_grammar_that_was_refused_costs_nothing_when_it_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pawl.gpu.grammars.cache.MAX_REFUSED", 2)
    grammars, backend = cache()
    backend.hurries, backend.most = True, 2

    def refused(text: str, reasoning: Reasoning | None = None) -> str:
        with pytest.raises(GrammarRefused) as told:
            grammars.hold(Grammar(GrammarKind.REGEX, text, reasoning))
        return str(told.value)

    assert [refused("abc"), refused("abc"), refused("abc", Reasoning(7))] == ["3 characters"] * 3
    with pytest.raises(GrammarRefused):
        grammars.get(Grammar(GrammarKind.CHOICE, "abc"))  # another kind is another grammar
    assert (backend.num_compiled, grammars.num_held) == (2, 0)
    refused("abc")
    refused("abcd")  # and now there are more than are remembered
    refused("abc")
    assert backend.num_compiled == 3
    with pytest.raises(GrammarRefused):
        grammars.get(Grammar(GrammarKind.CHOICE, "abc"))
    assert backend.num_compiled == 4


def test_one_that_leads_nowhere_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pawl.gpu.grammars.cache.is_stuck", lambda matcher, words: True)
    grammars, backend = cache()
    backend.hurries = True
    for _ in range(3):
        with pytest.raises(GrammarRefused, match="nothing at all"):
            grammars.hold(SOUND)
    assert backend.num_compiled == 1


def test_a_grammar_for_which_there_was_no_time_is_tried_again_but_not_at_once() -> None:
    now = [0.0]
    grammars, backend = cache(clock=lambda: now[0])
    for now[0] in (0.0, 1.0, AGAIN_S - 1):
        with pytest.raises(GrammarRefused, match="too slow"):
            grammars.hold(SOUND)
    assert (grammars.num_held, backend.num_compiled) == (0, 1)
    backend.hurries, now[0] = True, AGAIN_S
    grammars.hold(SOUND)
    assert (grammars.num_held, backend.num_compiled) == (1, 2)


def test_equal_grammars_are_compiled_once_and_those_in_use_are_not_dropped() -> None:
    grammars, backend = cache(limit_bytes=1)
    backend.hurries = True
    grammars.hold(SOUND)
    grammars.hold(Grammar(GrammarKind.REGEX, "ab"))
    for number in range(5):
        grammars.get(Grammar(GrammarKind.REGEX, f"a{{{number}}}"))
    assert grammars.get(SOUND) is grammars.get(SOUND)
    assert backend.num_compiled == 6
    grammars.release(SOUND)
    grammars.get(SOUND)
    assert backend.num_compiled == 6
    grammars.release(SOUND)
    grammars.get(SOUND)
    assert backend.num_compiled == 7


def test_what_takes_too_much_when_compiled_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pawl.gpu.grammars.cache.MAX_COMPILED", 100)
    grammars, backend = cache()
    backend.hurries = True
    with pytest.raises(GrammarRefused, match="when it is compiled"):
        grammars.get(SOUND)


def test_a_vocabulary_is_told_from_another_by_its_fingerprint() -> None:
    words = ghost_words()
    other = Words([*words.entries[:-1], b"x"], words.end_ids)
    assert words.fingerprint() == Words(tuple(words.entries), words.end_ids).fingerprint() != other.fingerprint()


FAR = {"type": "string", "maxLength": 1000}
COUNTED = {
    "long": FAR,
    "at least": {"type": "string", "minLength": 129},
    "two": {
        "type": "object",
        "properties": {"a": FAR, "b": {"type": "string", "maxLength": 4000}},
        "required": ["a"],
    },
    "deep": {"type": "array", "items": {"anyOf": [{"type": "null"}, FAR]}},
}


@pytest.mark.parametrize("name", COUNTED)
def test_long_strings_are_counted_by_the_library_whose_masks_do_not_try_all_tokens(name: str) -> None:
    schema, words = COUNTED[name], ghost_words()
    call = {"type": "tag", "begin": "<f>", "content": {"type": "json_schema", "json_schema": schema}, "end": "</f>"}
    tag = {"type": "structural_tag", "format": {"type": "triggered_tags", "triggers": ["<f"], "tags": [call]}}
    backend = choose_backend("xgrammar")[1](words)
    for grammar in (
        Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema)),
        Grammar(GrammarKind.STRUCTURAL_TAG, json.dumps(tag)),
    ):
        assert isinstance(backend.compile(grammar), LLCompiled)


def test_what_that_library_refuses_and_what_is_short_stays() -> None:
    words = ghost_words()
    backend = choose_backend("xgrammar")[1](words)
    names = {"type": "object", "additionalProperties": FAR, "propertyNames": {"pattern": "^a+$"}}
    for schema in (names, {"type": "string", "maxLength": 128}, {"properties": {"maxLength": {"type": "string"}}}):
        compiled = backend.compile(Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema)))
        assert isinstance(compiled, XCompiled), schema
    with pytest.raises(GrammarRefused, match="not valid"):
        backend.compile(Grammar(GrammarKind.JSON_SCHEMA, '{"maxLength": 1000'))


def test_the_length_is_kept_by_either() -> None:
    words = ghost_words()
    for name in ("xgrammar", "llguidance"):
        compiled = choose_backend(name)[1](words).compile(Grammar(GrammarKind.JSON_SCHEMA, json.dumps(FAR)))
        assert accepts(compiled, words, list(b'"' + b"a" * 1000 + b'"'))
        assert not accepts(compiled, words, list(b'"' + b"a" * 1001 + b'"'))


class Slowing:
    """A matcher whose masks take long from the one of a place on."""

    def __init__(self, slow_from: int, clock: list[float], place: int = 0) -> None:
        self._slow_from, self._clock, self._place = slow_from, clock, place
        self.terminated = False

    def fill(self, bits: Any) -> None:
        bits[:] = 0
        bits[0] = 0b110
        self._clock[0] += 2 * child.MASK_SECONDS if self._place >= self._slow_from else 0.0

    def accept(self, token: int) -> bool:
        assert token in (1, 2)
        self._place += 1
        return True

    def fork(self) -> Slowing:
        return Slowing(self._slow_from, self._clock, self._place)

    def matcher(self) -> Slowing:
        return self.fork()


@pytest.mark.parametrize("slow_from", range(child.LOOKED_AT + 1))
def test_a_mask_that_takes_long_is_found_though_the_first_does_not(
    slow_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(child, "time", SimpleNamespace(process_time=lambda: clock[0]))
    compiled: Any = Slowing(slow_from, clock)
    library: Any = SimpleNamespace(compile=lambda grammar: compiled)
    refusal = child._tried(library, ghost_words(), SOUND, str).refusal
    assert ("too complex" in refusal) == (slow_from < child.LOOKED_AT)


IGNORED = {
    "beside a bound": ({"type": "integer", "minimum": 0, "multipleOf": 5}, b"10", b"7"),
    "large": ({"type": "integer", "multipleOf": 2000}, b"4000", b"2001"),
    "anchors of alternatives": ({"type": "string", "pattern": "^a$|^b$"}, b'"b"', b'"ab"'),
}


@pytest.mark.parametrize("name", IGNORED)
def test_what_the_library_would_ignore_is_kept_by_the_other(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    schema, right, wrong = IGNORED[name]
    words = ghost_words()
    compiled = choose_backend("xgrammar")[1](words).compile(Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema)))
    assert accepts(compiled, words, list(right))
    assert not accepts(compiled, words, list(wrong))
    assert capfd.readouterr().err == "", "a log has no grammars"


@pytest.mark.parametrize(
    ("grammar", "told"),
    [
        (
            Grammar(GrammarKind.JSON_SCHEMA, '{"type": "string", "pattern": "(?=a)b"}'),
            "Lookahead assertion is not supp",
        ),
        (Grammar(GrammarKind.REGEX, "a^b"), "'^' should be at the start of the regex"),
    ],
)
def test_what_neither_keeps_is_refused_with_the_warning_and_the_next_one_compiles(
    grammar: Grammar, told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ghost_words()
    backend = choose_backend("xgrammar")[1](words)
    with pytest.raises(GrammarRefused, match="cannot be kept as a whole: ") as caught:
        backend.compile(grammar)
    assert told in str(caught.value)
    assert isinstance(backend.compile(SOUND), XCompiled)
    assert capfd.readouterr().err == ""
