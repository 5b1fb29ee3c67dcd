"""A systematic forger: every field of every kind of record, changed in every way that its type has.

A forgery is one change to a sound run, written with a chain of hashes that is right again. Its `kind` is a record, a
field and a way; nothing here knows what any of them means. What is not found is a hole in the audit, or something that
no trace can show, which `IN_PRINCIPLE` lists with the reason.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import msgspec

from pawl.actors.simulation.exploration import drive, silence
from pawl.actors.simulation.faults import Faults
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.records import (
    DECODER,
    ENCODER,
    Answered,
    AnswersClosed,
    CacheChange,
    Cached,
    Checkpoint,
    Contained,
    Delivered,
    Idled,
    Record,
    StepCommitted,
    StepPlanned,
    Submitted,
    TierTold,
    Transition,
    int32s,
)
from pawl.lifecycle.states import ABORT_CAUSES, Cause, Event, State
from pawl.testing.cluster import cluster
from pawl.testing.exploring import STRATEGIES
from pawl.testing.workload import Workload

# ---- sound runs ----


def simulated(workload: Workload, seed: int, strategy: str, faults: Faults) -> list[Record]:
    """The records of one run of the simulated engine, as a reader of its trace gets them."""
    decider = STRATEGIES[strategy](seed)
    decider.begin()
    case = cluster(workload, decider, faults=faults, properties=lambda model: ())
    with silence():
        drive(case, max_steps=200_000)
    return DECODER.decode(ENCODER.encode(case.trace.records))


# ---- kinds ----


class Kind(NamedTuple):
    """What is done to which records."""

    record: str
    """A type of records, and where it has them a kind of its own."""
    field: str
    """A path within the record; empty: the record as a whole."""
    way: str

    def __str__(self) -> str:
        return f"{self.record}{'.' if self.field else ''}{self.field}: {self.way}"


class Forgery(NamedTuple):
    """One forged run."""

    kind: Kind
    at: int
    """Number of the record that is not what it was."""
    records: list[Record]

    @property
    def changed(self) -> Record | None:
        """What stands in its place; None where the record as a whole was left out or moved."""
        return self.records[self.at] if self.kind.field else None


Condition = Callable[[Sequence[Record], Forgery], bool]
"""(sound run, forgery)"""


# ---- what no trace can show ----


class Life(NamedTuple):
    """What became of a request in the sound run."""

    cause: Cause
    """Of its end; NONE: it never came to the scheduler."""
    ended_at: int
    """The record that says so; -1: none does."""
    num_computed: int
    """Positions that committed steps computed for it."""
    num_output: int


def life_of(records: Sequence[Record], request: int) -> Life:
    """The life of a request."""
    history = History()
    life = Life(Cause.NONE, -1, 0, 0)
    for at, record in enumerate(records):
        history.advance(record)
        match record:
            case StepCommitted():
                mine = (history.step.requests == request) & history.committed.live
                num_computed = int(history.committed.ends[mine].max(initial=life.num_computed))
                num_output = life.num_output + int(history.committed.counts[mine].sum())
                life = life._replace(num_computed=num_computed, num_output=num_output)
            case Transition(event=Event.FINISH | Event.ABORT) if record.request == request:
                life = life._replace(cause=record.cause, ended_at=at)
    return life


def _drew_nothing(records: Sequence[Record], forgery: Forgery) -> bool:
    return _mine(records, forgery).num_output == 0


def _computed_nothing(records: Sequence[Record], forgery: Forgery) -> bool:
    return _mine(records, forgery).num_computed == 0


def _computed_one(records: Sequence[Record], forgery: Forgery) -> bool:
    submitted: Any = records[forgery.at]
    return min(_mine(records, forgery).num_computed, len(int32s(submitted.tokens))) <= 1


def _computed_too_little(records: Sequence[Record], forgery: Forgery) -> bool:
    submitted: Any = records[forgery.at]
    return _mine(records, forgery).num_computed < len(int32s(submitted.tokens))


def _scores_nothing(records: Sequence[Record], forgery: Forgery) -> bool:
    submitted: Any = records[forgery.at]
    return submitted.sampling.top_logprobs is None or _drew_nothing(records, forgery)


def _nobody_came_after(records: Sequence[Record], forgery: Forgery) -> bool:
    return not any(isinstance(each, Submitted) for each in records[forgery.at :])


def _ended_otherwise(*causes: Cause) -> Condition:
    return lambda records, forgery: _mine(records, forgery).cause not in causes


def _mine(records: Sequence[Record], forgery: Forgery) -> Life:
    record: Any = records[forgery.at]
    return life_of(records, record.request)


def _names_nobody_live(records: Sequence[Record], forgery: Forgery) -> bool:
    """Whoever the order names, sound or forged, has ended by then or never comes."""
    lives = [life_of(records, request) for request in _named(records[forgery.at]) | _named(forgery.changed)]
    return all(life.ended_at < forgery.at for life in lives)


def _nobody_waited(records: Sequence[Record], forgery: Forgery) -> bool:
    """No request goes on with what was fetched."""
    follows = next((each for each in records[forgery.at + 1 :] if not isinstance(each, Cached)), None)
    return not (isinstance(follows, Transition) and follows.event is Event.FETCHED)


def _passes_no_decision(records: Sequence[Record], forgery: Forgery) -> bool:
    """What it was moved past are orders, checkpoints and plans that came to nothing; or an order passed arrivals."""
    at, to = forgery.at, next(to for to, each in enumerate(forgery.records) if each is records[forgery.at])
    passed = records[at + 1 : to + 1] if to > at else records[to:at]
    kinds: tuple[type[Record], ...] = (Delivered, Checkpoint, Idled, Answered, AnswersClosed)
    if isinstance(records[at], Delivered):
        kinds += (Submitted,)
        passed = [each for each in passed if not isinstance(each, Transition) or each.event is not Event.SUBMIT]
    return all(isinstance(each, kinds) for each in passed)


def _nobody_runs(records: Sequence[Record], forgery: Forgery) -> bool:
    history = History()
    for record in records[: forgery.at]:
        history.advance(record)
    return not history.working.any()


def _plans_nothing(records: Sequence[Record], forgery: Forgery) -> bool:
    """Until the next order of its kind no step is planned."""
    order: Any = records[forgery.at]
    for each in records[forgery.at + 1 :]:
        if isinstance(each, Delivered) and each.kind == order.kind:
            return True
        if isinstance(each, StepPlanned):
            return False
    return True


def _named(record: Record | None) -> set[int]:
    fields = record.fields if isinstance(record, Delivered) else {}
    return {*fields.get("requests", ()), *({fields["request"]} if "request" in fields else ())}


def _never_came(records: Sequence[Record], forgery: Forgery) -> bool:
    return _mine(records, forgery).cause is Cause.NONE and _cause(forgery) in ABORT_CAUSES


def _answered_in_place(records: Sequence[Record], forgery: Forgery) -> bool:
    """It came at a time at which the engine stopped, or beside a failure: the gateway may answer for the scheduler."""
    answer: Any = records[forgery.at]
    orders = (each for each in records if isinstance(each, Delivered) and each.time <= answer.time)
    stopped = any(order.kind in ("drain", "end_all") for order in orders)
    failed = any(isinstance(each, Contained) for each in records)
    return (_cause(forgery) is Cause.DRAINED and stopped) or (_cause(forgery) is Cause.INTERNAL and failed)


def _may_be_cut(records: Sequence[Record], forgery: Forgery) -> bool:
    return _cause(forgery) is Cause.STOP_STRING or _answered_in_place(records, forgery)


def _cause(forgery: Forgery) -> Cause:
    changed = forgery.changed
    return changed.cause if isinstance(changed, Answered) else Cause.NONE


def _always(records: Sequence[Record], forgery: Forgery) -> bool:
    return True


class Reason(NamedTuple):
    """Why forgeries of some kinds leave no contradiction."""

    text: str
    holds: Condition = _always
    """Whether it is one of these."""


_WORDS = Reason("words for people, from which nothing follows")
_SETTING = Reason("a limit that nothing came near, or a choice that nothing depended on: all decisions are the same")
_AGAIN = Reason("an order that comes again, or a little earlier or later, changes nothing, as nothing came between")
_NO_EFFECT = Reason("an order about requests that have ended, or never come, changes nothing", _names_nobody_live)
_TIMER = Reason("a timer of the engine's own that found nothing to do")
_ASKER = Reason("who waits for an order's outcome: replies to control messages are not recorded")
_CLOCK = Reason("an input has its own time, and nothing else says when it came; only the order of times is bound")
_SAME_TOKENS = Reason("how a request draws: every token is computed again, and is the same with it")
_SAME_ORDER = Reason("who goes first: all decisions are made again, and are the same with it")
_TIERS = Reason("what a tier below the device keeps is its word alone; what is fetched from it shows")
_MOMENT = Reason("a checkpoint may be taken, and a plan come to nothing, at any moment without a step in flight")
_CUT = Reason("a text may be cut within the tokens that the scheduler counted; the client alone has it", _may_be_cut)
_STOPS = Reason("a token that the request did not draw", _ended_otherwise(Cause.EOS, Cause.STOP_TOKEN))
IN_PRINCIPLE: dict[str, tuple[Reason, ...]] = {
    **{
        f"*: {move}": (
            Reason("orders, checkpoints and plans that change nothing may stand elsewhere", _passes_no_decision),
        )
        for move in ("exchanged with the next", "moved later", "moved earlier")
    },
    "Answered.cause: another word": (
        Reason("why a request was refused on its way to the scheduler, which never heard of it", _never_came),
        Reason("the gateway answers for a scheduler that stops or has failed", _answered_in_place),
        _CUT,
    ),
    "Answered.num_output: *": (_CUT,),
    "*.time: a bit *": (_CLOCK,),
    "*.time: of another record": (_CLOCK,),
    "Checkpoint: left out": (_MOMENT,),
    "Checkpoint: twice": (_MOMENT,),
    "Delivered *.fields[[]message]: another text": (_WORDS,),
    "Delivered *.number: *": (_ASKER,),
    "Delivered abort.fields[[]requests]: two exchanged": (_AGAIN,),
    "Delivered abort.fields[[]requests][[]n]: twice": (_AGAIN,),
    "Delivered abort.fields[[]*": (_NO_EFFECT,),
    "Delivered abort: *": (_NO_EFFECT,),
    "Delivered abort: twice": (_AGAIN,),
    "Delivered check_deadlines: *": (_TIMER,),
    "Delivered continue: *": (Reason("nobody waits for the engine to go on", _plans_nothing),),
    "Delivered continue: twice": (_AGAIN,),
    "Delivered drain.fields[[]grace_s]: a bit *": (_CLOCK,),
    "Delivered drain: left out": (Reason("it refuses who comes after it, and nobody does", _nobody_came_after),),
    "Delivered drain: moved *": (_AGAIN,),
    "Delivered drain: twice": (_AGAIN,),
    "Delivered end_all: left out": (Reason("nobody is left when the engine stops"),),
    "Delivered end_all: moved *": (_AGAIN,),
    "Delivered end_all: twice": (_AGAIN,),
    "Delivered finish.fields[[]*": (_NO_EFFECT,),
    "Delivered finish: *": (_NO_EFFECT,),
    "Delivered flush_cache.fields[[]timeout]: a bit *": (_CLOCK,),
    "Delivered flush_cache: *": (Reason("a flush of nothing, or one that is refused, changes nothing"),),
    "Delivered pause.fields[[]retract]: negated": (Reason("nobody runs who could be retracted", _nobody_runs),),
    "Delivered pause: *": (Reason("an engine with nothing to do does not show that it pauses", _nobody_runs),),
    "Delivered pause: twice": (_AGAIN,),
    "Delivered wait_ends: exchanged with the next": (_AGAIN,),
    "Idled: left out": (_MOMENT,),
    "Idled: twice": (_MOMENT,),
    **{
        f"Started.config[[]loop][[]{setting}]: *": (_SETTING,)
        for setting in (
            *("checkpoint_bytes", "lookahead", "max_context", "max_queued", "mixed", "num_window_pages"),
            *("prefill_chunk", "tiers][[]durable", "tiers][[]layout", "tiers][[]lease_s", "tiers][[]max_fetch_pages"),
            *("tiers][[]max_saving_pages", "tiers][[]save_pages", "window"),
        )
    },
    "Started.version: another text": (_WORDS,),
    "Started.wall: a bit *": (_WORDS,),
    "StepRolledBack.reason: *": (_WORDS,),
    "Submitted.deadline: *": (Reason("a deadline that did not pass", _ended_otherwise(Cause.TIMEOUT)),),
    "Submitted.namespace: *": (Reason("whose pages it would share, if it read any", _computed_nothing),),
    "Submitted.priority: *": (_SAME_ORDER,),
    "Submitted.rid: *": (_WORDS,),
    **{
        f"Submitted.sampling.{name}*: *": (_SAME_TOKENS,)
        for name in (
            *("frequency_penalty", "logit_bias", "min_new_tokens", "min_p", "presence_penalty", "repetition_penalty"),
            *("seed", "temperature", "top_k", "top_p"),
        )
    },
    "Submitted.sampling.embed: negated": (Reason("its prompt was not computed to the end", _computed_too_little),),
    "Submitted.sampling.eos_token_ids: *": (_STOPS,),
    "Submitted.sampling.token_ids_logprob*": (Reason("nothing was drawn that asked for any", _scores_nothing),),
    "Submitted.sampling.*_token_ids[[]n]: twice": (Reason("a set of tokens, whose order and repetition mean nothing"),),
    "Submitted.sampling.*_token_ids: two exchanged": (Reason("a set of tokens, whose order means nothing"),),
    "Submitted.sampling.max_new_tokens: *": (Reason("a limit that was not reached", _ended_otherwise(Cause.LENGTH)),),
    "Submitted.sampling.prompt_logprobs: negated": (Reason("the first token of a prompt has none", _computed_one),),
    "Submitted.sampling.stop_token_ids*": (_STOPS,),
    "Submitted.sampling.top_logprobs: *": (Reason("there was no token to give any for", _drew_nothing),),
    "Submitted.tokens*": (Reason("nothing was drawn from the prompt, and nobody shared it", _drew_nothing),),
    "TierTold filled.count: one *": (Reason("what came for requests that wait for it no more", _nobody_waited),),
    "TierTold dropped*": (_TIERS,),
    "TierTold kept*": (_TIERS,),
}
"""Kinds (with `*`) of which some forgeries leave no contradiction, and why."""


def cannot_show(records: Sequence[Record], forgery: Forgery) -> bool:
    """Whether no contradiction need be left in these `records`, which are sound, by the forgery."""
    reasons = (IN_PRINCIPLE[pattern] for pattern in IN_PRINCIPLE if fnmatchcase(str(forgery.kind), pattern))
    return any(reason.holds(records, forgery) for several in reasons for reason in several)


# ---- forging ----


def label_of(record: Record) -> str:
    """The record's type, and what tells records of this type apart."""
    name = type(record).__name__
    match record:
        case Transition(event=event, cause=cause):
            return f"{name} {event.name} {cause}" if cause is not Cause.NONE else f"{name} {event.name}"
        case Delivered(kind=kind) | TierTold(kind=kind):
            return f"{name} {kind}"
    return name


