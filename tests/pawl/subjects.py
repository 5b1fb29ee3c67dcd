"""A scheduler that is not ours, for tests of `pawl.testing.subject`: it offers all that the port knows."""

from __future__ import annotations

from collections.abc import Sequence

from pawl.testing.subject import Accounting, Offers, Output, Request, Segment, Settings, Step, Subject, Tokens


class Live:
    """A request that has not ended."""

    def __init__(self, request: Request, order: int) -> None:
        self.request = request
        self.tokens = list(request.prompt)
        self.place = (-request.priority, order)
        self.pages: list[int] = []
        self.planned = 0
        self.pending = 0
        self.life = 0

    @property
    def known(self) -> int:
        return len(self.tokens) + self.pending

    @property
    def most(self) -> int:
        return len(self.request.prompt) + self.request.max_new_tokens


class Everything(Subject):
    """Chunks, steps in flight that may be lost, a cache with salts that can be flushed, priorities, stop tokens."""

    offers = Offers(
        in_flight=(1, 2, 3),
        prefix_caching=(False, True),
        chunked_prefill=(False, True),
        step_tokens=True,
        flush=True,
        priorities=True,
        salts=True,
        stop_tokens=True,
        lost_steps=True,
    )

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.free = list(range(100, 100 + settings.num_pages))
        self.users: dict[int, int] = {}
        self.cache: dict[tuple[object, ...], int] = {}
        self.live: dict[int, Live] = {}
        self.running: list[Live] = []
        self.num_sent = 0

    def submit(self, request: Request) -> None:
        self.num_sent += 1
        self.live[request.number] = Live(request, self.num_sent)

    def abort(self, request: int) -> None:
        self.end(self.live[request])

    def end(self, live: Live) -> None:
        del self.live[live.request.number]
        self.running = [each for each in self.running if each is not live]
        self.release(live)

    def schedule(self) -> Step | None:
        left, segments, gave_way = self.settings.max_step_tokens, [], []
        for live in list(self.running):
            count = min(live.known - live.planned, left)
            while count > 0 and live in self.running and not self.grow(live, live.planned + count):
                victim = max(self.running, key=lambda each: each.place)
                self.running.remove(victim)
                gave_way.append(victim.request.number)
                segments = [each for each in segments if each.request != victim.request.number]
                self.release(victim)
            if count > 0 and live in self.running:
                segments.append(self.segment(live, count))
                left -= count
        waiting = sorted((each for each in self.live.values() if each not in self.running), key=lambda each: each.place)
        for live in waiting if not gave_way else ():
            self.reuse(live)
            count = min(live.known - live.planned, left)
            whole = self.settings.chunked_prefill or count == live.known - live.planned
            room = len(self.running) < self.settings.max_running and count > 0 and whole
            if not room or not self.grow(live, live.planned + count):
                self.release(live)
                break
            self.running.append(live)
            segments.append(self.segment(live, count))
            left -= count
        if not segments and not gave_way:
            return None
        lives = [(self.live[each.request], self.live[each.request].life) for each in segments]
        return Step(segments, gave_way, own=list(zip(segments, lives, strict=True)))

    def segment(self, live: Live, count: int) -> Segment:
        start = live.planned
        live.planned += count
        draws = live.planned == live.known and live.known < live.most
        tokens = live.tokens[start : start + count]
        live.pending += draws
        given = tokens if len(tokens) == count else None
        return Segment(live.request.number, start, count, tuple(live.pages), draws, given)

    def apply(self, step: Step, tokens: Tokens) -> Sequence[Output]:
        outputs = []
        for segment, (live, life) in step.own:
            if live.life != life or live.request.number not in self.live:
                continue
            if segment.samples:
                live.pending -= 1
                live.tokens.append(tokens[segment.request])
            self.share(live, segment.start + segment.count)
            if segment.samples:
                outputs.append(self.output(live))
        return outputs

    def output(self, live: Live) -> Output:
        token = live.tokens[-1]
        stopped = token in live.request.stop_token_ids
        if stopped or len(live.tokens) == live.most:
            self.end(live)
            return Output(live.request.number, [token], "stop" if stopped else "length")
        return Output(live.request.number, [token])

    def lost(self, step: Step) -> None:
        for segment, (live, life) in step.own:
            if live.life == life and live.request.number in self.live:
                live.planned = segment.start
                live.pending -= bool(segment.samples)

    def key(self, live: Live, end: int) -> tuple[object, ...]:
        return (live.request.salt, *live.tokens[:end])

    def share(self, live: Live, computed: int) -> None:
        size = self.settings.page_size
        for end in range(size, computed + 1, size) if self.settings.prefix_caching else ():
            self.cache.setdefault(self.key(live, end), live.pages[end // size - 1])

    def reuse(self, live: Live) -> None:
        size = self.settings.page_size
        for end in range(size, len(live.tokens), size):
            page = self.cache.get(self.key(live, end))
            if page is None:
                break
            self.users[page] = self.users.get(page, 0) + 1
            live.pages.append(page)
        live.planned = len(live.pages) * size

    def grow(self, live: Live, length: int) -> bool:
        while len(live.pages) * self.settings.page_size < length:
            if not self.free:
                unused = [key for key, page in self.cache.items() if not self.users.get(page)]
                if not unused:
                    return False
                self.free.append(self.cache.pop(unused[0]))
            page = self.free.pop(0)
            self.users[page] = 1
            live.pages.append(page)
        return True

    def release(self, live: Live) -> None:
        for page in live.pages:
            self.users[page] -= 1
            if not self.users[page] and page not in self.cache.values():
                self.free.append(page)
        live.pages, live.planned, live.pending = [], 0, 0
        live.life += 1

    def flush(self) -> bool:
        if self.live:
            return False
        self.free += self.cache.values()
        self.cache.clear()
        return True

    def pages(self) -> Accounting | None:
        return Accounting(
            free=list(self.free),
            owned={number: list(live.pages) for number, live in self.live.items() if live.pages},
            cached=[page for page in self.cache.values() if not self.users.get(page)],
            references=dict(self.users),
            requests=list(self.live),
        )
