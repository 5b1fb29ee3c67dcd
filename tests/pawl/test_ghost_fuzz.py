"""Whatever is sent to a served ghost, whole or damaged: no failure, nothing in the log, a trace that passes."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from benchmarks.fuzz import fuzz
from benchmarks.fuzz_wire import chunks, retold, wrong_in
from pawl.lifecycle.audit import Verdict


@pytest.mark.parametrize("inputs", [pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_input_makes_the_server_fail(tmp_path: Path, inputs: int) -> None:
    seen, report = fuzz(tmp_path, seed=0, first=0, inputs=inputs, workers=8)
    assert seen.failed == []
    assert seen.ends.total() == inputs
    assert report.exit_status == 0
    assert (report.tracebacks, report.secrets, report.unrest, report.contained) == ([], [], [], 0)
    assert report.verdict is Verdict.PASS, report.audit


JSON = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
OPENAI = b'{"error":{"message":"no","type":"invalid_request_error","param":null,"code":null}}'
NATIVE = b'{"error":{"message":"no"}}'


def answered(body: bytes) -> bytes:
    return JSON % (len(body), body)


@pytest.mark.parametrize(
    ("reply", "path", "wrong"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nanything", "/v1/models", None),
        (answered(OPENAI), "/v1/models", None),
        (answered(NATIVE), "/generate", None),
        (answered(NATIVE), "/v1/models", "members"),
        (answered(b'{"error":{"message":""}}'), "/generate", "the message"),
        (answered(b'{"error":{"message":"%s"}}' % (b"x" * 3000)), "/generate", "the message"),
        (answered(b'{"detail":"no"}'), "/generate", "without its body"),
        (answered(NATIVE[:-1]), "/generate", "without its body"),
        (b"HTTP/1.1 500 Oh\r\ncontent-type: text/plain\r\n\r\nTraceback", "/generate", "of type 'text/plain'"),
        (b"500", "/generate", "status line"),
    ],
)
def test_an_error_of_another_form_is_noticed(reply: bytes, path: str, wrong: str | None) -> None:
    found = wrong_in(reply, path)
    assert (found is None) == (wrong is None)
    assert (wrong or "") in (found or "")


def test_a_body_told_in_other_words_is_often_no_json_and_often_is() -> None:
    source, body = random.Random(0), b'{"prompt": "hello", "n": [1, null, {"b": true}]}'
    read = 0
    for _ in range(200):
        try:
            json.loads(retold(body, source))
            read += 1
        except (ValueError, RecursionError):
            pass
    assert 40 < read < 160
    assert any(b"0\r\n\r\n" not in chunks(body, source) for _ in range(40))
