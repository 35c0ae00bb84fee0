"""What agents are told of processes that the kernel refused at a pids.max: the fact, whose limit it was, what to do."""

from typing import Final

_FEWER: Final = "Run fewer jobs or threads at a time (make -jN, pytest -n N)"


def times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def pids_to_ask(pids_max: int | None, most: int | None) -> int | None:
    """What to ask for after `pids_max` was too little: twice that, or `most`; None: no more can be had."""
    if pids_max is None:
        return None
    ask = 2 * pids_max if most is None else min(2 * pids_max, most)
    return ask if ask > pids_max else None


def word_call(call_id: str, refused: int, pids_max: int | None, most: int | None) -> tuple[str, str]:
    """Message and advice to a running call that was refused processes at a limit of its own; it may be given `most`."""
    allowed = f": it may have {pids_max} processes and threads at once" if pids_max is not None else ""
    message = f"The kernel has refused the call a new process {times(refused)}{allowed}."
    return message, _advice(pids_to_ask(pids_max, most), call_id)


def word_session(refused: int, pids_max: int | None, biggest: tuple[str, int] | None) -> tuple[str, str]:
    """To the agent, of a limit that its runtime and all its calls share. `biggest`: the call with most processes, and how
    many those are."""
    allowed = (
        f": its agent and all its calls may have {pids_max} processes and threads together"
        if pids_max is not None
        else ""
    )
    message = f"The kernel has refused processes of this session a new one {times(refused)}{allowed}."
    end = "end a call (`agentcg call tree` shows them)"
    if biggest is not None:
        call_id, count = biggest
        message += f" Most, {count}, are the call {call_id}'s."
        end = f"end a call (`agentcg call kill {call_id}`)"
    return message, f"{_FEWER}, or {end}; more than that only an operator can allow."


def word_end(refused: int, pids_max: int | None, most: int | None) -> tuple[str, str]:
    """A sentence about a call that has ended, and advice."""
    allowed = f": it might have {pids_max} processes and threads at once" if pids_max is not None else ""
    message = f"The kernel refused it a new process {times(refused)}{allowed}."
    return message, _advice(pids_to_ask(pids_max, most))


def word_end_around(refused: int, pids_max: int | None, whose: str) -> tuple[str, str]:
    """The same of a limit that it shares, `whose` as in "of the whole session"; others may have been refused, too."""
    limit = (
        f"the limit of {pids_max} processes and threads"
        if pids_max is not None
        else "the limit of processes"
    )
    message = f"While it ran, the kernel refused a new process {times(refused)} at {limit} {whose}."
    return message, f"{_FEWER}, or fewer calls at once."


def _advice(ask: int | None, call_id: str = "") -> str:
    if ask is None:
        return f"{_FEWER}: no more can be granted."
    now = (
        f"allow more now (`agentcg call set {call_id} --pids {ask}`) or next time"
        if call_id
        else "declare more"
    )
    return f"{_FEWER}, or {now} (--pids {ask})."
