"""Chat templates render what the model was trained on, refuse what they cannot, and cannot harm their host."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from pawl.actors.text.invalid import InvalidRequest
from pawl.actors.text.template import ChatTemplate
from pawl.actors.text.vocabulary import Vocabulary
from tests.actors.vocabularies import byte_level, smollm2

NOW = datetime(2026, 3, 9, tzinfo=UTC)
HELLO = [{"role": "user", "content": "hello"}]


def with_templates(**templates: str) -> ChatTemplate:
    vocabulary = Vocabulary(byte_level().tokenizer, bos_token="<s>", eos_token="</s>", chat_templates=templates)
    return ChatTemplate(vocabulary)


def render(source: str, messages: list[dict[str, Any]] = HELLO, **options: Any) -> str:
    return with_templates(default=source).render(messages, options, NOW)


def test_smollm2_renders_its_own_format() -> None:
    text = ChatTemplate(smollm2()).render(HELLO, {}, NOW)
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_generation_prompt_can_be_left_out() -> None:
    with_prompt = ChatTemplate(smollm2()).render(HELLO, {}, NOW)
    without = ChatTemplate(smollm2()).render(HELLO, {"add_generation_prompt": False}, NOW)
    assert with_prompt == without + "<|im_start|>assistant\n"


@pytest.mark.parametrize("before", [{}, {"known": 1}])
def test_what_no_option_may_set_is_refused_wherever_it_stands(before: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="takes no 'range'") as caught:
        render("{{ known }}", **before, range=3)
    assert caught.value.param == "range"


def test_text_parts_become_one_text() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert render("{{ messages[0].content }}", [{"role": "user", "content": parts}]) == "one\ntwo"


def test_a_template_knows_the_special_tokens_the_date_and_plain_json() -> None:
    source = "{{ bos_token }}{{ eos_token }}{{ strftime_now('%d %b %Y') }}{{ tools | tojson }}"
    assert render(source, tools=[{"a": "<é>"}]) == '<s></s>09 Mar 2026[{"a": "<é>"}]'


def test_tools_choose_the_template_made_for_them() -> None:
    template = with_templates(default="plain", tool_use="{{ tools | length }} tools")
    assert template.render(HELLO, {"tools": [{}, {}]}, NOW) == "2 tools"
    assert template.render(HELLO, {"tools": None}, NOW) == "plain"


def test_arguments_of_tool_calls_reach_the_template_as_objects() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    messages = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    source = "{{ messages[0].tool_calls[0].function.arguments.x + 1 }}[{{ messages[0].content }}]"
    assert render(source, messages) == "2[]"


def test_words_in_which_the_assistant_refused_are_what_it_said() -> None:
    source = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    parts = [{"type": "text", "text": "Well."}, {"type": "refusal", "refusal": "No."}]
    messages = [
        {"role": "assistant", "content": parts},
        {"role": "assistant", "content": None, "refusal": "Never."},
        {"role": "assistant", "content": "Yes.", "refusal": None},
        {"role": "assistant", "content": None, "refusal": 5},
    ]
    assert render(source, messages) == "[Well.\nNo.][Never.][Yes.][]"


def test_marks_for_training_and_loop_controls_are_understood() -> None:
    source = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}"
    assert render(source, HELLO * 2) == "hello"


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ([{"content": "no role"}], "messages[0]"),
        ([{"role": 1, "content": "x"}], "messages[0]"),
        (["text"], "messages[0]"),
        ([{"role": "", "content": "x"}], "messages[0].role"),
        ([*HELLO, {"role": "user ", "content": "x"}], "messages[1].role"),
        ([{"role": "us\ner", "content": "x"}], "messages[0].role"),
        ([{"role": "r" * 65, "content": "x"}], "messages[0].role"),
        ([{"role": "User", "content": "x"}], "messages[0].role"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]"),
        ([{"role": "assistant", "content": [{"type": "refusal", "text": "x"}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": ["text"], "text": "x"}]}], "messages[0].content[0]"),
        ([{"role": "assistant", "tool_calls": {}}], "messages[0].tool_calls"),
        ([{"role": "assistant", "tool_calls": [{"function": {}}]}], "messages[0].tool_calls[0]"),
        ([{"role": "assistant", "tool_calls": [{"function": "f"}]}], "messages[0].tool_calls[0]"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
            "messages[0].tool_calls[0].function.arguments",
        ),
    ],
)
def test_malformed_messages_are_refused_by_place(messages: list[Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        render("{{ messages }}", messages)
    assert caught.value.param == param
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"type": "text"}, "messages[0].content[0].text must be a string"),
        ({"type": "text", "text": None}, "messages[0].content[0].text must be a string"),
        ({"type": "refusal", "text": "x"}, "messages[0].content[0].refusal must be a string"),
        ("x", "messages[0].content[0] must be an object with type and text"),
        ({"text": "x"}, "messages[0].content[0] is of type 'None'; this model reads parts of type 'text' only"),
    ],
)
def test_what_is_wrong_with_a_part_is_said(part: Any, words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        render("{{ messages }}", [{"role": "assistant", "content": [part]}])
    assert str(caught.value) == words


def test_an_option_that_the_template_does_not_read_changes_nothing() -> None:
    assert render("{{ messages[0].content }}", enable_thinking=False, documents=[]) == "hello"


@pytest.mark.parametrize("calls", [[], None])
def test_empty_tool_calls_are_none(calls: Any) -> None:
    messages = [{"role": "assistant", "content": "hi", "tool_calls": calls}]
    assert render("{% if 'tool_calls' in messages[0] %}called{% else %}said{% endif %}", messages) == "said"


def test_arguments_nested_without_end_are_refused_by_place() -> None:
    call = {"function": {"name": "f", "arguments": "[" * 100_000 + "]" * 100_000}}
    with pytest.raises(InvalidRequest, match="arguments is not JSON"):
        render("{{ messages }}", [{"role": "assistant", "tool_calls": [call]}])


@pytest.mark.parametrize("option", ["tools", "messages", "bos_token", "raise_exception"])
def test_tools_without_a_place_and_the_templates_own_names_are_refused(option: str) -> None:
    with pytest.raises(InvalidRequest, match=option):
        render("{{ messages[0].content }}", **{option: [1]})


def test_the_templates_own_refusal_reaches_the_client() -> None:
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize(
    "source", ["{{ messages[0].content + 1 }}", "{{ messages.x.y }}", "{{ 1 // 0 }}", "{{ nothing() }}"]
)
def test_an_error_inside_the_template_is_the_requests_error(source: str) -> None:
    with pytest.raises(InvalidRequest, match="chat template refused"):
        render(source)


def test_a_model_without_a_template_says_so() -> None:
    with pytest.raises(InvalidRequest, match="no chat template"):
        with_templates().render(HELLO, {}, NOW)


@pytest.mark.parametrize("source", ["{{ " + "(" * 2000 + "1" + ")" * 2000 + " }}", "{% if 1 %}" * 3000])
def test_a_template_too_deep_to_compile_is_reported_as_one_that_does_not(source: str) -> None:
    with pytest.raises(InvalidRequest, match="does not compile") as refused:
        render(source)
    assert refused.value.status == 422


def test_a_template_that_does_not_compile_is_reported_when_it_is_used() -> None:
    with pytest.raises(InvalidRequest, match="line 2"):
        render("\n{% if %}")


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(3000) %}{% for b in range(3000) %}{% endfor %}{% endfor %}",
        "{% for a in 'xxxxxxxxxx' %}" * 7 + "{% endfor %}" * 7,
        "{% set text = 'x' * 3000000 %}",
        "{% set text = 3000000 * 'x' %}",
        "{{ 9 ** 9 ** 9 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for a in range(9000) %}{% for b in range(99) %}0123456789{% endfor %}{% endfor %}",
        "{% set n = namespace(t='x') %}{% for a in range(26) %}{% set n.t = n.t + n.t %}{% endfor %}",
        "{% set n = namespace(t='x') %}{% for a in range(26) %}{% set n.t = n.t ~ n.t %}{% endfor %}",
        "{% set n = namespace(t=[1]) %}{% for a in range(26) %}{% set n.t = n.t + n.t %}{% endfor %}",
        "{{ 'x'.center(1000000000) | length }}",
        "{{ 'x'.ljust(width) | length }}".replace("width", "1000000000"),
        "{{ 'x'.zfill(1000000000) | length }}",
        "{{ 'x' | center(1000000000) | length }}",
        "{{ ('\t' * 90000).expandtabs(90000) | length }}",
        "{{ ('x' * 90000).replace('x', 'y' * 90000) | length }}",
        "{{ ('x' * 90000) | replace('x', 'y' * 90000) | length }}",
        "{{ ('x' * 90000).join(range(90000) | map('string') | list) | length }}",
        "{{ range(90000) | map('string') | list | join('x' * 90000) | length }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (1000000000, 1) }}",
        "{{ '{:1000000000}'.format(1) | length }}",
        "{{ '{:{}}'.format(1, 1000000000) | length }}",
        "{{ ('\n' * 90000) | indent(90000) | length }}",
        "{{ messages | tojson(indent=1000000000) | length }}",
        "{{ lipsum(n=100000) }}",
        "{% for a in 'x' * 90000 %}{% for b in 'x' * 90000 %}{% endfor %}{% endfor %}",
        "{% for a in 'x' * 9000 %}{% for b in 'xyz' * 900 | list %}{% endfor %}{% endfor %}",
        "{% set n = namespace(x=9) %}{% for a in range(40) %}{% set n.x = n.x * n.x %}{% endfor %}",
    ],
)
def test_work_and_text_are_bounded(source: str) -> None:
    with pytest.raises(InvalidRequest):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{{ raise_exception.__globals__.keys() }}",
        "{% include '/etc/passwd' %}",
        "{{ strftime_now.__self__.__class__.__subclasses__() }}",
    ],
)
def test_the_sandbox_holds(source: str) -> None:
    with pytest.raises(InvalidRequest):
        render(source)


def test_one_rendering_does_not_use_up_the_budget_of_the_next() -> None:
    template = with_templates(default="{% for a in range(1500000) %}{% endfor %}done")
    assert [template.render(HELLO, {}, NOW) for _ in range(3)] == ["done"] * 3


def test_tools_stand_in_words_where_the_template_has_no_place_for_them() -> None:
    source = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    tool = {"type": "function", "function": {"name": "add"}}
    words = render(source, HELLO, tools=[tool])
    assert words.startswith("system: ")
    assert '{"name": "add"}' in words
    assert render("{{ tools | length }}", HELLO, tools=[tool]) == "1"


@pytest.mark.parametrize("tools", [5, [5], "add"])
def test_tools_that_are_no_list_of_objects_are_refused(tools: Any) -> None:
    with pytest.raises(InvalidRequest) as error:
        render("{{ messages }}", HELLO, tools=tools)
    assert error.value.param == "tools"


def test_developers_are_the_system_of_templates_that_do_not_know_them() -> None:
    source = "{% for m in messages %}{{ m.role }}{% endfor %}"
    messages = [{"role": "developer", "content": "x"}]
    assert render(source, messages) == "system"
    assert render(source + "{# developer #}", messages) == "developer"


@pytest.mark.parametrize(
    ("source", "content", "prompt"),
    [
        ("{% for m in messages %}[{{ m.content }}]{% endfor %}{{ add_generation_prompt }}", "So, ", "[hi][So, "),
        ("{% for m in messages %}[{{ m.content | trim }}]{% endfor %}", " So, ", "[hi][So,"),
        ("{% for m in messages %}[{{ m.content }}]{% endfor %}", "hi", "[hi][hi"),
    ],
)
def test_a_prompt_can_end_within_its_last_message(source: str, content: str, prompt: str) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": content}]
    assert render(source, messages, continue_final_message=True) == prompt


@pytest.mark.parametrize("content", ["", " ", "gone"])
def test_a_last_message_that_is_not_in_the_prompt_cannot_be_gone_on_with(content: str) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": content}]
    with pytest.raises(InvalidRequest) as error:
        render("{{ messages[0].content }}", messages, continue_final_message=True)
    assert error.value.param == "continue_final_message"


def any_role(messages: list[dict[str, Any]], source: str, **options: Any) -> str:
    """The prompt, or the field that is refused."""
    try:
        return render(source, messages, **options)
    except InvalidRequest as error:
        return str(error.param)


def test_a_role_that_the_template_makes_something_of_is_taken_whatever_its_name() -> None:
    plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    critic = [*HELLO, {"role": "critic 2", "content": "no"}]
    assert any_role(critic, plain) == "user: hello\ncritic 2: no\n"
    assert any_role([{"role": "User", "content": "x"}], "{% if messages[0].role == 'User' %}yes{% endif %}") == "yes"
    alternate = "{% if messages | length < 2 %}{{ raise_exception('too few') }}{% endif %}ok"
    assert any_role(critic, alternate) == "ok"


def test_a_role_that_the_template_passes_over_is_refused_by_name() -> None:
    """The model would never read what it says."""
    choosy = "{% for m in messages %}{% if m.role in ('system', 'user') %}{{ m.content }}{% endif %}{% endfor %}"
    assert any_role([*HELLO, {"role": "asistant", "content": "no"}], choosy) == "messages[1].role"
    tool = {"type": "function", "function": {"name": "add"}}
    assert any_role([*HELLO, {"role": "critic", "content": "no"}], choosy, tools=[tool]) == "messages[1].role"
    assert any_role([*HELLO, {"role": "critic", "content": ""}], choosy) == "hello", "it says nothing"
    assert any_role([*HELLO, {"role": "assistant", "content": "no"}], choosy) == "hello", (
        "a usual one is the template's"
    )
