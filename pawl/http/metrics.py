"""`GET /metrics`: Prometheus' text format, written by hand from the gateway's books and the scheduler's dump."""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from pawl.actors.gateway import Gateway
from pawl.actors.measures import Histogram, Operation
from pawl.actors.runtime.system import ActorStatistics
from pawl.gpu.heap import resident_bytes
from pawl.http.connections import REASONS
from pawl.http.info import ServerInfo
from pawl.lifecycle.states import ABORT_CAUSES, FINISH_CAUSES, Cause, State

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Number = int | float


class Metric(NamedTuple):
    """How one value of the scheduler's dump is shown."""

    path: tuple[str, ...]
    name: str
    kind: str
    help: str
    label: str | None = None
    """Set where the value is an object: the label that tells its members apart."""
    skip: frozenset[str] = frozenset()
    members: tuple[str, ...] = ()
    """Those that are always there, 0 where the dump leaves them out: else the first increase of one cannot be seen."""


_NO_CLASS = frozenset({"total", "page_size"})
_LIVE_STATES = tuple(state.name.lower() for state in State if not state.terminal and state is not State.NEW)
_ENDS = tuple(cause for cause in Cause if cause in FINISH_CAUSES | ABORT_CAUSES)

FROM_STATE: Sequence[Metric] = (
    Metric(("requests",), "pawl_requests", "gauge", "Live requests by lifecycle state.", "state", members=_LIVE_STATES),
    Metric(("waiting",), "pawl_requests_waiting", "gauge", "Requests that wait to be admitted."),
    Metric(("running",), "pawl_requests_running", "gauge", "Requests that hold a slot."),
    Metric(("in_flight",), "pawl_steps_in_flight", "gauge", "Steps that were launched and not committed."),
    Metric(("pages",), "pawl_pages", "gauge", "KV pages by owner class; each is in one.", "owner", _NO_CLASS),
    Metric(
        ("window_pages",), "pawl_window_pages", "gauge", "Pages of windowed layers by owner class.", "owner", _NO_CLASS
    ),
    Metric(("pages", "page_size"), "pawl_page_size_tokens", "gauge", "Tokens in one KV page."),
    Metric(("slots",), "pawl_slots", "gauge", "Request slots.", "class"),
    Metric(
        ("effective_max_running_requests_per_dp",),
        "pawl_max_running_requests",
        "gauge",
        "Requests that may have a slot.",
    ),
    Metric(("sessions",), "pawl_sessions", "gauge", "Sessions by phase.", "phase"),
    Metric(("adapters",), "pawl_adapters", "gauge", "LoRA adapters by phase.", "phase"),
    Metric(("cache",), "pawl_prefix_cache", "gauge", "Prefix cache: the cache's own counts.", "item"),
    Metric(("tiers",), "pawl_cache_tiers", "gauge", "Cache tiers below the device: their own counts.", "item"),
    Metric(("prefill",), "pawl_remote_prefill", "gauge", "Prompts that prefill replicas compute for it.", "item"),
    Metric(("counters", "steps"), "pawl_steps_total", "counter", "Steps launched."),
    Metric(("counters", "steps_lost"), "pawl_steps_lost_total", "counter", "Steps rolled back after a lost worker."),
    Metric(
        ("steps", "phase_seconds"),
        "pawl_step_phase_seconds_total",
        "counter",
        "Seconds of the scheduler by phase: receiving messages, planning steps, launching them, committing results.",
        "phase",
    ),
    Metric(("counters", "retractions"), "pawl_retractions_total", "counter", "Requests taken back to the queue."),
    Metric(("counters", "drafts"), "pawl_spec_decode_num_drafts_total", "counter", "Drafts that were tried."),
    Metric(
        ("counters", "draft_tokens"), "pawl_spec_decode_num_draft_tokens_total", "counter", "Tokens of those drafts."
    ),
    Metric(
        ("counters", "accepted_tokens"),
        "pawl_spec_decode_num_accepted_tokens_total",
        "counter",
        "Tokens of drafts that were right.",
    ),
    Metric(
        ("counters", "dropped_tokens"), "pawl_dropped_tokens_total", "counter", "Tokens computed and not delivered."
    ),
    Metric(("counters", "received"), "pawl_scheduler_received_total", "counter", "Requests the scheduler took."),
    Metric(("counters", "finished"), "pawl_scheduler_finished_total", "counter", "Requests that finished."),
    Metric(("counters", "aborted"), "pawl_scheduler_aborted_total", "counter", "Requests that were aborted."),
)

