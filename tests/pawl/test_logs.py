"""Log lines: for a program one JSON object each, for a person text, and nobody is harmed where nobody reads."""

from __future__ import annotations

import io
import json
import logging
from typing import Any

import pytest
import structlog

from pawl.config import ConfigError
from pawl.logs import configure_logs, progress, share_done


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def configured(log_level: str = "info", log_format: Any = "auto", stream: io.StringIO | None = None) -> io.StringIO:
    stream = stream or io.StringIO()
    configure_logs(log_format, log_level, stream)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_program_reads_one_json_object_a_line_with_name_level_time_and_facts() -> None:
    stream = configured()
    structlog.get_logger("pawl.test").info("ended\nhere", request=7, cause="client", odd={1})
    (line,) = lines(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "ended\nhere",
        "logger": "pawl.test",
        "level": "info",
        "request": 7,
        "cause": "client",
        "odd": [1],
    }


def test_bound_facts_stand_in_every_line() -> None:
    stream = configured()
    log = structlog.get_logger("pawl.test").bind(request=3)
    log.info("one")
    log.warning("two")
    assert [line["request"] for line in lines(stream)] == [3, 3]


SECRET, PROMPT = "sk-very-secret", "the marked prompt"


def fail_with(error: Exception, **facts: object) -> None:
    authorization, prompt = SECRET, PROMPT
    try:
        try:
            {}[prompt]
        except KeyError as reason:
            raise error from reason
    except type(error):
        structlog.get_logger("pawl.test").exception("failed", **facts)
    assert (authorization, prompt) == (SECRET, PROMPT)


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize(
    "error",
    [
        ValueError(f"cannot do {PROMPT}"),
        UnicodeEncodeError("ascii", PROMPT, 0, 1, "why not"),
        ExceptionGroup(PROMPT, [ValueError(SECRET)]),
        OSError(5, "Input/output error", PROMPT),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_exception_says_what_and_where_and_quotes_nobody(error: Exception, log_format: str) -> None:
    """Neither local variables nor the words of an exception, which may be those of a prompt or of a key."""
    stream = configured(log_format=log_format)
    fail_with(error, request=7)
    text = stream.getvalue()
    assert type(error).__name__ in text
    assert "KeyError" in text
    assert "in fail_with" in text
    assert SECRET not in text
    assert PROMPT not in text


def test_the_words_of_our_own_errors_and_of_the_system_are_told() -> None:
    stream = configured()
    fail_with(ConfigError("port: 70000 is too large"))
    fail_with(OSError(28, "No space left on device"))
    ours, system = lines(stream)
    assert "ConfigError: port: 70000 is too large" in ours["exception"]
    assert "OSError: No space left on device" in system["exception"]


def test_lines_below_the_level_are_not_written() -> None:
    stream = configured("warning")
    log = structlog.get_logger("pawl.test")
    log.info("no")
    log.warning("yes")
    assert [line["event"] for line in lines(stream)] == ["yes"]


def test_a_person_reads_text_and_a_program_too_when_it_is_asked_for() -> None:
    for stream, log_format in ((Terminal(), "auto"), (io.StringIO(), "console")):
        configured(stream=stream, log_format=log_format)
        structlog.get_logger("pawl.test").info("hello", port=1)
        assert "hello" in stream.getvalue()
        assert not stream.getvalue().startswith("{")
    forced = configured(stream=Terminal(), log_format="json")
    structlog.get_logger("pawl.test").info("hello")
    assert lines(forced)[0]["event"] == "hello"


def test_warnings_of_libraries_come_in_the_same_form_and_their_chatter_does_not() -> None:
    stream = configured("debug")
    logging.getLogger("some.package").warning("careful: %s", "x")
    logging.getLogger("some.package").info("chatter")
    (line,) = lines(stream)
    assert (line["event"], line["logger"], line["level"]) == ("careful: x", "some.package", "warning")


def test_a_line_without_a_reader_harms_nobody() -> None:
    stream = configured()
    stream.close()
    structlog.get_logger("pawl.test").error("to nobody")


def test_long_work_says_how_far_it_is_ten_times() -> None:
    stream = configured()
    with progress("requests", 250) as advance:
        for _ in range(250):
            advance(1)
    assert [line["done"] for line in lines(stream)] == list(range(25, 251, 25))


def test_on_a_terminal_lines_and_progress_share_the_screen() -> None:
    stream = configured(stream=Terminal())
    with share_done("loading"), progress("requests", 2) as advance:
        structlog.get_logger("pawl.test").info("meanwhile")
        advance(2)
    assert "meanwhile" in stream.getvalue()
    structlog.get_logger("pawl.test").info("afterwards")
    assert stream.getvalue().rstrip().splitlines()[-1].count("afterwards") == 1


def test_shares_are_said_in_hundredths_and_never_go_back() -> None:
    stream = configured()
    with share_done("loading") as report:
        for share in (0.0, 0.1, 0.105, 0.05, 0.55, 1.0):
            report(share)
    assert [(line["done"], line["total"]) for line in lines(stream)] == [(10, 100), (55, 100), (100, 100)]