def forgeries(records: Sequence[Record], source: random.Random) -> Iterator[Forgery]:
    """One forgery of each kind that this run has, at a place drawn from `source`."""
    places: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        places.setdefault(label_of(record), []).append(index)
    for label, indices in places.items():
        for way, forge in _MOVES.items():
            at = source.choice(indices)
            forged = forge(list(records), at, source)
            if forged is not None and _by_writer(forged) != _by_writer(records):
                yield Forgery(Kind(label, "", way), at, forged)
        for at, kind, value in _fields(records, label, indices, source):
            yield Forgery(kind, at, [*records[:at], value, *records[at + 1 :]])


def _fields(
    records: Sequence[Record], label: str, indices: Sequence[int], source: random.Random
) -> Iterator[tuple[int, Kind, Record]]:
    """(place, kind, forged record): one for each way of changing each field."""
    sound = [msgspec.to_builtins(records[index]) for index in indices]
    columns = type(records[indices[0]]).__annotations__
    names = type(records[indices[0]]).__struct_fields__
    drawn = {way: source.randrange(len(indices)) for way in range(64)}
    found: dict[Kind, tuple[int, Record]] = {}
    order = list(range(len(indices)))
    source.shuffle(order)
    # As many places as it takes to meet each kind once: some fields are empty in some records.
    for number in order[:12]:
        record = records[indices[number]]
        others = [records[indices[other]] for other in order if other != number][:6]
        for name in names:
            value = getattr(record, name)
            theirs = [getattr(other, name) for other in others]
            for path, way, forged in _variants(value, theirs, str(columns[name]), source):
                kind = Kind(label, name + path, way)
                if kind not in found:
                    changed = msgspec.structs.replace(record, **{name: forged})
                    if ENCODER.encode(changed) != ENCODER.encode(record):
                        found[kind] = indices[number], changed
    del sound, drawn
    for kind, (at, changed) in found.items():
        yield at, kind, changed


