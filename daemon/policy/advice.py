"""Words for the agent: what happened to its call and what to do next, with the numbers that decide it.

An agent reads this in the middle of its work, so: first the fact and its cause, then one concrete step with a command or a
figure in it. Calm ends get no advice.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import assert_never

from agentcgroup.daemon.model import CallLimits, DoorHold, ExitStatus, OomVictim, Placement, Usage, Verdict
from agentcgroup.daemon.policy import process_words
from agentcgroup.daemon.policy.thrift import need_less
from agentcgroup.proto.quantity import format_duration, format_size


@dataclass(frozen=True, slots=True)
class EndedCall:
    """The facts a report is worded from."""

    verdict: Verdict
    status: ExitStatus
    usage: Usage
    limits: CallLimits
    duration_ms: int
    leftover_processes: int
    kill_note: str
    memory_grantable_bytes: int
    session_memory_bytes: int
    # When the session was full: what its agent's runtime held beyond what is set aside for it.
    agent_beyond_bytes: int = 0
    victim: OomVictim | None = None
    # New processes that the kernel refused while it ran, at a limit that it shares: how often, and whose limit that is.
    session_pids_max: int | None = None
    refused_around: int = 0
    around_pids_max: int | None = None
    around_whose: str = ""
    # How far below its own limit it would have been warned, of a call that was not; None: it was, or this is not known.
    unwarned_bytes: int | None = None
    # Of a call that came through the transparent door.
    placement: Placement | None = None
    command: tuple[str, ...] = ()
    # No daemon was there when it ended.
    unseen: bool = False
    # Its caller said that it is over, without saying how.
    finished: bool = False


def _victim(call: EndedCall) -> str:
    """Who was killed, and for whom; nothing where the kernel does not tell."""
    victim = call.victim
    if victim is None:
        return ""
    held = (
        f", {format_size(victim.anonymous_bytes)} of its own" if victim.anonymous_bytes is not None else ""
    )
    others = victim.count - 1
    also = f"; {others} other{'s' if others > 1 else ''} went with it" if others > 0 else ""
    asked = (
        "which asked for more"
        if victim.trigger_pid == victim.pid
        else f"when {victim.trigger_command} (pid {victim.trigger_pid}) asked for more"
    )
    return f" The victim was {victim.command} (pid {victim.pid}{held}), {asked}{also}."


def _unwarned(call: EndedCall) -> str:
    """Why no warning came before; the size of what it asked for last the kernel does not tell, only how fast it grew."""
    if call.unwarned_bytes is None:
        return ""
    peak = call.usage.memory_growth_peak_bytes_per_s
    rate = f", growing by up to {format_size(peak)} a second" if peak else ""
    return (
        f" There was no time to warn: it took the last {format_size(call.unwarned_bytes)} below its limit before the"
        f" daemon could say so{rate}."
    )


def _placement(call: EndedCall) -> str:
    """How late a call that had not asked was placed."""
    if call.placement is None:
        return ""
    return f" It was placed {call.placement.delay_ms} ms after its exec; {_meanwhile(call.placement.hold)}."


def _meanwhile(hold: DoorHold | None) -> str:
    if hold is None:
        return "until then it ran on the agent's account"
    began = f"{hold.began_us / 1000:.1f} ms"
    if hold.lasted:
        return f"the scheduler held it from {began} on"
    return f"the scheduler held it from {began} on, but not until the end (scheduler.door_hold)"


def _peak(call: EndedCall) -> str:
    peak = call.usage.memory_peak_bytes
    return f" (peak {format_size(peak)})" if peak is not None else ""


def memory_to_ask_bytes(limit_bytes: int | None, grantable_bytes: int) -> int | None:
    """What to ask for after `limit_bytes` was too little: twice that, or what can be granted; None: no more can be had."""
    if limit_bytes is None:
        return None
    # In whole MiB, as it is written.
    ask = min(2 * limit_bytes, grantable_bytes) >> 20 << 20
    return ask if ask > limit_bytes else None


def exceeded_bytes(verdict: Verdict, limits: CallLimits) -> int | None:
    """The limit of its own that a call ended at; None: at none, or it has none."""
    if verdict is Verdict.MEMORY_LIMIT_CALL:
        return limits.memory_max_bytes
    if verdict is Verdict.THROTTLE_LIMIT:
        return limits.memory_high_bytes or limits.memory_bytes
    return None


def _more_memory(call: EndedCall) -> str:
    now = exceeded_bytes(call.verdict, call.limits)
    ask = memory_to_ask_bytes(now, call.memory_grantable_bytes)
    less = need_less(call.command)
    if ask is None:
        return f"No more can be granted now. Need less at a time ({less}), or wait for other calls to end."
    if now is not None and ask >= 2 * now:
        grantable = format_size(call.memory_grantable_bytes)
        more = f"--memory {ask >> 20}M --memory-max {ask >> 20}M"
        return f"Declare more, for example {more} ({grantable} can be granted now), or need less at a time: {less}."
    return f"At most --memory-max {ask >> 20}M can be granted now; otherwise need less at a time: {less}."


def _message(call: EndedCall) -> str:
    limits, took = call.limits, format_duration(call.duration_ms)
    limit = format_size(limits.memory_max_bytes) if limits.memory_max_bytes is not None else "its limit"
    match call.verdict:
        case Verdict.OK:
            return f"Ended well after {took}{_peak(call)}."
        case Verdict.EXIT_CODE:
            code = call.status.exit_code
            alone = "" if call.refused_around else "; no limit was involved"
            return f"Ended by itself with exit status {code} after {took}{_peak(call)}{alone}."
        case Verdict.MEMORY_LIMIT_CALL:
            return (
                f"Killed by the kernel: the call reached its own memory limit of {limit}{_peak(call)} "
                f"after {took}.{_victim(call)}{_unwarned(call)} "
                "Only this call was stopped."
            )
        case Verdict.MEMORY_LIMIT_SESSION:
            beyond = call.agent_beyond_bytes
            agent = (
                f" (its agent's runtime had taken {format_size(beyond)} of what is theirs)"
                if beyond > 0
                else ""
            )
            reached = format_size(call.session_memory_bytes - beyond)
            return (
                "Killed by the kernel: the calls of this session together reached "
                f"{reached}{agent}, and this one was chosen{_peak(call)} after {took}."
                f"{_victim(call)}"
            )
        case Verdict.PROTECTION:
            why = f" {call.kill_note}" if call.kill_note else ""
            return f"Stopped so that others keep their memory{_peak(call)}, after {took}.{why}"
        case Verdict.MEMORY_LIMIT_HOST:
            return (
                f"Killed by the kernel: the host ran out of memory, and this call was chosen{_peak(call)} after {took}."
                f"{_victim(call)}"
            )
        case Verdict.PIDS_LIMIT:
            return f"Ended with exit status {call.status.exit_code} after {took}."
        case Verdict.DEADLINE:
            return f"Stopped at its deadline of {format_duration(limits.deadline_ms or call.duration_ms)}{_peak(call)}."
        case Verdict.THROTTLE_LIMIT:
            high = format_size(limits.memory_high_bytes or limits.memory_bytes)
            slowed = format_duration(limits.throttle_limit_ms or 0)
            why = f" ({call.kill_note})" if call.kill_note else ""
            return f"Stopped: it was held back at {high} for {slowed}{why}{_peak(call)}."
        case Verdict.OPERATOR:
            return f"Stopped by the operator after {took}{': ' + call.kill_note if call.kill_note else ''}."
        case Verdict.SESSION_END:
            return f"Stopped because its session ended, after {took}."
        case Verdict.PARENT_END:
            return f"Stopped because the call around it ended, after {took}."
        case Verdict.SIGNAL:
            number = call.status.signal
            return f"Ended by signal {number} after {took}{_peak(call)}; neither a limit nor the daemon sent it."
        case Verdict.NOT_BEGUN:
            return "Never begun: the grant was given back or lapsed."
        case Verdict.UNKNOWN:
            if call.unseen:
                return f"Ended while agentcgroupd was away, after at most {took}{_peak(call)}; its exit status is not known."
            if call.finished:
                return f"Ended by its caller after {took}{_peak(call)}."
            return f"Ended after {took}{_peak(call)}; how is not known."
        case _:
            assert_never(call.verdict)


def _advice(call: EndedCall) -> str:
    match call.verdict:
        case Verdict.MEMORY_LIMIT_CALL:
            return _more_memory(call)
        case Verdict.MEMORY_LIMIT_SESSION:
            return "Run fewer calls at once, or declare what each needs (--memory): then they are admitted when they fit."
        case Verdict.MEMORY_LIMIT_HOST | Verdict.PROTECTION:
            return "Run it again later, and declare what it needs (--memory) so that room is kept for it."
        case Verdict.DEADLINE:
            return "Do a smaller part of the work per call, or declare a longer --timeout."
        case Verdict.THROTTLE_LIMIT:
            return _more_memory(call)
        case Verdict.OPERATOR:
            return "It was no fault of the command: ask the operator before you run it again."
        case Verdict.SIGNAL:
            return "If nothing in the command explains it, run it again once."
        case (
            Verdict.OK
            | Verdict.EXIT_CODE
            | Verdict.SESSION_END
            | Verdict.PARENT_END
            | Verdict.NOT_BEGUN
            | Verdict.PIDS_LIMIT
            | Verdict.UNKNOWN
        ):
            return ""
        case _:
            assert_never(call.verdict)


def _refusals(call: EndedCall) -> Iterator[tuple[str, str]]:
    """What is to be said, whatever the verdict, of processes that the kernel refused."""
    refused = call.usage.pids_max_events
    if refused:
        yield process_words.word_end(refused, call.limits.pids_max, call.session_pids_max)
    if call.refused_around:
        yield process_words.word_end_around(call.refused_around, call.around_pids_max, call.around_whose)


def word(call: EndedCall) -> tuple[str, str]:
    """Message and advice for the end of a call; the advice is empty when there is nothing to do."""
    message, advice = _message(call) + _placement(call), _advice(call)
    for sentence, next_step in _refusals(call):
        message, advice = f"{message} {sentence}", advice or next_step
    if call.leftover_processes:
        plural = "es" if call.leftover_processes != 1 else ""
        message += f" {call.leftover_processes} process{plural} it left behind {'were' if plural else 'was'} killed."
        if call.verdict is Verdict.OK and not advice:
            advice = "Processes do not outlive their call: run a server as a call of its own and finish it when done."
    return message, advice
