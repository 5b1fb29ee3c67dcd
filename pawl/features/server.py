"""Features of the configuration. A simulated server is small: a few pages, few slots, so that there is trouble."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pawl.actors.placement import PLACEMENTS
from pawl.features import apart, drafting, scaling, timing, transfers
from pawl.features.row import Feature, Source
from pawl.loops.pacing import PACINGS
from pawl.loops.policy import POLICIES
from pawl.loops.saving import CHOICES as WRITE_POLICIES
from pawl.loops.speculation import KINDS as SPECULATIONS
from pawl.memory.prefix.order import POLICIES as EVICTIONS
from pawl.memory.prefix.select import CACHES, CORES, KINDS, Kind

Values = Mapping[str, Any]

SHARING = ("cache_hit_equivalence", "hold_accounting", "observability_conservation")
SCHEDULING = ("schedule_equivalence", "work_conserving", "bounded_progress")
PAGES = ("conservation", "single_owner", "no_reuse_before_fence", "row_shape")


def _one_of(field: str, choices: tuple[str, ...], share: float) -> Callable[[Source, Values], dict[str, Any]]:
    """The first choice, but in `share` of all cases any."""
    return lambda source, values: {field: source.pick(choices) if source.chance(share) else choices[0]}


def _cache(values: Values) -> Kind:
    return KINDS[values["cache"]]


def _window(source: Source, values: Values) -> dict[str, Any]:
    beside = [values.get(name) for name in ("host_pages", "storage_pages")] + [values.get("cache_core") == "compiled"]
    if not _cache(values).windows or any(beside) or not source.chance(0.1):
        return {}
    size, chunk, window = values["page_size"], values["prefill_chunk"], source.within(1, 3 * values["page_size"])
    # As many as one request needs at least: `WindowPool.most`.
    least = -(-(window - 1) // size) + 1 + -(-chunk // size)
    return {"window": window, "num_window_pages": least + source.within(0, 3)}


def _tight(source: Source, values: Values) -> dict[str, Any]:
    """Room for less than those that run will need, and nobody looks ahead."""
    few = {"num_pages": source.within(3, 6), "max_running": source.within(2, 4), "lookahead": 0}
    return few if source.chance(0.35) else {}


def _is_tight(values: Values) -> bool:
    return bool(values["num_pages"] <= 6 and values["max_running"] > 1 and values["lookahead"] == 0)


def _tiers(source: Source, values: Values) -> dict[str, Any]:
    if not _cache(values).ordered or values.get("window") or not source.chance(0.2):
        return {}
    below = {"write_policy": source.pick(WRITE_POLICIES), "host_pages": source.within(4, 16)}
    below["num_pages"] = source.within(3, 6)  # so that something leaves the device and is wanted again
    if source.chance(0.4):
        below |= {"storage_pages": source.within(4, 16), "host_pages": source.pick((2, 0))}
    return below


def _loras(source: Source, values: Values) -> dict[str, Any]:
    """Mostly fewer slots than names."""
    few = {"max_loras": source.within(1, 2), "max_loaded_loras": source.within(2, 4)}
    return few if source.chance(0.3) else {}


def _stages(source: Source, values: Values) -> dict[str, Any]:
    """Mostly with times that differ."""
    if values["pacing"] != "pipeline":
        return {}
    stages = source.within(1, 4)
    times = tuple(source.pick((0.01, 0.02, 0.1)) for _ in range(stages))
    return {"stages": stages, "stage_s": times if source.chance(0.6) else ()}


def _eviction(source: Source, values: Values) -> dict[str, Any]:
    return {"eviction": source.pick(tuple(EVICTIONS))} if _cache(values).ordered and source.chance(0.6) else {}


def _core(source: Source, values: Values) -> dict[str, Any]:
    # `auto`: compiled where it was built, else Python. What it decides is the same, so a seed gives the same runs.
    fits = values["cache"] == CACHES[0] and not values.get("window")
    return {"cache_core": source.pick(("auto", "auto", "python"))} if fits else {}


def _context(source: Source, values: Values) -> dict[str, Any]:
    """Less than the pages hold: the tokenizer refuses what is longer. Or more: the scheduler does."""
    room = values["num_pages"] * values["page_size"]
    if not source.chance(0.18):
        return {}
    return {"max_context": source.within(2, room - 1) if source.chance(0.4) else room + source.within(1, 4)}


def _replicas(source: Source, values: Values) -> dict[str, Any]:
    most = values["max_replicas"] or 3
    several = {"replicas": min(source.within(2, 3), most), "max_restarts": source.within(0, 2)}
    return several if source.chance(0.15) else {}


def _placement(source: Source, values: Values) -> dict[str, Any]:
    return {"placement": source.pick(tuple(PLACEMENTS)), "affinity_bound": source.within(0, 2)}


OF_ONE: tuple[Feature, ...] = (
    Feature(
        "page size",
        ("page_size",),
        lambda source, values: {"page_size": min(source.pick((2, 1, 4)), values.get("prefill_chunk", 4))},
        PAGES,
        settings=("page_size",),
        help="tokens of one page",
    ),
    Feature(
        "pages",
        ("num_pages",),
        lambda source, values: {"num_pages": source.within(3, 10)},
        (*PAGES, "allocation_is_a_transaction"),
        settings=("kv_tokens", "kv_memory_gb", "memory_share"),
    ),
    Feature(
        "slots",
        ("max_running",),
        lambda source, values: {"max_running": source.within(1, 4)},
        ("auxiliary_conservation", "batch_independence"),
        settings=("max_running",),
        help="requests computed at the same time",
    ),
    Feature(
        "chunk",
        ("prefill_chunk",),
        lambda source, values: {"prefill_chunk": values["page_size"] * source.within(1, 3)},
        (*SCHEDULING, "prompts_take_turns"),
        settings=("prefill_chunk",),
        help="prompt tokens computed in one step; otherwise what suits the device (CPU: 128; with AMX: 512)",
    ),
    Feature(
        "lookahead",
        ("lookahead",),
        lambda source, values: {"lookahead": source.pick((0, 0, 1, 4))},
        ("retraction_transparency", "allocation_is_a_transaction"),
    ),
    Feature(
        "tight memory",
        ("num_pages", "max_running", "lookahead"),
        _tight,
        ("retraction_transparency", "allocation_is_a_transaction", "admission_is_monotone"),
        present=_is_tight,
    ),
    Feature(
        "pacing",
        ("pacing",),
        lambda source, values: {"pacing": source.pick(tuple(PACINGS))},
        (*SCHEDULING, "one_decision_log"),
        settings=("pacing",),
        help="plan a step while the one before runs, or after it, or as many as there are stages",
        choices=tuple(PACINGS),
    ),
    Feature(
        "stages",
        ("stages", "stage_s"),
        _stages,
        (*SCHEDULING, "fair_micro_batches", "read_after_commit"),
        settings=("pp",),
    ),
    Feature(
        "mixed steps",
        ("mixed",),
        lambda source, values: {"mixed": source.chance(0.5)},
        SCHEDULING,
        settings=("mixed",),
        help="prompts and decoding in the same step",
        present=lambda values: bool(values["mixed"]),
    ),
    Feature(
        "policy",
        ("policy",),
        _one_of("policy", tuple(POLICIES), 0.6),
        ("bounded_overtaking", "admission_is_monotone", *SCHEDULING),
        settings=("policy",),
        help="order in which waiting requests are admitted",
        choices=tuple(POLICIES),
    ),
    Feature(
        "cache",
        ("cache",),
        lambda source, values: {"cache": CACHES[0] if source.chance(0.8) else source.pick(CACHES[1:])},
        SHARING,
        settings=("cache",),
        help="whether prompts share the pages of equal beginnings",
        choices=CACHES,
    ),
    Feature(
        "window pages",
        ("window", "num_window_pages"),
        _window,
        (*PAGES, "cache_hit_equivalence"),
        settings=("hybrid_pools",),
        help="pages of their own for layers with a window, freed as it moves on; auto: where a model has both",
    ),
    Feature(
        "tiers",
        ("host_pages", "write_policy", "storage_pages", "num_pages"),
        _tiers,
        ("read_after_commit", *SHARING),
        settings=("host_cache_gb", "write_policy", "storage_dir", "storage_gb"),
        present=lambda values: values["host_pages"] + values["storage_pages"] > 0,
        help="when pages go to host memory and files: at once, when they leave, or when they are hit",
    ),
    Feature(
        "eviction",
        ("eviction",),
        _eviction,
        (*SHARING, "no_reuse_before_fence"),
        settings=("eviction",),
        help="which cached pages leave first",
        choices=tuple(EVICTIONS),
    ),
    Feature(
        "cache core",
        ("cache_core",),
        _core,
        (*SHARING, "one_decision_log"),
        settings=("cache_core",),
        help="which implementation of the cache; auto: compiled where it was built",
        choices=("python", "auto"),
    ),
    Feature(
        "context limit",
        ("max_context",),
        _context,
        ("fault_isolation", "row_shape"),
        settings=("context_length",),
        help="tokens of prompt and output together; otherwise what the model was made for",
    ),
    Feature(
        "short queue",
        ("max_queued",),
        lambda source, values: {"max_queued": source.within(1, 3)} if source.chance(0.15) else {},
        ("admission_is_monotone", "legal_lifecycle"),
        settings=("max_queued",),
        help="requests waiting; more are refused with 503",
    ),
    Feature(
        "asynchronous worker",
        ("asynchronous",),
        lambda source, values: {"asynchronous": source.chance(0.3)},
        ("one_decision_log", "schedule_equivalence", "read_after_commit"),
    ),
    Feature(
        "ranks",
        ("ranks",),
        lambda source, values: {"ranks": 2} if source.chance(0.2) else {},
        ("one_decision_log", "fault_isolation", "schedule_equivalence"),
        settings=("tp",),
        help="ranks that share out heads, widths and vocabulary of the model",
    ),
    Feature(
        "time of a step",
        ("step_s",),
        lambda source, values: {"step_s": source.pick((0.02, 0.1, 0.3))} if source.chance(0.3) else {},
        ("bounded_progress", "time_order"),
    ),
    Feature(
        "small mailboxes",
        ("mailbox",),
        lambda source, values: {"mailbox": source.within(1, 2)} if source.chance(0.1) else {},
        ("legal_lifecycle", "fault_isolation"),
    ),
    Feature(
        "adapter slots",
        ("max_loras", "max_loaded_loras"),
        _loras,
        ("adapter_references", "namespace_isolation", "schedule_equivalence"),
        settings=("enable_lora", "lora_paths", "max_loras_per_batch", "max_loaded_loras"),
    ),
    Feature(
        "checkpoints",
        ("checkpoint_bytes",),
        lambda source, values: {"checkpoint_bytes": source.pick((400, 2000, 8000))} if source.chance(0.25) else {},
        ("one_decision_log", *SCHEDULING),
    ),
    *drafting.FEATURES,
    *timing.FEATURES,
)
"""Of one engine."""

OF_REPLICAS = (
    Feature(
        "replicas",
        ("replicas", "max_restarts"),
        _replicas,
        ("schedule_equivalence", "stream_equals_result", "legal_lifecycle", "session_atomicity"),
        settings=("dp",),
        help="replicas of the model behind one gateway, which share memory and cores",
        present=lambda values: bool(values["replicas"] > 1),
    ),
    *apart.FEATURES,
    Feature(
        "placement",
        ("placement", "affinity_bound"),
        _placement,
        ("placement",),
        settings=("router_policy",),
        help="which replica a request is given to",
        choices=tuple(PLACEMENTS),
    ),
    Feature(
        "long prompts apart",
        ("short",),
        lambda source, values: {"short": source.within(2, 6)} if source.chance(0.25) else {},
        ("abort_is_total", "incarnation", "legal_lifecycle"),
    ),
    *scaling.FEATURES,
    Feature(
        "ranks on two hosts",
        ("rank_hosts",),
        lambda source, values: {"rank_hosts": 2} if values["ranks"] > 1 and source.chance(0.5) else {},
        ("fault_isolation", "schedule_equivalence", "stream_equals_result"),
        settings=("nodes_per_replica",),
    ),
    *transfers.FEATURES,
)
"""Of several, and of those in front of them, drawn behind everything else of a workload."""
FEATURES = (*OF_ONE, *OF_REPLICAS)
CHOICES: Mapping[str, tuple[str, ...]] = {
    "policy": tuple(POLICIES),
    "router_policy": tuple(PLACEMENTS),
    "pacing": tuple(PACINGS),
    "cache": CACHES,
    "eviction": tuple(EVICTIONS),
    "cache_core": CORES,
    "speculate": SPECULATIONS,
    "write_policy": WRITE_POLICIES,
}
"""Setting -> its values, for those that the makers' tables name."""


def help_of(setting: str) -> str:
    """What the row says of a setting that it explains."""
    return next(feature.help for feature in FEATURES if setting in feature.settings and feature.help)
