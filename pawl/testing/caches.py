"""The prefix cache of a simulated engine, beside books of its pages that are kept page by page, without a tree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NoReturn, TypeAlias

from pawl.memory.arrays import Int32s
from pawl.memory.memory import Memory
from pawl.memory.prefix.base import Eviction, Hold, Insertion, PrefixCache
from pawl.memory.prefix.node import NO_PRIORITY
from pawl.testing.uses import Uses

Report: TypeAlias = Callable[[str, str], None]
"""(property, what is wrong)"""
Key: TypeAlias = tuple[int, int]
TOP = -1
"""In place of the page before the first one."""


class Wrong(Exception):
    """A cache is not as it is stated."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(name, text)
        self.property = name
        self.text = text


@dataclass(slots=True)
class Page:
    """One cached page, as the calls so far say. Times count calls."""

    place: tuple[str, int, bytes]
    """Its namespace, the page before it, and its tokens."""
    created: int
    fence: int
    """Newest step that may touch it, as far as those who had it have said."""
    used: int = 0
    """When its last holder let go of it."""
    hits: int = 0
    """Requests that have used it."""
    priority: int = NO_PRIORITY
    """The largest of theirs."""
    num_holders: int = 0
    num_behind: int = 0
    """Pages that go on from it."""


LEAVES: Mapping[str, Callable[[Page], Key]] = {
    "lru": lambda page: (page.used, 0),
    "mru": lambda page: (-page.used, 0),
    "lfu": lambda page: (page.hits, page.used),
    "fifo": lambda page: (page.created, 0),
    "filo": lambda page: (-page.created, 0),
    "priority": lambda page: (page.priority, page.used),
}
"""Of each policy, by what pages leave: the least first."""


class CacheAsStated:
    """A request begins with the longest beginning that is cached, and what it computes beyond that is cached once. Of
    pages that nobody holds and nothing goes on from, those leave first that the policy says, by who has used them, as
    many as are wanted and no more than memory lacks, and behind each step that may touch them."""

    name: ClassVar[str] = "cache_as_stated"

    def __init__(self, eviction: str, page_size: int, report: Report, *, exact: bool) -> None:
        """`report` hears of what is wrong first; what follows from that is not judged. `exact`: all that is cached can
        be found."""
        self._failed = False
        self._key = LEAVES[eviction]
        self._page_size = page_size
        self._report = report
        self._exact = exact
        self._pages: dict[int, Page] = {}
        self._at: dict[tuple[str, int, bytes], int] = {}
        self._held: dict[int, tuple[Hold, list[int]]] = {}
        """By identity: what is held."""
        self._num_unheld = 0
        self.lacking: int | None = None
        """Pages that are free less than are wanted at the moment; None: nobody wants any."""
        self.uses: Uses | None = None
        """Who uses pages; None: whoever says so."""
        self._now = 0

    def judge(self, cache: Any, call: Callable[[], None]) -> None:
        """What a call says, and what the cache counts after it."""
        if self._failed:
            return
        try:
            call()
            self._count(cache)
        except Wrong as wrong:
            self._failed = True
            self._report(wrong.property, wrong.text)

    def matched(self, hold: Hold, tokens: Int32s, namespace: str, priority: int) -> None:
        """A request has found this."""
        self._now += 1
        pages, there = hold.pages.tolist(), self._walk(tokens, namespace)
        wrong = pages != there if self._exact else pages != there[: len(pages)]
        if wrong or hold.num_tokens != len(pages) * self._page_size:
            self._fail(f"pages {pages} were found for {tokens.tolist()}, and {there} are there")
        if self.uses is not None:
            self.uses.matched(hold)
        self._hold(hold, pages, 0, priority)

    def inserted(
        self,
        done: Insertion,
        offered: tuple[Int32s, Int32s, str],
        before: Hold | None,
        fence: int,
        priority: int,
    ) -> None:
        """`offered`: tokens, pages, namespace; `before`: what was held until now."""
        self._now += 1
        tokens, pages, namespace = offered
        there = self._walk(tokens, namespace)
        new = pages[len(there) :].tolist()
        if done.adopted.tolist() != new:
            self._fail(f"pages {done.adopted.tolist()} were adopted for {tokens.tolist()}, and {new} are new")
        size, page = self._page_size, there[-1] if there else TOP
        for number, own in enumerate(new, len(there)):
            place = namespace, page, tokens[number * size : (number + 1) * size].tobytes()
            self._pages[own] = Page(place, self._now, fence)
            self._at[place] = own
            self._num_unheld += 1
            if page != TOP:
                self._pages[page].num_behind += 1
            page = own
        covered = 0 if before is None else before.num_tokens // size
        if self.uses is not None:
            self.uses.inserted(done.hold, before)
        self._hold(done.hold, [*there, *new], covered, priority)
        if before is not None:
            self._let_go(before, fence)

    def released(self, hold: Hold, fence: int, *, used: bool) -> None:
        """Somebody has let go; not `used`: nothing came of it."""
        self._now += 1
        pages = self._held.get(id(hold), (hold, []))[1]
        if self.uses is not None and (wrong := self.uses.released(hold, pages, used=used)):
            self._fail(wrong)
        for page in [] if used else pages:
            self._pages[page].hits -= 1
        self._let_go(hold, fence)

    def leaves(self) -> dict[int, Key]:
        """What may leave now, with what decides who does."""
        return {
            number: self._key(page)
            for number, page in self._pages.items()
            if not page.num_holders and not page.num_behind
        }

    def evicted(self, gone: Eviction, wanted: int, leaves: Mapping[int, Key]) -> None:
        """Pages have left, as so many were wanted, when these might."""
        self._now += 1
        if self.lacking is not None and wanted > self.lacking:
            self._fail(f"{wanted} pages are made to leave where {self.lacking} are lacking")
        pages = gone.pages.tolist()
        known = [self._pages[page] for page in pages if page in self._pages]
        if len(known) < len(pages) or any(page.num_holders for page in known):
            self._fail(f"of pages {pages}, which left, one is held or was not there")
        if any(page.place[1] in pages and number not in pages for number, page in self._pages.items()):
            self._fail(f"pages {pages} left before those that go on from them")
        if len(pages) < min(wanted, self._num_unheld):
            self._fail(f"{len(pages)} pages left where {wanted} were wanted and {self._num_unheld} might")
        newest = max((page.fence for page in known), default=0)
        if gone.fence < newest:
            raise Wrong("no_reuse_before_fence", f"pages {pages} left behind step {gone.fence}, not {newest}")
        stayed = {page: key for page, key in leaves.items() if page not in pages}
        next_one = min(stayed, key=stayed.__getitem__, default=None)
        if next_one is not None and any(self._key(page) > stayed[next_one] for page in known):
            self._fail(f"pages {pages} left before page {next_one}, whose turn it was")
        for number, page in zip(pages, known, strict=True):
            self._forget(number, page)

    @property
    def num_pages(self) -> int:
        """That are cached."""
        return len(self._pages)

    def _count(self, cache: Any) -> None:
        """The cache counts its pages, those that nobody holds and the others."""
        mine, told = (self._num_unheld, self.num_pages - self._num_unheld), (cache.evictable, cache.held)
        if mine != told:
            self._fail(f"{told} pages are said to be held by nobody and by somebody, and {mine} are")

    def _forget(self, number: int, page: Page) -> None:
        del self._pages[number], self._at[page.place]
        self._num_unheld -= 1
        before = self._pages.get(page.place[1])
        if before is not None:
            before.num_behind -= 1

    def _walk(self, tokens: Int32s, namespace: str) -> list[int]:
        """The longest beginning that is cached."""
        found: list[int] = []
        size, page = self._page_size, TOP
        for end in range(size, len(tokens) + 1, size):
            place = namespace, page, tokens[end - size : end].tobytes()
            if place not in self._at:
                break
            page = self._at[place]
            found.append(page)
        return found

    def _hold(self, hold: Hold, pages: list[int], covered: int, priority: int) -> None:
        """Somebody holds these, and has used the first `covered` before."""
        self._held[id(hold)] = hold, pages
        for number, each in enumerate(pages):
            page = self._pages[each]
            self._num_unheld -= not page.num_holders
            page.num_holders += 1
            if number >= covered:
                page.hits += 1
                page.priority = max(page.priority, priority)

    def _let_go(self, hold: Hold, fence: int) -> None:
        for each in self._held.pop(id(hold), (hold, []))[1]:
            page = self._pages[each]
            page.num_holders -= 1
            page.fence = max(page.fence, fence)
            if not page.num_holders:
                page.used = self._now
                self._num_unheld += 1

    def _fail(self, text: str) -> NoReturn:
        raise Wrong(self.name, text)


