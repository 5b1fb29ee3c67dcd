"""A message in OpenAI's shape, whole or in deltas, from what a reply was found to hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

from pawl.parsers.events import Arguments, CallBegin, Content, Event, Reasoning
from pawl.parsers.reader import Reader


class MessageReader:
    """Reads one choice."""

    def __init__(
        self,
        reader: Reader,
        *,
        new_id: Callable[[], str],
        in_reasoning: bool,
        sends_reasoning: bool,
        streams_reasoning: bool,
        end_of_reasoning: int | None,
        functions: bool,
    ) -> None:
        """`new_id` names calls. `streams_reasoning`: it is sent as it comes. `end_of_reasoning`: the token that ends
        it, by which its tokens are counted; None: they are not. `functions`: the one call has OpenAI's first form."""
        self._reader = reader
        self.functions = functions
        self._new_id = new_id
        self._sends_reasoning = sends_reasoning
        self._streams_reasoning = streams_reasoning
        self._held: list[Event] = []
        """Reasoning that waits for its end."""
        self._end_of_reasoning = end_of_reasoning
        self._reasoned = in_reasoning
        self._num_tokens = 0
        self._num_reasoning: int | None = None

    @property
    def num_calls(self) -> int:
        """Calls so far."""
        return self._reader.num_calls

    @property
    def num_reasoning(self) -> int | None:
        """Tokens of reasoning so far, with the token that ends it; None where they are not counted."""
        if self._end_of_reasoning is None:
            return None
        if self._num_reasoning is not None:
            return self._num_reasoning
        return self._num_tokens if self._reasoned else 0

    def read(self, text: str, tokens: Sequence[int], last: bool) -> list[Event]:
        """What the next text and tokens make known; `last`: nothing follows them."""
        if self._num_reasoning is None and self._end_of_reasoning in tokens:
            self._num_reasoning = self._num_tokens + 1 + tokens.index(self._end_of_reasoning or 0)
        self._num_tokens += len(tokens)
        events = self._reader.push(text) + (self._reader.close() if last else [])
        self._reasoned = self._reasoned or any(isinstance(event, Reasoning) for event in events)
        if self._streams_reasoning:
            return events
        self._held += events
        if not last and all(isinstance(event, Reasoning) for event in self._held):
            return []
        events, self._held = self._held, []
        return events

    def deltas(self, events: Sequence[Event]) -> list[dict[str, Any]]:
        """One for each kind of what came, in order: many clients look at one member of a delta only."""
        deltas: list[dict[str, Any]] = []
        for kind, group in groupby(events, lambda event: "calls" if _is_call(event) else type(event).__name__):
            if kind == "calls":
                deltas.append({**self._calls(self._call_deltas(group)), "reasoning_content": None})
                continue
            text = "".join(event.text for event in group if isinstance(event, Content | Reasoning))
            if kind == "Content":
                deltas.append({"content": text, "reasoning_content": None})
            elif self._sends_reasoning:
                deltas.append({"reasoning_content": text})
        return deltas

    def _call_deltas(self, events: Iterable[Event]) -> list[dict[str, Any]]:
        """One for each call: clients take two of one index in a delta for two calls."""
        deltas: dict[int, dict[str, Any]] = {}
        for event in events:
            if isinstance(event, CallBegin):
                function = {"name": event.name, "arguments": ""}
                named = {"id": self._new_id(), "type": "function", "function": function}
                deltas[event.index] = {"index": event.index, **named}
            elif isinstance(event, Arguments):
                delta = deltas.setdefault(event.index, {"index": event.index, "function": {"arguments": ""}})
                delta["function"]["arguments"] += event.text
        return list(deltas.values())

    def message(self, events: Sequence[Event]) -> dict[str, Any]:
        """All of a reply: `content` is null where there are calls and no text."""
        content = "".join(event.text for event in events if isinstance(event, Content))
        reasoning = "".join(event.text for event in events if isinstance(event, Reasoning))
        calls = self._call_deltas(events)
        for call in calls:
            del call["index"]
        message: dict[str, Any] = {"content": content if content or not calls else None}
        message["reasoning_content"] = reasoning if reasoning and self._sends_reasoning else None
        return message | self._calls(calls) if calls else message

    def _calls(self, calls: list[dict[str, Any]]) -> dict[str, Any]:
        """The member of a message or delta that holds these calls."""
        return {"function_call": calls[0]["function"]} if self.functions else {"tool_calls": calls}


def _is_call(event: Event) -> bool:
    return isinstance(event, CallBegin | Arguments)
