"""Edits of the subject in tests/pawl/subjects.py, each of which breaks one property first."""

from __future__ import annotations

from typing import NamedTuple


class Canary(NamedTuple):
    property: str
    """The one that it breaks."""
    told: str
    """Words of the violation, as a regular expression."""
    old: str
    new: str


CANARIES = {
    "pages of a prefix in the wrong order": Canary(
        "single_owner",
        "of its table",
        ("            live.pages.append(page)\n        live.planned = len"),
        ("            live.pages.insert(0, page)\n        live.planned = len"),
    ),
    "a prefix of another salt": Canary(
        "page_content",
        "whose salt is",
        "return (live.request.salt, *live.tokens[:end])",
        "return (*live.tokens[:end],)",
    ),
    "a page is found that was evicted": Canary(
        "conservation",
        "twice",
        "self.free.append(self.cache.pop(unused[0]))",
        "self.free.append(self.cache[unused[0]])",
    ),
    "the block table has no last page": Canary(
        "page_table",
        "are needed",
        "tuple(live.pages), draws",
        "tuple(live.pages[:-1]), draws",
    ),
    "a page stands twice in a block table": Canary(
        "page_table",
        "stands twice",
        "tuple(live.pages), draws",
        "tuple(live.pages[:1] * len(live.pages)), draws",
    ),
    "a token is fed that is another": Canary(
        "known_tokens",
        "a step feeds token 7",
        "        given = tokens if",
        ("        tokens[-1:] = [7]\n        given = tokens if"),
    ),
    "output is lost with the memory": Canary(
        "known_tokens",
        "tokens",
        "        live.life += 1",
        ("        live.life += 1\n        del live.tokens[len(live.request.prompt) :]"),
    ),
    "an abort frees nothing": Canary(
        "conservation",
        "is lost",
        "        self.end(self.live[request])",
        (
            "        del self.live[request]\n"
            "        self.running = [each for each in self.running if each.request.number != request]"
        ),
    ),
    "a page is freed twice": Canary(
        "conservation",
        "is free twice",
        ("                self.free.append(page)\n        live.pages"),
        ("                self.free += [page, page]\n        live.pages"),
    ),
    "a page is taken and stays free": Canary(
        "conservation",
        "page 100 is",
        "page = self.free.pop(0)",
        "page = self.free[0]",
    ),
    "a user is not counted": Canary(
        "reference_counts",
        "is said to be used by 1",
        "references=dict(self.users)",
        "references={page: min(count, 1) for page, count in self.users.items()}",
    ),
    "a step uses a page that is free": Canary(
        "own_pages",
        "which is free",
        "tuple(live.pages), draws",
        "(*live.pages[:-1], (self.free or live.pages)[-1]), draws",
    ),
    "a request that has ended is kept": Canary(
        "nothing_at_rest",
        "is still kept",
        "            requests=list(self.live)",
        "            requests=list(range(1, self.num_sent + 1)) if self.num_sent == 1 else list(self.live)",
    ),
    "one too many run": Canary(
        "limits_hold",
        "may run",
        "len(self.running) < self.settings.max_running",
        "len(self.running) <= self.settings.max_running",
    ),
    "one position too many": Canary(
        "limits_hold",
        "are allowed",
        "left, segments, gave_way = self.settings.max_step_tokens,",
        "left, segments, gave_way = self.settings.max_step_tokens + 1,",
    ),
    "newest first": Canary(
        "admission_order",
        "came later",
        "(-request.priority, order)",
        "(-request.priority, -order)",
    ),
    "smallest priority first": Canary(
        "admission_order",
        "of priority",
        "(-request.priority, order)",
        "(request.priority, order)",
    ),
    "one page is never used": Canary(
        "bounded_progress",
        "nothing is scheduled any more|it has not ended after",
        "            if not self.free:\n",
        "            if len(self.free) < 2:\n",
    ),
    "who gave way is forgotten": Canary(
        "bounded_progress",
        "is not kept any more",
        "                self.running.remove(victim)\n",
        ("                self.running.remove(victim)\n                self.live.pop(victim.request.number)\n"),
    ),
    "requests that fit are refused": Canary(
        "bounded_progress",
        r"it was refused \(too long\)",
        "        self.num_sent += 1\n",
        ("        self.num_sent += 1\n        if len(request.prompt) > 4:\n            raise Refused('too long')\n"),
    ),
    "a token is not told": Canary(
        "outputs",
        "is told nothing",
        ("            if segment.samples:\n                outputs.append"),
        (
            "            if segment.samples and len(live.tokens) != len(live.request.prompt) + 2:\n"
            "                outputs.append"
        ),
    ),
    "another token is told": Canary(
        "outputs",
        "its prompt alone implies",
        ("        return Output(live.request.number, [token])\n\n    def lost"),
        ("        return Output(live.request.number, [7])\n\n    def lost"),
    ),
    "one token too many": Canary(
        "ends_once",
        "has not ended",
        "        if stopped or len(live.tokens) == live.most:",
        "        if stopped or len(live.tokens) > live.most:",
    ),
    "a stop token ends nothing": Canary(
        "ends_once",
        "has its stop token",
        "stopped = token in live.request.stop_token_ids",
        "stopped = False",
    ),
    "who is aborted runs on": Canary(
        "abort_is_total",
        "was aborted",
        "        self.end(self.live[request])",
        "        pass",
    ),
    "a flush forgets nothing": Canary(
        "flush_at_rest",
        "are still cached",
        ("        self.free += self.cache.values()\n        self.cache.clear()\n"),
        "",
    ),
    "a flush is refused": Canary(
        "flush_at_rest",
        "a flush was refused",
        ("        if self.live:\n            return False"),
        "        return False",
    ),
    "a call raises": Canary(
        "raises_nothing",
        "submit raised ZeroDivisionError",
        "        self.num_sent += 1\n",
        "        self.num_sent += 1 + 0 // (2 - self.num_sent)\n",
    ),
    "a call does not return": Canary(
        "returns",
        "schedule does not return",
        ("                if not unused:\n                    return False"),
        ("                while not unused:\n                    pass"),
    ),
    "nonsense is returned": Canary(
        "well_formed",
        "which is no Step",
        "        return Step(segments, gave_way, own",
        "        return segments if gave_way else Step(segments, gave_way, own",
    ),
    "tokens that were given are changed": Canary(
        "well_formed",
        "changed the tokens",
        "live.tokens.append(tokens[segment.request])",
        "live.tokens.append(tokens.pop(segment.request))",
    ),
}