FROM_RANKS: Sequence[tuple[str, str, str, str]] = (
    ("steps", "pawl_rank_steps_total", "counter", "Steps that a rank has applied since the start of its group."),
    ("step_s", "pawl_rank_step_seconds_total", "counter", "Seconds that a rank was in steps."),
    (
        "waiting_s",
        "pawl_rank_waiting_seconds_total",
        "counter",
        "Seconds of these in which a rank has waited for other ranks: in meetings, sums, gathers and exchanges.",
    ),
    ("resident_bytes", "pawl_rank_resident_memory_bytes", "gauge", "Memory of a rank's process that is in use."),
    ("device_bytes", "pawl_rank_device_memory_bytes", "gauge", "Memory of its device that a rank has taken."),
    ("restarts", "pawl_rank_restarts_total", "counter", "How often a rank was started again, with its group."),
)
"""(field of RankState, metric, kind, help)."""
_TOKENS = {
    "prefill": ("steps", "prefill_tokens"),
    "cached": ("counters", "cached_tokens"),
    "generated": ("counters", "generated_tokens"),
}
States: TypeAlias = Sequence[tuple[dict[str, str], Mapping[str, Any]]]

FROM_ACTORS: Sequence[tuple[str, str, str, str]] = (
    ("rejected", "pawl_mailbox_rejected_total", "counter", "Messages that a full mailbox refused."),
    ("delivered", "pawl_mailbox_delivered_total", "counter", "Messages that an actor handled."),
    ("dead_letters", "pawl_dead_letters_total", "counter", "Messages that no actor could take."),
    ("contained", "pawl_contained_failures_total", "counter", "Requests ended because an actor failed on them."),
    ("alive", "pawl_actor_alive", "gauge", "Whether an actor runs."),
)
"""(field of ActorStatistics, metric, kind, help)."""


class Page:
    """The text under construction."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(self, name: str, kind: str, text: str, samples: Iterable[tuple[Mapping[str, str], Number]]) -> None:
        """One metric with its samples, (labels, value) each; nothing when there are none."""
        lines = [f"{name}{_labels(labels)} {_number(value)}" for labels, value in samples]
        if lines:
            self._lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *lines]

    def add_histograms(self, name: str, text: str, samples: Iterable[tuple[Mapping[str, str], Histogram]]) -> None:
        """One metric, with a histogram for each set of labels."""
        self._lines += [f"# HELP {name} {text}", f"# TYPE {name} histogram"]
        for labels, histogram in samples:
            running = 0
            bounds = (*(f"{bound:g}" for bound in histogram.bounds), "+Inf")
            for bound, count in zip(bounds, histogram.counts, strict=True):
                running += count
                self._lines.append(f"{name}_bucket{_labels({**labels, 'le': bound})} {running}")
            self._lines.append(f"{name}_sum{_labels(labels)} {_number(histogram.total)}")
            self._lines.append(f"{name}_count{_labels(labels)} {running}")

    def text(self) -> str:
        return "\n".join(self._lines) + "\n"


def exposition(
    gateway: Gateway,
    info: ServerInfo,
    state: Mapping[str, Any] | None,
    actors: Mapping[str, ActorStatistics],
    cut: Mapping[str, int],
) -> str:
    """The whole page. `state`: the scheduler's dump, None when it did not answer. `cut`: connections by reason."""
    page = Page()
    _from_server(page, info)
    _from_gateway(page, gateway, info)
    text = "Properties that were seen not to hold: defects of Pawl."
    page.add("pawl_violations_total", "counter", text, _violations(gateway, state))
    text = "Connections and requests that were cut: too slow, too large, malformed, or too many."
    page.add("pawl_connections_cut_total", "counter", text, [({"reason": why}, cut.get(why, 0)) for why in REASONS])
    page.add("pawl_scheduler_up", "gauge", "Whether the scheduler answered.", [({}, int(state is not None))])
    states = _labelled(state)
    for metric in FROM_STATE:
        samples = [(whose | labels, value) for whose, each in states for labels, value in _samples(metric, each)]
        page.add(metric.name, metric.kind, metric.help, samples)
    if states:
        _from_steps(page, states)
    ranks = [(whose | {"rank": str(rank["rank"])}, rank) for whose, each in states for rank in each.get("ranks", ())]
    for field, name, kind, text in FROM_RANKS:
        page.add(name, kind, text, [(labels, rank[field]) for labels, rank in ranks])
    for field, name, kind, text in FROM_ACTORS:
        page.add(name, kind, text, [({"actor": actor}, int(getattr(n, field))) for actor, n in actors.items()])
    depths = [
        ({"actor": actor, "lane": lane}, depth)
        for actor, n in actors.items()
        for lane, depth in (("system", n.waiting_system), ("control", n.waiting_control), ("data", n.waiting_data))
    ]
    page.add("pawl_mailbox_depth", "gauge", "Messages that wait in an actor's mailbox.", depths)
    return page.text()


