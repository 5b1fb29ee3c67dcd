"""Defects of what clients get: tokens, texts, stops."""

from __future__ import annotations

from pawl.actors import step_report
from pawl.actors.detokenizer import Detokenizer
from pawl.actors.grammar import GrammarCompiler
from pawl.actors.text.incremental import ByteDecoder
from pawl.actors.text.stop import StopMatcher
from pawl.actors.text.stream import Stream
from pawl.gpu.ghost.draws import GhostDraws
from pawl.gpu.ghost.runner import Ghost
from pawl.gpu.grammars.rows import GrammarRows
from pawl.gpu.sampling.rivals import Rivals
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.requests import RequestTable
from pawl.loops import scores
from pawl.loops.loop import Loop
from pawl.loops.queues import Queues
from pawl.memory.memory import Memory
from pawl.memory.prefix.radix import RadixCache
from tests.mutants.mutant import Edit, Group, Mutant


def _mutant(name: str, broken: str, resembles: str, what: str, *edits: Edit) -> Mutant:
    return Mutant(name, Group.OUTPUTS, broken, resembles, what, edits)


OUTPUTS = (
    _mutant(
        "match_is_one_page_too_long",
        "cache_hit_equivalence",
        "22819",
        "Where a prompt leaves a cached edge, one page too many is taken for its own.",
        Edit(RadixCache._reach, "common_pages(data, at, child.key, width) * width", "len(child.key)"),
    ),
    _mutant(
        "whole_prompt_is_matched",
        "cache_hit_equivalence",
        "23392",
        "A prompt that is cached to its last token leaves nothing to compute the first output from.",
        Edit(Memory.admit, "tokens[: len(tokens) - 1] if", "tokens if"),
    ),
    _mutant(
        "input_of_the_wrong_slot",
        "batch_independence",
        "35697",
        "The placeholder for a token not known yet is resolved with another slot's token.",
        Edit(Ghost._resolve_tokens, "drawn = self._last[slots]", "drawn = self._last[slots[::-1]]"),
    ),
    _mutant(
        "seed_of_the_neighbour",
        "batch_independence",
        "vllm 51866",
        "Sampling noise depends on the place in the batch, not on the request.",
        Edit(GhostDraws._choose, "self._seed[slots]", "self._seed[slots] + rows.astype(np.uint64)"),
    ),
    _mutant(
        "tokens_move_up_beside_a_stale_one",
        "batch_independence",
        "vllm 51902",
        "When one token of a step is dropped, those behind it go to the wrong requests.",
        Edit(Loop._apply, "rows[wanted], tokens[wanted]", "rows[wanted], tokens[: int(wanted.sum())]"),
    ),
    _mutant(
        "retraction_forgets_the_output",
        "retraction_transparency",
        "14109, 20729",
        "A retracted request starts again from its prompt, so that its client sees its first tokens twice.",
        Edit(
            Queues.retract,
            "table.attempt[row] += 1",
            "table.attempt[row] += 1; table.num_tokens[row] = table.num_prompt[row]",
        ),
    ),
    _mutant(
        "text_held_back_is_lost",
        "stream_equals_result",
        "31598",
        "What was held back of the text is not sent when the request ends.",
        Edit(Detokenizer._end, "text = stream.flush()", 'text = ""'),
    ),
    _mutant(
        "decoder_of_the_former_holder",
        "stream_equals_result",
        "40901",
        "Half of a character that the former request of a row left behind comes before the text of the next.",
        Edit(
            Detokenizer._open,
            "self._streams[opened.row] = Stream(self._vocabulary, opened, self.context.now())",
            "stream = self._streams[opened.row] = Stream(self._vocabulary, opened, self.context.now())\n"
            '    stream._decoder = vars(self).setdefault("kept", {}).setdefault(opened.row, stream._decoder)\n'
            "    stream.decode = stream._decoder.push",
        ),
        Edit(ByteDecoder.flush, 'self._pending = b""', "pass"),
    ),
    _mutant(
        "stop_across_two_tokens_is_missed",
        "stop_semantics",
        "11462",
        "A stop string is looked for in the text of each token alone.",
        Edit(StopMatcher.push, "text = self._held + piece", "text = piece"),
    ),
    _mutant(
        "tokens_after_the_stop",
        "stop_semantics",
        "11446",
        "Tokens that come after a stop string was found are still sent.",
        Edit(
            Detokenizer._outputs_of,
            "if stream is None or stream.matched is not None:",
            "if stream is None:",
        ),
        Edit(
            Stream._match,
            "if self._matcher is None or not text:",
            "if self._matcher is None or not text or self.closed:",
        ),
    ),
    _mutant(
        "one_token_too_many",
        "stream_equals_result",
        "21583",
        "The end is noticed one token late.",
        Edit(
            RequestTable.complete,
            "self.num_tokens[rows] >= self.max_tokens[rows]",
            "self.num_tokens[rows] > self.max_tokens[rows]",
        ),
    ),
    _mutant(
        "one_token_too_many_of_few",
        "stream_equals_result",
        "21583",
        "The end is noticed one token late, where not many rows are in a step.",
        Edit(RequestTable._ends_with, "self.num_tokens[row] >= self", "self.num_tokens[row] > self"),
    ),
    _mutant(
        "grammar_begins_anew_after_retraction",
        "grammar_is_a_fold",
        "3108",
        "A request that comes back has a matcher that has not been led through what it said before.",
        Edit(GrammarRows._begin, "admission.history[admission.num_prompt :].tolist()", "list[int]()"),
    ),
    _mutant(
        "mask_of_the_neighbour",
        "grammar_is_a_fold",
        "14464",
        "Masks of a step are those of its rows in another order.",
        Edit(GrammarRows.masks, "zip(matchers, bits, strict=True)", "zip(matchers[::-1], bits, strict=True)"),
    ),
    _mutant(
        "mask_is_a_token_late",
        "grammar_is_a_fold",
        "31533",
        "The mask is made before the token that was drawn last is accepted.",
        Edit(
            GrammarRows.masks,
            "matcher.fill(mask)",
            "(late := matcher.fork(), late.rollback(min(1, len(late._path) - 1)), late.fill(mask))",
        ),
    ),
    _mutant(
        "end_of_a_grammar_is_ignored",
        "fault_isolation",
        "",
        "A matcher whose output has ended is asked for what follows, by a step launched before that was known.",
        Edit(GrammarRows.masks, "matcher is not None and not matcher.terminated", "matcher is not None"),
    ),
    _mutant(
        "slot_keeps_the_grammar",
        "batch_independence",
        "",
        "A slot is still held to the grammar of the request before.",
        Edit(
            GrammarRows.admit,
            "self._ruled[admission.slot] = admission",
            "self._ruled[admission.slot] |= admission",
        ),
        Edit(GrammarRows.admit, "self._matchers.pop(admission.slot, None)", "pass"),
    ),
    _mutant(
        "grammar_is_never_released",
        "auxiliary_conservation",
        "",
        "The grammar of a request that has ended is kept for ever.",
        Edit(GrammarCompiler._release, "self._held.pop(request)", "self._held[request]"),
    ),
    _mutant(
        "named_tokens_of_the_neighbour",
        "retraction_transparency",
        "",
        "The tokens whose scores a request has named are looked up in the order of another batch.",
        Edit(Rivals.columns, "enumerate(names)", "enumerate(reversed(names))"),
    ),
    _mutant(
        "scores_of_a_prompt_stand_one_too_early",
        "logprobs_as_asked",
        "",
        "The trace says of a prompt's log-probabilities that each belongs to the token before it.",
        Edit(scores._of_prompts, "part.start + 1, part.start + 1 + len(rows)", "part.start, part.start + len(rows)"),
    ),
    _mutant(
        "rank_of_the_first_token",
        "retraction_transparency",
        "",
        "Tokens of a prompt's chunk are all told with the rank of its first.",
        Edit(Stream._entry, "scores.ranks[index]", "scores.ranks[0]"),
    ),
    _mutant(
        "scores_as_many_as_the_neighbour_asked_for",
        "logprobs_as_asked",
        "",
        "The trace says of a token as many of the likeliest as anybody in its step has asked for.",
        Edit(scores._as_asked, "min(asked[row], widest)", "max(asked[row], widest)"),
    ),
    _mutant(
        "vector_of_the_neighbour",
        "embedded_once",
        "",
        "The vectors of one step all go out as the first of them.",
        Edit(step_report._told, "e.vector", "result.embeddings[0].vector"),
    ),
    _mutant(
        "vector_is_lost",
        "embedded_once",
        "",
        "A request that waits for its vector is told that it has ended, and nothing else.",
        Edit(Detokenizer._end, "stream.take_prompt_scores(), stream.embedding", "stream.take_prompt_scores(), None"),
    ),
    _mutant(
        "vector_of_a_cached_prefix",
        "embedded_once",
        "",
        "What the cache has of a prompt is not computed, and so not part of the mean over its positions.",
        Edit(SamplingParameters.needs_whole_prompt, "or self.embed", ""),
    ),
    _mutant(
        "embedded_by_length",
        "embedded_once",
        "",
        "A request that has got its vector is said to have run to its length.",
        Edit(Loop._prefilled, "Cause.EMBEDDED if info.sampling.embed else self.requests.prompt_cause", "Cause.LENGTH"),
    ),
)
