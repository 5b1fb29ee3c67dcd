"""Calls and reasoning are told from text, however it is cut, and no text makes a parser fail."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pawl.actors.text.ghost import ghost_vocabulary
from pawl.actors.text.incremental import ByteDecoder
from pawl.parsers.call_object import CallObject, _Value
from pawl.parsers.calls import CallParser, PlainCalls
from pawl.parsers.events import Arguments, CallBegin, Collected, Content, Event, Parser, Reasoning
from pawl.parsers.reader import TOOL_FORMATS, Reader, format_of
from pawl.parsers.reasoning import FORMATS, ReasoningFormat, ReasoningParser
from pawl.parsers.reasoning import format_of as reasoning_format_of
from tests.mutants.mutant import Edit, Group, Mutant, planted

NAMES = ("add", "get_weather", "g")
FORMS: dict[str, Callable[..., CallParser]] = {**TOOL_FORMATS, "plain": PlainCalls}


def joined(events: list[Event]) -> list[Event]:
    collected = Collected()
    for event in events:
        collected.add(event)
    return collected.take()


def read(parser: Parser, text: str, cuts: tuple[int, ...] = ()) -> list[Event]:
    """All events of `text`, cut at these places."""
    places = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    events = [event for a, b in pairwise(places) for event in parser.push(text[a:b])]
    return joined(events + parser.close())


def calls(*given: Any) -> list[Event]:
    """Events of calls, given as name and arguments as JSON, and of text."""
    events: list[Event] = []
    for one in given:
        if isinstance(one, str):
            events.append(Content(one))
        else:
            index = sum(isinstance(event, CallBegin) for event in events)
            events += [CallBegin(index, one[0]), Arguments(index, one[1])]
    return events


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        (
            "hermes",
            'Let me see.\n<tool_call>\n{"name": "add", "arguments": {"a": "}\\"<"}}\n</tool_call>',
            calls("Let me see.", ("add", '{"a": "}\\"<"}')),
        ),
        (
            "hermes",
            '<tool_call>{"arguments": {"a": [1, {}]}, "name": "add"}</tool_call>\n'
            '<tool_call>{"name": "g"}</tool_call>.',
            calls(("add", '{"a": [1, {}]}'), ("g", "{}"), "."),
        ),
        (
            "hermes",
            '<tool_call>[{"name": "add", "arguments": {}}, {"name": "g", "arguments": null}]</tool_call>',
            calls(("add", "{}"), ("g", "{}")),
        ),
        ("hermes", '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>', calls(("add", '{"a": 1}'))),
        ("hermes", '<tool_call>{"name": "add", "arguments": {"a": 1', calls(("add", '{"a": 1'))),
        ("llama3_json", '{"name": "add", "parameters": {"a": 1}}', calls(("add", '{"a": 1}'))),
        (
            "llama3_json",
            '<|python_tag|>{"name": "add", "parameters": {}}; '
            '{"type": "function", "function": "g", "parameters": {"b": 2}}',
            calls(("add", "{}"), ("g", '{"b": 2}')),
        ),
        (
            "mistral",
            'So: [TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}, "id": "123456789"}, '
            '{"name": "g", "arguments": {}}]',
            calls("So:", ("add", '{"a": 1}'), ("g", "{}")),
        ),
        ("mistral", '[TOOL_CALLS]add{"a": 1}[TOOL_CALLS]g[ARGS]{}', calls(("add", '{"a": 1}'), ("g", "{}"))),
        ("mistral", '[TOOL_CALLS]add[CALL_ID]a1b2c3d4e[ARGS]{"a": "["}', calls(("add", '{"a": "["}'))),
        (
            "pythonic",
            "[add(a=1, b=-2.5), get_weather(city='Sao \"Paulo\"', days=[1, (2,)], more={'x': None, 'y': True})]",
            calls(
                ("add", '{"a": 1, "b": -2.5}'),
                ("get_weather", '{"city": "Sao \\"Paulo\\"", "days": [1, [2]], "more": {"x": null, "y": true}}'),
            ),
        ),
        ("pythonic", "<|python_start|>[g()]<|python_end|>", calls(("g", "{}"))),
        ("plain", '[{"name": "add", "arguments": {}}]', calls(("add", "{}"))),
    ],
)  # fmt: skip
def test_calls_are_told_from_text_in_every_format(form: str, text: str, expected: list[Event]) -> None:
    assert read(FORMS[form](NAMES), text) == expected
    assert read(FORMS[form](NAMES), text, tuple(range(len(text)))) == expected


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("hermes", "<tool_call>no object</tool_call> and <tool_call"),
        ("hermes", '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "add"'),
        ("hermes", '{"name": "add", "arguments": {}}'),
        ("llama3_json", '{"answer": {"name": "add"}}'),
        ("llama3_json", 'As JSON: {"name": "add", "parameters": {}}'),
        ("mistral", "[TOOL_CALL]"),
        ("pythonic", "[1, 2, add]"),
        ("pythonic", "[add(a=__import__('os'))]"),
        ("pythonic", "[add(1)]"),
        ("pythonic", "[unknown(a=1)]"),
    ],
)
def test_what_is_no_call_of_a_tool_that_was_offered_is_text(form: str, text: str) -> None:
    assert read(FORMS[form](NAMES), text) == [Content(text)]


PIECES = [
    '<tool_call>', '</tool_call>', '[TOOL_CALLS]', '<|python_tag|>', '<|python_start|>', '<think>', '</think>',
    '[THINK]', '[/THINK]', '{"name": "add", "arguments": {"a": 1}}', '{"name": "g"}', '"name"', '"arguments": ',
    '{"', '"}', '{', '}', '[', ']', 'add', 'g(', 'a=1', ')', ', ', ';', ':', '"', "'", '\\', ' ', '\n', 'text',
    '[ARGS]', '\\ud800', '\ud800', '9' * 30, '<', '</th', '<tool_', '[/TH',
]  # fmt: skip
UNMARKED = "ab \n\u00e9])\\<|_tolTOL"
"""Characters of texts in which there is no mark and no call."""
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=14).map("".join)
CUTS = st.lists(st.integers(0, 400), max_size=12).map(tuple)


def parsers(form: str, reasoning: str, inside: bool) -> Reader:
    return Reader(ReasoningParser(FORMATS[reasoning], inside), FORMS[form](NAMES))


@given(
    form=st.sampled_from(sorted(FORMS)),
    reasoning=st.sampled_from(sorted(FORMATS)),
    inside=st.booleans(),
    text=TEXTS,
    cuts=CUTS,
)
def test_any_cut_of_any_text_gives_the_same_deltas_joined(
    form: str, reasoning: str, inside: bool, text: str, cuts: tuple[int, ...]
) -> None:
    whole = read(parsers(form, reasoning, inside), text)
    assert read(parsers(form, reasoning, inside), text, cuts) == whole
    begun = [event.index for event in whole if isinstance(event, CallBegin)]
    assert begun == list(range(len(begun)))
    if "\ud800" not in text:
        msgspec.json.encode(whole)


@given(form=st.sampled_from(sorted(FORMS)), reasoning=st.sampled_from(sorted(FORMATS)), text=TEXTS)
def test_tokens_that_are_parts_of_characters_change_nothing(form: str, reasoning: str, text: str) -> None:
    text = text.encode(errors="replace").decode()
    decoder, reader, events = ByteDecoder(ghost_vocabulary(), True), parsers(form, reasoning, False), list[Event]()
    for byte in text.encode():
        events += reader.push(decoder.push(byte))
    events += reader.push(decoder.flush())
    assert joined(events + reader.close()) == read(parsers(form, reasoning, False), text)


@given(reasoning=st.sampled_from(sorted(FORMATS)), inside=st.booleans(), text=TEXTS)
def test_reasoning_is_what_stands_between_its_first_marks(reasoning: str, inside: bool, text: str) -> None:
    assert read(ReasoningParser(FORMATS[reasoning], inside), text) == parted(FORMATS[reasoning], inside, text)


def parted(form: ReasoningFormat, inside: bool, text: str) -> list[Event]:
    """The oracle, which has all of the text at once."""
    body = text.lstrip()
    if not body.startswith(form.begin) and not (inside or form.always):
        return [Content(text)] if text else []
    thought, _, answer = body.removeprefix(form.begin).partition(form.end)
    events = [Reasoning(thought.strip()), Content(answer.lstrip())]
    return [event for event in events if event.text]


@given(form=st.sampled_from(sorted(FORMS)), text=st.text(alphabet=UNMARKED, max_size=30))
def test_what_holds_no_mark_is_text(form: str, text: str) -> None:
    assert read(FORMS[form](NAMES), text) == ([Content(text)] if text else [])


@given(
    form=st.sampled_from(["hermes", "llama3_json", "mistral", "plain"]),
    arguments=st.lists(st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.booleans())), min_size=1),
)
def test_arguments_come_out_as_they_were_written(form: str, arguments: list[dict[str, Any]]) -> None:
    written = [json.dumps(one) for one in arguments]
    objects = [f'{{"name": "add", "arguments": {one}}}' for one in written]
    text = {
        "hermes": "\n".join(f"<tool_call>\n{one}\n</tool_call>" for one in objects),
        "llama3_json": "; ".join(objects),
        "mistral": f"[TOOL_CALLS][{', '.join(objects)}]",
        "plain": f"[{', '.join(objects)}]",
    }[form]
    assert read(FORMS[form](NAMES), text) == calls(*(("add", one) for one in written))


@given(arguments=st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8,
)))  # fmt: skip
def test_python_literals_become_json(arguments: dict[str, Any]) -> None:
    text = f"[add({', '.join(f'{name}={value!r}' for name, value in arguments.items())})]"
    begin, found = read(FORMS["pythonic"](NAMES), text)
    assert begin == CallBegin(0, "add")
    assert isinstance(found, Arguments)
    assert json.loads(found.text) == arguments


@pytest.mark.parametrize(
    ("inside", "text", "expected"),
    [
        (False, "<think>\nI add.\n</think>\n\nFive", [Reasoning("I add."), Content("Five")]),
        (True, "I </ add.\n\n</think>\nFive", [Reasoning("I </ add."), Content("Five")]),
        (True, "<think>again</think>Five", [Reasoning("again"), Content("Five")]),
        (True, "cut sho", [Reasoning("cut sho")]),
        (True, "<thi", [Reasoning("<thi")]),
        (False, "<think>\n\n</think>\n\nFive", [Content("Five")]),
        (False, " Five <think>", [Content(" Five <think>")]),
        (False, "<thi", [Content("<thi")]),
    ],
)
def test_reasoning_is_told_from_the_answer(inside: bool, text: str, expected: list[Event]) -> None:
    for cuts in ((), tuple(range(len(text)))):
        assert read(ReasoningParser(FORMATS["qwen3"], inside), text, cuts) == expected


def test_calls_may_follow_reasoning_and_later_ones_than_wanted_are_dropped() -> None:
    call = '<tool_call>{"name": "%s", "arguments": {}}</tool_call>'
    text = "<think>I call</think>\n" + call % "add" + call % "g"
    reader = Reader(ReasoningParser(FORMATS["qwen3"], False), FORMS["hermes"](NAMES), most_calls=1)
    assert read(reader, text) == [Reasoning("I call"), CallBegin(0, "add"), Arguments(0, "{}")]
    assert reader.num_calls == 1


BROKEN = {
    "the character behind a mark comes twice": Edit(ReasoningParser.push, "text[index + 1 :]", "text[index:]"),
    "a mark that was none hides the next": Edit(ReasoningParser._thinking, "self._thinking(char)", "self._mark = char"),
    "the beginning of a mark is lost at the end": Edit(ReasoningParser.close, "held = self._take()", "held = ''"),
    "white space in reasoning is lost": Edit(ReasoningParser._thinking, "self._space.append(char)", "pass"),
    "white space in text is lost": Edit(CallParser._say, "self._space.append(char)", "pass"),
    "the beginning of a mark is lost in text": Edit(CallParser._text, "for one in held:", "for one in held[1:]:"),
    "an escaped quote ends a string": Edit(_Value.feed, 'elif char == "\\\\":', 'elif char == "\\0":'),
    "arguments come twice": Edit(CallObject.take_arguments, "self._arguments = ", "_ = "),
    "calls are not counted": Edit(CallParser._call, "self.num_calls += 1", "pass"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_parser_is_found(broken: str) -> None:
    with planted(Mutant(broken, Group.OUTPUTS, "", "", broken, (BROKEN[broken],))):
        assert not all(map(reads_well, range(3000)))
    assert all(map(reads_well, range(100)))


def reads_well(seed: int) -> bool:
    """Whether the properties above hold of one random text; without Hypothesis, which would look for the smallest."""
    source = random.Random(seed)
    form, reasoning, inside = source.choice(sorted(FORMS)), source.choice(sorted(FORMATS)), source.random() < 0.5
    text = "".join(source.choices(PIECES, k=source.randint(0, 8)))
    cuts = tuple(source.randint(0, 400) for _ in range(4))
    bare = "".join(source.choices(UNMARKED, k=source.randint(0, 12)))
    written = json.dumps({"a": source.choice(['"', "\\", "x}"]), "b": [1]})
    call = f'<tool_call>{{"name": "add", "arguments": {written}}}</tool_call>'
    try:
        return (
            read(parsers(form, reasoning, inside), text, cuts) == read(parsers(form, reasoning, inside), text)
            and read(ReasoningParser(FORMATS[reasoning], inside), text) == parted(FORMATS[reasoning], inside, text)
            and read(FORMS[form](NAMES), bare) == ([Content(bare)] if bare else [])
            and read(FORMS["hermes"](NAMES), call * 2) == calls(("add", written), ("add", written))
        )
    except IndexError:
        return False


@pytest.mark.slow
def test_a_long_reply_is_read_in_time_that_grows_with_its_length_alone() -> None:
    """Half a million characters: with a copy of all so far for each, this would take minutes."""
    long = "x" * 500_000
    for text in (" " * 500_000 + "x", "<" * 500_000):
        read(ReasoningParser(FORMATS["qwen3"], True), text)
        read(FORMS["hermes"](NAMES), text)
    for text in (f'<tool_call>{{"name": "add", "arguments": {{"a": "{long}"}}}}', f'<tool_call>{{"id": "{long}"', long):
        for form in FORMS:
            read(FORMS[form](NAMES), text)


@pytest.mark.parametrize(
    ("template", "tools", "reasoning"),
    [
        ("{% for tool in tools %}<tool_call>{% endfor %}", "hermes", None),
        ("{% if tools %}[AVAILABLE_TOOLS][TOOL_CALLS]{% endif %}", "mistral", None),
        ("{{ tools }}<|python_tag|>", "llama3_json", None),
        ("{{ tools }} [func_name1(params_name1=params_value1)]", "pythonic", None),
        ("{{ tools }}<tool_call><function=f></function>", None, None),
        ("{{ tools }} in no known words", None, None),
        ("{{ messages }}", "hermes", None),
        ("{{ content.split('</think>') }}", "hermes", "qwen3"),
        ("[THINK][/THINK]", "hermes", "mistral"),
    ],
)
def test_formats_are_read_from_the_template(template: str, tools: str | None, reasoning: str | None) -> None:
    templates = {"default": template}
    assert format_of(templates) == tools
    assert reasoning_format_of(templates) == reasoning