class _Watched:
    """Methods in place of a cache's own."""

    own: ClassVar[Any]
    """The class of the cache."""
    books: ClassVar[CacheAsStated]

    def match_and_hold(self, tokens: Int32s, namespace: str, priority: int = 0) -> Hold:
        hold: Hold = self.own.match_and_hold(self, tokens, namespace, priority)
        self.books.judge(self, partial(self.books.matched, hold, tokens, namespace, priority))
        return hold

    def insert(
        self, tokens: Int32s, pages: Int32s, namespace: str, hold: Hold | None, fence: int, priority: int = 0
    ) -> Insertion:
        done: Insertion = self.own.insert(self, tokens, pages, namespace, hold, fence, priority)
        offered = tokens, pages, namespace
        self.books.judge(self, partial(self.books.inserted, done, offered, hold, fence, priority))
        return done

    def release(self, hold: Hold, fence: int, used: bool = True) -> None:
        self.own.release(self, hold, fence, used)
        self.books.judge(self, partial(self.books.released, hold, fence, used=used))

    def evict(self, count: int) -> Eviction:
        leaves = self.books.leaves()
        gone: Eviction = self.own.evict(self, count)
        self.books.judge(self, partial(self.books.evicted, gone, count, leaves))
        return gone

    def reset(self) -> Eviction:
        gone: Eviction = self.own.reset(self)
        self.books.judge(self, partial(self.books.evicted, gone, self.books.num_pages, {}))
        return gone


def watch_cache(cache: PrefixCache, eviction: str, report: Report, *, exact: bool) -> CacheAsStated:
    """From here on the calls of this cache, in which nothing is, are judged by `CacheAsStated`."""
    kind = type(cache)
    methods = {name: getattr(_Watched, name) for name in ("match_and_hold", "insert", "release", "evict", "reset")}
    books = CacheAsStated(eviction, cache.page_size, report, exact=exact)
    # The same object, as holds and others refer to it.
    cache.__class__ = type(kind.__name__, (kind,), {**methods, "__slots__": (), "own": kind, "books": books})
    return books


def watch_room(memory: Memory, books: CacheAsStated) -> None:
    """From here on no more pages are made to leave the cache, of which these are the books, than this memory lacks."""
    make_room = memory.make_room

    def watched(count: int) -> bool:
        books.lacking = max(count - memory.pages.free, 0)
        try:
            return make_room(count)
        finally:
            books.lacking = None

    memory.make_room = watched  # type: ignore[method-assign]
