"""Defects of adapters."""

from __future__ import annotations

from pawl.actors.scheduler import Scheduler
from pawl.loops.adapters import Adapters
from pawl.loops.admission import Admission
from pawl.loops.queues import Queues
from tests.mutants.mutant import Edit, Group, Mutant

_WITHOUT = '__import__("re").sub("^adapter=[^&]*&", "", {})'


def _mutant(name: str, broken: str, resembles: str, what: str, *edits: Edit) -> Mutant:
    return Mutant(name, Group.CONTROL, broken, resembles, what, edits)


ADAPTERS = (
    _mutant(
        "pinned_adapter_makes_way",
        "adapter_references",
        "",
        "Where as many adapters are loaded as may be, the one used the longest time ago makes way, pinned or not.",
        Edit(Adapters._make_room, "(a for a in ready if not a.pinned), key", "(a for a in ready), key"),
    ),
    _mutant(
        "request_comes_too_late_for_its_adapter",
        "fault_isolation",
        "",
        "A request whose adapter makes way for another one while it is on its way is refused.",
        Edit(Adapters.refusal, "adapter.phase in MAY_BE_NAMED", "adapter.phase is AdapterPhase.READY"),
    ),
    _mutant(
        "recalled_adapter_makes_nobody_rest",
        "adapter_references",
        "",
        "An adapter that rests is ready again for a request, and all others stay so.",
        Edit(Adapters.went_live, "self._make_room(now)\n", "pass\n"),
    ),
    _mutant(
        "cache_is_shared_between_adapters",
        "namespace_isolation",
        "13488, 24568; vllm 42125",
        "Requests find what others have computed for the same tokens, with whatever adapter.",
        Edit(Queues.share_prefix, "table.info(row).namespace", _WITHOUT.format("table.info(row).namespace")),
        Edit(Admission._try, "info.namespace,\n", _WITHOUT.format("info.namespace") + ",\n"),
    ),
    _mutant(
        "unload_does_not_wait",
        "adapter_references",
        "36894",
        "An adapter is dropped when somebody unloads it, and requests are still computed with it.",
        Edit(Adapters._forget_unused, "if adapter.number in named or adapter.ticket:", "if adapter.ticket:"),
    ),
    _mutant(
        "slot_in_use_is_given_to_another",
        "adapter_references",
        "vllm 54839",
        "An adapter leaves its slot for another, and requests are still computed with it.",
        Edit(
            Adapters._computed,
            "set(self.queues.table.adapter[np.concatenate(rows)].tolist()) & self.by_number.keys()",
            "set()",
        ),
    ),
    _mutant(
        "step_in_flight_is_forgotten_at_an_unload",
        "adapter_references",
        "",
        "An adapter is dropped when its last request has ended, under a step in flight that computes it.",
        Edit(
            Adapters._computed,
            ", *(scheduled.rows for scheduled in self._loop.in_flight)",
            "",
        ),
    ),
    _mutant(
        "name_that_is_loaded_again_is_the_old_adapter",
        "adapter_references",
        "",
        "An adapter is told from others by its name: one that is loaded again has the pages of the one before.",
        Edit(Adapters.load, "self._newest + 1 if number is None else number", "sum(name.encode())"),
    ),
    _mutant(
        "reference_stays_after_an_abort",
        "adapter_references",
        "36894",
        "Whoever was live when an adapter was unloaded counts for ever, and the unload is never over.",
        Edit(
            Adapters._forget_unused,
            "named = set(",
            'named = self.__dict__.setdefault("named_once", set())\n    named |= set(',
        ),
    ),
    _mutant(
        "adapter_that_is_unloaded_takes_requests",
        "adapter_references",
        "",
        "A request that was under way when its adapter was unloaded is served with it all the same.",
        Edit(Adapters.refusal, "if not number or (adapter is not None and adapter.phase in MAY_BE_NAMED)", "if True"),
    ),
    _mutant(
        "adapter_of_a_request_is_lost",
        "schedule_equivalence",
        "",
        "A request is computed without its adapter, where it has a salt.",
        Edit(
            Scheduler._namespace,
            "adapters.part(message.adapter)",
            "adapters.part(0 if message.namespace else message.adapter)",
        ),
    ),
    _mutant(
        "checkpoint_forgets_adapters",
        "one_decision_log",
        "",
        "A checkpoint leaves out the adapters: a replay that begins there does not know them.",
        Edit(Adapters.snapshot, "for adapter in self.by_number.values()", "for adapter in ()"),
    ),
)