Variant = tuple[str, str, Any]
"""(path within the value, way, forged value)"""


def _variants(value: Any, others: Sequence[Any], annotation: str, source: random.Random) -> Iterator[Variant]:
    if isinstance(value, bytes):
        yield from _of_column(value, others, annotation, source)
    elif isinstance(value, msgspec.Struct):
        for name in type(value).__struct_fields__:
            theirs = [getattr(other, name) for other in others if isinstance(other, msgspec.Struct)]
            inner = _variants(getattr(value, name), theirs, str(type(value).__annotations__[name]), source)
            for path, way, forged in inner:
                yield f".{name}{path}", way, msgspec.structs.replace(value, **{name: forged})
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        names: tuple[str, ...] = value._fields
        for name in names:
            theirs = [getattr(other, name) for other in others if hasattr(other, name)]
            inner = _variants(getattr(value, name), theirs, str(type(value).__annotations__[name]), source)
            for path, way, forged in inner:
                yield f".{name}{path}", way, value._replace(**{name: forged})
    elif isinstance(value, dict):
        yield from _of_dict(value, others, source)
    elif isinstance(value, tuple | list):
        yield from _of_sequence(value, others, source)
    else:
        yield from _of_plain(value, others, source)


def _of_plain(value: Any, others: Sequence[Any], source: random.Random) -> Iterator[Variant]:
    other = [each for each in others if each != value]
    if isinstance(value, bool):
        yield "", "negated", not value
        return
    if isinstance(value, State | Event | Cause):
        yield "", "another word", source.choice([word for word in type(value) if word is not value])
    elif isinstance(value, int):
        yield "", "one more", value + 1
        yield "", "one less", value - 1
    elif isinstance(value, float):
        yield "", "a bit more", value + 1e-3
        yield "", "a bit less", value - 1e-3
    elif isinstance(value, str):
        yield "", "another text", value + "x"
    elif value is None:
        given = [each for each in others if each is not None]
        yield "", "given", source.choice(given) if given else 1
    if value is not None and any(each is None for each in others):
        yield "", "taken away", None
    if other and not isinstance(value, State | Event | Cause):
        yield "", "of another record", source.choice(other)


