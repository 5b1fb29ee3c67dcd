"""What attackers send: aimed shots at single routes, and the sieges. Run by `benchmarks.attacks`.

Every shot is one request whose status is counted. Each worker draws the next attack from its own seed until the time is
over.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.attack_sieges import SIEGES
from benchmarks.attack_target import ADMIN_KEY, KEY, MARK, SAMPLING, Target, completion, generate

WORKERS = 3
PATIENCE_S = 10.0
BIG = (2**31, -(2**31) - 1, 2**63, -(2**63) - 1, 2**64, 10**19, -1, float("1e308"))

# ---- shots: path, body ----

Shot = Callable[[random.Random], tuple[str, Any]]


def _chat(message: Mapping[str, Any], **fields: Any) -> tuple[str, Any]:
    messages = [{"role": "user", "content": MARK, **message}]
    return "/v1/chat/completions", {"model": "ghost", "messages": messages, "max_tokens": 4} | fields


def _deep_arguments(source: random.Random) -> tuple[str, Any]:
    arguments = "[" * 100_000 + "]" * 100_000
    call = {"id": "a", "type": "function", "function": {"name": MARK, "arguments": arguments}}
    return _chat({"role": "assistant", "tool_calls": [call]})


def _nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {MARK: value}
    return value


NOWHERE = ("root ::= root", 'root ::= "a" b\nb ::= b', "root ::= a\na ::= root", 'root ::= root "x"')
"""Grammars by which no output ever ends, or begins."""
CIRCLE = {"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"}


def _sized(source: random.Random) -> dict[str, Any]:
    """A schema of arrays in arrays of strings, all with lengths that nobody could write."""
    schema: dict[str, Any] = {"type": "string", "minLength": source.choice((0, 10**6, 10**9)), "pattern": "^(a|b){9}$"}
    for _ in range(source.randrange(4)):
        schema = {"type": "array", "items": schema, "minItems": source.choice((0, 1_000, 10**6))}
    return schema


def _tools(count: int) -> list[dict[str, Any]]:
    shape = {"type": "object", "properties": {f"{MARK} {n}": {"$ref": "#"} for n in range(20)}}
    return [{"type": "function", "function": {"name": f"f{n}", "parameters": shape}} for n in range(count)]


SHOTS: Mapping[str, Shot] = {
    "priority": lambda source: generate(priority=source.choice(BIG)),
    "token ids": lambda source: generate(text=None, input_ids=[source.choice(BIG), 101]),
    "seed": lambda source: completion(seed=source.choice(BIG)),
    "max_tokens": lambda source: completion(max_tokens=source.choice(BIG)),
    "deep JSON": lambda source: ("/v1/completions", b'{"prompt":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "deep arguments": _deep_arguments,
    "giant text": lambda source: completion(prompt=MARK * (4 << 16)),
    "giant ids": lambda source: generate(text=None, input_ids=[101] * 2_000_000),
    "n times prompts": lambda source: completion(prompt=["a"] * 20_000, n=128),
    "many choices": lambda source: completion(n=128, max_tokens=32),
    "tokenize many": lambda source: ("/tokenize", {"prompt": ["a"] * 1_000_000}),
    "tokenize": lambda source: ("/tokenize", {"prompt": MARK * 20_000}),
    "detokenize many": lambda source: ("/detokenize", {"tokens": [101] * 2_000_000}),
    "detokenize": lambda source: ("/detokenize", {"tokens": [101] * 190_000}),
    "logit bias": lambda source: completion(logit_bias={str(token): 1 for token in range(200_000)}),
    "stop ids": lambda source: generate(sampling_params=SAMPLING | {"stop_token_ids": list(range(1_000_000))}),
    "stop strings": lambda source: completion(stop=[MARK * 100] * 10_000),
    "abort many": lambda source: ("/abort_request", {"rid": [f"{MARK} {n}" for n in range(9_999)]}),
    "abort too many": lambda source: ("/abort_request", {"rid": ["x"] * 500_000}),
    "echo and scores": lambda source: completion(prompt=MARK * 200, echo=True, logprobs=5, n=16, max_tokens=1),
    "template": lambda source: _chat(
        {}, chat_template_kwargs={"chat_template": "{{ 'a' * 10 ** 9 }}", MARK: "x" * 10**6}
    ),
    "template in content": lambda source: _chat({"content": "{% for a in range(10**9) %}{{ a }}{% endfor %}"}),
    "long rid": lambda source: generate(rid=MARK * 60_000),
    "long salt": lambda source: completion(cache_salt=MARK * 60_000),
    "surrogates": lambda source: ("/generate", b'{"text":"\\ud800 marked","sampling_params":{"max_new_tokens":2}}'),
    "many keys": lambda source: generate(**{f"{MARK} {n}": n for n in range(100_000)}),
    "long numbers": lambda source: (
        "/generate",
        b'{"sampling_params":[' + b"1.2345678901234567890123e-300," * 10**5 + b"1]}",
    ),
    "short strings": lambda source: completion(prompt=[MARK[0]] * 400_000),
    "deep schema": lambda source: completion(metadata=_nested(900)),
    "grammar of nothing": lambda source: completion(ebnf=source.choice(NOWHERE)),
    "regex of nothing": lambda source: completion(regex=r"a?[^\s\S]"),
    "schema in a circle": lambda source: completion(guided_json=CIRCLE),
    "huge grammar": lambda source: completion(regex="|".join(f"{MARK}{source.random()}" for _ in range(3_000))),
    "schema of all sizes": lambda source: completion(guided_json=_sized(source)),
    "odd numbers of tools": lambda source: _chat(
        {}, tools=_tools(source.choice((0, 1, 128, 129))), tool_choice="required"
    ),
    "session of nobody": lambda source: ("/close_session", {"session_id": MARK}),
}


# ---- fuzz ----

LEAVES: Sequence[Any] = (
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**64,
    1e308,
    "",
    "x",
    MARK,
    "\0",
    "é😊",
    [],
    {},
    [[]],
    [MARK],
    {"a": None},
)


def fuzz(source: random.Random, paths: Mapping[str, Any]) -> tuple[str, Any]:
    """A route of the description, with some of the fields that it names, of any kind."""
    path = source.choice(sorted(path for path, methods in paths.items() if "post" in methods))
    names = ["text", "prompt", "messages", "input_ids", "sampling_params", "stream", "n", "stop", "rid", "tokens", MARK]
    return path, {name: source.choice(LEAVES) for name in source.sample(names, source.randrange(5))}


# ---- the onslaught ----


async def _worker(target: Target, seed: str, until: float, paths: Mapping[str, Any], counts: Counter[str]) -> None:
    source = random.Random(seed)
    everything = [*SHOTS, *SIEGES, *["fuzz"] * 10]
    while time.monotonic() < until:
        name = source.choice(everything)
        try:
            async with asyncio.timeout(PATIENCE_S):
                if name in SIEGES:
                    await SIEGES[name](target)
                    status = 0
                else:
                    path, body = SHOTS[name](source) if name in SHOTS else fuzz(source, paths)
                    key = ADMIN_KEY if path == "/abort_request" and name in SHOTS else KEY
                    status = await target.status(path, body, key=key)
            counts[f"{name}: {status}"] += 1
        except (OSError, TimeoutError, ValueError, IndexError, AssertionError) as error:
            counts[f"{name}: {type(error).__name__} {error}"[:100]] += 1


async def onslaught(target: Target, seconds: float, seed: int) -> Counter[str]:
    """All workers for so long; how often each attack had which end."""
    reader, writer = await target.send(target.head("GET", "/openapi.json", 0, "Connection: close\r\n"))
    description = json.loads((await reader.read()).partition(b"\r\n\r\n")[2])
    writer.close()
    counts: Counter[str] = Counter()
    until = time.monotonic() + seconds
    await asyncio.gather(*(_worker(target, f"{seed}/{n}", until, description["paths"], counts) for n in range(WORKERS)))
    return counts


if __name__ == "__main__":
    # That the server hangs up is what many of these are after.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    port, seconds, seed = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    print(json.dumps(asyncio.run(onslaught(Target("127.0.0.1", port), seconds, seed))))
