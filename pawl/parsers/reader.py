"""The one fold that a reply's text goes through: reasoning first, then calls of tools in what is left."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from pawl.parsers.calls import CallParser, HermesCalls, LlamaCalls, MistralCalls
from pawl.parsers.events import Arguments, CallBegin, Content, Event, Parser
from pawl.parsers.pythonic import PythonicCalls

ToolFormat = Callable[[Collection[str]], CallParser]

TOOL_FORMATS: Mapping[str, ToolFormat] = {
    "hermes": HermesCalls,
    "llama3_json": LlamaCalls,
    "mistral": MistralCalls,
    "pythonic": PythonicCalls,
}
"""By the names that vLLM gives them."""

SIGNS = {
    "mistral": ("[TOOL_CALLS]",),
    "hermes": ("<tool_call>",),
    "pythonic": ("[func_name1(", "<|python_start|>"),
    "llama3_json": ("<|python_tag|>", '{"name": function name, "parameters":'),
}
"""What a chat template says where its model writes calls so."""

FOREIGN = ("<function=", "<arg_key>", "<|channel|>")
"""Signs of formats that are not known here, though their marks look alike."""


def format_of(templates: Mapping[str, str]) -> str | None:
    """Name of the format that a model's chat templates ask for; that of Hermes where they have no place for tools, as
    they are then described to the model in its words. None: not known here."""
    text = "\n".join(templates.values())
    if any(sign in text for sign in FOREIGN):
        return None
    found = next((name for name, signs in SIGNS.items() if any(sign in text for sign in signs)), None)
    return found or (None if "tools" in text else "hermes")


class Reader:
    """A `Parser` made of others, each of which reads the content that the one before leaves."""

    def __init__(self, *parsers: Parser, most_calls: int | None = None) -> None:
        """`most_calls`: later ones are dropped."""
        self._parsers = parsers
        self._most_calls = most_calls
        self.num_calls = 0

    def push(self, text: str) -> list[Event]:
        """What `text` makes known."""
        return self._kept(self._through(0, [Content(text)]))

    def close(self) -> list[Event]:
        """What was held back."""
        events: list[Event] = []
        for place, parser in enumerate(self._parsers):
            events += self._through(place + 1, parser.close())
        return self._kept(events)

    def _through(self, place: int, events: list[Event]) -> list[Event]:
        for parser in self._parsers[place:]:
            read: list[Event] = []
            for event in events:
                read += parser.push(event.text) if isinstance(event, Content) else [event]
            events = read
        return events

    def _kept(self, events: list[Event]) -> list[Event]:
        most = self._most_calls
        kept = [e for e in events if most is None or not isinstance(e, CallBegin | Arguments) or e.index < most]
        self.num_calls += sum(isinstance(event, CallBegin) for event in kept)
        return kept
