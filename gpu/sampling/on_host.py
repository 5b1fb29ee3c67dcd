"""The operations of the sampler in numpy, one row after the other: so nothing of a row depends on those beside it.

The noise is that of `pawl.gpu.sampling.noise`, to the last bits of its logarithms, and the order of a draw that of
`pawl.gpu.sampling.truncation`. Of equally likely tokens the lower ones come first.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from pawl.gpu.grammars.rows import Ruled, unpacked
from pawl.gpu.native.bindings import Library, load_library
from pawl.gpu.native.build import NativeUnavailable
from pawl.gpu.native.pointers import pointer
from pawl.gpu.sampling.draws import Scores
from pawl.gpu.sampling.mixing import SPREAD, mix32
from pawl.gpu.sampling.parameters import DrawParameters
from pawl.gpu.sampling.rivals import LIKELIEST, Columns
from pawl.lifecycle.request import MAX_TOP_LOGPROBS, SamplingParameters
from pawl.lifecycle.step import Bools, Float32s, Int32s

Int64s = NDArray[np.int64]
_COLUMNS = 512
"""Into which a row is cut at the least, where a few of its largest values are looked for."""
_RARE = (1 << 31) // 256
"""A word of noise below it, as one of 256 is: the others make less than 5.55 of noise."""
_BEHIND = -8.5
"""A token that is so far behind the likeliest needs more than that: the least noise is -2.82."""
_MOST = 4
"""Of more than one of so many tokens the noise is made for all: in turn, that is faster."""
_NEAR = 1e-9
"""Of the mass: sums in double precision differ by less, whatever their order."""


# ---- masks ----


def finite_rows(logits: Float32s) -> Bools:
    """See `Operations.finite_rows`."""
    # The extremes are NaN where anything is.
    finite: Bools = np.isfinite(logits.min(-1)) & np.isfinite(logits.max(-1))
    return finite


def apply_masks(logits: Float32s, ruled: Ruled) -> None:
    """See `Operations.apply_masks`."""
    for row, allowed in zip(ruled.rows.tolist(), unpacked(ruled.bits, logits.shape[1]), strict=True):
        np.copyto(logits[row], np.float32(-np.inf), where=~allowed)


# ---- penalties ----


class _Past:
    """What one request has in its prompt and has drawn."""

    def __init__(self, sampling: SamplingParameters, history: Int32s, num_prompt: int) -> None:
        self.repetition = np.float32(sampling.repetition_penalty)
        self.presence = np.float32(sampling.presence_penalty)
        self.frequency = np.float32(sampling.frequency_penalty)
        self.tokens: Int64s = np.unique(history).astype(np.int64)
        """Different ones."""
        drawn = np.searchsorted(self.tokens, history[num_prompt:])
        self.counts: Float32s = np.bincount(drawn, minlength=len(self.tokens)).astype(np.float32)
        """How often each was drawn."""

    def apply(self, logits: Float32s) -> None:
        values = logits[self.tokens]
        values = np.where(values > 0, values / self.repetition, values * self.repetition)
        values -= self.counts * self.frequency
        logits[self.tokens] = values - (self.counts > 0) * self.presence

    def add(self, token: int) -> None:
        found = np.flatnonzero(self.tokens == token)
        if len(found):
            self.counts[found[0]] += 1
        else:
            self.tokens = np.append(self.tokens, token)
            self.counts = np.append(self.counts, np.float32(1))


class HostPenalties:
    """`Penalties`: of each request only the tokens that it has are looked at."""

    def __init__(self) -> None:
        self._pasts: dict[int, _Past] = {}

    def reset(self) -> None:
        """See `Penalties.reset`."""
        self._pasts.clear()

    def admit(self, slot: int, sampling: SamplingParameters, history: Int32s, num_prompt: int) -> None:
        """See `Penalties.admit`."""
        self._pasts.pop(slot, None)
        if sampling.penalised:
            self._pasts[slot] = _Past(sampling, history, num_prompt)

    @np.errstate(all="ignore")
    def apply(self, logits: Float32s, slots: Int32s) -> None:
        """See `Penalties.apply`."""
        for row, slot in zip(logits, slots.tolist(), strict=True):
            self._pasts[slot].apply(row)

    def count(self, slots: Int32s, tokens: Int64s) -> None:
        """See `Penalties.count`."""
        for slot, token in zip(slots.tolist(), tokens.tolist(), strict=True):
            self._pasts[slot].add(token)


def make_penalties(vocab_size: int, num_slots: int, device: None) -> HostPenalties:
    """See `Operations.make_penalties`."""
    return HostPenalties()


# ---- draws ----


@np.errstate(all="ignore")
def draw(logits: Float32s, parameters: DrawParameters) -> Int64s:
    """See `Operations.draw`."""
    tokens = np.empty(len(logits), np.int64)
    for row, scaled in enumerate(logits):
        # Subtracting the maximum first keeps tiny temperatures from overflowing.
        highest = scaled.max()
        scaled -= highest
        scaled /= parameters.temperature[row]
        # Of a row that cannot be compared any token will do: nobody uses it.
        tokens[row] = _drawn(scaled, parameters, row) if np.isfinite(highest) else 0
    return tokens


def _drawn(scaled: Float32s, parameters: DrawParameters, row: int) -> int:
    """One token, by row `row` of the parameters, from its logits over the temperature, whose maximum is 0."""
    top_k, min_p = int(parameters.top_k[row]), parameters.min_p[row]
    if top_k > 0:
        tokens = _likeliest(scaled, top_k)
        return _drawn_sorted(scaled[tokens], tokens, parameters, row)
    contenders = _contenders(scaled, parameters.keys[row])
    values = scaled if len(contenders) == len(scaled) else scaled[contenders]
    perturbed = gumbel(parameters.keys[row], contenders)
    perturbed += values
    if parameters.top_p[row] < 1:
        if min_p > 0:
            perturbed[np.exp(values) < min_p] = -np.inf
        return _first_of_nucleus(scaled, contenders, perturbed, parameters, row)
    if min_p > 0:
        perturbed[values < np.log(min_p)] = -np.inf
    return int(contenders[perturbed.argmax()])


def _contenders(scaled: Float32s, key: Int32s) -> NDArray[np.uint32]:
    """Tokens, rising, that can win by noise of this key [2]: they are near the likeliest or have much of it. All, where
    most are near it, or there are no kernels that know which have."""
    library, everybody = _library(), len(scaled)
    if library is not None:
        first, second = key.view(np.uint32).tolist()
        tokens = np.empty(everybody, np.uint32)
        count = library.contenders(pointer(scaled), everybody, first, second, _RARE, _BEHIND, pointer(tokens))
        if count * _MOST < everybody:
            return tokens[:count]
    return np.arange(everybody, dtype=np.uint32)


@cache
def _library() -> Library | None:
    try:
        return load_library()
    except NativeUnavailable:
        return None


def _first_of_nucleus(
    scaled: Float32s, contenders: NDArray[np.uint32], perturbed: Float32s, parameters: DrawParameters, row: int
) -> int:
    """With top-p: the winner, unless likelier tokens have the mass without it; then the first behind it of which that
    is not so. `perturbed`, of the contenders, is changed."""
    likeliest, token = int(scaled.argmax()), int(contenders[perturbed.argmax()])
    if token == likeliest:
        return token
    weights = np.exp(scaled)
    total = weights.sum(dtype=np.float64)
    wanted = parameters.top_p[row] * total
    while token != likeliest:
        value = scaled[token]
        mass = weights[np.concatenate((scaled[:token] >= value, scaled[token:] > value))].sum(dtype=np.float64)
        if abs(mass - wanted) < _NEAR * total:  # the order in which they are added up decides
            tokens = _likeliest(scaled, len(scaled))
            return _drawn_sorted(scaled[tokens], tokens, parameters, row, total)
        if mass < wanted:
            return token
        values = scaled[contenders]
        perturbed[(values < value) | ((values == value) & (contenders >= token))] = -np.inf
        token = int(contenders[perturbed.argmax()])
    return token


def _drawn_sorted(
    values: Float32s, tokens: Int64s, parameters: DrawParameters, row: int, total: np.float64 | None = None
) -> int:
    """Top-p, min-p and the draw over sorted candidates [k] with logits `values`. `total`: of the weights of all tokens,
    where the candidates are not all that is left."""
    weights = np.exp(values)
    # In float32 a long row of small weights would not add up: each sum would be rounded the same way.
    reached = weights.cumsum(dtype=np.float64)
    kept = reached - weights < parameters.top_p[row] * (reached[-1] if total is None else total)
    kept &= weights >= parameters.min_p[row] * weights[0]
    kept[0] = True
    perturbed = gumbel(parameters.keys[row], tokens.astype(np.uint32)) + values
    return int(tokens[np.where(kept, perturbed, np.float32(-np.inf)).argmax()])


def _likeliest(values: Float32s, count: int) -> Int64s:
    """The tokens of the largest values, falling."""
    if count >= len(values):
        return np.argsort(-values, kind="stable")
    held = values
    if (each := len(values) // max(_COLUMNS, 4 * count)) > 1:
        # The largest of columns: of so many different values the last one is no larger than that of all.
        held = values[: len(values) - len(values) % each].reshape(each, -1).max(0)
    least = np.partition(held, len(held) - count)[len(held) - count]
    # What is no number is there, too; of what is barred, which may be nearly all, only as much as is asked for.
    reached = values > least if least == -np.inf else ~(values < least)
    tokens = np.flatnonzero(reached)
    tokens = tokens[np.argsort(-values[tokens], kind="stable")[:count]]
    if len(tokens) == count:
        return tokens
    return np.concatenate((tokens, np.flatnonzero(~reached)[: count - len(tokens)]))


def gumbel(key: Int32s, tokens: NDArray[np.uint32]) -> Float32s:
    """Gumbel noise, float32 [k], for the token ids `tokens` [k] of a row with this key [2]; see
    `pawl.gpu.sampling.noise`."""
    first, second = key.view(np.uint32)
    words = mix32(mix32(tokens * SPREAD ^ first) + second) & np.uint32(0x7FFFFFFF)
    uniform = words.astype(np.float32)
    uniform *= np.float32(2.0**-31)
    uniform += np.float32(2.0**-32)
    np.minimum(uniform, np.float32(1.0 - 2.0**-24), out=uniform)
    # -log1p(-u) by the logarithm of a rounded 1 - u: numpy's own log1p has other last bits on other processors.
    rest = np.float32(1) - uniform
    lost = np.float32(1) - rest
    waited = np.where(lost > 0, -np.log(rest) * (uniform / np.maximum(lost, np.float32(2.0**-24))), uniform)
    return np.negative(np.log(waited, out=waited), out=waited)


# ---- scores ----


@np.errstate(all="ignore")
def score(logits: Float32s, chosen: Int32s | Int64s, columns: Columns, *, ranked: bool = False) -> Scores:
    """See `Operations.score`."""
    count, vocab_size = logits.shape
    width, likely = columns.width, min(columns.width, MAX_TOP_LOGPROBS, vocab_size)
    shown = likely if columns.named is None else width
    own, top = np.empty(count, np.float32), np.empty((count, shown), np.float32)
    tokens, ranks = np.zeros((count, shown), np.int64), np.zeros(count, np.int64) if ranked else None
    for row, values in enumerate(logits):
        logprobs = values - values.max()
        logprobs -= np.log(np.exp(logprobs).sum())
        if likely:
            tokens[row, :likely] = _likeliest(logprobs, likely)
        if columns.named is not None:
            named = columns.named[row]
            tokens[row] = np.where(named == LIKELIEST, tokens[row], named)
        own[row], top[row] = logprobs[chosen[row]], logprobs[tokens[row]]
        if ranks is not None:
            ranks[row] = np.count_nonzero(logprobs >= own[row])
    return Scores(own, tokens, top, ranks)
