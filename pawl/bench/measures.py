"""From what happened to each request to the figures of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

if TYPE_CHECKING:
    from rich.table import Table

PERCENTILES = (50, 90, 99)


class Sample(msgspec.Struct, kw_only=True):
    """One request as its client saw it. Times are seconds of one monotonic clock."""

    sent: float
    first: float | None = None
    """When the first output arrived."""
    last: float | None = None
    """When the last output arrived."""
    num_prompt: int = 0
    num_output: int = 0
    num_cached: int = 0
    gaps: list[float] = msgspec.field(default_factory=list)
    """Seconds between outputs; one output may carry several tokens."""
    error: str | None = None

    def arrived(self, now: float) -> None:
        """An output came in."""
        if self.first is None:
            self.first = now
        elif self.last is not None:
            self.gaps.append(now - self.last)
        self.last = now


class Latency(msgspec.Struct, frozen=True):
    """How some durations are spread, milliseconds."""

    mean: float
    p50: float
    p90: float
    p99: float
    worst: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency | None:
        """None of nothing."""
        if not seconds:
            return None
        values = np.asarray(seconds) * 1e3
        middle = np.percentile(values, PERCENTILES)
        figures = (values.mean(), *middle, values.max())
        return cls(*(round(float(figure), 3) for figure in figures))


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """A run's figures. Rates are over the whole run, from the first request sent to the last answer."""

    num_completed: int
    num_failed: int
    errors: dict[str, int]
    """What went wrong, how often."""
    seconds: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    """Prompt and output."""
    time_to_first_token_ms: Latency | None
    time_per_output_token_ms: Latency | None
    """For each request: (last output - first output) / (output tokens - 1)."""
    inter_token_latency_ms: Latency | None
    """Time between each pair of successive outputs."""
    end_to_end_ms: Latency | None


def summarise(samples: Sequence[Sample], seconds: float) -> Summary:
    """The figures of `samples`, which took `seconds` in all. Failed requests count as failures and nowhere else."""
    good = [sample for sample in samples if sample.error is None]
    errors: dict[str, int] = {}
    for sample in samples:
        if sample.error is not None:
            errors[sample.error] = errors.get(sample.error, 0) + 1
    prompt, output = sum(sample.num_prompt for sample in good), sum(sample.num_output for sample in good)
    timed = [(sample, sample.first, sample.last) for sample in good if sample.first is not None]
    per_token = [
        (last - first) / (sample.num_output - 1)
        for sample, first, last in timed
        if last is not None and sample.num_output > 1
    ]
    return Summary(
        num_completed=len(good),
        num_failed=len(samples) - len(good),
        errors=errors,
        seconds=round(seconds, 4),
        prompt_tokens=prompt,
        cached_tokens=sum(sample.num_cached for sample in good),
        output_tokens=output,
        requests_per_s=round(len(good) / seconds, 3),
        output_tokens_per_s=round(output / seconds, 3),
        total_tokens_per_s=round((prompt + output) / seconds, 3),
        time_to_first_token_ms=Latency.of([first - sample.sent for sample, first, _ in timed]),
        time_per_output_token_ms=Latency.of(per_token),
        inter_token_latency_ms=Latency.of([gap for sample in good for gap in sample.gaps]),
        end_to_end_ms=Latency.of([last - sample.sent for sample, _, last in timed if last is not None]),
    )


_LATENCIES = {
    "time to first token": "time_to_first_token_ms",
    "time per output token": "time_per_output_token_ms",
    "inter-token latency": "inter_token_latency_ms",
    "end to end": "end_to_end_ms",
}


def tables(summary: Summary) -> list[Table]:
    """The summary for a terminal."""
    from rich.table import Table

    totals = Table(title="Throughput", title_justify="left")
    for column in ("requests", "failed", "seconds", "prompt tok", "cached tok", "output tok", "req/s", "output tok/s"):
        totals.add_column(column, justify="right")
    totals.add_row(
        f"{summary.num_completed:,}",
        f"{summary.num_failed:,}",
        f"{summary.seconds:.2f}",
        f"{summary.prompt_tokens:,}",
        f"{summary.cached_tokens:,}",
        f"{summary.output_tokens:,}",
        f"{summary.requests_per_s:.2f}",
        f"{summary.output_tokens_per_s:,.1f}",
    )
    spread = Table(title="Latency, ms", title_justify="left")
    for column in ("", "mean", "p50", "p90", "p99", "worst"):
        spread.add_column(column, justify="left" if not column else "right")
    for title, name in _LATENCIES.items():
        latency: Latency | None = getattr(summary, name)
        if latency is not None:
            spread.add_row(title, *(f"{value:,.2f}" for value in msgspec.structs.astuple(latency)))
    return [totals, spread]


def record(kind: str, settings: dict[str, Any], summary: Summary) -> bytes:
    """The run as JSON: what was asked, and what came of it."""
    return msgspec.json.format(msgspec.json.encode({"bench": kind, "settings": settings, "summary": summary}), indent=1)
