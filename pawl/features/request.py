"""Features of a request, and of what its client does. Prompts have two tokens, so that some beginnings are equal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pawl.features import shown
from pawl.features.row import Feature, Source
from pawl.gpu.ghost.language import END_TOKEN
from pawl.lifecycle.grammar import Grammar, GrammarKind, Reasoning

TOKENS = (97, 98)
"""Token ids of prompts: two are enough for beginnings that are equal, and for some that are not."""
LETTERS = (32, 101, 116, 97)
"""Token ids that the ghost often says: a space, e, t, a."""
STRINGS = ("e", "t ", "an", " ", "oo", "ha")
LIKELY = 60.0
"""Added to a logit: the token is the likeliest."""
ROOM = "room"
"""Not a field: tokens that one request may have on this server."""
CONTEXT = "context"
"""Not a field: tokens that one request may ask for."""
BEFORE = "before"
"""Not a field: prompts of the requests drawn before."""
TIERS = "tiers"
"""Not a field: whether the server has pages below the device. What was said long ago is fetched from there when it is
said again."""

LORAS = "loras"
"""Not a field: the server's slots for adapters."""
GRAMMARS = (
    Grammar(GrammarKind.REGEX, "[a-e]{1,3}"),
    Grammar(GrammarKind.REGEX, "(ab|c)*d?"),
    Grammar(GrammarKind.REGEX, "(e |t)+"),
    Grammar(GrammarKind.CHOICE, '["tea","the","e"]'),
    Grammar(GrammarKind.CHOICE, '["\\ud83d\\ude00","\\u20ac5"]'),
    Grammar(GrammarKind.REGEX, "[a-e]{1,3}", Reasoning(end=LETTERS[0], begin=LETTERS[2], inside=True)),
    Grammar(GrammarKind.REGEX, "(e |t)+", Reasoning(end=LETTERS[1], begin=LETTERS[2])),
)
"""Outputs that end by themselves within a few tokens, some of which could go on, and some with reasoning before."""
RIVALS: tuple[dict[str, Any], ...] = (
    {"top_logprobs": 0},
    {"top_logprobs": 2},
    {"top_logprobs": 2, "token_ids_logprob": (LETTERS[1],)},
    {"top_logprobs": 0, "token_ids_logprob": (LETTERS[0], END_TOKEN, LETTERS[0])},
)
"""What is scored beside a token: so many of the likeliest, and named ones."""
BAD_GRAMMAR = Grammar(GrammarKind.REGEX, "(a")

Values = Mapping[str, Any]
Draw = Callable[[Source, Values], dict[str, Any]]
OUTPUTS = ("schedule_equivalence", "retraction_transparency", "batch_independence")
SCORES = ("retraction_transparency", "schedule_equivalence")
STOPS = shown.STOPS
ENDS = ("silence_after_abort", "abort_is_total", "legal_lifecycle")


def _sometimes(share: float, draw: Draw) -> Draw:
    return lambda source, values: draw(source, values) if source.chance(share) else {}


def _oftener_with_tiers(share: float, with_tiers: float, draw: Draw) -> Draw:
    return lambda source, values: _sometimes(with_tiers if values[TIERS] else share, draw)(source, values)


def _prompt(source: Source, values: Values) -> dict[str, Any]:
    room = values[ROOM]
    length = source.within(1, min(room - 1, 12))
    return {
        "prompt": tuple(source.pick(TOKENS) for _ in range(length)),
        "max_new_tokens": source.within(1, min(room - length, 8)),
    }


def _monotonous(source: Source, values: Values) -> dict[str, Any]:
    """One or two letters again and again, in prompt and output: what is drafted for it is right, or half of it."""
    letters = tuple(dict.fromkeys((source.pick(TOKENS), source.pick(TOKENS))))
    prompt = tuple(source.pick(letters) for _ in values["prompt"])
    longer = min(values[ROOM] - len(prompt), source.within(5, 12))
    bias = tuple((letter, LIKELY) for letter in letters)
    return {"prompt": prompt, "logit_bias": bias, "max_new_tokens": max(values["max_new_tokens"], longer)}


def _with_adapter(source: Source, values: Values) -> dict[str, Any]:
    """One of few names, sent when those that are loaded first have been."""
    from pawl.actors.control.adapters import NAMES  # and with it all control messages: not for a help page

    name = source.pick(("", *NAMES)) if values[LORAS] else ""
    return {"adapter": name, "at_s": values.get("at_s") or (0.001 if name else 0.0)}


