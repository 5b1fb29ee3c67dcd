"""docs/mutation.md, from the results."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from tests.mutation.equivalents import EQUIVALENTS
from tests.mutation.sweep import Results, Row, noticed

INTRODUCTION = """\
Every function of four rooms, changed in one place: a statement left out, a condition turned round, a boundary moved,
arguments or neighbouring statements swapped, another member of an enum, a return too early, one more or less. The
edits are made from the syntax tree (`tests/mutation/edits.py`), not chosen by a person. Logs, messages, annotations and
assertions are left alone; so are the tables of modules, functions that run only while modules are imported, and edits
without which a name has no value.

Each edit of a sample is planted in a process of its own and asked about until somebody notices it: first the quickest
of the default tests that reach the edited statement; then the default `pawl explore`, from a seed that is always the
same, for a stated number of schedules; then the other tests that reach it, as far as a stated number of seconds goes.
An endless loop, told by processor time, and a process that waits for ever, told by silence, are noticed. Programs that
a test starts run with the edit where the system lets a process have files of its own (root on Linux does), but nobody
has measured what they reach.

A sample is the first edits of all rooms together in an order that their names and its seed give. Whatever survives is
read: it changes nothing that anybody could see, and is struck out with the reason (below); or the code was not needed,
and is deleted; or it gets a test. **Survived** is what nothing noticed when it was judged for the first time, before it
was read: tests made for earlier samples are there, none was made for this one. The share is an estimate for the whole
four rooms as they were then, with its interval of 95 % (Wilson's). *Now* is what is left of it. With few seconds of
tests the share is too high: what a slower test would notice counts as survived, and what no measurement knew to reach
the statement was asked only where its name says that it is about the file. A test has noticed an edit if alone it fails
with it and passes without. `make mutation ARGS=--unreached` lists the statements that no test was seen to reach.

Seed 6 was judged without the tests of the face (`tests/pawl`), the later ones with them; those before stand in the
history of this page. All were judged on two cores that others used (AMD EPYC, load 8 to 50). Seeds 6 and 8 had some
25 s of tests as in quiet; seeds 9 and 10 10 s, and 20 schedules; seeds 11 and 12 25 s and 20 schedules, with the golden
runs (`tests/mutants/golden.txt`), which reach two edits in three, and with what tests reach measured anew where test
files had changed; seed 13 25 s and the later ones 20 s. Time did not suffice for all of these: what was judged is the
beginning of a sample, in its order (of seeds 13 and 14, of each of its halves, of which each process had one; of seeds
15 and 16, of what of it is of actors and of what is of the other rooms). Seed 17 was judged whole, with 40 s of tests
as they took under load, without those of the face. With those that change nothing, 30 of 158 survived of seed 8, 14 of
68 of seed 9, 21 of 90 of seed 11, 10 of 87 of seed 12, 20 of 110 of seed 13, 14 of 105 of seed 14, 25 of 189 of seed
15, 10 of 94 of seed 16 and 20 of 160 of seed 17.

After seed 9 classes were closed rather than edits, each by one test that walks all of it: what an actor answers after a
failure, what judges the answers to control messages, every number in memory, every sentence that a property can say,
every record that cannot be made, every counter, the price of all that a chat template can do. After seed 11: golden
runs hold what replicas say of themselves on the way, what gateways measure, and what judges say of forged records;
judges keep nothing of who has ended, and are held to a clock that stands still and to rows beyond their first room;
exports of a known run, and what is said of another scheduler's run in which one thing is another, stay as they are;
refusals that no test had reached have one. Four survivors of seed 11 were of code that was not needed: it is gone.

Before seed 13 the statements that no test had reached were gone through: what was dead is gone, most of the rest has a
test. After it, again by class: an exception at any line of actors that are driven by hand costs one request at the most
(`tests/actors/raising.py`; of the router it found an abort that was lost), judges have all their attributes from their
beginning, every check of memory is asked for a loop, a trace that ends anywhere lacks what was decided there, an outbox
sends in the order in which a mailbox is read, and what has a bound reaches it and no more. Two survivors of seed 13
were of code that was not needed: it is gone. Two containers that know nothing of each other may be changed in any
order: no such edit is made any more, and those that were are in no row.

Before and after seed 15, by class: what every judge keeps and says over 290 runs (`tests/lifecycle/judges.txt`), all
that a loop does when it fails at any of 45 calls (`tests/loops/failures.txt`), every message that an actor takes, and
when, in the golden runs, wishes for sessions of which loop and judge must think the same, each part of memory against
all that may be in its way, whom a router tells what.

Before seed 16, where no golden run comes, by nets that walk whole parts: what each strategy makes of known scenarios
(`tests/actors/explorations.txt`), what two processes say in a hundred known lives of their link
(`tests/actors/conversations.txt`), all the ways in which actors go on behind an exception at any of their lines, what
is read in known lives of a folder of traces, what an audit reports of the runs of `judges.txt` and how these look in
other formats, and loops of which tests had seen one turn. Of 40 edits drawn in the files that it is about, one such
test alone notices 25 (`actors/simulation`), 34 (what is said between processes), 26 (files of traces, the audit) and 30
(exports, slices, what is handed over, the audit). The lives of a link found a system that could not be stopped before
it began, where a process in its order was lost. Of 62 edits that end a loop after its first turn 12 survived 4 s of
tests: one of them changes nothing, the others are noticed now. All such nets are frozen: each names the command, or the
digest, with which a change that is meant is stated.

With seed 17, by class: a plan that has taken somebody's memory away fails at each call behind that
(`tests/loops/test_recovery_scarce.py`; no run of the net of failing loops had come there, and it found a waiting
request that was ended for what was not its fault), and a wire of ZeroMQ is walked in one thread. Two survivors were of
code that was not needed: it is gone.

Seed 23 was judged whole, of seed 29 what is of actors and of loops, both with 25 s of tests as measured, without those
of the face. With those that change nothing, 20 of 147 survived of seed 23 and 19 of 110 of seed 29; four of the latter,
all of loops, are noticed where 90 s of tests are asked. By class: no filter makes a text for less than a sixth of its
price (`tests/actors/test_text_sandbox.py`; the price of one form of `join` led there, and to templates that took all
memory by doubling a block or a list), what a request went through, tables of any size, whom a plan that fails was for,
a checkpoint that holds more than a loop writes, every number that a loop begins with, checksums of pages of any length,
orders of grammars. Four survivors were of code that was not needed: it is gone. Seed 31 was judged after that, what is
of actors and of loops, with 60 s of tests: with those that change nothing 8 of 55 survived.

Seeds 37, 38 and 39 were drawn from those files alone of which earlier samples had left most, so their shares are no
estimate for a room: what carries messages (`actors/runtime`), router and replicas, adapters and fetches (37, 60 s of
tests); the same without what carries messages (38, 40 s); that alone (39, 45 s and no exploration). With those that
change nothing 20 of 200, 4 of 120 and 6 of 34 survived: 18 of 143 in what carries messages. By class: a checkpoint with
fetches under way is restored and gone on from, all that a step says of rows goes to the requests that have them, and
what fails twice for the sake of one request ends that one (a stop that a router could never handle ended the router).
Two survivors were of code that was not needed: it is gone.

Seed 43 was drawn from what carries messages alone (45 s of tests, no exploration), so its share is none of a room;
seed 44 from all rooms, with 40 s and no exploration, after what seed 43 had led to: its share is an estimate for the
four rooms. Time sufficed for 187 and 155 edits, the beginnings of the samples. With those that change nothing 20 of
187 and 14 of 155 survived. By class: known lives of event loops, of threads, of visitors (`tests/actors/turns.txt`),
of who reads wires (`tests/actors/readings.txt`) and of mailboxes, which were written while seed 43 was judged without
them and notice eight of its survivors (timers that are set as an actor begins came to them later); each lie of another
process is counted and changes nothing; what a system refuses changes nothing. Seed 43 found a spawn that was refused
and yet changed what an actor of that name accepts from elsewhere, and beside it that other processes were told of an
actor which comes up late only when it ran: what it sent as it began was not heard, and the next number was the loss of
its process. Three survivors were of code that was not needed: it is gone. Seven survivors of seed 44 stand below:
nobody has found time to close them."""


def page(results: Results) -> Iterator[str]:
    """Its lines."""
    rows = [row for name, row in results.rows.items() if name not in EQUIVALENTS]
    yield "# Mutation"
    yield ""
    yield "<!-- Written by `make mutation`; do not edit. -->"
    yield ""
    yield from INTRODUCTION.splitlines()
    yield ""
    yield "| seed | room | judged | by tests | by explore | survived | share | now |"
    yield "| --- | --- |" + " ---: |" * 6
    for seed in sorted({row.seed for row in rows}):
        of_seed = [row for row in rows if row.seed == seed]
        for room in results.edits:
            yield _line("", room, [row for row in of_seed if row.file.startswith(f"{room}/")])
        yield _line(str(seed), "all", of_seed)
    yield ""
    edits = ", ".join(f"{room} {count:,}" for room, count in results.edits.items())
    yield f"Edits there are: {edits}."
    limits = f"{results.schedules:,} schedules and {results.test_seconds:,.0f} s of tests"
    yield f"Judged last on {results.date}, with {limits}."
    yield ""
    yield "## Survivors"
    for row in sorted(rows, key=lambda row: (row.file, row.line)):
        if row.survives:
            yield ""
            yield from _survivor(row)
    yield ""
    yield "## Edits that change nothing"
    yield ""
    for name, reason in sorted(EQUIVALENTS.items()):
        place, _, key = name.partition(": ")
        yield f"- {place}: {_code(key)}: {reason}"


def _line(seed: str, room: str, rows: Sequence[Row]) -> str:
    survived = sum(row.survived_first for row in rows)
    cells = (
        seed,
        room,
        len(rows),
        sum(noticed(row.tested) for row in rows),
        sum(noticed(row.explored) for row in rows),
        survived,
        _share(survived, len(rows)),
        sum(row.survives for row in rows),
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def _share(part: int, whole: int) -> str:
    low, high = interval(part, whole)
    return f"{100 * part / whole:.1f} % ({100 * low:.1f}-{100 * high:.1f})" if whole else "-"


def interval(part: int, whole: int) -> tuple[float, float]:
    """Wilson's interval of 95 % of a share, of which `part` in `whole` were seen."""
    if whole == 0:
        return 0.0, 1.0
    z = 1.96
    middle = (part + z * z / 2) / (whole + z * z)
    half = z * math.sqrt(part * (whole - part) / whole + z * z / 4) / (whole + z * z)
    return max(0.0, middle - half), min(1.0, middle + half)


def _survivor(row: Row) -> Iterator[str]:
    before, _, after = row.key.partition(" => ")
    yield f"`{row.file}:{row.line}`, {row.function}, {row.kind}, seed {row.seed}; {_asked(row)}"
    yield ""
    yield "```diff"
    yield f"- {before}"
    yield f"+ {after}"
    yield "```"


def _asked(row: Row) -> str:
    explored = f"{row.explored.count} schedules" if row.explored is not None else "not explored"
    tested = f"{row.tested.count} tests" if row.tested is not None else "no test reaches it"
    return f"{tested}, {explored}"


def _code(text: str) -> str:
    return f"`` {text} ``" if "`" in text else f"`{text}`"
