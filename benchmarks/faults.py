"""An exception at any line of a live server, of every kind of server: who notices?

    python -m benchmarks.faults [--kind replicas] [--strikes 200] [--seed 0]

The server is a ghost in a process of its own (`benchmarks.fault_server`). Some clients come at once, again and again:
texts, chats, scores, grammars, a session, adapters. Their first round is undisturbed, and shows which lines are run and
what they get. In each later one a line is drawn, and raises once. Then at most one client may get an error, and no
other words than before; the server must be well, answer at once, and come to rest with nothing held. At the end of each
server: its exit status, secrets in its log, and the audit of its trace.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.attack_target import ADMIN_KEY, KEY, Target
from benchmarks.attacks import Report, come_to_rest, judged, port_of, stopped
from benchmarks.fault_server import RAISED
from pawl.lifecycle.audit import Verdict
from pawl.testing.injection import SECRET, Place

KINDS: Mapping[str, tuple[str, ...]] = {
    "plain": (),
    "replicas": ("--dp", "2"),
    "processes": ("--dp", "2", "--runtime", "processes"),
    "apart": ("--disaggregate", "1p1d", "--host-cache-gb", "0.01"),
    "tiers": ("--host-cache-gb", "0.00001", "--storage-dir", "{folder}/pages", "--kv-tokens", "256"),
    "speculation": ("--speculate", "ngram"),
    "adapters": ("--lora-paths", "x=ghost:a", "y=ghost:b", "--max-loras-per-batch", "1"),
}
PAGES = "--page-size", "4", "--context-length", "128"
PATIENCE_S = 30.0
"""For everything of one round."""
STRIKES_PER_SERVER = 40
ERROR = "an error"
LOST = "the trace could not be written"
"""What an audit says where the line that raised was about to write records."""


# ---- clients ----


class Call(NamedTuple):
    """One request of a client."""

    path: str
    body: Any


def clients(kind: str, number: int) -> list[list[Call]]:
    """What each client asks, one after the other."""
    ids, some = [101, 102, 103, 104, 105, 106, 107, 108], {"max_new_tokens": 9, "temperature": 0, "ignore_eos": True}
    chat = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "temperature": 0}
    session = f"s{number}"
    turn = {"input_ids": ids[:5], "sampling_params": some, "session_params": {"id": session}}
    found = [
        [Call("/generate", {"input_ids": ids, "sampling_params": some, "stream": True, "return_logprob": True})],
        [Call("/generate", {"text": "abababab", "sampling_params": {**some, "max_new_tokens": 24}})],
        [Call("/v1/completions", {"prompt": "hello", "n": 2, "max_tokens": 12, "temperature": 0, "stop": ["e"]})],
        [Call("/v1/chat/completions", {**chat, "stream": True, "logprobs": True, "top_logprobs": 2})],
        [Call("/generate", {"text": "x", "sampling_params": {**some, "regex": "[a-e]{2,6}", "ignore_eos": False}})],
        [Call("/v1/responses", {"input": "hello", "max_output_tokens": 6, "temperature": 0, "stream": True})],
        [
            Call("/open_session", {"capacity_of_str_len": 100, "session_id": session}),
            Call("/generate", turn),
            Call("/generate", {**turn, "input_ids": ids[5:7]}),
            Call("/close_session", {"session_id": session}),
        ],
        [
            Call("/tokenize", {"prompt": "hello"}),
            Call("/generate", {"input_ids": [*ids, *ids], "sampling_params": some}),
        ],
    ]
    if kind == "adapters":
        found += [
            [Call("/v1/completions", {"prompt": "hello", "model": name, "max_tokens": 6, "temperature": 0})]
            for name in "xy"
        ]
    return found


def said(reply: bytes) -> Any:
    """What a reply came to: the words and tokens in it, or that it was an error."""
    head, _, body = reply.partition(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: (\d+)", head)
    if not head or (length is not None and len(body) < int(length[1])):
        return ERROR  # what raised was about the connection, which is cut
    events = [line[6:] for line in body.splitlines() if line.startswith(b"data: {")] or [body]
    told: dict[Any, Any] = {}
    for event in events:
        try:
            value = json.loads(event or b"null")
        except ValueError:
            return f"no JSON: {event[:80]!r}"
        if b" 200 " not in head.split(b"\r\n")[0] or _has_failed(value):
            return ERROR
        _gather(value, told)
    return told


def _has_failed(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    ends = [value.get("meta_info", {}).get("finish_reason"), *value.get("choices", ())]
    broken = [end for end in ends if isinstance(end, dict) and "abort" in (end.get("type"), end.get("finish_reason"))]
    return bool(value.get("error")) or bool(broken) or value.get("type") in ("error", "response.failed")


def _gather(value: Any, told: dict[Any, Any]) -> None:
    if not isinstance(value, dict):
        return
    for name in ("text", "output_ids", "tokens"):
        if name in value:
            told[name] = value[name]
    if value.get("type") == "response.output_text.delta":
        told["delta"] = told.get("delta", "") + value["delta"]
    for choice in value.get("choices", ()):
        words = choice.get("text") or (choice.get("delta") or choice.get("message") or {}).get("content") or ""
        told[choice["index"]] = told.get(choice["index"], "") + words


async def _client(target: Target, calls: Sequence[Call], wait_s: float) -> list[Any]:
    await asyncio.sleep(wait_s)
    got = []
    for call in calls:
        try:
            reader, writer = await target.post(call.path, call.body, "Connection: close\r\n", ADMIN_KEY)
            try:
                got.append(said(await reader.read()))
            finally:
                writer.close()
        except OSError:
            got.append(ERROR)  # as above
    return got


async def _round(target: Target, kind: str, number: int, waits: Sequence[float]) -> list[list[Any]]:
    async with asyncio.timeout(PATIENCE_S):
        asked = clients(kind, number)
        return await asyncio.gather(*(_client(target, calls, waits[n % len(waits)]) for n, calls in enumerate(asked)))


# ---- one server ----


class Struck:
    """A server, and what steers it."""

    def __init__(self, process: subprocess.Popen[bytes], answers: int, target: Target) -> None:
        self.process = process
        self.target = target
        self._answers = os.fdopen(answers, "rb")

    def tell(self, order: Any) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        self.process.stdin.flush()
        return json.loads(self._answers.readline())


@contextmanager
def running(folder: Path, kind: str) -> Iterator[Struck]:
    """A server of this kind, told to stop at the end of the block."""
    answers, theirs = os.pipe()
    flags = [flag.format(folder=folder) for flag in (*PAGES, *KINDS[kind])]
    command = [sys.executable, "-m", "benchmarks.fault_server", str(theirs), "ghost", "--port", "0"]
    command += ["--log-format", "json", "--api-key", KEY, "--admin-api-key", ADMIN_KEY]
    command += ["--trace-dir", str(folder / "trace"), *flags]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log, pass_fds=[theirs]
        )
        os.close(theirs)
        with stopped(process):
            yield Struck(process, answers, Target("127.0.0.1", port_of(process, folder / "log")))


@dataclass
class Found:
    """What came of all strikes."""

    num_struck: int = 0
    places: set[tuple[str, str, int]] = field(default_factory=set)
    ended: int = 0
    """Clients that got an error."""
    faults: int = 0

    def fault(self, text: str) -> None:
        """Tell of one."""
        self.faults += 1
        print(text, flush=True)


def strike_some(folder: Path, kind: str, source: random.Random, count: int, found: Found) -> None:
    """One server, and so many strikes."""
    struck: list[str] = []
    with running(folder, kind) as server:
        asyncio.run(_round(server.target, kind, 0, (0.0,)))  # what is loaded at first use
        server.tell({"record": True})
        right = asyncio.run(_round(server.target, kind, 1, (0.0, 0.02)))
        places = [Place(*place) for place in server.tell({"record": False})]
        if any(ERROR in got for got in right):
            found.fault(f"{kind}: undisturbed: {right}")
            return
        fresh = [place for place in places if place[:3] not in found.places]
        for number in range(2, count + 2):
            place = source.choice(fresh or places)
            found.places.add(place[:3])
            hit, raised = source.choice((1, 1, source.randint(1, place.hits))), source.choice(RAISED).__name__
            wrong, was_struck, ended = _strike(server, kind, number, place, hit, raised, right)
            what = f"{place}, hit {hit} of {place.hits}, {raised}"
            if was_struck:
                struck.append(what)
                found.num_struck, found.ended = found.num_struck + 1, found.ended + ended
            for each in wrong:
                found.fault(f"{kind}: {what}: {each}")
            if server.process.poll() is not None or "hangs" in wrong:
                break
    for each in _ends_badly(folder, server.process):
        found.fault(f"{kind}: {each}; it was one of {struck}")


def _strike(
    server: Struck, kind: str, number: int, place: Place, hit: int, raised: str, right: list[list[Any]]
) -> tuple[list[str], bool, int]:
    """(what is wrong, whether it was struck, clients that got an error)"""
    server.tell({"arm": [place.file, place.function, place.line, hit, raised]})
    try:
        got = asyncio.run(_round(server.target, kind, number, (0.0, 0.02)))
    except TimeoutError:
        return ["hangs"], True, 0
    if server.process.poll() is not None:
        return ["it is dead"], True, 0
    was_struck = server.tell({"disarm": True})
    wrong = []
    ended = [index for index, (own, whole) in enumerate(zip(got, right, strict=True)) if own != whole]
    if len(ended) > 1:
        wrong.append(f"{len(ended)} clients lost: {[got[index] for index in ended]}")
    others = [each for index in ended for each in got[index] if each != ERROR and each not in right[index]]
    if others:
        wrong.append(f"said {others}")
    try:
        after = asyncio.run(_round(server.target, kind, -number, (0.0, 0.02)))
    except TimeoutError:
        return [*wrong, "hangs"], was_struck, len(ended)
    if after != right:
        wrong.append(f"the next clients get {[own for own, whole in zip(after, right, strict=True) if own != whole]}")
    report = Report(0.0, "ghost")
    with contextlib.suppress(OSError):
        come_to_rest(server.target, report, violations=False)  # a plan that fails is told as one
    return wrong + [f"at rest: {report.unrest}"] * bool(report.unrest), was_struck, len(ended)


def _ends_badly(folder: Path, process: subprocess.Popen[bytes]) -> Iterator[str]:
    if process.returncode != 0:
        yield f"exit {process.returncode}"
    log = (folder / "log").read_text()
    for line in log.splitlines():
        if SECRET in line or KEY in line or ADMIN_KEY in line:
            yield f"in the log: {line[:300]}"
        elif "Traceback" in line or '"event":"actor failed"' in line:
            yield f"in the log: {line[:1500]}"
    verdict, text = judged(folder / "trace")
    if verdict is not Verdict.PASS and (verdict is not Verdict.INCOMPLETE or LOST not in text):
        yield text


def main() -> None:
    parser = argparse.ArgumentParser(description="Exceptions at lines of live servers, on this machine.")
    parser.add_argument("--kind", choices=[*KINDS], action="append", help="several times; otherwise every one")
    parser.add_argument("--strikes", type=int, default=200, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    wrong = 0
    for kind in given.kind or KINDS:
        found, source = Found(), random.Random(f"{given.seed}/{kind}")
        for begin in range(0, given.strikes, STRIKES_PER_SERVER):
            with tempfile.TemporaryDirectory(prefix="pawl-faults-") as folder:
                count = min(STRIKES_PER_SERVER, given.strikes - begin)
                strike_some(Path(folder), kind, source, count, found)
        print(f"{kind}: {found.num_struck} strikes, {found.ended} clients ended; {found.faults} faults", flush=True)
        wrong += found.faults
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
