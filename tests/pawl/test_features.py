"""What can be set is drawn and judged: each feature in a share of workloads, each field and setting by a feature."""

from __future__ import annotations

import inspect
from collections import Counter
from itertools import combinations

import msgspec
import pytest

from pawl.actors.messages.generate import Submit
from pawl.config import ServerConfig
from pawl.features import request, server
from pawl.features.row import Feature
from pawl.lifecycle.request import SamplingParameters
from pawl.loops.properties.documents import OF_RUNS, judges, statement
from pawl.memory.prefix.select import CACHES, KINDS
from pawl.testing import BoundedOvertaking, Workload, expectations
from pawl.testing.at_rest import EndChecks
from pawl.testing.caches import CacheAsStated
from pawl.testing.ordering import PolicyAsStated
from pawl.testing.routing import WatchedPlacement, WatchedScaling
from pawl.testing.shape import Shape
from pawl.testing.stores import TiersAsStated
from pawl.testing.workload import Arrival, all_features, all_labels, labels_of

WORKLOADS = 4000
EACH, PAIR = 0.05, 0.002
CHOSEN = 0.3
"""Shared by the values of a feature that has many."""
SETTINGS_NOT_DRAWN = {
    "what computes, not what is scheduled": (
        *("model", "served_model_name", "dtype", "device", "backend", "deterministic", "threads", "grammar_backend"),
        *("pooling", "weight_version", "max_lora_rank", "lora_target_modules", "ep", "rank_timeout_s"),
        *("runtime", "weights", "nodes", "head_serves", "role", "ray", "listen", "keys", "node_timeout_s"),
    ),
    "simulated ranks always move experts, after fewer steps": (
        *("enable_eplb", "eplb_rebalance_num_iterations", "ep_num_redundant_experts"),
    ),
    "the edge, which simulated clients do not go through": (
        *("host", "port", "api_key", "admin_api_key", "allowed_hosts", "cors_origins", "max_body_mb"),
        *("tool_call_parser", "reasoning_parser", "trainer_hosts", "trainer_timeout_s"),
    ),
    "what is written, not what is done": (
        *("trace", "trace_dir", "trace_limit_mb", "profile_dir", "log_format", "log_level"),
    ),
    "simulated records are kept in memory, which is never full": ("trace_required",),
    "every request of a run has its own limit, or none": ("request_timeout_s",),
    "every part has the seed of the run": ("seed",),
}
JUDGED_BY_CLIENTS = {"fault_isolation", "stream_equals_result", "bounded_progress"}
"""Properties of what clients are told, which no record holds."""
FIELDS_NOT_DRAWN = {
    "prompts of runs are token ids": ("text", "chat", "template_options", "reasoning_mark"),
    "given out by the gateway": ("request", "incarnation"),
    "its fields stand by themselves": ("sampling",),
    "the tokenizer makes a limit of it: tests/actors/test_tokenizer.py": ("fill_context",),
}


@pytest.fixture(scope="module")
def drawn() -> list[set[str]]:
    """The features of some thousand workloads, which are not run."""
    return [labels_of(Workload.random(seed)) for seed in range(WORKLOADS)]


@pytest.mark.parametrize("label", all_labels())
def test_a_feature_is_in_a_share_of_all_workloads(label: str, drawn: list[set[str]]) -> None:
    values = next((feature.choices for feature in all_features() if label in feature.all_labels), ())
    least = min(EACH, CHOSEN / max(1, len(values)))
    assert sum(label in each for each in drawn) >= least * WORKLOADS


def test_each_two_features_meet(drawn: list[set[str]]) -> None:
    pairs = Counter(pair for each in drawn for pair in combinations(sorted(each), 2))
    labels = sorted(all_labels())
    apart = {pair for pair in combinations(labels, 2) if pairs[pair] < PAIR * WORKLOADS and not _exclude(*pair)}
    assert apart == set()


def _exclude(one: str, other: str) -> bool:
    """Whether two features cannot be had together: two values of one, and what only one value of another has."""
    choices = [set(feature.all_labels) for feature in all_features() if feature.choices]
    if any({one, other} <= values for values in choices):
        return True
    if {one, other} == {"drain at work", "stop at work"}:
        return True
    below = {"tiers", "prefill replicas", "other ranks to prefill", "few pages at a time", "slow tiers"}
    ordered = below | {f"eviction {name}" for name in server.CHOICES["eviction"][1:]}
    alone = {
        "window pages": {"cache core auto"} | below,
        "stages": {"pacing lockstep", "pacing overlap"},
        "scaling": {"prefill replicas", "other ranks to prefill"},
    }
    for name in CACHES[1:]:
        apart = {"cache core auto"} | (set() if KINDS[name].ordered else ordered)
        alone[f"cache {name}"] = apart | (set() if KINDS[name].windows else {"window pages"})
    return any((one == name and other in others) or (other == name and one in others) for name, others in alone.items())


@pytest.mark.parametrize("feature", all_features(), ids=lambda feature: feature.name)
def test_a_feature_is_judged_by_properties_that_exist(feature: Feature) -> None:
    assert feature.properties
    assert set(feature.properties) <= {*judges(), *OF_RUNS, *JUDGED_BY_CLIENTS}


def test_what_only_simulated_runs_are_held_to_is_on_the_page_as_its_class_states_it() -> None:
    kinds = (BoundedOvertaking, PolicyAsStated, CacheAsStated, TiersAsStated, WatchedPlacement, WatchedScaling)
    assert {kind.name: statement(kind) for kind in kinds} == OF_RUNS


@pytest.mark.parametrize("name", sorted(JUDGED_BY_CLIENTS))
def test_what_clients_of_a_run_judge_is_in_its_source(name: str) -> None:
    assert f'"{name}"' in inspect.getsource(EndChecks) + inspect.getsource(expectations)


@pytest.mark.parametrize(
    ("struct", "features", "not_drawn"),
    [
        (ServerConfig, server.FEATURES, SETTINGS_NOT_DRAWN),
        (SamplingParameters, request.FEATURES, {}),
        (Submit, request.FEATURES, FIELDS_NOT_DRAWN),
    ],
)
def test_whatever_can_be_set_is_drawn_or_has_a_reason_not_to_be(
    struct: type[msgspec.Struct], features: tuple[Feature, ...], not_drawn: dict[str, tuple[str, ...]]
) -> None:
    fields = {info.name for info in msgspec.structs.fields(struct)}
    set_by = {setting for feature in features for setting in feature.settings}
    excused = {name for names in not_drawn.values() for name in names}
    assert fields - set_by - excused == set()
    assert excused & set_by == set()
    assert excused <= fields


def test_every_field_of_a_server_and_an_arrival_belongs_to_a_feature() -> None:
    for struct, features, apart in (
        (Shape, server.FEATURES, {"scheduler"}),
        (Arrival, request.FEATURES, {"rid"}),  # drawn where somebody aborts by it: pawl/testing/edges.py
    ):
        fields = {info.name for info in msgspec.structs.fields(struct)}
        assert fields - {name for feature in features for name in feature.fields} == apart
