"""What a body may hold is counted while it arrives, exactly, and wherever it was cut."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pawl.http.body import UNFINISHED_BODIES, BodyMeter
from tests.pawl.fake_engine import Served

TEXTS = st.text('a"\\[]{},:19', max_size=12)
VALUES = st.recursive(
    st.one_of(TEXTS, st.integers(), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=12,
)


def containers(value: Any) -> int:
    """Lists and objects in `value`, itself counted."""
    if isinstance(value, dict):
        return 1 + sum(map(containers, value.values()))
    return 1 + sum(map(containers, value)) if isinstance(value, list) else 0


def strings(value: Any) -> int:
    if isinstance(value, dict):
        return len(value) + sum(map(strings, value.values()))
    return sum(map(strings, value)) if isinstance(value, list) else int(isinstance(value, str))


def metered(pieces: Sequence[bytes]) -> BodyMeter:
    meter = BodyMeter()
    for piece in pieces:
        meter.take(piece)
    return meter


@given(VALUES, st.lists(st.integers(0, 200), max_size=8))
def test_the_meter_counts_what_json_holds_wherever_it_is_cut(value: Any, cuts: list[int]) -> None:
    data = json.dumps(value).encode()
    places = [0, *sorted(cuts), len(data)]
    meter = metered([data[start:end] for start, end in pairwise(places)])
    assert (meter.num_containers, meter.num_quotes) == (containers(value), 2 * strings(value))


def test_digits_count_in_numbers_and_not_in_text() -> None:
    assert metered([b'{"a":"' + b"1" * 400 + b'","b":12345678901234567890.5}']).num_long_numbers == 1
    assert metered([b"[" + b"1" * 4000 + b"]"]).num_long_numbers == 200


LONG_FLOATS = b"[" + b",".join([b"1.2345678901234567890123e-300"] * 2000) + b"]"


@pytest.mark.parametrize(
    ("held", "what"),
    [
        (b"[" + b"1," * 500_001 + b"1]", "values"),
        (b"[" + b"[]," * 20_001 + b"1]", "lists and objects"),
        (b"[" + b'"",' * 50_001 + b"1]", "strings"),
        (LONG_FLOATS, "numbers of 20 digits"),
    ],
)
def test_a_body_that_would_take_long_to_decode_is_refused_in_every_field(
    served: Served, client: httpx.Client, held: bytes, what: str
) -> None:
    for path, field in (
        ("/v1/completions", b"prompt"),
        ("/v1/completions", b"regex"),
        ("/v1/chat/completions", b"messages"),
        ("/generate", b"input_ids"),
        ("/tokenize", b"prompt"),
        ("/abort_request", b"rid"),
    ):
        reply = client.post(path, content=b'{"%b":%b}' % (field, held), headers={"content-type": "application/json"})
        assert reply.status_code == 413, (path, reply.text[:200])
        assert what in reply.json()["error"]["message"]
    assert client.get("/health").status_code == 200


def test_text_may_hold_any_number_of_marks(client: httpx.Client) -> None:
    text = '["{,\\' * 60_000 + "1" * 50_000
    reply = client.post("/tokenize", json={"prompt": text})
    assert reply.json()["count"] == len(text)


def test_bytes_of_bodies_that_are_refused_are_given_back() -> None:
    held = b'{"prompt":[' + b"1," * 500_001 + b"1]}"
    with Served(max_body_bytes=len(held)) as served, httpx.Client(base_url=served.url) as client:
        for _ in range(UNFINISHED_BODIES + 1):
            reply = client.post("/tokenize", content=held, headers={"content-type": "application/json"})
            assert (reply.status_code, "values" in reply.text) == (413, True)
