"""Numbers of pages: another scheduler has its own, and records count from 0."""

from __future__ import annotations


class Places:
    """Gives each page a number below `num_pages`: its own where that can be."""

    def __init__(self, num_pages: int) -> None:
        self._num_pages = num_pages
        self._places: dict[int, int] = {}
        self._taken: set[int] = set()
        self._unused = 0
        """No number below it is unused."""

    def of(self, page: int) -> int:
        """All pages that are too many have the number behind the last."""
        place = self._places.get(page)
        if place is None:
            place = page
            if not 0 <= page < self._num_pages or page in self._taken:
                while self._unused in self._taken:
                    self._unused += 1
                place = min(self._unused, self._num_pages)
            self._places[page] = place
            self._taken.add(place)
        return place