def _said_before(source: Source, values: Values) -> dict[str, Any]:
    """An earlier prompt again, which may go on: it finds what is left of that one in the cache and below."""
    prompts = values[BEFORE]
    if not prompts:
        return {}
    longer = source.pick(prompts) + tuple(source.pick(TOKENS) for _ in range(source.within(0, 3)))
    return {"prompt": longer[: values[ROOM] - values["max_new_tokens"]]}


def _repeats(values: Values) -> bool:
    prompt = values["prompt"]
    return any(len(prompt) >= len(other) > 1 and prompt[: len(other)] == other for other in values[BEFORE])


def _truncated(source: Source, values: Values) -> dict[str, Any]:
    return {
        "seed": source.within(0, 99),
        "top_k": source.pick((0, 1, 3)),
        "top_p": source.pick((1.0, 0.7)),
        "min_p": source.pick((0.0, 0.2)),
    }


def _penalised(source: Source, values: Values) -> dict[str, Any]:
    return {
        "repetition_penalty": source.pick((1.0, 1.5)),
        "presence_penalty": source.pick((0.5, 0.0)),
        "frequency_penalty": source.pick((0.5, -0.5)),
    }


def _ends(source: Source, values: Values) -> dict[str, Any]:
    """The model's end token is the likeliest, once it may be drawn; no stop string is to come before."""
    if values.get("stop") or values.get("stop_after"):
        return {}
    most = max(0, values["max_new_tokens"] - 1)
    return {"ignore_eos": False, "logit_bias": ((END_TOKEN, LIKELY),), "min_new_tokens": source.within(0, most)}


def _stop_tokens(source: Source, values: Values) -> dict[str, Any]:
    return {"stop_token_ids": (source.pick(LETTERS), source.pick(LETTERS))}


def _long(source: Source, values: Values) -> dict[str, Any]:
    """Too long for the context, which the tokenizer sees; or, where that is more than the pages hold, for these."""
    beyond = values[CONTEXT] - values[ROOM]
    extra = source.within(1, beyond) if beyond and source.chance(0.7) else beyond + source.within(1, 6)
    return {"max_new_tokens": values[ROOM] - len(values["prompt"]) + extra}


def _leaves_after(source: Source, values: Values) -> dict[str, Any]:
    """As often as not at once: then the news may overtake the request."""
    return {"leaves_after": source.pick((0, source.within(0, values["max_new_tokens"])))}


def _stop_after(source: Source, values: Values) -> dict[str, Any]:
    return {"stop_after": source.within(1, values["max_new_tokens"])} if values["max_new_tokens"] else {}


def _turn(source: Source, values: Values) -> dict[str, Any]:
    parent = source.within(-1, len(values[BEFORE]) - 1)
    return {
        "session": True,
        "turn_of": None if parent < 0 else parent,
        "offset": source.pick((0, 0, -1, 2, -3)),
        "replace": source.chance(0.4),
        "drop_previous_output": source.chance(0.2),
    }