def _of_dict(value: dict[Any, Any], others: Sequence[Any], source: random.Random) -> Iterator[Variant]:
    for key in value:
        yield f"[{key}]", "left out", {name: each for name, each in value.items() if name != key}
        theirs = [other[key] for other in others if isinstance(other, dict) and key in other]
        for path, way, forged in _variants(value[key], theirs, "", source):
            yield f"[{key}]{path}", way, value | {key: forged}


def _of_sequence(value: Sequence[Any], others: Sequence[Any], source: random.Random) -> Iterator[Variant]:
    kind = type(value)
    listed = list(value)
    if listed:
        at = source.randrange(len(listed))
        yield "[n]", "left out", kind([*listed[:at], *listed[at + 1 :]])
        yield "[n]", "twice", kind([*listed[: at + 1], *listed[at:]])
        theirs = [each[0] for each in others if isinstance(each, tuple | list) and each]
        if isinstance(listed[at], CacheChange):
            theirs = [each for each in theirs if isinstance(each, CacheChange)]
        for path, way, forged in _variants(listed[at], theirs, "", source):
            yield f"[n]{path}", way, kind([*listed[:at], forged, *listed[at + 1 :]])
    if len(listed) > 1:
        at = source.randrange(len(listed) - 1)
        yield "", "two exchanged", kind([*listed[:at], listed[at + 1], listed[at], *listed[at + 2 :]])
    filled = [each for each in others if each and each != value and isinstance(each, tuple | list)]
    if filled:
        yield "", "of another record", kind(source.choice(filled))


