"""What must hold of the pages, as the subject itself accounts for them: after every call, and at rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TypeAlias

from pawl.testing.expectations import PropertyFailed
from pawl.testing.subject.ghost import PageGhost
from pawl.testing.subject.port import Accounting, Segment, Settings

Told: TypeAlias = Callable[[int], str]
"""What has become of a request, in words that follow its number."""


class Books:
    """Judges one accounting after the other."""

    def __init__(self, settings: Settings, first: Accounting) -> None:
        """`first`: of a subject that was just made."""
        self.all = frozenset((*first.free, *first.cached))
        """Every page there is."""
        self._free_slots = first.free_slots
        self._had: dict[int, int] = {}
        """page -> the request that had it last"""
        if len(self.all) != settings.num_pages or any(first.owned.values()):
            words = f"a subject that was made with {settings.num_pages} pages has {len(self.all)} free ones"
            raise PropertyFailed("conservation", words)

    def judge(self, now: Accounting, ghost: PageGhost, computed: Mapping[int, int]) -> None:
        """Between two calls; `computed`: positions that each request has computed. Raises PropertyFailed."""
        owners = owners_of(now)
        self._conserved(now, owners)
        for page, requests in owners.items():
            if len(requests) > 1:
                self._one_content(page, requests, now, ghost, computed)
            self._had[page] = requests[-1]
        if now.references is not None:
            self._counted(now.references, owners)

    def _conserved(self, now: Accounting, owners: Mapping[int, Sequence[int]]) -> None:
        for words, pages in (("free", now.free), ("cached", now.cached)):
            twice = [page for page, count in Counter(pages).items() if count > 1]
            if twice:
                raise PropertyFailed("conservation", f"page {twice[0]} is {words} twice: {words} are {[*pages]}")
        for request, pages in now.owned.items():
            twice = [page for page, count in Counter(pages).items() if count > 1]
            if twice:
                raise PropertyFailed("conservation", f"page {twice[0]} is twice in its table {[*pages]}", request)
        free, cached = set(now.free), set(now.cached)
        for page in sorted(free & cached):
            raise PropertyFailed("conservation", f"page {page} is free and cached at the same time")
        for page, requests in owners.items():
            if page in free or page in cached:
                kind = "free" if page in free else "cached, with nobody who uses it,"
                raise PropertyFailed("conservation", f"page {page} is {kind} while the request has it", requests[0])
        there = free | cached | owners.keys()
        for page in sorted(there - self.all):
            raise PropertyFailed("conservation", f"there is a page {page}, and all pages are {sorted(self.all)}")
        for page in sorted(self.all - there):
            had = self._had.get(page)
            words = f"page {page} is lost: not free, not cached, and no request has it"
            raise PropertyFailed("conservation", words if had is None else f"{words}; request {had} had it last", had)

    def _one_content(
        self, page: int, requests: Sequence[int], now: Accounting, ghost: PageGhost, computed: Mapping[int, int]
    ) -> None:
        places = {request: list(now.owned[request]).index(page) for request in requests}
        one, *others = [request for request in requests if request in computed]
        for other in others:
            if places[one] != places[other]:
                words = f"page {page} is page {places[one]} of its table, and page {places[other]} of request {other}'s"
                raise PropertyFailed("single_owner", words, one)
            differs = ghost.first_difference(page, places[one], one, other, computed)
            if differs is not None:
                words = f"it has page {page} together with request {other}, and they differ at position {differs}"
                raise PropertyFailed("single_owner", words, one)

    @staticmethod
    def _counted(references: Mapping[int, int], owners: Mapping[int, Sequence[int]]) -> None:
        for page in sorted(references.keys() | owners.keys()):
            said, users = references.get(page, 0), owners.get(page, ())
            if said != len(users):
                who = f"requests {', '.join(map(str, users))} have it" if users else "nobody has it"
                raise PropertyFailed("reference_counts", f"page {page} is said to be used by {said}, and {who}")

    def judge_step(self, segments: Iterable[Segment], now: Accounting, page_size: int) -> None:
        """A step reads and writes pages that its requests have."""
        free, cached = set(now.free), set(now.cached)
        for segment in segments:
            own = now.owned.get(segment.request, ())
            used = segment.pages[: -(-(segment.start + segment.count) // page_size)]
            foreign = [page for page in used if page not in own]
            if foreign:
                page = foreign[0]
                kind = "is free" if page in free else "is cached" if page in cached else "it does not have"
                words = f"a step computes it with page {page}, which {kind}: its pages are {[*own]}"
                raise PropertyFailed("own_pages", words, segment.request)

    def judge_rest(self, now: Accounting, told: Told) -> None:
        """Everybody has ended, and no step is in flight."""
        for request, pages in now.owned.items():
            if pages:
                words = f"it {told(request)}, and still has {_pages(pages)}"
                raise PropertyFailed("nothing_at_rest", words, request)
        for request in now.requests or ():
            raise PropertyFailed("nothing_at_rest", f"it {told(request)}, and is still kept", request)
        if now.free_slots != self._free_slots:
            words = f"{now.free_slots} slots are free when everybody has ended, and {self._free_slots} were at first"
            raise PropertyFailed("nothing_at_rest", words)


def owners_of(now: Accounting) -> dict[int, list[int]]:
    """page -> requests that have it"""
    owners: dict[int, list[int]] = {}
    for request, pages in now.owned.items():
        for page in pages:
            owners.setdefault(page, []).append(request)
    return owners


def _pages(pages: Collection[int]) -> str:
    return f"page {next(iter(pages))}" if len(pages) == 1 else f"pages {', '.join(map(str, pages))}"
