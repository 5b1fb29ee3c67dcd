"""The ghost that takes block tables: a model whose memory says, for every place of every page, what was written there.

    pages[page][offset] = (token, position, hash of all tokens up to here, request, step)

A step writes its positions and then reads all of them, as a forward pass does in each layer. What it reads must be the
request's own text: pages in a wrong order, shares of what was overwritten, and writes that went elsewhere show at the
first read, with who wrote there instead. The token that it draws follows from the text alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from pawl.gpu.ghost.oracle import Sequel
from pawl.testing.expectations import PropertyFailed
from pawl.testing.subject.port import Request, Segment


class Entry(NamedTuple):
    """What one place of a page holds."""

    token: int
    position: int
    chain: int
    """Hash of the salt and of all tokens up to this one."""
    request: int
    step: int
    """Who wrote it, and when."""


class Text:
    """A request's tokens as the model has them: those that steps in flight have drawn included."""

    def __init__(self, request: Request) -> None:
        salt = hashlib.blake2b(request.salt.encode(), digest_size=8).digest() if request.salt else b""
        self._sequel = Sequel(request.prompt, int.from_bytes(salt))
        self.number = request.number
        self.salt = request.salt
        self.num_prompt = self.num_known = len(request.prompt)

    def token(self, position: int) -> int:
        """The token at a position, be it known or still to be drawn."""
        while len(self._sequel.entries) <= position:
            self._sequel.push(self._sequel.likeliest())
        return self._sequel.entries[position][0] & 0xFFFFFFFF

    def chain(self, position: int) -> int:
        """Hash of everything up to a position that is known."""
        return self._sequel.entries[position][1]

    def output(self, count: int) -> list[int]:
        """The first tokens that it must get."""
        return [self.token(self.num_prompt + number) for number in range(count)]


class Undo(NamedTuple):
    """What makes a step undone that is lost."""

    places: list[tuple[int, int, Entry | None]]
    """(page, offset, what was there before), oldest first"""
    known: dict[int, int]


class PageGhost:
    """Pages of `page_size` places, and the texts of requests."""

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.pages: dict[int, dict[int, Entry]] = {}
        self.texts: dict[int, Text] = {}

    def begin(self, request: Request) -> None:
        """A request has come."""
        self.texts[request.number] = Text(request)

    def forget(self, pages: Iterable[int]) -> None:
        """These are free: nothing that they hold may be read any more."""
        for page in pages:
            self.pages.pop(page, None)

    def compute(self, step: int, segments: Sequence[Segment], draws: Mapping[int, bool]) -> tuple[dict[int, int], Undo]:
        """One forward pass: the token that each request draws that `draws` one. Raises PropertyFailed."""
        undo = Undo([], {segment.request: self.texts[segment.request].num_known for segment in segments})
        for segment in segments:
            self._check(segment)
            self._write(step, segment, undo)
        for segment in segments:
            self._read(segment)
        return {each.request: self._draw(each) for each in segments if draws[each.request]}, undo

    def undo(self, what: Undo) -> None:
        """The step was never computed."""
        for page, offset, before in reversed(what.places):
            held = self.pages.get(page, {})
            held.pop(offset, None)
            if before is not None and page in self.pages:
                held[offset] = before
        for request, known in what.known.items():
            self.texts[request].num_known = known

    def first_difference(self, page: int, index: int, one: int, other: int, computed: Mapping[int, int]) -> int | None:
        """The first position at which two requests, both of which have `page` at `index` of their tables, have computed
        something else."""
        begin = index * self.page_size
        end = min(begin + self.page_size, computed[one], computed[other])
        for position in range(begin, end):
            if self.texts[one].chain(position) != self.texts[other].chain(position):
                return position
        return None

    # ---- one segment ----

    def _check(self, segment: Segment) -> None:
        text, end = self.texts[segment.request], segment.start + segment.count
        what = f"positions {segment.start} to {end - 1}"
        if end > text.num_known:
            raise self._failed(segment, "known_tokens", f"a step computes {what}, but only {text.num_known} are known")
        for place, token in enumerate(segment.tokens or ()):
            own = text.token(segment.start + place)
            if token != own:
                words = f"a step feeds token {token} at position {segment.start + place}, where the request has {own}"
                raise self._failed(segment, "known_tokens", words)
        needed = -(-end // self.page_size)
        if len(segment.pages) < needed:
            words = f"a step computes {what} with {len(segment.pages)} pages of {self.page_size}: {needed} are needed"
            raise self._failed(segment, "page_table", words)
        twice = [page for number, page in enumerate(segment.pages) if page in segment.pages[:number]]
        if twice:
            raise self._failed(segment, "page_table", f"page {twice[0]} stands twice in its table {[*segment.pages]}")

    def _write(self, step: int, segment: Segment, undo: Undo) -> None:
        text, size = self.texts[segment.request], self.page_size
        for position in range(segment.start, segment.start + segment.count):
            page, offset = segment.pages[position // size], position % size
            held = self.pages.setdefault(page, {})
            undo.places.append((page, offset, held.get(offset)))
            held[offset] = Entry(text.token(position), position, text.chain(position), segment.request, step)

    def _read(self, segment: Segment) -> None:
        text, size = self.texts[segment.request], self.page_size
        for position in range(segment.start + segment.count):
            page = segment.pages[position // size]
            entry = self.pages.get(page, {}).get(position % size)
            if entry is None or entry.chain != text.chain(position):
                words = f"position {position} is read from page {page}, {self._held(entry, position, text)}"
                raise self._failed(segment, "page_content", words)

    def _held(self, entry: Entry | None, position: int, text: Text) -> str:
        if entry is None:
            return "which holds nothing there: it was never written, or was free since"
        who = "the request itself" if entry.request == text.number else f"request {entry.request}"
        wrote = f"token {entry.token} of position {entry.position}, written by {who} in step {entry.step}"
        salt = self.texts[entry.request].salt
        if salt != text.salt:
            return f"which holds {wrote}, whose salt is {salt!r} and not {text.salt!r}"
        if (entry.position, entry.token) == (position, text.token(position)):
            return f"which holds {wrote}, after other tokens than the request's"
        return f"which holds {wrote}"

    def _draw(self, segment: Segment) -> int:
        text, end = self.texts[segment.request], segment.start + segment.count
        if end < text.num_prompt:
            raise self._failed(segment, "known_tokens", f"a token is drawn after position {end - 1}, within the prompt")
        text.num_known = max(text.num_known, end + 1)
        return text.token(end)

    @staticmethod
    def _failed(segment: Segment, name: str, words: str) -> PropertyFailed:
        return PropertyFailed(name, words, segment.request)