FEATURES: tuple[Feature, ...] = (
    Feature(
        "prompt",
        ("prompt", "max_new_tokens"),
        _prompt,
        OUTPUTS,
        settings=("token_ids", "max_new_tokens"),
        present=lambda values: True,
    ),
    Feature(
        "monotonous output",
        ("prompt", "logit_bias", "max_new_tokens"),
        _sometimes(0.2, _monotonous),
        (*OUTPUTS, "drafts_in_bounds"),
        present=lambda values: any(token in TOKENS and bias == LIKELY for token, bias in values["logit_bias"]),
    ),
    Feature(
        "prompt again",
        ("prompt",),
        _oftener_with_tiers(0.2, 0.6, _said_before),
        ("cache_hit_equivalence", *OUTPUTS),
        settings=("token_ids",),
        present=_repeats,
    ),
    Feature(
        "no output",
        ("max_new_tokens",),
        _sometimes(0.04, lambda source, values: {"max_new_tokens": 0}),
        ("legal_lifecycle", "bounded_progress"),
        settings=("max_new_tokens",),
        present=lambda values: values["max_new_tokens"] == 0,
    ),
    Feature(
        "too long",
        ("max_new_tokens",),
        _sometimes(0.05, _long),
        ("fault_isolation", "legal_lifecycle"),
        settings=("max_new_tokens",),
        present=lambda values: len(values["prompt"]) + values["max_new_tokens"] > values[ROOM],
    ),
    Feature(
        "time of arrival",
        ("at_s",),
        lambda source, values: {"at_s": source.pick((0.0, 0.0, 0.0, 0.001, 0.3))},
        ("bounded_progress", "time_order"),
    ),
    Feature(
        "comes later",
        ("after_tokens",),
        _oftener_with_tiers(0.1, 0.5, lambda source, values: {"after_tokens": source.within(1, 8)}),
        ("bounded_progress", "admission_is_monotone"),
    ),
    Feature(
        "group",
        ("with_previous",),
        _sometimes(0.1, lambda source, values: {"with_previous": True}),
        ("batch_independence", "incarnation"),
        settings=("rid", "group"),
    ),
    Feature("hangs up", ("leaves_after",), _sometimes(0.25, _leaves_after), ENDS),
    Feature(
        "stop string",
        ("stop_after",),
        _sometimes(0.12, _stop_after),
        STOPS,
        settings=("text_options",),
    ),
    Feature(
        "several stop strings",
        ("stop",),
        _sometimes(0.06, lambda source, values: {"stop": (source.pick(STRINGS), source.pick(STRINGS))}),
        STOPS,
        settings=("text_options",),
    ),
    Feature(
        "stop tokens",
        ("stop_token_ids",),
        _sometimes(0.06, _stop_tokens),
        STOPS,
        settings=("stop_token_ids",),
    ),
    Feature(
        "sampled",
        ("seed",),
        _sometimes(0.07, lambda source, values: {"seed": source.within(0, 99)}),
        OUTPUTS,
        settings=("temperature", "seed"),
    ),
    Feature(
        "truncation",
        ("seed", "top_k", "top_p", "min_p"),
        _sometimes(0.04, _truncated),
        OUTPUTS,
        settings=("top_k", "top_p", "min_p"),
        present=lambda values: values["top_k"] > 0 or values["top_p"] < 1 or values["min_p"] > 0,
    ),
    Feature(
        "penalties",
        ("repetition_penalty", "presence_penalty", "frequency_penalty"),
        _sometimes(0.04, _penalised),
        OUTPUTS,
        settings=("repetition_penalty", "presence_penalty", "frequency_penalty"),
    ),
    Feature(
        "bias",
        ("logit_bias",),
        _sometimes(0.03, lambda source, values: {"logit_bias": ((source.pick(LETTERS), source.pick((4.0, -100.0))),)}),
        OUTPUTS,
        settings=("logit_bias",),
    ),
    Feature(
        "end token",
        ("ignore_eos", "logit_bias", "min_new_tokens"),
        _sometimes(0.05, _ends),
        STOPS,
        settings=("ignore_eos", "eos_token_ids", "min_new_tokens"),
        present=lambda values: not values["ignore_eos"],
    ),
    Feature(
        "grammar",
        ("grammar",),
        _sometimes(0.12, lambda source, values: {"grammar": source.pick((*GRAMMARS, *GRAMMARS, BAD_GRAMMAR))}),
        ("grammar_is_a_fold", *OUTPUTS, *STOPS, "fault_isolation"),
        settings=("grammar",),
    ),
    Feature(
        "log-probabilities",
        ("top_logprobs", "token_ids_logprob"),
        _sometimes(0.05, lambda source, values: source.pick(RIVALS)),
        SCORES,
        settings=("top_logprobs", "token_ids_logprob"),
    ),
    Feature(
        "prompt log-probabilities",
        ("prompt_logprobs",),
        _sometimes(0.04, lambda source, values: {"prompt_logprobs": True}),
        SCORES,
        settings=("prompt_logprobs",),
    ),
    Feature(
        "embedding",
        ("embed", "max_new_tokens"),
        _sometimes(0.06, lambda source, values: {"embed": True, "max_new_tokens": 0}),
        ("embedded_once", "legal_lifecycle", "bounded_progress"),
        settings=("embed",),
        present=lambda values: values["embed"],
    ),
    Feature(
        "adapter",
        ("adapter",),
        _with_adapter,
        ("adapter_references", "namespace_isolation", *OUTPUTS),
        settings=("adapter",),
    ),
    Feature(
        "priority",
        ("priority",),
        lambda source, values: {"priority": source.within(0, 1)},
        ("bounded_overtaking", "admission_is_monotone"),
        settings=("priority",),
    ),
    Feature(
        "salt",
        ("salt",),
        lambda source, values: {"salt": source.pick(("", "", "", "salt"))},
        ("namespace_isolation",),
        settings=("cache_salt",),
    ),
    Feature(
        "deadline",
        ("timeout_s",),
        _sometimes(0.15, lambda source, values: {"timeout_s": source.pick((0.2, 0.05))}),
        ("bounded_progress", *ENDS),
        settings=("timeout_s",),
    ),
    Feature(
        "session",
        ("session", "turn_of", "offset", "replace", "drop_previous_output"),
        _sometimes(0.12, _turn),
        ("session_atomicity", "cache_hit_equivalence"),
        settings=("session", "scored_from"),
        present=lambda values: bool(values["session"]),
    ),
    *shown.FEATURES,
)
