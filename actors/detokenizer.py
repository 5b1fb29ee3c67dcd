"""The detokenizer: token ids of a whole step to text for each client, in one message.

It owns text, stop strings and the look of scores; the scheduler knows none of these. A stop string ends a request
here first: the client gets its terminal record at once, the scheduler is told with `Finish`, and what it still sends
for that row is swallowed until its own `Ended` frees the row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from msgspec import structs

from pawl.actors.messages.generate import Accepted, Done, Ended, Opened, Output, Outputs, StepTokens
from pawl.actors.names import NAMES, Names
from pawl.actors.runtime.actor import Actor, Lane
from pawl.actors.text.stream import ScoreLists, Stream
from pawl.actors.text.vocabulary import Vocabulary
from pawl.lifecycle.states import Cause
from pawl.loops.orders.requests import Abort, Finish

T = TypeVar("T")

UNREADABLE = "the server failed to make text of this request's tokens"


class RowInUse(RuntimeError):
    """The scheduler opened a row before it ended the request that holds it."""

    def __init__(self, row: int, holder: int, newcomer: int) -> None:
        super().__init__(f"row {row} is opened for request {newcomer} while request {holder} holds it")


class OutputsRefused(RuntimeError):
    """The gateway refused outputs. They cannot be dropped, so its mailbox must hold senders back, not refuse them."""


class _Read:
    """How far a message of a step is read."""

    def __init__(self, message: StepTokens) -> None:
        self.message = message
        self.num_scored = self.num_tokens = self.num_ended = 0
        self.outputs: list[Output] = []
        self.places: dict[int, int] = {}
        """row -> index of its token's output"""