def _of_column(value: bytes, others: Sequence[Any], annotation: str, source: random.Random) -> Iterator[Variant]:
    width = 16 if "Keys" in annotation else 1 if "UInt8" in annotation or annotation.startswith("bytes") else 4
    items = [value[at : at + width] for at in range(0, len(value), width)]

    def number(item: bytes, by: int) -> bytes:
        if width == 16:
            return bytes([item[0] ^ 1]) + item[1:]
        most = 1 << (8 * width)
        return ((int.from_bytes(item, "little") + by) % most).to_bytes(width, "little")

    if items:
        at = source.randrange(len(items))
        yield "[n]", "one more", b"".join([*items[:at], number(items[at], 1), *items[at + 1 :]])
        yield "[n]", "one less", b"".join([*items[:at], number(items[at], -1), *items[at + 1 :]])
        yield "[n]", "left out", b"".join([*items[:at], *items[at + 1 :]])
        yield "[n]", "twice", b"".join([*items[: at + 1], *items[at:]])
        yield "", "empty", b""
        yield "", "cut within an item", value[:-1]
    if len(set(items)) > 1:
        at = source.choice([at for at in range(len(items) - 1) if items[at] != items[at + 1]])
        yield "", "two exchanged", b"".join([*items[:at], items[at + 1], items[at], *items[at + 2 :]])
    filled = [each for each in others if isinstance(each, bytes) and each != value]
    if filled:
        yield "", "of another record", source.choice(filled)
    elif value == b"" and not others:
        yield "", "given", bytes(width)


