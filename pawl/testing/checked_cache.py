"""A user's own prefix cache, held to what it must keep at every call: beside it an account of every page that it has,
what that holds and who holds it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from pawl.memory.arrays import NO_PAGES, Int32s
from pawl.memory.prefix.base import Eviction, Hold, Insertion
from pawl.memory.prefix.events import Block, Removed, Stored
from pawl.testing.parts import Checked, shown


class CheckedCache(Checked):
    """A cache that must account for every page that it takes, and offer no others."""

    kind = "cache"

    def __init__(self, cache: Any, name: str) -> None:
        super().__init__(cache, name)
        self._pages: set[int] = set()
        """Taken, and not given back."""
        self._fences: dict[int, int] = {}
        """Of these: the newest step that may touch a page, as far as those who let go of it have said."""
        self._blocks: dict[int, Block] = {}
        """Of these: what each holds, as it was offered."""
        self._holders: Counter[int] = Counter()
        """Of these: how many hold a page."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)

    @property
    def events(self) -> Any:
        return self._part.events

    @events.setter
    def events(self, events: Any) -> None:
        self._part.events = events

    def match_and_hold(self, tokens: Int32s, namespace: str, priority: int = 0) -> Hold:
        asked = tokens.tobytes()
        with self._calling("match_and_hold"):
            hold: Hold = self._part.match_and_hold(tokens, namespace, priority)
        self._check_unwritten("match_and_hold", tokens=(tokens, asked))
        pages = self._pages_of("match_and_hold", hold, "pages")
        if hold.num_tokens > len(tokens) or hold.num_tokens != len(pages) * self._part.page_size:
            what = f"matched {hold.num_tokens} tokens with {len(pages)} pages, and was asked for {len(tokens)}"
            raise self._fail("match_and_hold", what)
        self._check_known("match_and_hold", pages, "matched")
        self._check_found("match_and_hold", pages, tokens, namespace)
        self._holders.update(pages)
        self._check_count("match_and_hold")
        return hold

    def _check_found(self, verb: str, pages: Sequence[int], tokens: Int32s, namespace: str) -> None:
        """What is found is what was looked for, from the beginning on."""
        size, before = self._part.page_size, None
        for number, page in enumerate(pages):
            asked = Block(namespace, before, tuple(tokens[number * size : (number + 1) * size].tolist()))
            if self._blocks[page] != asked:
                raise self._fail(
                    verb, f"matched page {page} for {_words(asked)}: it holds {_words(self._blocks[page])}"
                )
            before = page

    def insert(
        self, tokens: Int32s, pages: Int32s, namespace: str, hold: Hold | None, fence: int, priority: int = 0
    ) -> Insertion:
        held, before = NO_PAGES if hold is None else hold.pages, self._num_events
        given = {"tokens": (tokens, tokens.tobytes()), "pages": (pages, pages.tobytes())}
        with self._calling("insert"):
            done: Insertion = self._part.insert(tokens, pages, namespace, hold, fence, priority)
        self._check_unwritten("insert", **given)
        adopted = set(self._pages_of("insert", done, "adopted"))
        self._pages_of("insert", done.hold, "pages")
        if not adopted <= set(pages.tolist()):
            raise self._fail("insert", f"adopted {sorted(adopted)}, and was offered {pages.tolist()}")
        again = sorted(adopted & self._pages)
        self._pages |= adopted
        content = self._told("insert", "does not say that it took")
        if again:
            raise self._fail("insert", f"adopted page {again[0]}, which it has already")
        self._check_events("insert", before, Stored, adopted)
        self._offered(done, tokens, namespace, adopted)
        self._holders.subtract(held.tolist())
        self._touched(np.concatenate((held, done.adopted)), fence)
        self._check_count("insert")
        self._check_content("insert", content)
        return done

    def _offered(self, done: Insertion, tokens: Int32s, namespace: str, adopted: set[int]) -> None:
        """What is held from here on; those of its pages that are new hold what was offered."""
        size, held = self._part.page_size, done.hold.pages.tolist()
        if len(held) * size != len(tokens) or not adopted <= set(held):
            what = f"holds pages {held} for {len(tokens)} tokens, and adopted {sorted(adopted)}"
            raise self._fail("insert", what)
        for number, (before, page) in enumerate(pairwise([None, *held])):
            if page in adopted:
                block = tuple(tokens[number * size : (number + 1) * size].tolist())
                self._blocks[page] = Block(namespace, before, block)
        self._check_known("insert", held, "holds")
        self._check_found("insert", held, tokens, namespace)
        self._holders.update(held)

    def release(self, hold: Hold, fence: int, used: bool = True) -> None:
        pages = hold.pages
        with self._calling("release"):
            self._part.release(hold, fence, used)
        self._touched(pages, fence)
        self._holders.subtract(pages.tolist())
        self._check_count("release")

    def _touched(self, pages: Int32s, fence: int) -> None:
        for page in pages.tolist():
            self._fences[page] = max(fence, self._fences.get(page, 0))

    def evict(self, count: int) -> Eviction:
        return self._gives_back("evict", count)

    def reset(self) -> Eviction:
        return self._gives_back("reset")

    def _gives_back(self, verb: str, *arguments: int) -> Eviction:
        """`arguments`: how many are wanted at the least, where not all are."""
        evictable, before = self._part.evictable, self._num_events
        with self._calling(verb):
            gone: Eviction = getattr(self._part, verb)(*arguments)
        pages = self._pages_of(verb, gone, "pages")
        if not isinstance(gone.fence, int | np.integer):
            raise self._fail(verb, f"returned the fence {shown(gone.fence)}, which is no number of a step")
        self._check_known(verb, pages, "gave back")
        self._check_leaving(verb, pages)
        self._pages.difference_update(pages)
        fences = {page: self._fences.pop(page, 0) for page in pages}
        for page in pages:
            del self._blocks[page], self._holders[page]
        content = self._told(verb, "still has what it gave back,")
        newest = max(pages, key=fences.__getitem__, default=None)
        if newest is not None and gone.fence < fences[newest]:
            what = f"gave back page {newest}, which step {fences[newest]} may touch, behind step {gone.fence}"
            raise self._fail(verb, what)
        self._check_count(verb)
        self._check_content(verb, content)
        if verb == "evict":
            self._check_events(verb, before, Removed, set(pages))
        due = min((evictable, *arguments))
        if len(pages) < due:
            what = f"gave back {len(pages)} pages, and said that {due} of those wanted were evictable"
            raise self._fail(verb, what)
        return gone

    def _pages_of(self, verb: str, returned: Any, name: str) -> list[int]:
        """The pages of what a call returned, which are an array."""
        pages = getattr(returned, name, None)
        if not isinstance(pages, np.ndarray) or pages.dtype.kind != "i":
            raise self._fail(verb, f"returned {shown(returned)}, whose `{name}` are no array of page numbers")
        numbers: list[int] = pages.tolist()
        return numbers

    def _check_unwritten(self, verb: str, **given: tuple[Int32s, bytes]) -> None:
        """What it was given is as it was: it belongs to the request."""
        for name, (now, before) in given.items():
            if now.tobytes() != before:
                raise self._fail(verb, f"wrote to the {name} that it was given")

    @property
    def _num_events(self) -> int:
        return len(self._part.events or ())

    def _check_events(self, verb: str, before: int, kind: type[Stored | Removed], pages: set[int]) -> None:
        """Whoever listens is told of each page that came or left: nothing below the device knows of it otherwise."""
        if self._part.events is None:
            return
        told = [page for each in self._part.events[before:] if isinstance(each, kind) for page in each.pages.tolist()]
        if sorted(told) != sorted(pages):
            what = f"tells with its `events` that pages {told} are {kind.__name__.lower()}, and {sorted(pages)} are"
            raise self._fail(verb, what)

    def _check_leaving(self, verb: str, pages: Sequence[int]) -> None:
        """Each leaves once, nobody holds it, and what goes on from it leaves as well."""
        for page, times in Counter(pages).items():
            if times > 1:
                raise self._fail(verb, f"gave back page {page} {'twice' if times == 2 else f'{times} times'}: {pages}")
            if self._holders[page] > 0:
                raise self._fail(verb, f"gave back page {page}, which {self._holders[page]} hold")
        behind = [page for page, block in self._blocks.items() if block.parent in pages and page not in pages]
        if behind:
            what = f"gave back page {self._blocks[behind[0]].parent}, and keeps page {behind[0]}, which goes on from it"
            raise self._fail(verb, what)

    def _check_known(self, verb: str, pages: Sequence[int], did: str) -> None:
        foreign = [page for page in pages if page not in self._pages]
        if foreign:
            raise self._fail(verb, f"{did} page {foreign[0]}, which it does not have: it has {sorted(self._pages)}")

    def _told(self, verb: str, did: str) -> Mapping[int, Block]:
        """What it says that it has, and no other pages: those that it names in place of others leave the counts
        right."""
        with self._calling("content"):
            content: Mapping[int, Block] = self._part.content()
        untold = sorted(content.keys() - self._pages)
        if untold:
            raise self._fail(verb, f"{did} page {untold[0]}: it has {sorted(content)}")
        return content

    def _check_content(self, verb: str, content: Mapping[int, Block]) -> None:
        """Each page is said to hold what it was offered with."""
        for page, block in self._blocks.items():
            if content.get(page) != block:
                said = "nothing" if page not in content else _words(content[page])
                what = f"was offered page {page} with {_words(block)}, and its `content` says that it holds {said}"
                raise self._fail(verb, what)

    def _check_count(self, verb: str) -> None:
        evictable, held = self._part.evictable, self._part.held
        if evictable + held == len(self._pages):
            self._check_held(verb, held)
            return
        lost = len(self._pages) - evictable - held
        what = f"lost {lost} of its pages" if lost > 0 else f"counts {-lost} pages too many"
        told = f"it took {sorted(self._pages)} and has not given them back"
        raise self._fail(verb, f"{what}: {told}; it says that {evictable} are evictable and {held} are held")

    def _check_held(self, verb: str, held: int) -> None:
        """A cache may hold more beside what is held, but not less, and nothing for nobody."""
        mine = sorted(page for page, count in self._holders.items() if count > 0)
        if held < len(mine) or (held and not mine):
            of = f"pages {mine} are" if mine else "nobody holds any"
            raise self._fail(verb, f"left {held} pages held: {of}{' held' if mine else ''} after it")


def _words(block: Block) -> str:
    """What a page holds."""
    behind = "at the beginning" if block.parent is None else f"behind page {block.parent}"
    namespace = f" of {block.namespace!r}" if block.namespace else ""
    return f"tokens {list(block.tokens)} {behind}{namespace}"
