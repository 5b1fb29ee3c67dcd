"""What a reply of `/v1/responses` is made of: items, and the events that tell how they grow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pawl.parsers.events import Arguments, CallBegin, Content, Event, Reasoning

PARTS = {"message": "output_text", "reasoning": "reasoning_text"}
"""Type of an item -> type of its one part."""


class ItemWriter:
    """Items from what a reply is found to hold. One is open at a time, the last."""

    def __init__(self, new_id: Callable[[], str], new_call_id: Callable[[], str]) -> None:
        """`new_id` gives digits for the name of an item."""
        self.items: list[dict[str, Any]] = []
        self._new_id = new_id
        self._new_call_id = new_call_id
        self._texts: list[str] = []
        """Of the open item."""
        self._logprobs: list[Any] = []
        self._told: list[dict[str, Any]] = []

    @property
    def _open(self) -> dict[str, Any] | None:
        last = self.items[-1] if self.items else None
        return last if last is not None and last["status"] == "in_progress" else None

    def write(self, events: Sequence[Event], logprobs: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """What `events` change, as events of the API, without numbers. `logprobs` are those of the text in them."""
        for event in events:
            match event:
                case CallBegin(_, name):
                    call = {"call_id": self._new_call_id(), "name": name, "arguments": ""}
                    self._begin("function_call", "fc", call)
                case Arguments(_, text):
                    self._grow(text, "response.function_call_arguments.delta")
                case Reasoning(text):
                    if self._open is None or self._open["type"] != "reasoning":
                        self._begin("reasoning", "rs", {"summary": [], "content": []})
                    self._grow(text, "response.reasoning_text.delta", content_index=0)
                case Content(text):
                    if self._open is None or self._open["type"] != "message":
                        self._begin("message", "msg", {"role": "assistant", "content": []})
                    scores, logprobs = list(logprobs), ()
                    self._logprobs += scores
                    self._grow(text, "response.output_text.delta", content_index=0, logprobs=scores)
        return self._taken()

    def close(self, status: str, logprobs: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """The open item ends, if there is one. `logprobs`: of the whole reply, which the last message then shows."""
        messages = [item for item in self.items if item["type"] == "message"]
        if logprobs and messages:
            self._logprobs = list(logprobs)
            for part in messages[-1]["content"]:
                part["logprobs"] = self._logprobs
        if self._open is not None:
            self._end(self._open, status)
        return self._taken()

    def _end(self, item: dict[str, Any], status: str) -> None:
        text, place = "".join(self._texts), len(self.items) - 1
        names = {"item_id": item["id"], "output_index": place}
        if item["type"] == "function_call":
            item["arguments"] = text
            done = {**names, "name": item["name"], "arguments": text}
            self._told.append({"type": "response.function_call_arguments.done", **done})
        else:
            part = _part(item["type"], text, self._logprobs)
            item["content"] = [part]
            kind = PARTS[item["type"]]
            done = {**names, "content_index": 0, "text": text}
            if kind == "output_text":
                done["logprobs"] = self._logprobs
            self._told.append({"type": f"response.{kind}.done", **done})
            self._told.append({"type": "response.content_part.done", **names, "content_index": 0, "part": part})
        item["status"] = status
        self._told.append({"type": "response.output_item.done", "output_index": place, "item": dict(item)})

    def _begin(self, kind: str, prefix: str, members: dict[str, Any]) -> None:
        if self._open is not None:
            self._end(self._open, "completed")
        item = {"type": kind, "id": f"{prefix}_{self._new_id()}", "status": "in_progress", **members}
        self.items.append(item)
        self._texts, self._logprobs = [], []
        place = len(self.items) - 1
        self._told.append({"type": "response.output_item.added", "output_index": place, "item": dict(item)})
        if kind in PARTS:
            names = {"item_id": item["id"], "output_index": place, "content_index": 0}
            self._told.append({"type": "response.content_part.added", **names, "part": _part(kind, "", [])})

    def _grow(self, text: str, kind: str, **members: Any) -> None:
        self._texts.append(text)
        names = {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}
        self._told.append({"type": kind, **names, **members, "delta": text})

    def _taken(self) -> list[dict[str, Any]]:
        told, self._told = self._told, []
        return told


def _part(kind: str, text: str, logprobs: list[Any]) -> dict[str, Any]:
    part: dict[str, Any] = {"type": PARTS[kind], "text": text}
    return part | ({"annotations": [], "logprobs": logprobs} if kind == "message" else {})