# ---- whole records ----


def _by_writer(records: Sequence[Record]) -> tuple[list[int], list[int]]:
    """What the scheduler wrote, and what the gateway wrote: how these fall between each other means nothing."""
    gateway = [id(each) for each in records if isinstance(each, Answered | AnswersClosed)]
    return [id(each) for each in records if not isinstance(each, Answered | AnswersClosed)], gateway


Move = Callable[[list[Record], int, random.Random], "list[Record] | None"]


def _later(records: list[Record], at: int, source: random.Random) -> list[Record] | None:
    to = at + source.randint(2, 12)
    if to >= len(records):
        return None
    return [*records[:at], *records[at + 1 : to + 1], records[at], *records[to + 1 :]]


def _earlier(records: list[Record], at: int, source: random.Random) -> list[Record] | None:
    to = at - source.randint(2, 12)
    if to < 0:
        return None
    return [*records[:to], records[at], *records[to:at], *records[at + 1 :]]


def _with_next(records: list[Record], at: int, source: random.Random) -> list[Record] | None:
    if at + 1 >= len(records):
        return None
    return [*records[:at], records[at + 1], records[at], *records[at + 2 :]]


def _cut(records: list[Record], at: int, source: random.Random) -> list[Record] | None:
    return records[:at] if at else None


_MOVES: dict[str, Move] = {
    "left out": lambda records, at, source: [*records[:at], *records[at + 1 :]],
    "twice": lambda records, at, source: [*records[: at + 1], *records[at:]],
    "exchanged with the next": _with_next,
    "moved later": _later,
    "moved earlier": _earlier,
    "the last": _cut,
}
