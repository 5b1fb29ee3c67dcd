"""Features of drafts of tokens to come."""

from __future__ import annotations

from pawl.features.row import Feature
from pawl.loops.speculation import KINDS as SPECULATIONS

DRAFTS = ("schedule_equivalence", "drafts_in_bounds", "row_shape")
FEATURES: tuple[Feature, ...] = (
    Feature(
        "speculation",
        ("speculate",),
        lambda source, values: {"speculate": source.pick(SPECULATIONS)},
        (*DRAFTS, "stop_semantics", "one_decision_log", "stream_equals_result"),
        settings=("speculate",),
        help="draft tokens to come and check several in one step; ngram: drafts from a request's own text",
        choices=SPECULATIONS,
    ),
    Feature(
        "length of drafts",
        ("num_speculative_tokens",),
        lambda source, values: {"num_speculative_tokens": source.pick((3, 1, 6))},
        DRAFTS,
        settings=("num_speculative_tokens",),
        help="tokens of one draft at the most (7)",
    ),
    Feature(
        "least of a lookup",
        ("prompt_lookup_min",),
        lambda source, values: {"prompt_lookup_min": min(source.pick((1, 1, 2)), values.get("prompt_lookup_max", 2))},
        DRAFTS,
        settings=("prompt_lookup_min",),
        help="last tokens of a request that must stand in its text once more (3)",
    ),
    Feature(
        "most of a lookup",
        ("prompt_lookup_max",),
        lambda source, values: {"prompt_lookup_max": values["prompt_lookup_min"] + source.within(0, 2)},
        DRAFTS,
        settings=("prompt_lookup_max",),
        help="last tokens that are compared; where most of them agree a draft is taken (5)",
    ),
)
