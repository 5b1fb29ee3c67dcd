"""Checks what a client set about sampling. The HTTP edge and the tokenizer use the same check."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any

from pawl.actors.text.invalid import InvalidRequest
from pawl.lifecycle.request import MAX_STOP_TOKENS, MAX_TOP_LOGPROBS, SamplingParameters

__all__ = ["MAX_LOGIT_BIASES", "InvalidRequest", "build_sampling"]

MAX_LOGIT_BIASES = 1024
MIN_TEMPERATURE = 1e-6
"""Below it logits overflow; a client that wants the likeliest token asks for 0."""
SEED_RANGE = 1 << 63

Check = Callable[[str, Any], Any]


def build_sampling(
    fields: Mapping[str, Any],
    *,
    eos_token_ids: tuple[int, ...] = (),
    vocabulary_size: int | None = None,
    default_max_new_tokens: int | None = None,
) -> SamplingParameters:
    """Sampling parameters from the `fields` a client set; None counts as not set.

    Fields are those of `SamplingParameters` (but `eos_token_ids`, which is the model's) and `ignore_eos`. The model's
    `eos_token_ids` join the client's stop tokens unless ignored. Token ids are checked where `vocabulary_size` is
    given; an edge that does not know it leaves that to the tokenizer. A negative seed counts modulo 2**63, `top_k` -1
    means off.

    Raises InvalidRequest that names the field and says what is allowed.
    """
    values: dict[str, Any] = {}
    for name, value in fields.items():
        check = _CHECKS.get(name)
        if check is None:
            close = difflib.get_close_matches(name, _CHECKS, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise InvalidRequest(f"unknown sampling parameter {name!r}{hint}", param=name)
        if value is not None:
            values[name] = check(name, value)
    if default_max_new_tokens is not None:
        values.setdefault("max_new_tokens", default_max_new_tokens)
    ignore_eos = values.pop("ignore_eos", False)
    values["eos_token_ids"] = () if ignore_eos else eos_token_ids
    values["stop_token_ids"] = tuple(dict.fromkeys((*values["eos_token_ids"], *values.get("stop_token_ids", ()))))
    # Without a default the limit is not known yet, so there is nothing to compare with.
    if values.get("min_new_tokens", 0) > values.get("max_new_tokens", math.inf):
        raise InvalidRequest(
            f"min_new_tokens ({values['min_new_tokens']}) must not exceed max_new_tokens ({values['max_new_tokens']})",
            param="min_new_tokens",
        )
    parameters = SamplingParameters(**values)
    _check_tokens(parameters, vocabulary_size)
    return parameters


def _check_tokens(parameters: SamplingParameters, vocabulary_size: int | None) -> None:
    if len(parameters.stop_token_ids) > MAX_STOP_TOKENS:
        raise InvalidRequest(
            f"at most {MAX_STOP_TOKENS} stop tokens are allowed, the model's own "
            f"{len(parameters.eos_token_ids)} included; got {len(parameters.stop_token_ids)}",
            param="stop_token_ids",
        )
    if vocabulary_size is None:
        return
    for name, ids in (("stop_token_ids", parameters.stop_token_ids), ("logit_bias", parameters.logit_bias)):
        for token in ids:
            if token >= vocabulary_size:
                raise InvalidRequest(
                    f"{name} names token {token}, but the vocabulary ends at {vocabulary_size - 1}", param=name
                )


def _number(low: float, high: float = math.inf, above: bool = False) -> Check:
    def check(name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
            raise InvalidRequest(f"{name} must be a number, not {value!r:.80}", param=name)
        if not low <= value <= high or (above and value == low):
            bounds = f"{'above' if above else 'at least'} {low:g}" + (
                f" and at most {high:g}" if high < math.inf else ""
            )
            raise InvalidRequest(f"{name} must be {bounds}, not {value}", param=name)
        return float(value)

    return check


def _finite(value: float) -> bool:
    """Python's JSON readers give integers of any size, and some of them infinities."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _integer(low: int, high: int = (1 << 31) - 1) -> Check:
    def check(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidRequest(f"{name} must be an integer, not {value!r:.80}", param=name)
        if not low <= value <= high:
            raise InvalidRequest(f"{name} must be between {low} and {high}, not {value!r:.80}", param=name)
        return value

    return check


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name} must be true or false, not {value!r:.80}", param=name)
    return value


def _temperature(name: str, value: Any) -> float:
    temperature: float = _number(0.0)(name, value)
    if 0.0 < temperature < MIN_TEMPERATURE:
        raise InvalidRequest(f"{name} must be 0 (greedy) or at least {MIN_TEMPERATURE:g}, not {value}", param=name)
    return temperature


def _top_k(name: str, value: Any) -> int:
    top_k: int = _integer(-1)(name, value)
    return max(top_k, 0)


def _seed(name: str, value: Any) -> int:
    seed: int = _integer(-SEED_RANGE, SEED_RANGE - 1)(name, value)
    return seed % SEED_RANGE


def _tokens(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list | tuple):
        raise InvalidRequest(f"{name} must be a list of token ids", param=name)
    return tuple(_integer(0)(name, token) for token in value)


def _logit_bias(name: str, value: Any) -> dict[int, float]:
    """JSON has string keys only, so a token id may come as digits."""
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{name} must be an object from token id to bias", param=name)
    if len(value) > MAX_LOGIT_BIASES:
        raise InvalidRequest(f"{name} takes at most {MAX_LOGIT_BIASES} tokens, not {len(value)}", param=name)
    biases: dict[int, float] = {}
    for key, bias in value.items():
        digits = isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10
        token = _integer(0)(name, int(key) if digits else key)
        biases[token] = _number(-100.0, 100.0)(f"{name}[{token}]", bias)
    return biases


_CHECKS: dict[str, Check] = {
    "temperature": _temperature,
    "top_k": _top_k,
    "top_p": _number(0.0, 1.0, above=True),
    "min_p": _number(0.0, 1.0),
    "repetition_penalty": _number(0.0, above=True),
    "presence_penalty": _number(-2.0, 2.0),
    "frequency_penalty": _number(-2.0, 2.0),
    "logit_bias": _logit_bias,
    "seed": _seed,
    "max_new_tokens": _integer(0),
    "min_new_tokens": _integer(0),
    "stop_token_ids": _tokens,
    "ignore_eos": _flag,
    "top_logprobs": _integer(0, MAX_TOP_LOGPROBS),
    "prompt_logprobs": _flag,
}