def _labelled(state: Mapping[str, Any] | None) -> States:
    """The dump of each scheduler, with the labels that tell them apart; there are none where there is only one."""
    if state is None:
        return []
    return [({"replica": str(rank)}, each) for rank, each in enumerate(state.get("replicas", ()))] or [({}, state)]


def _samples(metric: Metric, state: Mapping[str, Any]) -> Iterator[tuple[dict[str, str], Number]]:
    """What one scheduler's dump has of a metric."""
    value = _at(state, metric.path)
    if metric.label is None:
        if _is_number(value):
            yield {}, value
    elif isinstance(value, Mapping):
        members = dict.fromkeys(metric.members, 0) | dict(value)
        for key, member in members.items():
            if key not in metric.skip and _is_number(member):
                yield {metric.label: str(key)}, member


def _from_steps(page: Page, states: States) -> None:
    durations = [(whose, _at(state, ("steps", "duration_seconds"))) for whose, state in states]
    if any(each is not None for _, each in durations):
        text = "Seconds from the launch of a step to its result."
        told = [(whose, Histogram.of(each)) for whose, each in durations if each is not None]
        page.add_histograms("pawl_step_duration_seconds", text, told)
    text = "For how long each step is delayed, as somebody wants it; 0 is not at all."
    delays = [(whose, _at(state, ("forward_sleep_time",)) or 0) for whose, state in states]
    page.add("pawl_step_delay_seconds", "gauge", text, delays)
    text = "What replies call the weights that serve, and whether an update of them is under way."
    served = [(whose, _at(state, ("weights",))) for whose, state in states]
    weights = [
        (whose | {"version": str(each["version"]), "state": str(each["state"])}, 1)
        for whose, each in served
        if each is not None
    ]
    page.add("pawl_weights_info", "gauge", text, weights)
    tokens = [(whose | {"kind": kind}, _at(state, path)) for whose, state in states for kind, path in _TOKENS.items()]
    text = "Tokens by what they cost, as steps are committed: computed in prompts, found in the cache, generated."
    page.add("pawl_tokens_total", "counter", text, [(labels, count) for labels, count in tokens if _is_number(count)])


def _from_server(page: Page, info: ServerInfo) -> None:
    page.add("pawl_info", "gauge", "The server.", [({"version": info.version, "model": info.model_name}, 1)])
    usage = resource.getrusage(resource.RUSAGE_SELF)
    text = "Seconds of processors that the process has used."
    page.add("process_cpu_seconds_total", "counter", text, [({}, usage.ru_utime + usage.ru_stime)])
    text = "When the server started, in seconds since the epoch."
    page.add("process_start_time_seconds", "gauge", text, [({}, info.created)])
    text = "Memory of the process that is in use."
    page.add("process_resident_memory_bytes", "gauge", text, [({}, resident)] if (resident := resident_bytes()) else [])


