"""`pawl chat` and `pawl generate`: who answers is a fake, or a real server with a fake engine."""

from __future__ import annotations

import argparse
import io
import itertools
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pawl.actors.messages.generate import Done, Timing, Usage
from pawl.actors.sink import Delta
from pawl.cli import main
from pawl.commands.chat import Conversation
from pawl.commands.failures import CommandFailed, UsageError
from pawl.commands.generate import described, read_prompts
from pawl.commands.remote import RemoteSpeaker
from pawl.commands.settings import add_sampling_flags, sampling_of
from pawl.engine import Completion
from pawl.lifecycle.states import Cause
from tests.pawl.fake_engine import Served


class Parrot:
    """Answers with `pieces`, then raises `error` if there is one; remembers what it was asked."""

    def __init__(self, pieces: Sequence[str] = ("a", "b"), error: BaseException | None = None) -> None:
        self.pieces, self.error = pieces, error
        self.asked: list[list[dict[str, str]]] = []
        self.num_open = 0

    def reply(self, messages: list[dict[str, str]]) -> Generator[str, None, None]:
        self.asked.append(list(messages))
        self.num_open += 1
        try:
            yield from self.pieces
            if self.error is not None:
                raise self.error
        finally:
            self.num_open -= 1


def talk(parrot: Parrot, *lines: str, system: str | None = None) -> tuple[Conversation, str]:
    shown: list[str] = []
    conversation = Conversation(parrot, system, shown.append)
    conversation.run(iter(lines))
    return conversation, "".join(shown)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


# ---- conversation ----


def test_each_turn_sends_all_that_was_said_before() -> None:
    parrot = Parrot()
    talk(parrot, "one", "two")
    assert parrot.asked == [[user("one")], [user("one"), assistant("ab"), user("two")]]


def test_pieces_are_shown_as_they_come() -> None:
    _, shown = talk(Parrot(["x", "y"]), "hello")
    assert shown == "xy\n"


def test_reset_forgets_all_but_the_system_message() -> None:
    conversation, _ = talk(Parrot(), "one", "/reset", system="be brief")
    assert conversation.messages == [{"role": "system", "content": "be brief"}]


def test_a_new_system_message_begins_anew_and_outlives_a_reset() -> None:
    parrot = Parrot()
    talk(parrot, "one", "/system be kind", "/reset", "two")
    assert parrot.asked[1] == [{"role": "system", "content": "be kind"}, user("two")]


def test_exit_leaves_and_blank_lines_and_unknown_commands_ask_nothing() -> None:
    parrot = Parrot()
    _, shown = talk(parrot, "", "   ", "/nonsense", "/exit", "never read")
    assert parrot.asked == []
    assert "/nonsense" in shown


def test_ctrl_c_closes_the_reply_and_keeps_what_was_said() -> None:
    parrot = Parrot(["half"], KeyboardInterrupt())
    conversation, shown = talk(parrot, "one")
    assert parrot.num_open == 0
    assert conversation.messages == [user("one"), assistant("half")]
    assert "half" in shown


def test_a_failed_reply_is_told_and_leaves_no_trace() -> None:
    conversation, shown = talk(Parrot(["half"], CommandFailed("too long")), "one")
    assert conversation.messages == []
    assert "too long" in shown


def test_a_defect_is_not_taken_for_a_failed_reply() -> None:
    with pytest.raises(ZeroDivisionError):
        talk(Parrot([], ZeroDivisionError()), "one")


# ---- a server ----


def remote(served: Served, *, model: str | None = None, stop: Sequence[str] = (), **sampling: Any) -> RemoteSpeaker:
    return RemoteSpeaker(served.url, None, model, {"max_new_tokens": 6} | sampling, list(stop))


def test_a_servers_reply_arrives_in_pieces_that_join_to_it(served: Served) -> None:
    # The fake engine echoes the prompt, which is "user: hello\n".
    pieces = list(remote(served).reply([user("hello")]))
    assert "".join(pieces) == "user: "


def test_stop_texts_and_sampling_reach_the_server(served: Served) -> None:
    assert "".join(remote(served, stop=["r"], max_new_tokens=50).reply([user("hello")])) == "use"


def test_a_reply_that_is_closed_is_aborted_on_the_server(served: Served) -> None:
    served.on_loop(served.engine.hold)
    try:
        reply = remote(served).reply([user("hello")])
        assert next(piece for piece in reply if piece) == "u"
        reply.close()
        served.engine.until(lambda: served.engine.gateway.num_live == 0)
    finally:
        served.on_loop(served.engine.release)


def test_a_refusal_is_told_in_the_servers_words(served: Served) -> None:
    with pytest.raises(CommandFailed, match=r"404.*nobody"):
        list(remote(served, model="nobody").reply([user("hello")]))


