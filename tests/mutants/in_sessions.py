"""Defects of sessions."""

from __future__ import annotations

from pawl.loops import sessions as of_sessions
from pawl.loops import snapshot as of_loops
from pawl.loops.requests import Requests
from pawl.loops.sessions import Sessions
from tests.mutants.mutant import Edit, Group, Mutant


def _mutant(name: str, resembles: str, what: str, *edits: Edit) -> Mutant:
    return Mutant(name, Group.CONTROL, "session_atomicity", resembles, what, edits)


SESSIONS = (
    _mutant(
        "aborted_turn_stays_in_its_session",
        "36475, 36552",
        "What a turn had said when its client hung up is part of the session, and the next turn goes on from it.",
        Edit(Requests.close, "if target == State.FINISHED else None", "if True else None"),
    ),
    _mutant(
        "turn_goes_on_from_one_that_is_live",
        "22790, 36503",
        "A turn that goes on from one that has not ended takes what that has so far.",
        Edit(Sessions._context, "(name not in live or not wish.replace)", "name not in live"),
    ),
    _mutant(
        "replaced_turns_leave_before_the_new_one_has_finished",
        "22273",
        "Turns that are to be replaced are forgotten at once; when the new turn is aborted, nothing is left.",
        Edit(
            Sessions.went_live,
            "begun.session.live[begun.turn.request] = begun.turn",
            "begun.session.live[begun.turn.request] = begun.turn\n"
            "        [_leave(begun.session, turn) for turn in begun.turn.replaces]",
        ),
    ),
    _mutant(
        "session_expires_under_a_live_turn",
        "23579, 23615",
        "A session whose time is over is closed while a turn of it is running.",
        Edit(Sessions.expire, "session.num_uses == num_uses and not session.live", "session.num_uses == num_uses"),
    ),
    _mutant(
        "session_grows_without_bound",
        "27024, 40250",
        "A session takes turns beyond its capacity.",
        Edit(Sessions._begin, "if session.capacity and most > left:", "if False:"),
    ),
    _mutant(
        "rewind_is_ignored",
        "",
        "A turn goes on from the end of the one before, wherever it was to go on from.",
        Edit(of_sessions._cut, "if not wish.offset:", "if True:"),
    ),
    _mutant(
        "checkpoint_forgets_sessions",
        "",
        "A checkpoint says that no session is open.",
        Edit(of_loops.snapshot_of, "loop.requests.sessions.snapshot()", "[]"),
    ),
    _mutant(
        "session_without_a_turn_stays",
        "",
        "Only the end of a turn lets a session wait for the next one: where there is none, it stays for ever.",
        Edit(Sessions.open, "self._used(session)", "pass"),
    ),
)