class Detokenizer(Actor):
    """Keeps one `Stream` for each open row. Every request opened here gets exactly one `Done`."""

    accepts = Opened | StepTokens
    roams = True

    def __init__(self, vocabulary: Vocabulary, names: Names = NAMES) -> None:
        self._names = names
        self._vocabulary = vocabulary
        self._read: _Read | None = None
        """The message of a step that is being read."""
        self._unreadable: set[int] = set()
        """Requests that the scheduler was asked to end, as their text could not be made, and whose end is to come."""
        self._streams: dict[int, Stream] = {}

    @property
    def num_open(self) -> int:
        """Rows that hold a stream; 0 at rest."""
        return len(self._streams)

    def started(self) -> None:
        """Build the text tables before the first token needs them."""
        self._vocabulary.build_tables()

    def receive(self, message: Opened | StepTokens) -> None:
        match message:
            case Opened():
                self._open(message)
            case StepTokens():
                self._send(self._outputs_of(message))
                self._read = None

    def spares(self, message: Opened | StepTokens, error: Exception) -> bool:
        """A message of a whole step is gone on with where it failed: whose part that was, if anybody's, has ended. What
        fails as a whole ends all that it names."""
        if isinstance(message, Opened):
            return super().spares(message, error)
        self.told_of(error, num_requests=len(message.rows) + len(message.ended))
        try:
            self._send(self._outputs_of(message))
        except Exception:
            self._send(self._unread(message))
        self._read = None
        return True

    def _unread(self, message: StepTokens) -> list[Output]:
        """All that the message names ends: those that it ends hear of it from here, for nobody else will say it; the
        scheduler ends the others."""
        outputs = []
        for end in message.ended:
            stream = self._streams.get(end.row)
            if stream is not None and stream.request == end.request:
                del self._streams[end.row]
                if stream.closed:
                    continue
            outputs.append(_failed(structs.replace(end, message=UNREADABLE)))
        named = [self._streams[row].request for row in message.rows.tolist() if row in self._streams]
        for request in named:
            self.end_request(request)
        return outputs

    def requests_of(self, message: Opened | StepTokens) -> tuple[int, ...]:
        return (message.request,) if isinstance(message, Opened) else ()

    def end_request(self, request: int) -> None:
        """The scheduler ends it; its terminal record then comes as for a request that was never opened here."""
        self._unreadable.add(request)
        for row in [row for row, stream in self._streams.items() if stream.request == request]:
            del self._streams[row]
        self.context.send(self._names.scheduler, Abort((request,), Cause.INTERNAL, UNREADABLE), Lane.CONTROL)

    def stopped(self, reason: str) -> None:
        """Everything still open gets its terminal record; the gateway may be gone already, so a refusal is final.
        After a failure the gateway answers, which learns of it next."""
        if self.failure is not None:
            return
        outputs = []
        for stream in self._streams.values():
            if not stream.closed:
                try:
                    text = stream.flush()
                except Exception as error:
                    self.told_of(error, request=stream.request)
                    text = ""
                done = stream.done(Cause.DRAINED, self.context.now(), reason)
                outputs.append(Output(stream.request, text, (), done=done))
        self._streams.clear()
        if outputs:
            self.context.send(self._names.gateway, Outputs(tuple(outputs)))

    def _open(self, opened: Opened) -> None:
        holder = self._streams.get(opened.row)
        if holder is not None:
            raise RowInUse(opened.row, holder.request, opened.request)
        self._streams[opened.row] = Stream(self._vocabulary, opened, self.context.now())
        # From here and on the lane of outputs: whatever way else it went, an output could overtake it.
        options = opened.text_options
        prompt = tuple(opened.prompt.tolist()) if options.return_prompt else ()
        accepted = Accepted(opened.request, opened.num_prompt, options.in_reasoning, prompt)
        self.context.send(self._names.gateway, accepted)

    def _send(self, outputs: list[Output]) -> None:
        if outputs and not self.context.send(self._names.gateway, Outputs(tuple(outputs))):
            raise OutputsRefused(f"the gateway refused the outputs of {len(outputs)} requests")

    def _outputs_of(self, message: StepTokens) -> list[Output]:
        """Tokens first, then ends. This loop runs once for each token of every request: keep it short."""
        streams, read = self._streams, self._read
        if read is None or read.message is not message:
            read = self._read = _Read(message)
        for admitted in message.admitted:  # what is told again here changes nothing
            self._guard(admitted.row, Stream.admit, admitted)
        for row, prompt_scores in message.prompt_logprobs[read.num_scored :]:
            num_scored = read.num_scored + 1
            self._guard(row, Stream.add_prompt_scores, prompt_scores)
            read.num_scored = num_scored
        for row, vector in message.embeddings:
            self._guard(row, Stream.add_embedding, vector)
        rows: list[int] = message.rows.tolist()
        silent = _stop_token_places(rows, message.ended, streams) if message.ended else frozenset()
        scores = ScoreLists.of(message.logprobs) if message.logprobs is not None else None
        outputs, places = read.outputs, read.places
        tokens, first = message.tokens.tolist(), read.num_tokens
        for index, (row, token) in enumerate(zip(rows[first:], tokens[first:], strict=True), first):
            read.num_tokens = index + 1
            try:
                stream = streams.get(row)
                if stream is None or stream.matched is not None:
                    continue
                if stream.plain and index not in silent:
                    stream.num_output += 1
                    output = Output(stream.request, stream.decode(token), (token,), version=message.version)
                else:
                    output = self._special(stream, token, index in silent, message)
                    if scores is not None:
                        output = structs.replace(output, logprobs=stream.scores(token, scores, index))
                places[row] = len(outputs)
                outputs.append(output)
            except Exception as error:
                self._fail(row, error)
        for end in message.ended[read.num_ended :]:
            was_closed = (stream := streams.get(end.row)) is not None and stream.closed
            read.num_ended += 1
            try:
                self._end(end, outputs, places.get(end.row), message.version)
            except Exception as error:
                self.contain(end.request, error)
                self._unreadable.discard(end.request)  # this was its end
                if not was_closed:  # else its client has had its end
                    outputs.append(_failed(end))
        return outputs

    def _guard(self, row: int, tell: Callable[[Stream, T], None], what: T) -> None:
        """Tell the stream of this row, if it has one, something; what goes wrong is its request's alone."""
        try:
            stream = self._streams.get(row)
            if stream is not None:
                tell(stream, what)
        except Exception as error:
            self._fail(row, error)

    def _fail(self, row: int, error: Exception) -> None:
        stream = self._streams.get(row)
        if stream is not None:
            self.contain(stream.request, error)

    def _special(self, stream: Stream, token: int, silent: bool, message: StepTokens) -> Output:
        """One token of a request with stop strings or scores, or a stop token that ends without text."""
        stream.num_output += 1
        if stream.num_output == 1:
            stream.saw_first_token(self.context.now())
        text = "" if silent else stream.push(token)
        done = None
        if stream.matched is not None:
            done = stream.done(Cause.STOP_STRING, self.context.now(), matched=stream.matched)
            if all(end.request != stream.request for end in message.ended):
                self.context.send(self._names.scheduler, Finish(stream.request, stream.num_output), Lane.CONTROL)
        scores = stream.take_prompt_scores()
        return Output(stream.request, text, (token,), prompt_logprobs=scores, done=done, version=message.version)

    def _end(self, end: Ended, outputs: list[Output], place: int | None, version: str) -> None:
        """Free the row and give the client its terminal record, with the last token's output where there is one."""
        stream = self._streams.get(end.row)
        if end.request in self._unreadable:
            # It may have had all its tokens; its client has not.
            self._unreadable.discard(end.request)
            outputs.append(_failed(end))
            return
        if stream is None or stream.request != end.request:
            # Never opened here (ended before it took a row): nothing to add to the scheduler's own words.
            outputs.append(Output(end.request, "", (), done=_done(end)))
            return
        del self._streams[end.row]
        if stream.closed:
            if place is not None:  # the stop string and the end fell into one step: the scheduler's record knows more
                self._replace_done(stream, end, outputs, place)
            return
        text = stream.flush()
        done = _done(end)
        if stream.matched is not None:
            done = structs.replace(done, cause=Cause.STOP_STRING, matched=stream.matched, message="")
        if place is None:
            scores, vector = stream.take_prompt_scores(), stream.embedding
            outputs.append(Output(stream.request, text, (), (), scores, done, vector, version))
        else:
            last = outputs[place]
            outputs[place] = structs.replace(last, text=last.text + text, done=done)

    def _replace_done(self, stream: Stream, end: Ended, outputs: list[Output], place: int) -> None:
        usage = structs.replace(end.usage, completion_tokens=stream.num_output)
        done = Done(Cause.STOP_STRING, usage, end.timing, matched=stream.matched)
        outputs[place] = structs.replace(outputs[place], done=done)


def _done(end: Ended) -> Done:
    return Done(end.cause, end.usage, end.timing, end.message, end.matched)


def _failed(end: Ended) -> Output:
    """The end of a request whose text could not be made."""
    return Output(end.request, "", (), done=_done(structs.replace(end, cause=Cause.INTERNAL)))


def _stop_token_places(rows: list[int], ended: tuple[Ended, ...], streams: dict[int, Stream]) -> frozenset[int]:
    """Indices of the tokens that are stop tokens: the last of each row that one ended. They have no text, unless the
    request keeps what stopped it."""
    stopped = {end.row for end in ended if end.matched is not None}
    places = {row: index for index, row in enumerate(rows) if row in stopped}
    return frozenset(index for row, index in places.items() if row in streams and not streams[row].include_stop)