@pytest.mark.parametrize("url", ["localhost:30000", "http://h:abc", "http://h:99999", "http://[::1"])
def test_what_is_no_url_is_wrong_usage(url: str) -> None:
    with pytest.raises(UsageError, match="not a URL"):
        RemoteSpeaker(url, None, None, {}, [])


# ---- generate ----


def prompts_of(*words: str, standard_input: str | None = None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    from pawl.commands.generate import add_arguments

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    if standard_input is not None:
        monkeypatch.setattr("sys.stdin", io.StringIO(standard_input))
    return read_prompts(parser.parse_args(words))


def test_prompts_come_from_words_a_file_or_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "prompts"
    file.write_text("one\n\ntwo\n")
    assert prompts_of("a b", "c", monkeypatch=monkeypatch) == ["a b", "c"]
    assert prompts_of("--file", str(file), monkeypatch=monkeypatch) == ["one", "two"]
    assert prompts_of(standard_input="a\nb\n", monkeypatch=monkeypatch) == ["a\nb"]
    assert prompts_of("--lines", standard_input="a\nb\n", monkeypatch=monkeypatch) == ["a", "b"]


def test_prompts_from_two_places_or_none_are_wrong_usage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="both"):
        prompts_of("a", "--file", str(tmp_path / "x"), monkeypatch=monkeypatch)
    with pytest.raises(UsageError, match="empty"):
        prompts_of(standard_input="", monkeypatch=monkeypatch)


def test_a_file_of_prompts_is_text_that_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bytes").write_bytes(b"one\n\xfa\n")
    with pytest.raises(UsageError, match="bytes is not UTF-8: invalid start byte at byte 4"):
        prompts_of("--file", str(tmp_path / "bytes"), monkeypatch=monkeypatch)
    with pytest.raises(UsageError, match="/dev/zero has more than 64 million characters"):
        prompts_of("--file", "/dev/zero", monkeypatch=monkeypatch)


def test_a_described_answer_has_text_tokens_usage_and_reason() -> None:
    done = Done(Cause.LENGTH, Usage(4, 2, 1), Timing(10.0, 10.5, 11.0, 12.25))
    answer = described("hi", Completion(Delta(" there", (7, 8), done=done)))
    usage = {"prompt_tokens": 4, "completion_tokens": 2, "cached_tokens": 1, "retractions": 0}
    assert answer["usage"] == usage | {"draft_tokens": 0, "accepted_tokens": 0}
    assert (answer["prompt"], answer["text"], answer["tokens"]) == ("hi", " there", (7, 8))
    assert (answer["finish_reason"], answer["seconds"]) == ("length", 2.25)


SAMPLING = {
    "--max-new-tokens": ("max_new_tokens", 9),
    "--min-new-tokens": ("min_new_tokens", 2),
    "--temperature": ("temperature", 0.5),
    "--top-k": ("top_k", 3),
    "--top-p": ("top_p", 0.5),
    "--min-p": ("min_p", 0.5),
    "--repetition-penalty": ("repetition_penalty", 1.5),
    "--presence-penalty": ("presence_penalty", 0.5),
    "--frequency-penalty": ("frequency_penalty", 0.5),
    "--sampling-seed": ("seed", 4),
}


def sampling(*words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_sampling_flags(parser)
    return sampling_of(parser.parse_args(words))


def test_every_sampling_flag_reaches_the_engine_under_a_name_it_takes() -> None:
    from pawl.actors.fields import convert
    from pawl.actors.sampling import Limits, OfflineSampling, offline_sampling

    words = itertools.chain.from_iterable((flag, str(value)) for flag, (_, value) in SAMPLING.items())
    fields = sampling(*words)
    assert fields == dict(SAMPLING.values())
    parameters = offline_sampling(convert(fields, OfflineSampling), Limits(100, 100), seed=0)
    assert all(getattr(parameters, name) == value for name, value in SAMPLING.values())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--frequency-penalty nan", "--frequency-penalty must be a number from -2 to 2"),
        ("--max-new-tokens -1", "--max-new-tokens must be an integer from 0"),
        (f"--sampling-seed {10**30}", "--sampling-seed must be an integer from"),
        ("--top-p 1e30", "--top-p must be a number from 0 to 1"),
        ("--stop=", "--stop[0] must be a string of 1 to"),
    ],
)
@pytest.mark.parametrize("command", ["generate", "chat"])
def test_sampling_that_cannot_be_is_refused_before_a_model_is_loaded(
    command: str, words: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = ["hi"] if command == "generate" else []
    assert main([command, "--model", "nowhere", *words.split(), *prompt]) == 2
    assert capsys.readouterr().err.startswith(f"pawl: {told}")


def test_sampling_not_given_is_left_to_the_engine() -> None:
    assert sampling() == {"max_new_tokens": 128}