def _from_gateway(page: Page, gateway: Gateway, info: ServerInfo) -> None:
    requests, totals = gateway.requests, gateway.totals
    model = {"gen_ai_provider_name": "pawl", "gen_ai_request_model": info.model_name}
    durations = [({"gen_ai_operation_name": str(name), **model}, requests.durations[name]) for name in Operation]
    for name, text, member in (
        ("request_duration", "Seconds from submission to the end.", "request"),
        ("time_to_first_token", "Seconds to the first output token.", "first_token"),
        ("time_per_output_token", "Seconds for each output token after the first.", "output_token"),
    ):
        histograms = [(labels, getattr(each, member)) for labels, each in durations]
        page.add_histograms(f"gen_ai_server_{name}_seconds", text, histograms)
    page.add_histograms("pawl_queue_time_seconds", "Seconds from arrival to admission.", [({}, requests.queue_time)])
    simple: Sequence[tuple[str, str, str, Number]] = (
        ("pawl_requests_submitted_total", "counter", "Requests that reached the gateway.", totals.submitted),
        ("pawl_requests_open", "gauge", "Requests without their terminal reply yet.", gateway.num_live),
        ("pawl_prompt_tokens_total", "counter", "Prompt tokens of ended requests.", totals.prompt_tokens),
        ("pawl_cached_tokens_total", "counter", "Prompt tokens that came from the cache.", totals.cached_tokens),
        ("pawl_generated_tokens_total", "counter", "Output tokens of ended requests.", totals.generated_tokens),
        (
            "pawl_generation_throughput",
            "gauge",
            "Output tokens per second, over the last ten seconds.",
            gateway.requests.throughput.per_second(gateway.context.now()),
        ),
        (
            "pawl_cache_hit_rate",
            "gauge",
            "Share of prompt tokens that came from the cache, since the start.",
            totals.cached_tokens / totals.prompt_tokens if totals.prompt_tokens else 0.0,
        ),
        (
            "pawl_trace_lost_records_total",
            "counter",
            "Records that the trace lacks: refused by the device, or by a full mailbox.",
            gateway.trace_losses.num_lost,
        ),
        ("pawl_trace_losing", "gauge", "Whether records are being lost now.", int(bool(gateway.trace_losses.trouble))),
        ("pawl_late_replies_total", "counter", "Answers that came after their ask had ended.", gateway.asks.num_late),
        ("pawl_engine_lost", "gauge", "Whether a vital actor is gone for good.", int(gateway.lost is not None)),
        ("pawl_paused", "gauge", "Whether generation is paused.", int(gateway.paused)),
        ("pawl_draining", "gauge", "Whether the server takes no more requests.", int(gateway.draining)),
        *_from_watchdog(gateway),
    )
    for name, kind, text, value in simple:
        page.add(name, kind, text, [({}, value)])
    if (counts := gateway.replicas.counts) is not None:
        states = {state: getattr(counts, state) for state in ("wanted", "serving", "starting", "leaving")}
        text = "Replicas that are wanted, that serve, that are started, and that leave."
        page.add("pawl_replicas", "gauge", text, [({"state": state}, count) for state, count in states.items()])
    ended = [({"cause": cause.value}, totals.ended[cause]) for cause in _ENDS]
    page.add("pawl_requests_ended_total", "counter", "Requests that ended, by cause.", ended)


def _from_watchdog(gateway: Gateway) -> Sequence[tuple[str, str, str, Number]]:
    pace = gateway.pace
    frozen = "The longest time for which the event loop has stood still since the start."
    return (
        ("pawl_stalled_seconds", "gauge", "For how long the engine has not moved; 0 is well.", pace.seconds),
        ("pawl_oldest_step_seconds", "gauge", "Age of a step in flight that is old; 0 is well.", pace.oldest_step_s),
        ("pawl_longest_freeze_seconds", "gauge", frozen, gateway.longest_freeze_s),
    )


def _violations(gateway: Gateway, state: Mapping[str, Any] | None) -> Sequence[tuple[Mapping[str, str], Number]]:
    """By property: what the gateway and the scheduler have seen not to hold."""
    counts = Counter(gateway.totals.violations)
    for _, each in _labelled(state):
        counts.update(each.get("violations", {}))
    return [({"property": name}, count) for name, count in sorted(counts.items())] or [({"property": ""}, 0)]


def _at(state: Any, path: Sequence[str]) -> Any:
    for key in path:
        state = state.get(key) if isinstance(state, Mapping) else None
    return state


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Number) -> str:
    return repr(value)


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
